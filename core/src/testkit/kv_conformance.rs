//! What every `MetaStore` must do, real or simulated.
//!
//! Owns: the checks, which panic with what was broken. They want a store of their own that does not fail on purpose.
//! Leaves to others: making stores, executors, and the crash between `write_before_crash` and `check_after_crash`.
//! It is async because the store that it drives is; it waits for nothing but the store.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::pin;
use core::sync::atomic::{AtomicU32, Ordering};
use core::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::client::wait::join_all;
use crate::env::{Committed, MetaError, MetaStore, TxnSeq};
use crate::errno::Errno;
use crate::kv::{KvError, OpError, OpResult, Pairs, Read, Txn};

/// All checks that hold for every store.
pub async fn run<M: MetaStore>(store: &M) {
    pairs_are_ordered(store).await;
    scans_are_half_open_and_limited(store).await;
    own_writes_are_seen(store).await;
    new_keys_come_and_go(store).await;
    failed_operation_writes_nothing(store).await;
    keys_and_values_of_any_size(store).await;
    large_transaction(store).await;
    positions_grow_and_sync(store).await;
    no_update_is_lost(store).await;
    one_of_many_takes_a_key(store).await;
    what_was_read_still_holds(store).await;
    readers_see_one_snapshot(store).await;
}

async fn write<M, T, F>(store: &M, op: F) -> Committed<T>
where
    M: MetaStore,
    T: Send,
    F: Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync,
{
    loop {
        match store.write(&op).await {
            Ok(committed) => return committed,
            Err(MetaError::Retry) => {}
            Err(error) => panic!("a write failed: {error:?}"),
        }
    }
}

async fn read<M, T, F>(store: &M, op: F) -> T
where
    M: MetaStore,
    T: Send,
    F: Fn(&mut dyn Read) -> OpResult<T> + Send + Sync,
{
    loop {
        match store.read(&op).await {
            Ok(value) => return value,
            Err(MetaError::Retry) => {}
            Err(error) => panic!("a read failed: {error:?}"),
        }
    }
}

async fn put<M: MetaStore>(store: &M, keys: &[&[u8]]) {
    write(store, |txn| {
        keys.iter().for_each(|key| txn.put(key, key));
        Ok(())
    })
    .await;
}

fn keys_in(read: &mut dyn Read, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Bytes>, KvError> {
    let pairs = read.scan(start, end, limit)?;
    let mut visited = Pairs::new();
    read.visit(start, end, limit, &mut |key, value| {
        visited.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    })?;
    assert_eq!(visited, pairs, "a visit shows what a scan gives");
    Ok(pairs.into_iter().map(|(key, _)| key).collect())
}

fn number(read: &mut dyn Read, key: &[u8]) -> Result<u64, KvError> {
    let stored = read.get(key)?;
    Ok(stored.map_or(0, |value| u64::from_be_bytes((&value[..]).try_into().expect("eight bytes"))))
}

async fn pairs_are_ordered<M: MetaStore>(store: &M) {
    let sorted: [&[u8]; 7] = [b"o/", b"o/\0", b"o/a", b"o/a\0", b"o/aa", b"o/b", b"o/\xff"];
    for key in [4, 0, 6, 2, 5, 1, 3] {
        put(store, &[sorted[key]]).await;
    }
    let found = read(store, |read| Ok(read.scan(b"o/", b"o0", 100)?)).await;
    let wanted: Vec<_> = sorted.iter().map(|key| (Bytes::from_static(key), Bytes::from_static(key))).collect();
    assert_eq!(found, wanted, "order of keys");
}

async fn scans_are_half_open_and_limited<M: MetaStore>(store: &M) {
    put(store, &[b"s/1", b"s/2", b"s/3", b"s/4"]).await;
    type Case = (&'static [u8], &'static [u8], usize, &'static [&'static str]);
    let cases: [Case; 8] = [
        (b"s/2", b"s/4", 9, &["s/2", "s/3"]),
        (b"s/", b"s0", 3, &["s/1", "s/2", "s/3"]),
        (b"s/", b"s0", 4, &["s/1", "s/2", "s/3", "s/4"]),
        (b"s/", b"s0", 0, &[]),
        (b"s/2\0", b"s/3", 9, &[]),
        (b"s/2\0", b"s/3\0", 9, &["s/3"]),
        (b"s/3", b"s/3", 9, &[]),
        (b"s/4", b"s/1", 9, &[]),
    ];
    for (start, end, limit, wanted) in cases {
        let in_read = read(store, |read| Ok(keys_in(read, start, end, limit)?)).await;
        assert_eq!(in_read, wanted, "scan {start:?}..{end:?} limit {limit}");
        let in_write = write(store, |txn| Ok(keys_in(txn.as_read(), start, end, limit)?)).await.value;
        assert_eq!(in_write, wanted, "scan {start:?}..{end:?} limit {limit} in a write transaction");
    }
}

