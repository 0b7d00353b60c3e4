//! The thin async client: one `async fn` per file-system operation, over the machines and metadata operations.
//!
//! Owns: who waits for what; the tables of open files and handles; permits.
//! Leaves to others: order (`file`), meaning (`meta`), the world (`env`). It names no executor.
//!
//! Invariants
//! - Dropping any future here loses a waiter, never a byte: what must go on is spawned.
//! - No lock is held across an await. Locks are taken in the order shard, cell.
//! - Promise 1 (fsync) is kept in `data::fsync`, 4 (rename) in `names::rename`, 6 (deletion) in `upkeep`.

extern crate std;

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use crate::env::{Committed, Env, MetaError, MetaStore, ObjectStore, StoreError, TxnSeq};
use crate::errno::Errno;
use crate::file::machine::SLICES_MAX;
use crate::format::block::{LEASE_SLICES, VOLUME_OBJECT, decode_marker};
use crate::format::values::Volume;
use crate::kv::{OpError, OpResult, Read, Txn};
use crate::marks::{Mark, reached_if};
use crate::meta::{self, OpCtx};
use crate::planted::{self, Bug};
use crate::types::{AtimeMode, Geometry, SessionId};

mod access;
mod admin;
mod blocks;
mod budget;
pub mod check;
mod data;
mod driver;
mod files;
mod ids;
mod kept;
mod listings;
mod log;
mod meta_cache;
#[cfg(test)]
mod mount_tests;
mod names;
mod pages;
#[cfg(test)]
mod race_tests;
mod ranges;
#[cfg(test)]
mod read_tests;
mod reaping;
mod space;
mod upkeep;
pub(crate) mod wait;

pub use crate::store::log::Pace;
pub use admin::{FileInfo, Status};
pub use data::ReadData;
pub use files::{Handle, OpenFlags};
pub use log::{LogError, LogMode, LogOptions, LogStatus, Logged, LoggedObjects, Opened};
pub use names::{Caller, Entry, StatFs};
pub use space::UNLIMITED_BYTES;

use access::AccessTable;
use blocks::Blocks;
use budget::Budget;
use files::Files;
use ids::IdPool;
use meta_cache::CachedMeta;
use pages::Pages;
use reaping::Orphans;
use space::Space;
use upkeep::{Collector, Grace};
use wait::{Notify, race, timeout};

/// The marker of the volume is asked for again so many times. (1.3 s in all)
const MARKER_TRIES: u32 = 7;
/// How often aged files are looked for, as a part of `commit_interval`.
const TICKS_PER_INTERVAL: u32 = 8;

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for dirty bytes and cached blocks together.
    pub buffer_size: u64,
    /// Age at which dirty bytes are flushed, and the metadata log synced.
    pub commit_interval: Duration,
    /// Deadline of every wait for a store.
    pub store_timeout: Duration,
    /// No change is made and no session begun.
    pub read_only: bool,
    /// Puts under way at once.
    pub max_uploads: usize,
    /// Inode numbers leased at a time; the next lease is fetched when a quarter is left.
    pub inode_lease: u64,
    /// Slice ids of each lease that are used; the others never are. (1..=LEASE_SLICES)
    pub slice_lease: u64,
    /// When reading changes the access time.
    pub atime: AtimeMode,
    /// Memory for attributes and names.
    pub meta_cache: u64,
    /// Slices of a file that are committed together at most.
    pub batch_slices: usize,
    /// Blocks of up to this length are fetched whole whatever is asked of them: a second request costs more.
    pub whole_max: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            buffer_size: 512 << 20,
            commit_interval: Duration::from_secs(5),
            store_timeout: Duration::from_secs(300),
            read_only: false,
            max_uploads: 16,
            // A few seconds of creates.
            inode_lease: 1 << 16,
            slice_lease: LEASE_SLICES,
            atime: AtimeMode::default(),
            // Some 200,000 files.
            meta_cache: 64 << 20,
            batch_slices: SLICES_MAX,
            whole_max: 128 << 10,
        }
    }
}

