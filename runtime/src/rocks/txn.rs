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
use kiseki_core::kv::{KvError, Pairs, Read, Txn};
use rocksdb::{DBAccess, DBRawIteratorWithThreadMode, ReadOptions, SnapshotWithThreadMode, WriteBatch, WriteOptions};

use super::Db;
use super::stripes::Stripes;

/// A write transaction.
pub(super) struct WriteTxn<'db> {
    db: &'db Db,
    stripes: &'db Stripes,
    /// When it began, on the clock of `stripes`, or a later moment at which all that it had read was still so.
    time: u64,
    /// Stripes of what it has read or writes.
    tracked: Vec<u32>,
    /// Values to be set, and keys to be removed.
    writes: BTreeMap<Bytes, Option<Bytes>>,
    scans: SnapshotRead<'db>,
    /// What it has read was never there all at once.
    stale: bool,
}

/// What became of a transaction.
pub(super) enum Commit {
    /// It counts.
    Done,
    /// Others have written what it has read.
    Conflict,
    /// Nothing is known of it.
    Failed(rocksdb::Error),
}

impl<'db> WriteTxn<'db> {
    pub(super) fn begin(db: &'db Db, stripes: &'db Stripes) -> Self {
        let (tracked, writes) = (Vec::with_capacity(16), BTreeMap::new());
        Self { db, stripes, time: stripes.now(), tracked, writes, scans: SnapshotRead::new(db), stale: false }
    }

    /// What it has read was there at one moment, so that what the operation has made of it is an answer.
    pub(super) fn holds(&self) -> bool {
        // Gets are compared when they come; a scan has seen what was there a moment later.
        !self.stale && (!self.scans.has_begun() || self.stripes.lock(&[]).allow(&self.tracked, self.time))
    }

    pub(super) fn commit(self, options: &WriteOptions) -> Commit {
        if self.writes.is_empty() {
            return if self.holds() { Commit::Done } else { Commit::Conflict };
        }
        if self.stale {
            return Commit::Conflict;
        }
        let mut batch = WriteBatch::default();
        let mut stripes = Vec::with_capacity(self.writes.len());
        for (key, value) in &self.writes {
            stripes.push(Stripes::of(key));
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        stripes.sort_unstable();
        stripes.dedup();
        let mut locked = self.stripes.lock(&stripes);
        if !locked.allow(&self.tracked, self.time) {
            return Commit::Conflict;
        }
        locked.begin_commit();
        match self.db.write_opt(batch, options) {
            Ok(()) => Commit::Done,
            Err(error) => Commit::Failed(error),
        }
    }

    /// When the stripe was written last, if that is a time at which this transaction can be; it counts as read from here on.
    fn track(&mut self, stripe: u32) -> Option<u64> {
        let written = self.stripes.written(stripe);
        if self.time < written && !self.advance() {
            self.stale = true;
        }
        self.tracked.push(stripe);
        (!self.stale).then_some(written)
    }

    /// Goes on at this moment, if what was read is still so. What a scan has shown is not known to be.
    fn advance(&mut self) -> bool {
        let now = self.stripes.now();
        let still = !self.stale && !self.scans.has_begun() && self.stripes.lock(&[]).allow(&self.tracked, self.time);
        if still {
            self.time = now;
        }
        still
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        if let Some(before) = self.writes.get_mut(key) {
            *before = value.map(Bytes::copy_from_slice);
            return;
        }
        self.track(Stripes::of(key));
        self.writes.insert(Bytes::copy_from_slice(key), value.map(Bytes::copy_from_slice));
    }
}

impl Read for WriteTxn<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        if let Some(own) = self.writes.get(key) {
            return Ok(own.clone());
        }
        let stripe = Stripes::of(key);
        loop {
            // Whoever asks passes it up, and the operation is run again.
            let written = self.track(stripe).ok_or(KvError::Miss)?;
            let value = self.db.get_pinned(key).map_err(read_failed)?;
            if self.stripes.is_still(stripe, written) {
                return Ok(value.map(|value| Bytes::copy_from_slice(&value)));
            }
        }
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        if start >= end || limit == 0 {
            return Ok(Pairs::new());
        }
        self.scans.scan_below(written(&self.writes, start, end), start, end, limit)
    }

    fn visit(&mut self, start: &[u8], end: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), KvError> {
        if start >= end {
            return Ok(());
        }
        self.scans.visit_below(written(&self.writes, start, end), start, end, each)
    }
}

