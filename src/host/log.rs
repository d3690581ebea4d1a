//! The log of a background mount process: a file that cannot grow without bound.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// A log that has grown to this many bytes becomes `<name>.1`, and a new one begins.
const LOG_LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// Where this process's log goes. `None`: standard error as it was inherited.
static LOG: Mutex<Option<LogFile>> = Mutex::new(None);

struct LogFile {
    path: PathBuf,
    written_bytes: u64,
}

/// A writer for tracing: standard error, kept within bounds once [`attach`] made it a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut log = LOG.lock();
        if let Some(log) = log.as_mut() {
            if log.written_bytes > LOG_LIMIT_BYTES {
                begin(&log.path)?;
                log.written_bytes = 0;
            }
            log.written_bytes += u64::try_from(line.len()).unwrap_or_default();
        }
        io::stderr().lock().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

/// Sends standard error to `path` from now on; what an earlier process wrote there is kept
/// as `<name>.1`.
///
/// A process without a log is better than no process: failing leaves all as it was.
pub fn attach(path: &Path) {
    match begin(path) {
        Ok(()) => *LOG.lock() = Some(LogFile { path: path.to_owned(), written_bytes: 0 }),
        Err(error) => tracing::warn!(path = %path.display(), %error, "no log file"),
    }
}

fn begin(path: &Path) -> io::Result<()> {
    if path.exists() {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    // Appending, so that whatever else holds the old descriptor cannot tear lines apart.
    let file = File::options().append(true).create(true).open(path)?;
    Ok(rustix::stdio::dup2_stderr(file)?)
}
