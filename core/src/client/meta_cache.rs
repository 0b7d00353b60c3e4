//! Metadata that was read or written lately: attributes, names and the absence of names, whole directories.
//!
//! Owns: which values are kept, and that none is older than what a snapshot would show.
//! Leaves to others: where they lie (`kept`, `listings`), the transactions. It knows of keys and values only; all writes of
//! the kept tables must pass by it.
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

use alloc::vec::Vec;
use core::hash::{BuildHasherDefault, Hasher};
use core::mem;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::kept::{Kept, hash};
use super::listings::{Left, Listings, Shown};
use super::std::collections::HashMap;
use super::std::sync::Mutex;
use super::wait::lock;
use crate::env::{Committed, Env, MetaError, MetaStore, TxnSeq};
use crate::format::keys::{self, DentryPlace};
use crate::kv::{Each, KvError, OpError, OpResult, Pairs, Read, See, Txn, copied};
use crate::marks::{Mark, reached};
use crate::planted::{self, Bug};
use crate::types::Ino;

#[cfg(test)]
#[path = "meta_cache_tests.rs"]
mod tests;

/// Locks. A transaction takes one for each key that it writes, twice.
const SHARDS: usize = 64;
/// One byte of so many is for names of directories that are known whole.
const NAMES_PART: usize = 4;
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
        let hash = hash(key);
        lock(&self.cache.shard(hash).state).kept.look(hash, key, |value| value.map(look))?
    }

    /// The number of transactions that have begun to write, if all have ended.
    pub(super) fn quiet(&self) -> Option<u64> {
        // In this order: what begins in between counts.
        let ended = self.cache.ended.load(Ordering::Acquire);
        (self.begun() == ended).then_some(ended)
    }

    /// The number of transactions that have begun to write.
    pub(super) fn begun(&self) -> u64 {
        self.cache.begun.load(Ordering::Acquire)
    }

    /// A transaction is about to make `dir`, a number that no directory had before.
    pub(super) fn makes(&self, dir: Ino) {
        self.cache.listings.makes(dir);
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
    shards: Vec<Shard>,
    listings: Listings,
    /// Transactions that have told a key.
    begun: AtomicU64,
    /// Those of them that have ended.
    ended: AtomicU64,
}

struct Shard {
    /// Raised when a key begins to be written: what was looked up before may be old from then on.
    begun: AtomicU64,
    state: Mutex<State>,
}

struct State {
    kept: Kept,
    /// By the hash of the key: two keys that share it only keep each other from being kept.
    writing: HashMap<u64, Writing, BuildHasherDefault<AsIs>>,
    /// `MetaCache::ended` when a transaction that wrote one of these keys ended last.
    ended: u64,
}

/// A key that is being written.
struct Writing {
    transactions: u32,
    /// There was one at any time.
    alone: bool,
}

/// The hash of what is a hash.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("hashes are numbers");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl MetaCache {
    /// For `bytes` of memory. 0 keeps nothing.
    fn new(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let names = bytes / NAMES_PART;
        let kept = || Kept::new((bytes - names) / SHARDS);
        let state = || State { kept: kept(), writing: HashMap::default(), ended: 0 };
        let shard = |_| Shard { begun: AtomicU64::new(0), state: Mutex::new(state()) };
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            listings: Listings::new(names),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }
    }

    fn shard(&self, hash: u64) -> &Shard {
        // By other bits than those that place it in the shard's map.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }

    /// Answers `op` if all that it reads is here.
    fn read<T>(&self, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> Option<OpResult<T>> {
        let mut cached = Cached { cache: self, seen: Vec::new() };
        match op(&mut cached) {
            Err(OpError::Kv(_)) => None,
            answer => cached.is_current().then_some(answer),
        }
    }

    /// What `look` makes of the newest value of a key, if it is here, and how often keys of its shard had begun to be
    /// written.
    fn look<T>(&self, key: &[u8], mut look: impl FnMut(Option<&[u8]>) -> T) -> Option<(T, Shown<'_>)> {
        let hash = hash(key);
        let shard = self.shard(hash);
        let mut state = lock(&shard.state);
        let shown = (&shard.begun, shard.begun.load(Ordering::Acquire));
        if let Some(found) = state.kept.look(hash, key, &mut look) {
            return Some((found, shown));
        }
        let place = DentryPlace::of(key).filter(|_| !state.writing.contains_key(&hash))?;
        // With this shard's lock: nobody begins to write the name.
        let found = self.listings.look(&place, look)?;
        reached(Mark::NameFromListing);
        Some((found, shown))
    }

    /// Where filling the cache from a snapshot begins, which is to be taken after this.
    fn before_snapshot(&self) -> BeforeSnapshot {
        BeforeSnapshot(self.ended.load(Ordering::Acquire))
    }

    /// Keeps what was shown to who began reading after `before`, be it that he looks again: a value that is no longer the
    /// newest is kept out by whoever has told that he writes the key.
    fn fill_in(&self, before: BeforeSnapshot, key: &[u8], value: Option<&[u8]>) {
        if value.is_some_and(|value| value.len() > VALUE_MAX) {
            return;
        }
        let hash = hash(key);
        let state = &mut *lock(&self.shard(hash).state);
        let newest = state.ended <= before.0 || planted::is(Bug::OldSnapshotCached);
        if !newest {
            reached(Mark::OldSnapshotNotCached);
        } else if !state.writing.contains_key(&hash) && !state.kept.has(hash, key) {
            state.kept.insert(hash, key, value);
        }
    }

    /// `read`, a snapshot, which leaves here what it shows.
    fn fill<'a>(&'a self, before: BeforeSnapshot, read: &'a mut dyn Read) -> impl Read + 'a {
        Filling { cache: self, before, read, lists: false }
    }

    /// A transaction that is about to be run, perhaps several times.
    fn write(&self) -> Write<'_> {
        Write { cache: self, told: Mutex::default() }
    }
}

