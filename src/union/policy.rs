//! Which files are opened shared: the set of paths whose files are executed and mapped.

use std::collections::HashSet;

use crate::layer::{FileKind, Manifest, ManifestError, TreeIno};

/// The tree inodes whose whole subtree is opened shared (DESIGN §5).
#[derive(Debug, Default)]
pub struct SharedSet {
    tops: HashSet<TreeIno>,
}

impl SharedSet {
    /// Finds `patterns` in the tree: absolute paths whose last component may hold `*`.
    ///
    /// A pattern that names nothing is no error: templates differ.
    pub fn resolve(tree: &Manifest, patterns: &[String]) -> Result<Self, ManifestError> {
        let mut tops = HashSet::new();
        for pattern in patterns {
            let mut components: Vec<&str> = pattern.split('/').filter(|c| !c.is_empty()).collect();
            let Some(last) = components.pop() else {
                tops.insert(TreeIno::ROOT);
                continue;
            };
            let Some(dir) = walk(tree, &components)? else { continue };
            let dir = tree.inode(dir)?;
            if dir.kind != FileKind::Directory {
                continue;
            }
            for index in 0..tree.entry_count(&dir) {
                let Some(entry) = tree.entry(&dir, index)? else { break };
                if let Some(ino) = entry.ino
                    && matches(last.as_bytes(), entry.name)
                {
                    tops.insert(ino);
                }
            }
        }
        Ok(Self { tops })
    }

    /// True if `ino`, by its first tree name, lies in the set.
    pub fn contains(&self, tree: &Manifest, ino: TreeIno) -> Result<bool, ManifestError> {
        let mut at = ino;
        loop {
            if self.tops.contains(&at) {
                return Ok(true);
            }
            if at == TreeIno::ROOT {
                return Ok(false);
            }
            at = tree.inode(at)?.parent;
        }
    }
}

fn walk(tree: &Manifest, components: &[&str]) -> Result<Option<TreeIno>, ManifestError> {
    let mut at = TreeIno::ROOT;
    for component in components {
        let dir = tree.inode(at)?;
        if dir.kind != FileKind::Directory {
            return Ok(None);
        }
        match tree.lookup(&dir, component.as_bytes())?.and_then(|entry| entry.ino) {
            Some(ino) => at = ino,
            None => return Ok(None),
        }
    }
    Ok(Some(at))
}

/// Matches `*` in `pattern` against any run of bytes.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        Some((first, rest)) => {
            name.split_first().is_some_and(|(byte, name)| byte == first && matches(rest, name))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_matches_any_run() {
        assert!(matches(b"lib*", b"lib"));
        assert!(matches(b"lib*", b"lib64"));
        assert!(!matches(b"lib*", b"var"));
        assert!(matches(b"usr", b"usr"));
        assert!(!matches(b"usr", b"usr2"));
    }
}
