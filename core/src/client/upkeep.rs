//! Upkeep of a mounted volume: what was queued for deletion really goes, and what crashed mounts left is collected.
//!
//! Owns: the order in which things are destroyed; the task that does so, and its end.
//! Leaves to others: queueing (`meta::remove`, `meta::data`), what a sweep does to metadata (`meta::sweep`), what lies
//! under the leases of ended sessions (`leases`), counting readers (`grace`).
//!
//! Objects are destroyed by `delete` alone, on behalf of `delete_queued` and of `collect_lease` (in `leases`).
//!
//! Invariants (promise 6: nothing live is deleted)
//! - An object is deleted only after a transaction has proved that nothing refers to it, the metadata log was synced
//!   past that transaction, and every reader that may have seen the reference has left. In this order.
//! - A failed read, scan, list or sync deletes nothing.
//! - A queue entry goes only after all objects of its slice are deleted, durably; so a crash at any point, or dropping
//!   any of these futures, repeats work and loses none. Deleting twice is harmless: identifiers are never used again,
//!   which is also why a delete that takes effect after its deadline is.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::mem;
use core::ops::Range;
use core::time::Duration;

use super::blocks::Blocks;
use super::meta_cache::CachedMeta;
use super::std::sync::Mutex;
use super::wait::{Either, Notify, lock, race, run_bounded, timeout};
use crate::env::{Env, MetaError, MetaStore, ObjectStore, StoreError};
use crate::format::block::object_key;
use crate::kv::OpError;
use crate::marks::{Mark, reached_if};
use crate::meta::{OpCtx, remove, sweep};
use crate::planted::{self, Bug};
use crate::types::{BlockId, Geometry, Ino, SliceId};

mod grace;
mod leases;

#[cfg(test)]
pub(super) mod fake;
#[cfg(test)]
mod tests;

pub(crate) use grace::{Grace, Guard};

/// Least time between the starts of two passes: each syncs the metadata log, so deletes that come in quick succession
/// share one, and a deleted file is still gone within seconds.
const PASS_INTERVAL: Duration = Duration::from_secs(1);
/// A pass starts at least this often; only a safety net, since everything queued kicks.
const TICK: Duration = Duration::from_secs(5);
/// Longest pause after passes that failed; the shortest is `PASS_INTERVAL`.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// First pause before something small is tried again at mount; given up after some doublings.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Deadline of one store request. A dead store then costs one batch, not the task.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// How far a listing may be behind the store. S3 and its kin are not behind since 2020; others and proxies may be.
const SETTLE: Duration = Duration::from_secs(60);
/// Objects deleted at once: keeps an S3 connection pool busy without crowding out foreground requests.
const DELETES: usize = 16;
/// The same while others are busy, and so long a pass waits for them. Removing is often followed by writing: what was
/// removed is then deleted when that is done.
const DELETES_BESIDE: usize = 2;
const YIELD_MAX: Duration = Duration::from_secs(5);
/// Whether they still are is asked so often.
const YIELD: Duration = Duration::from_millis(100);
/// Queue entries read at once: bounds memory and the size of the transaction that drops them.
const BATCH: usize = 256;
/// Records that one sweep transaction handles: some milliseconds each.
const SWEEP: usize = 512;

/// Why a pass ended early. What it had not done yet is still queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UpkeepError {
    /// Reading, changing or syncing metadata.
    #[error("{0}")]
    Meta(#[from] MetaError),
    /// Listing or deleting objects.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A store request that took too long.
    #[error("the object store did not answer in time")]
    Deadline,
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Deleted and truncated files whose records were swept.
    pub(crate) files: u64,
    /// Slices whose objects are gone, and whose queue entries are dropped.
    pub(crate) slices: u64,
    /// Objects deleted (or found gone).
    pub(crate) objects: u64,
}

/// The garbage collector of one mount.
pub(crate) struct Collector<E: Env> {
    env: E,
    meta: Arc<CachedMeta<E>>,
    blocks: Blocks<E>,
    geometry: Geometry,
    grace: Arc<Grace>,
    state: Mutex<State>,
    /// `state` has changed.
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Something was queued since the last pass began.
    kicked: bool,
    /// A pass is under way.
    passing: bool,
    /// The store is full: the next pass waits for nobody.
    hurried: bool,
    stopping: bool,
    /// `run` is inside.
    running: bool,
    /// Slice ids leased by ended sessions whose left-overs are yet to be collected.
    ended: Vec<Range<u64>>,
    /// From when on listings show all that those sessions left. What they left in the write-back log is put again, and a put
    /// that fails may take effect later.
    settled_at: Duration,
    /// They were collected as far as listings showed before that.
    early: bool,
}