async fn own_writes_are_seen<M: MetaStore>(store: &M) {
    put(store, &[b"w/1", b"w/2", b"w/3"]).await;
    let found = write(store, |txn| {
        txn.delete(b"w/1");
        txn.delete(b"w/none");
        txn.put(b"w/2", b"changed");
        txn.put(b"w/25", b"new");
        txn.put(b"w/9", b"short-lived");
        txn.delete(b"w/9");
        assert_eq!(txn.get(b"w/1")?, None, "own delete");
        assert_eq!(txn.get(b"w/9")?, None, "own put, then delete");
        assert_eq!(txn.get(b"w/25")?, Some(Bytes::from_static(b"new")), "own put");
        let first = keys_in(txn, b"w/", b"w0", 1)?;
        assert_eq!(first, ["w/2"], "a limit counts what is there after own deletes");
        Ok(txn.as_read().scan(b"w/", b"w0", 9)?)
    })
    .await
    .value;
    let after = read(store, |read| Ok(read.scan(b"w/", b"w0", 9)?)).await;
    let wanted = [("w/2", "changed"), ("w/25", "new"), ("w/3", "w/3")].map(|(k, v)| (k.into(), v.into()));
    assert_eq!(found, wanted, "own writes within the transaction");
    assert_eq!(after, wanted, "own writes after the transaction");
}

async fn change<M: MetaStore>(store: &M, change: impl Fn(&mut dyn Txn) + Send + Sync) {
    write(store, |txn| {
        change(txn);
        Ok(())
    })
    .await;
}

/// Keys that are put where there is none, and removed, before the store has written them and after.
async fn new_keys_come_and_go<M: MetaStore>(store: &M) {
    let mut model = BTreeMap::new();
    let mut state = 1_u32;
    for step in 0..600_u32 {
        // (Numerical Recipes' generator)
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (key, value) = ([b"e/".as_slice(), &[(state >> 28) as u8 % 5]].concat(), step.to_be_bytes());
        let there = model.contains_key(&key);
        match state >> 16 & 3 {
            _ if !there => {
                change(store, |txn| txn.put_new(&key, &value)).await;
                model.insert(key.clone(), value);
            }
            0 => {
                change(store, |txn| txn.put(&key, &value)).await;
                model.insert(key.clone(), value);
            }
            // In one transaction: removed, put, and removed again.
            1 => {
                change(store, |txn| {
                    txn.delete(&key);
                    txn.put_new(&key, b"short-lived");
                    txn.delete(&key);
                })
                .await;
                model.remove(&key);
            }
            _ => {
                change(store, |txn| txn.delete(&key)).await;
                model.remove(&key);
            }
        }
        let found = read(store, |read| Ok(read.get(&key)?)).await;
        assert_eq!(found.as_deref(), model.get(&key).map(|value| &value[..]), "step {step}");
        if state >> 20 & 7 == 0 {
            let found = read(store, |read| Ok(read.scan(b"e/", b"e0", 9)?)).await;
            let wanted = model.iter().map(|(key, value)| (Bytes::from(key.clone()), Bytes::copy_from_slice(value)));
            assert_eq!(found, wanted.collect::<Vec<_>>(), "step {step}");
        }
    }
}

async fn failed_operation_writes_nothing<M: MetaStore>(store: &M) {
    put(store, &[b"f/old"]).await;
    let failed: Result<Committed<()>, _> = store
        .write(|txn| {
            txn.put(b"f/new", b"");
            txn.delete(b"f/old");
            Err(Errno::EEXIST.into())
        })
        .await;
    assert_eq!(failed.err(), Some(MetaError::Op(OpError::Errno(Errno::EEXIST))));
    let found = read(store, |read| Ok(keys_in(read, b"f/", b"f0", 9)?)).await;
    assert_eq!(found, ["f/old"], "a failed operation has written");
    let failed: Result<(), _> = store.read(|_| Err(Errno::ENOENT.into())).await;
    assert_eq!(failed.err(), Some(MetaError::Op(OpError::Errno(Errno::ENOENT))));
}

