//! The cache against the store that it stands before, with transactions and snapshots that overlap in any way.

use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::errno::Errno;
use crate::kv::mem::{MemKv, MemTxn, TxnWrites};
use crate::testkit::rng::Rng;

/// Keys: few, so that transactions and snapshots meet.
const KEYS: u64 = 12;
/// The first of those that are names; half are of a directory that was there, half of one that is made.
const NAMES: u64 = 6;

fn key(number: u64) -> Vec<u8> {
    if number < NAMES { keys::attr(Ino(number)) } else { keys::dentry(Ino(1 + number % 2), &[number as u8]) }
}

/// Some names of a directory from one on.
#[derive(Clone, Copy)]
struct Page {
    dir: Ino,
    from: u64,
    limit: usize,
}

impl Page {
    fn any(rng: &mut Rng) -> Self {
        let dir = Ino(1 + rng.below(2));
        let from = if rng.below(3) == 0 { 0 } else { keys::name_hash(dir, &[(NAMES + rng.below(KEYS - NAMES)) as u8]) };
        Self { dir, from, limit: 1 + rng.below(4) as usize }
    }

    fn list(self, read: &mut dyn Read) -> OpResult<Vec<(Vec<u8>, Vec<u8>)>> {
        let ((first, end), mut page) = (keys::dentry_range(self.dir), Vec::new());
        let start = if self.from == 0 { first } else { keys::dentry_from(self.dir, self.from) };
        read.visit(&start, &end, self.limit, &mut |key, value| page.push((key.to_vec(), value.to_vec())))?;
        Ok(page)
    }
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
    listed: u64,
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
        let page = Page::any(rng);
        if let Some(answer) = self.cache.read(|read| page.list(read)) {
            self.listed += 1;
            assert_eq!(answer, page.list(&mut self.kv.begin()));
        }
        let first = rng.below(KEYS);
        if let Some(answer) = self.cache.read(|read| two(read, first)) {
            self.hits += 1;
            assert_eq!(answer, two(&mut self.kv.begin(), first));
        }
    }

    fn fill(&mut self, rng: &mut Rng) {
        let at = rng.below(self.snapshots.len() as u64) as usize;
        let (before, kv) = self.snapshots.swap_remove(at);
        let (mut snapshot, first, page) = (kv.begin(), rng.below(KEYS), Page::any(rng));
        let both = |read: &mut dyn Read| Ok((two(read, first)?, page.list(read)?));
        let filled: OpResult<_> = both(&mut self.cache.fill(before, &mut snapshot));
        assert_eq!(filled, both(&mut kv.begin()));
    }
}

/// Answers from memory: of keys, and of listings.
fn run(seed: u64, bytes: u64) -> (u64, u64) {
    let cache = MetaCache::new(bytes);
    let (kv, rng) = (MemKv::new(), &mut Rng::new(seed));
    let mut world = World { cache: &cache, kv, writes: vec![], snapshots: vec![], hits: 0, listed: 0, stamp: 0 };
    cache.listings.makes(Ino(2));
    for _ in 0..400 {
        match rng.below(8) {
            0 if world.writes.len() < 4 => world.write(rng),
            1 | 2 if !world.writes.is_empty() => world.go_on(rng),
            3 => world.snapshots.push((cache.before_snapshot(), world.kv.clone())),
            4 | 5 if !world.snapshots.is_empty() => world.fill(rng),
            _ => world.read(rng),
        }
    }
    (world.hits, world.listed)
}

#[test]
fn what_is_kept_is_what_the_store_holds() {
    for (bytes, least) in [(1 << 20, (10_000, 5_000)), (SHARDS as u64 * 1000, (5_000, 5_000))] {
        let runs: Vec<_> = (1..=400).map(|seed| run(seed, bytes)).collect();
        let (hits, listed) = runs.iter().fold((0, 0), |sum, run| (sum.0 + run.0, sum.1 + run.1));
        assert!(least.0 < hits && least.1 < listed, "{hits} keys and {listed} listings from memory");
    }
    assert_eq!(run(1, 0), (0, 0));
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
        _ = cache.fill(cache.before_snapshot(), &mut snapshot).get(&keys::attr(Ino(number)));
    }
    let held: usize = cache.shards.iter().map(|shard| lock(&shard.state).kept.bytes()).sum();
    assert!((30_000..=100_000).contains(&held), "{held} bytes");
}

