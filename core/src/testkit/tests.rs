//! The suites themselves, on stores in memory: a right one passes, and a wrong one of each kind does not.

extern crate std;

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::future::Future;
use core::ops::Range;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::*;
use crate::env::{Committed, MetaError, MetaStore, ObjectPage, ObjectStore, StoreError, TxnSeq};

/// Runs a future that only ever waits for its turn.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

/// Suspends `rounds` times.
async fn suspend(mut rounds: u32) {
    core::future::poll_fn(|_| match rounds.checked_sub(1) {
        Some(left) => {
            rounds = left;
            Poll::Pending
        }
        None => Poll::Ready(()),
    })
    .await;
}

/// What is wrong with a store.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    /// Takes transactions whatever changed since their snapshot.
    NoConflicts,
    /// Writes what a failed operation has written.
    CommitsFailures,
    /// Says that it has synced and has not.
    EmptySync,
    /// Gives a short range what there is of it.
    ShortRanges,
    /// Ends a list after its first page.
    OnePage,
    /// Forgets what it was told to keep.
    EmptyBarrier,
}

struct Meta {
    kv: Mutex<MemKv>,
    synced: Mutex<TxnSeq>,
    /// Turns that others get between snapshot and commit.
    latency: u32,
    fault: Fault,
}

impl Meta {
    fn new(latency: u32, fault: Fault) -> Self {
        Self { kv: Mutex::default(), synced: Mutex::default(), latency, fault }
    }

    fn crash(&self) {
        self.kv.lock().unwrap().rollback_to(*self.synced.lock().unwrap());
    }
}

impl MetaStore for Meta {
    async fn write<T, F>(&self, op: F) -> Result<Committed<T>, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync,
    {
        loop {
            let snapshot = self.kv.lock().unwrap().clone();
            let (value, writes) = if self.fault == Fault::CommitsFailures {
                let mut txn = snapshot.begin();
                let result = op(&mut txn);
                (result, txn.finish())
            } else if self.latency == 0 {
                let mut txn = snapshot.begin();
                (Ok(op(&mut txn)?), txn.finish())
            } else {
                let (value, writes) = attempt(&snapshot, Reads::MissFirst, &op)?;
                (Ok(value), writes)
            };
            suspend(self.latency).await;
            let mut kv = self.kv.lock().unwrap();
            let writes = if self.fault == Fault::NoConflicts {
                let mut txn = kv.begin();
                writes.writes().for_each(|(key, value)| match value {
                    Some(value) => txn.put(key, value),
                    None => txn.delete(key),
                });
                txn.finish()
            } else {
                writes
            };
            if let Ok(seq) = kv.commit(writes) {
                kv.check();
                return Ok(Committed { value: value?, seq });
            }
        }
    }

    async fn read<T, F>(&self, op: F) -> Result<T, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Read) -> OpResult<T> + Send + Sync,
    {
        let snapshot = self.kv.lock().unwrap().clone();
        suspend(self.latency).await;
        let mut txn = snapshot.begin();
        Ok(op(&mut txn)?)
    }

    fn last(&self) -> TxnSeq {
        self.kv.lock().unwrap().last()
    }

    fn synced(&self) -> TxnSeq {
        *self.synced.lock().unwrap()
    }

    async fn sync(&self, seq: TxnSeq) -> Result<(), MetaError> {
        suspend(self.latency).await;
        if self.fault != Fault::EmptySync {
            let mut synced = self.synced.lock().unwrap();
            *synced = seq.max(*synced);
        }
        Ok(())
    }
}

struct Objects {
    objects: Mutex<BTreeMap<String, (Vec<u8>, bool)>>,
    fault: Fault,
}

impl Objects {
    fn new(fault: Fault) -> Self {
        Self { objects: Mutex::default(), fault }
    }

    fn crash(&self) {
        self.objects.lock().unwrap().retain(|_, (_, durable)| *durable);
    }
}

impl ObjectStore for Objects {
    async fn put(&self, key: &str, body: Vec<Bytes>) -> Result<(), StoreError> {
        suspend(1).await;
        self.objects.lock().unwrap().insert(key.to_owned(), (body.concat(), false));
        Ok(())
    }

    async fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        suspend(1).await;
        let objects = self.objects.lock().unwrap();
        let (body, _) = objects.get(key).ok_or(StoreError::NotFound)?;
        let range = range.start as usize..range.end as usize;
        match body.get(range.clone()) {
            Some(part) => Ok(Bytes::copy_from_slice(part)),
            None if self.fault == Fault::ShortRanges => {
                Ok(Bytes::copy_from_slice(&body[range.start.min(body.len())..]))
            }
            None => Err(StoreError::Short),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }

