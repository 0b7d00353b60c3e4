//! From the log into the real store: uploads in order, barriers that settle them, segments that go.
//!
//! Owns: the background tasks of the log, `drain` and `close`.
//! Leaves to others: which object and which segment is next (`store::log`).
//!
//! Invariants
//! - What is put into the store is what was staged: bytes that come back from the disk are verified.
//! - A segment is removed only after a barrier of the store that began when all its objects had been put.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::{Inner, LogError, LogOptions, Staging};
use crate::client::wait::{join_all, lock};
use crate::env::{Disk, DiskError, Env, MetaStore, ObjectStore, StoreError};
use crate::marks::{Mark, reached, reached_if};
use crate::meta;
use crate::planted::{self, Bug};
use crate::store::log::{BytesAt, Log, Upload};
use crate::types::PackId;

/// Bytes of the log that are not what was staged are read again so many times before that counts as damage.
const READ_TRIES: u32 = 4;
/// Between two attempts of something small that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// There is something to settle or to remove.
fn has_work(log: &Log) -> bool {
    log.has_puts() || log.removable(false).is_some() || log.has_release()
}

impl<E: Env, D: Disk> Inner<E, D> {
    /// Starts the uploads that are due, and sees to it that this happens again when the next one is.
    pub(super) fn pump(self: &Arc<Self>) {
        let staging = self.staging();
        let busy = self.env.is_busy();
        loop {
            let now = self.env.now();
            let mut state = lock(&staging.state);
            if state.stopping {
                return;
            }
            if busy {
                state.log.note_use(now);
            }
            if let Some(packing) = state.log.next_pack(now) {
                drop(state);
                let inner = self.clone();
                self.env.spawn(async move { inner.upload_pack(packing).await });
                continue;
            }
            let Some(upload) = state.log.next_upload(now) else {
                let due = state.log.retry_at(now).filter(|due| state.timer.is_none_or(|timer| *due < timer));
                if let Some(due) = due {
                    state.timer = Some(due);
                    let inner = self.clone();
                    self.env.spawn(async move { inner.pump_at(due).await });
                }
                return;
            };
            drop(state);
            let inner = self.clone();
            self.env.spawn(async move { inner.upload(upload).await });
        }
    }

    async fn pump_at(self: Arc<Self>, due: Duration) {
        self.env.sleep_until(due).await;
        {
            let mut state = lock(&self.staging().state);
            if state.timer == Some(due) {
                state.timer = None;
            }
        }
        self.pump();
    }

    async fn upload(self: Arc<Self>, upload: Upload) {
        let staging = self.staging();
        self.env.pause().await;
        let result = match self.staged(staging, &upload).await {
            Some(body) => self.env.objects().put(&upload.key, body).await,
            None => Err(StoreError::Retry),
        };
        self.env.pause().await;
        if let Err(error) = &result {
            reached(Mark::LogUploadRetried);
            tracing::debug!(object = upload.key, %error, "an object stays in the write-back log for now");
        }
        {
            let mut state = lock(&staging.state);
            // It may take effect yet, also when its object was put by another attempt and deleted.
            state.unsure |= result.is_err();
            state.log.handle_upload(self.env.now(), &upload.key, result.is_ok());
        }
        staging.changed.notify_all();
        self.pump();
        self.tidy();
    }

    /// The bytes of an object, as they were staged.
    pub(super) async fn staged(&self, staging: &Staging<D>, upload: &Upload) -> Option<Vec<Bytes>> {
        let (segment, range, sum) = match &upload.body {
            BytesAt::Memory(body) => return Some(body.clone()),
            BytesAt::Disk { segment, range, sum } => (*segment, range.clone(), *sum),
        };
        let mut damaged = 0;
        for attempt in 0..READ_TRIES {
            match staging.disk.read(segment, range.clone()).await {
                Ok(bytes) if sum.holds(&bytes) || planted::is(Bug::LogReadUnverified) => {
                    return Some(vec![bytes]);
                }
                Ok(_) => {
                    reached(Mark::LogReadTorn);
                    damaged += 1;
                }
                Err(DiskError::Missing) => damaged += 1,
                // The disk says nothing of the bytes.
                Err(DiskError::Failed | DiskError::Full) => {}
            }
            self.env.sleep_until(self.env.now() + PAUSE * (attempt + 1)).await;
        }
        let object = &upload.key;
        if damaged == READ_TRIES {
            tracing::error!(object, segment, "the write-back log cannot give back what was written to it");
        } else {
            tracing::warn!(object, segment, "the disk of the write-back log cannot be read; it is tried again");
        }
        None
    }

