//! Reaping: what lost its last name goes when the kernel has forgotten it.
//!
//! Owns: who waits to be reaped, and the count of them. Leaves to others: what reaping is in metadata (`meta::remove`), when
//! an inode is an orphan that nobody holds (`files`).
//!
//! Invariants
//! - From the call on that says so (`reap`, `reap_soon`) an orphan counts as being reaped until its transaction has ended:
//!   an unmount waits for it.
//! - One that cannot be removed keeps none of the others.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::mem;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use super::Shared;
use super::std::sync::Mutex;
use super::wait::{Notify, lock, timeout};
use crate::env::Env;
use crate::errno::Errno;
use crate::marks::{Mark, reached, reached_if};
use crate::meta;
use crate::planted::{self, Bug};
use crate::types::{Ino, SliceId};

/// How long an orphan waits for others, and how many go in one transaction at most. A store that writes what is committed a
/// little later need not write what is gone by then.
const DELAY: Duration = Duration::from_millis(1);
const BATCH: usize = 32;
/// Who wants the room that orphans leave waits so long at most.
const SOON: Duration = Duration::from_millis(100);

/// Orphans on their way out.
#[derive(Default)]
pub(super) struct Orphans {
    /// All of them.
    count: AtomicU64,
    /// Of these, what waits for others.
    queue: Mutex<Vec<Ino>>,
    /// Some of them are gone.
    ended: Notify,
}

/// Some of them; when dropped they are gone.
struct Reaping<E: Env> {
    shared: Arc<Shared<E>>,
    count: u64,
}

impl<E: Env> Drop for Reaping<E> {
    fn drop(&mut self) {
        let orphans = &self.shared.orphans;
        orphans.count.fetch_sub(self.count, Ordering::AcqRel);
        orphans.ended.notify_all();
    }
}

impl Orphans {
    /// There are some.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }
}

impl<E: Env> Shared<E> {
    /// Removes an orphan that nobody can reach any more, a little later: those who remove many files come first, and their
    /// inodes go in few transactions.
    pub(super) fn reap_soon(self: &Arc<Self>, ino: Ino) {
        if self.files.get(ino).is_some() {
            return self.env.spawn(self.clone().reap(ino));
        }
        self.orphans.count.fetch_add(1, Ordering::AcqRel);
        let first = {
            let mut queue = lock(&self.orphans.queue);
            queue.push(ino);
            queue.len() == 1
        };
        if first {
            let shared = self.clone();
            self.env.spawn(async move { shared.reap_queued().await });
        }
    }

    async fn reap_queued(self: Arc<Self>) {
        self.env.sleep_until(self.env.now() + DELAY).await;
        let queue = mem::take(&mut *lock(&self.orphans.queue));
        for inos in queue.chunks(BATCH) {
            let _reaping = Reaping { shared: self.clone(), count: inos.len() as u64 };
            // One that is damaged keeps none of the others; what was removed after all is left alone.
            if self.remove(inos, &[]).await.is_err() {
                for ino in inos {
                    self.clone().reap_now(*ino).await;
                }
            }
        }
    }

    /// As `reap_now`. It counts as under way from this call on.
    pub(super) fn reap(self: Arc<Self>, ino: Ino) -> impl Future<Output = ()> + Send {
        self.orphans.count.fetch_add(1, Ordering::AcqRel);
        let reaping = Reaping { shared: self, count: 1 };
        async move { reaping.shared.clone().reap_now(ino).await }
    }

    /// Completes when nothing is being reaped.
    pub(super) async fn reaped(&self) {
        loop {
            let ended = self.orphans.ended.listen();
            if !self.orphans.any() {
                return;
            }
            ended.await;
        }
    }

    /// Waits for what is being reaped, but not for what others add again and again.
    pub(super) async fn reaped_soon(&self) {
        timeout(&self.env, self.env.now() + SOON, self.reaped()).await;
    }

    /// Removes an orphan that nobody can reach any more, and what it had not committed.
    async fn reap_now(self: Arc<Self>, ino: Ino) {
        let mut given_up = Vec::new();
        if let Some(cell) = self.files.get(ino) {
            lock(&cell.state).file.discard();
            // A handle may be released after its inode was forgotten: requests of the kernel overtake each other.
            loop {
                let changed = cell.changed.listen();
                {
                    let mut state = lock(&cell.state);
                    if !state.file.is_busy() && state.pins == 0 {
                        let unknown = state.file.has_open_commit();
                        let (slices, freed) = state.file.take_given_up();
                        if unknown {
                            // What it may have taken is counted before it is no longer counted here, as in `commit`.
                            self.space.begin();
                            self.space.end((freed.bytes + freed.reserved) as i64);
                        }
                        self.memory.give(freed.bytes);
                        self.space.release(freed.reserved);
                        if !planted::is(Bug::GivenUpForgotten) {
                            given_up = slices;
                        }
                        break;
                    }
                }
                changed.await;
            }
            // Those who wait for its bytes wait in vain.
            cell.changed.notify_all();
            self.files.retire(&cell);
        }
        if let Err(errno) = self.remove(&[ino], &given_up).await {
            // The next mount finds the orphan, and the objects under the leases of this session.
            self.unsure.store(true, Ordering::Release);
            tracing::warn!(ino = ino.0, ?errno, "an unlinked inode could not be removed; the next mount will");
        }
    }

    /// Removes inodes, and has the slices deleted that they had `given_up`, in one transaction.
    async fn remove(&self, inos: &[Ino], given_up: &[(SliceId, u32)]) -> Result<(), Errno> {
        inos.iter().for_each(|ino| self.accesses.forget(*ino));
        self.space.begin();
        let removed = self
            .mutate(|txn, ctx| {
                inos.iter().try_fold(0, |freed, ino| Ok(freed + meta::remove::reap(txn, ctx, *ino, given_up)?))
            })
            .await;
        self.space.end(-removed.map_or(0, |freed| freed as i64));
        removed?;
        reached(Mark::OrphanReaped);
        reached_if(Mark::OrphansReapedTogether, || inos.len() > 1);
        self.collector.kick();
        Ok(())
    }

    /// Removes all orphans: the kernel is gone and holds none of them open.
    pub(super) async fn reap_all(self: &Arc<Self>) {
        for file in self.files.close_all() {
            self.files.unpin(&file.cell);
        }
        for ino in self.files.orphans() {
            self.clone().reap(ino).await;
        }
    }
}
