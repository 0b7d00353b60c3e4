//! Metadata that was read or written lately: attributes, names and the absence of names.
//!
//! Owns: which values are kept, and that none is older than what a snapshot would show.
//! Leaves to others: the transactions. It knows of keys and values only; all writes of the kept tables must pass by it.
//!
//! A transaction tells each key that it is about to write before it can commit: from then on the key is *being
//! written*, and nobody finds it here. When the outcome is known the value is kept, unless two transactions were writing
//! the key at once, of which the order is not known here. What a snapshot showed is kept only if no transaction that wrote
//! the key has ended since before the snapshot was taken.
//!
//! A read is answered from here with all its keys or not at all: each was current when the last of them was looked up. A
//! transaction is told what is here, and validates it as what it reads itself.
//!
//! Invariants
//! - Of a key that is not being written, the value kept is that of the newest transaction.
//! - A key whose transaction has an unknown outcome stays *being written*: it is never kept again.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::{BuildHasherDefault, Hasher};
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::std::collections::HashMap;
use super::std::sync::Mutex;
use super::wait::lock;
use crate::env::{Committed, Env, MetaError, MetaStore, TxnSeq};
use crate::format::keys;
use crate::kv::{Each, KvError, OpError, OpResult, Pairs, Read, Txn};
use crate::marks::{Mark, reached};
use crate::planted::{self, Bug};

#[cfg(test)]
#[path = "meta_cache_tests.rs"]
mod tests;

/// Locks. A transaction takes one for each key that it writes, twice.
const SHARDS: usize = 64;
/// What an entry takes beside key and value: two shared buffers with their headers, and its place in a map.
const ENTRY_OVERHEAD: usize = 192;
/// Longer values (of attributes that a program sets) are not worth the place of many short ones.
const VALUE_MAX: usize = 4096;

/// A value, or that there is none.
type Found = Option<Bytes>;

/// The metadata store of `E`, of which some is kept in memory. All but `read` and `write` is its own.
pub(super) struct CachedMeta<E: Env> {
    env: E,
    cache: MetaCache,
}

impl<E: Env> CachedMeta<E> {
    /// With `bytes` of memory; 0 keeps nothing.
    pub(super) fn new(env: E, bytes: u64) -> Self {
        Self { env, cache: MetaCache::new(bytes) }
    }

    /// What `look` makes of the newest value of a key, if it is here; a snapshot may show an older one.
    pub(super) fn kept<T>(&self, key: &[u8], look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        lock(self.cache.shard(key)).kept.look(key, |found| found.as_deref().map(look))?
    }
}

impl<E: Env> MetaStore for CachedMeta<E> {
    async fn write<T, F>(&self, op: F) -> Result<Committed<T>, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync,
    {
        let write = self.cache.write();
        let result = self.env.meta().write(|txn| op(&mut write.run(txn))).await;
        match &result {
            Ok(_) => write.applied(),
            Err(MetaError::Op(_) | MetaError::Retry) => write.declined(),
            Err(MetaError::Unknown | MetaError::Failed) => {}
        }
        result
    }

    async fn read<T, F>(&self, op: F) -> Result<T, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Read) -> OpResult<T> + Send + Sync,
    {
        if let Some(answer) = self.cache.read(&op) {
            reached(Mark::MetaCached);
            return answer.map_err(MetaError::Op);
        }
        let before = self.cache.before_snapshot();
        self.env.meta().read(|read| op(&mut self.cache.fill(before, read))).await
    }

    fn last(&self) -> TxnSeq {
        self.env.meta().last()
    }

    fn synced(&self) -> TxnSeq {
        self.env.meta().synced()
    }

    async fn sync(&self, seq: TxnSeq) -> Result<(), MetaError> {
        self.env.meta().sync(seq).await
    }
}

struct MetaCache {
    shards: Vec<Mutex<Shard>>,
    /// Transactions that have ended.
    ended: AtomicU64,
}

struct Shard {
    kept: Kept,
    writing: BTreeMap<Bytes, Writing>,
    /// Raised when a key begins to be written: what was looked up before may be old from then on.
    begun: u64,
    /// `MetaCache::ended` when a transaction that wrote one of these keys ended last.
    ended: u64,
}

/// A key that is being written.
struct Writing {
    transactions: u32,
    /// There was one at any time.
    alone: bool,
}

