//! An ordered key-value store in memory, with snapshots and optimistic conflicts.
//!
//! Owns: versions of every key, the log of commits, validation.
//! Leaves to others: locking, latency, retry and re-running (`testkit`, the simulated metadata store).
//!
//! Invariants
//! - A commit takes effect whole, under one position of the log; positions grow by one.
//! - A commit is refused if a key that its transaction got, put or deleted has a version above its snapshot.
//! - Rolling back to a position gives exactly the state that it had when it was the last one.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::Bound;

use bytes::Bytes;

use super::{KvError, Pairs, Read, Txn};
use crate::env::TxnSeq;

/// Another transaction wrote what this one had read or was to write; run it again on a newer snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("conflict with a later transaction")]
pub struct Conflict;

/// The store.
#[derive(Clone, Debug, Default)]
pub struct MemKv {
    /// Versions of each key, ascending; `None` where it was deleted. (never empty)
    entries: BTreeMap<Bytes, Vec<Version>>,
    /// Keys written by each commit above `floor`, in order.
    log: VecDeque<Vec<Bytes>>,
    /// Lowest position that can still be read or rolled back to.
    floor: TxnSeq,
    /// Number of rollbacks; a transaction does not outlive one.
    epoch: u64,
}

#[derive(Clone, Debug)]
struct Version {
    seq: TxnSeq,
    value: Option<Bytes>,
}

/// A transaction in progress: a snapshot, and what was read and written over it.
#[derive(Debug)]
pub struct MemTxn<'a> {
    kv: &'a MemKv,
    snapshot: TxnSeq,
    gets: BTreeSet<Bytes>,
    writes: BTreeMap<Bytes, Option<Bytes>>,
}

/// What a finished transaction leaves for `MemKv::commit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnWrites {
    epoch: u64,
    snapshot: TxnSeq,
    gets: BTreeSet<Bytes>,
    writes: BTreeMap<Bytes, Option<Bytes>>,
}

impl MemKv {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Position of the last commit.
    pub fn last(&self) -> TxnSeq {
        TxnSeq(self.floor.0 + self.log.len() as u64)
    }

    /// A transaction on the state as it is.
    pub fn begin(&self) -> MemTxn<'_> {
        self.begin_at(self.last())
    }

    /// A transaction on an earlier state. (not below what was forgotten, not above `last`)
    pub fn begin_at(&self, snapshot: TxnSeq) -> MemTxn<'_> {
        assert!(snapshot >= self.floor);
        assert!(snapshot <= self.last());
        MemTxn { kv: self, snapshot, gets: BTreeSet::new(), writes: BTreeMap::new() }
    }

    /// Applies a transaction whole, or not at all. One that writes nothing is validated and takes no position.
    pub fn commit(&mut self, txn: TxnWrites) -> Result<TxnSeq, Conflict> {
        let TxnWrites { epoch, snapshot, gets, writes } = txn;
        // Below the floor a deleted key has left no trace that could be compared with the snapshot.
        if epoch != self.epoch || snapshot < self.floor {
            return Err(Conflict);
        }
        if gets.iter().chain(writes.keys()).any(|key| self.changed_since(key, snapshot)) {
            return Err(Conflict);
        }
        if writes.is_empty() {
            return Ok(self.last());
        }
        let seq = TxnSeq(self.last().0 + 1);
        self.log.push_back(writes.keys().cloned().collect());
        for (key, value) in writes {
            self.entries.entry(key).or_default().push(Version { seq, value });
        }
        Ok(seq)
    }

    /// Drops every commit above `seq`, as a crash does to commits that were not synced. Transactions in progress
    /// are refused from here on. (not below what was forgotten, not above `last`)
    pub fn rollback_to(&mut self, seq: TxnSeq) {
        assert!(seq >= self.floor);
        assert!(seq <= self.last());
        self.epoch += 1;
        while self.last() > seq {
            let last = self.last();
            for key in self.log.pop_back().unwrap_or_default() {
                self.edit(&key, |versions| versions.retain(|version| version.seq < last));
            }
        }
    }

    /// Makes commits up to `seq` irrevocable and frees the versions that they replaced. (not above `last`)
    pub fn forget_before(&mut self, seq: TxnSeq) {
        assert!(seq <= self.last());
        while self.floor < seq {
            self.floor.0 += 1;
            let floor = self.floor;
            for key in self.log.pop_front().unwrap_or_default() {
                self.edit(&key, |versions| {
                    versions.retain(|version| version.seq >= floor);
                    if versions.first().is_some_and(|first| first.seq == floor && first.value.is_none()) {
                        versions.remove(0);
                    }
                });
            }
        }
    }

    /// Edits the versions of a key, and drops the key when none is left.
    fn edit(&mut self, key: &Bytes, change: impl FnOnce(&mut Vec<Version>)) {
        if let Some(versions) = self.entries.get_mut(key) {
            change(versions);
            if versions.is_empty() {
                self.entries.remove(key);
            }
        }
    }

    fn changed_since(&self, key: &[u8], snapshot: TxnSeq) -> bool {
        self.entries.get(key).and_then(|versions| versions.last()).is_some_and(|version| version.seq > snapshot)
    }

    /// Checks the whole structure.
    pub fn check(&self) {
        for (key, versions) in &self.entries {
            assert!(!versions.is_empty(), "{key:?} has no version");
            assert!(versions.is_sorted_by(|a, b| a.seq < b.seq), "{key:?} has versions out of order");
            for version in versions.iter().filter(|version| version.seq > self.floor) {
                let keys = &self.log[(version.seq.0 - self.floor.0 - 1) as usize];
                assert!(keys.contains(key), "{key:?} has a version that is not in the log");
            }
            let old = versions.iter().filter(|version| version.seq <= self.floor);
            assert!(old.count() <= 1, "{key:?} has versions that were to be forgotten");
        }
    }
}

