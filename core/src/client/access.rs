//! Access times: reads that were answered and that no inode shows yet.
//!
//! Owns: which they are, until they are recorded. Leaves to others: what they mean (`meta::attr::atime_after`), when
//! they are recorded (every commit interval and at unmount, many in one transaction).
//!
//! Nothing waits for a record, no promise speaks of it, and a crash takes back at most an interval (lazytime of Linux).
//! Attributes are shown with what is not recorded.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;

use super::wait::lock;
use super::{Shared, std};
use crate::env::Env;
use crate::errno::Errno;
use crate::marks::{Mark, reached};
use crate::meta::{self, Accesses};
use crate::types::{AtimeMode, Attr, Ino, Timestamp};

const SHARDS: usize = 64;
/// Inodes remembered at most; further ones show no access. (10 MiB)
const INODES_MAX: usize = 1 << 16;
/// Inodes recorded in one transaction.
const BATCH: usize = 64;

#[derive(Debug)]
pub(super) struct AccessTable {
    mode: AtimeMode,
    shards: [Mutex<BTreeMap<Ino, Accesses>>; SHARDS],
    count: AtomicUsize,
}

impl AccessTable {
    pub(super) fn new(mode: AtimeMode) -> Self {
        Self { mode, shards: core::array::from_fn(|_| Mutex::default()), count: AtomicUsize::new(0) }
    }

    fn shard(&self, ino: Ino) -> &Mutex<BTreeMap<Ino, Accesses>> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    fn get(&self, ino: Ino) -> Option<Accesses> {
        lock(self.shard(ino)).get(&ino).copied()
    }

    /// `ino` was read.
    fn note(&self, ino: Ino, at: Timestamp) {
        let mut shard = lock(self.shard(ino));
        if let Some(accesses) = shard.get_mut(&ino) {
            accesses.last = at;
        } else if self.count.load(Ordering::Relaxed) < INODES_MAX {
            shard.insert(ino, Accesses { first: at, last: at });
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Drops what is known of `ino`: its access time is set, or it is gone.
    pub(super) fn forget(&self, ino: Ino) {
        if lock(self.shard(ino)).remove(&ino).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// `attr`, with what is not recorded.
    pub(super) fn show(&self, ino: Ino, attr: &mut Attr) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(accesses) = self.get(ino)
            && let Some(atime) = meta::attr::atime_after(attr, &accesses, self.mode)
        {
            attr.atime = atime;
        }
    }

    /// What is recorded needs no memory, unless it was read again.
    fn recorded(&self, ino: Ino, recorded: Accesses) {
        let mut shard = lock(self.shard(ino));
        if shard.get(&ino) == Some(&recorded) {
            shard.remove(&ino);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn all(&self) -> Vec<(Ino, Accesses)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).iter().map(|(ino, accesses)| (*ino, *accesses)));
        }
        all
    }
}

impl<E: Env> Shared<E> {
    /// `ino` was read.
    pub(super) fn accessed(&self, ino: Ino) {
        if self.accesses.mode != AtimeMode::Noatime && !self.options.read_only {
            self.accesses.note(ino, self.env.wall());
        }
    }

    /// `ino`, whose attributes without unrecorded accesses are `attr`, was read: true if they show another time now.
    pub(super) fn accessed_showing(&self, ino: Ino, attr: &Attr) -> bool {
        let (mut before, mut after) = (*attr, *attr);
        self.accesses.show(ino, &mut before);
        self.accessed(ino);
        self.accesses.show(ino, &mut after);
        before.atime != after.atime
    }

    /// Records what was read so far.
    pub(super) async fn record_accesses(self: &Arc<Self>) -> Result<(), Errno> {
        let table = &self.accesses;
        for batch in table.all().chunks(BATCH) {
            self.env.pause().await;
            let recorded = self.mutate(|txn, _| {
                for (ino, _) in batch {
                    meta::attr::record_accesses(txn, *ino, || table.get(*ino), table.mode)?;
                }
                Ok(())
            });
            recorded.await?;
            reached(Mark::AccessesRecorded);
            batch.iter().for_each(|(ino, accesses)| table.recorded(*ino, *accesses));
        }
        Ok(())
    }
}
