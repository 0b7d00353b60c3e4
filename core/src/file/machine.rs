//! Ordered commit of one file: accepted writes, truncates and attribute changes, from accept to visible.
//!
//! Owns: the queue of batches, their numbers, the length that callers see, which bytes are dirty, the file's error.
//! Here are getters and commands; changes of ranges are in `ranges`, completions and outputs in `progress`.
//! Leaves to others: putting, committing and waiting (the client executes `Action`s and feeds completions back),
//! handles and who has seen which error, memory permits (it only counts what it holds).
//!
//! Invariants
//! - Every member (write, truncate, hole, reservation, copy, attribute change) has a number; numbers ascend from the
//!   inode's `commit` number.
//! - A batch holds all members of an interval of numbers. A commit covers a prefix of the batches, so it is always a
//!   prefix of what was accepted. At most one commit is in flight, and until its outcome is known it stays the same.
//! - A batch is committed only when all its bytes are put and a barrier that began after the last put has returned,
//!   or travel inline.
//! - Bytes leave memory only when their commit is known to be applied, or with the inode.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::time::Duration;

use bytes::Bytes;

use super::overlay::{Overlay, Source};
use super::slice::DirtySlice;
use super::view::{Segment, View, chunks};
use crate::errno::Errno;
use crate::marks::{Mark, reached, reached_if};
use crate::meta::{Change, Commit, CommitReply, SetAttr};
use crate::types::{Attr, BlockId, Geometry, Ino, SliceId, SliceRecord, Timestamp};

mod progress;
mod ranges;
mod writes;

pub use ranges::{Fallocate, Unloaded, Whence};
#[cfg(test)]
pub(super) use writes::WAITING_MAX;
pub use writes::Written;

/// Slices of a batch at most, unless told otherwise: what random writes leave becomes visible in groups of so many.
pub const SLICES_MAX: usize = 256;
/// Slices that one commit carries at most, beyond its first batch.
pub(super) const COMMIT_SLICES_MAX: usize = 1024;

/// Something for the client to do. Each is completed by the `handle_*` method of its name.
#[derive(Clone, Debug)]
pub enum Action {
    /// Put this payload. Completed by `handle_put(key, id.index, ..)`.
    Put {
        /// Which dirty slice.
        key: u64,
        /// The block's identity.
        id: BlockId,
        /// Its payload.
        payload: Bytes,
    },
    /// Take a slice id from a lease; then poll again.
    NeedId,
    /// Run a barrier; completed by `handle_barrier(number, ..)`.
    Barrier {
        /// Batches up to this member become ready.
        number: u64,
    },
    /// Run this transaction; completed by `handle_commit`.
    Commit(Arc<Commit>),
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// It is done.
    Done,
    /// Not, or not known to be: try again. The errno is what a caller is told once it counts as an error: at once if
    /// waiting cannot help (no space, no access), else after the store's time-out.
    Failed {
        /// What to report.
        errno: Errno,
        /// Report now.
        lasting: bool,
    },
}

/// How a commit ended.
#[derive(Clone, Debug)]
pub enum CommitOutcome {
    /// Visible. `fresh`: by this attempt, not by an earlier one whose answer was lost.
    Applied {
        /// Whether this attempt applied it.
        fresh: bool,
        /// The length that it left.
        length: Option<u64>,
        /// Bytes that its copy copied, if it had one that did.
        copied: Option<u64>,
    },
    /// Not applied or unknown: the same commit is tried again.
    Failed {
        /// What to report.
        errno: Errno,
        /// Report now.
        lasting: bool,
    },
    /// The inode is gone: nobody can read these bytes any more.
    Gone,
}

impl CommitOutcome {
    /// Applied by an attempt of which no more is known.
    pub const NOT_FRESH: Self = Self::Applied { fresh: false, length: None, copied: None };
}

impl From<&CommitReply> for CommitOutcome {
    fn from(reply: &CommitReply) -> Self {
        Self::Applied { fresh: reply.applied, length: Some(reply.attr.length), copied: reply.copied }
    }
}

/// What is no longer held on behalf of uncommitted members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// Memory.
    pub bytes: u64,
    /// Space that was set aside for reservations, by the reckoning of who asked for them.
    pub reserved: u64,
}

#[derive(Clone, Debug)]
enum Dirty {
    Slice { key: u64, off: u32 },
    Hole { number: u64 },
}

impl Source for Dirty {
    fn skip(&self, n: u64) -> Self {
        match *self {
            Self::Slice { key, off } => Self::Slice { key, off: off + n as u32 },
            Self::Hole { number } => Self::Hole { number },
        }
    }

    fn goes_on(&self, n: u64, next: &Self) -> bool {
        matches!((self.skip(n), next), (Self::Slice { key, off }, Self::Slice { key: k, off: o }) if (key, off) == (*k, *o))
    }
}