fn at(versions: &[Version], snapshot: TxnSeq) -> Option<&Bytes> {
    versions.iter().rev().find(|version| version.seq <= snapshot).and_then(|version| version.value.as_ref())
}

impl MemTxn<'_> {
    /// Ends the transaction. Nothing takes effect before `MemKv::commit`.
    pub fn finish(self) -> TxnWrites {
        let Self { kv, snapshot, gets, writes } = self;
        TxnWrites { epoch: kv.epoch, snapshot, gets, writes }
    }

    /// Position of the snapshot.
    pub fn snapshot(&self) -> TxnSeq {
        self.snapshot
    }
}

impl Read for MemTxn<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        if let Some(own) = self.writes.get(key) {
            return Ok(own.clone());
        }
        // The stored key shares its memory; an absent key is copied.
        Ok(match self.kv.entries.get_key_value(key) {
            Some((key, versions)) => {
                self.gets.insert(key.clone());
                at(versions, self.snapshot).cloned()
            }
            None => {
                self.gets.insert(Bytes::copy_from_slice(key));
                None
            }
        })
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        if start >= end {
            return Ok(Pairs::new());
        }
        let range = (Bound::Included(start), Bound::Excluded(end));
        let mut stored = self.kv.entries.range::<[u8], _>(range).peekable();
        let mut own = self.writes.range::<[u8], _>(range).peekable();
        let mut pairs = Pairs::new();
        while pairs.len() < limit {
            let stored_first = match (stored.peek(), own.peek()) {
                (Some((a, _)), Some((b, _))) => a < b,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let (key, value) = if stored_first {
                let Some((key, versions)) = stored.next() else { break };
                (key, at(versions, self.snapshot))
            } else {
                let Some((key, value)) = own.next() else { break };
                stored.next_if(|(other, _)| *other == key);
                (key, value.as_ref())
            };
            pairs.extend(value.map(|value| (key.clone(), value.clone())));
        }
        Ok(pairs)
    }
}

impl Txn for MemTxn<'_> {
    fn take_known(&mut self, key: &[u8], known: Option<&[u8]>) -> bool {
        if self.writes.contains_key(key) || self.kv.changed_since(key, self.snapshot) {
            return false;
        }
        let value = self.get(key).expect("memory fails no read");
        assert_eq!(value.as_deref(), known, "what is known of {key:?} is not what is stored");
        true
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.writes.insert(Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value)));
    }

    fn put_new(&mut self, key: &[u8], value: &[u8]) {
        assert_eq!(self.get(key).expect("memory fails no read"), None, "{key:?} is not new");
        self.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.writes.insert(Bytes::copy_from_slice(key), None);
    }

    fn as_read(&mut self) -> &mut dyn Read {
        self
    }
}

impl TxnWrites {
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// What was written, in key order; `None` where a key was deleted.
    pub fn writes(&self) -> impl Iterator<Item = (&Bytes, Option<&Bytes>)> {
        self.writes.iter().map(|(key, value)| (key, value.as_ref()))
    }
}

#[cfg(test)]
#[path = "mem_tests.rs"]
mod tests;
