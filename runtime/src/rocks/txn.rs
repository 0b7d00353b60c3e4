//! What one metadata operation sees of RocksDB: a transaction, or a snapshot.
//!
//! Owns: what a transaction has read and writes, its validation, bounded scans. Leaves to others: beginning and re-running
//! (`rocks`), what was written when (`stripes`).
//!
//! Invariants
//! - All reads of an operation whose outcome counts see one moment, and its own writes. If it scans, that is the snapshot of
//!   its first scan: what it got before was not written until then, nor what it gets after, or it is run again.
//! - Every `get`, `put` and `delete` is tracked from before that moment to the commit; scans are not.
//! - A transaction that wrote nothing commits nothing.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use kiseki_core::kv::{Each, KvError, Pairs, Read, See, Txn, copied};
use rocksdb::{DBAccess, DBRawIteratorWithThreadMode, ReadOptions, SnapshotWithThreadMode};

use super::pending::Unwritten;
use super::stripes::{Stripes, hash};
use super::writes::Writes;
use super::{Db, Inner};

/// A write transaction.
pub(super) struct WriteTxn<'db> {
    store: &'db Inner,
    /// When it began, on the clock of `stripes`, or a later moment at which all that it had read was still so.
    time: u64,
    /// Stripes of what it has read or writes.
    tracked: Vec<u32>,
    writes: Writes,
    scans: SnapshotRead<'db>,
    /// What it has read was never there all at once.
    stale: bool,
}

/// What became of a transaction.
pub(super) enum Commit {
    /// It counts, and is at or before this position.
    Done(u64),
    /// Others have written what it has read.
    Conflict,
}

impl<'db> WriteTxn<'db> {
    pub(super) fn begin(store: &'db Inner) -> Self {
        let (time, tracked, writes) = (store.stripes.now(), Vec::with_capacity(16), Writes::default());
        Self { store, time, tracked, writes, scans: SnapshotRead::new(store), stale: false }
    }

    /// What it has read was there at one moment, so that what the operation has made of it is an answer.
    pub(super) fn holds(&self) -> bool {
        // Gets are compared when they come; a scan has seen what was there a moment later.
        !self.stale && (!self.scans.has_begun() || self.store.stripes.lock(&[]).allow(&self.tracked, self.time))
    }

    pub(super) fn commit(self) -> Commit {
        let Inner { stripes, pending, .. } = self.store;
        let count = self.writes.len();
        if count == 0 {
            return if self.holds() { Commit::Done(pending.last()) } else { Commit::Conflict };
        }
        if self.stale {
            return Commit::Conflict;
        }
        let mut written: Vec<u32> = (0..count).map(|at| Stripes::of(self.writes.hash(at))).collect();
        written.sort_unstable();
        written.dedup();
        let mut locked = stripes.lock(&written);
        if !locked.allow(&self.tracked, self.time) {
            return Commit::Conflict;
        }
        let time = locked.begin_commit();
        Commit::Done(pending.add(time, self.writes))
    }

    /// When the stripe was written last, if that is a time at which this transaction can be; it counts as read from here on.
    fn track(&mut self, stripe: u32) -> Option<u64> {
        let written = self.store.stripes.written(stripe);
        if self.time < written && !self.advance() {
            self.stale = true;
        }
        self.tracked.push(stripe);
        (!self.stale).then_some(written)
    }

    /// Goes on at this moment, if what was read is still so. What a scan has shown is not known to be.
    fn advance(&mut self) -> bool {
        let now = self.store.stripes.now();
        let still =
            !self.stale && !self.scans.has_begun() && self.store.stripes.lock(&[]).allow(&self.tracked, self.time);
        if still {
            self.time = now;
        }
        still
    }

    /// `new`: the key is not there.
    fn write(&mut self, key: &[u8], value: Option<&[u8]>, new: bool) {
        let hash = hash(key);
        if self.writes.len() == 0 {
            self.writes = self.store.pending.writes();
        }
        if self.writes.set(hash, key, value, new) {
            self.track(Stripes::of(hash));
        }
    }
}

impl Read for WriteTxn<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        copied(|see| self.see(key, see))
    }

    fn see(&mut self, key: &[u8], see: See<'_>) -> Result<(), KvError> {
        if let Ok(at) = self.writes.find(key) {
            see(self.writes.value(at));
            return Ok(());
        }
        let hash = hash(key);
        let stripe = Stripes::of(hash);
        loop {
            // Whoever asks passes it up, and the operation is run again.
            let written = self.track(stripe).ok_or(KvError::Miss)?;
            match self.store.pending.get(hash, key) {
                Some(found) => see(found.value()),
                None => see(self.store.db.get_pinned(key).map_err(read_failed)?.as_deref()),
            }
            if self.store.stripes.is_still(stripe, written) {
                return Ok(());
            }
        }
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        copies(|each| self.visit(start, end, limit, each))
    }

    fn visit(&mut self, start: &[u8], end: &[u8], limit: usize, each: Each<'_>) -> Result<(), KvError> {
        self.scans.visit_below(&self.writes, (start, end), limit, each)
    }
}

impl Txn for WriteTxn<'_> {
    fn take_known(&mut self, key: &[u8], _: Option<&[u8]>) -> bool {
        let stripe = Stripes::of(hash(key));
        // Somebody has looked after `time`: a commit that was not seen then is later than that, or still under way.
        let taken = !self.stale && self.store.stripes.written(stripe) <= self.time && self.writes.find(key).is_err();
        if taken {
            self.tracked.push(stripe);
        }
        taken
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.write(key, Some(value), false);
    }

    fn put_new(&mut self, key: &[u8], value: &[u8]) {
        self.write(key, Some(value), true);
    }

    fn delete(&mut self, key: &[u8]) {
        self.write(key, None, false);
    }

    fn as_read(&mut self) -> &mut dyn Read {
        self
    }
}

