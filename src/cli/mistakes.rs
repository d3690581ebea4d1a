//! Mistakes in the grammar, told with what was probably meant.
//!
//! Most is clap's own. It does not know that a command begins where the words of a verb's own end,
//! and shows options that were never typed where the environment sets them.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error, Parser};

use super::arguments::Arguments;
use crate::container::config::unwords;

/// Verbs that run a command, and how many words come before their settings and it.
const RUNNERS: [(&str, usize); 3] = [("exec", 1), ("run", 1), ("create", 2)];

/// Understands these arguments, or tells what is wrong with them and ends: with 0 after help and
/// version, with 2 after a mistake.
pub(super) fn parse(arguments: &[OsString]) -> Arguments {
    Arguments::try_parse_from(arguments).unwrap_or_else(|error| told(error, arguments).exit())
}

fn told(mut error: Error, arguments: &[OsString]) -> Error {
    let mut top = Arguments::command();
    top.build();
    let words: Vec<String> =
        arguments.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let (command, own) = verb(&top, &words);
    if error.get(ContextKind::Usage).is_some() {
        let usage = command.clone().render_usage();
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    }
    let cut_off =
        matches!(error.kind(), ErrorKind::MissingRequiredArgument | ErrorKind::UnknownArgument);
    if let Some(line) = with_dashes(command, own).filter(|_| cut_off) {
        let tip = StyledStr::from(format!("a command stands after \"--\": mica {line}"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
    }
    error
}

/// The verb that words name, as deep as they do, and what follows its name.
fn verb<'a>(top: &'a Command, words: &'a [String]) -> (&'a Command, &'a [String]) {
    let (mut command, mut rest) = (top, words);
    loop {
        let own = positionals(top, rest).next();
        let named = own.and_then(|at| Some((at, command.find_subcommand(rest.get(at)?)?)));
        let Some((at, deeper)) = named else { return (command, rest) };
        (command, rest) = (deeper, rest.get(at + 1..).unwrap_or_default());
    }
}

/// Where those of the words stand that are neither options of `command` nor values of one.
fn positionals<'a>(command: &'a Command, words: &'a [String]) -> impl Iterator<Item = usize> + 'a {
    let takes_next = |word: &str| {
        let known = |arg: &&clap::Arg| {
            let long = word.strip_prefix("--");
            let short = word.strip_prefix('-').and_then(|letters| letters.chars().last());
            let longs = arg.get_long_and_visible_aliases().unwrap_or_default();
            match long {
                Some(long) => longs.contains(&long),
                None => arg.get_short().is_some_and(|letter| Some(letter) == short),
            }
        };
        word.starts_with('-')
            && command
                .get_arguments()
                .find(known)
                .is_some_and(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
    };
    let mut value = false;
    words.iter().enumerate().filter_map(move |(at, word)| {
        let is_value = std::mem::replace(&mut value, takes_next(word));
        (!is_value && !word.starts_with('-')).then_some(at)
    })
}

/// What follows the name of a verb that runs a command, with the "--" that was left out.
fn with_dashes(command: &Command, own: &[String]) -> Option<String> {
    let (name, before) = RUNNERS.into_iter().find(|(name, _)| *name == command.get_name())?;
    if own.iter().any(|word| word == "--") {
        return None;
    }
    let mut more = positionals(command, own).skip(before);
    let at = more.find(|at| own.get(*at).is_some_and(|word| !word.contains('=')))?;
    let (first, rest) = own.split_at(at);
    Some(format!("{name} {} -- {}", unwords(first), unwords(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told_of(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let error = Arguments::try_parse_from(&words).expect_err("a mistake");
        told(error, &words).to_string()
    }

    #[test]
    fn a_command_without_its_dashes_is_answered_with_them() {
        for (line, meant) in [
            ("mica exec c1 hostname", ": mica exec c1 -- hostname\n"),
            ("mica --store /x exec -u www c1 ls -l", ": mica exec -u www c1 -- ls -l\n"),
            (
                "mica run debian:12 memory=1G uname -a",
                ": mica run debian:12 memory=1G -- uname -a\n",
            ),
            ("mica create c1 debian:12 sleep -x", ": mica create c1 debian:12 -- sleep -x\n"),
        ] {
            let said = told_of(line);
            assert!(said.contains(meant), "{line}: {said}");
        }
        assert!(!told_of("mica exec c1").contains("stands after"));
    }

    #[test]
    fn the_usage_has_what_the_verb_takes_and_nothing_of_all_verbs() {
        for (line, usage) in [
            ("mica --store /x rename c1", "Usage: mica rename [OPTIONS] <CT> <NAME>"),
            ("mica -q --store copy node sharing x", "Usage: mica node sharing [OPTIONS]"),
        ] {
            let said = told_of(line);
            assert!(said.lines().any(|line| line == usage), "{said}");
        }
    }
}
