//! Queues of work that no single transaction may do, and doing it piece by piece.
//!
//! Owns: listing the queues, removing what deleted and truncated files left. Leaves to others: when to sweep, deleting
//! blocks and the waiting that promise 6 asks for before it (upkeep).
//!
//! Invariant: each piece leaves a state in which every invariant holds and from which any sweeper can go on.

use alloc::vec::Vec;

use bytes::Bytes;

use super::data::{Stored, left_of};
use super::names::{count, difference};
use super::remove::{Contents, remove_contents};
use super::{OpCtx, PAGE, after, get, put};
use crate::format::keys::{self, Counter, Key};
use crate::format::values::{Cut, DelSlice, Value};
use crate::kv::{OpError, OpResult, Read, Txn};
use crate::types::{Attr, Ino, SliceId};

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
    let done = remove_contents(txn, ino, Contents::All, limit)?;
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
    let offset = Cut::decode(cut_value)?.offset;

    let before = attr.stored;
    let reached = sweep_cut(txn, ctx, ino, &mut attr, (cut_seq, offset), limit.max(1))?;
    match reached {
        Some(offset) => put(txn, cut_key, &Cut { offset }),
        None => txn.delete(cut_key),
    }
    // Written in any case: a truncate or a commit at the same moment conflicts.
    put(txn, keys::attr(ino), &attr);
    count(txn, ctx, Counter::Bytes, difference(before, attr.stored))?;
    let done = reached.is_none() && cuts.len() == 1;
    if done {
        txn.delete(&keys::cutfile(ino));
    }
    Ok(done)
}

/// Applies one cut to some records. Returns the offset that is left to do, `None` if it is done.
fn sweep_cut(
    txn: &mut dyn Txn,
    ctx: &OpCtx,
    ino: Ino,
    attr: &mut Attr,
    (cut_seq, offset): (u64, u64),
    limit: usize,
) -> OpResult<Option<u64>> {
    // Enough to pass a chunk that is full of newer records, few enough for one transaction.
    let scan_max = limit.saturating_mul(16);
    let chunk_size = ctx.geometry.chunk_size;
    let first = u32::try_from(offset / chunk_size).map_err(|_| OpError::Damaged("a cut past the largest file"))?;
    let (mut start, _) = keys::slice_range(ino, Some(first));
    let (_, end) = keys::slice_range(ino, None);
    let (mut changed, mut scanned) = (0, 0);
    loop {
        let page = txn.scan(&start, &end, PAGE)?;
        let last_page = page.len() < PAGE;
        if let Some((key, _)) = page.last() {
            start = after(key);
        }
        for (key, value) in page {
            let stored = Stored::decode(key, &value)?;
            let (chunk, len) = (stored.chunk, stored.record.len);
            let stop = changed == limit || (scanned >= scan_max && first < chunk);
            if stop {
                return Ok(Some(offset.max(u64::from(chunk) * chunk_size)));
            }
            scanned += 1;
            let left = left_of(&ctx.geometry, &stored, offset);
            if stored.seq < cut_seq && left < len {
                stored.shorten(txn, attr, left)?;
                changed += 1;
            }
        }
        if last_page {
            return Ok(None);
        }
    }
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
        let slice = Stored::decode(key, &value)?.record.slice;
        // 0: inline, without blocks.
        if slice.0 != 0 {
            visit(slice);
        }
    }
    Ok(next.filter(|_| more))
}
