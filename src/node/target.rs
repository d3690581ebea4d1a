//! Which containers a word of a command means.

use std::collections::BTreeMap;

use super::error::NodeError;
use crate::container::config::{ContainerId, ContainerName};
use crate::host::{fits, nearest};

/// What a container can be found by.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its identity.
    pub id: ContainerId,
    /// Its name.
    pub name: ContainerName,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// Fewest digits of an identity that are taken for one.
const LEAST_DIGITS: usize = 6;

/// The containers that `words` mean, each once, in the order of the words: names, identities or
/// six and more of their first digits, patterns of names (`*`, `?`), and `label=x` or
/// `label=x=value`.
///
/// # Errors
/// [`NodeError::NoContainer`] for a word that means none, [`NodeError::Ambiguous`] for digits that
/// begin several identities.
pub fn resolve(known: &[Known], words: &[String]) -> Result<Vec<ContainerId>, NodeError> {
    let mut found: Vec<ContainerId> = Vec::new();
    for word in words {
        for id in meant(known, word)? {
            if !found.contains(&id) {
                found.push(id);
            }
        }
    }
    Ok(found)
}

/// The one container that `word` means: a name or an identity.
///
/// # Errors
/// As [`resolve`].
pub fn one(known: &[Known], word: &str) -> Result<ContainerId, NodeError> {
    let by_name = known.iter().find(|known| known.name.as_str() == word);
    if let Some(known) = by_name {
        return Ok(known.id.clone());
    }
    let digits = word.len() >= LEAST_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut by_id = known.iter().filter(|known| digits && known.id.as_str().starts_with(word));
    match (by_id.next(), by_id.next()) {
        (Some(known), None) => Ok(known.id.clone()),
        (Some(one), Some(two)) => Err(NodeError::Ambiguous {
            wanted: word.to_owned(),
            first: one.name.clone(),
            second: two.name.clone(),
        }),
        (None, _) => {
            let hint = nearest(word, known.iter().map(|known| known.name.as_str()))
                .map_or_else(String::new, |name| format!("; did you mean {name:?}?"));
            Err(NodeError::NoContainer { wanted: word.to_owned(), hint })
        }
    }
}

fn meant(known: &[Known], word: &str) -> Result<Vec<ContainerId>, NodeError> {
    let fitting: Vec<ContainerId> = if let Some(label) = word.strip_prefix("label=") {
        let (label, value) = match label.split_once('=') {
            Some((label, value)) => (label, Some(value)),
            None => (label, None),
        };
        let has = |known: &&Known| {
            known.labels.get(label).is_some_and(|has| value.is_none_or(|value| has == value))
        };
        known.iter().filter(has).map(|known| known.id.clone()).collect()
    } else if word.contains(['*', '?']) {
        let fits = |known: &&Known| fits(word, known.name.as_str());
        known.iter().filter(fits).map(|known| known.id.clone()).collect()
    } else {
        return Ok(vec![one(known, word)?]);
    };
    if fitting.is_empty() {
        return Err(NodeError::NoContainer { wanted: word.to_owned(), hint: String::new() });
    }
    Ok(fitting)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<Known> {
        let container = |id: &str, name: &str, labels: &[(&str, &str)]| Known {
            id: ContainerId::try_from(format!("{id:0<32}")).expect("an identity"),
            name: name.parse().expect("a name"),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        vec![
            container("abcdef01", "web1", &[("role", "web")]),
            container("abcdef02", "web2", &[("role", "web"), ("zone", "b")]),
            container("12345678", "db1", &[("role", "db")]),
            container("99999999", "deadbeef", &[]),
        ]
    }

    fn names(words: &[&str]) -> Result<Vec<String>, String> {
        let known = known();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let found = resolve(&known, &words).map_err(|error| error.to_string())?;
        let name = |id: &ContainerId| {
            known.iter().find(|known| known.id == *id).map(|known| known.name.to_string())
        };
        Ok(found.iter().filter_map(name).collect())
    }

    #[test]
    fn words_mean_names_digits_patterns_and_labels() {
        assert_eq!(names(&["db1", "web1"]).expect("found"), ["db1", "web1"]);
        assert_eq!(names(&["web*"]).expect("found"), ["web1", "web2"]);
        assert_eq!(names(&["web2", "web?"]).expect("found"), ["web2", "web1"]);
        assert_eq!(names(&["label=role=web"]).expect("found"), ["web1", "web2"]);
        assert_eq!(names(&["label=zone"]).expect("found"), ["web2"]);
        assert_eq!(names(&["123456"]).expect("found"), ["db1"]);
        assert_eq!(names(&["deadbeef"]).expect("a name before digits"), ["deadbeef"]);
    }

    #[test]
    fn what_means_nothing_or_too_much_is_told() {
        assert!(names(&["wbe1"]).expect_err("none").contains("did you mean \"web1\"?"));
        assert!(names(&["abcdef"]).expect_err("two").contains("web1"));
        for word in ["", "12345", "label=", "label=role=x", "x*", "web1 "] {
            assert!(names(&[word]).is_err(), "{word:?}");
        }
    }
}
