//! Contents of files: the numbered commit, and the slices of a chunk.
//!
//! Owns: which records, cuts, length, usage and times one commit leaves behind.
//! Leaves to others: the order of members and their numbers (`file`), laying slices over each other (`file`).
//!
//! Invariants
//! - A commit applies all of its members in order, or nothing: at or below `attr.commit` nothing.
//! - `attr.stored` is the sum of `len` over the inode's records, and the `Bytes` counter moves with it.
//! - No record that shows, after cuts, reaches past `attr.length`. So what starts at or past the length covers nothing.
//! - A record that newer ones and cuts hide wholly goes in the transaction that hid it, and its blocks are queued.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use bytes::Bytes;

use super::attr::{drop_capability, drop_privileges};
use super::cover::{Cover, Cuts};
use super::names::{count, difference};
use super::remove::release;
use super::{Change, Commit, CommitReply, DIRECT_MAX, OpCtx, PAGE, get, put, scan_all, volume};
use crate::errno::Errno;
use crate::format::keys::{self, Counter, Key};
use crate::format::values::{Cut, Value};
use crate::kv::{OpError, OpResult, Read, Txn};
use crate::marks::{Mark, reached, reached_if};
use crate::planted::{self, Bug};
use crate::types::{Attr, FILE_SIZE_MAX, FileType, Geometry, Ino, SliceRecord};

/// A record with where it is stored.
pub(super) struct Stored {
    pub(super) key: Bytes,
    pub(super) chunk: u32,
    pub(super) seq: u64,
    pub(super) record: SliceRecord,
}

impl Stored {
    pub(super) fn decode(key: Bytes, value: &Bytes) -> OpResult<Self> {
        let Key::Slice(_, chunk, seq) = keys::decode(&key)? else {
            return Err(OpError::Damaged("a key in the range of slices"));
        };
        Ok(Self { chunk, seq, record: SliceRecord::decode(value)?, key })
    }

    /// Shortens the record to `len` bytes, or removes it if that is none.
    pub(super) fn shorten(mut self, txn: &mut dyn Txn, attr: &mut Attr, len: u32) -> OpResult<()> {
        attr.stored = attr.stored.saturating_sub(u64::from(self.record.len - len));
        if len == 0 {
            txn.delete(&self.key);
            return release(txn, &self.record);
        }
        self.record.len = len;
        put(txn, &self.key, &self.record);
        Ok(())
    }
}

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
        return Ok(CommitReply { applied: false, attr, seqs: Vec::new() });
    }
    let before = attr.stored;
    let mut seqs = Vec::new();
    let mut overwritten = BTreeSet::new();
    for change in &commit.changes {
        match change {
            Change::Slice { chunk, record } => {
                if add_slice(txn, &ctx.geometry, ino, &mut attr, *chunk, record)? {
                    overwritten.insert(*chunk);
                }
                seqs.push(attr.next_seq - 1);
            }
            Change::Truncate { length } => truncate(txn, &ctx.geometry, ino, &mut attr, *length)?,
            Change::Written { mtime, drop_privileges: drop } => {
                (attr.mtime, attr.ctime) = (*mtime, attr.ctime.max(*mtime));
                if *drop {
                    drop_privileges(&mut attr);
                    drop_capability(txn, ino)?;
                }
            }
            Change::Attrs { set, now } => {
                set.apply(&mut attr, *now);
                if set.drop_suid_sgid {
                    drop_capability(txn, ino)?;
                }
            }
        }
    }
    for chunk in overwritten {
        remove_hidden(txn, &ctx.geometry, ino, &mut attr, chunk)?;
    }
    attr.commit = commit.number;
    put(txn, keys::attr(ino), &attr);
    count(txn, ctx, Counter::Bytes, difference(before, attr.stored))?;
    Ok(CommitReply { applied: true, attr, seqs })
}

/// Records one slice; true if it may lie over older ones.
fn add_slice(
    txn: &mut dyn Txn,
    geometry: &Geometry,
    ino: Ino,
    attr: &mut Attr,
    chunk: u32,
    record: &SliceRecord,
) -> OpResult<bool> {
    assert_eq!(record.check(), Ok(()));
    assert!(u64::from(record.pos) + u64::from(record.len) <= geometry.chunk_size, "a slice stays in its chunk");
    let start = u64::from(chunk) * geometry.chunk_size + u64::from(record.pos);
    let end = start + u64::from(record.len);
    if end > FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    let overwrites = start < attr.length;
    put(txn, keys::slice(ino, chunk, attr.next_seq), record);
    attr.next_seq += 1;
    attr.stored += u64::from(record.len);
    attr.length = attr.length.max(end);
    Ok(overwrites)
}