    async fn barrier(&self) -> Result<(), StoreError> {
        if self.fault != Fault::EmptyBarrier {
            self.objects.lock().unwrap().values_mut().for_each(|(_, durable)| *durable = true);
        }
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        let objects = self.objects.lock().unwrap();
        let keys = objects.keys().filter(|key| key.starts_with(prefix) && after.is_none_or(|after| &key[..] > after));
        let mut keys: Vec<String> = keys.take(4).cloned().collect();
        let next = (keys.len() == 4 && self.fault != Fault::OnePage).then(|| {
            keys.truncate(3);
            keys[2].clone()
        });
        Ok(ObjectPage { keys, next })
    }
}

fn fails(test: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(test)).is_err()
}

#[test]
fn meta_suite_passes_on_a_right_store() {
    block_on(kv_conformance::run(&Meta::new(0, Fault::Nothing)));
    block_on(kv_conformance::run(&Meta::new(3, Fault::Nothing)));
    block_on(kv_conformance::nested_conflicts(&Meta::new(0, Fault::Nothing)));
}

#[test]
fn meta_suite_fails_on_a_wrong_store() {
    assert!(fails(|| block_on(kv_conformance::run(&Meta::new(3, Fault::NoConflicts)))));
    assert!(fails(|| block_on(kv_conformance::nested_conflicts(&Meta::new(0, Fault::NoConflicts)))));
    assert!(fails(|| block_on(kv_conformance::run(&Meta::new(0, Fault::CommitsFailures)))));
    assert!(fails(|| block_on(kv_conformance::run(&Meta::new(0, Fault::EmptySync)))));
}

fn crash_meta(fault: Fault) {
    let store = Meta::new(0, fault);
    for _ in 0..3 {
        let numbers = block_on(kv_conformance::write_before_crash(&store, 10));
        store.crash();
        assert_eq!(block_on(kv_conformance::check_after_crash(&store, numbers)), numbers.synced);
    }
}

#[test]
fn crash_suite_of_meta_tells_right_from_wrong() {
    crash_meta(Fault::Nothing);
    assert!(fails(|| crash_meta(Fault::EmptySync)));
}

#[test]
fn object_suite_tells_right_from_wrong() {
    let suite = |fault| block_on(store_conformance::run(&Objects::new(fault), 50));
    suite(Fault::Nothing);
    assert!(fails(|| suite(Fault::ShortRanges)));
    assert!(fails(|| suite(Fault::OnePage)));
}

fn crash_objects(fault: Fault) -> usize {
    let store = Objects::new(fault);
    let numbers = block_on(store_conformance::put_before_crash(&store, 20));
    store.crash();
    block_on(store_conformance::check_after_crash(&store, numbers))
}

#[test]
fn crash_suite_of_objects_tells_right_from_wrong() {
    assert_eq!(crash_objects(Fault::Nothing), 7);
    assert!(fails(|| assert_eq!(crash_objects(Fault::EmptyBarrier), 7)));
}

#[test]
fn operation_that_differs_between_runs_is_caught() {
    let runs = core::cell::Cell::new(0u8);
    let mut kv = MemKv::new();
    let unsteady = |txn: &mut dyn Txn| {
        runs.set(runs.get() + 1);
        txn.put(b"key", &[runs.get()]);
        Ok(())
    };
    assert!(fails(|| run(&mut kv, unsteady).unwrap()));
}

#[test]
fn missing_reads_are_asked_for_one_by_one() {
    let mut kv = MemKv::new();
    run(&mut kv, |txn| {
        txn.put(b"a", b"1");
        txn.put(b"b", b"2");
        Ok(())
    })
    .unwrap();
    let runs = core::cell::Cell::new(0);
    let read = run_with(&mut kv, Reads::MissFirst, |txn| {
        runs.set(runs.get() + 1);
        txn.put(b"own", b"");
        txn.get(b"own")?;
        Ok((txn.get(b"a")?, txn.get(b"b")?, txn.scan(b"a", b"c", 9)?.len()))
    });
    assert_eq!(read.unwrap(), (Some("1".into()), Some("2".into()), 2));
    // Three reads are missed, the fourth run has them all, and everything is run twice in debug builds.
    assert_eq!(runs.get(), if cfg!(debug_assertions) { 8 } else { 4 });
}

#[test]
fn operation_that_swallows_a_miss_is_caught() {
    let mut kv = MemKv::new();
    let swallow = |txn: &mut dyn Txn| Ok(txn.get(b"a").is_ok());
    assert!(fails(|| assert!(run_with(&mut kv, Reads::MissFirst, swallow).unwrap())));
    let invent = |_: &mut dyn Txn| -> OpResult<()> { Err(KvError::Miss.into()) };
    assert!(matches!(run(&mut kv, invent), Err(OpError::Damaged(_))));
    assert_eq!(vec![run(&mut kv, |_| Ok(1))], [Ok(1)]);
}
