//! The other half of the file machine: completions that the client feeds in, and what it asks for when polled.
//!
//! Owns: when a put, a barrier, a commit may start; what their outcomes change. (The invariants are in `machine`.)

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::super::slice::{DirtySlice, backoff};
use super::{Action, COMMIT_SLICES_MAX, CommitOutcome, Dirty, File, Freed, InFlight, PutOutcome};
use crate::errno::Errno;
use crate::marks::{Mark, reached_if};
use crate::meta::{Change, Commit};
use crate::planted::{self, Bug};
use crate::types::{BlockId, SliceId};

impl File {
    // ---- completions

    /// A put ended.
    pub fn handle_put(&mut self, now: Duration, key: u64, index: u32, outcome: PutOutcome) {
        let slice = self.slices.get_mut(&key).expect("a slice stays until its puts have ended");
        match outcome {
            PutOutcome::Done => {
                slice.put_done(index);
                if slice.all_put(&self.geometry) {
                    self.unput.remove(&key);
                }
                self.recover();
            }
            PutOutcome::Failed { .. } if planted::is(Bug::FailedPutDropped) => slice.put_done(index),
            PutOutcome::Failed { errno, lasting } => {
                slice.put_failed(index, now);
                self.fail(now, errno, lasting);
            }
        }
    }

    /// A barrier ended. If it failed, what was put before it counts as lost and is put again.
    pub fn handle_barrier(&mut self, now: Duration, number: u64, outcome: PutOutcome) {
        assert_eq!(self.barrier.take(), Some(number), "completion of a barrier that was not started");
        match outcome {
            PutOutcome::Done => {
                for batch in self.batches.iter_mut().filter(|batch| batch.number <= number) {
                    batch.durable = true;
                }
                self.barrier_retry_at = None;
                self.recover();
            }
            PutOutcome::Failed { errno, lasting } => {
                let pause = if planted::is(Bug::BarrierNotRetried) { Duration::from_secs(3600) } else { backoff(0) };
                let retry_at = now + pause;
                self.barrier_retry_at = Some(retry_at);
                let from = self.batches.iter().find(|batch| !batch.durable).map_or(0, |batch| batch.first_key);
                reached_if(Mark::BarrierFailedForLater, || {
                    self.slices.range(self.key_limit(number)..).any(|(_, slice)| slice.any_put())
                });
                // Also puts of later batches: the failed barrier had them to make durable too, and no later one will.
                for (key, slice) in self.slices.range_mut(from..).filter(|(_, slice)| slice.any_put()) {
                    slice.forget_puts(retry_at);
                    self.unput.insert(*key);
                }
                self.fail(now, errno, lasting);
            }
        }
    }

    /// A commit ended. Returns what is free again; `keep` is handed every block that the store
    /// now holds.
    pub fn handle_commit(
        &mut self,
        now: Duration,
        outcome: CommitOutcome,
        mut keep: impl FnMut(BlockId, Bytes),
    ) -> Freed {
        let in_flight = self.commit.as_mut().expect("completion of a commit that was not started");
        assert!(in_flight.running, "completion of a commit that was not started");
        in_flight.running = false;
        match outcome {
            CommitOutcome::Applied { fresh, length, copied } => {
                let commit = in_flight.commit.clone();
                reached_if(Mark::CommitRepeated, || in_flight.attempts > 0);
                self.commit = None;
                self.recover();
                self.settle(&commit, fresh, length, &mut keep, copied)
            }
            CommitOutcome::Failed { errno, lasting } => {
                in_flight.retry_at = now + backoff(in_flight.attempts);
                in_flight.attempts += 1;
                self.fail(now, errno, lasting);
                Freed::default()
            }
            CommitOutcome::Gone => {
                self.discarded = true;
                Freed::default()
            }
        }
    }

