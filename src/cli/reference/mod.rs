//! `mica completions SHELL`, `mica man DIR`, and docs/CLI.md: all made of the grammar.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;

use super::arguments::Arguments;
use super::output::Output;

/// What docs/CLI.md says before the commands.
const CONVENTIONS: &str = include_str!("conventions.md");

/// What each command answers with `--json`: a heading `# VERB`, then the text.
const ANSWERS: &str = include_str!("answers.md");

/// Prints a completion script.
pub(super) fn completions(shell: Shell, output: Output) -> Result<()> {
    // The generator panics where writing fails, and a pipe may close: into memory first.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "mica", &mut script);
    output.pour(|out| Ok(out.write_all(&script)?))
}

/// Writes a man page for each command into the directory, making that if need be.
pub(super) fn man(dir: &Path, output: Output) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut top = Arguments::command().disable_help_subcommand(true);
    top.build();
    let mut written = 0;
    for command in visible(&top) {
        let page = clap_mangen::Man::new(command.clone());
        let mut text = Vec::new();
        page.render(&mut text)?;
        let path = dir.join(page.get_filename());
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        written += 1;
    }
    output.remark(format!("{} in {}", super::output::count(written, "page"), dir.display()))
}

/// Prints docs/CLI.md.
pub(super) fn markdown(output: Output) -> Result<()> {
    output.pour(|out| Ok(out.write_all(reference()?.as_bytes())?))
}

/// The whole reference.
fn reference() -> Result<String> {
    let mut top = Arguments::command().disable_help_subcommand(true);
    top.build();
    let mut text = format!("{}\n\n## Options of every command\n\n", CONVENTIONS.trim_end());
    let global = |arg: &&Arg| arg.is_global_set() && !arg.is_hide_set();
    for arg in top.get_arguments().filter(global) {
        describe(&mut text, arg)?;
    }
    // `mica bench` alone does something, and so does `mica bench compare`.
    let runs = |one: &&Command| !one.is_subcommand_required_set();
    for command in visible(&top).into_iter().skip(1).filter(runs) {
        section(&mut text, command)?;
    }
    Ok(text)
}

/// The commands that people are meant to see, in the order of the help.
fn visible(top: &Command) -> Vec<&Command> {
    let mut all = vec![top];
    for command in top.get_subcommands().filter(|one| !one.is_hide_set()) {
        all.extend(visible(command));
    }
    all
}

/// `mica template list`
fn title(command: &Command) -> String {
    command.get_bin_name().unwrap_or(command.get_name()).to_owned()
}

fn section(text: &mut String, command: &Command) -> Result<()> {
    writeln!(text, "\n## {}\n", title(command))?;
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        writeln!(text, "{about}.\n")?;
    }
    let usage = command.clone().render_usage().to_string();
    writeln!(text, "```\n{}\n```", usage.trim_start_matches("Usage: "))?;
    let own = |arg: &&Arg| !arg.is_global_set() && !arg.is_hide_set() && arg.get_id() != "help";
    let mut first = true;
    for arg in command.get_arguments().filter(own).filter(|arg| arg.get_id() != "version") {
        if std::mem::take(&mut first) {
            text.push('\n');
        }
        describe(text, arg)?;
    }
    let aliases: Vec<String> =
        command.get_all_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        writeln!(text, "\nAlso: {}.", aliases.join(", "))?;
    }
    if let Some(answer) = answer(command) {
        writeln!(text, "\n{}", answer.trim())?;
    }
    Ok(())
}

/// One line for an argument or option.
fn describe(text: &mut String, arg: &Arg) -> Result<()> {
    let mut spelt = arg.to_string();
    if let Some(short) = arg.get_short().filter(|_| arg.get_long().is_some()) {
        spelt = format!("-{short}, {spelt}");
    }
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    write!(text, "- `{spelt}`: {help}")?;
    let values = arg.get_possible_values();
    let takes_value = arg.get_action().takes_values();
    let shown: Vec<String> = values
        .iter()
        .filter(|_| takes_value)
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}` {}", value.get_name(), lower(&help.to_string())),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !shown.is_empty() {
        write!(text, ": {}", shown.join(", "))?;
    }
    let defaults: Vec<_> =
        arg.get_default_values().iter().map(|one| one.to_string_lossy()).collect();
    if takes_value && !defaults.is_empty() {
        write!(text, " [default: {}]", defaults.join(" "))?;
    }
    if let Some(variable) = arg.get_env() {
        write!(text, " [or in the environment: {}]", variable.to_string_lossy())?;
    }
    writeln!(text)?;
    Ok(())
}

fn lower(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// What a command answers in JSON.
fn answer(command: &Command) -> Option<&'static str> {
    let title = title(command);
    let verb = title.strip_prefix("mica ")?;
    let (_, rest) = ANSWERS.split_once(&format!("\n# {verb}\n"))?;
    Some(rest.split_once("\n# ").map_or(rest, |(answer, _)| answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_docs_is_that_of_this_grammar() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CLI.md");
        let kept = fs::read_to_string(kept).unwrap_or_default();
        let made = reference().expect("strings take all");
        let line = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
        assert!(kept == made, "run `mica reference > docs/CLI.md`: first other line is {line:?}");
    }

    #[test]
    fn every_command_that_answers_in_json_says_how() {
        let mut top = Arguments::command();
        top.build();
        let has_json =
            |one: &&Command| one.get_arguments().any(|arg| arg.get_long() == Some("json"));
        let mute: Vec<String> = visible(&top)
            .into_iter()
            .filter(has_json)
            .filter(|one| answer(one).is_none())
            .map(title)
            .collect();
        assert!(mute.is_empty(), "src/cli/reference/answers.md says nothing of {mute:?}");
    }

    #[test]
    fn every_answer_belongs_to_a_command() {
        let mut top = Arguments::command();
        top.build();
        let titles: Vec<String> = visible(&top).into_iter().map(title).collect();
        for line in ANSWERS.lines().filter_map(|line| line.strip_prefix("# ")) {
            assert!(titles.contains(&format!("mica {line}")), "there is no command {line:?}");
        }
    }
}
