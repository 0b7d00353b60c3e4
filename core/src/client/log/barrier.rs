//! What makes the log durable: one sync for all who wait, and what is done when it fails.
//!
//! Owns: rounds of the barrier. Leaves to others: what a sync covers (`store::log`), records (`stage`, of the parent).
//!
//! Invariant: a failed sync leaves nothing to be assumed of what no earlier one has covered: it is stored again, in the log or
//! in the real store, before a round succeeds.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use bytes::Bytes;

use super::{Answer, Inner, LogMode, Staging};
use crate::client::wait::lock;
use crate::env::{Disk, Env, ObjectStore, StoreError};
use crate::format::log::Kind;
use crate::marks::{Mark, reached};
use crate::planted::{self, Bug};
use crate::store::log::Lost;

/// A sync that fails is tried again with new segments; then what it was for goes to the real store.
const SYNC_TRIES: u32 = 3;

/// Rounds of the barrier: each covers what came before it began, and one runs at a time.
#[derive(Default)]
pub(super) struct Round {
    pub(super) running: bool,
    pub(super) begun: u64,
    /// Highest that has succeeded, and that has failed.
    done: u64,
    failed: u64,
}

impl<E: Env, D: Disk> Inner<E, D> {
    /// Waits for a round of the barrier that begins after this call, unless there is nothing to cover.
    pub(super) async fn covered(self: &Arc<Self>, staging: &Staging<D>) -> Answer {
        self.env.pause().await;
        let wanted = {
            let state = lock(&staging.state);
            let nothing = state.log.synced() == state.log.written()
                && state.lost.is_empty()
                && state.settled == state.direct
                && !state.round.running;
            if nothing {
                return Ok(());
            }
            state.round.begun + 1
        };
        loop {
            let changed = staging.changed.listen();
            {
                let mut state = lock(&staging.state);
                if wanted <= state.round.done {
                    return Ok(());
                }
                if wanted <= state.round.failed {
                    return Err(StoreError::Retry);
                }
                if !state.round.running {
                    state.round.running = true;
                    state.round.begun += 1;
                    let inner = self.clone();
                    self.env.spawn(async move { inner.run_round().await });
                }
            }
            changed.await;
        }
    }

    async fn run_round(self: Arc<Self>) {
        let staging = self.staging();
        self.env.pause().await;
        let answer = self.cover_all(staging).await;
        self.env.pause().await;
        {
            let mut state = lock(&staging.state);
            let round = &mut state.round;
            round.running = false;
            match answer {
                Ok(()) => round.done = round.begun,
                Err(_) => round.failed = round.begun,
            }
        }
        staging.changed.notify_all();
        // A sync that failed leaves segments that take no records.
        self.tidy();
    }

    async fn cover_all(&self, staging: &Staging<D>) -> Answer {
        let mut stored = Vec::new();
        for attempt in 0..SYNC_TRIES {
            let lost = core::mem::take(&mut lock(&staging.state).lost);
            for lost in lost {
                // The last attempt leaves the log alone.
                let again = attempt + 1 < SYNC_TRIES && staging.options.mode == LogMode::Back;
                if !self.restore(staging, &lost, again, &mut stored).await {
                    lock(&staging.state).lost.push(lost);
                }
            }
            if self.sync(staging).await {
                break;
            }
            reached(Mark::LogSyncFailed);
        }
        if !lock(&staging.state).lost.is_empty() {
            return Err(StoreError::Retry);
        }
        let direct = {
            let state = lock(&staging.state);
            (state.settled < state.direct).then_some(state.direct)
        };
        if let Some(direct) = direct.filter(|_| !planted::is(Bug::DirectUncovered)) {
            self.env.objects().barrier().await?;
            let mut state = lock(&staging.state);
            state.settled = direct;
            stored.iter().for_each(|key: &String| state.log.handle_stored(key));
        }
        Ok(())
    }

    /// Syncs what was written. False: it failed, and what it was for is among the lost.
    async fn sync(&self, staging: &Staging<D>) -> bool {
        let Some(plan) = lock(&staging.state).log.plan_sync() else { return true };
        let mut done = true;
        for segment in &plan.segments {
            if planted::is(Bug::LogAckBeforeSync) {
                break;
            }
            if let Err(error) = staging.disk.sync(*segment).await
                // Nobody needs what was in a segment that has gone meanwhile.
                && lock(&staging.state).log.has_segment(*segment)
            {
                tracing::warn!(segment, %error, "the write-back log could not be synced; it is written again");
                done = false;
            }
        }
        self.env.pause().await;
        let mut state = lock(&staging.state);
        if done || planted::is(Bug::LogSyncFailedAccepted) {
            state.log.handle_synced(&plan);
            return true;
        }
        let lost = state.log.handle_sync_failed(&plan);
        state.lost.extend(lost);
        false
    }

    /// Stores again what a failed sync may have lost; `again`: in the log.
    async fn restore(&self, staging: &Staging<D>, lost: &Lost, again: bool, stored: &mut Vec<String>) -> bool {
        match lost {
            Lost::Put(key, body) => {
                // Deleted meanwhile, or put into the store.
                if !lock(&staging.state).log.begin_restore(key) {
                    return true;
                }
                let done = self.restore_put(staging, key, body, again, stored).await;
                lock(&staging.state).log.end_restore();
                // Whoever is to delete it waits for that.
                staging.changed.notify_all();
                done
            }
            Lost::Delete(key) => self.stage(staging, Kind::Delete, key, &[]).await.is_ok(),
        }
    }

    async fn restore_put(
        &self,
        staging: &Staging<D>,
        key: &str,
        body: &[Bytes],
        again: bool,
        stored: &mut Vec<String>,
    ) -> bool {
        if again && self.stage(staging, Kind::Put, key, body).await.is_ok() {
            return true;
        }
        // The log does not take what is to be deleted; nor may the store.
        if !lock(&staging.state).log.is_lost(key) {
            return true;
        }
        reached(Mark::LogLostGoesToStore);
        let put = self.put_directly(key, body.to_vec()).await;
        if put.is_ok() {
            stored.push(key.to_owned());
        } else {
            // It may take effect yet, also when its object was put by another attempt and deleted.
            lock(&staging.state).unsure = true;
        }
        put.is_ok()
    }
}