/// The number of transactions that had ended before a snapshot was taken.
#[derive(Clone, Copy)]
struct BeforeSnapshot(u64);

/// Reads what is in the cache, and nothing else.
struct Cached<'a> {
    cache: &'a MetaCache,
    /// Of each value or listing.
    seen: Vec<Shown<'a>>,
}

impl Cached<'_> {
    fn is_current(&self) -> bool {
        match &self.seen[..] {
            // Of one look there is nothing that could contradict it.
            [] | [_] => true,
            seen => seen.iter().all(|(begun, then)| begun.load(Ordering::Acquire) == *then),
        }
    }
}

impl Read for Cached<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Found, KvError> {
        copied(|see| self.see(key, see))
    }

    fn see(&mut self, key: &[u8], see: See<'_>) -> Result<(), KvError> {
        if !keys::is_cached(key) {
            return Err(KvError::Miss);
        }
        let ((), shown) = self.cache.look(key, see).ok_or(KvError::Miss)?;
        self.seen.push(shown);
        Ok(())
    }

    fn scan(&mut self, _: &[u8], _: &[u8], _: usize) -> Result<Pairs, KvError> {
        Err(KvError::Miss)
    }

    fn visit(&mut self, start: &[u8], end: &[u8], limit: usize, each: Each<'_>) -> Result<(), KvError> {
        let from = DentryPlace::of_range(start, end).ok_or(KvError::Miss)?;
        self.seen.push(self.cache.listings.visit(&from, limit, None, each).ok_or(KvError::Miss)?);
        reached(Mark::ListedNames);
        Ok(())
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
        copied(|see| self.see(key, see))
    }

    fn see(&mut self, key: &[u8], see: See<'_>) -> Result<(), KvError> {
        if self.lists || !keys::is_cached(key) {
            return self.read.see(key, see);
        }
        let Self { cache, before, read, .. } = self;
        read.see(key, &mut |value| {
            cache.fill_in(*before, key, value);
            see(value);
        })
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        self.lists = true;
        self.read.scan(start, end, limit)
    }

    fn visit(&mut self, start: &[u8], end: &[u8], limit: usize, each: Each<'_>) -> Result<(), KvError> {
        self.lists = true;
        let Self { cache: MetaCache { listings, .. }, before, read, .. } = self;
        let Some(from) = DentryPlace::of_range(start, end) else { return read.visit(start, end, limit, each) };
        if listings.visit(&from, limit, Some(before.0), each).is_some() {
            return Ok(());
        }
        let Some(mut page) = listings.page(from, before.0) else { return read.visit(start, end, limit, each) };
        let mut shown = 0;
        read.visit(start, end, limit, &mut |key, value| {
            shown += 1;
            page.add(key, value);
            each(key, value);
        })?;
        listings.fill(page, shown < limit);
        Ok(())
    }
}

/// A transaction, from before its first run until its outcome is known. Dropped before, its outcome is unknown.
struct Write<'a> {
    cache: &'a MetaCache,
    told: Mutex<ToldKeys>,
}

