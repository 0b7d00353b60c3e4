//! The stores in memory and a client without an executor: each step is done when its function returns.
//!
//! Owns: the metadata and what of it is durable; mounting; a note of every moment at which a crash finds something else
//! than before.
//! Leaves to others: the order in which `client` composes all this (`files`), what is in front of the object store
//! (`store`, `log`, `packs`), which objects and which bytes of the log are durable (`objects`, `disk`), system calls
//! (`kernel`), the life after a crash (`recovery`), what a crash may leave (`testkit::judge`).
//!
//! Invariants
//! - Each transaction, put, barrier, sync and delete leaves a `Moment`; so does each write to the log, each sync of it and
//!   each segment that goes.
//! - A crash at a moment leaves a prefix of the metadata log that holds all that was synced, every object that is past
//!   a barrier and every write to the log that is past a sync, and any of the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use kiseki_core::env::TxnSeq;
use kiseki_core::errno::Errno;
use kiseki_core::file::machine::File;
use kiseki_core::format::log::Kind;
use kiseki_core::format::values::{VOLUME_VERSION, Volume};
use kiseki_core::kv::mem::MemKv;
use kiseki_core::kv::{OpError, OpResult, Read, Txn};
use kiseki_core::meta::{self, Commit, OpCtx};
use kiseki_core::testkit::ops::SLOTS;
use kiseki_core::types::{BlockId, Geometry, Ino, SessionId, Timestamp, VolumeId};
use xxhash_rust::xxh3::Xxh3;

use crate::mistakes::Mistake;

mod disk;
mod files;
mod log;
mod objects;
mod packs;
mod store;

use disk::LogDisk;
use log::Staging;
pub(crate) use objects::{Name, Objects};

/// Small enough that a few bytes make several chunks, blocks and frames, or travel inline.
pub(crate) const GEOMETRY: Geometry = Geometry { chunk_size: 64, block_size: 16, frame_size: 8, inline_max: 4 };
/// The volume of all worlds.
pub(crate) const VOLUME: VolumeId = VolumeId([7; 16]);
/// Inode numbers leased at once: more than any sequence makes.
const INODE_LEASE: u64 = 64;

/// What is in front of the object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Nothing.
    Through,
    /// The write-back log, which whole blocks go past.
    Logged,
    /// The write-back log, for all blocks, from which they go in packs.
    Packed,
}

impl Form {
    pub(crate) const ALL: [Self; 3] = [Self::Through, Self::Logged, Self::Packed];

    /// As a failure shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Through => "through",
            Self::Logged => "logged",
            Self::Packed => "packed",
        }
    }
}

/// What happened last before a crash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// This transaction returned.
    Txn(&'static str),
    /// A commit of the file returned.
    Commit(Ino),
    /// An object was put.
    Put(Name),
    /// A barrier of the store returned.
    Barrier,
    /// The metadata log was synced.
    Sync,
    /// An object was deleted.
    Delete(Name),
    /// It is written whose the folder of the write-back log is.
    Owner,
    /// A segment of the write-back log was made, or got its header.
    Segment(u64),
    /// A record was written into a segment.
    Record(u64, Kind),
    /// A segment was synced.
    LogSync(u64),
    /// A segment was removed.
    SegmentGone(u64),
    /// The system call returned.
    Return,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Txn(what) => write!(f, "the transaction \"{what}\""),
            Self::Commit(ino) => write!(f, "a commit of inode {}", ino.0),
            Self::Put(name) => write!(f, "the put of {name}"),
            Self::Barrier => f.write_str("a barrier"),
            Self::Sync => f.write_str("a sync of the metadata log"),
            Self::Delete(name) => write!(f, "the delete of {name}"),
            Self::Owner => f.write_str("the owner of the log was written"),
            Self::Segment(number) => write!(f, "segment {number} of the log was made or got its header"),
            Self::Record(number, kind) => write!(f, "a record of a {kind:?} in segment {number} of the log"),
            Self::LogSync(number) => write!(f, "a sync of segment {number} of the log"),
            Self::SegmentGone(number) => write!(f, "segment {number} of the log had gone"),
            Self::Return => f.write_str("the call had returned"),
        }
    }
}

/// The stores at a moment: `kv` up to `last`, of which the log above `synced` may be lost.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    pub(crate) event: Event,
    pub(crate) last: TxnSeq,
    pub(crate) synced: TxnSeq,
    pub(crate) objects: Arc<Objects>,
    pub(crate) disk: Arc<LogDisk>,
}

