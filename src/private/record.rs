//! `DIR/mica.json`: the stack a private layer's changes lie on.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::PrivateError;
use crate::layer::Stack;
use crate::sys::durable::{self, Existing};

const NAME: &str = "mica.json";
const FORMAT: u32 = 1;

/// What a private directory says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrivateRecord {
    /// Format of the directory.
    pub format: u32,
    /// Layers below, lowest first.
    pub stack: Stack,
    /// Its first content came from elsewhere: the upper directory of a kernel overlayfs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
}

impl PrivateRecord {
    /// Reads the record of `dir`; `None` if there is none.
    pub(super) fn read(dir: impl AsFd, path: &Path) -> Result<Option<Self>, PrivateError> {
        let damaged = |reason: String| PrivateError::Record { path: path.join(NAME), reason };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir, NAME, flags, Mode::empty()) {
            Ok(file) => std::fs::File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(damaged(errno.to_string())),
        };
        let text = std::io::read_to_string(file).map_err(|e| damaged(e.to_string()))?;
        let record: Self = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if record.format != FORMAT {
            return Err(damaged(format!(
                "format {} is not known to this version of Mica (it knows {FORMAT})",
                record.format
            )));
        }
        Ok(Some(record))
    }

    /// Checks that the record's stack is `stack` or one that it extends; then it becomes `stack`.
    pub(super) fn on(
        self,
        stack: &Stack,
        dir: impl AsFd,
        path: &Path,
    ) -> Result<Self, PrivateError> {
        if self.stack == *stack {
            return Ok(self);
        }
        if !stack.is_extension_of(&self.stack) {
            return Err(PrivateError::OtherStack(path.to_owned()));
        }
        Self { stack: stack.clone(), ..self }.write(dir, path)
    }

    /// The record of a layer whose upper directory holds something already, or nothing yet.
    pub(super) fn new(stack: &Stack, adopted: bool) -> Self {
        Self { format: FORMAT, stack: stack.clone(), adopted }
    }

    /// Writes the record durably.
    pub(super) fn write(self, dir: impl AsFd, path: &Path) -> Result<Self, PrivateError> {
        let text = serde_json::to_vec_pretty(&self).expect("a stack is plain data");
        durable::write_file(dir.as_fd(), OsStr::new(NAME), &text, Existing::Replace).map_err(
            |error| PrivateError::Host {
                dir: path.to_owned(),
                what: "write its record",
                errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            },
        )?;
        Ok(self)
    }
}