async fn keys_and_values_of_any_size<M: MetaStore>(store: &M) {
    let long_key = [b"k/".as_slice(), &[0xfe; 280]].concat();
    let values: [(&[u8], Vec<u8>); 3] =
        [(b"k/empty", vec![]), (b"k/large", vec![7; 300 << 10]), (&long_key, vec![0, 1, 2])];
    write(store, |txn| {
        values.iter().for_each(|(key, value)| txn.put(key, value));
        Ok(())
    })
    .await;
    for (key, value) in &values {
        let found = read(store, |read| Ok(read.get(key)?)).await;
        assert_eq!(found.as_deref(), Some(&value[..]), "value of {key:?}");
    }
}

async fn large_transaction<M: MetaStore>(store: &M) {
    let key = |index: u32| [b"l/".as_slice(), &index.to_be_bytes()].concat();
    write(store, |txn| {
        (0..1000).for_each(|index| txn.put(&key(index), &[]));
        Ok(())
    })
    .await;
    let (mut start, mut found) = (key(0), 0);
    loop {
        let page = read(store, |read| Ok(keys_in(read, &start, b"l0", 64)?)).await;
        let Some(last) = page.last() else { break };
        start = [last, [0].as_slice()].concat();
        found += page.len();
    }
    assert_eq!(found, 1000, "pages of a large range");
}

async fn positions_grow_and_sync<M: MetaStore>(store: &M) {
    let mut before = TxnSeq(0);
    for _ in 0..3 {
        let Committed { seq, .. } = write(store, |txn| {
            txn.put(b"p/same", b"same");
            Ok(())
        })
        .await;
        assert!(seq > before, "a later transaction has no higher position");
        assert!(store.last() >= seq, "a transaction that has returned is past the last one");
        before = seq;
    }
    store.sync(before).await.expect("sync");
    assert!(store.synced() >= before, "sync has not passed what it was asked for");
    assert!(store.synced() <= store.last(), "synced is past the last transaction");
    store.sync(TxnSeq(0)).await.expect("a sync of what is durable already");
    write(store, |_| Ok(())).await;
}

async fn no_update_is_lost<M: MetaStore>(store: &M) {
    let adders = (0..8).map(|_| async {
        for _ in 0..8 {
            write(store, |txn| {
                let next = number(txn.as_read(), b"u/count")? + 1;
                txn.put(b"u/count", &next.to_be_bytes());
                Ok(())
            })
            .await;
        }
    });
    join_all(adders).await;
    assert_eq!(read(store, |read| Ok(number(read, b"u/count")?)).await, 64, "updates were lost");
}

async fn one_of_many_takes_a_key<M: MetaStore>(store: &M) {
    for round in 0..8 {
        put(store, &[b"t/token"]).await;
        let takers = (0..4).map(|_| async {
            let taken = write(store, |txn| {
                let taken = txn.get(b"t/token")?.is_some();
                txn.delete(b"t/token");
                Ok(taken)
            });
            taken.await.value
        });
        let taken = join_all(takers).await.into_iter().filter(|taken| *taken).count();
        assert_eq!(taken, 1, "takers of one key in round {round}");
    }
}

/// Two transactions that each write what the other one has read: one of them must be run again.
async fn what_was_read_still_holds<M: MetaStore>(store: &M) {
    for round in 0..16u32 {
        let keys = [0u8, 1].map(|side| [b"d/".as_slice(), &round.to_be_bytes(), &[side]].concat());
        let sides = [(&keys[0], &keys[1]), (&keys[1], &keys[0])].map(|(mine, other)| async move {
            let put = write(store, |txn| {
                let free = txn.get(other)?.is_none();
                if free {
                    txn.put(mine, b"");
                }
                Ok(free)
            });
            put.await.value
        });
        let puts = join_all(sides).await;
        assert_ne!(puts, [true, true], "both transactions of round {round} missed the other one's write");
    }
}

