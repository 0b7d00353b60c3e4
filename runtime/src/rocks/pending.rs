//! Commits that RocksDB does not have yet: they count once they are here, and are written a moment later, many in one batch,
//! so that nobody waits for the write of what he has changed.
//!
//! Owns: their order and their positions, the newest value of each key in them. Leaves to others: validation (`stripes`), when
//! they are written (`Handing`), what a failure means (`rocks`).
//!
//! Invariants
//! - They are written in their order, each whole: RocksDB always has a prefix of all commits.
//! - What is here of a key is found here until RocksDB has it.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rocksdb::{WriteBatch, WriteOptions};

use super::Db;
use super::writes::Writes;

/// Keys with their values; `None`: the key is removed.
pub(super) type Unwritten = BTreeMap<Bytes, Option<Bytes>>;

/// Locks of the values.
const SHARDS: usize = 64;

/// As many commits as some threads make until they are written.
const SPARE: usize = 256;

pub(super) struct Pending {
    queue: Mutex<Queue>,
    /// Position of the last commit.
    last: AtomicU64,
    /// Held while some of them are written. Why that has failed: what comes after a gap must not be written.
    writing: Mutex<Option<rocksdb::Error>>,
    newest: Vec<Mutex<HashTable<Newest>>>,
    /// Memory of commits that are written, for the next ones: who frees what another thread has got makes both wait.
    spare: Mutex<Vec<Writes>>,
}

#[derive(Default)]
struct Queue {
    /// Each with the time of its commit.
    commits: Vec<(u64, Arc<Writes>)>,
    bytes: usize,
}

/// The newest write of a key.
struct Newest {
    hash: u64,
    /// When it was committed.
    time: u64,
    found: Found,
}

impl Newest {
    fn is_of(&self, hash: u64, key: &[u8]) -> bool {
        self.hash == hash && self.found.writes.key(self.found.at) == key
    }
}

/// A write of a commit.
#[derive(Clone)]
pub(super) struct Found {
    writes: Arc<Writes>,
    at: usize,
}

impl Found {
    /// `None`: the key was removed.
    pub(super) fn value(&self) -> Option<&[u8]> {
        self.writes.value(self.at)
    }
}

impl Pending {
    /// None; `last` is the position of the last commit that RocksDB has.
    pub(super) fn new(last: u64) -> Self {
        let newest = (0..SHARDS).map(|_| Mutex::default()).collect();
        let (queue, writing, spare) = <_>::default();
        Self { queue, last: AtomicU64::new(last), writing, newest, spare }
    }

    /// Nothing yet, for the writes of a transaction.
    pub(super) fn writes(&self) -> Writes {
        lock(&self.spare).pop().unwrap_or_else(Writes::with_room)
    }

    /// Position of the last commit.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// What is here of a key. It counts if nobody was committing the key meanwhile, as `Stripes` tells.
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<Found> {
        lock(self.shard(hash)).find(hash, |newest| newest.is_of(hash, key)).map(|newest| newest.found.clone())
    }

