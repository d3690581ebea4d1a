//! Turns one tar stream into one layer.
//!
//! The importing thread parses and places members in archive order; workers hash and store
//! their content. A member of up to 16 MiB is handed over in a batch with its neighbours, so
//! memory is bounded by the queue. The manifest depends on the archive only, not on which worker
//! was faster.

use std::fs::File;
use std::io::Read;

use super::assemble::{Assembly, Placed};
use super::intake::{FilePart, Intake};
use super::metadata::printable;
use super::progress::Note;
use super::sink::{HashOnly, Sink};
use super::tar::{Member, MemberKind, Members};
use super::workers::with_workers;
use super::{ImportError, Session};
use crate::layer::{Manifest, NodeId};
use crate::object::Put;

/// Content up to here goes to the workers.
const SMALL_BYTES: u64 = 16 << 20;
/// Content up to here is held in memory, so that what the store has is never written.
const HELD_BYTES: u64 = 64 << 20;
/// A batch is handed over when it has so many bytes or files.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_FILES: usize = 256;

/// What applies to a layer, besides its stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// The tree below.
    pub(super) lower: Option<&'a Manifest>,
    /// Whether `.wh.` names are whiteouts.
    pub(super) whiteouts: bool,
    /// Whether a missing end mark is an error.
    pub(super) needs_end_mark: bool,
    /// The uncompressed archive itself, where it is a file: what is in it can be read twice.
    pub(super) again: Option<&'a File>,
}

/// A layer and the number of members it was made from.
pub(super) struct ReadLayer {
    pub(super) manifest: Vec<u8>,
    pub(super) members: u64,
}

/// Files whose content lies one after another in a buffer.
#[derive(Default)]
struct Batch {
    /// Longer than what it holds: its tail is from an earlier use.
    bytes: Vec<u8>,
    filled: usize,
    /// Each file's node and the end of its content.
    files: Vec<(NodeId, usize)>,
}

/// A batch whose content is stored; the buffer is used again.
struct Stored {
    puts: Vec<(NodeId, Put)>,
    batch: Batch,
}

/// Reads a whole tar stream, to the end of the stream and not only of the archive.
pub(super) fn read_layer(
    session: &Session<'_>,
    input: impl Read,
    rules: Rules<'_>,
) -> Result<ReadLayer, ImportError> {
    let mut members = Members::new(input, rules.needs_end_mark, session.limits.file_bytes);
    let mut assembly = Assembly::new(rules.lower, rules.whiteouts, session.progress);
    with_workers(
        session.threads,
        |batch| store_batch(session, batch),
        |workers| {
            let mut spare: Vec<Batch> = Vec::new();
            let mut batch = Batch::default();
            let mut held = Vec::new();
            while let Some(member) = members.next_member()? {
                session.cancel.check()?;
                session.check_holes(&member.path, member.hole_bytes)?;
                let placed = assembly.place(&member)?;
                session.check_nodes(assembly.node_count())?;
                session.progress.entry();
                let Some(Placed { id, role }) = placed else { continue };
                if member.size > SMALL_BYTES {
                    let put = store_large(session, &mut members, &member, &mut held, rules.again)?;
                    session.progress.stored(put.len_bytes, put.hit);
                    assembly.set_content(id, &put);
                    continue;
                }
                let start = batch.filled;
                batch.filled = members.read_into(&mut batch.bytes, start)?;
                assembly.learn(role, &batch.bytes[start..batch.filled]);
                batch.files.push((id, batch.filled));
                if batch.filled >= BATCH_BYTES || batch.files.len() >= BATCH_FILES {
                    let next = spare.pop().unwrap_or_default();
                    workers.submit(std::mem::replace(&mut batch, next), |stored| {
                        spare.push(take_stored(&mut assembly, stored));
                        Ok(())
                    })?;
                }
            }
            workers.submit(batch, |stored| {
                take_stored(&mut assembly, stored);
                Ok(())
            })?;
            workers.finish(|stored| {
                take_stored(&mut assembly, stored);
                Ok(())
            })
        },
    )?;
    if members.finish()? {
        session.progress.note(&Note::TrailingData);
    }
    let members = assembly.members();
    Ok(ReadLayer { manifest: assembly.finish()?, members })
}

fn take_stored(assembly: &mut Assembly<'_>, mut stored: Stored) -> Batch {
    for (id, put) in stored.puts {
        assembly.set_content(id, &put);
    }
    stored.batch.filled = 0;
    stored.batch.files.clear();
    stored.batch
}

fn store_batch(session: &Session<'_>, batch: Batch) -> Result<Stored, ImportError> {
    let mut puts = Vec::with_capacity(batch.files.len());
    let mut start = 0;
    for (id, end) in &batch.files {
        session.cancel.check()?;
        let put = session.sink.put_bytes(&batch.bytes[start..*end])?;
        session.progress.stored(put.len_bytes, put.hit);
        puts.push((*id, put));
        start = *end;
    }
    Ok(Stored { puts, batch })
}

fn store_large<R: Read>(
    session: &Session<'_>,
    members: &mut Members<R>,
    member: &Member,
    held: &mut Vec<u8>,
    again: Option<&File>,
) -> Result<Put, ImportError> {
    debug_assert_eq!(member.kind, MemberKind::Regular);
    let put = if member.size <= HELD_BYTES {
        let end = members.read_into(held, 0)?;
        session.sink.put_bytes(&held[..end])
    } else if let (Some(file), Some(offset)) = (again, member.content_offset) {
        // Hashed first and written only on a miss, as smaller files are.
        HashOnly.put_sparse(members, member.size).and_then(|seen| {
            if session.sink.has(&seen.id)? {
                return Ok(Put { hit: true, ..seen });
            }
            let part = FilePart::new(file, offset, member.size);
            session.sink.put_sparse(&mut Intake::new(part, session.cancel, None), member.size)
        })
    } else {
        session.sink.put_sparse(members, member.size)
    };
    put.map_err(|source| match members.take_failure() {
        Some(failure) => failure.into(),
        None => ImportError::Content { path: printable(&member.path), source },
    })
}