async fn readers_see_one_snapshot<M: MetaStore>(store: &M) {
    let pair = |read: &mut dyn Read| Ok((number(read, b"r/a")?, number(read, b"r/b")?));
    let tasks = (0..6).map(|task| async move {
        for _ in 0..8 {
            if task % 2 == 0 {
                write(store, |txn| {
                    let (a, b) = pair(txn.as_read())?;
                    assert_eq!(a, b, "a write transaction saw half of another one");
                    txn.put(b"r/a", &(a + 1).to_be_bytes());
                    txn.put(b"r/b", &(b + 1).to_be_bytes());
                    Ok(())
                })
                .await;
            } else {
                let (a, b) = read(store, pair).await;
                assert_eq!(a, b, "a reader saw half of a transaction");
            }
        }
    });
    join_all(tasks).await;
    assert_eq!(read(store, pair).await, (24, 24));
}

/// Conflicts, made for certain: a second transaction commits while the operation of the first one runs. Only for
/// stores that hold no lock while an operation runs and whose futures are ready when first polled.
pub async fn nested_conflicts<M: MetaStore>(store: &M) {
    type Step = fn(&mut dyn Txn) -> OpResult<()>;
    let read_it: Step = |txn| txn.get(b"n/x").map(|_| ()).map_err(OpError::from);
    let put_it: Step = |txn| {
        txn.put(b"n/x", b"first");
        Ok(())
    };
    let delete_it: Step = |txn| {
        txn.delete(b"n/x");
        Ok(())
    };
    let scan_it: Step = |txn| txn.scan(b"n/", b"n0", 9).map(|_| ()).map_err(OpError::from);
    let read_other: Step = |txn| txn.get(b"n/y").map(|_| ()).map_err(OpError::from);
    // The first transaction's step, whether a put or delete of its key by the second one makes it run again.
    let cases = [
        ("get", read_it, true),
        ("put", put_it, true),
        ("delete", delete_it, true),
        ("scan", scan_it, false),
        ("other", read_other, false),
    ];
    for (name, step, conflicts) in cases {
        for (present, second) in [(false, put_it), (true, put_it), (true, delete_it)] {
            write(store, |txn| {
                txn.delete(b"n/x");
                if present {
                    txn.put(b"n/x", b"");
                }
                Ok(())
            })
            .await;
            let runs = AtomicU32::new(0);
            write(store, |txn| {
                step(txn)?;
                txn.put(b"n/done", b"");
                if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                    ready(store.write(second)).expect("the second transaction");
                }
                Ok(())
            })
            .await;
            let runs = runs.load(Ordering::Relaxed);
            assert_eq!(
                runs > 1,
                conflicts,
                "{name} against a later write of the key (present: {present}): {runs} runs"
            );
        }
    }
    what_was_known_is_not_taken_for_what_is_there(store).await;
    a_transaction_sees_one_moment(store).await;
    snapshot_outlives_a_commit(store).await;
}

/// A second transaction adds a key and counts it, before one of the first one's reads. What the first returns, and writes,
/// is of one moment, whether it was run again or not.
async fn a_transaction_sees_one_moment<M: MetaStore>(store: &M) {
    let add = |txn: &mut dyn Txn| {
        let count = number(txn.as_read(), b"n/count")? + 1;
        txn.put(b"n/count", &count.to_be_bytes());
        txn.put(&[b"n/m/".as_slice(), &count.to_be_bytes()].concat(), b"");
        Ok(())
    };
    for (writes, reads) in [(true, "gs"), (false, "gs"), (true, "sg"), (false, "sg"), (true, "ss"), (false, "ss")] {
        for before in 0..2 {
            let runs = AtomicU32::new(0);
            let seen = write(store, |txn| {
                let first = runs.fetch_add(1, Ordering::Relaxed) == 0;
                let mut seen = Vec::new();
                for (at, read) in reads.chars().enumerate() {
                    if first && at == before {
                        ready(store.write(add)).expect("the second transaction");
                    }
                    seen.push(match read {
                        'g' => number(txn.as_read(), b"n/count")?,
                        _ => keys_in(txn.as_read(), b"n/m/", b"n/m0", 1000)?.len() as u64,
                    });
                }
                if writes {
                    txn.put(b"n/seen", b"");
                }
                Ok(seen)
            })
            .await
            .value;
            assert_eq!(seen[0], seen[1], "reads {reads}, a commit before read {before}; it writes: {writes}");
        }
    }
}

