//! `mica store …`: one file for each verb.

mod check;
mod destroy;
mod df;
mod forget;
mod gc;
mod reshare;
mod scrub;
mod who_has;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use super::arguments::StoreVerb;
use super::output::Output;
use crate::host::check::CheckOptions;

pub(super) fn run(verb: StoreVerb, store: &Path, output: &Output) -> Result<ExitCode> {
    match verb {
        StoreVerb::Df(json) => df::run(json, store, *output),
        StoreVerb::WhoHas(asked) => who_has::run(&asked, store, *output),
        StoreVerb::Reshare(wanted) => reshare::run(&wanted, store, *output),
        StoreVerb::Gc { dry_run, json } => gc::run(dry_run, json, store, *output),
        StoreVerb::Scrub(wanted) => scrub::run(&wanted, store, *output),
        StoreVerb::Check { rehash, fix, json } => {
            check::run(CheckOptions { rehash, fix }, json, store, *output)
        }
        StoreVerb::Forget { root, force, dry_run } => {
            forget::run(&root, force, dry_run, store, *output)
        }
        StoreVerb::Destroy { yes, dry_run } => destroy::run(yes && !dry_run, store, *output),
    }
}