/// Hashes keys the same way in every run.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = self.0.rotate_left(32) ^ xxh3_64(bytes);
    }

    fn write_usize(&mut self, _: usize) {
        // The length of what follows, which its own hash tells.
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type Values = HashMap<Bytes, Found, BuildHasherDefault<KeyHasher>>;

/// Values in two generations, each of half the budget: the old one goes when the new one is full, and what is wanted
/// meanwhile moves to the new one.
struct Kept {
    half: usize,
    new: Values,
    new_bytes: usize,
    old: Values,
}

impl Kept {
    fn get(&mut self, key: &[u8]) -> Option<Found> {
        self.look(key, Found::clone)
    }

    fn look<T>(&mut self, key: &[u8], look: impl FnOnce(&Found) -> T) -> Option<T> {
        if let Some(found) = self.new.get(key) {
            return Some(look(found));
        }
        let (key, found) = self.old.remove_entry(key)?;
        let seen = look(&found);
        self.insert(key, found);
        Some(seen)
    }

    /// The key is not here.
    fn insert(&mut self, key: Bytes, found: Found) {
        let cost = cost(&key, &found);
        if self.half < self.new_bytes + cost {
            self.old = mem::take(&mut self.new);
            self.new_bytes = 0;
        }
        if cost <= self.half {
            self.new_bytes += cost;
            self.new.insert(key, found);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some(found) = self.new.remove(key) {
            self.new_bytes -= cost(key, &found);
        } else {
            self.old.remove(key);
        }
    }
}

fn cost(key: &[u8], found: &Found) -> usize {
    ENTRY_OVERHEAD + key.len() + found.as_ref().map_or(0, Bytes::len)
}

impl MetaCache {
    /// For `bytes` of memory. 0 keeps nothing.
    fn new(bytes: u64) -> Self {
        let half = usize::try_from(bytes).unwrap_or(usize::MAX) / SHARDS / 2;
        let kept = || Kept { half, new: Values::default(), new_bytes: 0, old: Values::default() };
        let shard = |_| Mutex::new(Shard { kept: kept(), writing: BTreeMap::new(), begun: 0, ended: 0 });
        Self { shards: (0..SHARDS).map(shard).collect(), ended: AtomicU64::new(0) }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<Shard> {
        // By other bits than those that place it in the shard's map.
        &self.shards[(xxh3_64(key) >> 32) as usize % SHARDS]
    }

    /// Answers `op` if all that it reads is here.
    fn read<T>(&self, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> Option<OpResult<T>> {
        let mut cached = Cached { cache: self, seen: Vec::new() };
        match op(&mut cached) {
            Err(OpError::Kv(_)) => None,
            answer => cached.is_current().then_some(answer),
        }
    }

    /// Where filling the cache from a snapshot begins, which is to be taken after this.
    fn before_snapshot(&self) -> BeforeSnapshot {
        BeforeSnapshot(self.ended.load(Ordering::Acquire))
    }

    /// `read`, a snapshot, which leaves here what it shows.
    fn fill<'a>(&'a self, before: BeforeSnapshot, read: &'a mut dyn Read) -> impl Read + 'a {
        Filling { cache: self, before, read, lists: false }
    }

    /// A transaction that is about to be run, perhaps several times.
    fn write(&self) -> Write<'_> {
        Write { cache: self, keys: Mutex::new(BTreeMap::new()) }
    }
}

/// The number of transactions that had ended before a snapshot was taken.
#[derive(Clone, Copy)]
struct BeforeSnapshot(u64);

/// Reads what is in the cache, and nothing else.
struct Cached<'a> {
    cache: &'a MetaCache,
    /// Each shard that a value is of, and its `begun` then.
    seen: Vec<(&'a Mutex<Shard>, u64)>,
}

impl Cached<'_> {
    fn is_current(&self) -> bool {
        match &self.seen[..] {
            // Of one look there is nothing that could contradict it.
            [] | [_] => true,
            seen => seen.iter().all(|(shard, begun)| lock(shard).begun == *begun),
        }
    }
}

impl Read for Cached<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Found, KvError> {
        if !keys::is_cached(key) {
            return Err(KvError::Miss);
        }
        let shard = self.cache.shard(key);
        let mut locked = lock(shard);
        let found = locked.kept.get(key).ok_or(KvError::Miss)?;
        self.seen.push((shard, locked.begun));
        Ok(found)
    }

    fn scan(&mut self, _: &[u8], _: &[u8], _: usize) -> Result<Pairs, KvError> {
        Err(KvError::Miss)
    }
}

struct Filling<'a> {
    cache: &'a MetaCache,
    before: BeforeSnapshot,
    read: &'a mut dyn Read,
    /// It has scanned: what it gets now is asked for once, for a listing.
    lists: bool,
}

