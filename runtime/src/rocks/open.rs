//! Opening the metadata folder: who may, what is recovered, how RocksDB is tuned.
//!
//! Owns: the folder's lock, creating a store, errors that tell a person what to do, options.
//! Leaves to others: everything after (`rocks`).
//!
//! Invariants
//! - Opening an existing store creates nothing when it fails, and touches no file of a store that is in use.
//! - What was recovered from the log is in synced tables before `open` returns.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rocksdb::{BlockBasedOptions, Cache, DBCompactionStyle, DBCompressionType, ErrorKind, LogLevel, Options};
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::Handle;

use super::{Db, RocksMeta};
use crate::folders;

/// Locked by whoever has the store open, and the mark of a folder that Kiseki made. (RocksDB's own LOCK is taken only
/// after it has moved the log file of the running process away.)
const LOCK_FILE: &str = "kiseki.lock";
/// Every RocksDB has this file.
const CURRENT_FILE: &str = "CURRENT";

/// What `RocksMeta::open` expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// No store: the folder is absent or empty, and a store is made in it.
    Create,
    /// A store.
    Existing,
    /// Either: a store is made if there is none.
    CreateOrExisting,
}

/// Why a metadata folder was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such folder.
    #[error("there is no metadata folder {}", .0.display())]
    Missing(PathBuf),
    /// The folder holds something else, or the path is not a folder.
    #[error("{} is not a Kiseki metadata folder", .0.display())]
    NotAStore(PathBuf),
    /// `OpenMode::Create` found a store.
    #[error("{} already holds Kiseki metadata", .0.display())]
    Exists(PathBuf),
    /// Another process, or this one, has it open.
    #[error("the metadata in {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// RocksDB found its files damaged.
    #[error("the metadata in {} is damaged: {text}", .path.display())]
    Corrupt {
        /// The folder.
        path: PathBuf,
        /// RocksDB's words.
        text: String,
    },
    /// The operating system or RocksDB failed.
    #[error("cannot open the metadata in {}: {text}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What failed.
        text: String,
    },
}

impl RocksMeta {
    /// Opens the store in the folder `path`, recovers it, and syncs what was recovered. Syncs run on `handle`.
    pub fn open(path: &Path, mode: OpenMode, handle: Handle) -> Result<Self, OpenError> {
        let io_error = |error: io::Error| OpenError::Io { path: path.to_owned(), text: error.to_string() };
        let create = match (holds_store(path)?, mode) {
            (true, OpenMode::Existing | OpenMode::CreateOrExisting) => false,
            (true, OpenMode::Create) => return Err(OpenError::Exists(path.to_owned())),
            (false, OpenMode::Create | OpenMode::CreateOrExisting) => true,
            (false, OpenMode::Existing) if path.is_dir() => return Err(OpenError::NotAStore(path.to_owned())),
            (false, OpenMode::Existing) => return Err(OpenError::Missing(path.to_owned())),
        };
        if create {
            folders::create_synced(path).map_err(io_error)?;
        }
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(lock_path);
        let lock = lock.map_err(io_error)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::Locked(path.to_owned())),
            Err(errno) => return Err(io_error(errno.into())),
        }
        let mut options = options();
        options.create_if_missing(create);
        options.set_error_if_exists(create);
        let db = Db::open(&options, path).map_err(|error| explain(path, &error))?;
        // Not among the functions of `Options`.
        db.set_options(&SCANS_OF_NOTHING).map_err(|error| explain(path, &error))?;
        // RocksDB writes recovered memtables to tables while opening; this waits for whatever it left in memory.
        db.flush().and_then(|()| db.flush_wal(true)).map_err(|error| explain(path, &error))?;
        if create {
            folders::sync(path).map_err(io_error)?;
        }
        Self::new(db, lock, handle).map_err(io_error)
    }
}

