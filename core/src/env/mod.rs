//! The outside world, as the client sees it. `runtime` and `sim` implement it.
//!
//! Every call is a detached operation with one of three outcomes (applied, not applied, unknown): it may take effect
//! after its deadline, and dropping its future changes nothing about whether it does.

use alloc::string::String;
use alloc::vec::Vec;
use core::future::Future;
use core::ops::Range;
use core::time::Duration;

use bytes::Bytes;

use crate::kv::{OpError, OpResult, Read, Txn};
use crate::types::Timestamp;

/// Position in the metadata log: every transaction has one, later transactions have higher ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TxnSeq(pub u64);

/// A transaction that is visible, and durable once `MetaStore::sync` has passed `seq`.
#[derive(Clone, Copy, Debug)]
pub struct Committed<T> {
    /// What the operation returned.
    pub value: T,
    /// Its position in the metadata log.
    pub seq: TxnSeq,
}

/// Why a transaction gave no `Committed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The operation itself declined; nothing was written.
    #[error(transparent)]
    Op(OpError),
    /// Not applied; the same call may succeed later.
    #[error("the metadata store did not take the transaction")]
    Retry,
    /// It may have been applied or may yet be.
    #[error("the outcome of the transaction is unknown")]
    Unknown,
    /// The store has failed and takes no more writes until it is opened again.
    #[error("the metadata store has failed; mount the volume again")]
    Failed,
}

impl From<OpError> for MetaError {
    fn from(error: OpError) -> Self {
        Self::Op(error)
    }
}

/// The transactional store of metadata.
pub trait MetaStore: Send + Sync + 'static {
    /// Runs `op` on a snapshot and commits what it wrote, not synced; on a conflict runs it again on a newer snapshot.
    /// If `op` fails nothing is written. On an embedded store the future is ready when first polled.
    fn write<T, F>(&self, op: F) -> impl Future<Output = Result<Committed<T>, MetaError>> + Send
    where
        T: Send,
        F: Fn(&mut dyn Txn) -> OpResult<T> + Send + Sync;

    /// Runs `op` on a snapshot.
    fn read<T, F>(&self, op: F) -> impl Future<Output = Result<T, MetaError>> + Send
    where
        T: Send,
        F: Fn(&mut dyn Read) -> OpResult<T> + Send + Sync;

    /// Position of the last transaction committed; a transaction that has returned is at or below it.
    fn last(&self) -> TxnSeq;

    /// Highest position known to be durable.
    fn synced(&self) -> TxnSeq;

    /// Makes every transaction up to `seq` durable. Callers are grouped. After a failed sync every later one fails.
    fn sync(&self, seq: TxnSeq) -> impl Future<Output = Result<(), MetaError>> + Send;
}

/// Why the object store gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("no such object")]
    NotFound,
    /// The object is shorter than the range asked for.
    #[error("the object is shorter than expected")]
    Short,
    /// No space left in the store.
    #[error("no space left in the object store")]
    Full,
    /// The store refuses this client.
    #[error("the object store denies access")]
    Denied,
    /// A passing failure; a put may have been applied or may yet be.
    #[error("the object store failed for now")]
    Retry,
}

/// A page of `ObjectStore::list`.
#[derive(Clone, Debug, Default)]
pub struct ObjectPage {
    /// Keys in ascending order.
    pub keys: Vec<String>,
    /// Where to go on, if there is more.
    pub next: Option<String>,
}

/// The store of immutable objects. Keys are relative to the volume's prefix, without a leading slash.
pub trait ObjectStore: Send + Sync + 'static {
    /// Writes the object whole: `body` concatenated. Durable after a `barrier` that began after this returned.
    fn put(&self, key: &str, body: Vec<Bytes>) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Reads exactly `range`, or fails (`Short` if the object ends before).
    fn get(&self, key: &str, range: Range<u64>) -> impl Future<Output = Result<Bytes, StoreError>> + Send;
    /// As `get`; a copy beside what is stored for good is left alone.
    fn get_stored(&self, key: &str, range: Range<u64>) -> impl Future<Output = Result<Bytes, StoreError>> + Send {
        self.get(key, range)
    }
    /// Removes the object; succeeds if it is not there. Until a `barrier` that began after this returned, a power cut
    /// may bring it back.
    fn delete(&self, key: &str) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Makes every put and delete that had returned before the call durable.
    fn barrier(&self) -> impl Future<Output = Result<(), StoreError>> + Send;
    /// Keys that start with `prefix` (which ends with `/`), recursively, after `after` (exclusive). A `barrier` that began
    /// after this returned makes it durable that the others directly below `prefix` are not there.
    fn list(&self, prefix: &str, after: Option<&str>) -> impl Future<Output = Result<ObjectPage, StoreError>> + Send;
    /// Nobody puts anything any more: ends, as far as that can be now, what would make the next mount put again.
    fn finish(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
    /// Whether objects that earlier mounts have put are still on their way to where a `list` of the store finds them for good.
    fn is_arriving(&self) -> bool {
        false
    }
    /// What was given of the object is not what it should be: where there are several copies, another is to be taken from
    /// here on.
    fn distrust(&self, _key: &str) {}
    /// Bytes that were put may be shared with others, who have let go of some: they are wanted as memory.
    fn trim(&self) {}
    /// Whether a put that this store begins by itself, now or at the next mount, may take effect after its object was
    /// deleted.
    fn is_unsure(&self) -> bool {
        false
    }
}