/// What a crash may leave besides metadata.
#[derive(Debug)]
pub(crate) struct Stores {
    /// Tells it apart.
    pub(crate) hash: u64,
    pub(crate) objects: Arc<Objects>,
    pub(crate) disk: Arc<LogDisk>,
}

impl Moment {
    /// What a crash may leave besides metadata: first of all everything.
    pub(crate) fn survivors(&self) -> Vec<Stores> {
        let disks = self.disk.survivors();
        let mut survivors = Vec::new();
        for objects in self.objects.survivors() {
            for disk in &disks {
                let mut hash = Xxh3::new();
                objects.hash_into(&mut hash);
                disk.hash_into(&mut hash);
                survivors.push(Stores { hash: hash.digest(), objects: objects.clone(), disk: disk.clone() });
            }
        }
        survivors
    }
}

/// What is left of a mount that has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Left {
    pub(crate) kv: MemKv,
    pub(crate) objects: Arc<Objects>,
    pub(crate) disk: Arc<LogDisk>,
}

impl Left {
    /// Objects and writes to the log, for a person.
    pub(crate) fn describe(&self) -> String {
        let objects = self.objects.names().map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
        format!("of the store [{objects}], of the log [{}]", self.disk.describe())
    }
}

/// The machine of an inode.
#[derive(Clone, Debug)]
struct Cell {
    file: File,
    /// How often it is open.
    pins: u32,
    /// Under way, and not applied yet.
    commit: Option<Arc<Commit>>,
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenFile {
    pub(crate) ino: Ino,
    pub(crate) append: bool,
    pub(crate) sync: bool,
}

/// The stores, and the mount that works on them.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) form: Form,
    pub(crate) kv: MemKv,
    pub(crate) synced: TxnSeq,
    pub(crate) objects: Arc<Objects>,
    disk: Arc<LogDisk>,
    staging: Option<Staging>,
    pub(crate) session: SessionId,
    inos: Range<u64>,
    slices: Range<u64>,
    cells: BTreeMap<Ino, Cell>,
    pub(crate) open: [Option<OpenFile>; SLOTS],
    /// Unlinked and open.
    pub(crate) orphans: BTreeSet<Ino>,
    /// The wall clock in seconds.
    pub(crate) clock: i64,
    pub(crate) mistake: Option<Mistake>,
    /// Puts that `CommitBeforePut` holds back.
    late: Vec<(BlockId, Bytes)>,
    moments: Vec<Moment>,
}

impl World {
    /// An empty volume, mounted.
    pub(crate) fn new(form: Form) -> Self {
        let mut world = Self::unmounted(form, Left::default(), 1000, None);
        let volume = Volume {
            version: VOLUME_VERSION,
            id: VOLUME,
            name: "tiny".into(),
            storage: "file".into(),
            bucket: "/bucket".into(),
            geometry: GEOMETRY,
            capacity: 0,
            inodes: 0,
            created: world.wall(),
            acl: true,
            log: None,
            packs: false,
        };
        world.txn(Event::Txn("format"), |txn, ctx| meta::volume::format(txn, ctx, &volume, 0, 0)).expect("it is new");
        world.mount();
        world
    }

    /// Stores that survived a crash, all of what they hold durable.
    pub(crate) fn unmounted(form: Form, left: Left, clock: i64, mistake: Option<Mistake>) -> Self {
        let Left { kv, objects, disk } = left;
        Self {
            form,
            synced: kv.last(),
            kv,
            objects,
            disk,
            staging: None,
            session: SessionId(0),
            inos: 0..0,
            slices: 0..0,
            cells: BTreeMap::new(),
            open: [None; SLOTS],
            orphans: BTreeSet::new(),
            clock,
            mistake,
            late: Vec::new(),
            moments: Vec::new(),
        }
    }