/// The member that covers an interval.
#[derive(Clone, Copy, Debug)]
struct Member(u64);

impl Source for Member {
    fn skip(&self, _: u64) -> Self {
        *self
    }
}

/// Members with consecutive numbers that become visible together: slices, then a change of a range, then attributes.
#[derive(Clone, Debug)]
struct Batch {
    /// When its first member was accepted.
    first_at: Duration,
    /// Number of its last member.
    number: u64,
    /// Key of its first slice; they are `first_key..` up to the next batch's.
    first_key: u64,
    /// A truncate, holes and reservations, or a copy.
    ranges: Vec<Change>,
    /// Bytes that its reservations will take, by the caller's reckoning.
    charge: u64,
    attrs: Vec<Change>,
    frozen: bool,
    /// A barrier covers its puts.
    durable: bool,
}

#[derive(Clone, Debug)]
struct InFlight {
    commit: Arc<Commit>,
    running: bool,
    retry_at: Duration,
    attempts: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Failure {
    /// When the current episode of failures began.
    since: Option<Duration>,
    /// Whether it was raised already.
    raised: bool,
    /// Counts raised errors; a handle that has seen a lower count has one to report. (errseq of Linux)
    count: u64,
    errno: Option<Errno>,
}

/// The contents of one open or dirty regular file.
#[derive(Clone, Debug)]
pub struct File {
    ino: Ino,
    geometry: Geometry,
    store_timeout: Duration,
    /// Slices of a batch at most.
    slices_max: usize,
    /// As callers see it: with all accepted members.
    length: u64,
    /// Of the last member accepted.
    number: u64,
    /// Of the last member known to be visible. (<= number)
    committed: u64,
    /// Members up to here are to be committed as soon as possible.
    wanted: u64,
    batches: VecDeque<Batch>,
    slices: BTreeMap<u64, DirtySlice>,
    /// Of these, all that have a block to be put, or being put. (A block that is not full counts once its slice is frozen.)
    unput: BTreeSet<u64>,
    next_key: u64,
    dirty: Overlay<Dirty>,
    /// What reservations cover that are not committed.
    reserving: Overlay<Member>,
    dirty_bytes: u64,
    view: View,
    barrier: Option<u64>,
    /// The last one failed: when it may be tried again.
    barrier_retry_at: Option<Duration>,
    commit: Option<InFlight>,
    failure: Failure,
    /// Number of the last copy that was committed, and how many bytes it is known to have copied.
    last_copy: Option<(u64, Option<u64>)>,
    discarded: bool,
}

impl File {
    /// The machine of an inode whose committed attributes are `attr`.
    pub fn new(ino: Ino, attr: &Attr, geometry: Geometry, store_timeout: Duration) -> Self {
        Self {
            ino,
            geometry,
            store_timeout,
            slices_max: SLICES_MAX,
            length: attr.length,
            number: attr.commit,
            committed: attr.commit,
            wanted: attr.commit,
            batches: VecDeque::new(),
            slices: BTreeMap::new(),
            unput: BTreeSet::new(),
            next_key: 0,
            dirty: Overlay::default(),
            reserving: Overlay::default(),
            dirty_bytes: 0,
            view: View::new(&geometry, attr.length, attr.reach),
            barrier: None,
            barrier_retry_at: None,
            commit: None,
            failure: Failure::default(),
            last_copy: None,
            discarded: false,
        }
    }

    /// The same, with so many slices in a batch at most.
    pub fn with_batches_of(self, slices_max: usize) -> Self {
        Self { slices_max, ..self }
    }

    // ---- getters

    /// Length as callers see it.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes accepted and not known to be committed.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes
    }

    /// Nothing is accepted that is not committed, and nothing is under way.
    pub fn is_clean(&self) -> bool {
        self.batches.is_empty() && !self.is_busy()
    }

    /// A put, barrier or commit is under way.
    pub fn is_busy(&self) -> bool {
        self.barrier.is_some()
            || self.commit.as_ref().is_some_and(|commit| commit.running)
            || self.unput.iter().any(|key| self.slices[key].any_running())
    }

    /// Number of the last member known to be visible.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Version of the committed view: attributes read before it changed are stale.
    pub fn version(&self) -> u64 {
        self.view.version()
    }

    /// The error that a handle which has seen `seen` errors has not been told.
    pub fn error_since(&self, seen: u64) -> Option<(u64, Errno)> {
        if self.failure.count > seen { self.failure.errno.map(|errno| (self.failure.count, errno)) } else { None }
    }

    /// Errors raised so far: what a new handle has seen.
    pub fn error_count(&self) -> u64 {
        self.failure.count
    }

