//! Collecting what ended sessions left in the store: blocks that were put and never committed.
//!
//! Owns: finding and deleting unreferenced objects under the leases of ended sessions.
//! Leaves to others: ending sessions (`meta::session`), deleting what a live session gave up (it queues that itself).
//!
//! Slice identifiers are leased by sessions, and the objects of one lease lie in one folder. This may run while the
//! mount works, for as long as it takes: only the session that leased an identifier ever commits it, and a session
//! that a transaction has ended commits nothing any more (the embedded store admits one process, so that of an ended
//! session is gone). So under these leases references only go, and an identifier that no record and no queue entry
//! holds never gets one again.
//!
//! A listing may be behind the store: what it shows though it is gone is deleted twice, what it omits is left. And the
//! store may carry out a put of the dead process later. So a lease is listed at once and again after `SETTLE`, and only
//! then done with. (What comes later still is an object that nobody refers to: space, not a danger.)
//!
//! The scan need not see one snapshot. A record stays under its key from the commit to the transaction that removes
//! it, so paging in key order misses no record that lives; and that transaction queues the slice, so reading the queue
//! *after* the records finds those whose record went in between, whose removal may not be durable. They are left to
//! the queue, whose order (`delete_queued`) they need.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::{BATCH, Collector, REQUEST_DEADLINE, UpkeepError, run_bounded, timeout};
use crate::env::{Env, MetaStore, ObjectStore};
use crate::format::block::{LEASE_SLICES, lease_prefix, parse_key};
use crate::marks::{Mark, reached_if};
use crate::meta::{session, sweep};
use crate::planted::{self, Bug};
use crate::types::SliceId;

/// Slice records read at once.
const SCAN: usize = 4096;

impl<E: Env> Collector<E> {
    /// As `collect`, but the leases stay: a listing so early may be behind.
    pub(super) async fn collect_early(&self, ended: &[Range<u64>]) -> Result<(), UpkeepError> {
        let meta = &self.meta;
        let referenced = self.referenced(ended).await?;
        meta.sync(meta.last()).await?;
        for range in ended {
            self.collect_lease(range.clone(), &referenced).await?;
        }
        Ok(())
    }

    /// Collects what the sessions left that held these leases of slice ids; each session must have been ended by a
    /// transaction that has returned. Leases that are done with leave the volume and `ended`; after an error the others
    /// are there to be tried again.
    pub(super) async fn collect(&self, ended: &mut Vec<Range<u64>>) -> Result<(), UpkeepError> {
        let meta = &self.meta;
        // 1. The proof. An error here deletes nothing.
        let referenced = self.referenced(ended).await?;
        // 2. The ends of the sessions and all that the scan saw are durable. Nobody reads what was never committed,
        //    so there is no grace to wait for.
        meta.sync(meta.last()).await?;
        while let Some(range) = ended.last().cloned() {
            let start = range.start;
            self.collect_lease(range, &referenced).await?;
            meta.write(|txn| session::drop_lease(txn, start)).await?;
            ended.pop();
        }
        Ok(())
    }

    /// Which identifiers of the leases a record or a queue entry holds.
    async fn referenced(&self, ended: &[Range<u64>]) -> Result<Marks, UpkeepError> {
        let meta = &self.meta;
        let mut marks = Marks::new(ended);
        let mut from = None;
        loop {
            let page = meta.read(|read| {
                let mut seen = Vec::new();
                let next = sweep::references(read, from.clone(), SCAN, &mut |slice| seen.push(slice))?;
                Ok((seen, next))
            });
            let (seen, next) = page.await?;
            seen.into_iter().for_each(|slice| marks.mark(slice));
            if next.is_none() {
                break;
            }
            from = next;
        }
        let mut after = None;
        loop {
            let page = meta.read(|read| sweep::delslices(read, after, BATCH)).await?;
            let Some((last, _)) = page.last().copied() else { return Ok(marks) };
            page.into_iter().for_each(|(slice, _)| marks.mark(slice));
            after = Some(last);
        }
    }

