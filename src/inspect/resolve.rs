//! What a word on the command line means: a template, a root, or something with a digest.
//!
//! Names come before digests: a template that is called like the beginning of a digest is
//! meant, and the digest can be given with more digits.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use crate::host::roots::RootError;
use crate::host::{HostError, RootRecord, nearest, templates};
use crate::layer::{LayerId, Stack, Template, TemplateName};
use crate::object::ObjectId;

use super::{InspectError, Library};

/// What a word may mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A template, `name[:tag]`.
    Template,
    /// A root: its name or identity, its mountpoint, its private directory.
    Root,
    /// A layer, by its digest or the first digits of it.
    Layer,
    /// The stack of a template or a root, likewise.
    Stack,
    /// An object, likewise.
    Object,
}

/// What a word means.
#[derive(Clone, Debug)]
pub enum Meaning {
    /// A template.
    Template(Box<Template>),
    /// A root.
    Root(Box<RootRecord>),
    /// A layer of the store.
    Layer(LayerId),
    /// A stack that a template or a root has.
    Stack(Stack),
    /// An object of the store.
    Object(ObjectId),
}

/// The fewest digits that stand for a digest.
const LEAST_DIGITS: usize = 2;

/// Digits of a digest.
const ALL_DIGITS: usize = 64;

/// Candidates that an ambiguous word is answered with, at most.
const MOST_CANDIDATES: usize = 10;

impl Sort {
    fn noun(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Root => "root",
            Self::Layer => "layer",
            Self::Stack => "stack",
            Self::Object => "object",
        }
    }
}

impl Meaning {
    /// What it is, for a sentence: `template debian:12`, `layer 6b1f…`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Template(template) => format!("template {}", template.name),
            Self::Root(record) => format!("root {}", record.name),
            Self::Layer(id) => format!("layer {id}"),
            Self::Stack(stack) => format!("stack {}", stack.id()),
            Self::Object(id) => format!("object {id}"),
        }
    }
}

impl Library {
    /// What `word` means, among the `sorts` that are of use here.
    ///
    /// # Errors
    /// [`InspectError::Unknown`] with the nearest name; [`InspectError::Ambiguous`] with what
    /// the digits fit; [`InspectError::Host`] for a template or root that is damaged.
    pub fn resolve(&self, word: &OsStr, sorts: &[Sort]) -> Result<Meaning, InspectError> {
        let text = word.to_str();
        if sorts.contains(&Sort::Template)
            && let Some(name) = text.and_then(|text| text.parse::<TemplateName>().ok())
        {
            match self.layers().templates().get(&name) {
                Err(crate::layer::LayersError::NoTemplate(_)) => {}
                found => return Ok(Meaning::Template(Box::new(found?))),
            }
        }
        if sorts.contains(&Sort::Root) {
            match self.roots().find(word) {
                Err(RootError::Unknown { .. }) => {}
                found => return Ok(Meaning::Root(Box::new(found?))),
            }
        }
        if let Some(digits) = text.and_then(digits) {
            let mut candidates = self.candidates(&digits, sorts)?;
            if candidates.len() > 1 {
                return Err(ambiguous(word, &candidates));
            }
            if let Some(found) = candidates.pop() {
                return Ok(found);
            }
        }
        Err(self.unknown(word, sorts)?)
    }

    /// The template that `word` names.
    ///
    /// # Errors
    /// [`HostError::NoTemplate`] with the nearest name.
    pub fn template(&self, word: &str) -> Result<Template, InspectError> {
        Ok(templates::find(self.layers(), word)?)
    }