/// Why a volume could not be mounted. Nothing was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MountError {
    /// The metadata store holds no volume.
    #[error("the metadata store holds no volume")]
    NoVolume,
    /// The object store's prefix belongs to another volume, or to none.
    #[error("the bucket does not hold this volume's data ({found})")]
    WrongBucket {
        /// What is there.
        found: String,
    },
    /// The volume is of a format that this program does not know.
    #[error("the volume has format version {0}, which this program is too old for")]
    Version(u32),
    /// The metadata store failed.
    #[error("metadata: {0}")]
    Meta(#[from] MetaError),
    /// The object store failed.
    #[error("object store: {0}")]
    Store(#[from] StoreError),
}

/// An unmount that left something behind.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{dirty_bytes} bytes could not be stored ({errno:?})")]
pub struct Unmounted {
    /// Why.
    pub errno: Errno,
    /// Accepted bytes that are not in the store.
    pub dirty_bytes: u64,
}

/// A mounted volume. Clones are the same mount.
pub struct Client<E: Env>(Arc<Shared<E>>);

impl<E: Env> Clone for Client<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<E: Env> {
    env: E,
    /// The metadata store: whatever the mounted volume reads and changes goes through it.
    meta: Arc<CachedMeta<E>>,
    volume: Volume,
    options: Options,
    session: Option<SessionId>,
    started: Duration,
    files: Files,
    accesses: AccessTable,
    ahead: Pages,
    inodes: IdPool,
    slices: IdPool,
    blocks: Blocks<E>,
    grace: Arc<Grace>,
    collector: Arc<Collector<E>>,
    /// Permits for dirty bytes.
    memory: Budget,
    uploads: Budget,
    /// When a put succeeded last, in nanoseconds of `Env::now`.
    last_put: AtomicU64,
    /// A flush of everything is under way because memory runs short.
    pressed: AtomicBool,
    /// Payload bytes of writes that wait for memory.
    waiting: AtomicU64,
    /// How much of the volume is taken.
    space: Space,
    /// A put failed: it may be applied later, so objects may be left that nothing refers to.
    unsure: AtomicBool,
    orphans: Orphans,
    stopping: AtomicBool,
    stop: Notify,
}

impl<E: Env> Client<E> {
    /// Mounts the volume of `env`: checks that bucket and metadata belong together, ends the sessions of crashed
    /// mounts and begins its own.
    pub async fn mount(env: E, options: Options) -> Result<Self, MountError> {
        let volume = load_volume(&env).await?;
        check_bucket(&env, &volume).await?;
        let shared = Arc::new(Shared::new(env, volume, options).await?);
        shared.balance_memory();
        if !shared.options.read_only {
            shared.begin().await?;
            shared.env.spawn(shared.collector.clone().run());
            let flusher = shared.clone();
            shared.env.spawn(async move { flusher.flush_by_age().await });
        }
        Ok(Self(shared))
    }

    /// Makes everything durable and ends the session. On an error the rest is still in memory and may be tried again.
    pub async fn unmount(&self) -> Result<(), Unmounted> {
        let shared = &self.0;
        if shared.options.read_only {
            return Ok(());
        }
        let left = |errno| Unmounted { errno, dirty_bytes: shared.memory.used() };
        shared.record_accesses().await.map_err(left)?;
        self.sync().await.map_err(left)?;
        shared.reap_all().await;
        // What the kernel's last FORGETs have begun. What takes too long leaves its objects to the next mount.
        let reaped = timeout(&shared.env, shared.deadline(), shared.reaped()).await.is_some();
        shared.stopping.store(true, Ordering::Release);
        shared.stop.notify_all();
        shared.collector.stop().await;
        let session = shared.session.expect("a writable mount has a session");
        shared.env.objects().finish().await;
        let unsure = shared.unsure.load(Ordering::Acquire) || shared.env.objects().is_unsure();
        let unsure = (!reaped || unsure) && !planted::is(Bug::UnsureForgotten);
        let ended = shared
            .mutate(|txn, _| if unsure { meta::session::fence(txn, session) } else { meta::session::end(txn, session) })
            .await;
        ended.map_err(left)?;
        reached_if(Mark::UnmountUnsure, || unsure);
        shared.sync_meta().await.map_err(left)
    }

    /// The volume's settings.
    pub fn volume(&self) -> &Volume {
        &self.0.volume
    }
}

/// Reads the volume's settings.
pub async fn load_volume<E: Env>(env: &E) -> Result<Volume, MountError> {
    match env.meta().read(|read| meta::volume::load(read)).await {
        Ok(volume) => Ok(volume),
        Err(MetaError::Op(OpError::Errno(Errno::ENOENT))) => Err(MountError::NoVolume),
        Err(error) => match env.meta().read(|read| meta::volume::version(read)).await {
            Ok(version) if version > crate::format::values::VOLUME_VERSION => Err(MountError::Version(version)),
            Ok(_) | Err(_) => Err(error.into()),
        },
    }
}

/// Checks that the object store's prefix belongs to `volume`.
async fn check_bucket<E: Env>(env: &E, volume: &Volume) -> Result<(), MountError> {
    let len = crate::format::block::encode_marker(volume.id).len() as u64;
    let mut attempts = 0;
    loop {
        let answer = env.objects().get(VOLUME_OBJECT, 0..len).await.map(|marker| decode_marker(&marker));
        let error = match answer {
            Ok(Ok(id)) if id == volume.id => return Ok(()),
            Ok(Ok(_)) => MountError::WrongBucket { found: "another volume's data".into() },
            Ok(Err(_)) | Err(StoreError::Short) => MountError::WrongBucket { found: "a damaged marker object".into() },
            Err(StoreError::NotFound) => MountError::WrongBucket { found: "no volume there".into() },
            Err(error) => error.into(),
        };
        // A torn or missing answer may be the store's passing fault; only one that stays is the truth.
        if attempts == MARKER_TRIES {
            return Err(error);
        }
        env.sleep_until(env.now() + Duration::from_millis(10 << attempts)).await;
        attempts += 1;
    }
}

impl<E: Env> Shared<E> {
    async fn new(env: E, volume: Volume, options: Options) -> Result<Self, MountError> {
        // A quarter of the memory caches blocks, the rest holds dirty bytes, or is lent to the cache (`balance_memory`).
        let cache = options.buffer_size / 4;
        let grace = Arc::new(Grace::new());
        let session = if options.read_only {
            None
        } else {
            // A session that is still there belongs to a mount that crashed: this store has one client at a time.
            // Its ids can be committed by nobody once the end of the session is durable.
            let ctx = ctx(&env, volume.geometry);
            let begun = env.meta().write(|txn| {
                for session in meta::session::list(txn.as_read())? {
                    meta::session::fence(txn, session)?;
                }
                meta::session::begin(txn, &ctx)
            });
            let Committed { value, seq } = begun.await?;
            env.meta().sync(seq).await?;
            Some(value)
        };
        let meta = Arc::new(CachedMeta::new(env.clone(), options.meta_cache));
        let blocks = Blocks::new(env.clone(), &volume, cache, options.whole_max, options.store_timeout);
        Ok(Self {
            started: env.now(),
            collector: Collector::new(env.clone(), meta.clone(), blocks.clone(), volume.geometry, grace.clone()),
            blocks,
            memory: Budget::new(options.buffer_size - cache),
            uploads: Budget::new(options.max_uploads as u64),
            last_put: AtomicU64::new(0),
            files: Files::new(),
            accesses: AccessTable::new(options.atime),
            ahead: Pages::default(),
            inodes: IdPool::new(),
            slices: IdPool::new(),
            session,
            grace,
            pressed: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
            space: Space::default(),
            unsure: AtomicBool::new(false),
            orphans: Orphans::default(),
            stopping: AtomicBool::new(false),
            stop: Notify::default(),
            env,
            meta,
            volume,
            options,
        })
    }

    /// What a mount does before it serves: leases, orphans and left-overs of crashed mounts.
    async fn begin(self: &Arc<Self>) -> Result<(), MountError> {
        let failed = |_| MountError::Meta(MetaError::Failed);
        let session = self.session.expect("only writable mounts begin");
        self.refill_inodes().await.map_err(failed)?;
        self.refill_slices().await.map_err(failed)?;
        self.refresh_usage().await.map_err(failed)?;
        if !planted::is(Bug::OrphansKept) {
            let reaped = self.collector.reap_orphans().await?;
            reached_if(Mark::OrphanReapedAtMount, || reaped > 0);
        }
        let leases = self.meta.read(|read| meta::session::leases(read)).await?;
        let ended = leases
            .into_iter()
            .filter(|(_, owner)| *owner != session || planted::is(Bug::OwnLeaseCollected))
            .map(|(ids, _)| ids);
        self.collector.adopt(ended.collect());
        Ok(())
    }

    fn ctx(&self) -> OpCtx {
        ctx(&self.env, self.volume.geometry)
    }

    fn geometry(&self) -> &Geometry {
        &self.volume.geometry
    }

    /// When a wait that begins at this moment is given up.
    fn deadline(&self) -> Duration {
        self.env.now() + self.options.store_timeout
    }

    /// Runs a mutating operation until it is committed or declined.
    async fn mutate<T: Send>(
        &self,
        op: impl Fn(&mut dyn Txn, &OpCtx) -> OpResult<T> + Send + Sync,
    ) -> Result<T, Errno> {
        self.mutate_at(op).await.map(|committed| committed.value)
    }

    async fn mutate_at<T: Send>(
        &self,
        op: impl Fn(&mut dyn Txn, &OpCtx) -> OpResult<T> + Send + Sync,
    ) -> Result<Committed<T>, Errno> {
        if self.options.read_only {
            return Err(Errno::EROFS);
        }
        let (ctx, deadline) = (self.ctx(), self.deadline());
        let mut attempts = 0;
        loop {
            match self.meta.write(|txn| op(txn, &ctx)).await {
                Ok(committed) => return Ok(committed),
                Err(MetaError::Retry) if self.env.now() < deadline => {
                    let delay = Duration::from_millis(1 << attempts.min(10));
                    attempts += 1;
                    self.env.sleep_until(self.env.now() + delay).await;
                }
                Err(error) => return Err(errno(error)),
            }
        }
    }

    async fn read<T: Send>(&self, op: impl Fn(&mut dyn Read) -> OpResult<T> + Send + Sync) -> Result<T, Errno> {
        let deadline = self.deadline();
        let mut attempts = 0;
        loop {
            match self.meta.read(&op).await {
                Ok(value) => return Ok(value),
                Err(MetaError::Retry) if self.env.now() < deadline => {
                    let delay = Duration::from_millis(1 << attempts.min(10));
                    attempts += 1;
                    self.env.sleep_until(self.env.now() + delay).await;
                }
                Err(error) => return Err(errno(error)),
            }
        }
    }

    /// Makes every transaction that has returned durable.
    ///
    /// What fsync must sync is the last transaction that changed the inode, its names or the directories that lead
    /// to it; the end of the log is past all of them, and costs nothing when it is durable already.
    async fn sync_meta(&self) -> Result<(), Errno> {
        self.sync_to(self.meta.last()).await
    }

    async fn sync_to(&self, seq: TxnSeq) -> Result<(), Errno> {
        if self.meta.synced() >= seq {
            return Ok(());
        }
        match timeout(&self.env, self.deadline(), self.meta.sync(seq)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) if planted::is(Bug::FailedSyncAccepted) => Ok(()),
            Some(Err(error)) => Err(errno(error)),
            None if planted::is(Bug::SyncDeadlineAccepted) => Ok(()),
            None => Err(Errno::EIO),
        }
    }

    /// Refills the pool of inode numbers: the lease is durable before its first number is used.
    async fn refill_inodes(&self) -> Result<(), Errno> {
        self.inodes
            .refill(async || {
                let count = self.options.inode_lease;
                let lease = self.mutate_at(|txn, _| meta::volume::lease_inodes(txn, count)).await?;
                if planted::is(Bug::InodeLeaseUnsynced) {
                    return Ok(lease.value);
                }
                self.sync_to(lease.seq).await.map(|()| lease.value)
            })
            .await
    }

    /// Refills the pool of slice ids: the lease is durable before its first id is used.
    async fn refill_slices(&self) -> Result<(), Errno> {
        let session = self.session.ok_or(Errno::EROFS)?;
        self.slices
            .refill(async || {
                let lease = self.mutate_at(|txn, _| meta::volume::lease_slices(txn, session)).await?;
                let ids = lease.value.start..lease.value.start + self.options.slice_lease;
                if planted::is(Bug::SliceLeaseUnsynced) {
                    return Ok(ids);
                }
                self.sync_to(lease.seq).await.map(|()| ids)
            })
            .await
    }

    /// The long-lived task that flushes files by age and keeps the metadata log synced.
    async fn flush_by_age(self: Arc<Self>) {
        let interval = self.options.commit_interval;
        let mut synced_at = self.env.now();
        while !self.stopping.load(Ordering::Acquire) {
            let stop = self.stop.listen();
            let tick = self.env.now() + (interval / TICKS_PER_INTERVAL).max(Duration::from_millis(1));
            race(stop, self.env.sleep_until(tick)).await;
            let now = self.env.now();
            let before = now.saturating_sub(interval);
            let aged = self.files.aged(before);
            if !aged.is_empty() {
                self.env.pause().await;
                self.flush_aged(&aged, before);
            }
            if now >= synced_at + interval {
                synced_at = now;
                let shared = self.clone();
                self.env.spawn(async move {
                    // A failure leaves them to the next time.
                    let _ = shared.record_accesses().await;
                    if let Err(errno) = shared.sync_meta().await {
                        tracing::warn!(?errno, "the metadata log could not be synced");
                    }
                    // A failure leaves the figure of the last tick, which is checked again before it refuses a write.
                    let _ = shared.refresh_usage().await;
                });
            }
        }
    }
}