/// Gets of the newest values, which all were there at one moment. What needs a snapshot, or has lost a race, is a miss.
pub(super) struct NewestRead<'db>(WriteTxn<'db>);

impl<'db> NewestRead<'db> {
    pub(super) fn new(store: &'db Inner) -> Self {
        Self(WriteTxn::begin(store))
    }
}

impl Read for NewestRead<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        self.0.get(key)
    }

    fn see(&mut self, key: &[u8], see: See<'_>) -> Result<(), KvError> {
        self.0.see(key, see)
    }

    fn scan(&mut self, _: &[u8], _: &[u8], _: usize) -> Result<Pairs, KvError> {
        Err(KvError::Miss)
    }
}

/// Reads of one snapshot, without tracking.
pub(super) struct SnapshotRead<'db> {
    store: &'db Inner,
    /// Made by the first read.
    at: Option<At<'db>>,
}

struct At<'db> {
    snapshot: SnapshotWithThreadMode<'db, Db>,
    options: ReadOptions,
    /// Commits that it lacks, because they cannot be written.
    unwritten: Unwritten,
}

impl<'db> SnapshotRead<'db> {
    pub(super) fn new(store: &'db Inner) -> Self {
        Self { store, at: None }
    }

    fn has_begun(&self) -> bool {
        self.at.is_some()
    }

    /// A visit with `own` writes over it.
    fn visit_below(
        &mut self,
        own: &Writes,
        (start, end): (&[u8], &[u8]),
        limit: usize,
        each: Each<'_>,
    ) -> Result<(), KvError> {
        if start >= end || limit == 0 {
            return Ok(());
        }
        let At { snapshot, unwritten, .. } = self.at();
        let mut iterator = snapshot.raw_iterator_opt(bounded(start, end, limit));
        let own = own.range(start, end);
        if unwritten.is_empty() {
            return visit(&mut iterator, own, start, limit, each);
        }
        let unwritten = unwritten.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
        let unwritten = unwritten.map(|(key, value)| (&key[..], value.as_deref()));
        let over: BTreeMap<_, _> = unwritten.chain(own).collect();
        visit(&mut iterator, over.into_iter(), start, limit, each)
    }

    fn at(&mut self) -> &At<'db> {
        self.at.get_or_insert_with(|| {
            let unwritten = if self.store.write_out() { Unwritten::new() } else { self.store.pending.unwritten() };
            let snapshot = self.store.db.snapshot();
            let mut options = ReadOptions::default();
            options.set_snapshot(&snapshot);
            At { snapshot, options, unwritten }
        })
    }
}

impl Read for SnapshotRead<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        copied(|see| self.see(key, see))
    }

    fn see(&mut self, key: &[u8], see: See<'_>) -> Result<(), KvError> {
        let db = &self.store.db;
        let At { options, unwritten, .. } = self.at();
        match unwritten.get(key) {
            Some(value) => see(value.as_deref()),
            None => see(db.get_pinned_opt(key, options).map_err(read_failed)?.as_deref()),
        }
        Ok(())
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        copies(|each| self.visit(start, end, limit, each))
    }

    fn visit(&mut self, start: &[u8], end: &[u8], limit: usize, each: Each<'_>) -> Result<(), KvError> {
        self.visit_below(&Writes::default(), (start, end), limit, each)
    }
}

/// The pairs that a visit shows.
fn copies(visit: impl FnOnce(Each<'_>) -> Result<(), KvError>) -> Result<Pairs, KvError> {
    let mut pairs = Pairs::new();
    visit(&mut |key, value| pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))))?;
    Ok(pairs)
}

/// Longest page whose blocks are worth keeping in the cache: more than a directory page of the kernel asks for.
const PAGE_CACHED_MAX: usize = 1024;

fn bounded(start: &[u8], end: &[u8], limit: usize) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    // Long scans (fsck, sweeps, large folders) must not push everything else out of the block cache. Ranges that are wanted
    // whole are short.
    options.fill_cache(limit <= PAGE_CACHED_MAX || limit == usize::MAX);
    options
}

/// Shows `each` what the iterator has from `start` on, `limit` pairs at most, with `own` writes in its place and between.
fn visit<'a, D: DBAccess>(
    iterator: &mut DBRawIteratorWithThreadMode<'_, D>,
    own: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    start: &[u8],
    limit: usize,
    each: Each<'_>,
) -> Result<(), KvError> {
    let mut left = limit;
    let mut own = own.peekable();
    iterator.seek(start);
    while left > 0 {
        match (iterator.item(), own.peek()) {
            (Some((key, value)), next) if next.is_none_or(|(own, _)| key < *own) => {
                each(key, value);
                left -= 1;
            }
            (there, Some(&(key, value))) => {
                if let Some(value) = value {
                    each(key, value);
                    left -= 1;
                }
                let replaced = there.is_some_and(|(there, _)| there == key);
                own.next();
                if !replaced {
                    continue;
                }
            }
            (_, None) => break,
        }
        if left > 0 {
            iterator.next();
        }
    }
    iterator.status().map_err(read_failed)
}

#[cold]
fn read_failed(error: rocksdb::Error) -> KvError {
    tracing::error!(%error, "cannot read metadata");
    KvError::Failed
}
