//! What containers are called: by the machine, and by people.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a container's name is at least one letter or digit long")]
    Empty,
    /// More than a host name may have.
    #[error("\"{name}\" has {length} letters; a container's name has at most 63")]
    TooLong {
        /// What was given.
        name: String,
        /// Its length.
        length: usize,
    },
    /// Something a host name may not have.
    #[error(
        "\"{name}\" holds {letter:?}; a container's name holds letters, digits, '-', '_' and '.', and begins with a letter or a digit"
    )]
    Letter {
        /// What was given.
        name: String,
        /// What is wrong in it.
        letter: char,
    },
    /// No identifier.
    #[error("\"{0}\" is no container identifier; those are 32 hexadecimal digits")]
    Id(String),
}

/// What never changes about a container: 128 random bits, 32 lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// A new one.
    ///
    /// # Errors
    /// What getrandom(2) answers.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0_u8; 16];
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, which is what people see.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 32 && text.bytes().all(digit) {
            Ok(Self(text))
        } else {
            Err(NameError::Id(text))
        }
    }
}

/// What people call a container: 1 to 63 letters, digits, `-`, `_` and `.`, beginning with a letter
/// or a digit. Also a path component, part of a cgroup's name and, by default, the host name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

impl ContainerName {
    /// The letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        const MOST: usize = 63;
        let Some(first) = name.chars().next() else { return Err(NameError::Empty) };
        let wrong =
            |letter: &char| !letter.is_ascii_alphanumeric() && !matches!(letter, '-' | '_' | '.');
        let letter =
            if first.is_ascii_alphanumeric() { name.chars().find(wrong) } else { Some(first) };
        if let Some(letter) = letter {
            return Err(NameError::Letter { name, letter });
        }
        if name.len() > MOST {
            let length = name.len();
            return Err(NameError::TooLong { name, length });
        }
        Ok(Self(name))
    }
}

macro_rules! text {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text!(ContainerId);
text!(ContainerName);
