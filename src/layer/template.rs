//! What a template is: a name and tag for a stack, and how to run it.
//!
//! Owns the names' safe alphabet and the JSON of a template (docs/FORMAT.md). Knows nothing
//! of where templates are kept.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::stack::Stack;

/// The version of the JSON that this code writes and the highest it reads.
pub(super) const FORMAT: u32 = 1;
/// The tag that is meant when none is given.
pub const DEFAULT_TAG: &str = "latest";
/// Longest name and longest tag, each, in bytes.
pub const MAX_PART_BYTES: usize = 128;
/// Paths opened in shared mode unless a template says otherwise: what is executed and mapped.
/// The set that Virtuozzo's pfcache used. A `*` stands for any run of bytes in one name.
pub const DEFAULT_SHARED_PATHS: [&str; 5] = ["/bin", "/sbin", "/lib*", "/usr", "/opt"];

/// The checked name and tag of a template, `name:tag` as text.
///
/// A name is `[a-z0-9][a-z0-9._-]*`, a tag `[A-Za-z0-9_][A-Za-z0-9._-]*`, each at most
/// [`MAX_PART_BYTES`]; so neither can lead out of its directory.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TemplateName {
    name: String,
    tag: String,
}

/// Why a text is no template name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateNameError {
    /// The part before the colon.
    #[error(
        "\"{0}\" is no template name: use 1 to {MAX_PART_BYTES} of a-z 0-9 . _ - and begin with a letter or digit"
    )]
    Name(String),
    /// The part after the colon.
    #[error(
        "\"{0}\" is no template tag: use 1 to {MAX_PART_BYTES} of A-Z a-z 0-9 . _ - and do not begin with . or -"
    )]
    Tag(String),
}

impl TemplateName {
    /// Checks a name and a tag.
    ///
    /// # Errors
    /// [`TemplateNameError`] with the part that is refused.
    pub fn new(name: &str, tag: &str) -> Result<Self, TemplateNameError> {
        let alphabet = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
        let in_name = |byte: u8| byte.is_ascii_lowercase() || alphabet(byte);
        let in_tag = |byte: u8| byte.is_ascii_alphabetic() || alphabet(byte);
        let fits = |part: &str| (1..=MAX_PART_BYTES).contains(&part.len());
        if !fits(name) || !name.bytes().all(in_name) || name.starts_with(['.', '_', '-']) {
            return Err(TemplateNameError::Name(name.to_owned()));
        }
        if !fits(tag) || !tag.bytes().all(in_tag) || tag.starts_with(['.', '-']) {
            return Err(TemplateNameError::Tag(tag.to_owned()));
        }
        Ok(Self { name: name.to_owned(), tag: tag.to_owned() })
    }

    /// The part before the colon.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part after the colon.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for TemplateName {
    type Err = TemplateNameError;

    /// Reads `name` or `name:tag`; the tag is [`DEFAULT_TAG`] if there is none.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, tag) = text.split_once(':').unwrap_or((text, DEFAULT_TAG));
        Self::new(name, tag)
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.name, self.tag))
    }
}

impl fmt::Debug for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for TemplateName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TemplateName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a template's stack is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateKind {
    /// A full stack that a root can be made of.
    #[default]
    Os,
    /// Layers to put on other stacks. Reserved: nothing makes or uses one yet.
    App,
}

/// How to run what is in a template: the part of an OCI image configuration that Mica keeps.
///
/// Lists and texts are as in the image; an empty one was absent there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// CPU architecture in Go's words (`amd64`); empty if unknown.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `NAME=value` each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// What the command is appended to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Default command, or arguments of the entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Directory the command starts in.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Signal that asks the command to end, as a name or a number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// `port`, `port/tcp` or `port/udp` each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Directories that hold data of the container rather than of the image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Labels of the image.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Where a template came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The import's source in words: a path, an image reference, `-` for standard input.
    pub source: String,
    /// Digest of the source with its algorithm (`sha256:…`), if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// When the import finished; whole seconds are kept.
    #[serde(with = "rfc3339")]
    pub created: SystemTime,
}

impl Provenance {
    /// Provenance of something imported now.
    pub fn now(source: String, source_digest: Option<String>) -> Self {
        let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
        Self { source, source_digest, created }
    }
}

/// A template: a name for a stack, pinned by digests, and how to run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Template {
    /// Name and tag; where the file lies says the same.
    pub name: TemplateName,
    /// Whether a root can be made of it.
    #[serde(default)]
    pub kind: TemplateKind,
    /// Its layers, lowest first.
    pub stack: Stack,
    /// How to run it.
    #[serde(default)]
    pub config: RunConfig,
    /// Absolute paths whose files are opened in shared mode; see [`DEFAULT_SHARED_PATHS`].
    #[serde(default = "default_shared_paths")]
    pub shared_paths: Vec<String>,
    /// Where it came from.
    pub provenance: Provenance,
}

/// [`DEFAULT_SHARED_PATHS`] as a list of its own.
pub fn default_shared_paths() -> Vec<String> {
    DEFAULT_SHARED_PATHS.map(str::to_owned).to_vec()
}

mod rfc3339 {
    use super::{Deserialize, Deserializer, Serializer, SystemTime};

    pub(super) fn serialize<S: Serializer>(
        time: &SystemTime,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<SystemTime, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_tag_is_the_latest() {
        let name: TemplateName = "debian".parse().expect("name");
        assert_eq!((name.name(), name.tag()), ("debian", "latest"));
        assert_eq!(name.to_string(), "debian:latest");
        let name: TemplateName = "a.b_c-9:3.11-Slim_x".parse().expect("name");
        assert_eq!((name.name(), name.tag()), ("a.b_c-9", "3.11-Slim_x"));
    }

    #[test]
    fn hostile_names_are_refused() {
        for bad in [
            "", ":", "a:", ":a", ".", "..", "../x", "a/b", "a:../b", "a:..", "a:.b", "a b", "A",
            "a:b:c", "a\0", "a:b/c", "é", "a:é", "-a", "_a", "a:-b", "a\n", "a:b\n", "/etc",
            "a:b\\c", "%2e%2e",
        ] {
            assert!(bad.parse::<TemplateName>().is_err(), "{bad:?} was taken");
        }
        let long = "a".repeat(MAX_PART_BYTES + 1);
        assert!(long.parse::<TemplateName>().is_err());
        assert!(format!("a:{long}").parse::<TemplateName>().is_err());
        assert!(long[1..].parse::<TemplateName>().is_ok());
    }
}