impl Read for Filling<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Found, KvError> {
        let found = self.read.get(key)?;
        if !self.lists && keys::is_cached(key) && found.as_ref().is_none_or(|value| value.len() <= VALUE_MAX) {
            let mut shard = lock(self.cache.shard(key));
            let newest = shard.ended <= self.before.0 || planted::is(Bug::OldSnapshotCached);
            if !newest {
                reached(Mark::OldSnapshotNotCached);
            } else if !shard.writing.contains_key(key) && shard.kept.get(key).is_none() {
                shard.kept.insert(Bytes::copy_from_slice(key), found.clone());
            }
        }
        Ok(found)
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        self.lists = true;
        self.read.scan(start, end, limit)
    }

    fn visit(&mut self, start: &[u8], end: &[u8], limit: usize, each: Each<'_>) -> Result<(), KvError> {
        self.lists = true;
        self.read.visit(start, end, limit, each)
    }
}

/// A transaction, from before its first run until its outcome is known. Dropped before, its outcome is unknown.
struct Write<'a> {
    cache: &'a MetaCache,
    /// The keys that it has told, with what the last run leaves of them; `None`: that run did not write it.
    keys: Mutex<BTreeMap<Bytes, Option<Found>>>,
}

impl<'a> Write<'a> {
    /// `txn`, of a run that begins.
    fn run<'b>(&'b self, txn: &'b mut dyn Txn) -> impl Txn + use<'a, 'b> {
        lock(&self.keys).values_mut().for_each(|left| *left = None);
        Telling { write: self, txn }
    }

    /// Tells a key ahead of its first write.
    fn tell(&self, key: &[u8], value: Option<&[u8]>) {
        if !keys::is_cached(key) {
            return;
        }
        let value = value.map(Bytes::copy_from_slice);
        let mut told = lock(&self.keys);
        if let Some(left) = told.get_mut(key) {
            *left = Some(value);
            return;
        }
        let key = Bytes::copy_from_slice(key);
        let mut shard = lock(self.cache.shard(&key));
        shard.begun += 1;
        shard.kept.remove(&key);
        let writing = shard.writing.entry(key.clone()).or_insert(Writing { transactions: 0, alone: true });
        writing.transactions += 1;
        writing.alone &= writing.transactions == 1;
        drop(shard);
        told.insert(key, Some(value));
    }

    /// The transaction was applied, as its last run left it.
    fn applied(self) {
        self.end(true);
    }

    /// Nothing was written.
    fn declined(self) {
        self.end(false);
    }

    fn end(self, applied: bool) {
        let told = mem::take(&mut *lock(&self.keys));
        if told.is_empty() {
            return;
        }
        // Whoever takes a snapshot from here on sees it.
        let ended = self.cache.ended.fetch_add(1, Ordering::AcqRel) + 1;
        for (key, left) in told {
            let mut shard = lock(self.cache.shard(&key));
            shard.ended = shard.ended.max(ended);
            let Some(writing) = shard.writing.get_mut(&key) else { continue };
            writing.transactions -= 1;
            if writing.transactions != 0 {
                continue;
            }
            let alone = writing.alone;
            shard.writing.remove(&key);
            if let Some(found) = left
                && applied
                && alone
                && found.as_ref().is_none_or(|value| value.len() <= VALUE_MAX)
            {
                shard.kept.insert(key, found);
            }
        }
    }
}

/// A transaction whose writes are told.
struct Telling<'a, 'b> {
    write: &'b Write<'a>,
    txn: &'b mut dyn Txn,
}

impl Read for Telling<'_, '_> {
    fn get(&mut self, key: &[u8]) -> Result<Found, KvError> {
        // What this transaction writes is not there.
        let known = if keys::is_cached(key) { lock(self.write.cache.shard(key)).kept.get(key) } else { None };
        match known {
            Some(known) => {
                reached(Mark::MetaKnownToTxn);
                self.txn.get_known(key, known)
            }
            None => self.txn.get(key),
        }
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        self.txn.scan(start, end, limit)
    }

    fn visit(&mut self, start: &[u8], end: &[u8], limit: usize, each: Each<'_>) -> Result<(), KvError> {
        self.txn.visit(start, end, limit, each)
    }
}

impl Txn for Telling<'_, '_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.write.tell(key, Some(value));
        self.txn.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.write.tell(key, None);
        self.txn.delete(key);
    }

    fn as_read(&mut self) -> &mut dyn Read {
        self
    }
}