/// Sets the length; bytes past it are removed, or cut off until a sweeper has removed them.
fn truncate(txn: &mut dyn Txn, geometry: &Geometry, ino: Ino, attr: &mut Attr, length: u64) -> OpResult<()> {
    if length > FILE_SIZE_MAX {
        return Err(Errno::EFBIG.into());
    }
    let shrinks = length < attr.length;
    attr.length = length;
    if !shrinks || attr.stored == 0 || planted::is(Bug::TruncateWithoutCut) {
        return Ok(());
    }
    let first = u32::try_from(length / geometry.chunk_size).map_err(|_| Errno::EFBIG)?;
    let (start, _) = keys::slice_range(ino, Some(first));
    let (_, end) = keys::slice_range(ino, None);
    let page = txn.scan(&start, &end, PAGE)?;
    let complete = page.len() < PAGE;
    let mut past = Vec::new();
    for (key, value) in page {
        let stored = Stored::decode(key, &value)?;
        let left = left_of(geometry, &stored, length);
        if left < stored.record.len {
            past.push((stored, left));
        }
    }
    if complete && past.len() <= DIRECT_MAX {
        for (stored, left) in past {
            stored.shorten(txn, attr, left)?;
        }
        return Ok(());
    }
    // Older cuts at or past this one say nothing any more.
    for (seq, offset) in cuts(txn, ino)?.0 {
        if length <= offset {
            txn.delete(&keys::cut(ino, seq));
        }
    }
    put(txn, keys::cut(ino, attr.next_seq), &Cut { offset: length });
    put(txn, keys::cutfile(ino), &());
    reached(Mark::CutMade);
    attr.next_seq += 1;
    Ok(())
}

/// How many bytes of a record are before `offset` of the file.
pub(super) fn left_of(geometry: &Geometry, stored: &Stored, offset: u64) -> u32 {
    let chunk_start = u64::from(stored.chunk) * geometry.chunk_size;
    // A cut with a seq of its own, after every record.
    Cuts([(u64::MAX, offset)].into()).left(stored.seq, chunk_start, &stored.record)
}

/// Removes the records of a chunk of which newer ones and cuts leave nothing to see.
fn remove_hidden(txn: &mut dyn Txn, geometry: &Geometry, ino: Ino, attr: &mut Attr, chunk: u32) -> OpResult<()> {
    let records = scan_all(txn, keys::slice_range(ino, Some(chunk)))?;
    if records.len() < 2 {
        return Ok(());
    }
    let cuts = cuts(txn, ino)?;
    let chunk_start = u64::from(chunk) * geometry.chunk_size;
    let mut cover = Cover::default();
    for (key, value) in records.into_iter().rev() {
        let stored = Stored::decode(key, &value)?;
        let pos = stored.record.pos;
        let end = pos + cuts.left(stored.seq, chunk_start, &stored.record);
        if cover.covers(pos, end) {
            reached(Mark::HiddenSliceFreed);
            stored.shorten(txn, attr, 0)?;
        } else {
            cover.add(pos, end);
        }
    }
    Ok(())
}

/// The slices of a chunk in the order of seq, later ones lying over earlier ones; cuts are applied, and what they
/// leave nothing of is left out.
pub fn chunk(read: &mut dyn Read, ino: Ino, chunk: u32) -> OpResult<Vec<(u64, SliceRecord)>> {
    let records = scan_all(read, keys::slice_range(ino, Some(chunk)))?;
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let cuts = cuts(read, ino)?;
    let chunk_start = match cuts.0.is_empty() {
        true => 0,
        false => u64::from(chunk) * volume::load(read)?.geometry.chunk_size,
    };
    let mut slices = Vec::with_capacity(records.len());
    for (key, value) in records {
        let Stored { seq, mut record, .. } = Stored::decode(key, &value)?;
        record.len = cuts.left(seq, chunk_start, &record);
        if record.len > 0 {
            slices.push((seq, record));
        }
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
            cuts.push((seq, Cut::decode(&value)?.offset));
        }
    }
    Ok(Cuts(cuts))
}