/// The keys that a transaction has told.
#[derive(Default)]
struct ToldKeys {
    /// Few: a look at all of them costs less than an index.
    told: Vec<Told>,
    /// Their keys, and the values that the last run writes, one after the other.
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// A key that a transaction has told.
struct Told {
    hash: u64,
    key: Range<usize>,
    wrote: Wrote,
}

/// What the last run did with a key.
enum Wrote {
    Nothing,
    Absence,
    Value(Range<usize>),
}

impl ToldKeys {
    /// What the transaction leaves of `told` if it is applied.
    fn left(&self, told: &Told) -> Left<'_> {
        match &told.wrote {
            Wrote::Nothing => Left::AsItWas,
            Wrote::Absence => Left::Value(None),
            Wrote::Value(value) => Left::Value(Some(&self.values[value.clone()])),
        }
    }
}

/// Where `bytes` lie in `buffer` from here on.
fn keep(buffer: &mut Vec<u8>, bytes: &[u8]) -> Range<usize> {
    let start = buffer.len();
    buffer.extend_from_slice(bytes);
    start..buffer.len()
}

impl<'a> Write<'a> {
    /// `txn`, of a run that begins.
    fn run<'b>(&'b self, txn: &'b mut dyn Txn) -> impl Txn + use<'a, 'b> {
        let ToldKeys { told, values, .. } = &mut *lock(&self.told);
        told.iter_mut().for_each(|told| told.wrote = Wrote::Nothing);
        values.clear();
        Telling { write: self, txn }
    }

    /// Tells a key ahead of its first write.
    fn tell(&self, key: &[u8], value: Option<&[u8]>) {
        if !keys::is_cached(key) {
            return;
        }
        let hash = hash(key);
        let ToldKeys { told, keys, values } = &mut *lock(&self.told);
        let wrote = value.map_or(Wrote::Absence, |value| Wrote::Value(keep(values, value)));
        if let Some(told) = told.iter_mut().find(|told| told.hash == hash && keys[told.key.clone()] == *key) {
            told.wrote = wrote;
            return;
        }
        if told.is_empty() {
            self.cache.begun.fetch_add(1, Ordering::AcqRel);
        }
        let shard = self.cache.shard(hash);
        let mut state = lock(&shard.state);
        shard.begun.fetch_add(1, Ordering::AcqRel);
        state.kept.remove(hash, key);
        let writing = state.writing.entry(hash).or_insert(Writing { transactions: 0, alone: true });
        writing.transactions += 1;
        writing.alone &= writing.transactions == 1;
        if let Some(place) = DentryPlace::of(key) {
            self.cache.listings.begin(&place);
        }
        drop(state);
        told.push(Told { hash, key: keep(keys, key), wrote });
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
        let all = mem::take(&mut *lock(&self.told));
        if all.told.is_empty() {
            return;
        }
        // Whoever takes a snapshot from here on sees it.
        let ended = self.cache.ended.fetch_add(1, Ordering::AcqRel) + 1;
        for told in &all.told {
            let key = &all.keys[told.key.clone()];
            let mut state = lock(&self.cache.shard(told.hash).state);
            state.ended = state.ended.max(ended);
            let Some(writing) = state.writing.get_mut(&told.hash) else { continue };
            writing.transactions -= 1;
            let (last, alone) = (writing.transactions == 0, writing.alone);
            if last {
                state.writing.remove(&told.hash);
            }
            let left = match (alone, applied) {
                (true, true) => all.left(told),
                (true, false) => Left::AsItWas,
                (false, _) => Left::Unsure,
            };
            if let Left::Value(value) = left
                && value.is_none_or(|value| value.len() <= VALUE_MAX)
            {
                state.kept.insert(told.hash, key, value);
            }
            if let Some(place) = DentryPlace::of(key) {
                self.cache.listings.end(&place, ended, left);
            }
        }
        self.cache.listings.make_room();
    }
}

/// A transaction whose writes are told.
struct Telling<'a, 'b> {
    write: &'b Write<'a>,
    txn: &'b mut dyn Txn,
}

impl Read for Telling<'_, '_> {
    fn get(&mut self, key: &[u8]) -> Result<Found, KvError> {
        copied(|see| self.see(key, see))
    }

    fn see(&mut self, key: &[u8], see: See<'_>) -> Result<(), KvError> {
        if keys::is_cached(key) {
            let take = |known: Option<&[u8]>| {
                let taken = self.txn.take_known(key, known);
                if taken {
                    see(known);
                }
                taken
            };
            // What this transaction writes is not there.
            if self.write.cache.look(key, take).is_some_and(|(taken, _)| taken) {
                reached(Mark::MetaKnownToTxn);
                return Ok(());
            }
        }
        self.txn.see(key, see)
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

    fn put_new(&mut self, key: &[u8], value: &[u8]) {
        self.write.tell(key, Some(value));
        self.txn.put_new(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.write.tell(key, None);
        self.txn.delete(key);
    }

    fn as_read(&mut self) -> &mut dyn Read {
        self
    }
}