/// Why the disk of the write-back log gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// No space left.
    #[error("no space left on the disk of the write-back log")]
    Full,
    /// There is no such file, or it ends before the range does.
    #[error("a file of the write-back log is missing or short")]
    Missing,
    /// Anything else.
    #[error("the disk of the write-back log failed")]
    Failed,
}

/// The folder of a write-back log on a local disk: numbered segment files, and one file that says whose it is.
pub trait Disk: Send + Sync + 'static {
    /// Numbers and lengths of the segments that are there, ascending.
    fn segments(&self) -> impl Future<Output = Result<Vec<(u64, u64)>, DiskError>> + Send;
    /// Makes an empty segment, in place of one that is there. Its name is durable once a `sync` of it has returned.
    fn create(&self, segment: u64) -> impl Future<Output = Result<(), DiskError>> + Send;
    /// Writes `body`, concatenated, at `at`; what lies between the end and `at` reads as zeros. Durable after a `sync`
    /// that began after this returned; a power cut may leave any part of it before that. Where `at` and the length of the
    /// first piece are multiples of `format::log::PAGE`, nothing else is written to the pages that it touches.
    fn write(&self, segment: u64, at: u64, body: Vec<Bytes>) -> impl Future<Output = Result<(), DiskError>> + Send;
    /// Makes every write to the segment that had returned before the call durable. After a failed sync nothing may be
    /// assumed of what no earlier one has covered.
    fn sync(&self, segment: u64) -> impl Future<Output = Result<(), DiskError>> + Send;
    /// Reads exactly `range`.
    fn read(&self, segment: u64, range: Range<u64>) -> impl Future<Output = Result<Bytes, DiskError>> + Send;
    /// Removes the segment, durably; succeeds if it is not there.
    fn remove(&self, segment: u64) -> impl Future<Output = Result<(), DiskError>> + Send;
    /// As `remove`; but what is in the segment can be read until `release`, or until the disk wants the room.
    fn detach(&self, segment: u64) -> impl Future<Output = Result<(), DiskError>> + Send;
    /// A segment that was detached is read no more.
    fn release(&self, segment: u64) -> impl Future<Output = ()> + Send;
    /// Keeps the segment under another name, where `segments` does not show it.
    fn set_aside(&self, segment: u64) -> impl Future<Output = Result<(), DiskError>> + Send;
    /// What `set_owner` left last, if anything.
    fn owner(&self) -> impl Future<Output = Result<Option<Bytes>, DiskError>> + Send;
    /// Replaces the owner's file, whole and durably.
    fn set_owner(&self, owner: Bytes) -> impl Future<Output = Result<(), DiskError>> + Send;
}

/// The world of one client.
pub trait Env: Clone + Send + Sync + 'static {
    /// The metadata store.
    type Meta: MetaStore;
    /// The object store.
    type Objects: ObjectStore;

    /// The metadata store.
    fn meta(&self) -> &Self::Meta;
    /// The object store.
    fn objects(&self) -> &Self::Objects;
    /// Monotonic time since some fixed point.
    fn now(&self) -> Duration;
    /// Wall-clock time.
    fn wall(&self) -> Timestamp;
    /// Completes at `at` of `now`'s clock or soon after.
    fn sleep_until(&self, at: Duration) -> impl Future<Output = ()> + Send;
    /// Runs `task` to its end on the executor.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
    /// Does `work`. What it spawns, and what that spawns, may begin on this thread before this returns, where that saves the
    /// way to another.
    fn here(&self, work: impl FnOnce()) {
        work();
    }
    /// Which counter stripe this caller should use, below `STRIPES`; callers that run at once should differ.
    fn stripe(&self) -> u8;
    /// Requests come one after the other: what nobody waits for leaves the machine to them.
    fn is_busy(&self) -> bool {
        false
    }
    /// Awaited before each lock: ready at once outside the simulator, which may suspend here.
    fn pause(&self) -> impl Future<Output = ()> + Send;
    /// Called when a `Point` begins and when it has ended: nothing outside tests, which end the process or the node
    /// there.
    fn at(&self, _point: Point, _edge: Edge) {}
}

/// Work in which a crash is most instructive; see `Env::at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// The put of a block.
    Put,
    /// The transaction of a commit.
    Commit,
    /// The same, of a commit that holds a truncate.
    Truncate,
    /// A rename over an existing name whose new contents are not committed yet.
    RenameOver,
}

/// Which end of a `Point`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// It is about to start.
    Begin,
    /// It has taken effect or failed, and nobody was told yet.
    End,
}
