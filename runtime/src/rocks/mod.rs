//! The metadata store on RocksDB, embedded: `env::MetaStore` with optimistic transactions of our own.
//!
//! Owns: transactions and their re-runs, group sync of the log, refusing work after a failure, closing.
//! Leaves to others: opening and tuning (`open`), what one transaction reads and writes (`txn`), what RocksDB does not have yet
//! (`pending`), keys (`kiseki_core`).
//!
//! Invariants
//! - A commit reaches the kernel (log not synced) a moment after its future is ready (`handing`); only `sync` makes it durable.
//! - What `open` recovered lies in synced tables before the first operation runs.
//! - After a failed write or sync no later write or sync succeeds; reads go on.
//! - Whoever has the store open holds the lock of its folder until the store is dropped.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use kiseki_core::env::{Committed, MetaError, MetaStore, TxnSeq};
use kiseki_core::kv::{KvError, OpError, OpResult, Read, Txn};
use rocksdb::{DBWithThreadMode, MultiThreaded, WriteOptions};
use tokio::runtime::Handle;

use self::handing::Handing;
pub use self::open::{OpenError, OpenMode};
use self::pending::Pending;
use self::stripes::Stripes;
use self::txn::{Commit, NewestRead, SnapshotRead, WriteTxn};
use crate::rounds::{RoundFailed, Rounds};

mod handing;
mod open;
mod pending;
mod stripes;
mod txn;
mod writes;

type Db = DBWithThreadMode<MultiThreaded>;

/// Conflicts in a row before a transaction is handed back to the caller as `Retry`. With the pauses below this is
/// about a second of bad luck.
const ATTEMPTS_MAX: u32 = 1000;
/// Re-runs that follow a conflict at once; later ones give way first.
const ATTEMPTS_AT_ONCE: u32 = 16;
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// Bytes of commits that RocksDB does not have yet; with more, whoever commits hands them over.
const PENDING_MAX: usize = 1 << 20;

const OPEN: u8 = 0;
const FAILED: u8 = 1;
const CLOSED: u8 = 2;

/// A volume's metadata, in a folder that only this process has open.
pub struct RocksMeta {
    inner: Arc<Inner>,
    handing: Handing,
    handle: Handle,
}

struct Inner {
    // Fields drop in this order: the lock goes last.
    db: Db,
    write_options: WriteOptions,
    stripes: Stripes,
    pending: Pending,
    /// `OPEN`, `FAILED` or `CLOSED`; never goes back.
    state: AtomicU8,
    rounds: Arc<Rounds>,
    _lock: File,
}

impl RocksMeta {
    /// Takes charge of an open database whose contents are synced. `handle` runs the syncs.
    fn new(db: Db, lock: File, handle: Handle) -> io::Result<Self> {
        let mut write_options = WriteOptions::default();
        write_options.set_sync(false);
        write_options.disable_wal(false);
        let stripes = Stripes::new();
        let last = db.latest_sequence_number();
        let (pending, rounds) = (Pending::new(last), Arc::new(Rounds::new(last)));
        let state = AtomicU8::new(OPEN);
        let inner = Arc::new(Inner { db, write_options, stripes, pending, state, rounds, _lock: lock });
        let handed = Arc::clone(&inner);
        let handing = Handing::start(move || _ = handed.write_out())?;
        Ok(Self { inner, handing, handle })
    }

    /// Syncs what was committed and stops RocksDB's threads; later writes and syncs fail. Blocks the calling thread.
    ///
    /// The folder stays locked until the last reference to the store is gone, which should be before the process exits.
    pub fn close(&self) -> Result<(), MetaError> {
        let inner = &self.inner;
        match inner.state.compare_exchange(OPEN, CLOSED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {}
            Err(CLOSED) => return Ok(()),
            Err(_) => return Err(MetaError::Failed),
        }
        inner.rounds.wait_idle();
        if !inner.write_out() {
            return Err(MetaError::Failed);
        }
        let synced = inner.db.flush_wal(true).map_err(|error| {
            tracing::error!(%error, "cannot sync the metadata log while closing it");
            MetaError::Failed
        });
        // With everything in tables the next open has nothing to recover. What fails here is in the log.
        if let Err(error) = inner.db.flush() {
            tracing::warn!(%error, "cannot write metadata tables while closing; the next mount will recover them");
        }
        inner.db.cancel_all_background_work(true);
        synced
    }