    /// The commit is visible: its members leave the queue, readers find them in the view.
    fn settle(
        &mut self,
        commit: &Commit,
        fresh: bool,
        length: Option<u64>,
        keep: &mut impl FnMut(BlockId, Bytes),
        copied: Option<u64>,
    ) -> Freed {
        let copies = commit.changes.iter().any(|change| matches!(change, Change::Copy(_)));
        if fresh && !copies {
            self.view.advance();
            for change in &commit.changes {
                match change {
                    Change::Slice { chunk, record } => self.view.apply(&self.geometry, *chunk, record),
                    Change::Truncate { length } => self.view.truncate(*length),
                    Change::Punch { offset, len } => self.view.punch(*offset..offset + len),
                    Change::Reserve { offset, len, extend } => self.view.reserve(*offset..offset + len, *extend),
                    Change::Copy(_) | Change::Written { .. } | Change::Attrs { .. } => {}
                }
            }
        } else {
            self.view.forget(length);
        }
        let below = self.key_limit(commit.number);
        let mut freed = Freed::default();
        while let Some(batch) = self.batches.pop_front_if(|batch| batch.number <= commit.number) {
            freed.reserved += batch.charge;
        }
        if copies {
            self.last_copy = Some((commit.number, copied.filter(|_| fresh)));
            self.grow_by_copy(length);
        }
        self.reserving.retain(|member| member.0 > commit.number);
        let waits = |source: &Dirty| match source {
            Dirty::Slice { key, .. } => *key >= below,
            Dirty::Hole { number } => *number > commit.number && !planted::is(Bug::HoleForgotten),
        };
        if commit.changes.iter().any(|change| matches!(change, Change::Truncate { .. } | Change::Punch { .. })) {
            self.dirty.retain(waits);
        }
        self.committed = commit.number;
        while let Some(entry) = self.slices.first_entry().filter(|entry| *entry.key() < below) {
            let slice = entry.remove();
            let start = u64::from(slice.chunk) * self.geometry.chunk_size;
            self.dirty.retain_in(start + u64::from(slice.pos)..start + u64::from(slice.end()), waits);
            freed.bytes += u64::from(slice.len);
            slice.payloads().for_each(|(id, payload)| keep(id, payload));
        }
        self.dirty_bytes -= freed.bytes;
        freed
    }

    // ---- outputs

    /// The next thing to do at `now`; `next_id` yields slice ids of a synced lease.
    pub fn poll_action(&mut self, now: Duration, next_id: &mut dyn FnMut() -> Option<SliceId>) -> Option<Action> {
        if self.discarded {
            return None;
        }
        if let Some(action) = self.poll_put(now, next_id) {
            return Some(action);
        }
        self.poll_barrier(now).or_else(|| self.poll_commit(now))
    }

