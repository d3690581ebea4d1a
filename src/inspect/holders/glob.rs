//! Patterns of names and paths, as shells have them.

/// A pattern: `*` stands for any run of bytes in one name, `**` also across `/`, `?` for one
/// character, `[a-z]` for one of a set, `\` for the next byte itself. Without a `/` it is one
/// of names, in whatever directory; with one, of paths from the root.
#[derive(Clone, Debug)]
pub struct Glob {
    parts: Vec<Part>,
    /// Bytes that every match begins with.
    literal: Vec<u8>,
    of_paths: bool,
}

#[derive(Clone, Debug)]
enum Part {
    Byte(u8),
    One,
    Set { ranges: Vec<(u8, u8)>, except: bool },
    Star,
    Stars,
}

impl Glob {
    /// Whether a word is meant as a pattern.
    #[must_use]
    pub fn is_one(word: &[u8]) -> bool {
        word.iter().any(|byte| b"*?[".contains(byte))
    }

    /// Reads a pattern. Anything is one; an unfinished set stands for its own bracket.
    #[must_use]
    pub fn new(pattern: &[u8]) -> Self {
        let of_paths = pattern.contains(&b'/');
        let mut rest = pattern;
        while let Some(shorter) = rest.strip_prefix(b"/").or_else(|| rest.strip_prefix(b"./")) {
            rest = shorter;
        }
        let mut parts = Vec::new();
        while let Some((byte, tail)) = rest.split_first() {
            rest = tail;
            parts.push(match byte {
                b'*' if rest.first() == Some(&b'*') => {
                    while let Some(fewer) = rest.strip_prefix(b"*") {
                        rest = fewer;
                    }
                    Part::Stars
                }
                b'*' => Part::Star,
                b'?' => Part::One,
                b'[' => match set(rest) {
                    Some((set, tail)) => {
                        rest = tail;
                        set
                    }
                    None => Part::Byte(b'['),
                },
                b'\\' if !rest.is_empty() => {
                    let (byte, tail) = rest.split_first().unwrap_or((&b'\\', rest));
                    rest = tail;
                    Part::Byte(*byte)
                }
                byte => Part::Byte(*byte),
            });
        }
        let literal = parts.iter().map_while(|part| match part {
            Part::Byte(byte) => Some(*byte),
            Part::One | Part::Set { .. } | Part::Star | Part::Stars => None,
        });
        Self { literal: literal.collect(), parts, of_paths }
    }

    /// Whether it is one of paths.
    #[must_use]
    pub fn is_of_paths(&self) -> bool {
        self.of_paths
    }

    /// The bytes that whatever fits begins with.
    #[must_use]
    pub fn literal(&self) -> &[u8] {
        &self.literal
    }

    /// The pattern of the last name, for one of paths that has no `**` in it.
    #[must_use]
    pub fn of_last_name(&self) -> Option<Self> {
        let slash = |part: &Part| matches!(part, Part::Byte(b'/'));
        let parts = self.parts.rsplit(slash).next().unwrap_or_default().to_vec();
        if parts.iter().any(|part| matches!(part, Part::Stars)) {
            return None;
        }
        let literal = parts.iter().map_while(|part| match part {
            Part::Byte(byte) => Some(*byte),
            Part::One | Part::Set { .. } | Part::Star | Part::Stars => None,
        });
        Some(Self { literal: literal.collect(), parts, of_paths: false })
    }

    /// Whether the file at `path`, relative to the root, fits.
    #[must_use]
    pub fn fits(&self, path: &[u8]) -> bool {
        let text = if self.of_paths {
            path
        } else {
            path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
        };
        self.fits_text(text)
    }

