//! Writes that the file machine accepts: which slice takes one, when the open batch is full. (The invariants are in `machine`.)

use core::ops::Range;
use core::time::Duration;

use super::super::slice::DirtySlice;
use super::{Dirty, File};
use crate::marks::{Mark, reached, reached_if};
use crate::meta::Change;
use crate::planted::{self, Bug};
use crate::types::Timestamp;

/// Full batches wait, until there are so many, for their age or for whoever wants them: what is removed meanwhile is never
/// committed, and few commits look at what their chunk has already. Pairs of a write and a read of 4 KiB at random: 1.3 times
/// as many a second while nothing is committed (1000), 1.4 in the long run (20,000).
pub(in crate::file) const WAITING_MAX: usize = 8;

/// What `File::write` changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes that the file holds more than before. (<= data.len())
    pub grown: u64,
    /// `poll_action` has something to do.
    pub work: bool,
    /// The file had nothing uncommitted before.
    pub first: bool,
}

impl File {
    /// Accepts a write. `offset + data.len()` must be at most `FILE_SIZE_MAX`.
    pub fn write(
        &mut self,
        now: Duration,
        wall: Timestamp,
        offset: u64,
        data: &[u8],
        drop_privileges: bool,
    ) -> Written {
        let first = self.batches.is_empty();
        let before = self.dirty_bytes;
        // Each member stays whole, so it is asked before the member.
        let mut work = false;
        if self.is_batch_full() {
            reached(Mark::BatchFullOfSlices);
            self.freeze();
            if WAITING_MAX * self.slices_max <= self.slices.len() {
                reached(Mark::FullBatchesFlushed);
                self.flush();
                work = true;
            }
        }
        self.number += 1;
        let mut done = 0;
        let mut chunk_complete = false;
        while done < data.len() {
            let at = offset + done as u64;
            let chunk = (at / self.geometry.chunk_size) as u32;
            let pos = (at % self.geometry.chunk_size) as u32;
            let count = (data.len() - done).min((self.geometry.chunk_size - u64::from(pos)) as usize);
            work |= self.write_chunk(now, at, chunk, pos, &data[done..done + count]);
            done += count;
            reached_if(Mark::WriteOverChunkBorder, || done < data.len());
            chunk_complete |= u64::from(pos) + count as u64 == self.geometry.chunk_size;
        }
        self.length = self.length.max(offset + data.len() as u64);
        let batch = self.open_batch(now);
        match batch.attrs.last_mut() {
            Some(Change::Written { mtime, drop_privileges: dropped }) => {
                *mtime = if planted::is(Bug::TimesOnlyGrow) { wall.max(*mtime) } else { wall };
                *dropped |= drop_privileges;
            }
            Some(_) | None => batch.attrs.push(Change::Written { mtime: wall, drop_privileges }),
        }
        if chunk_complete {
            self.flush();
            work = true;
        }
        Written { grown: self.dirty_bytes - before, work, first }
    }

    /// Writes within one chunk; returns whether a block was filled.
    fn write_chunk(&mut self, now: Duration, at: u64, chunk: u32, pos: u32, data: &[u8]) -> bool {
        let geometry = self.geometry;
        let end = at + data.len() as u64;
        let open_from = self.open_batch(now).first_key;
        let key = self.slice_for(open_from, chunk, pos, at..end).unwrap_or_else(|| {
            let key = self.next_key;
            self.next_key += 1;
            self.slices.insert(key, DirtySlice::new(chunk, pos));
            key
        });
        let slice = self.slices.get_mut(&key).expect("it was found or inserted");
        let blocks_before = slice.len / geometry.block_size;
        self.dirty_bytes += u64::from(slice.write(&geometry, pos, data));
        let off = pos - slice.pos;
        let filled = slice.len / geometry.block_size > blocks_before;
        self.dirty.paint(at..end, Dirty::Slice { key, off });
        if filled {
            self.unput.insert(key);
        }
        filled
    }

    /// The slice of the open batch, whose first one is `open_from`, that takes a write to `range` of the file, at `pos` of the
    /// chunk. It may grow only if no slice opened after it lies where the growth goes.
    fn slice_for(&self, open_from: u64, chunk: u32, pos: u32, range: Range<u64>) -> Option<u64> {
        let accepts = |slice: &DirtySlice| slice.accepts(&self.geometry, chunk, pos);
        if let Some((&key, newest)) = self.slices.last_key_value()
            && open_from <= key
            && accepts(newest)
        {
            reached(Mark::WriteInPlace);
            return Some(key);
        }
        // What shows where the write begins, or right before, is the newest slice that could take it.
        let key_at = |at: u64| match self.dirty.get(at) {
            Some(Dirty::Slice { key, .. }) => Some(*key).filter(|key| open_from <= *key),
            Some(Dirty::Hole { .. }) | None => None,
        };
        let key = key_at(range.start).max(if pos > 0 { key_at(range.start - 1) } else { None })?;
        let newer = |source: &Dirty| matches!(source, Dirty::Slice { key: other, .. } if key < *other);
        let found = accepts(&self.slices[&key]) && !self.dirty.sources(range).any(newer);
        reached(if found { Mark::WriteInPlace } else { Mark::WriteAroundNewerSlice });
        found.then_some(key)
    }

    /// The batch that takes members has as many slices as it may.
    fn is_batch_full(&self) -> bool {
        let open = self.batches.back().filter(|batch| !batch.frozen);
        open.is_some_and(|batch| {
            // Those that were written over are gone, so they are counted only where it matters.
            let begun = self.next_key - batch.first_key;
            begun >= self.slices_max as u64 && self.slices.range(batch.first_key..).count() >= self.slices_max
        })
    }
}
