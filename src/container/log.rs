//! What a container writes, kept in files of bounded size.
//!
//! One line of a file is one line of output in the form that CRI runtimes write:
//! `TIME STREAM F|P TEXT`, where `P` marks a line that goes on in the next one. A crash loses at
//! most the line being written. The current file is `NAME`, older ones `NAME.1`, `NAME.2`, ….

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::config::LogLimits;

/// Longest text in one line; a longer one is parted.
const LINE: usize = 16 << 10;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word in the log.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log of one container, being written.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    written: u64,
    /// What has no end of line yet, by stream.
    begun: [Vec<u8>; 2],
}

impl Log {
    /// Goes on where the log at `path` ends.
    ///
    /// # Errors
    /// Whatever opening the file answers.
    pub fn open(path: &Path, limits: LogLimits) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let written = file.metadata()?.len();
        let begun = [Vec::new(), Vec::new()];
        Ok(Self { path: path.to_owned(), limits, file, written, begun })
    }

    /// Adds what came; only whole lines, or very long parts, are written at once.
    ///
    /// # Errors
    /// `ENOSPC` and its like: those lines are lost, later ones are tried again.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut begun = std::mem::take(&mut self.begun[usize::from(stream == Stream::Stderr)]);
        let mut text = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            begun.extend_from_slice(line);
            if begun.last() == Some(&b'\n') {
                begun.pop();
                if begun.last() == Some(&b'\r') {
                    begun.pop();
                }
                put(&mut text, stream, 'F', &begun);
                begun.clear();
            }
            while begun.len() > LINE {
                let rest = begun.split_off(LINE);
                put(&mut text, stream, 'P', &begun);
                begun = rest;
            }
        }
        self.begun[usize::from(stream == Stream::Stderr)] = begun;
        self.append(&text)
    }

    /// Writes what has no end of line; nothing more comes.
    ///
    /// # Errors
    /// As [`Log::write`].
    pub fn finish(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        for (stream, begun) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&mut self.begun) {
            if !begun.is_empty() {
                put(&mut text, stream, 'F', begun);
                begun.clear();
            }
        }
        self.append(&text)
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let mut rest = text;
        while !rest.is_empty() {
            // As many whole lines as there is room for; in an empty file at least one.
            let room = self.limits.max_bytes.saturating_sub(self.written);
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let fitting = rest.get(..room).unwrap_or_default();
            let end = fitting.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
            let end = match end {
                Some(end) => end,
                None if self.written > 0 => {
                    self.rotate()?;
                    continue;
                }
                None => rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1),
            };
            let (now, later) = rest.split_at(end);
            self.file.write_all(now)?;
            self.written =
                self.written.saturating_add(u64::try_from(now.len()).unwrap_or(u64::MAX));
            rest = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for number in (1..self.limits.files.max(1)).rev() {
            let from = older(&self.path, number - 1);
            match fs::rename(from, older(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        // With one file only there is no older one; it begins anew.
        self.file = File::options().create(true).append(true).open(&self.path)?;
        self.file.set_len(0)?;
        self.written = 0;
        Ok(())
    }
}

/// The files of a log, oldest first, as far as they exist.
#[must_use]
pub fn files(path: &Path, limits: LogLimits) -> Vec<PathBuf> {
    let numbers = (0..limits.files.max(1)).rev();
    numbers.map(|number| older(path, number)).filter(|path| path.exists()).collect()
}

/// One line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, as RFC 3339 with nanoseconds, UTC.
    pub time: String,
    /// From where.
    pub stream: Stream,
    /// Whether the text ends a line.
    pub whole: bool,
    /// What.
    pub text: Vec<u8>,
}

/// Reads a line that [`Log::write`] wrote, without its end; none for what it did not write.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Line> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = String::from_utf8(parts.next()?.to_vec()).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let whole = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Line { time, stream, whole, text: parts.next()?.to_vec() })
}

fn older(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn put(out: &mut Vec<u8>, stream: Stream, part: char, text: &[u8]) {
    let now = humantime::format_rfc3339_nanos(SystemTime::now());
    out.extend_from_slice(format!("{now} {} {part} ", stream.text()).as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(path: &Path, limits: LogLimits) -> Vec<(Stream, String)> {
        let mut texts: Vec<(Stream, String)> = Vec::new();
        let mut open: Option<String> = None;
        for file in files(path, limits) {
            for line in fs::read(file).expect("a log").split(|byte| *byte == b'\n') {
                let Some(line) = parse(line) else { continue };
                let text = String::from_utf8(line.text).expect("text");
                let text = open.take().unwrap_or_default() + &text;
                if line.whole { texts.push((line.stream, text)) } else { open = Some(text) }
            }
        }
        texts
    }

    #[test]
    fn lines_come_back_as_they_were_written() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("log");
        let limits = LogLimits::default();
        let mut log = Log::open(&path, limits).expect("opens");
        let long = "x".repeat(3 * LINE + 5);
        log.write(Stream::Stdout, b"a b\r\nc").expect("written");
        log.write(Stream::Stderr, b"error\n").expect("written");
        log.write(Stream::Stdout, format!("d\n{long}\n\nend").as_bytes()).expect("written");
        log.finish().expect("written");
        let found = texts(&path, limits);
        let (out, err) = (Stream::Stdout, Stream::Stderr);
        let want =
            [(out, "a b"), (err, "error"), (out, "cd"), (out, &long), (out, ""), (out, "end")];
        assert_eq!(found, want.map(|(stream, text)| (stream, text.to_owned())));
        let cut = parse(b"2026-01-01T00:00:00Z stdout Q x");
        assert_eq!(cut, None);
    }

    #[test]
    fn no_more_than_the_limits_is_kept_and_the_newest_stays() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("log");
        let limits = LogLimits { max_bytes: 1000, files: 3 };
        for part in 0..10 {
            // Opened again and again, as by one monitor after the other.
            let mut log = Log::open(&path, limits).expect("opens");
            for line in 0..20 {
                log.write(Stream::Stdout, format!("{part}-{line}\n").as_bytes()).expect("written");
            }
        }
        let kept: u64 = fs::read_dir(scratch.path())
            .expect("listed")
            .map(|entry| entry.expect("listed").metadata().expect("there").len())
            .sum();
        assert!((2000..=3000).contains(&kept), "{kept}");
        let found = texts(&path, limits);
        assert_eq!(found.last().expect("lines").1, "9-19");
        let mut in_order = found.clone();
        in_order.sort_by_key(|(_, text)| {
            let (part, line) = text.split_once('-').expect("numbers");
            (part.parse::<u32>().expect("a number"), line.parse::<u32>().expect("a number"))
        });
        assert_eq!(found, in_order);
    }
}