    /// Whether `text` as a whole fits.
    #[must_use]
    pub fn fits_text(&self, text: &[u8]) -> bool {
        // Where to go on after a failure: the part behind a star, and the bytes it has eaten;
        // one for `*`, which stops at a slash, and one for `**`, which does not.
        let (mut part, mut at) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        let mut stars: Option<(usize, usize)> = None;
        loop {
            match (self.parts.get(part), text.get(at)) {
                (None, None) => return true,
                (Some(Part::Stars), _) => {
                    (star, stars) = (None, Some((part + 1, at)));
                    part += 1;
                    continue;
                }
                (Some(Part::Star), _) => {
                    star = Some((part + 1, at));
                    part += 1;
                    continue;
                }
                (Some(one), Some(byte)) if one.takes(*byte) => {
                    let len = one.len(text.get(at..).unwrap_or_default());
                    part += 1;
                    at += len;
                    continue;
                }
                (Some(_), _) | (None, Some(_)) => {}
            }
            match (star, stars) {
                (Some((next, eaten)), _) if text.get(eaten).is_some_and(|byte| *byte != b'/') => {
                    star = Some((next, eaten + 1));
                    (part, at) = (next, eaten + 1);
                }
                (_, Some((next, eaten))) if eaten < text.len() => {
                    (star, stars) = (None, Some((next, eaten + 1)));
                    (part, at) = (next, eaten + 1);
                }
                _ => return false,
            }
        }
    }
}

impl Part {
    fn takes(&self, byte: u8) -> bool {
        match self {
            Self::Byte(wanted) => *wanted == byte,
            Self::One => byte != b'/',
            Self::Set { ranges, except } => {
                let inside = ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte));
                inside != *except && byte != b'/'
            }
            Self::Star | Self::Stars => false,
        }
    }

    /// Bytes of the character that is taken: `?` takes a whole one where the text is UTF-8.
    fn len(&self, text: &[u8]) -> usize {
        match (self, text.utf8_chunks().next()) {
            (Self::One, Some(chunk)) => chunk.valid().chars().next().map_or(1, char::len_utf8),
            _ => 1,
        }
    }
}

/// A set behind its opening bracket, and what follows it.
fn set(text: &[u8]) -> Option<(Part, &[u8])> {
    let (except, text) = match text.strip_prefix(b"!").or_else(|| text.strip_prefix(b"^")) {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    // A bracket that comes first is one of the set.
    let end = text.iter().skip(1).position(|byte| *byte == b']')? + 1;
    let (mut inside, after) = (text.get(..end)?, text.get(end + 1..)?);
    let mut ranges = Vec::new();
    while let Some((low, rest)) = inside.split_first() {
        match rest {
            [b'-', high, rest @ ..] => {
                ranges.push((*low, *high));
                inside = rest;
            }
            rest => {
                ranges.push((*low, *low));
                inside = rest;
            }
        }
    }
    Some((Part::Set { ranges, except }, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_a_shell() {
        for (pattern, path, expected) in [
            ("libssl*", "usr/lib/x/libssl.so.3", true),
            ("libssl*", "usr/libssl/other", false),
            ("/usr/*/libssl.so.?", "usr/lib/libssl.so.3", true),
            ("/usr/*/libssl.so.?", "usr/lib/x/libssl.so.3", false),
            ("/usr/**/libssl.so.?", "usr/lib/x/libssl.so.3", true),
            ("usr/**", "usr/lib/x", true),
            ("/**/x", "usr/lib/x", true),
            ("*.[ch]", "src/a.c", true),
            ("*.[!ch]", "src/a.c", false),
            ("[a-c]?", "bé", true),
            ("[", "[", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxbxx", false),
            ("/etc/*", "etc/ssl/x", false),
            ("", "", true),
        ] {
            let glob = Glob::new(pattern.as_bytes());
            assert_eq!(glob.fits(path.as_bytes()), expected, "{pattern} {path}");
        }
        assert_eq!(Glob::new(b"/usr/*/libssl*").literal(), b"usr/");
        assert_eq!(Glob::new(b"/usr/*/libssl*").of_last_name().unwrap().literal(), b"libssl");
    }

    #[test]
    fn any_pattern_meets_any_text_without_harm() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut text = |from: &[u8]| -> Vec<u8> {
            (0..random.usize(..12)).map(|_| from[random.usize(..from.len())]).collect()
        };
        for _ in 0..20_000 {
            let (pattern, path) = (text(b"*?[]!-a/\\\xff"), text(b"a/b\xc3\xa9\xff"));
            let glob = Glob::new(&pattern);
            let _fits = glob.fits(&path);
            let _last = glob.of_last_name().map(|glob| glob.fits(&path));
        }
    }
}
