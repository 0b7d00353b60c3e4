//! What makes a file's machine go: poll its actions, start them, feed completions back.
//!
//! Owns: the tasks of one action each, and which commits share a transaction. Leaves to others: what comes next
//! (`file::machine`).
//!
//! Invariants
//! - Each action started is completed exactly once, by a spawned task.
//! - Commits share a transaction as long as it succeeds: no outcome but that is told of several files.
//! - An id is used only from a durable lease (`ids`); a put is durable only past its barrier; a commit follows both.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::mem;
use core::slice;
use core::sync::atomic::Ordering;
use core::time::Duration;

use bytes::Bytes;

use super::Shared;
use super::files::Cell;
use super::wait::lock;
use crate::env::{Edge, Env, MetaError, MetaStore, ObjectStore, Point, StoreError};
use crate::errno::Errno;
use crate::file::File;
use crate::file::machine::{Action, CommitOutcome, PutOutcome};
use crate::format::block::{encode_head, object_key};
use crate::kv::{OpError, Txn};
use crate::marks::{Mark, reached, reached_if};
use crate::meta::{self, Change, Commit, CommitReply};
use crate::planted::{self, Bug};
use crate::types::{BlockId, SliceId};

/// Changes for which commits of several files share a transaction: 32 small files have so many, which is half a millisecond of
/// metadata.
pub(super) const TOGETHER: usize = 64;

/// A commit that is to be run, and whose.
struct Due {
    cell: Arc<Cell>,
    commit: Arc<Commit>,
}

impl<E: Env> Shared<E> {
    /// Starts whatever the machine of `cell` wants done.
    pub(super) fn drive(self: &Arc<Self>, cell: &Arc<Cell>) {
        if let Some(due) = self.drive_to_commit(cell) {
            self.start_commits(vec![due]);
        }
    }

    /// The same for those of several files that `flush` has asked for something; their commits share transactions.
    pub(super) fn drive_all(self: &Arc<Self>, cells: &[Arc<Cell>], flush: impl Fn(&mut File) -> bool) {
        let (mut group, mut changes) = (Vec::new(), 0);
        for cell in cells {
            if !flush(&mut lock(&cell.state).file) {
                continue;
            }
            let Some(due) = self.drive_to_commit(cell) else { continue };
            changes += due.commit.changes.len();
            group.push(due);
            if changes >= TOGETHER {
                self.start_commits(mem::take(&mut group));
                changes = 0;
            }
        }
        self.start_commits(group);
    }

    /// Starts whatever the machine of `cell` wants done, but for a commit.
    fn drive_to_commit(self: &Arc<Self>, cell: &Arc<Cell>) -> Option<Due> {
        let mut actions = Vec::new();
        let now = self.env.now();
        let timer = {
            let mut state = lock(&cell.state);
            while let Some(action) = state.file.poll_action(now, &mut || self.slices.take().map(SliceId)) {
                if let Action::NeedId = action {
                    // One task at a time: each goes on until there are ids.
                    if !mem::replace(&mut state.leasing, true) {
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
        let mut commit = None;
        for action in actions {
            commit = self.start(cell.clone(), action).or(commit);
        }
        if let Some(due) = timer {
            let (shared, cell) = (self.clone(), cell.clone());
            self.env.spawn(async move { shared.wake_at(cell, due).await });
        }
        commit
    }

    /// Starts what is not a commit.
    fn start(self: &Arc<Self>, cell: Arc<Cell>, action: Action) -> Option<Due> {
        let shared = self.clone();
        match action {
            Action::Commit(commit) => return Some(Due { cell, commit }),
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
        }
        None
    }

    fn start_commits(self: &Arc<Self>, group: Vec<Due>) {
        if !group.is_empty() {
            let shared = self.clone();
            self.env.spawn(async move { shared.commit(group).await });
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

    /// Runs commits in one transaction, or each in one of its own if that fails.
    async fn commit(self: Arc<Self>, group: Vec<Due>) {
        group.iter().for_each(|_| self.space.begin());
        let all = self.try_commit(&group).await;
        match (all, &group[..]) {
            (Ok(replies), _) => {
                reached_if(Mark::CommitsTogether, || group.len() > 1);
                for (due, reply) in group.iter().zip(replies) {
                    self.committed(due, Ok(reply)).await;
                }
            }
            (Err(error), [due]) => self.committed(due, Err(error)).await,
            (Err(_), _) => {
                reached(Mark::CommitsApart);
                for due in &group {
                    let asked = if planted::is(Bug::FirstForAll) { &group[0] } else { due };
                    let replies = self.try_commit(slice::from_ref(asked)).await;
                    self.committed(due, replies.map(|mut replies| replies.remove(0))).await;
                }
            }
        }
    }

    /// One reply for each of `group`, whose transaction takes effect whole or not at all.
    async fn try_commit(&self, group: &[Due]) -> Result<Vec<CommitReply>, MetaError> {
        let mut changes = group.iter().flat_map(|due| &due.commit.changes);
        let truncates = changes.any(|change| matches!(change, Change::Truncate { .. }));
        let point = if truncates { Point::Truncate } else { Point::Commit };
        let ctx = self.ctx();
        self.env.at(point, Edge::Begin);
        if planted::is(Bug::LengthBeforeSlice) {
            for Due { commit, .. } in group {
                _ = self.meta.write(|txn| planted::length_alone(txn, self.geometry(), commit)).await;
            }
        }
        let commit = |txn: &mut dyn Txn| group.iter().map(|due| meta::data::commit(txn, &ctx, &due.commit)).collect();
        let result = self.meta.write(commit).await;
        self.env.at(point, Edge::End);
        result.map(|committed| committed.value)
    }

    /// A commit has ended.
    async fn committed(self: &Arc<Self>, Due { cell, commit }: &Due, result: Result<CommitReply, MetaError>) {
        let frees = |change: &Change| matches!(change, Change::Truncate { .. } | Change::Punch { .. });
        let frees = commit.changes.iter().any(frees);
        self.env.pause().await;
        reached_if(Mark::CommitUnknown, || matches!(result, Err(MetaError::Unknown)));
        let grown = result.as_ref().ok().filter(|reply| reply.applied).map(|reply| reply.grown);
        let outcome = match result {
            Ok(reply) => CommitOutcome::from(&reply),
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
        self.progress(cell);
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
