//! Contents of files: the numbered commit, and the slices of a chunk.
//!
//! Owns: which members are applied, in which order, and what readers of a chunk are handed.
//! Leaves to others: what each does to records and space (`edit`), the order of members and their numbers (`file`),
//! laying slices over each other for a reader (`file`).
//!
//! Invariants
//! - A commit applies all of its members in order, or nothing: at or below `attr.commit` nothing.
//! - The `Bytes` counter moves with `attr.stored`.

use alloc::vec::Vec;
use core::ops::Range;

use super::attr::{drop_capability, drop_privileges};
use super::chunk::{self, Stored};
use super::cover::Cuts;
use super::edit::Edit;
use super::names::{count, difference};
use super::{Change, Commit, CommitReply, OpCtx, get, put, scan_all};
use crate::errno::Errno;
use crate::format::keys::{self, Counter, Key};
use crate::format::values::{Cut, Value};
use crate::kv::{OpResult, Read, Txn};
use crate::marks::{Mark, reached_if};
use crate::planted::{self, Bug};
use crate::types::{Attr, FileType, Geometry, Ino, SliceRecord};

/// Applies a ready prefix of a file's commit queue, in one transaction. ESTALE if the inode is gone,
/// EFBIG past `FILE_SIZE_MAX`.
pub fn commit(txn: &mut dyn Txn, ctx: &OpCtx, commit: &Commit) -> OpResult<CommitReply> {
    let ino = commit.ino;
    let mut attr: Attr = get(txn, keys::attr(ino))?.ok_or(Errno::ESTALE)?;
    if attr.kind != FileType::Regular {
        return Err(Errno::EINVAL.into());
    }
    reached_if(Mark::CommitSkipped, || commit.number <= attr.commit);
    let mut applied = commit.number <= attr.commit;
    if planted::is(Bug::PresenceForNumber) {
        applied = planted::is_there(txn, commit)?;
    }
    if applied {
        return Ok(CommitReply { applied: false, attr, seqs: Vec::new(), copied: None, grown: 0 });
    }
    let before = attr.stored;
    let (mut seqs, mut copied) = (Vec::new(), None);
    let mut edit = Edit::new(txn, ctx.geometry, ino, attr);
    for change in &commit.changes {
        match change {
            Change::Slice { chunk, record } => seqs.push(edit.slice(*chunk, record)?),
            Change::Truncate { length } => edit.truncate(*length)?,
            Change::Punch { offset, len } => edit.punch(*offset..offset + len)?,
            Change::Reserve { offset, len, extend } => edit.reserve(*offset..offset + len, *extend)?,
            Change::Copy(copy) => copied = edit.copy(copy)?,
            Change::Written { mtime, drop_privileges: drop } => {
                (edit.attr.mtime, edit.attr.ctime) = (*mtime, edit.attr.ctime.max(*mtime));
                if *drop {
                    drop_privileges(&mut edit.attr);
                    drop_capability(edit.txn, ino)?;
                }
            }
            Change::Attrs { set, now } => {
                set.apply(&mut edit.attr, *now);
                if set.drop_suid_sgid {
                    drop_capability(edit.txn, ino)?;
                }
            }
        }
    }
    attr = edit.finish()?;
    attr.commit = commit.number;
    put(txn, keys::attr(ino), &attr);
    count(txn, ctx, Counter::Bytes, difference(before, attr.stored))?;
    let grown = difference(before, attr.stored);
    Ok(CommitReply { applied: true, attr, seqs, copied, grown })
}

/// How many bytes of a record are left of a cut of `range`, whatever its seq.
pub(super) fn left_of(geometry: &Geometry, stored: &Stored, range: Range<u64>) -> u32 {
    let chunk_start = u64::from(stored.chunk) * geometry.chunk_size;
    // A cut with a seq of its own, after every record.
    Cuts([(u64::MAX, range)].into()).left(stored.seq, chunk_start, &stored.record)
}

/// The first chunk at or after `from` that has a record. (cuts may leave nothing of it)
pub fn next_chunk(read: &mut dyn Read, ino: Ino, from: u32) -> OpResult<Option<u32>> {
    let (_, end) = keys::slice_range(ino, None);
    let page = read.scan(&keys::slice(ino, from, 0), &end, 1)?;
    page.into_iter().next().map(|(key, value)| Ok(Stored::decode(key, &value)?.chunk)).transpose()
}

/// The slices of a chunk in the order of seq, later ones lying over earlier ones; cuts are applied, and what they
/// leave nothing of is left out. ESTALE if the inode is gone.
pub fn chunk(read: &mut dyn Read, geometry: &Geometry, ino: Ino, chunk: u32) -> OpResult<Vec<(u64, SliceRecord)>> {
    let attr = get(read, keys::attr(ino))?.ok_or(Errno::ESTALE)?;
    let records = chunk::records(read, geometry, (ino, &attr), chunk, SliceRecord::decode)?;
    let mut slices: Vec<_> = records.into_iter().map(|stored| (stored.seq, stored.record)).collect();
    if !slices.is_empty() && chunk::few(geometry, &attr).is_none() {
        let cuts = cuts(read, ino)?;
        let chunk_start = u64::from(chunk) * geometry.chunk_size;
        slices.iter_mut().for_each(|(seq, record)| record.len = cuts.left(*seq, chunk_start, record));
        slices.retain(|(_, record)| record.len > 0);
    }
    if planted::is(Bug::OverlayReversed) {
        slices.reverse();
    }
    Ok(slices)
}

/// All cuts of a file.
pub(super) fn cuts(read: &mut (impl Read + ?Sized), ino: Ino) -> OpResult<Cuts> {
    let mut cuts = Vec::new();
    for (key, value) in scan_all(read, keys::cut_range(ino))? {
        if let Key::Cut(_, seq) = keys::decode(&key)? {
            let Cut { offset, end } = Cut::decode(&value)?;
            cuts.push((seq, offset..end));
        }
    }
    Ok(Cuts(cuts))
}
