//! The names by which a layer hides what is below it. OCI image-spec, layer.md, "Whiteouts".

use crate::layer::FileName;

const PREFIX: &[u8] = b".wh.";
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a `.wh.` name asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Whiteout {
    /// Hide this name of the layers below.
    Name(FileName),
    /// Hide all names that the layers below have in this directory.
    Opaque,
    /// A file by which aufs kept its books; it hides nothing.
    Bookkeeping,
    /// The prefix with nothing that could be a name after it.
    Invalid,
}

/// Reads a file name; `None` if it is an ordinary one.
pub(super) fn parse(name: &[u8]) -> Option<Whiteout> {
    let hidden = name.strip_prefix(PREFIX)?;
    Some(if name == OPAQUE {
        Whiteout::Opaque
    } else if name.starts_with(META_PREFIX) {
        Whiteout::Bookkeeping
    } else {
        FileName::new(hidden).map_or(Whiteout::Invalid, Whiteout::Name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteout_names() {
        let name = |bytes: &[u8]| Some(Whiteout::Name(FileName::new(bytes).unwrap()));
        assert_eq!(parse(b"passwd"), None);
        assert_eq!(parse(b".whatever"), None);
        assert_eq!(parse(b".wh.passwd"), name(b"passwd"));
        assert_eq!(parse(b".wh.a.wh.b"), name(b"a.wh.b"));
        assert_eq!(parse(b".wh..wh..opq"), Some(Whiteout::Opaque));
        assert_eq!(parse(b".wh..wh.plnk"), Some(Whiteout::Bookkeeping));
        assert_eq!(parse(b".wh."), Some(Whiteout::Invalid));
        assert_eq!(parse(b".wh..."), Some(Whiteout::Invalid));
    }
}
