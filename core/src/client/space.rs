//! Space on a volume: how much is taken, and whether more may be.
//!
//! Owns: the figure of bytes used, space set aside for reservations, what is tried before ENOSPC is answered.
//! Leaves to others: what a file takes (`meta::edit`), the limit itself (a setting of the volume).
//!
//! Taken is what metadata counts, what is accepted and not committed (memory), and what is reserved and not committed.
//! Accepted bytes may lie over others and count twice then, until they are committed; so before anyone is told that
//! there is no space, everything is committed and swept, and counted again.
//!
//! Invariants
//! - A write into bytes that take space already needs none: it is never refused for want of space.
//! - The figure follows every commit, and is read anew now and then. A reading that a commit overlaps may hold it or not,
//!   and is dropped. What the figure does not know of (a commit whose answer was lost, a sweep) makes it too large only.

use alloc::sync::Arc;
use core::ops::Range;

use super::Shared;
use super::files::Cell;
use super::std::sync::Mutex;
use super::wait::lock;
use crate::env::Env;
use crate::errno::Errno;
use crate::file::machine::Unloaded;
use crate::marks::{Mark, reached};
use crate::meta;

/// What a volume without a limit could hold: 1 PiB, as JuiceFS says.
pub const UNLIMITED_BYTES: u64 = 1 << 50;

/// Readings of usage that commits may overlap until the figure stays as it is.
const READINGS: u32 = 8;

/// What is taken, as far as this mount knows.
#[derive(Debug, Default)]
pub(super) struct Space(Mutex<Figures>);

#[derive(Debug, Default)]
struct Figures {
    /// Bytes that metadata counts.
    used: u64,
    /// Bytes of reservations that are accepted and not committed.
    reserving: u64,
    /// Transactions under way that may change `used`, and how many have ended.
    changing: u64,
    changed: u64,
}

impl Space {
    /// A transaction that may change what a file takes begins.
    pub(super) fn begin(&self) {
        lock(&self.0).changing += 1;
    }

    /// It has ended, and changed what is taken `by` so much.
    pub(super) fn end(&self, by: i64) {
        let mut figures = lock(&self.0);
        figures.changing -= 1;
        figures.changed += 1;
        figures.used = figures.used.saturating_add_signed(by);
    }

    /// A reservation is committed or given up.
    pub(super) fn release(&self, bytes: u64) {
        lock(&self.0).reserving -= bytes;
    }

    /// Bytes of reservations that are accepted and not committed.
    pub(super) fn reserving(&self) -> u64 {
        lock(&self.0).reserving
    }

    /// Sets `len` bytes aside unless that exceeds `limit`, of which `memory` bytes are accepted elsewhere.
    fn claim(&self, len: u64, memory: u64, limit: u64) -> bool {
        let mut figures = lock(&self.0);
        let fits = figures.used.saturating_add(figures.reserving + memory).saturating_add(len) <= limit;
        figures.reserving += if fits { len } else { 0 };
        fits
    }

    /// `len` bytes more are within `limit`, of which `memory` bytes are accepted elsewhere.
    pub(super) fn fits(&self, len: u64, memory: u64, limit: u64) -> bool {
        let figures = lock(&self.0);
        figures.used.saturating_add(figures.reserving + memory).saturating_add(len) <= limit
    }

    fn changed(&self) -> u64 {
        lock(&self.0).changed
    }

    /// A reading that began when `changed` transactions had ended has found `used`; false: one has overlapped it.
    fn set(&self, used: u64, changed: u64) -> bool {
        let mut figures = lock(&self.0);
        let clean = figures.changing == 0 && figures.changed == changed;
        if clean {
            figures.used = used;
        }
        clean
    }
}

impl<E: Env> Shared<E> {
    /// The limit in force. (`u64::MAX`: none)
    fn limit(&self) -> u64 {
        if self.volume.capacity > 0 { self.volume.capacity } else { u64::MAX }
    }

    /// `len` bytes more might not fit on the volume.
    pub(super) fn near_capacity(&self, len: u64) -> bool {
        self.volume.capacity > 0 && !self.space.fits(len, self.memory.used(), self.limit())
    }

