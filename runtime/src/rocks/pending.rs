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
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rocksdb::{WriteBatch, WriteOptions};

use super::Db;
use super::stripes::hash;

/// What commits do to keys.
pub(super) type Writes = BTreeMap<Bytes, Write>;

/// What one does to a key.
#[derive(Clone)]
pub(super) struct Write {
    /// `None`: it is removed.
    pub(super) value: Option<Bytes>,
    /// It was not there before: if it is gone again by the time that it would be written, RocksDB never hears of it.
    pub(super) new: bool,
}

/// Locks of the values.
const SHARDS: usize = 64;

pub(super) struct Pending {
    queue: Mutex<Queue>,
    /// Position of the last commit.
    last: AtomicU64,
    /// Held while some of them are written. Why that has failed: what comes after a gap must not be written.
    writing: Mutex<Option<rocksdb::Error>>,
    newest: Vec<Mutex<HashTable<Newest>>>,
}

#[derive(Default)]
struct Queue {
    /// Each with the time of its commit.
    commits: Vec<(u64, Writes)>,
    bytes: usize,
}

struct Newest {
    hash: u64,
    key: Bytes,
    /// When it was committed.
    time: u64,
    value: Option<Bytes>,
}

impl Pending {
    /// None; `last` is the position of the last commit that RocksDB has.
    pub(super) fn new(last: u64) -> Self {
        let newest = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { queue: Mutex::default(), last: AtomicU64::new(last), writing: Mutex::default(), newest }
    }

    /// Position of the last commit.
    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// What is here of a key. It counts if nobody was committing the key meanwhile, as `Stripes` tells.
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<Option<Bytes>> {
        lock(self.shard(hash)).find(hash, |newest| newest.key == key).map(|newest| newest.value.clone())
    }

    /// Commits `writes` at `time`, which no other commit has, while the stripes of their keys are locked. Returns its position.
    pub(super) fn add(&self, time: u64, writes: Writes) -> u64 {
        let mut bytes = 0;
        for (key, Write { value, .. }) in &writes {
            bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
            let hash = hash(key);
            let mut shard = lock(self.shard(hash));
            match shard.entry(hash, |newest| newest.key == key, |newest| newest.hash) {
                Entry::Occupied(mut newest) => {
                    let newest = newest.get_mut();
                    (newest.time, newest.value) = (time, value.clone());
                }
                Entry::Vacant(place) => {
                    _ = place.insert(Newest { hash, key: key.clone(), time, value: value.clone() });
                }
            }
        }
        let mut queue = lock(&self.queue);
        queue.commits.push((time, writes));
        queue.bytes += bytes;
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
        // Of each key the last write, and whether the first one found it absent.
        let mut merged: BTreeMap<&Bytes, (u64, &Write, bool)> = BTreeMap::new();
        for (time, writes) in &commits {
            for (key, write) in writes {
                let (last, newest, _) = merged.entry(key).or_insert((*time, write, write.new));
                (*last, *newest) = (*time, write);
            }
        }
        let mut batch = WriteBatch::default();
        for (key, (_, Write { value, .. }, new)) in &merged {
            match value {
                Some(value) => batch.put(key, value),
                None if *new => {}
                None => batch.delete(key),
            }
        }
        let written = if batch.is_empty() { Ok(()) } else { db.write_opt(batch, options) };
        if let Err(error) = written {
            let mut queue = lock(&self.queue);
            let later = mem::replace(&mut queue.commits, commits);
            queue.commits.extend(later);
            queue.bytes += bytes;
            *writing = Some(error.clone());
            return Err(error);
        }
        for (key, (time, ..)) in merged {
            let hash = hash(key);
            // Unless a later commit has taken its place.
            let written = |newest: &Newest| newest.time == time && newest.key == key;
            if let Ok(newest) = lock(self.shard(hash)).find_entry(hash, written) {
                newest.remove();
            }
        }
        Ok(())
    }

    /// What RocksDB does not have.
    pub(super) fn unwritten(&self) -> Writes {
        let _writing = lock(&self.writing);
        let queue = lock(&self.queue);
        queue.commits.iter().flat_map(|(_, writes)| writes.clone()).collect()
    }

    fn shard(&self, hash: u64) -> &Mutex<HashTable<Newest>> {
        // By other bits than those that place it in the table.
        &self.newest[(hash >> 32) as usize % SHARDS]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
