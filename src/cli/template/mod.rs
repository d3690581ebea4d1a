//! `mica template …`: one file for each verb.

mod delete;
mod import;
mod list;
mod show;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::arguments::TemplateVerb;
use super::output::Output;
use crate::host::{Access, Store};
use crate::layer::Layers;

pub(super) fn run(verb: TemplateVerb, store: &Path, output: &Output) -> Result<ExitCode> {
    match verb {
        TemplateVerb::Import(wanted) => import::run(&wanted, store, *output)?,
        TemplateVerb::List(json) => list::run(json, store, *output)?,
        TemplateVerb::Show { template, json } => show::run(&template, json, store, *output)?,
        TemplateVerb::Delete { templates, dry_run } => {
            delete::run(&templates, dry_run, store, *output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(store: &Path, access: Access) -> Result<(Store, Layers)> {
    let store = Store::open(store, access)?;
    let layers = Layers::open(store.path())?;
    Ok((store, layers))
}