    /// `attr`, read at this `version`, with everything accepted since.
    pub fn overlay_attr(&self, mut attr: Attr) -> Attr {
        for change in self.batches.iter().flat_map(|batch| &batch.attrs) {
            match change {
                Change::Written { mtime, drop_privileges } => {
                    let set = SetAttr {
                        mtime: Some(*mtime),
                        ctime: Some(*mtime),
                        drop_suid_sgid: *drop_privileges,
                        ..SetAttr::default()
                    };
                    set.apply(&mut attr, *mtime);
                }
                Change::Attrs { set, now } => set.apply(&mut attr, *now),
                Change::Slice { .. }
                | Change::Truncate { .. }
                | Change::Punch { .. }
                | Change::Reserve { .. }
                | Change::Copy(_) => {}
            }
        }
        attr.length = self.length;
        attr.reach = attr.reach.max(self.length);
        // What was read may hold a commit already that has not returned yet.
        let held = self.slices.range(..self.key_limit(attr.commit)).map(|(_, slice)| u64::from(slice.len)).sum::<u64>();
        attr.stored += self.dirty_bytes - held;
        let waiting = self.batches.iter().filter(|batch| batch.number > attr.commit);
        attr.stored += waiting.map(|batch| batch.charge).sum::<u64>();
        attr
    }

    // ---- commands

    /// Accepts a truncate to `length` (shorter or longer).
    pub fn truncate(&mut self, now: Duration, wall: Timestamp, length: u64) {
        self.freeze();
        self.number += 1;
        let number = self.number;
        // Also where the length stays: what is reserved past it goes. How long a copy leaves the file is not known yet.
        if length <= self.length || self.is_copying() {
            reached_if(Mark::TruncateOverDirty, || {
                let cut_off = self.dirty.plan(length..self.length.max(length));
                cut_off.iter().any(|piece| matches!(piece.source, Some(Dirty::Slice { .. })))
            });
            self.dirty.paint(length..u64::MAX, Dirty::Hole { number });
            self.reserving.clear(length..u64::MAX);
        }
        self.length = length;
        let batch = self.open_batch(now);
        batch.ranges.push(Change::Truncate { length });
        batch.attrs.push(Change::Written { mtime: wall, drop_privileges: false });
        batch.frozen = true;
    }

    /// Accepts a change of attributes.
    pub fn set_attr(&mut self, now: Duration, wall: Timestamp, set: &SetAttr) {
        self.number += 1;
        self.open_batch(now).attrs.push(Change::Attrs { set: set.clone(), now: wall });
    }

    /// Asks for everything accepted so far to be committed; it is when `committed() >=` the number returned.
    pub fn flush(&mut self) -> u64 {
        self.freeze();
        self.wanted = self.number;
        self.number
    }

    /// The same, if the oldest uncommitted member was accepted at or before `before` and not everything is asked for
    /// already: what is under way needs no reminder.
    pub fn flush_aged(&mut self, before: Duration) -> Option<u64> {
        let aged = self.batches.front().is_some_and(|batch| batch.first_at <= before);
        (aged && self.wanted < self.number).then(|| self.flush())
    }

    /// When the oldest uncommitted member was accepted.
    pub fn dirty_since(&self) -> Option<Duration> {
        self.batches.front().map(|batch| batch.first_at)
    }

    /// The inode was removed: starts nothing more. Once not `is_busy`, `take_given_up` ends it.
    pub fn discard(&mut self) {
        self.discarded = true;
    }

    /// Nobody can reach the file any more, and nothing more of it will be committed.
    pub fn is_discarded(&self) -> bool {
        self.discarded
    }

    /// A commit was begun, and is not known to have taken effect.
    pub fn has_open_commit(&self) -> bool {
        self.commit.is_some()
    }

    /// Drops all that is uncommitted and returns the slices of which something may have been put, and what is
    /// free again.
    pub fn take_given_up(&mut self) -> (Vec<(SliceId, u32)>, Freed) {
        assert!(self.discarded && !self.is_busy());
        reached_if(Mark::DirtyDiscarded, || self.dirty_bytes > 0);
        reached_if(Mark::PutsGivenUp, || self.slices.values().any(DirtySlice::any_put));
        let given_up = self.slices.values().filter_map(|slice| slice.id.map(|id| (id, slice.len))).collect();
        let reserved = self.batches.drain(..).map(|batch| batch.charge).sum();
        self.slices.clear();
        self.unput.clear();
        self.dirty = Overlay::default();
        self.reserving = Overlay::default();
        self.commit = None;
        self.committed = self.number;
        (given_up, Freed { bytes: core::mem::take(&mut self.dirty_bytes), reserved })
    }