    /// Deletes the objects of one lease that nothing refers to.
    async fn collect_lease(&self, range: Range<u64>, referenced: &Marks) -> Result<(), UpkeepError> {
        let mut garbage = Vec::new();
        for start in range.clone().step_by(LEASE_SLICES as usize) {
            for key in self.list(&lease_prefix(start)).await? {
                match parse_key(&key) {
                    Some((slice, _)) if range.contains(&slice.0) => {
                        if !referenced.has(slice) {
                            garbage.push(key);
                        }
                    }
                    Some(_) | None => tracing::warn!(key, "a foreign object lies among the blocks; it is left alone"),
                }
            }
        }
        let count = garbage.len();
        let mut failed = None;
        let width = || self.width();
        run_bounded(width, garbage.into_iter().map(|key| self.delete(key)), |result| {
            failed = failed.or(result.err());
            failed.is_none()
        })
        .await;
        reached_if(Mark::CrashedPutsCollected, || 0 < count && failed.is_none());
        reached_if(Mark::CrashedLeaseEmpty, || count == 0);
        if 0 < count && failed.is_none() {
            tracing::info!(count, "deleted blocks that an ended session had put and not committed");
        }
        match failed {
            // The lease is forgotten after this, and with it where to look. What the listing did not show may have been
            // deleted by a process that died before its barrier.
            None if !planted::is(Bug::DeleteWithoutBarrier) => self.barrier().await,
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    /// All keys under `prefix`.
    async fn list(&self, prefix: &str) -> Result<Vec<String>, UpkeepError> {
        let mut keys = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let deadline = self.env.now() + REQUEST_DEADLINE;
            let page = timeout(&self.env, deadline, self.env.objects().list(prefix, after.as_deref())).await;
            if planted::is(Bug::ListCutShort) && matches!(page, Some(Err(_))) {
                return Ok(keys);
            }
            let mut page = page.ok_or(UpkeepError::Deadline)??;
            keys.append(&mut page.keys);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(keys),
            }
        }
    }
}

/// One bit for each identifier of some leases: 512 bytes a lease, however many records the volume has.
struct Marks(BTreeMap<u64, (u64, Vec<u64>)>);

impl Marks {
    fn new(leases: &[Range<u64>]) -> Self {
        let bits = |range: &Range<u64>| vec![0; (range.end - range.start).div_ceil(64) as usize];
        Self(leases.iter().map(|range| (range.start, (range.end, bits(range)))).collect())
    }

    /// The identifier's word and bit, if it lies in one of the leases.
    fn place(&self, slice: SliceId) -> Option<(u64, usize, u64)> {
        let (start, (end, _)) = self.0.range(..=slice.0).next_back()?;
        let offset = slice.0 - start;
        (slice.0 < *end).then_some((*start, (offset / 64) as usize, 1 << (offset % 64)))
    }

    fn mark(&mut self, slice: SliceId) {
        if let Some((start, word, bit)) = self.place(slice)
            && let Some((_, bits)) = self.0.get_mut(&start)
        {
            bits[word] |= bit;
        }
    }

    /// Whether the identifier is marked. One outside of all leases counts as marked: nothing is known of it.
    fn has(&self, slice: SliceId) -> bool {
        self.place(slice).is_none_or(|(start, word, bit)| self.0[&start].1[word] & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_know_their_leases_only() {
        let mut marks = Marks::new(&[4096..8192, 16384..20480]);
        for slice in [4096, 4160, 8191, 16384, 20479, 8192, 1] {
            marks.mark(SliceId(slice));
        }
        for (slice, expected) in [
            (4096, true),
            (4097, false),
            (4159, false),
            (4160, true),
            (8190, false),
            (8191, true),
            (16385, false),
            (20479, true),
        ] {
            assert_eq!(marks.has(SliceId(slice)), expected, "{slice}");
        }
        assert!([0, 1, 8192, 10000, 20480, u64::MAX].iter().all(|slice| marks.has(SliceId(*slice))));
    }
}