fn ctx<E: Env>(env: &E, geometry: Geometry) -> OpCtx {
    OpCtx { now: env.wall(), stripe: env.stripe(), geometry }
}

/// What a caller is told. Damage is an error of the volume, and logged.
fn errno(error: MetaError) -> Errno {
    match error {
        MetaError::Op(OpError::Errno(errno)) => errno,
        MetaError::Op(OpError::Damaged(what)) => {
            tracing::error!(what, "damaged metadata; run fsck");
            Errno::EIO
        }
        MetaError::Op(OpError::Kv(_)) | MetaError::Retry | MetaError::Unknown | MetaError::Failed => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use bytes::Bytes;

    use super::upkeep::fake::World;
    use super::*;
    use crate::types::Ino;

    /// A fuzzed client had a block put after its file was unlinked, closed and forgotten, while it was unmounted: the
    /// session ended as if it had left nothing, and nobody ever looked for the block.
    #[test]
    fn unmount_waits_for_the_end_of_what_was_forgotten() {
        let world = World::mountable();
        world.block_on(async {
            let (client, entry, handle) = world.mount_with_file(Options::default()).await;
            // Of more than a block: it is put at once.
            client.write(handle, 0, Bytes::from(vec![1; 5000]), false).await.expect("a write");
            client.unlink(Ino::ROOT, b"file").await.expect("no name");
            client.release(handle).await.expect("not open");
            // So that its removal is tried again at ever longer intervals.
            world.state().faults.write = true;
            client.forget(entry.ino, 1);
            world.sleep_until(world.now() + Duration::from_secs(1)).await;
            world.state().faults.write = false;
            client.unmount().await.expect("an unmount");
            // The process ends.
            world.power_cut();

            let client = Client::mount(world.clone(), Options::default()).await.expect("a mount");
            world.sleep_until(world.now() + Duration::from_secs(60)).await;
            let left: Vec<String> = world.state().objects.keys().cloned().collect();
            assert_eq!(left, [VOLUME_OBJECT]);
            client.unmount().await.expect("an unmount");
        });
    }
}