/// Whether the folder holds a store of ours; an error if it holds something else.
fn holds_store(path: &Path) -> Result<bool, OpenError> {
    let io_error = |error: io::Error| OpenError::Io { path: path.to_owned(), text: error.to_string() };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(OpenError::NotAStore(path.to_owned()));
        }
        Err(error) => return Err(io_error(error)),
    };
    let (mut current, mut lock, mut other) = (false, false, false);
    for entry in entries {
        match entry.map_err(io_error)?.file_name().as_encoded_bytes() {
            name if name == CURRENT_FILE.as_bytes() => current = true,
            name if name == LOCK_FILE.as_bytes() => lock = true,
            _ => other = true,
        }
    }
    match (lock, current) {
        (true, true) => Ok(true),
        // Made by a process that ended before RocksDB had made its files.
        (true, false) => Ok(false),
        (false, true) => Err(OpenError::NotAStore(path.to_owned())),
        (false, false) if other => Err(OpenError::NotAStore(path.to_owned())),
        (false, false) => Ok(false),
    }
}

fn explain(path: &Path, error: &rocksdb::Error) -> OpenError {
    let (path, text) = (path.to_owned(), error.to_string());
    match error.kind() {
        ErrorKind::Corruption => OpenError::Corrupt { path, text },
        ErrorKind::IOError if text.contains("/LOCK: ") => OpenError::Locked(path),
        ErrorKind::NotFound
        | ErrorKind::NotSupported
        | ErrorKind::InvalidArgument
        | ErrorKind::IOError
        | ErrorKind::MergeInProgress
        | ErrorKind::Incomplete
        | ErrorKind::ShutdownInProgress
        | ErrorKind::TimedOut
        | ErrorKind::Aborted
        | ErrorKind::Busy
        | ErrorKind::Expired
        | ErrorKind::TryAgain
        | ErrorKind::CompactionTooLarge
        | ErrorKind::ColumnFamilyDropped
        | ErrorKind::Unknown => OpenError::Io { path, text },
    }
}

/// What RocksDB keeps of its files. What is asked for often is in the client's cache of metadata, before this one.
const BLOCK_CACHE_BYTES: usize = 32 << 20;
/// One memtable. Two are in memory: that one, and what is being written out.
/// 1,000,000 names made and removed take 218 MiB (`ci/entries.sh`); with four times as much of these and twice the cache
/// they took 377 MiB, and were made no faster.
const WRITE_BUFFER_BYTES: usize = 16 << 20;

/// Log files that are used again: as many as there are at once at most, and one.
const LOGS_KEPT: usize = 4;

/// Slices that are overwritten leave tombstones, which the next look at their chunk has to step over: a file that is
/// written over and over made all looks slower until the memtable was full. One that meets so many writes the memtable out,
/// and compaction then drops them (`options`). With a quarter of these numbers as many files of all lengths were begun that few
/// were used again over their whole length: appends of 4 KiB with fdatasync were 0.82 as fast, and overwriting no faster;
/// with four times as many, overwriting and fsync was 0.75 as fast.
const SCANS_OF_NOTHING: [(&str, &str); 2] =
    [("memtable_op_scan_flush_trigger", "1024"), ("memtable_avg_op_scan_flush_trigger", "256")];
/// Tombstones among so many entries in a row that make a table worth compacting.
const TOMBSTONES: (usize, usize) = (1024, 512);

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    // Most gets of a create or a lookup are of absent keys: ten bits a key answer 99 in 100 of them without a read.
    table.set_bloom_filter(10.0, false);
    table.set_whole_key_filtering(true);
    table.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    // Indexes and filters count against the cache, so that memory stays bounded however large the volume grows.
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);

    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    options.set_compaction_style(DBCompactionStyle::Level);
    options.add_compact_on_deletion_collector_factory(TOMBSTONES.0, TOMBSTONES.1, 0.5);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    // As many memtables in the first level and as large a table as with RocksDB's own sizes.
    options.set_max_bytes_for_level_base(4 * WRITE_BUFFER_BYTES as u64);
    options.set_target_file_size_base(WRITE_BUFFER_BYTES as u64);
    // A filter over each memtable too, for the same absent keys.
    options.set_memtable_whole_key_filtering(true);
    options.set_memtable_prefix_bloom_ratio(0.02);
    // A log file that overwrites an old one is synced without the file system's journal.
    options.set_recycle_log_file_num(LOGS_KEPT);
    options.set_max_background_jobs(2);
    options.set_max_open_files(1024);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}