    /// Everything of these `sorts` whose digest begins with `digits`.
    fn candidates(&self, digits: &str, sorts: &[Sort]) -> Result<Vec<Meaning>, InspectError> {
        let mut found = Vec::new();
        if sorts.contains(&Sort::Layer) {
            let mut layers: Vec<LayerId> =
                self.layers().layers()?.into_iter().map(|stored| stored.id).collect();
            layers.retain(|id| id.to_string().starts_with(digits));
            layers.sort_unstable();
            found.extend(layers.into_iter().map(Meaning::Layer));
        }
        if sorts.contains(&Sort::Stack) {
            let mut stacks = self.stacks()?;
            stacks.retain(|id, _| id.starts_with(digits));
            found.extend(stacks.into_values().map(Meaning::Stack));
        }
        if sorts.contains(&Sort::Object) {
            let objects = self.objects().beginning_with(digits)?;
            found.extend(objects.into_iter().map(Meaning::Object));
        }
        Ok(found)
    }

    /// The stacks of all templates and roots, by their digests.
    fn stacks(&self) -> Result<BTreeMap<String, Stack>, InspectError> {
        let stacks = self.templates()?.into_iter().map(|template| template.stack);
        let roots = self.records()?.into_iter().map(|record| record.stack);
        Ok(stacks.chain(roots).map(|stack| (stack.id().to_string(), stack)).collect())
    }

    fn unknown(&self, word: &OsStr, sorts: &[Sort]) -> Result<InspectError, InspectError> {
        let word = word.to_string_lossy().into_owned();
        if sorts == [Sort::Template] {
            // It knows best what is near, tags considered.
            return Ok(match templates::find(self.layers(), &word) {
                Err(error) => error.into(),
                Ok(_made_meanwhile) => {
                    HostError::NoTemplate { wanted: word, hint: String::new() }.into()
                }
            });
        }
        let mut hint = None;
        if sorts.contains(&Sort::Template) {
            hint = templates::hint(&templates::names(self.layers())?, &word);
        }
        if hint.is_none() && sorts.contains(&Sort::Root) {
            let records = self.records()?;
            let near = nearest(&word, records.iter().map(|record| record.name.as_str()));
            hint = near.map(|name| format!("; did you mean {name:?}?"));
        }
        let hint = match hint {
            Some(hint) => hint,
            None if sorts == [Sort::Layer] => self.about_layers(&word),
            None => String::new(),
        };
        let nouns: Vec<&str> = sorts.iter().map(|sort| sort.noun()).collect();
        Ok(InspectError::Unknown { what: nouns.join(" or "), word, hint })
    }
}

impl Library {
    /// Layers have no names to be near to: what was probably meant, as the end of a clause.
    fn about_layers(&self, word: &str) -> String {
        if templates::find(self.layers(), word).is_ok() {
            return "; it is a template: `mica template history` shows its layers".to_owned();
        }
        let few = (1..LEAST_DIGITS).contains(&word.len());
        if few && word.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return format!("; give {LEAST_DIGITS} digits of its digest at least");
        }
        "; `mica layer list` shows those there are".to_owned()
    }
}

/// The lower-case digits of a text that can be (the beginning of) a digest.
fn digits(text: &str) -> Option<String> {
    let fits = (LEAST_DIGITS..=ALL_DIGITS).contains(&text.len());
    let hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (fits && hexadecimal).then(|| text.to_ascii_lowercase())
}

fn ambiguous(word: &OsStr, found: &[Meaning]) -> InspectError {
    let mut candidates: Vec<String> =
        found.iter().take(MOST_CANDIDATES).map(Meaning::describe).collect();
    if let Some(more) = found.len().checked_sub(MOST_CANDIDATES).filter(|more| *more > 0) {
        candidates.push(format!("{more} more"));
    }
    InspectError::Ambiguous { word: word.to_string_lossy().into_owned(), candidates }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_beginning_of_a_digest_is_taken_for_one() {
        assert_eq!(digits("ABcd12").as_deref(), Some("abcd12"));
        assert_eq!(digits(&"0".repeat(64)).map(|text| text.len()), Some(64));
        for text in ["", "a", "debian", "12:34", "é1", &"0".repeat(65)] {
            assert_eq!(digits(text), None, "{text}");
        }
    }
}