    /// Number of log syncs made so far: how well callers are grouped.
    pub fn sync_rounds(&self) -> u64 {
        self.inner.rounds.ended()
    }
}

impl Inner {
    fn check_open(&self) -> Result<(), MetaError> {
        if self.state.load(Ordering::Acquire) == OPEN { Ok(()) } else { Err(MetaError::Failed) }
    }

    /// Refuses every later write and sync. The first failure is an ERROR: nothing that was not synced is safe.
    fn fail(&self, what: &str, error: &rocksdb::Error) {
        match self.state.compare_exchange(OPEN, FAILED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                tracing::error!(%error, "{what}; the metadata store takes no more writes until it is opened again")
            }
            Err(_) => tracing::debug!(%error, "{what}, after an earlier failure"),
        }
    }

    fn write<T>(&self, op: impl Fn(&mut dyn Txn) -> OpResult<T>) -> Result<Committed<T>, MetaError> {
        for attempt in 1..=ATTEMPTS_MAX {
            self.check_open()?;
            let mut txn = WriteTxn::begin(self);
            let value = match op(&mut txn) {
                Ok(value) => value,
                Err(error) if txn.holds() => return Err(error.into()),
                Err(_) => {
                    give_way(attempt);
                    continue;
                }
            };
            match txn.commit() {
                Commit::Done(position) => return Ok(Committed { value, seq: TxnSeq(position) }),
                Commit::Conflict => give_way(attempt),
            }
        }
        tracing::warn!(attempts = ATTEMPTS_MAX, "a metadata transaction lost every race; giving it back");
        Err(MetaError::Retry)
    }

    fn read<T>(&self, op: impl Fn(&mut dyn Read) -> OpResult<T>) -> Result<T, MetaError> {
        match op(&mut NewestRead::new(self)) {
            Err(OpError::Kv(KvError::Miss)) => Ok(op(&mut SnapshotRead::new(self))?),
            answer => Ok(answer?),
        }
    }

    /// Hands what was committed to RocksDB; false if that has failed, now or earlier.
    fn write_out(&self) -> bool {
        // What is left after a failure is not tried again.
        if self.state.load(Ordering::Acquire) == FAILED {
            return false;
        }
        let written = self.pending.write(&self.db, &self.write_options);
        written.map_err(|error| self.fail("cannot write metadata", &error)).is_ok()
    }

    /// One round of group sync, on the blocking pool.
    fn sync_round(&self) -> Result<u64, RoundFailed> {
        // A position counts as reached only once its record is in the log, so it is read before the sync.
        let through = self.pending.last();
        // A failed sync may have dropped what a later one would seem to have written. (`close` waits for rounds.)
        if !self.write_out() {
            return Err(RoundFailed);
        }
        self.db.flush_wal(true).map_err(|error| {
            self.fail("cannot sync the metadata log", &error);
            RoundFailed
        })?;
        Ok(through)
    }
}

impl MetaStore for RocksMeta {
    async fn write<T, F>(&self, op: F) -> Result<Committed<T>, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync,
    {
        let committed = self.inner.write(op)?;
        match self.inner.pending.bytes() {
            0 => {}
            // Whoever commits more than the thread hands over takes its part.
            PENDING_MAX.. => _ = self.inner.write_out(),
            _ => self.handing.soon(),
        }
        Ok(committed)
    }

    async fn read<T, F>(&self, op: F) -> Result<T, MetaError>
    where
        T: Send,
        F: Fn(&mut dyn Read) -> OpResult<T> + Send + Sync,
    {
        self.inner.read(op)
    }

    fn last(&self) -> TxnSeq {
        TxnSeq(self.inner.pending.last())
    }

    fn synced(&self) -> TxnSeq {
        TxnSeq(self.inner.rounds.through())
    }

