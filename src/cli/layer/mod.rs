//! `mica layer …`

mod list;
mod show;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::arguments::LayerVerb;
use super::output::Output;
use super::template::tree;
use crate::inspect::{Library, Meaning, Sort};
use crate::layer::LayerId;

pub(super) fn run(verb: LayerVerb, store: &Path, output: &Output) -> Result<ExitCode> {
    match verb {
        LayerVerb::List(json) => list::run(json, store, *output)?,
        LayerVerb::Show { layer, json } => show::run(&layer, json, store, *output)?,
        LayerVerb::Tree(wanted) => {
            let library = Library::open(store)?;
            let view = library.view(&find(&library, &wanted.layer)?)?;
            tree::show(&view, &wanted.path, wanted.shape, *output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The layer that a word means.
fn find(library: &Library, word: &str) -> Result<Meaning> {
    Ok(library.resolve(word.as_ref(), &[Sort::Layer])?)
}

fn id(library: &Library, word: &str) -> Result<Option<LayerId>> {
    Ok(match find(library, word)? {
        Meaning::Layer(id) => Some(id),
        Meaning::Template(_) | Meaning::Root(_) | Meaning::Stack(_) | Meaning::Object(_) => None,
    })
}