impl<E: Env> Collector<E> {
    /// A collector that does nothing until `run` is spawned. Readers of blocks enter `grace`.
    pub(crate) fn new(
        env: E,
        meta: Arc<CachedMeta<E>>,
        blocks: Blocks<E>,
        geometry: Geometry,
        grace: Arc<Grace>,
    ) -> Arc<Self> {
        Arc::new(Self { env, meta, blocks, geometry, grace, state: Mutex::default(), changed: Notify::default() })
    }

    /// Tells that something was queued, and is visible.
    pub(crate) fn kick(&self) {
        let first = !mem::replace(&mut lock(&self.state).kicked, true);
        if first {
            self.changed.notify_all();
        }
    }

    /// As `kick`, and somebody needs the room.
    pub(crate) fn hurry(&self) {
        lock(&self.state).hurried = true;
        self.kick();
    }

    /// Something is yet to be deleted, or looked at for that.
    pub(crate) fn has_work(&self) -> bool {
        let state = lock(&self.state);
        state.kicked || state.passing
    }

    /// Hands over slice ids leased by sessions that a transaction has ended: `run` collects what those left, and tries
    /// again after errors.
    pub(crate) fn adopt(&self, ended: Vec<Range<u64>>) {
        {
            let mut state = lock(&self.state);
            state.ended.extend(ended);
            state.settled_at = self.env.now() + SETTLE;
            state.early = false;
        }
        self.kick();
    }

    /// The task: passes when kicked or now and then, until stopped. It counts as running from this call on.
    pub(crate) fn run(self: Arc<Self>) -> impl Future<Output = ()> + Send {
        lock(&self.state).running = true;
        let running = Running(self);
        async move { running.0.work().await }
    }

    async fn work(&self) {
        let mut next = self.env.now();
        let mut pause = PASS_INTERVAL;
        loop {
            if let Either::Left(()) = race(self.stopped(), self.due(next)).await {
                return;
            }
            {
                let mut state = lock(&self.state);
                (state.kicked, state.passing) = (false, true);
            }
            let started = self.env.now();
            let mut done = Pass::default();
            // A pass dropped by `stop` leaves its work queued.
            let Either::Right(result) = race(self.stopped(), self.pass(&mut done)).await else { return };
            {
                let mut state = lock(&self.state);
                (state.passing, state.hurried) = (false, false);
            }
            if result.is_ok() || done != Pass::default() {
                pause = PASS_INTERVAL;
            }
            match result {
                Ok(()) => next = started + pause,
                Err(error) => {
                    tracing::warn!(%error, ?pause, "deleting what is no longer needed failed; it stays queued");
                    self.kick();
                    next = self.env.now() + pause;
                    pause = (2 * pause).min(BACKOFF_MAX);
                }
            }
        }
    }

    /// Ends the task and waits for its end. Nothing is deleted after that, but for requests that are under way.
    pub(crate) async fn stop(&self) {
        lock(&self.state).stopping = true;
        self.changed.notify_all();
        loop {
            let changed = self.changed.listen();
            if !lock(&self.state).running {
                return;
            }
            changed.await;
        }
    }

    async fn stopped(&self) {
        loop {
            let changed = self.changed.listen();
            if lock(&self.state).stopping {
                return;
            }
            changed.await;
        }
    }

    /// Completes at `earliest` if there was a kick by then, else at the next kick or tick; later while others are busy.
    async fn due(&self, earliest: Duration) {
        self.env.sleep_until(earliest).await;
        let tick = earliest + TICK;
        loop {
            let changed = self.changed.listen();
            if lock(&self.state).kicked {
                break;
            }
            if let Either::Right(()) = race(changed, self.env.sleep_until(tick)).await {
                break;
            }
        }
        let end = self.env.now() + YIELD_MAX;
        while self.yields() && self.env.now() < end {
            self.env.sleep_until(self.env.now() + YIELD).await;
        }
    }

    /// Others have the machine first.
    fn yields(&self) -> bool {
        self.env.is_busy() && !lock(&self.state).hurried
    }

    /// How many objects are deleted at once.
    fn width(&self) -> usize {
        if self.yields() { DELETES_BESIDE } else { DELETES }
    }

    /// Does everything once; counts in `done` what was done, also if it ends early.
    async fn pass(&self, done: &mut Pass) -> Result<(), UpkeepError> {
        self.env.pause().await;
        let drained = self.drain_into(done).await;
        let arriving = !lock(&self.state).ended.is_empty() && self.env.objects().is_arriving();
        let (ended, early, settled) = {
            let mut state = lock(&self.state);
            let once = planted::is(Bug::ListedOnce) || planted::is(Bug::ListCutShort);
            if arriving {
                state.settled_at = self.env.now() + SETTLE;
            }
            let settled = self.env.now() >= state.settled_at || once;
            (mem::take(&mut state.ended), state.early, settled)
        };
        let mut left = HandBack { collector: self, ended };
        if left.ended.is_empty() {
            return drained;
        }
        if settled {
            self.collect(&mut left.ended).await?;
        } else if !early {
            self.collect_early(&left.ended).await?;
            lock(&self.state).early = true;
        }
        drained
    }

