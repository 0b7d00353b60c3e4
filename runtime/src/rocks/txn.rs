//! What one metadata operation sees of RocksDB: a transaction, or a snapshot.
//!
//! Owns: snapshots, tracking of reads, bounded scans. Leaves to others: beginning and re-running (`rocks`).
//!
//! Invariants
//! - All reads of one operation see one snapshot (a write transaction's reads also its own writes).
//! - Every `get` of a write transaction is tracked at its snapshot; scans are not.
//! - A transaction that wrote nothing commits nothing.

use bytes::Bytes;
use kiseki_core::kv::{KvError, Pairs, Read, Txn};
use rocksdb::{DBAccess, DBRawIteratorWithThreadMode, ReadOptions, SnapshotWithThreadMode, Transaction};

use super::Db;

/// A write transaction at its snapshot.
pub(super) struct WriteTxn<'db> {
    txn: Transaction<'db, Db>,
    /// Reads at the transaction's snapshot.
    options: ReadOptions,
    wrote: bool,
    /// The first write that the transaction refused; then it cannot commit.
    refused: Option<rocksdb::Error>,
}

impl<'db> WriteTxn<'db> {
    /// Wraps a transaction that set its snapshot when it began.
    pub(super) fn begin(txn: Transaction<'db, Db>) -> Self {
        let mut options = ReadOptions::default();
        options.set_snapshot(&txn.snapshot());
        Self { txn, options, wrote: false, refused: None }
    }

    pub(super) fn commit(self) -> Result<(), rocksdb::Error> {
        match self.refused {
            Some(error) => Err(error),
            None if self.wrote => self.txn.commit(),
            None => Ok(()),
        }
    }

    fn note(&mut self, written: Result<(), rocksdb::Error>) {
        self.wrote = true;
        if let Err(error) = written {
            self.refused.get_or_insert(error);
        }
    }
}

impl Read for WriteTxn<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let value = self.txn.get_pinned_for_update_opt(key, true, &self.options).map_err(read_failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        if start >= end || limit == 0 {
            return Ok(Pairs::new());
        }
        let mut options = bounded(start, end, limit);
        options.set_snapshot(&self.txn.snapshot());
        collect(self.txn.raw_iterator_opt(options), start, end, limit)
    }
}

impl Txn for WriteTxn<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        let written = self.txn.put(key, value);
        self.note(written);
    }

    fn delete(&mut self, key: &[u8]) {
        let written = self.txn.delete(key);
        self.note(written);
    }

    fn as_read(&mut self) -> &mut dyn Read {
        self
    }
}

/// Reads without tracking.
pub(super) struct SnapshotRead<'db> {
    db: &'db Db,
    /// Made by the first read.
    at: Option<(SnapshotWithThreadMode<'db, Db>, ReadOptions)>,
}

impl<'db> SnapshotRead<'db> {
    pub(super) fn new(db: &'db Db) -> Self {
        Self { db, at: None }
    }

    fn at(&mut self) -> &(SnapshotWithThreadMode<'db, Db>, ReadOptions) {
        self.at.get_or_insert_with(|| {
            let snapshot = self.db.snapshot();
            let mut options = ReadOptions::default();
            options.set_snapshot(&snapshot);
            (snapshot, options)
        })
    }
}

impl Read for SnapshotRead<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let db = self.db;
        let (_, options) = self.at();
        let value = db.get_pinned_opt(key, options).map_err(read_failed)?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError> {
        if start >= end || limit == 0 {
            return Ok(Pairs::new());
        }
        let (snapshot, _) = self.at();
        collect(snapshot.raw_iterator_opt(bounded(start, end, limit)), start, end, limit)
    }
}

/// Longest page whose blocks are worth keeping in the cache: more than a directory page of the kernel asks for.
const PAGE_CACHED_MAX: usize = 1024;

fn bounded(start: &[u8], end: &[u8], limit: usize) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    // Long scans (fsck, sweeps, large folders) must not push everything else out of the block cache.
    options.fill_cache(limit <= PAGE_CACHED_MAX);
    options
}

fn collect<D: DBAccess>(
    mut iterator: DBRawIteratorWithThreadMode<'_, D>,
    start: &[u8],
    end: &[u8],
    limit: usize,
) -> Result<Pairs, KvError> {
    let mut pairs = Pairs::new();
    iterator.seek(start);
    while pairs.len() < limit
        && let Some((key, value)) = iterator.item()
    {
        // A transaction's own writes are merged in above the bounds of the snapshot's iterator.
        if key >= end {
            break;
        }
        pairs.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        if pairs.len() < limit {
            iterator.next();
        }
    }
    iterator.status().map_err(read_failed)?;
    Ok(pairs)
}

#[cold]
fn read_failed(error: rocksdb::Error) -> KvError {
    tracing::error!(%error, "cannot read metadata");
    KvError::Failed
}
