//! Which of an image's platforms to take.

use std::fmt;
use std::str::FromStr;

use oci_spec::image as oci;

use super::ImageError;

/// An operating system and a processor, in Go's words: `linux/amd64`, `linux/arm/v7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// The platform of this host.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    /// The processor, in Go's words.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Whether an image for `offered` runs on this. A variant counts only if one is asked for.
    pub(super) fn accepts(&self, offered: &oci::Platform) -> bool {
        self.os == offered.os().to_string()
            && self.architecture == offered.architecture().to_string()
            && (self.variant.is_none() || self.variant == *offered.variant())
    }
}

impl FromStr for Platform {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(*variant)),
            _ => return Err(ImageError::BadPlatform(text.to_owned())),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(ImageError::BadPlatform(text.to_owned()));
        }
        Ok(Self {
            os: (*os).to_owned(),
            architecture: (*architecture).to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A platform as an index writes it, for messages.
pub(super) fn shown(platform: &oci::Platform) -> String {
    let variant = platform.variant().as_ref().map(|v| format!("/{v}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(text: &str) -> oci::Platform {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn platforms_are_read_and_compared() {
        let arm: Platform = "linux/arm/v7".parse().unwrap();
        assert_eq!(arm.to_string(), "linux/arm/v7");
        assert!(arm.accepts(&offered(r#"{"os":"linux","architecture":"arm","variant":"v7"}"#)));
        assert!(!arm.accepts(&offered(r#"{"os":"linux","architecture":"arm","variant":"v6"}"#)));
        let any: Platform = "linux/arm".parse().unwrap();
        assert!(any.accepts(&offered(r#"{"os":"linux","architecture":"arm","variant":"v6"}"#)));
        for bad in ["", "linux", "linux/", "a/b/c/d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