/// What somebody knew of a key before another transaction wrote it.
async fn what_was_known_is_not_taken_for_what_is_there<M: MetaStore>(store: &M) {
    let set = |value: &'static [u8]| {
        move |txn: &mut dyn Txn| {
            txn.put(b"n/k", value);
            Ok(())
        }
    };
    for known_before in [true, false] {
        write(store, set(b"old")).await;
        let runs = AtomicU32::new(0);
        write(store, |txn| {
            let first = runs.fetch_add(1, Ordering::Relaxed) == 0;
            let known = if first { Bytes::from_static(b"old") } else { Bytes::from_static(b"new") };
            let get = |txn: &mut dyn Txn| match txn.take_known(b"n/k", Some(&known)) {
                true => Ok(Some(known.clone())),
                false => txn.get(b"n/k"),
            };
            let found = if first && known_before { Some(get(txn)?) } else { None };
            if first {
                ready(store.write(set(b"new"))).expect("the second transaction");
            }
            let found = found.map_or_else(|| get(txn), Ok)?;
            txn.put(b"n/copy", &found.unwrap_or_default());
            assert!(!txn.take_known(b"n/copy", Some(b"what others left")), "its own write is what it reads");
            Ok(())
        })
        .await;
        let copy = read(store, |read| Ok(read.get(b"n/copy")?)).await;
        assert_eq!(copy.as_deref(), Some(&b"new"[..]), "known before the other transaction: {known_before}");
    }
}

async fn snapshot_outlives_a_commit<M: MetaStore>(store: &M) {
    put(store, &[b"n/s/1"]).await;
    read(store, |read| {
        let before = keys_in(read, b"n/s/", b"n/s0", 9)?;
        let added = format!("n/s/{}", before.len() + 1);
        ready(store.write(|txn| {
            txn.put(added.as_bytes(), b"");
            Ok(())
        }))
        .expect("a transaction within a read");
        assert_eq!(read.get(added.as_bytes())?, None, "get saw a later transaction");
        assert_eq!(keys_in(read, b"n/s/", b"n/s0", 9)?, before, "scan saw a later transaction");
        Ok(())
    })
    .await;
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the store is not one whose futures are ready when first polled"),
    }
}

/// Numbers of transactions known before a crash.
#[derive(Clone, Copy, Debug)]
pub struct Numbered {
    /// The last one that was synced.
    pub synced: u64,
    /// The last one written.
    pub written: u64,
}

/// Writes `count` numbered transactions and syncs two thirds of them. Crash the store now, open it again, and call
/// `check_after_crash`; this may be repeated.
pub async fn write_before_crash<M: MetaStore>(store: &M, count: u64) -> Numbered {
    let first = read(store, |read| Ok(number(read, b"c/last")?)).await + 1;
    let mut numbers = Numbered { synced: first - 1, written: first - 1 };
    for number in first..first + count {
        let Committed { seq, .. } = write(store, |txn| {
            txn.put(b"c/last", &number.to_be_bytes());
            txn.put(&numbered_key(number), b"");
            Ok(())
        })
        .await;
        numbers.written = number;
        if number == first + count * 2 / 3 {
            store.sync(seq).await.expect("sync");
            numbers.synced = number;
        }
    }
    numbers
}

/// Checks that what is there is a prefix of the transactions, each whole, at least up to the synced one.
/// Returns the number of the last one.
pub async fn check_after_crash<M: MetaStore>(store: &M, numbers: Numbered) -> u64 {
    let last = read(store, |read| Ok(number(read, b"c/last")?)).await;
    assert!(last >= numbers.synced, "synced up to {}, found only {last}", numbers.synced);
    assert!(last <= numbers.written, "found {last}, which was never written");
    let count = read(store, |read| Ok(keys_in(read, &numbered_key(0), &numbered_key(u64::MAX), usize::MAX)?)).await;
    assert_eq!(count.len() as u64, last, "transactions that are there in part");
    let newest = numbered_key(last);
    assert!(last == 0 || count.last().is_some_and(|key| *key == newest), "a hole in the transactions");
    last
}

fn numbered_key(number: u64) -> Vec<u8> {
    [b"c/n/".as_slice(), &number.to_be_bytes()].concat()
}