    /// When to poll again though nothing completes: a failed attempt is due.
    pub fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        if self.discarded {
            return None;
        }
        let puts = self.unput.iter().filter_map(|key| self.slices[key].retry_at(now)).min();
        let commit = self.commit.as_ref().filter(|commit| !commit.running).map(|commit| commit.retry_at);
        let later = |at: &Duration| *at > now;
        [puts, commit.filter(later), self.barrier_retry_at.filter(later)].into_iter().flatten().min()
    }

    fn poll_put(&mut self, now: Duration, next_id: &mut dyn FnMut() -> Option<SliceId>) -> Option<Action> {
        let wanted_below = self.key_limit(self.wanted);
        let geometry = self.geometry;
        for &key in &self.unput {
            let slice = self.slices.get_mut(&key).expect("it is to be put");
            let Some(index) = slice.next_put(&geometry, now) else { continue };
            // A short tail waits until its batch is wanted; a full block goes out while its slice still grows.
            if key >= wanted_below && slice.len - index * geometry.block_size < geometry.block_size {
                continue;
            }
            let Some(id) = slice.id.or_else(&mut *next_id) else { return Some(Action::NeedId) };
            reached_if(Mark::PutOfGrowingSlice, || key >= wanted_below);
            let (id, payload) = slice.start_put(index, id);
            return Some(Action::Put { key, id, payload });
        }
        None
    }

    fn poll_barrier(&mut self, now: Duration) -> Option<Action> {
        if self.barrier.is_some() || self.barrier_retry_at.is_some_and(|at| at > now) {
            return None;
        }
        let mut number = None;
        for index in 0..self.batches.len() {
            let batch = &self.batches[index];
            if !batch.frozen || batch.number > self.wanted {
                break;
            }
            if batch.durable {
                continue;
            }
            let early = |slice: &DirtySlice| planted::is(Bug::BarrierBeforePut) && slice.all_started();
            if self.slices_of(index).any(|slice| !slice.all_put(&self.geometry) && !early(slice)) {
                break;
            }
            // Only bytes in the store need the barrier.
            let stored = self.slices_of(index).any(|slice| slice.id.is_some()) && !planted::is(Bug::BarrierSkipped);
            if stored {
                number = Some(batch.number);
            } else {
                self.batches[index].durable = true;
            }
        }
        reached_if(Mark::BarrierRetried, || number.is_some() && self.barrier_retry_at.is_some());
        self.barrier = number;
        number.map(|number| Action::Barrier { number })
    }

    fn poll_commit(&mut self, now: Duration) -> Option<Action> {
        if let Some(commit) = &mut self.commit {
            if commit.running || commit.retry_at > now {
                return None;
            }
            commit.running = true;
            return Some(Action::Commit(commit.commit.clone()));
        }
        let mut changes = Vec::new();
        let mut slices = 0;
        let mut number = None;
        let mut batches = 0;
        for (index, batch) in self.batches.iter().enumerate() {
            let ready = batch.frozen && batch.durable && batch.number <= self.wanted;
            if !ready && planted::is(Bug::CommitOutOfOrder) {
                continue;
            }
            if planted::is(Bug::BarrierBeforePut) && self.slices_of(index).any(|slice| !slice.all_put(&self.geometry)) {
                break;
            }
            // A copy goes alone: its outcome is that of the commit.
            if !ready || (number.is_some() && batch.copies()) {
                break;
            }
            if number.is_some() && slices + self.slices_of(index).count() > COMMIT_SLICES_MAX {
                break;
            }
            for slice in self.slices_of(index) {
                changes.push(Change::Slice { chunk: slice.chunk, record: slice.record(&self.geometry) });
                slices += 1;
            }
            changes.extend(batch.ranges.iter().cloned());
            changes.extend(batch.attrs.iter().cloned());
            number = Some(batch.number);
            batches += 1;
            if batch.copies() {
                break;
            }
        }
        let number = number?;
        reached_if(Mark::CommitOfSlices, || slices > 1);
        reached_if(Mark::CommitOfBatches, || batches > 1);
        reached_if(Mark::CommitBehindOpenBatch, || number < self.number);
        let commit = Arc::new(Commit { ino: self.ino, number, changes });
        self.commit = Some(InFlight { commit: commit.clone(), running: true, retry_at: Duration::ZERO, attempts: 0 });
        Some(Action::Commit(commit))
    }

    fn fail(&mut self, now: Duration, errno: Errno, lasting: bool) {
        let since = *self.failure.since.get_or_insert(now);
        if lasting || (!self.failure.raised && now >= since + self.store_timeout) {
            tracing::debug!(ino = self.ino.0, ?errno, "an error is raised for those who have the file open");
            if planted::is(Bug::ErrorSwallowed) {
                return;
            }
            self.failure.raised = true;
            self.failure.count += 1;
            self.failure.errno = Some(errno);
        }
    }

    /// What is put is on its way: neither the last barrier nor the commit that is due has failed. If one has, the same
    /// may be put again and again.
    pub fn is_getting_on(&self) -> bool {
        planted::is(Bug::EndlessPatience)
            || (self.barrier_retry_at.is_none() && self.commit.as_ref().is_none_or(|commit| commit.attempts == 0))
    }

    fn recover(&mut self) {
        if self.is_getting_on() {
            self.failure.since = None;
            self.failure.raised = false;
        }
    }
}
