//! Queues of work that no single transaction may do, and doing it piece by piece.
//!
//! Owns: listing the queues, removing what deleted, truncated and punched files left. Leaves to others: when to sweep, deleting
//! blocks and the waiting that promise 6 asks for before it (upkeep).
//!
//! Invariant: each piece leaves a state in which every invariant holds and from which any sweeper can go on.

use alloc::vec::Vec;
use core::ops::Range;

use bytes::Bytes;

use super::chunk;
use super::data::{left_of, next_chunk};
use super::names::{count, difference};
use super::remove::{Contents, remove_contents};
use super::{OpCtx, PAGE, after, get, put};
use crate::format::keys::{self, Counter, Key};
use crate::format::values::{Cut, DelSlice, Value};
use crate::kv::{OpError, OpResult, Read, Txn};
use crate::types::{Attr, Geometry, Ino, SliceId};

const STRAY: OpError = OpError::Damaged("a key in the range of a queue");

/// Unlinked inodes that somebody may still use, after `after`.
pub fn orphans(read: &mut dyn Read, after: Option<Ino>, limit: usize) -> OpResult<Vec<Ino>> {
    let (start, end) = keys::orphan_range();
    let start = after.map_or(start, |ino| super::after(&keys::orphan(ino)));
    queued(read, (start, end), limit)
}

/// Deleted files whose records are not swept yet.
pub fn delfiles(read: &mut dyn Read, limit: usize) -> OpResult<Vec<Ino>> {
    queued(read, keys::delfile_range(), limit)
}

/// Files with cuts to sweep.
pub fn cutfiles(read: &mut dyn Read, limit: usize) -> OpResult<Vec<Ino>> {
    queued(read, keys::cutfile_range(), limit)
}

fn queued(read: &mut dyn Read, (start, end): (Vec<u8>, Vec<u8>), limit: usize) -> OpResult<Vec<Ino>> {
    let mut inos = Vec::new();
    for (key, _) in read.scan(&start, &end, limit)? {
        let (Key::Orphan(ino) | Key::DelFile(ino) | Key::CutFile(ino)) = keys::decode(&key)? else {
            return Err(STRAY);
        };
        inos.push(ino);
    }
    Ok(inos)
}

/// Slices whose blocks wait for deletion, after `after`, with their stored lengths.
pub fn delslices(read: &mut dyn Read, after: Option<SliceId>, limit: usize) -> OpResult<Vec<(SliceId, u32)>> {
    let (start, end) = keys::delslice_range();
    let start = after.map_or(start, |slice| super::after(&keys::delslice(slice)));
    let mut slices = Vec::new();
    for (key, value) in read.scan(&start, &end, limit)? {
        let Key::DelSlice(slice) = keys::decode(&key)? else { return Err(STRAY) };
        slices.push((slice, DelSlice::decode(&value)?.stored_len));
    }
    Ok(slices)
}

/// Forgets slices whose blocks are gone.
pub fn drop_delslices(txn: &mut dyn Txn, slices: &[SliceId]) -> OpResult<()> {
    for &slice in slices {
        txn.delete(&keys::delslice(slice));
    }
    Ok(())
}

/// Removes up to `limit` keys of a deleted file and queues the blocks. True: nothing is left of it.
pub fn sweep_delfile(txn: &mut dyn Txn, _ctx: &OpCtx, ino: Ino, limit: usize) -> OpResult<bool> {
    if txn.get(&keys::delfile(ino))?.is_none() {
        return Ok(true);
    }
    let done = remove_contents(txn, ino, Contents { slices: true, xattrs: true }, limit)?;
    if done {
        txn.delete(&keys::delfile(ino));
    }
    Ok(done)
}