    /// Commits `writes` at `time`, which no other commit has, while the stripes of their keys are locked. Returns its position.
    pub(super) fn add(&self, time: u64, writes: Writes) -> u64 {
        let writes = Arc::new(writes);
        for at in 0..writes.len() {
            let hash = writes.hash(at);
            let newest = Newest { hash, time, found: Found { writes: Arc::clone(&writes), at } };
            let mut shard = lock(self.shard(hash));
            match shard.entry(hash, |newest| newest.is_of(hash, writes.key(at)), |newest| newest.hash) {
                Entry::Occupied(mut place) => *place.get_mut() = newest,
                Entry::Vacant(place) => _ = place.insert(newest),
            }
        }
        let mut queue = lock(&self.queue);
        queue.bytes += writes.bytes();
        queue.commits.push((time, writes));
        self.last.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Keys and values of those that are here.
    pub(super) fn bytes(&self) -> usize {
        lock(&self.queue).bytes
    }

    /// Writes all that was added before. What could not be written stays here, and nothing is written after it.
    pub(super) fn write(&self, db: &Db, options: &WriteOptions) -> Result<(), rocksdb::Error> {
        let mut writing = lock(&self.writing);
        if let Some(error) = &*writing {
            return Err(error.clone());
        }
        let Queue { commits, bytes } = mem::take(&mut *lock(&self.queue));
        if commits.is_empty() {
            return Ok(());
        }
        let (batch, last) = merge(&commits);
        let written = if batch.is_empty() { Ok(()) } else { db.write_opt(batch, options) };
        if let Err(error) = written {
            let mut queue = lock(&self.queue);
            let later = mem::replace(&mut queue.commits, commits);
            queue.commits.extend(later);
            queue.bytes += bytes;
            *writing = Some(error.clone());
            return Err(error);
        }
        for (time, writes, at) in last {
            let hash = writes.hash(at);
            // Unless a later commit has taken its place.
            let is_it = |newest: &Newest| newest.time == time && newest.is_of(hash, writes.key(at));
            if let Ok(newest) = lock(self.shard(hash)).find_entry(hash, is_it) {
                newest.remove();
            }
        }
        // Emptied before it is locked, for who begins to write waits for it.
        let room = SPARE.saturating_sub(lock(&self.spare).len());
        let used = commits.into_iter().filter_map(|(_, writes)| Arc::into_inner(writes)?.emptied());
        let mut used = used.take(room).collect();
        lock(&self.spare).append(&mut used);
        Ok(())
    }

    /// What RocksDB does not have.
    pub(super) fn unwritten(&self) -> Unwritten {
        let _writing = lock(&self.writing);
        let queue = lock(&self.queue);
        let own = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
        let all = queue.commits.iter().flat_map(|(_, writes)| writes.pairs(0..writes.len()));
        all.map(|(key, value)| (own(key), value.map(own))).collect()
    }

    fn shard(&self, hash: u64) -> &Mutex<HashTable<Newest>> {
        // By other bits than those that place it in the table.
        &self.newest[(hash >> 32) as usize % SHARDS]
    }
}

/// Commits as one batch, in order of the keys, and the last write of each key.
fn merge(commits: &[(u64, Arc<Writes>)]) -> (WriteBatch, Vec<(u64, &Writes, usize)>) {
    let each = |number: usize| (0..commits[number].1.len()).map(move |at| (number, at));
    let key = |&(number, at): &(usize, usize)| commits[number].1.key(at);
    // By the first bytes, which lie here; seldom does that not tell.
    let mut all: Vec<_> = (0..commits.len()).flat_map(each).map(|write| (prefix(key(&write)), write)).collect();
    all.sort_unstable_by(|(prefix, one), (other_prefix, other)| {
        prefix.cmp(other_prefix).then_with(|| key(one).cmp(key(other))).then(one.0.cmp(&other.0))
    });
    let mut batch = WriteBatch::default();
    let mut last = Vec::with_capacity(all.len());
    for same in all.chunk_by(|(prefix, one), (next_prefix, next)| prefix == next_prefix && key(one) == key(next)) {
        let ((_, (first, first_at)), (_, (number, at))) = (same[0], same[same.len() - 1]);
        let (time, writes) = &commits[number];
        match writes.value(at) {
            Some(value) => batch.put(writes.key(at), value),
            None if commits[first].1.is_new(first_at) => {}
            None => batch.delete(writes.key(at)),
        }
        last.push((*time, &**writes, at));
    }
    (batch, last)
}

/// The first bytes of a key, as a number that sorts as they do.
fn prefix(key: &[u8]) -> u128 {
    let mut first = [0; size_of::<u128>()];
    let len = key.len().min(first.len());
    first[..len].copy_from_slice(&key[..len]);
    u128::from_be_bytes(first)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