/// Gives `dir` a name of `hash`.
fn add(cache: &MetaCache, kv: &mut MemKv, dir: Ino, hash: u64, name: &[u8]) {
    let write = cache.write();
    let mut txn = kv.begin();
    let mut key = keys::dentry_from(dir, 0);
    keys::set_dentry(&mut key, hash, name);
    write.run(&mut txn).put(&key, b"value");
    let writes = txn.finish();
    kv.commit(writes).unwrap();
    write.applied();
}

fn list(dir: Ino, read: &mut dyn Read) -> OpResult<usize> {
    let ((start, end), mut names) = (keys::dentry_range(dir), 0);
    read.visit(&start, &end, usize::MAX, &mut |_, _| names += 1)?;
    Ok(names)
}

#[test]
fn names_are_bounded_and_the_directories_in_use_stay() {
    let cache = MetaCache::new(100_000);
    let mut kv = MemKv::new();
    let used = Ino(1);
    for dir in 1..1000 {
        cache.listings.makes(Ino(dir));
        for name in 0..10u8 {
            add(&cache, &mut kv, Ino(dir), 1 + u64::from(name), &[name]);
        }
        assert!(cache.listings.bytes() <= 100_000 / NAMES_PART);
        assert_eq!(cache.read(|read| list(used, read)), Some(Ok(10)), "listed after each directory that was made");
    }
    assert!(10_000 < cache.listings.bytes(), "{} bytes", cache.listings.bytes());
    assert_eq!(cache.read(|read| list(Ino(2), read)), None);
    // One that is larger than all is not kept.
    for name in 0..1000u64 {
        add(&cache, &mut kv, used, 100 + name, &name.to_be_bytes());
    }
    assert!(cache.listings.bytes() <= 100_000 / NAMES_PART);
    assert_eq!(cache.read(|read| list(used, read)), None);
}

#[test]
fn a_directory_with_two_names_of_one_hash_is_not_kept() {
    let cache = MetaCache::new(1 << 20);
    let mut kv = MemKv::new();
    let (made, found) = (Ino(1), Ino(2));
    cache.listings.makes(made);
    for dir in [made, found] {
        add(&cache, &mut kv, dir, 7, b"one");
        add(&cache, &mut kv, dir, 7, b"two");
        let shown = |cache: &MetaCache| list(dir, &mut cache.fill(cache.before_snapshot(), &mut kv.begin()));
        assert_eq!((cache.read(|read| list(dir, read)), shown(&cache)), (None, Ok(2)));
        assert_eq!(cache.read(|read| list(dir, read)), None);
    }
    assert_eq!(cache.listings.bytes(), 0);
}

#[test]
fn a_name_that_comes_between_a_listing_and_a_look_is_noticed() {
    let cache = MetaCache::new(1 << 20);
    let (mut kv, dir) = (MemKv::new(), Ino(1));
    cache.listings.makes(dir);
    add(&cache, &mut kv, dir, 1, b"one");
    let both = |read: &mut dyn Read| Ok((list(dir, read)?, read.get(&keys::dentry(dir, b"none"))?));
    assert_eq!(cache.read(both), Some(Ok((1, None))));
    let kv = Mutex::new(Some(&mut kv));
    let answer = cache.read(|read| {
        let names = list(dir, read)?;
        if let Some(kv) = lock(&kv).take() {
            add(&cache, kv, dir, 2, b"two");
        }
        Ok((names, read.get(&keys::dentry(dir, b"none"))?))
    });
    assert!(answer.is_none(), "the listing was old when the name was looked up");
}

#[test]
fn a_listing_that_a_transaction_overtakes_is_not_kept() {
    let cache = MetaCache::new(1 << 20);
    let (mut kv, dir) = (MemKv::new(), Ino(1));
    add(&cache, &mut kv, dir, 1, b"one");
    let fill = |before, kv: &MemKv| list(dir, &mut cache.fill(before, &mut kv.begin()));
    let (before, old) = (cache.before_snapshot(), kv.clone());
    add(&cache, &mut kv, dir, 2, b"two");
    assert_eq!((fill(before, &old), cache.read(|read| list(dir, read))), (Ok(1), None));
    assert_eq!((fill(cache.before_snapshot(), &kv), cache.read(|read| list(dir, read))), (Ok(2), Some(Ok(2))));
    // As long as a name is being written nobody is told of all; then of what there is.
    let write = cache.write();
    write.run(&mut kv.begin()).delete(&keys::dentry(dir, b"none"));
    assert_eq!(cache.read(|read| list(dir, read)), None);
    write.declined();
    assert_eq!(cache.read(|read| list(dir, read)), Some(Ok(2)));
}