    /// `Logged::open`, then `Shared::new` and `begin`: ends old sessions, begins its own, leases, reaps orphans.
    pub(crate) fn mount(&mut self) {
        if self.has_log() {
            self.open_log();
        }
        let begun = self.txn(Event::Txn("begin a session"), |txn, ctx| {
            for session in meta::session::list(txn.as_read())? {
                meta::session::fence(txn, session)?;
            }
            meta::session::begin(txn, ctx)
        });
        self.session = begun.expect("a session can begin");
        self.sync();
        self.refill_inodes();
        self.refill_slices();
        if self.mistake != Some(Mistake::KeepOrphans) {
            for ino in self.read(|read| meta::sweep::orphans(read, None, usize::MAX)) {
                self.txn(Event::Txn("reap"), |txn, ctx| meta::remove::reap(txn, ctx, ino, &[])).expect("orphans go");
            }
        }
    }

    /// Unmounts, and mounts again with nothing of the past kept: what sequences start from. `Logged` finds its log as it
    /// was, `Packed` an empty one, and packs in the store.
    pub(crate) fn mounted_again(mut self, mistake: Option<Mistake>) -> Self {
        let (session, drained) = (self.session, self.form != Form::Logged);
        if drained {
            self.background();
            self.finish_log();
        } else {
            self.sync_all();
        }
        assert!(self.cells.is_empty() && self.objects.is_durable());
        let end = if drained { meta::session::end } else { meta::session::fence };
        self.txn(Event::Txn("end the session"), |txn, _| end(txn, session)).expect("it ends");
        let left = Left { kv: self.kv, objects: self.objects, disk: self.disk };
        let mut next = Self::unmounted(self.form, left, self.clock, mistake);
        next.mount();
        next.sync();
        next.kv.forget_before(next.kv.last());
        next.moments.clear();
        next
    }

    /// What happened since the last call.
    pub(crate) fn take_moments(&mut self) -> Vec<Moment> {
        std::mem::take(&mut self.moments)
    }

    /// Takes note of what a crash would find from here on.
    pub(crate) fn note(&mut self, event: Event) {
        let (last, synced) = (self.kv.last(), self.synced);
        let (objects, disk) = (self.objects.clone(), self.disk.clone());
        self.moments.push(Moment { event, last, synced, objects, disk });
    }

    pub(crate) fn wall(&self) -> Timestamp {
        Timestamp { secs: self.clock, nanos: 0 }
    }

    // --- metadata

    /// One transaction.
    pub(crate) fn txn<T>(
        &mut self,
        event: Event,
        op: impl Fn(&mut dyn Txn, &OpCtx) -> OpResult<T>,
    ) -> Result<T, Errno> {
        let ctx = OpCtx { now: self.wall(), stripe: (self.clock % 4) as u8, geometry: GEOMETRY };
        let mut txn = self.kv.begin();
        let value = op(&mut txn, &ctx).map_err(errno)?;
        let writes = txn.finish();
        if !writes.is_empty() {
            self.kv.commit(writes).expect("there is one client");
            self.note(event);
        }
        Ok(value)
    }

    /// A read that cannot be declined.
    pub(crate) fn read<T>(&self, op: impl FnOnce(&mut dyn Read) -> OpResult<T>) -> T {
        self.try_read(op).expect("it can be read")
    }

    pub(crate) fn try_read<T>(&self, op: impl FnOnce(&mut dyn Read) -> OpResult<T>) -> Result<T, Errno> {
        op(self.kv.begin().as_read()).map_err(errno)
    }

    /// `sync_meta`: every transaction that has returned is durable.
    pub(crate) fn sync(&mut self) {
        if self.synced < self.kv.last() {
            self.synced = self.kv.last();
            self.note(Event::Sync);
        }
    }

    fn refill_inodes(&mut self) {
        let lease = self.txn(Event::Txn("lease inodes"), |txn, _| meta::volume::lease_inodes(txn, INODE_LEASE));
        self.sync();
        self.inos = lease.expect("ids do not run out");
    }

    fn refill_slices(&mut self) {
        let session = self.session;
        let lease = self.txn(Event::Txn("lease slices"), |txn, _| meta::volume::lease_slices(txn, session));
        self.sync();
        self.slices = lease.expect("the session lives");
    }

    /// `next_ino`.
    pub(crate) fn next_ino(&mut self) -> Ino {
        if self.inos.is_empty() {
            self.refill_inodes();
        }
        Ino(self.inos.next().expect("it was refilled"))
    }
}

/// What a caller is told. Damage is nothing that a caller is told here.
fn errno(error: OpError) -> Errno {
    match error {
        OpError::Errno(errno) => errno,
        OpError::Kv(_) | OpError::Damaged(_) => panic!("{error}"),
    }
}
