//! Changes of ranges other than writes, and what a file has where: fallocate, copies, SEEK_DATA and SEEK_HOLE.
//!
//! Owns: the members that they become, what they change in what readers see, space that a range takes already.
//! Leaves to others: what a commit makes of them (`meta::edit`), limits and waiting (the client).
//! (The invariants are in `machine`.)
//!
//! A hole and a reservation are seen at once. A copy is seen once it is committed, for only its transaction knows what
//! the source holds: whoever asks for one waits for it.

use core::ops::Range;
use core::time::Duration;

use super::{Batch, Dirty, File, Member};
use crate::marks::{Mark, reached, reached_if};
use crate::meta::{Change, CopyRange};
use crate::planted::{self, Bug};
use crate::types::{SliceRecord, Timestamp};

/// Chunks in which one member reserves space at most: each gets a record.
const RESERVE_CHUNKS: u64 = 256;

/// What fallocate(2) is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Space is reserved. `extend`: the length grows to the end of the range.
    Reserve {
        /// Without FALLOC_FL_KEEP_SIZE.
        extend: bool,
    },
    /// The range becomes a hole. (FALLOC_FL_PUNCH_HOLE, which always keeps the size)
    Punch,
    /// The range becomes zeros that take space. (FALLOC_FL_ZERO_RANGE)
    Zero {
        /// Without FALLOC_FL_KEEP_SIZE.
        extend: bool,
    },
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// Data. (SEEK_DATA)
    Data,
    /// A hole, or the end of the file. (SEEK_HOLE)
    Hole,
}

/// A chunk must be loaded first: its records read at this version, handed to `install`, and those that are known to
/// have none after it to `install_empty`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unloaded {
    /// Which.
    pub chunk: u32,
    /// At which version of the view.
    pub version: u64,
}

impl Batch {
    /// It is a copy.
    pub(super) fn copies(&self) -> bool {
        matches!(self.ranges.first(), Some(Change::Copy(_)))
    }
}

impl File {
    /// Accepts a fallocate of `range`, which is not empty and ends at `FILE_SIZE_MAX` or before. `charge`: what it will
    /// take on the volume, which is handed back when it is committed.
    pub fn fallocate(
        &mut self,
        now: Duration,
        wall: Timestamp,
        range: Range<u64>,
        what: Fallocate,
        charge: u64,
        drop_privileges: bool,
    ) {
        let written = Change::Written { mtime: wall, drop_privileges };
        let (offset, len) = (range.start, range.end - range.start);
        let (punches, reserves) = match what {
            Fallocate::Reserve { extend } => (false, Some(extend)),
            Fallocate::Punch => (true, None),
            Fallocate::Zero { extend } => (true, Some(extend)),
        };
        self.begin_range(now);
        if punches {
            reached_if(Mark::HoleOverDirty, || {
                self.dirty.plan(range.clone()).iter().any(|piece| matches!(piece.source, Some(Dirty::Slice { .. })))
            });
            if !planted::is(Bug::PunchForgetsDirty) {
                self.dirty.paint(range.clone(), Dirty::Hole { number: self.number });
            }
            self.reserving.clear(range.clone());
            self.last_batch().ranges.push(Change::Punch { offset, len });
        }
        let Some(extend) = reserves else {
            return self.end_range(written);
        };
        // A hole and the first part of its reservation go together.
        let step = RESERVE_CHUNKS * self.geometry.chunk_size;
        let mut at = range.start;
        while at < range.end {
            if at > range.start {
                self.begin_range(now);
            }
            let end = range.end.min((at / step + 1) * step);
            self.reserving.paint(at..end, Member(self.number));
            self.last_batch().ranges.push(Change::Reserve { offset: at, len: end - at, extend });
            if extend {
                self.length = self.length.max(end);
            }
            self.end_range(written.clone());
            at = end;
        }
        self.last_batch().charge = charge;
    }

    /// Accepts a copy and asks for it to be committed, which it is when `committed() >=` the number returned. `charge`: what
    /// it will take on the volume, which is handed back then.
    pub fn copy(&mut self, now: Duration, wall: Timestamp, copy: CopyRange, charge: u64, drop_privileges: bool) -> u64 {
        self.begin_range(now);
        self.last_batch().ranges.push(Change::Copy(copy));
        self.last_batch().charge = charge;
        self.end_range(Change::Written { mtime: wall, drop_privileges });
        self.flush()
    }

    /// The transaction with this number is under way.
    pub fn is_committing(&self, number: u64) -> bool {
        self.commit.as_ref().is_some_and(|commit| commit.commit.number == number && commit.running)
    }

