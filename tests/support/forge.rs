//! Archives that no tar program writes.

/// Builds an archive member by member.
#[derive(Clone, Default)]
pub(crate) struct Forge(pub(crate) Vec<u8>);

impl Forge {
    /// One member of any type, with a GNU header.
    pub(crate) fn raw(mut self, path: &[u8], kind: u8, link: &[u8], content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(u64::try_from(content.len()).expect("fits"));
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.raw(path.as_bytes(), b'0', b"", content.as_bytes())
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.raw(path.as_bytes(), b'5', b"", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(path.as_bytes(), b'2', target.as_bytes(), b"")
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.raw(path.as_bytes(), b'1', target.as_bytes(), b"")
    }

    /// Extended records for the next member.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let records: Vec<_> = records.iter().map(|(key, value)| (key.as_bytes(), *value)).collect();
        self.raw(b"pax", b'x', b"", &pax_records(&records))
    }

    /// The whole archive, with its end mark.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Records of an extended header (pax): each begins with its own length, in decimal.
pub(crate) fn pax_records(records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let mut len = body + 1;
        while len != body + len.to_string().len() {
            len = body + len.to_string().len();
        }
        content.extend_from_slice(format!("{len} ").as_bytes());
        content.extend_from_slice(&[*key, b"=", *value, b"\n"].concat());
    }
    content
}
