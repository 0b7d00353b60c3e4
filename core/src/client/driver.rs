//! What makes a file's machine go: poll its actions, start them, feed completions back.
//!
//! Owns: the tasks of one action each. Leaves to others: what comes next (`file::machine`).
//!
//! Invariants
//! - Each action started is completed exactly once, by a spawned task.
//! - An id is used only from a durable lease (`ids`); a put is durable only past its barrier; a commit follows both.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use core::time::Duration;

use bytes::Bytes;

use super::Shared;
use super::files::Cell;
use super::wait::lock;
use crate::env::{Edge, Env, MetaError, MetaStore, ObjectStore, Point, StoreError};
use crate::errno::Errno;
use crate::file::machine::{Action, CommitOutcome, PutOutcome};
use crate::format::block::{encode_head, object_key};
use crate::kv::OpError;
use crate::marks::{Mark, reached, reached_if};
use crate::meta::{self, Change, Commit};
use crate::planted::{self, Bug};
use crate::types::{BlockId, SliceId};

impl<E: Env> Shared<E> {
    /// Starts whatever the machine of `cell` wants done.
    pub(super) fn drive(self: &Arc<Self>, cell: &Arc<Cell>) {
        let mut actions = Vec::new();
        let now = self.env.now();
        let timer = {
            let mut state = lock(&cell.state);
            while let Some(action) = state.file.poll_action(now, &mut || self.slices.take().map(SliceId)) {
                if let Action::NeedId = action {
                    // One task at a time: each goes on until there are ids.
                    if !core::mem::replace(&mut state.leasing, true) {
                        actions.push(action);
                    }
                    break;
                }
                actions.push(action);
            }
            let due = state.file.poll_timeout(now).filter(|due| state.timer.is_none_or(|timer| *due < timer));
            if due.is_some() {
                state.timer = due;
            }
            due
        };
        for action in actions {
            self.start(cell.clone(), action);
        }
        if let Some(due) = timer {
            let (shared, cell) = (self.clone(), cell.clone());
            self.env.spawn(async move { shared.wake_at(cell, due).await });
        }
    }

    fn start(self: &Arc<Self>, cell: Arc<Cell>, action: Action) {
        let shared = self.clone();
        match action {
            Action::Put { key, id, payload } => {
                self.env.spawn(async move { shared.put(cell, key, id, payload).await });
                if self.slices.is_low(self.options.slice_lease / 2) {
                    let shared = self.clone();
                    // A failure shows when the pool is empty, as `NeedId`.
                    self.env.spawn(async move { _ = shared.refill_slices().await });
                }
            }
            Action::NeedId => self.env.spawn(async move {
                reached(Mark::LeaseExhausted);
                if let Err(errno) = shared.refill_slices().await {
                    tracing::warn!(?errno, "no lease of slice ids");
                    shared.env.sleep_until(shared.env.now() + Duration::from_millis(100)).await;
                }
                lock(&cell.state).leasing = false;
                shared.drive(&cell);
            }),
            Action::Barrier { number } => self.env.spawn(async move { shared.barrier(cell, number).await }),
            Action::Commit(commit) => self.env.spawn(async move { shared.commit(cell, commit).await }),
        }
    }

    async fn wake_at(self: Arc<Self>, cell: Arc<Cell>, due: Duration) {
        self.env.sleep_until(due).await;
        {
            let mut state = lock(&cell.state);
            if state.timer == Some(due) {
                state.timer = None;
            }
        }
        self.drive(&cell);
    }

    /// After a completion: the next action, those who wait, and the end of a machine that nobody needs.
    fn progress(self: &Arc<Self>, cell: &Arc<Cell>) {
        self.drive(cell);
        cell.changed.notify_all();
        self.files.retire(cell);
    }

    async fn put(self: Arc<Self>, cell: Arc<Cell>, key: u64, id: BlockId, payload: Bytes) {
        lock(&cell.state).queued += 1;
        self.uploads.take(1).await;
        lock(&cell.state).queued -= 1;
        let head = encode_head(self.volume.id, id, self.geometry().frame_size, &payload);
        self.env.at(Point::Put, Edge::Begin);
        let result = self.env.objects().put(&object_key(id), vec![head.clone(), payload]).await;
        self.env.at(Point::Put, Edge::End);
        if result.is_ok() || !planted::is(Bug::PermitKept) {
            self.uploads.give(1);
        }
        match result {
            Ok(()) => self.blocks.note_head(id, &head),
            Err(error) => {
                self.unsure.store(true, Ordering::Release);
                tracing::debug!(ino = cell.ino.0, object = object_key(id), %error, "put failed");
                if error == StoreError::Full {
                    self.collector.hurry();
                }
            }
        }
        self.env.pause().await;
        let now = self.env.now();
        {
            let mut state = lock(&cell.state);
            if result.is_ok() && state.file.is_getting_on() {
                state.moved = now;
                self.last_put.store(now.as_nanos() as u64, Ordering::Release);
            }
            let outcome = result.map_or_else(put_failed, |()| PutOutcome::Done);
            state.file.handle_put(now, key, id.index, outcome);
        }
        self.progress(&cell);
    }

