//! The cache against the store that it stands before, with transactions and snapshots that overlap in any way.

use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::errno::Errno;
use crate::kv::mem::{MemKv, MemTxn, TxnWrites};
use crate::testkit::rng::Rng;
use crate::types::Ino;

/// Keys: few, so that transactions and snapshots meet.
const KEYS: u64 = 6;

fn key(number: u64) -> Vec<u8> {
    keys::attr(Ino(number))
}

/// Reads two keys, of which the second depends on what the first holds.
fn two(read: &mut dyn Read, first: u64) -> OpResult<(Found, Found)> {
    let found = read.get(&key(first))?;
    let second = found.as_ref().map_or(0, |value| u64::from(value[0])) % KEYS;
    Ok((found, read.get(&key(second))?))
}

/// A transaction between its parts: run, committed or refused, ended.
enum Stage {
    Run(TxnWrites),
    Ended(bool),
}

/// What goes on in the store and its cache. A snapshot is a store as it was.
struct World<'a> {
    cache: &'a MetaCache,
    kv: MemKv,
    writes: Vec<(Write<'a>, Stage)>,
    snapshots: Vec<(BeforeSnapshot, MemKv)>,
    hits: u64,
    stamp: u8,
}

impl<'a> World<'a> {
    fn write(&mut self, rng: &mut Rng) {
        let write = self.cache.write();
        let mut txn = self.kv.begin();
        for _ in 0..=rng.below(2) {
            // Runs again, as after a conflict; only the last run counts.
            txn = self.kv.begin();
            let mut run = write.run(&mut txn);
            for _ in 0..=rng.below(2) {
                self.stamp = self.stamp.wrapping_add(1);
                match rng.below(4) {
                    0 => run.delete(&key(rng.below(KEYS))),
                    _ => run.put(&key(rng.below(KEYS)), &[self.stamp]),
                }
            }
        }
        let writes = txn.finish();
        self.writes.push((write, Stage::Run(writes)));
    }

    /// The next part of a transaction that is under way.
    fn go_on(&mut self, rng: &mut Rng) {
        let at = rng.below(self.writes.len() as u64) as usize;
        let (write, stage) = self.writes.swap_remove(at);
        match stage {
            Stage::Run(writes) => {
                let applied = self.kv.commit(writes).is_ok();
                self.writes.push((write, Stage::Ended(applied)));
            }
            // Of few the outcome stays unknown.
            Stage::Ended(_) if rng.below(50) == 0 => {}
            Stage::Ended(true) => write.applied(),
            Stage::Ended(false) => write.declined(),
        }
    }

    /// What is answered from memory is what the store holds at this moment.
    fn read(&mut self, rng: &mut Rng) {
        let first = rng.below(KEYS);
        if let Some(answer) = self.cache.read(|read| two(read, first)) {
            self.hits += 1;
            assert_eq!(answer, two(&mut self.kv.begin(), first));
        }
    }

    fn fill(&mut self, rng: &mut Rng) {
        let at = rng.below(self.snapshots.len() as u64) as usize;
        let (before, kv) = self.snapshots.swap_remove(at);
        let (mut snapshot, first) = (kv.begin(), rng.below(KEYS));
        let filled = two(&mut self.cache.fill(before, &mut snapshot), first);
        assert_eq!(filled, two(&mut kv.begin(), first));
    }
}

fn run(seed: u64, bytes: u64) -> u64 {
    let cache = MetaCache::new(bytes);
    let (kv, rng) = (MemKv::new(), &mut Rng::new(seed));
    let mut world = World { cache: &cache, kv, writes: vec![], snapshots: vec![], hits: 0, stamp: 0 };
    for _ in 0..400 {
        match rng.below(8) {
            0 if world.writes.len() < 4 => world.write(rng),
            1 | 2 if !world.writes.is_empty() => world.go_on(rng),
            3 => world.snapshots.push((cache.before_snapshot(), world.kv.clone())),
            4 | 5 if !world.snapshots.is_empty() => world.fill(rng),
            _ => world.read(rng),
        }
    }
    world.hits
}

#[test]
fn what_is_kept_is_what_the_store_holds() {
    for (bytes, hits_min) in [(1 << 20, 10_000), (SHARDS as u64 * 1000, 5_000)] {
        let hits: u64 = (1..=400).map(|seed| run(seed, bytes)).sum();
        assert!(hits_min < hits, "{hits} answers from memory");
    }
    assert_eq!(run(1, 0), 0);
}

#[test]
fn a_write_between_two_looks_is_noticed() {
    let cache = MetaCache::new(1 << 20);
    let mut kv = MemKv::new();
    let mut put = |cache: &MetaCache, number: u64, value: u8| {
        let write = cache.write();
        let mut txn = kv.begin();
        write.run(&mut txn).put(&key(number), &[value]);
        let writes = txn.finish();
        kv.commit(writes).unwrap();
        write.applied();
    };
    put(&cache, 0, 1);
    put(&cache, 1, 1);
    let both = |read: &mut dyn Read| Ok((read.get(&key(0))?, read.get(&key(1))?));
    assert!(cache.read(both).is_some());
    let between = Mutex::new(Some(&mut put));
    let answer = cache.read(|read| {
        let first = read.get(&key(0))?;
        if let Some(put) = lock(&between).take() {
            put(&cache, 0, 2);
        }
        Ok((first, read.get(&key(1))?))
    });
    assert!(answer.is_none(), "the first value was old when the second was looked up");
}

/// A transaction that others have overtaken: it knows nothing of what is newest.
struct Overtaken<'a>(MemTxn<'a>);

impl Read for Overtaken<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Found, KvError> {
        self.0.get(key)
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        self.0.scan(start, end, limit)
    }
}

impl Txn for Overtaken<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.delete(key);
    }

    fn as_read(&mut self) -> &mut dyn Read {
        self
    }
}

#[test]
fn a_transaction_reads_what_is_kept_only_if_it_takes_it() {
    let cache = MetaCache::new(1 << 20);
    let kv = MemKv::new();
    let write = cache.write();
    write.run(&mut kv.begin()).put(&key(0), &[1]);
    write.applied();
    assert_eq!(cache.read(|read| Ok(read.get(&key(0))?)), Some(Ok(Some(Bytes::from_static(&[1])))));
    let write = cache.write();
    assert_eq!(write.run(&mut Overtaken(kv.begin())).get(&key(0)), Ok(None));
}

#[test]
fn absence_is_kept_and_errors_are_answers() {
    let cache = MetaCache::new(1 << 20);
    let kv = MemKv::new();
    let absent = |read: &mut dyn Read| match read.get(&key(3))? {
        None => Err(OpError::Errno(Errno::ENOENT)),
        Some(_) => Ok(()),
    };
    assert!(cache.read(absent).is_none());
    assert_eq!(absent(&mut cache.fill(cache.before_snapshot(), &mut kv.begin())), Err(OpError::Errno(Errno::ENOENT)));
    assert_eq!(cache.read(absent), Some(Err(OpError::Errno(Errno::ENOENT))));
}

#[test]
fn memory_is_bounded() {
    let cache = MetaCache::new(100_000);
    let kv = MemKv::new();
    for number in 0..10_000 {
        let mut snapshot = kv.begin();
        _ = cache.fill(cache.before_snapshot(), &mut snapshot).get(&key(number));
    }
    let held: usize = cache.shards.iter().map(|shard| lock(shard).kept.bytes()).sum();
    assert!((30_000..=100_000).contains(&held), "{held} bytes");
}