    /// Nobody waits for this copy any more: unless its commit is under way it is taken back.
    pub fn cancel_copy(&mut self, number: u64) {
        let committing = self.commit.as_ref().is_some_and(|commit| commit.commit.number == number);
        let copy = self.batches.iter_mut().find(|batch| batch.number == number && batch.copies());
        if let Some(batch) = copy.filter(|_| !committing) {
            // Its number stays, and stands for nothing.
            batch.ranges.clear();
            batch.attrs.clear();
            reached(Mark::CopyTakenBack);
        }
    }

    /// How many bytes the committed copy of this number copied; `None`: none, for the source had changed, or that is not
    /// known.
    pub fn copied(&self, number: u64) -> Option<u64> {
        self.last_copy.and_then(|(last, copied)| copied.filter(|_| last == number))
    }

    /// A copy is accepted and not committed: what it covers still shows what was there.
    pub fn is_copying(&self) -> bool {
        self.batches.iter().any(Batch::copies)
    }

    /// A copy is committed that left the file so long: it shows, unless something later made the file shorter.
    pub(super) fn grow_by_copy(&mut self, length: Option<u64>) {
        let shortens = |change: &Change| matches!(change, Change::Truncate { .. });
        if !self.batches.iter().any(|batch| batch.ranges.iter().any(shortens)) {
            self.length = self.length.max(length.unwrap_or(0));
        }
    }

    /// Where data or a hole begins, at `offset` or after it. `Ok(None)`: ENXIO.
    pub fn seek(&self, offset: u64, whence: Whence) -> Result<Option<u64>, Unloaded> {
        if self.length <= offset {
            return Ok(None);
        }
        let wanted = |data: bool| data == (whence == Whence::Data);
        for piece in self.dirty.plan(offset..self.length) {
            match piece.source {
                Some(source) => {
                    if wanted(matches!(source, Dirty::Slice { .. })) {
                        return Ok(Some(piece.range.start));
                    }
                }
                None => {
                    for part in self.parts(piece.range, |chunk| self.view.loaded_until(chunk)) {
                        let pieces = self.view.overlay().plan(part?);
                        if let Some(found) = pieces.iter().find(|piece| wanted(piece.source.is_some())) {
                            return Ok(Some(found.range.start));
                        }
                    }
                }
            }
        }
        Ok((whence == Whence::Hole).then_some(self.length))
    }

    /// Bytes of `range` that take no space and are not about to.
    pub fn unallocated(&self, range: Range<u64>) -> Result<u64, Unloaded> {
        let mut count = 0;
        for piece in self.dirty.plan(range) {
            if matches!(piece.source, Some(Dirty::Slice { .. })) {
                continue;
            }
            for bare in self.reserving.plan(piece.range).into_iter().filter(|piece| piece.source.is_none()) {
                if piece.source.is_some() {
                    count += bare.range.end - bare.range.start;
                    continue;
                }
                for part in self.parts(bare.range, |chunk| self.view.known_until(chunk)) {
                    count += self.view.unallocated(part?);
                }
            }
        }
        Ok(count)
    }

    /// Notes that these chunks had no record at `version`.
    pub fn install_empty(&mut self, version: u64, chunks: Range<u64>) {
        self.view.install_empty(version, chunks);
    }

    /// Hands in the committed slices of a chunk, and where the next one is that has any.
    pub fn install_seen<'a>(
        &mut self,
        unloaded: Unloaded,
        records: impl Iterator<Item = &'a SliceRecord>,
        next: Option<u32>,
    ) {
        let Unloaded { chunk, version } = unloaded;
        self.install(version, chunk, records);
        self.install_empty(version, u64::from(chunk) + 1..next.map_or(u64::from(u32::MAX), u64::from));
    }

    /// `range` in parts whose chunks are loaded, up to the first that is not.
    fn parts(
        &self,
        range: Range<u64>,
        until: impl Fn(u32) -> Option<u64>,
    ) -> impl Iterator<Item = Result<Range<u64>, Unloaded>> {
        let (size, version) = (self.geometry.chunk_size, self.view.version());
        let (mut at, mut failed) = (range.start, false);
        core::iter::from_fn(move || {
            if failed || range.end <= at {
                return None;
            }
            let chunk = (at / size) as u32;
            let Some(past) = until(chunk) else {
                failed = true;
                return Some(Err(Unloaded { chunk, version }));
            };
            let part = at..range.end.min(past.saturating_mul(size));
            at = part.end;
            Some(Ok(part))
        })
    }

    /// A member that is a batch of its own begins.
    fn begin_range(&mut self, now: Duration) {
        self.freeze();
        self.number += 1;
        self.open_batch(now);
    }

    fn end_range(&mut self, written: Change) {
        let batch = self.last_batch();
        batch.attrs.push(written);
        batch.frozen = true;
    }

    fn last_batch(&mut self) -> &mut Batch {
        self.batches.back_mut().expect("it was just begun")
    }
}