    async fn sync(&self, seq: TxnSeq) -> Result<(), MetaError> {
        self.inner.check_open()?;
        // No caller can mean more than what is committed, and no round would ever reach it.
        let position = seq.0.min(self.inner.pending.last());
        let inner = Arc::clone(&self.inner);
        let rounds = &self.inner.rounds;
        rounds.wait(&self.handle, position, move || inner.sync_round()).await.map_err(|RoundFailed| MetaError::Failed)
    }
}

/// Whoever caused the conflict has committed, so a re-run usually succeeds at once. Only a crowd on one key needs
/// spreading, by a pause that grows and differs between threads.
fn give_way(attempt: u32) {
    if attempt <= ATTEMPTS_AT_ONCE {
        return;
    }
    if attempt <= 2 * ATTEMPTS_AT_ONCE {
        return std::thread::yield_now();
    }
    let micros = u64::from(attempt) * (5 + u64::from(crate::env::thread_number() % 8));
    std::thread::sleep(Duration::from_micros(micros).min(PAUSE_MAX));
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::runtime::Runtime;

    use super::*;

    const KEYS: u32 = 20_000;

    fn count(meta: &RocksMeta, property: &str) -> u64 {
        meta.inner.db.property_int_value(property).expect("asks").expect("knows")
    }

    fn created() -> (tempfile::TempDir, Runtime, RocksMeta) {
        let (dir, runtime) = (tempfile::tempdir().expect("a folder"), Runtime::new().expect("a runtime"));
        let meta = RocksMeta::open(dir.path(), OpenMode::Create, runtime.handle().clone()).expect("opens");
        (dir, runtime, meta)
    }

    /// `ci/posix.sh`'s fsx came to a crawl: each look at a file stepped over all slices that it had ever had.
    #[test]
    fn tombstones_that_scans_meet_go_away() {
        let (_dir, _runtime, meta) = created();
        for number in 0..KEYS {
            let key = number.to_be_bytes();
            let write = |txn: &mut dyn Txn| {
                txn.put(&key, b"value");
                Ok(())
            };
            meta.inner.write(write).expect("puts");
            let delete = |txn: &mut dyn Txn| {
                txn.delete(&key);
                Ok(())
            };
            meta.inner.write(delete).expect("deletes");
        }
        assert!(meta.inner.write_out());
        assert_eq!(count(&meta, "rocksdb.num-deletes-active-mem-table"), u64::from(KEYS));
        let end = Instant::now() + Duration::from_secs(60);
        // Looked at now and then, as a file is; what is written meanwhile has the memtable written out.
        let entries = || {
            let memory = ["num-entries-active-mem-table", "num-entries-imm-mem-tables"];
            let memory: u64 = memory.iter().map(|name| count(&meta, &format!("rocksdb.{name}"))).sum();
            let tables: u64 = (0..7).map(|level| count_files(&meta, level)).sum();
            memory + tables * u64::from(KEYS)
        };
        while u64::from(KEYS) / 2 < entries() {
            assert!(Instant::now() < end, "tombstones stay: {} entries or tables of them", entries());
            let found = meta.inner.read(|read| Ok(read.scan(&[0], &[0xff], 10)?)).expect("scans");
            assert_eq!(found, []);
            let write = |txn: &mut dyn Txn| {
                txn.delete(&[0]);
                Ok(())
            };
            meta.inner.write(write).expect("writes");
        }
        meta.close().expect("closes");
    }

    #[test]
    fn a_commit_reaches_the_kernel_without_a_sync() {
        let (dir, runtime, meta) = created();
        for round in 0..3u8 {
            let value = [b'a' + round; 100];
            let write = |txn: &mut dyn Txn| {
                txn.put(b"key", &value);
                Ok(())
            };
            runtime.block_on(meta.write(write)).expect("writes");
            let logs = || {
                let files = std::fs::read_dir(dir.path()).expect("a folder").map(|file| file.expect("a file").path());
                files.filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            };
            let holds = |path: std::path::PathBuf| {
                std::fs::read(path).is_ok_and(|bytes| bytes.windows(100).any(|window| window == value))
            };
            let end = Instant::now() + Duration::from_secs(60);
            while !logs().any(holds) {
                assert!(Instant::now() < end, "commit {round} is in no log");
                std::thread::yield_now();
            }
        }
        assert_eq!(meta.sync_rounds(), 0);
    }

    #[test]
    fn a_commit_is_found_before_rocksdb_has_it_and_then() {
        let (_dir, _runtime, meta) = created();
        let inner = &meta.inner;
        let write = |pairs: [(&[u8], Option<&[u8]>); 2]| {
            let write = |txn: &mut dyn Txn| {
                pairs.iter().for_each(|(key, value)| match value {
                    Some(value) => txn.put(key, value),
                    None => txn.delete(key),
                });
                Ok(())
            };
            inner.write(write).expect("writes").seq
        };
        let get = |key: &[u8]| inner.read(|read| Ok(read.get(key)?)).expect("gets").map(|value| value.to_vec());
        let scan = || inner.read(|read| Ok(read.scan(b"a", b"z", 10)?)).expect("scans").len();
        let first = write([(b"a", Some(b"1")), (b"b", Some(b"1"))]);
        let second = write([(b"a", Some(b"2")), (b"b", None)]);
        assert!(first < second && second == meta.last());
        for written in [false, true] {
            if written {
                assert!(inner.write_out());
                assert!(inner.pending.unwritten().is_empty() && inner.pending.bytes() == 0);
            }
            assert_eq!((get(b"a"), get(b"b")), (Some(b"2".to_vec()), None));
        }
        write([(b"b", Some(b"3")), (b"c", Some(b"3"))]);
        assert_eq!(inner.pending.unwritten().len(), 2);
        assert_eq!(scan(), 3, "a scan has it written");
        assert_eq!((get(b"b"), inner.pending.bytes()), (Some(b"3".to_vec()), 0));
    }

    #[test]
    fn what_came_and_went_meanwhile_is_not_written() {
        let (_dir, _runtime, meta) = created();
        let inner = &meta.inner;
        let put_new = |txn: &mut dyn Txn| {
            txn.put_new(b"key", b"value");
            Ok(())
        };
        let delete = |txn: &mut dyn Txn| {
            txn.delete(b"key");
            Ok(())
        };
        let entries = || count(&meta, "rocksdb.num-entries-active-mem-table");
        for written_between in [false, true] {
            let before = entries();
            inner.write(put_new).expect("puts");
            assert!(!written_between || inner.write_out());
            inner.write(delete).expect("deletes");
            assert!(inner.write_out());
            assert_eq!(entries() - before, if written_between { 2 } else { 0 });
            assert_eq!(inner.read(|read| Ok(read.get(b"key")?)).expect("gets"), None);
        }
    }

    #[test]
    fn commits_of_one_batch_are_merged_by_whole_keys() {
        let (_dir, _runtime, meta) = created();
        let inner = &meta.inner;
        let long = |end: &str| [&[b'k'; 20], end.as_bytes()].concat();
        let keys = [long("b"), long("a"), long(""), b"k".to_vec(), b"k\0".to_vec(), b"k\0\0".to_vec()];
        for round in 1..=3u8 {
            for key in &keys {
                let write = |txn: &mut dyn Txn| {
                    txn.put(key, &[round, key.len() as u8]);
                    Ok(())
                };
                inner.write(write).expect("puts");
            }
            let delete = |txn: &mut dyn Txn| {
                txn.delete(&keys[usize::from(round)]);
                Ok(())
            };
            inner.write(delete).expect("deletes");
        }
        assert!(inner.write_out() && inner.pending.bytes() == 0);
        let mut expected: Vec<_> = keys.iter().map(|key| (key.clone(), vec![3, key.len() as u8])).collect();
        expected.remove(3);
        expected.sort();
        let found = inner.read(|read| Ok(read.scan(b"k", b"l", 10)?)).expect("scans");
        assert_eq!(found.into_iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect::<Vec<_>>(), expected);
        // The memory of those that are written is used again, and holds nothing of them.
        assert_eq!((inner.pending.writes().len(), inner.pending.writes().bytes()), (0, 0));
    }

    fn count_files(meta: &RocksMeta, level: u32) -> u64 {
        let value = meta.inner.db.property_value(&format!("rocksdb.num-files-at-level{level}"));
        value.expect("asks").expect("knows").parse().expect("a number")
    }
}