    /// Settles what was put and removes what nobody needs, in a task of its own, if there is anything of that.
    pub(super) fn tidy(self: &Arc<Self>) {
        let mut state = lock(&self.staging().state);
        if has_work(&state.log) && !core::mem::replace(&mut state.settling, true) {
            let inner = self.clone();
            self.env.spawn(async move { inner.settle().await });
        }
    }

    async fn settle(self: Arc<Self>) {
        let staging = self.staging();
        let mut pause = PAUSE;
        loop {
            self.env.pause().await;
            let (put, packs) = {
                let state = lock(&staging.state);
                (state.log.plan_settle(), state.log.plan_packs())
            };
            let nothing = put.is_empty() && packs.is_empty();
            let settled = nothing || self.settle_these(staging, &put, &packs).await;
            if settled && self.remove_segments(staging, false).await {
                pause = PAUSE;
            } else {
                self.env.sleep_until(self.env.now() + pause).await;
                pause = (2 * pause).min(PAUSE_MAX);
            }
            let mut state = lock(&staging.state);
            if !has_work(&state.log) || state.stopping {
                state.settling = false;
                drop(state);
                staging.changed.notify_all();
                return;
            }
        }
    }

    async fn settle_these(self: &Arc<Self>, staging: &Staging<D>, put: &[String], packs: &[PackId]) -> bool {
        if !planted::is(Bug::SegmentBeforeBarrier)
            && let Err(error) = self.env.objects().barrier().await
        {
            tracing::debug!(%error, "what was put stays in the write-back log for now");
            return false;
        }
        self.env.pause().await;
        lock(&staging.state).log.handle_settled(put);
        // At once, so that they share a sync.
        let told = join_all(packs.iter().map(|pack| self.record(staging, *pack))).await;
        staging.changed.notify_all();
        told.into_iter().all(|told| told)
    }

    /// Removes segments, oldest first, as far as they can go. False: one could not be removed.
    pub(super) async fn remove_segments(&self, staging: &Staging<D>, all: bool) -> bool {
        loop {
            self.release_segments(staging).await;
            let next = lock(&staging.state).log.removable(all);
            let Some((number, damaged)) = next else { return true };
            let keeps = staging.options.keep && !all && !damaged;
            let removed = match (damaged, keeps) {
                (true, _) => staging.disk.set_aside(number).await,
                (false, true) => staging.disk.detach(number).await,
                (false, false) => staging.disk.remove(number).await,
            };
            if let Err(error) = removed {
                tracing::debug!(segment = number, %error, "a segment of the write-back log could not be removed");
                return false;
            }
            reached_if(Mark::LogSegmentRemoved, || !damaged);
            lock(&staging.state).log.handle_removed(number, keeps);
            staging.changed.notify_all();
        }
    }

    /// Segments without a name go for good as far as their room is wanted.
    pub(super) async fn release_segments(&self, staging: &Staging<D>) {
        loop {
            let next = lock(&staging.state).log.next_release();
            let Some(number) = next else { return };
            reached(Mark::LogKeptReleased);
            staging.disk.release(number).await;
        }
    }

    pub(super) fn hurry(self: &Arc<Self>, hurry: bool) {
        let Some(staging) = &self.staging else { return };
        let LogOptions { mut pace, mut upload_delay, mut pack_delay, .. } = staging.options;
        let mut state = lock(&staging.state);
        state.hurried = if hurry { state.hurried + 1 } else { state.hurried.saturating_sub(1) };
        if state.hurried > 0 {
            (pace.quiet_after, upload_delay, pack_delay) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        }
        state.log.set_delays(upload_delay, pack_delay);
        state.log.set_pace(pace);
        drop(state);
        self.pump();
    }

    pub(super) async fn drain(self: &Arc<Self>) {
        let Some(staging) = &self.staging else { return };
        self.hurry(true);
        self.tidy();
        loop {
            let changed = staging.changed.listen();
            let ended = {
                let state = lock(&staging.state);
                state.log.is_drained() || state.untold
            };
            if ended {
                return self.hurry(false);
            }
            changed.await;
        }
    }

    pub(super) async fn close(self: &Arc<Self>) -> Result<bool, LogError> {
        let Some(staging) = &self.staging else { return Ok(true) };
        lock(&staging.state).stopping = true;
        loop {
            let changed = staging.changed.listen();
            {
                let state = lock(&staging.state);
                if state.log.is_idle() && !state.log.is_writing() && !state.settling && !state.round.running {
                    break;
                }
            }
            changed.await;
        }
        let drained = lock(&staging.state).log.is_drained();
        if !drained || staging.epoch == 0 || !self.remove_segments(staging, true).await {
            return Ok(drained && staging.epoch == 0);
        }
        let written = self.env.meta().write(|txn| meta::volume::close_log(txn)).await?;
        self.env.meta().sync(written.seq).await?;
        Ok(true)
    }
}
