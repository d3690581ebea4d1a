//! `mica template explore TEMPLATE [OTHER]`, `mica explore CT`: layers, tree and waste on a
//! full screen.
//!
//! `state` is what the screen shows and what keys do to it, `draw` how it looks, `keys` which
//! key means what. Whatever is drawn went through `inspect/text.rs` or `Preview`: names and
//! contents reach the terminal escaped.

mod draw;
mod fit;
mod keys;
mod state;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::execute;

use super::arguments::{Explore, TemplateExplore};
use crate::host::interrupt_flag;
use crate::inspect::{InspectError, Library, Meaning, Sort, Strata, View};
use crate::layer::Stack;
use state::{Explorer, Flow};

/// How often a signal that ends the program is looked for.
const TICK: Duration = Duration::from_millis(200);

/// What a shell reports of a program that SIGTERM ended.
const TERMINATED: i32 = 143;

/// What has layers to explore.
const PILES: &[Sort] = &[Sort::Template, Sort::Layer, Sort::Stack];

pub(super) fn template(wanted: &TemplateExplore, store: &Path) -> Result<()> {
    demand_terminal("mica template tree")?;
    let library = Library::open(store)?;
    let meaning = library.resolve(wanted.template.as_ref(), PILES)?;
    let strata = match &wanted.other {
        Some(other) => {
            let other = library.view(&library.resolve(other.as_ref(), PILES)?)?;
            Strata::of_comparison(library.view(&meaning)?, other)?
        }
        None => Strata::of_stack(&library, meaning.describe(), &stack(&library, &meaning)?)?,
    };
    explore(library, strata)
}

pub(super) fn container(wanted: &Explore, store: &Path) -> Result<()> {
    demand_terminal("mica diff")?;
    let library = Library::open(store)?;
    let strata = match library.container(&wanted.container) {
        Ok(container) => Strata::of_container(&library, container)?,
        // A root without changes is its template.
        Err(InspectError::ReadOnly { .. }) => {
            let root = library.resolve(&wanted.container, &[Sort::Root])?;
            Strata::of_stack(&library, root.describe(), &stack(&library, &root)?)?
        }
        Err(error) => return Err(error.into()),
    };
    explore(library, strata)
}

fn stack(library: &Library, meaning: &Meaning) -> Result<Stack> {
    Ok(match meaning {
        Meaning::Template(template) => template.stack.clone(),
        Meaning::Root(record) => record.stack.clone(),
        Meaning::Stack(stack) => stack.clone(),
        Meaning::Layer(id) => Stack::new(vec![*id]),
        // Not among the sorts that were asked for.
        Meaning::Object(_) => Stack::new(View::layers(&library.view(meaning)?).to_vec()),
    })
}

fn demand_terminal(instead: &str) -> Result<()> {
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        return Ok(());
    }
    bail!("the explorer needs a terminal on standard input and output; `{instead}` does without")
}

/// Shows `strata` until somebody has seen enough.
fn explore(library: Library, strata: Strata) -> Result<()> {
    let mut explorer = Explorer::new(library, strata)?;
    end_on_signal(interrupt_flag()?)?;
    on_screen(|terminal| drive(terminal, &mut explorer))
}

/// Lends the terminal to `show`. A panic there gives it back before it is told.
fn on_screen(show: impl FnOnce(&mut DefaultTerminal) -> Result<()>) -> Result<()> {
    let mut terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
    let done = show(&mut terminal);
    ratatui::try_restore()?;
    done
}

fn drive(terminal: &mut DefaultTerminal, explorer: &mut Explorer) -> Result<()> {
    loop {
        terminal.draw(|frame| draw::screen(frame, explorer))?;
        // All that was typed or held down meanwhile is one step for the eye.
        loop {
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && let Some(action) = keys::action(key, explorer.is_typing())
                && explorer.act(action) == Flow::Quit
            {
                return Ok(());
            }
            if !event::poll(Duration::ZERO)? {
                break;
            }
        }
    }
}

/// Gives the terminal back and ends the program when a signal asks for it.
///
/// From a thread of its own: reading keys of a terminal that was hung up never returns.
fn end_on_signal(ended: &'static AtomicBool) -> io::Result<()> {
    let watch = move || {
        while !ended.load(Ordering::Relaxed) {
            std::thread::sleep(TICK);
        }
        // The terminal may be gone; there is nobody left to tell.
        let _gone = ratatui::try_restore();
        let _gone = execute!(io::stdout(), Show);
        std::process::exit(TERMINATED);
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map(drop)
}
