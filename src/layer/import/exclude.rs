//! Patterns of paths to leave out of a directory import.

/// Patterns with `*`, `?` and `[…]`, matched as GNU tar matches `--exclude`.
///
/// A pattern that starts with `/` is anchored at the imported directory; any other may start
/// after any slash. Wildcards match slashes too. What matches is left out with everything below
/// it. Matching takes at most pattern length times path length steps.
#[derive(Clone, Debug, Default)]
pub struct Excludes(Vec<Pattern>);

#[derive(Clone, Debug)]
struct Pattern {
    anchored: bool,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
enum Token {
    Byte(u8),
    Any,
    Many,
    Class { negated: bool, ranges: Vec<(u8, u8)> },
}

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing that could match a path.
    #[error("the pattern \"{0}\" is empty")]
    Empty(String),
    /// `[` without `]`.
    #[error("the pattern \"{0}\" has a \"[\" without \"]\"")]
    OpenClass(String),
}

impl Excludes {
    /// Compiles `patterns`; an empty list excludes nothing.
    ///
    /// # Errors
    /// [`PatternError`] names the pattern that cannot be used.
    pub fn new<P: AsRef<[u8]>>(
        patterns: impl IntoIterator<Item = P>,
    ) -> Result<Self, PatternError> {
        patterns
            .into_iter()
            .map(|text| Pattern::new(text.as_ref()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether nothing is ever excluded.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `path`, relative to the imported directory and without leading slash, is left out.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.0.iter().any(|pattern| pattern.matches(path))
    }
}

impl Pattern {
    fn new(text: &[u8]) -> Result<Self, PatternError> {
        let printable = || super::metadata::printable(text);
        let (anchored, body) = match text.strip_prefix(b"/") {
            Some(body) => (true, body),
            None => (false, text.strip_prefix(b"./").unwrap_or(text)),
        };
        let end = body.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let mut body = &body[..end];
        if body.is_empty() {
            return Err(PatternError::Empty(printable()));
        }
        let mut tokens = Vec::new();
        while let Some((first, rest)) = body.split_first() {
            body = rest;
            tokens.push(match first {
                b'*' => Token::Many,
                b'?' => Token::Any,
                b'[' => {
                    let (class, after) =
                        class(rest).ok_or_else(|| PatternError::OpenClass(printable()))?;
                    body = after;
                    class
                }
                b'\\' => match rest.split_first() {
                    Some((escaped, after)) => {
                        body = after;
                        Token::Byte(*escaped)
                    }
                    None => Token::Byte(b'\\'),
                },
                byte => Token::Byte(*byte),
            });
        }
        Ok(Self { anchored, tokens })
    }

    fn matches(&self, path: &[u8]) -> bool {
        if matches_all(&self.tokens, path) {
            return true;
        }
        !self.anchored
            && path
                .iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'/')
                .any(|(slash, _)| matches_all(&self.tokens, &path[slash + 1..]))
    }
}

/// The class after a `[`, and what follows its `]`.
fn class(body: &[u8]) -> Option<(Token, &[u8])> {
    let (negated, mut body) = match body {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, body),
    };
    let mut ranges = Vec::new();
    loop {
        body = match body {
            // A `]` that comes first stands for itself.
            [b']', rest @ ..] if !ranges.is_empty() => {
                return Some((Token::Class { negated, ranges }, rest));
            }
            [first, b'-', last, rest @ ..] if *last != b']' => {
                ranges.push((*first, *last));
                rest
            }
            [byte, rest @ ..] => {
                ranges.push((*byte, *byte));
                rest
            }
            [] => return None,
        };
    }
}

/// Greedy matching that goes back to the last `*` only, so it never explodes.
fn matches_all(tokens: &[Token], text: &[u8]) -> bool {
    let (mut token, mut at) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while at < text.len() {
        match tokens.get(token) {
            Some(Token::Many) => {
                last_star = Some((token, at));
                token += 1;
            }
            Some(single) if single.matches(text[at]) => {
                token += 1;
                at += 1;
            }
            Some(_) | None => match last_star {
                Some((star, from)) => {
                    last_star = Some((star, from + 1));
                    token = star + 1;
                    at = from + 1;
                }
                None => return false,
            },
        }
    }
    tokens[token..].iter().all(|token| matches!(token, Token::Many))
}

impl Token {
    fn matches(&self, byte: u8) -> bool {
        match self {
            Self::Byte(wanted) => *wanted == byte,
            Self::Any => true,
            Self::Many => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(pattern: &str, path: &str) -> bool {
        Excludes::new([pattern]).unwrap().matches(path.as_bytes())
    }

    #[test]
    fn anchored_patterns_match_from_the_top_only() {
        assert!(excluded("/proc", "proc"));
        assert!(!excluded("/proc", "var/proc"));
        assert!(excluded("/var/cache/apt/*.bin", "var/cache/apt/pkgcache.bin"));
        assert!(excluded("/home/*/.cache/", "home/a/.cache"));
    }

    #[test]
    fn other_patterns_match_after_any_slash() {
        assert!(excluded("*.pyc", "usr/lib/a/b.pyc"));
        assert!(excluded("__pycache__", "usr/lib/__pycache__"));
        assert!(excluded("cache/apt", "var/cache/apt"));
        assert!(!excluded("ache", "var/cache"));
        assert!(!excluded("proc", "processes"));
    }

    #[test]
    fn classes_and_escapes() {
        assert!(excluded("[a-c]?", "b1"));
        assert!(!excluded("[!a-c]?", "b1"));
        assert!(excluded("x[]y]", "x]"));
        assert!(excluded("\\*", "*"));
        assert!(!excluded("\\*", "a"));
        assert_eq!(Excludes::new(["[a"]).unwrap_err(), PatternError::OpenClass("[a".to_owned()));
        assert!(Excludes::new(["/"]).is_err());
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        let pattern = "*a".repeat(40) + "b";
        assert!(!excluded(&pattern, &"a".repeat(2000)));
    }
}