/// Removes or trims up to `limit` records that the file's oldest cut hides. True: the file has no cuts left.
///
/// The cut itself says how far the work has come: once every record that it hides below some chunk is dealt with,
/// its offset moves up to the start of that chunk, which changes nothing that anyone sees.
pub fn sweep_cuts(txn: &mut dyn Txn, ctx: &OpCtx, ino: Ino, limit: usize) -> OpResult<bool> {
    let Some(mut attr) = get::<Attr>(txn, keys::attr(ino))? else {
        txn.delete(&keys::cutfile(ino));
        return Ok(true);
    };
    let (start, end) = keys::cut_range(ino);
    let cuts = txn.scan(&start, &end, 2)?;
    let Some((cut_key, cut_value)) = cuts.first() else {
        txn.delete(&keys::cutfile(ino));
        return Ok(true);
    };
    let Key::Cut(_, cut_seq) = keys::decode(cut_key)? else { return Err(STRAY) };
    let Cut { offset, end } = Cut::decode(cut_value)?;

    let before = attr.stored;
    let reached = sweep_cut(txn, ctx, ino, &mut attr, (cut_seq, offset..end), limit.max(1))?;
    match reached {
        Some(offset) => put(txn, cut_key, &Cut { offset, end }),
        None => txn.delete(cut_key),
    }
    let done = reached.is_none() && cuts.len() == 1;
    if done {
        settle_reach(txn, &ctx.geometry, ino, &mut attr)?;
        txn.delete(&keys::cutfile(ino));
    }
    // Written in any case: a truncate or a commit at the same moment conflicts.
    put(txn, keys::attr(ino), &attr);
    count(txn, ctx, Counter::Bytes, difference(before, attr.stored))?;
    Ok(done)
}

/// Brings the reach back to what is there, if that is few records: appends then need not look below themselves.
fn settle_reach(txn: &mut dyn Txn, geometry: &Geometry, ino: Ino, attr: &mut Attr) -> OpResult<()> {
    let Ok(first) = u32::try_from(attr.length / geometry.chunk_size) else { return Ok(()) };
    let (start, _) = keys::slice_range(ino, Some(first));
    let (_, end) = keys::slice_range(ino, None);
    let page = txn.scan(&start, &end, PAGE)?;
    if page.len() < PAGE {
        attr.reach = attr.length;
        for (key, value) in page {
            let stored = chunk::Stored::decode(key, &value)?;
            let chunk_start = u64::from(stored.chunk) * geometry.chunk_size;
            attr.reach = attr.reach.max(chunk_start + u64::from(stored.range().end));
        }
    }
    Ok(())
}

/// Applies one cut to some records. Returns the offset that is left to do, `None` if it is done.
fn sweep_cut(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    ino: Ino,
    attr: &mut Attr,
    (cut_seq, range): (u64, Range<u64>),
    limit: usize,
) -> OpResult<Option<u64>> {
    // Enough to pass a chunk that is full of newer records, few enough for one transaction.
    let scan_max = limit.saturating_mul(16);
    let chunk_size = ctx.geometry.chunk_size;
    let mut from =
        u32::try_from(range.start / chunk_size).map_err(|_| OpError::Damaged("a cut past the largest file"))?;
    let (mut changed, mut scanned) = (0, 0);
    while let Some(number) = next_chunk(txn.as_read(), ino, from)? {
        let start = u64::from(number) * chunk_size;
        if range.end <= start {
            break;
        }
        if scanned >= scan_max {
            return Ok(Some(range.start.max(start)));
        }
        let mut records = chunk::load(txn, ino, number)?;
        scanned += records.len();
        let before = chunk::allocated(&records).count();
        let mut full = false;
        for stored in &mut records {
            let left = left_of(&ctx.geometry, stored, range.clone());
            if cut_seq < stored.seq || left == stored.record.len {
                continue;
            }
            full = changed == limit;
            if full {
                break;
            }
            stored.shorten(txn, left)?;
            changed += 1;
        }
        attr.stored = (attr.stored + chunk::allocated(&records).count()).saturating_sub(before);
        if full {
            return Ok(Some(range.start.max(start)));
        }
        from = number + 1;
    }
    Ok(None)
}

/// Calls `visit` with the slice of up to `limit` slice records of any file, from `from_key` on (`None`: from the
/// start). Returns where to go on; `None` at the end.
pub fn references(
    read: &mut dyn Read,
    from_key: Option<Bytes>,
    limit: usize,
    visit: &mut dyn FnMut(SliceId),
) -> OpResult<Option<Bytes>> {
    let (start, end) = keys::all_slices();
    let start = from_key.map_or(start, Vec::from);
    let page = read.scan(&start, &end, limit)?;
    let more = page.len() == limit;
    let next = page.last().map(|(key, _)| Bytes::from(after(key)));
    for (key, value) in page {
        let slice = chunk::Stored::decode(key, &value)?.record.slice;
        // 0: inline, without blocks.
        if slice.0 != 0 {
            visit(slice);
        }
    }
    Ok(next.filter(|_| more))
}
