//! What tests of every crate share: running metadata operations in memory, a model and its operations, judges, and
//! conformance suites.
//!
//! Owns: the rules that every metadata operation and every store is held to.
//! Leaves to others: the stores under test (`runtime`, `sim`), the world around them.

use alloc::collections::BTreeSet;

use bytes::Bytes;

use crate::env::TxnSeq;
use crate::kv::mem::{MemKv, TxnWrites};
use crate::kv::{KvError, OpError, OpResult, Pairs, Read, Txn};

pub mod disk_conformance;
pub mod judge;
pub mod kv_conformance;
pub mod model;
pub mod ops;
pub mod power_cut;
#[cfg(test)]
pub(crate) mod rng;
pub mod store_conformance;
pub mod stores;

/// How an operation's reads are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// At once, as an embedded store does.
    Direct,
    /// With `Miss` the first time, as a remote store does that fetches and runs the operation again.
    MissFirst,
}

/// Runs `op` on `kv` and commits it.
///
/// In debug builds `op` is run twice on the same snapshot and must read and write the same; nothing is written if it
/// fails.
pub fn run<T>(kv: &mut MemKv, op: impl Fn(&mut dyn Txn) -> OpResult<T>) -> OpResult<T> {
    run_with(kv, Reads::Direct, op)
}

/// As `run`, with reads answered as `reads` says.
pub fn run_with<T>(kv: &mut MemKv, reads: Reads, op: impl Fn(&mut dyn Txn) -> OpResult<T>) -> OpResult<T> {
    loop {
        let (value, writes) = attempt(kv, reads, &op)?;
        if kv.commit(writes).is_ok() {
            return Ok(value);
        }
    }
}

/// Runs `op` on the state of `kv` as it is, without committing what it wrote.
///
/// In debug builds `op` is run twice and must read and write the same.
pub fn attempt<T>(kv: &MemKv, reads: Reads, op: impl Fn(&mut dyn Txn) -> OpResult<T>) -> OpResult<(T, TxnWrites)> {
    let (result, writes) = once(kv, kv.last(), reads, &op);
    if cfg!(debug_assertions) {
        let (again, rewrites) = once(kv, kv.last(), reads, &op);
        assert_eq!(result.as_ref().err(), again.as_ref().err(), "an operation ended in two ways on one snapshot");
        assert_eq!(writes, rewrites, "an operation did two things on one snapshot");
    }
    Ok((result?, writes))
}

/// Runs `op` on the state of `kv` as it is and drops what it wrote.
pub fn peek<T>(kv: &MemKv, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> OpResult<T> {
    attempt(kv, Reads::Direct, |txn| op(txn.as_read())).map(|(value, _)| value)
}

/// As `peek`, with reads answered as `reads` says, and never twice.
pub fn peek_once<T>(kv: &MemKv, reads: Reads, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> OpResult<T> {
    peek_at(kv, kv.last(), reads, op)
}

/// The same of an earlier state. (see `MemKv::begin_at`)
pub fn peek_at<T>(kv: &MemKv, at: TxnSeq, reads: Reads, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> OpResult<T> {
    once(kv, at, reads, |txn| op(txn.as_read())).0
}

fn once<T>(kv: &MemKv, at: TxnSeq, reads: Reads, op: impl Fn(&mut dyn Txn) -> OpResult<T>) -> (OpResult<T>, TxnWrites) {
    let mut fetched = BTreeSet::new();
    loop {
        let mut txn = kv.begin_at(at);
        let mut result = match reads {
            Reads::Direct => op(&mut txn),
            Reads::MissFirst => {
                let before = fetched.len();
                let mut missing = MissingTxn { txn: &mut txn, fetched: &mut fetched, own: BTreeSet::new() };
                let result = op(&mut missing);
                let missed = fetched.len() > before;
                assert!(
                    !missed || matches!(result, Err(OpError::Kv(KvError::Miss))),
                    "an operation did not pass `Miss` up"
                );
                if missed {
                    continue;
                }
                result
            }
        };
        if let Err(OpError::Kv(KvError::Miss)) = result {
            // Everything was there: the operation made the error itself.
            result = Err(OpError::Damaged("`Miss` without a missing read"));
        }
        return (result, txn.finish());
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fetch {
    Key(Bytes),
    Range(Bytes, Bytes, usize),
}

/// Answers `Miss` to reads that were not asked for in an earlier run.
struct MissingTxn<'a> {
    txn: &'a mut dyn Txn,
    fetched: &'a mut BTreeSet<Fetch>,
    own: BTreeSet<Bytes>,
}

impl MissingTxn<'_> {
    fn fetch(&mut self, what: Fetch) -> Result<(), KvError> {
        if self.fetched.insert(what) { Err(KvError::Miss) } else { Ok(()) }
    }
}

impl Read for MissingTxn<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        if !self.own.contains(key) {
            self.fetch(Fetch::Key(Bytes::copy_from_slice(key)))?;
        }
        self.txn.get(key)
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        self.fetch(Fetch::Range(Bytes::copy_from_slice(start), Bytes::copy_from_slice(end), limit))?;
        self.txn.scan(start, end, limit)
    }
}

impl Txn for MissingTxn<'_> {
    fn take_known(&mut self, key: &[u8], known: Option<&[u8]>) -> bool {
        self.txn.take_known(key, known)
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.own.insert(Bytes::copy_from_slice(key));
        self.txn.put(key, value);
    }

    fn put_new(&mut self, key: &[u8], value: &[u8]) {
        self.own.insert(Bytes::copy_from_slice(key));
        self.txn.put_new(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.own.insert(Bytes::copy_from_slice(key));
        self.txn.delete(key);
    }

    fn as_read(&mut self) -> &mut dyn Read {
        self
    }
}

#[cfg(test)]
mod tests;