    /// What to do for a read of `len` bytes at `offset`, cut at the end of the file; `Err`: load these chunks first
    /// (at this version), install them and ask again.
    pub fn read(&self, offset: u64, len: u64) -> Result<Vec<Segment>, (Vec<u32>, u64)> {
        let end = self.length.min(offset.saturating_add(len));
        let mut segments = Vec::new();
        if offset >= end {
            return Ok(segments);
        }
        let pieces = self.dirty.plan(offset..end);
        let mut missing: Vec<u32> = Vec::new();
        for piece in pieces.iter().filter(|piece| piece.source.is_none()) {
            let unloaded = chunks(&self.geometry, piece.range.clone()).filter(|&chunk| !self.view.is_loaded(chunk));
            missing.extend(unloaded);
        }
        if !missing.is_empty() {
            missing.dedup();
            return Err((missing, self.view.version()));
        }
        reached_if(Mark::ReadOverDirtyAndCommitted, || {
            let committed =
                |range: Range<u64>| self.view.overlay().plan(range).iter().any(|piece| piece.source.is_some());
            pieces.iter().any(|piece| matches!(piece.source, Some(Dirty::Slice { .. })))
                && pieces.iter().any(|piece| piece.source.is_none() && committed(piece.range.clone()))
        });
        for piece in pieces {
            let len = piece.range.end - piece.range.start;
            match piece.source {
                Some(Dirty::Hole { .. }) => {
                    reached(Mark::ReadThroughHole);
                    segments.push(Segment::Zeros(len));
                }
                Some(Dirty::Slice { key, off }) => {
                    self.slices[&key].read(&self.geometry, off, len as u32, |bytes| {
                        segments.push(Segment::Bytes(bytes));
                    });
                }
                None => {
                    for piece in self.view.overlay().plan(piece.range) {
                        let len = piece.range.end - piece.range.start;
                        match piece.source {
                            None => segments.push(Segment::Zeros(len)),
                            Some(stored) => stored.segments(&self.geometry, len, |segment| segments.push(segment)),
                        }
                    }
                }
            }
        }
        Ok(segments)
    }

    /// Hands in the committed slices of a chunk (seq order), read at `version`.
    pub fn install<'a>(&mut self, version: u64, chunk: u32, records: impl Iterator<Item = &'a SliceRecord>) {
        self.view.install(&self.geometry, version, chunk, records);
    }

    // ---- helpers

    /// The batch that takes members, with `number` as its last one.
    fn open_batch(&mut self, now: Duration) -> &mut Batch {
        if self.batches.back().is_none_or(|batch| batch.frozen) {
            self.batches.push_back(Batch {
                first_at: now,
                number: self.number,
                first_key: self.next_key,
                ranges: Vec::new(),
                charge: 0,
                attrs: Vec::new(),
                frozen: false,
                durable: false,
            });
        }
        let batch = self.batches.back_mut().expect("it was just pushed");
        batch.number = self.number;
        batch
    }

    fn freeze(&mut self) {
        if let Some(batch) = self.batches.back_mut() {
            batch.frozen = true;
            for (key, slice) in self.slices.range_mut(batch.first_key..) {
                slice.freeze();
                if slice.all_put(&self.geometry) {
                    self.unput.remove(key)
                } else {
                    self.unput.insert(*key)
                };
            }
        }
    }

    /// Slices with keys below belong to batches up to `number`.
    fn key_limit(&self, number: u64) -> u64 {
        let later = self.batches.iter().find(|batch| batch.number > number);
        later.map_or(self.next_key, |batch| batch.first_key)
    }

    fn slices_of(&self, index: usize) -> impl Iterator<Item = &DirtySlice> {
        let below = self.batches.get(index + 1).map_or(self.next_key, |batch| batch.first_key);
        self.slices.range(self.batches[index].first_key..below).map(|(_, slice)| slice)
    }

    /// Panics if an invariant does not hold.
    pub fn check(&self) {
        self.dirty.check();
        self.reserving.check();
        assert!(self.committed <= self.number && self.wanted <= self.number);
        let mut last = self.committed;
        for batch in &self.batches {
            assert!(batch.number > last, "batch numbers do not ascend");
            last = batch.number;
        }
        assert!(self.batches.iter().rev().skip(1).all(|batch| batch.frozen), "an open batch is not the last");
        let held: u64 = self.slices.values().map(|slice| u64::from(slice.len)).sum();
        assert_eq!(held, self.dirty_bytes, "the ledger of dirty bytes is wrong");
        self.slices.values().for_each(|slice| slice.check(&self.geometry));
        let unput = |(key, slice): (&u64, &DirtySlice)| {
            let listed = self.unput.contains(key);
            assert!(listed || slice.next_put(&self.geometry, Duration::MAX).is_none(), "a block would not be put");
            assert!(listed || !slice.any_running(), "a put is forgotten");
        };
        self.slices.iter().for_each(unput);
        assert!(self.unput.iter().all(|key| self.slices.contains_key(key)), "a slice is gone that is to be put");
    }
}