    async fn barrier(self: Arc<Self>, cell: Arc<Cell>, number: u64) {
        let outcome = self.env.objects().barrier().await.map_or_else(put_failed, |()| PutOutcome::Done);
        self.env.pause().await;
        let outcome = if planted::is(Bug::FailedBarrierAccepted) { PutOutcome::Done } else { outcome };
        lock(&cell.state).file.handle_barrier(self.env.now(), number, outcome);
        self.progress(&cell);
    }

    async fn commit(self: Arc<Self>, cell: Arc<Cell>, commit: Arc<Commit>) {
        let truncates = commit.changes.iter().any(|change| matches!(change, Change::Truncate { .. }));
        let frees = |change: &Change| matches!(change, Change::Truncate { .. } | Change::Punch { .. });
        let frees = commit.changes.iter().any(frees);
        let point = if truncates { Point::Truncate } else { Point::Commit };
        let ctx = self.ctx();
        self.space.begin();
        self.env.at(point, Edge::Begin);
        if planted::is(Bug::LengthBeforeSlice) {
            _ = self.meta.write(|txn| planted::length_alone(txn, self.geometry(), &commit)).await;
        }
        let result = self.meta.write(|txn| meta::data::commit(txn, &ctx, &commit)).await;
        self.env.at(point, Edge::End);
        self.env.pause().await;
        reached_if(Mark::CommitUnknown, || matches!(result, Err(MetaError::Unknown)));
        let grown = result.as_ref().ok().filter(|committed| committed.value.applied).map(|done| done.value.grown);
        let outcome = match result {
            Ok(committed) => CommitOutcome::from(&committed.value),
            Err(MetaError::Unknown) if planted::is(Bug::UnknownIsApplied) => CommitOutcome::NOT_FRESH,
            Err(MetaError::Retry) if planted::is(Bug::RefusedIsApplied) => CommitOutcome::NOT_FRESH,
            Err(MetaError::Op(OpError::Errno(Errno::ESTALE))) => CommitOutcome::Gone,
            Err(MetaError::Retry | MetaError::Unknown | MetaError::Op(OpError::Kv(_))) => {
                CommitOutcome::Failed { errno: Errno::EIO, lasting: false }
            }
            Err(error @ (MetaError::Op(OpError::Errno(_) | OpError::Damaged(_)) | MetaError::Failed)) => {
                tracing::warn!(ino = cell.ino.0, %error, "a commit failed; its bytes stay dirty");
                CommitOutcome::Failed { errno: super::errno(error), lasting: true }
            }
        };
        let applied = matches!(outcome, CommitOutcome::Applied { .. });
        if frees && applied {
            self.collector.kick();
        }
        let gone = matches!(outcome, CommitOutcome::Gone);
        let mut kept = Vec::new();
        let freed = {
            let (mut state, now) = (lock(&cell.state), self.env.now());
            if applied {
                state.moved = now;
            }
            state.file.handle_commit(now, outcome, |id, payload| kept.push((id, payload)))
        };
        for (id, payload) in kept {
            self.blocks.insert(id, payload);
        }
        // First counted there, then no longer here: rather twice than never. How much a commit took whose answer was lost is
        // not known: at most this, and the next reading of usage sets it right.
        let counts = applied && !planted::is(Bug::CapacityLate);
        let grown = if counts { grown.unwrap_or((freed.bytes + freed.reserved) as i64) } else { 0 };
        self.space.end(grown);
        self.memory.give(freed.bytes);
        self.balance_memory();
        self.space.release(freed.reserved);
        if gone {
            let (shared, ino) = (self.clone(), cell.ino);
            self.env.spawn(async move { shared.reap(ino).await });
        }
        self.progress(&cell);
    }
}

fn put_failed(error: StoreError) -> PutOutcome {
    match error {
        StoreError::Full if planted::is(Bug::FullIsDone) => PutOutcome::Done,
        StoreError::Full => PutOutcome::Failed { errno: Errno::ENOSPC, lasting: true },
        StoreError::Denied => PutOutcome::Failed { errno: Errno::EIO, lasting: true },
        StoreError::NotFound | StoreError::Short | StoreError::Retry => {
            PutOutcome::Failed { errno: Errno::EIO, lasting: false }
        }
    }
}