    /// One full pass over the queues: sweeps what was removed, then deletes what nothing refers to.
    async fn drain_into(&self, done: &mut Pass) -> Result<(), UpkeepError> {
        let swept = self.sweep_all(done).await;
        self.delete_queued(done).await?;
        swept
    }

    /// Removes the inodes that were unlinked but open when an earlier session ended: all orphans there are. To be
    /// called at mount, before anything can be unlinked.
    pub(crate) async fn reap_orphans(&self) -> Result<u64, MetaError> {
        let mut count = 0;
        let mut pause = RETRY_PAUSE;
        loop {
            let before = count;
            match self.try_reap_orphans(&mut count).await {
                Ok(()) => return Ok(count),
                // Reaping again what was reaped does nothing, so an unknown outcome is as good as none.
                Err(MetaError::Retry | MetaError::Unknown) if before < count || pause < PASS_INTERVAL => {
                    pause = if before < count { RETRY_PAUSE } else { 2 * pause };
                    self.env.sleep_until(self.env.now() + pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_reap_orphans(&self, count: &mut u64) -> Result<(), MetaError> {
        let meta = &self.meta;
        let mut after: Option<Ino> = None;
        loop {
            let page = meta.read(|read| sweep::orphans(read, after, BATCH)).await?;
            let Some(last) = page.last().copied() else { return Ok(()) };
            for ino in page {
                let ctx = self.ctx();
                match meta.write(|txn| remove::reap(txn, &ctx, ino, &[])).await {
                    Ok(_) => *count += 1,
                    // One damaged inode does not keep the volume from being mounted; fsck reports it.
                    Err(MetaError::Op(error @ (OpError::Errno(_) | OpError::Damaged(_)))) => {
                        tracing::warn!(ino = ino.0, %error, "an unlinked inode cannot be removed");
                    }
                    Err(error) => return Err(error),
                }
            }
            after = Some(last);
            self.kick();
        }
    }

    /// Removes the slice records of deleted files and those that cuts cover, piece by piece; each piece queues in one
    /// transaction the slices that it frees.
    async fn sweep_all(&self, done: &mut Pass) -> Result<(), UpkeepError> {
        let meta = &self.meta;
        loop {
            let files = meta.read(|read| sweep::delfiles(read, BATCH)).await?;
            if !self.sweep_page(files, Sweep::Delfile, done).await? {
                break;
            }
        }
        loop {
            let files = meta.read(|read| sweep::cutfiles(read, BATCH)).await?;
            if !self.sweep_page(files, Sweep::Cuts, done).await? {
                break;
            }
        }
        Ok(())
    }

    /// Sweeps what there is to sweep, beside the task: somebody waits for the space.
    pub(crate) async fn sweep_now(&self) -> Result<(), UpkeepError> {
        self.sweep_all(&mut Pass::default()).await
    }

    /// Sweeps each file of a page of a queue; whether there may be another page. A file that cannot be swept does not
    /// keep the others of its page waiting, but ends the pass if nothing else is on it.
    async fn sweep_page(&self, files: Vec<Ino>, kind: Sweep, done: &mut Pass) -> Result<bool, UpkeepError> {
        let mut failed = None;
        let before = done.files;
        for ino in files {
            match self.sweep_file(ino, kind).await {
                Ok(()) => done.files += 1,
                Err(error @ MetaError::Failed) => return Err(error.into()),
                Err(error @ (MetaError::Op(_) | MetaError::Retry | MetaError::Unknown)) => {
                    tracing::warn!(ino = ino.0, %error, "sweeping a removed file failed");
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if done.files == before => Err(error.into()),
            Some(_) | None => Ok(before < done.files),
        }
    }

    async fn sweep_file(&self, ino: Ino, kind: Sweep) -> Result<(), MetaError> {
        loop {
            let ctx = self.ctx();
            let done = self.meta.write(|txn| match kind {
                Sweep::Delfile => sweep::sweep_delfile(txn, &ctx, ino, SWEEP),
                Sweep::Cuts => sweep::sweep_cuts(txn, &ctx, ino, SWEEP),
            });
            if done.await?.value {
                reached_if(Mark::CutSwept, || kind == Sweep::Cuts);
                return Ok(());
            }
        }
    }

    /// Deletes the objects of all slices that are queued, batch by batch.
    async fn delete_queued(&self, done: &mut Pass) -> Result<(), UpkeepError> {
        let meta = &self.meta;
        let mut after: Option<SliceId> = None;
        loop {
            // 1. The proof: a slice is queued in the transaction that removes the last record of it.
            let batch = meta.read(|read| sweep::delslices(read, after, BATCH)).await?;
            let Some((last, _)) = batch.last().copied() else { return Ok(()) };
            // 2. The proof is durable: no power cut brings the reference back.
            if !planted::is(Bug::DeleteBeforeSync) {
                meta.sync(meta.last()).await?;
            }
            // 3. Whoever reads by a reference seen before has left.
            if !planted::is(Bug::DeleteWithoutGrace) {
                self.grace.quiesce().await;
            }
            if planted::is(Bug::QueueDroppedFirst) {
                let all: Vec<SliceId> = batch.iter().map(|(slice, _)| *slice).collect();
                meta.write(|txn| sweep::drop_delslices(txn, &all)).await?;
            }
            // 4. The objects.
            let (gone, failed) = self.delete_slices(&batch, &mut done.objects).await;
            // 5. They are gone for good: no power cut brings back what nobody would look for.
            if !gone.is_empty() && !planted::is(Bug::DeleteWithoutBarrier) {
                self.barrier().await?;
            }
            // 6. The entries of slices without objects, and only those.
            meta.write(|txn| sweep::drop_delslices(txn, &gone)).await?;
            done.slices += gone.len() as u64;
            if let Some(error) = failed {
                return Err(error);
            }
            after = Some(last);
        }
    }

    /// Deletes every block of the slices, also from memory; which slices have none left, and what ended it early.
    async fn delete_slices(&self, slices: &[(SliceId, u32)], objects: &mut u64) -> (Vec<SliceId>, Option<UpkeepError>) {
        // Objects of each slice that were not deleted yet.
        let mut left: Vec<u32> = slices.iter().map(|(_, len)| self.geometry.block_count(*len)).collect();
        let mut objects_left = Vec::new();
        for (place, (slice, len)) in slices.iter().enumerate() {
            objects_left.extend(blocks(self.geometry, *slice, *len).map(|id| (place, id)));
        }
        objects_left.iter().for_each(|(_, id)| self.blocks.forget(*id));
        let requests =
            objects_left.into_iter().map(|(place, id)| async move { (place, self.delete(object_key(id)).await) });
        let mut failed = None;
        let width = || self.width();
        run_bounded(width, requests, |(place, result)| {
            match result {
                Ok(()) => {
                    left[place] -= 1;
                    *objects += 1;
                }
                Err(error) => failed = Some(error),
            }
            failed.is_none()
        })
        .await;
        let gone = slices.iter().zip(&left).filter(|(_, left)| **left == 0).map(|((slice, _), _)| *slice);
        (gone.collect(), failed)
    }

    /// Deletes one object, within the deadline.
    async fn delete(&self, key: String) -> Result<(), UpkeepError> {
        let deadline = self.env.now() + REQUEST_DEADLINE;
        match timeout(&self.env, deadline, self.env.objects().delete(&key)).await {
            Some(Ok(()) | Err(StoreError::NotFound)) => Ok(()),
            Some(Err(_)) if planted::is(Bug::FailedDeleteDropped) => Ok(()),
            Some(Err(error)) => Err(error.into()),
            None => Err(UpkeepError::Deadline),
        }
    }

    /// Makes the deletes so far durable, within the deadline.
    async fn barrier(&self) -> Result<(), UpkeepError> {
        let deadline = self.env.now() + REQUEST_DEADLINE;
        let done = timeout(&self.env, deadline, self.env.objects().barrier()).await;
        Ok(done.ok_or(UpkeepError::Deadline)??)
    }

    fn ctx(&self) -> OpCtx {
        OpCtx { now: self.env.wall(), stripe: self.env.stripe(), geometry: self.geometry }
    }
}

/// Which queue of files is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sweep {
    Delfile,
    Cuts,
}

/// The blocks of a slice of `stored_len` bytes.
pub(super) fn blocks(geometry: Geometry, slice: SliceId, stored_len: u32) -> impl Iterator<Item = BlockId> + Send {
    (0..geometry.block_count(stored_len)).map(move |index| {
        let start = index * geometry.block_size;
        BlockId { slice, index, len: (stored_len - start).min(geometry.block_size) }
    })
}

/// Tells `stop` that the task has ended, however it ended.
struct Running<E: Env>(Arc<Collector<E>>);

impl<E: Env> Drop for Running<E> {
    fn drop(&mut self) {
        lock(&self.0.state).running = false;
        self.0.changed.notify_all();
    }
}

/// Gives leases back that were not collected, however the attempt ended.
struct HandBack<'a, E: Env> {
    collector: &'a Collector<E>,
    ended: Vec<Range<u64>>,
}

impl<E: Env> Drop for HandBack<'_, E> {
    fn drop(&mut self) {
        lock(&self.collector.state).ended.append(&mut self.ended);
    }
}
