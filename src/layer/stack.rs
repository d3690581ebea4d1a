//! Names of layers and of ordered lists of layers.
//!
//! Owns how a stack is named. Knows nothing of what a layer holds.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::object::{Digest, DigestError};

/// What is hashed before the layer digests of a stack, so that no other kind of bytes can
/// have a stack's name.
const STACK_DOMAIN: &[u8] = b"mica-stack-v1\0";

macro_rules! digest_name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// The name with this digest.
            pub fn new(digest: Digest) -> Self {
                Self(digest)
            }

            /// The digest in the name.
            pub fn digest(&self) -> &Digest {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

digest_name! {
    /// Names a layer: the BLAKE3-256 of its manifest.
    LayerId
}
digest_name! {
    /// Names a stack: the BLAKE3-256 of its list of layer digests.
    StackId
}

impl LayerId {
    /// The name of the layer whose manifest is `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Digest::of(bytes))
    }
}

/// An ordered list of layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stack {
    layers: Vec<LayerId>,
}

impl Stack {
    /// The stack of `layers`, lowest first.
    pub fn new(layers: Vec<LayerId>) -> Self {
        Self { layers }
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[LayerId] {
        &self.layers
    }

    /// Whether the stack holds no layer.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The name of this stack: BLAKE3 of `"mica-stack-v1\0"` and the layer digests in order.
    pub fn id(&self) -> StackId {
        let mut bytes = Vec::with_capacity(STACK_DOMAIN.len() + 32 * self.layers.len());
        bytes.extend_from_slice(STACK_DOMAIN);
        for layer in &self.layers {
            bytes.extend_from_slice(layer.digest().as_bytes());
        }
        StackId(Digest::of(&bytes))
    }

    /// This stack with `layer` put on top.
    #[must_use]
    pub fn extended(&self, layer: LayerId) -> Self {
        let mut layers = self.layers.clone();
        layers.push(layer);
        Self { layers }
    }

    /// Whether this stack is `below` itself or `below` with layers on top; then every inode
    /// number of `below` means the same file here.
    pub fn is_extension_of(&self, below: &Self) -> bool {
        self.layers.starts_with(&below.layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(byte: u8) -> LayerId {
        LayerId::new(Digest::from_bytes([byte; 32]))
    }

    #[test]
    fn a_stack_is_named_by_its_layers_in_order() {
        let ab = Stack::new(vec![layer(1), layer(2)]);
        let ba = Stack::new(vec![layer(2), layer(1)]);
        assert_ne!(ab.id(), ba.id());
        assert_eq!(Stack::new(vec![layer(1)]).extended(layer(2)).id(), ab.id());
        // Pinned: docs/FORMAT.md promises this hash input.
        let mut input = b"mica-stack-v1\0".to_vec();
        input.extend([[1; 32], [2; 32]].concat());
        assert_eq!(*ab.id().digest(), Digest::of(&input));
    }

    #[test]
    fn an_extension_keeps_all_layers_below() {
        let base = Stack::new(vec![layer(1)]);
        assert!(base.is_extension_of(&base));
        assert!(base.extended(layer(2)).is_extension_of(&base));
        assert!(!base.is_extension_of(&base.extended(layer(2))));
        assert!(!Stack::new(vec![layer(3), layer(1)]).is_extension_of(&base));
    }
}
