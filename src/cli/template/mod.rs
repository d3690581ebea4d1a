//! `mica template …`: one file for each verb.

mod cat;
mod check;
mod delete;
mod diff;
mod export;
mod files;
mod history;
mod import;
mod list;
mod show;
pub(super) mod tree;
mod warm;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::arguments::TemplateVerb;
use super::explore;
use super::output::{Output, count};
use crate::host::{Access, Store};
use crate::inspect::{Library, Sort, View};
use crate::layer::{LayerId, LayerPath, Layers};

pub(super) fn run(verb: TemplateVerb, store: &Path, output: &Output) -> Result<ExitCode> {
    match verb {
        TemplateVerb::Import(wanted) => import::run(&wanted, store, *output)?,
        TemplateVerb::List(json) => list::run(json, store, *output)?,
        TemplateVerb::Show { template, json } => show::run(&template, json, store, *output)?,
        TemplateVerb::History { template, json } => {
            history::run(&template, json, store, *output)?;
        }
        TemplateVerb::Tree(wanted) => tree::run(&wanted, store, *output)?,
        TemplateVerb::Files(wanted) => files::run(&wanted, store, *output)?,
        TemplateVerb::Cat(wanted) => cat::run(&wanted, store, *output)?,
        TemplateVerb::Diff(wanted) => return diff::run(&wanted, store, *output),
        TemplateVerb::Explore(wanted) => explore::template(&wanted, store)?,
        TemplateVerb::Check(wanted) => return check::run(&wanted, store, *output),
        TemplateVerb::Warm { templates, json } => warm::run(&templates, json, store, *output)?,
        TemplateVerb::Export(wanted) => export::run(&wanted, store, *output)?,
        TemplateVerb::Delete { templates, dry_run } => {
            delete::run(&templates, dry_run, store, *output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What can be looked into as a tree.
const TREES: &[Sort] = &[Sort::Template, Sort::Layer, Sort::Stack];

/// The tree that a word means.
fn view(library: &Library, word: &str) -> Result<View> {
    Ok(library.view(&library.resolve(word.as_ref(), TREES)?)?)
}

/// The fewest decimal digits that are taken for the beginning of a digest.
const LEAST_DIGITS: usize = 6;

/// The number of a layer of a view, 1 the lowest, and the layer; `word` is the number, or
/// digits of the digest.
fn layer(view: &View, word: &str) -> Result<(u32, LayerId)> {
    let numbered = || (1..).zip(view.layers().iter().copied());
    let by_number = numbered().find(|(number, _)| word.parse() == Ok(*number));
    // So few decimal digits are a number, though a digest may well begin with them.
    let is_number = word.len() < LEAST_DIGITS && word.bytes().all(|digit| digit.is_ascii_digit());
    let digits = word.to_ascii_lowercase();
    let fits = |id: &LayerId| !is_number && id.to_string().starts_with(&digits);
    let mut by_digest = numbered().filter(|(_, id)| fits(id));
    match (by_number, by_digest.next(), by_digest.next()) {
        (Some(found), _, _) | (None, Some(found), None) => Ok(found),
        (None, Some(_), Some(_)) => {
            bail!("{word:?} fits several layers of {}; give more digits", view.whole())
        }
        (None, None, _) => bail!(
            "{} has no layer {word:?}; it has {}, numbered from 1, the lowest",
            view.whole(),
            count(u64::try_from(view.layers().len()).unwrap_or(u64::MAX), "layer"),
        ),
    }
}

/// A path as it was given on the command line.
fn layer_path(path: &OsStr) -> Result<LayerPath> {
    Ok(LayerPath::parse(path.as_encoded_bytes())?)
}

fn open(store: &Path, access: Access) -> Result<(Store, Layers)> {
    let store = Store::open(store, access)?;
    let layers = Layers::open(store.path())?;
    Ok((store, layers))
}
