//! Templates by name, and who uses them.

use std::collections::HashSet;

use super::error::HostError;
use super::nearest;
use super::roots::{RootRecord, Roots};
use super::store::Store;
use super::unmount;
use crate::layer::store::LayersError;
use crate::layer::template::DEFAULT_TAG;
use crate::layer::{Layers, Template, TemplateName};

/// Reads the template that `text` names.
///
/// # Errors
/// [`HostError::NoTemplate`] with what was probably meant; also for a text that can be no name.
pub fn find(layers: &Layers, text: &str) -> Result<Template, HostError> {
    let found = text.parse::<TemplateName>().ok().map(|name| layers.templates().get(&name));
    match found {
        Some(Err(LayersError::NoTemplate(_))) | None => {
            let hint = hint(&names(layers)?, text).unwrap_or_default();
            Err(HostError::NoTemplate { wanted: text.to_owned(), hint })
        }
        Some(template) => Ok(template?),
    }
}

/// What was probably meant by a text that names none of the `known` templates, as the end of a
/// clause: the tags of that name, or of the nearest one.
pub fn hint(known: &[TemplateName], text: &str) -> Option<String> {
    let (name, tag) = text.split_once(':').map_or((text, None), |(name, tag)| (name, Some(tag)));
    if known.iter().any(|one| one.name() == name) {
        let tagless = if tag.is_none() {
            format!("; {name:?} alone is {:?}, which there is not", format!("{name}:{DEFAULT_TAG}"))
        } else {
            String::new()
        };
        return Some(format!("{tagless}; {}", offer(known, name)));
    }
    let whole: Vec<String> = known.iter().map(ToString::to_string).collect();
    if let Some(near) = nearest(text, whole.iter().map(String::as_str)) {
        return Some(format!("; did you mean {near:?}?"));
    }
    let near = nearest(name, known.iter().map(TemplateName::name))?;
    Some(format!("; {}", offer(known, near)))
}

/// The templates called `name`, whatever their tags, to choose from.
fn offer(known: &[TemplateName], name: &str) -> String {
    const MOST: usize = 8;
    let tags: Vec<String> = known
        .iter()
        .filter(|one| one.name() == name)
        .map(|one| format!("{:?}", one.to_string()))
        .collect();
    match tags.as_slice() {
        [only] => format!("did you mean {only}?"),
        several => {
            let (shown, more) = several.split_at(several.len().min(MOST));
            let more =
                if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
            format!("there are {}{more}", shown.join(", "))
        }
    }
}

/// The names of all readable templates, in order.
///
/// # Errors
/// When the directory cannot be read.
pub fn names(layers: &Layers) -> Result<Vec<TemplateName>, HostError> {
    let listed = layers.templates().list()?;
    Ok(listed.into_iter().filter_map(|one| one.template.ok()).map(|one| one.name).collect())
}

/// The names that a list of names and patterns (`*`, `?`) means, each once.
///
/// # Errors
/// [`HostError::NoTemplate`] for a name that is not there or a pattern that fits nothing.
pub fn matching(layers: &Layers, wanted: &[String]) -> Result<Vec<TemplateName>, HostError> {
    let known = names(layers)?;
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for text in wanted {
        let fitting: Vec<TemplateName> = if text.contains(['*', '?']) {
            known.iter().filter(|name| fits(text, &name.to_string())).cloned().collect()
        } else {
            match text.parse::<TemplateName>() {
                // A damaged template can still be taken away by its name.
                Ok(name) => match layers.templates().get(&name) {
                    Err(LayersError::NoTemplate(_)) => Vec::new(),
                    _there => vec![name],
                },
                Err(_) => Vec::new(),
            }
        };
        if fitting.is_empty() {
            // Says so, with a hint.
            find(layers, text)?;
        }
        found.extend(fitting.into_iter().filter(|name| seen.insert(name.clone())));
    }
    Ok(found)
}

/// Takes names away; what only they referred to stays until it is collected.
///
/// All or none: if one of them is used, nothing is deleted.
///
/// # Errors
/// [`HostError::TemplateInUse`], naming the roots.
pub fn delete(
    store: &Store,
    layers: &Layers,
    names: &[TemplateName],
    dry_run: bool,
) -> Result<(), HostError> {
    let roots = Roots::open(store)?;
    unmount::let_end(&roots)?;
    let locked = roots.lock()?;
    locked.prune()?;
    let records = roots.list()?;
    for name in names {
        let roots = users(&records, name);
        if !roots.is_empty() {
            return Err(HostError::TemplateInUse { name: name.clone(), roots });
        }
    }
    if !dry_run {
        for name in names {
            layers.templates().delete(name)?;
        }
    }
    Ok(())
}

/// The names of the roots that were made from a template, whatever its tag points to now:
/// they are mounted again under its name.
fn users(records: &[RootRecord], name: &TemplateName) -> Vec<String> {
    records.iter().filter(|root| root.template == *name).map(|root| root.name.clone()).collect()
}

/// Whether `text` fits `pattern`, where `*` stands for anything and `?` for one character.
pub fn fits(pattern: &str, text: &str) -> bool {
    let Some(first) = pattern.chars().next() else { return text.is_empty() };
    let rest = pattern.get(first.len_utf8()..).unwrap_or_default();
    if first == '*' {
        return text.char_indices().any(|(at, _)| fits(rest, text.get(at..).unwrap_or_default()))
            || fits(rest, "");
    }
    match text.chars().next() {
        Some(letter) if first == '?' || first == letter => {
            fits(rest, text.get(letter.len_utf8()..).unwrap_or_default())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_is_not_there_is_answered_with_those_that_are() {
        let known = |names: &[&str]| -> Vec<TemplateName> {
            names.iter().map(|name| name.parse().expect("a name")).collect()
        };
        let two = known(&["alpine:3", "debian:11", "debian:12"]);
        let hint = |text| hint(&two, text).unwrap_or_default();
        assert_eq!(
            hint("debian"),
            "; \"debian\" alone is \"debian:latest\", which there is not; there are \"debian:11\", \"debian:12\""
        );
        assert_eq!(hint("debian:13"), "; there are \"debian:11\", \"debian:12\"");
        assert_eq!(hint("alpine:4"), "; did you mean \"alpine:3\"?");
        assert!(hint("alpine").ends_with("did you mean \"alpine:3\"?"));
        assert_eq!(hint("debain:12"), "; did you mean \"debian:12\"?");
        assert_eq!(hint("debain"), "; there are \"debian:11\", \"debian:12\"");
        assert_eq!(hint("postgres"), "");
        let many: Vec<String> = (0..10).map(|tag| format!("a:{tag}")).collect();
        let many = known(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(super::hint(&many, "a:x").is_some_and(|told| told.ends_with("and 2 more")));
    }

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, text, expected) in [
            ("debian:*", "debian:12", true),
            ("*:12", "debian:12", true),
            ("*", "debian:12", true),
            ("d?bian:1?", "debian:12", true),
            ("debian", "debian:12", false),
            ("*:1", "debian:12", false),
            ("?", "", false),
            ("**", "", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }
}
