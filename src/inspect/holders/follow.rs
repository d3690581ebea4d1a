//! Following a path to its end, through symbolic links, as in the root of a container.

use std::collections::VecDeque;

use crate::layer::{FileName, LayerPath};

/// Links on one way, at most; the kernel gives up as soon. path_resolution(7).
const MOST_LINKS: u32 = 40;

/// What lies at a path, no link followed.
pub(super) enum Look<T> {
    /// Nothing, or a parent is no directory.
    Absent,
    Directory,
    /// A symbolic link and its target.
    Link(Vec<u8>),
    /// Anything else.
    File(T),
}

/// Follows `path` to a file and returns where that is; `None` if there is none.
///
/// # Errors
/// What `look` says.
pub(super) fn follow<T, E>(
    path: &LayerPath,
    mut look: impl FnMut(&LayerPath) -> Result<Look<T>, E>,
) -> Result<Option<(LayerPath, T)>, E> {
    let mut todo: VecDeque<Vec<u8>> =
        path.names().iter().map(|name| name.as_bytes().to_vec()).collect();
    let mut at = LayerPath::root();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            // Above the root is the root.
            at = at.parent().unwrap_or_default();
            continue;
        }
        let Ok(name) = FileName::new(&name) else { return Ok(None) };
        let here = at.join(name);
        match look(&here)? {
            Look::Absent => return Ok(None),
            Look::Directory => at = here,
            Look::File(found) => return Ok(todo.is_empty().then_some((here, found))),
            Look::Link(target) => {
                links += 1;
                if links > MOST_LINKS {
                    return Ok(None);
                }
                if target.starts_with(b"/") {
                    at = LayerPath::root();
                }
                let names = target.split(|byte| *byte == b'/');
                let names = names.filter(|name| !name.is_empty() && *name != b".");
                for name in names.rev() {
                    todo.push_front(name.to_vec());
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(path: &str) -> Option<String> {
        let path = LayerPath::parse(path.as_bytes()).expect("a path");
        let found = follow(&path, |path| {
            Ok::<_, ()>(match path.to_string().as_str() {
                "/usr" | "/usr/lib" | "/etc" => Look::Directory,
                "/lib" => Look::Link(b"usr/lib".to_vec()),
                "/usr/lib/so" => Look::Link(b"../../lib/./so.1".to_vec()),
                "/etc/loop" => Look::Link(b"/etc/loop".to_vec()),
                "/etc/up" => Look::Link(b"../../../usr/lib/so.1".to_vec()),
                "/usr/lib/so.1" => Look::File(()),
                _ => Look::Absent,
            })
        });
        found.expect("no errors here").map(|(path, ())| path.to_string())
    }

    #[test]
    fn links_are_followed_within_the_root_and_loops_end() {
        for path in ["/usr/lib/so.1", "/lib/so.1", "/lib/so", "/etc/up"] {
            assert_eq!(followed(path).as_deref(), Some("/usr/lib/so.1"), "{path}");
        }
        for path in ["/etc/loop", "/etc", "/", "/none", "/usr/lib/so.1/below", "/lib"] {
            assert_eq!(followed(path), None, "{path}");
        }
    }
}