/// What a transaction writes there. (start < end)
fn written<'a>(
    writes: &'a BTreeMap<Bytes, Option<Bytes>>,
    start: &[u8],
    end: &[u8],
) -> impl Iterator<Item = (&'a Bytes, &'a Option<Bytes>)> + use<'a> {
    writes.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
}

impl Txn for WriteTxn<'_> {
    fn get_known(&mut self, key: &[u8], known: Option<Bytes>) -> Result<Option<Bytes>, KvError> {
        let stripe = Stripes::of(key);
        // Somebody has looked after `time`: a commit that was not seen then is later than that, or still under way.
        if !self.stale && self.stripes.written(stripe) <= self.time && !self.writes.contains_key(key) {
            self.tracked.push(stripe);
            return Ok(known);
        }
        self.get(key)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.write(key, Some(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.write(key, None);
    }

    fn as_read(&mut self) -> &mut dyn Read {
        self
    }
}

/// Reads of one snapshot, without tracking.
pub(super) struct SnapshotRead<'db> {
    db: &'db Db,
    /// Made by the first read.
    at: Option<(SnapshotWithThreadMode<'db, Db>, ReadOptions)>,
}

impl<'db> SnapshotRead<'db> {
    pub(super) fn new(db: &'db Db) -> Self {
        Self { db, at: None }
    }

    fn has_begun(&self) -> bool {
        self.at.is_some()
    }

    /// A scan with `own` writes over it.
    fn scan_below<'a>(
        &mut self,
        own: impl Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Pairs, KvError> {
        let (snapshot, _) = self.at();
        let mut pairs = Pairs::new();
        visit(&mut snapshot.raw_iterator_opt(bounded(start, end, limit)), own, start, limit, &mut |key, value| {
            pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        })?;
        Ok(pairs)
    }

    /// A visit with `own` writes over it. Ranges that are wanted whole are short enough to be worth their place in the cache.
    fn visit_below<'a>(
        &mut self,
        own: impl Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>,
        start: &[u8],
        end: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), KvError> {
        let (snapshot, _) = self.at();
        visit(&mut snapshot.raw_iterator_opt(bounded(start, end, PAGE_CACHED_MAX)), own, start, usize::MAX, each)
    }

    fn at(&mut self) -> &(SnapshotWithThreadMode<'db, Db>, ReadOptions) {
        self.at.get_or_insert_with(|| {
            let snapshot = self.db.snapshot();
            let mut options = ReadOptions::default();
            options.set_snapshot(&snapshot);
            (snapshot, options)
        })
    }
}

impl Read for SnapshotRead<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let db = self.db;
        let (_, options) = self.at();
        let value = db.get_pinned_opt(key, options).map_err(read_failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        if start >= end || limit == 0 {
            return Ok(Pairs::new());
        }
        self.scan_below(std::iter::empty(), start, end, limit)
    }

    fn visit(&mut self, start: &[u8], end: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), KvError> {
        if start >= end {
            return Ok(());
        }
        self.visit_below(std::iter::empty(), start, end, each)
    }
}

/// Longest page whose blocks are worth keeping in the cache: more than a directory page of the kernel asks for.
const PAGE_CACHED_MAX: usize = 1024;

fn bounded(start: &[u8], end: &[u8], limit: usize) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    // Long scans (fsck, sweeps, large folders) must not push everything else out of the block cache.
    options.fill_cache(limit <= PAGE_CACHED_MAX);
    options
}

/// Shows `each` what the iterator has from `start` on, `limit` pairs at most, with `own` writes in its place and between.
fn visit<'a, D: DBAccess>(
    iterator: &mut DBRawIteratorWithThreadMode<'_, D>,
    own: impl Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>,
    start: &[u8],
    limit: usize,
    each: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<(), KvError> {
    let mut left = limit;
    let mut own = own.peekable();
    iterator.seek(start);
    while left > 0 {
        match (iterator.item(), own.peek()) {
            (Some((key, value)), next) if next.is_none_or(|(own, _)| key < &own[..]) => {
                each(key, value);
                left -= 1;
            }
            (there, Some((key, value))) => {
                if let Some(value) = value {
                    each(key, value);
                    left -= 1;
                }
                let replaced = there.is_some_and(|(there, _)| there == &key[..]);
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