    /// Reads how much the volume holds. Only kept up on volumes with a limit.
    pub(super) async fn refresh_usage(&self) -> Result<(), Errno> {
        if self.volume.capacity > 0 {
            for _ in 0..READINGS {
                let changed = self.space.changed();
                let usage = self.read(meta::volume::usage).await?;
                if self.space.set(usage.bytes, changed) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Makes sure that there is space for what of `range` takes none; returns at most how much that is. ENOSPC.
    pub(super) async fn room(self: &Arc<Self>, cell: &Arc<Cell>, range: Range<u64>) -> Result<u64, Errno> {
        let len = range.end - range.start;
        if !self.near_capacity(len) {
            return Ok(len);
        }
        let need = self.unallocated(cell, range.clone()).await?;
        if need == 0 || !self.near_capacity(need) {
            return Ok(need);
        }
        self.give_back().await?;
        let need = self.unallocated(cell, range).await?;
        if need > 0 && self.near_capacity(need) {
            reached(Mark::WriteBeyondCapacity);
            return Err(Errno::ENOSPC);
        }
        Ok(need)
    }

    /// With `over` bytes of memory that take no space once they are committed, the volume holds what it may.
    pub(super) fn within_capacity(&self, over: u64) -> bool {
        self.volume.capacity == 0 || self.space.fits(0, self.memory.used().saturating_sub(over), self.limit())
    }

    /// Sets aside what of `range` takes no space; returns how much that is. ENOSPC.
    pub(super) async fn claim(self: &Arc<Self>, cell: &Arc<Cell>, range: Range<u64>) -> Result<u64, Errno> {
        if range.end - range.start > UNLIMITED_BYTES {
            return Err(Errno::ENOSPC);
        }
        let need = self.unallocated(cell, range.clone()).await?;
        if need == 0 || self.space.claim(need, self.memory.used(), self.limit()) {
            return Ok(need);
        }
        self.give_back().await?;
        let need = self.unallocated(cell, range).await?;
        if need > 0 && !self.space.claim(need, self.memory.used(), self.limit()) {
            return Err(Errno::ENOSPC);
        }
        Ok(need)
    }

    /// Commits what is accepted and sweeps what was cut off, so that what is counted is what is there.
    async fn give_back(self: &Arc<Self>) -> Result<(), Errno> {
        let cells = self.files.dirty();
        self.start_flush(&cells);
        let deadline = self.deadline();
        for cell in cells {
            let seen = lock(&cell.state).file.error_count();
            // An error is told to those who have the file open; its bytes go on counting.
            let _ = self.flush(&cell, seen, deadline).await;
        }
        self.reaped_soon().await;
        // A sweep that fails is tried again by the task whose work it is.
        let _ = self.collector.sweep_now().await;
        self.refresh_usage().await
    }

    /// Bytes of `range` that take no space and are not about to.
    async fn unallocated(&self, cell: &Cell, range: Range<u64>) -> Result<u64, Errno> {
        loop {
            self.env.pause().await;
            let unloaded = match lock(&cell.state).file.unallocated(range.clone()) {
                Ok(count) => return Ok(count),
                Err(unloaded) => unloaded,
            };
            self.load(cell, unloaded).await?;
        }
    }

    /// Loads the slices of a chunk, and passes over the chunks after it that have none.
    pub(super) async fn load(&self, cell: &Cell, unloaded: Unloaded) -> Result<(), Errno> {
        let Unloaded { chunk, .. } = unloaded;
        let loaded = self.read(|read| {
            let slices = meta::data::chunk(read, self.geometry(), cell.ino, chunk)?;
            Ok((slices, meta::data::next_chunk(read, cell.ino, chunk + 1)?))
        });
        let (slices, next) = loaded.await?;
        lock(&cell.state).file.install_seen(unloaded, slices.iter().map(|(_, record)| record), next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a simulated world a truncate was in a reading before its answer was there, and then counted once more: the
    /// volume took more than its capacity.
    #[test]
    fn what_is_committed_during_a_reading_never_makes_room_that_is_not_there() {
        // A transaction that adds `by` to 100 bytes begins, takes effect and is answered before, during or after a
        // reading; it and the reading happen in some order of these six events.
        for by in [-30_i64, 30] {
            for order in (0..1_u32 << 6).filter(|order| order.count_ones() == 3) {
                let (space, mut stored) = (Space::default(), 100_u64);
                assert!(space.set(stored, 0));
                let (mut of_commit, mut of_reading, mut changed, mut found, mut clean) = (0, 0, 0, 0, true);
                for event in 0..6 {
                    if order >> event & 1 == 0 {
                        match of_commit {
                            0 => space.begin(),
                            1 => stored = stored.saturating_add_signed(by),
                            _ => space.end(by),
                        }
                        of_commit += 1;
                    } else {
                        match of_reading {
                            0 => changed = space.changed(),
                            1 => found = stored,
                            _ => clean = space.set(found, changed),
                        }
                        of_reading += 1;
                    }
                }
                assert_eq!(lock(&space.0).used, stored, "{by} {order:b}");
                assert_eq!(clean, matches!(order, 0b111 | 0b11_1000), "{order:b}");
                assert!(space.set(stored, space.changed()), "the next reading counts");
            }
        }
    }
}
