//! What containers wrote.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::refusal::Refused;
use super::routes::Door;
use crate::container::config::LogLimits;
use crate::container::log::files;
use crate::node::NodeError;
use crate::node::machine::Handle;

/// How often a log that is followed is looked at.
const EVERY: Duration = Duration::from_millis(100);

/// Bytes that are sent at once.
const PIECE: u64 = 64 << 10;

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    /// Whether what comes later is wanted too.
    #[serde(default)]
    follow: bool,
    /// Only so many of the last lines.
    tail: Option<usize>,
}

/// The last `lines` lines of a log, or all of it, and how far its newest file was read.
fn read(
    newest: &FilePath,
    limits: LogLimits,
    lines: Option<usize>,
) -> io::Result<(Vec<u8>, Option<Follow>)> {
    let mut text = Vec::new();
    let mut follow = None;
    for path in files(newest, limits) {
        match File::open(&path) {
            Ok(mut file) => {
                file.read_to_end(&mut text)?;
                let at = file.stream_position()?;
                follow = Some(Follow { path: newest.to_owned(), file, at });
            }
            // Rotated away meanwhile, or nothing was written yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if let Some(lines) = lines {
        let ends: Vec<usize> = text
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(at, _)| at + 1)
            .collect();
        let keep = ends.len().saturating_sub(lines);
        let from = keep.checked_sub(1).and_then(|last| ends.get(last)).copied().unwrap_or(0);
        text.drain(..from);
    }
    Ok((text, follow))
}

/// A log that is followed.
struct Follow {
    path: PathBuf,
    file: File,
    at: u64,
}

impl Follow {
    /// What was written since; empty if nothing was.
    fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.file.seek(SeekFrom::Start(self.at))?;
        (&mut self.file).take(PIECE).read_to_end(&mut text)?;
        if text.is_empty() && self.rotated() {
            self.file = File::open(&self.path)?;
            self.at = 0;
            (&mut self.file).take(PIECE).read_to_end(&mut text)?;
        }
        self.at += u64::try_from(text.len()).unwrap_or_default();
        Ok(text)
    }

    fn rotated(&self) -> bool {
        let (Ok(there), Ok(here)) = (std::fs::metadata(&self.path), self.file.metadata()) else {
            return false;
        };
        (there.ino(), there.dev()) != (here.ino(), here.dev())
    }
}

/// Answers the log: lines of `TIME STREAM F|P TEXT`.
pub(super) async fn logs(
    State(door): State<Door>,
    Path(ct): Path<String>,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refused> {
    let Query(wanted) = wanted.map_err(|error| Refused::malformed(error.to_string()))?;
    let handle = door.node.find(&ct)?;
    let view = handle.view();
    let path = door.node.driver().places(&view.recorded).log();
    let (reading, limits) = (path.clone(), view.recorded.config.logs);
    let read = tokio::task::spawn_blocking(move || read(&reading, limits, wanted.tail)).await;
    let (text, follow) =
        read.map_err(|_| NodeError::Ending)?.map_err(NodeError::system("read", &path))?;
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    if !wanted.follow {
        return Ok((headers, text).into_response());
    }
    let begin = (Some(text), follow, path, handle);
    let body = stream::unfold(begin, |(first, follow, path, handle)| async move {
        if let Some(text) = first {
            return Some((Ok::<_, io::Error>(text), (None, follow, path, handle)));
        }
        let (text, follow) = next(follow, &path, &handle).await?;
        Some((text, (None, follow, path, handle)))
    });
    Ok((headers, Body::from_stream(body)).into_response())
}

/// Waits for more; none once the container is down and all of it was told.
async fn next(
    mut follow: Option<Follow>,
    path: &FilePath,
    handle: &Handle,
) -> Option<(io::Result<Vec<u8>>, Option<Follow>)> {
    loop {
        // Asked before reading: what was written until then is read below.
        let down = !handle.view().phase.is_up();
        if follow.is_none() {
            let file = File::open(path).ok();
            follow = file.map(|file| Follow { path: path.to_owned(), file, at: 0 });
        }
        if let Some(log) = &mut follow {
            match log.more() {
                Ok(text) if text.is_empty() => {}
                more => return Some((more, follow)),
            }
        }
        if down {
            return None;
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_come_from_all_files_and_what_follows_from_the_newest() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let log = scratch.path().join("log");
        let limits = LogLimits::default();
        std::fs::write(scratch.path().join("log.2"), "1\n2\n").expect("written");
        std::fs::write(scratch.path().join("log.1"), "3\n").expect("written");
        std::fs::write(&log, "4\n5\n").expect("written");
        assert_eq!(read(&log, limits, None).expect("read").0, b"1\n2\n3\n4\n5\n");
        assert_eq!(read(&log, limits, Some(0)).expect("read").0, b"");
        assert_eq!(read(&log, limits, Some(9)).expect("read").0, b"1\n2\n3\n4\n5\n");
        let (text, follow) = read(&log, limits, Some(3)).expect("read");
        assert_eq!(text, b"3\n4\n5\n");
        let mut follow = follow.expect("there is a log");
        assert_eq!(follow.more().expect("nothing"), b"");
        std::fs::rename(&log, scratch.path().join("log.9")).expect("rotated");
        std::fs::write(&log, "6\n").expect("written");
        assert_eq!(follow.more().expect("the new file"), b"6\n");
    }
}
