//! A pool of identifiers from durable leases.
//!
//! Invariants
//! - An id is handed out once, and only after its lease is durable (whoever refills sees to that).

use alloc::collections::VecDeque;
use core::future::Future;
use core::ops::Range;
use std::sync::Mutex;

use super::std;
use super::wait::{Notify, lock};
use crate::errno::Errno;

#[derive(Debug, Default)]
struct Pool {
    ranges: VecDeque<Range<u64>>,
    refilling: bool,
}

#[derive(Debug)]
pub(super) struct IdPool {
    pool: Mutex<Pool>,
    refilled: Notify,
}

impl IdPool {
    pub(super) fn new() -> Self {
        Self { pool: Mutex::default(), refilled: Notify::default() }
    }

    pub(super) fn take(&self) -> Option<u64> {
        let mut pool = lock(&self.pool);
        let range = pool.ranges.front_mut()?;
        let id = range.start;
        range.start += 1;
        if range.is_empty() {
            pool.ranges.pop_front();
        }
        Some(id)
    }

    /// Few ids are left and nobody fetches more: the caller should refill in the background. Answers true once.
    pub(super) fn is_low(&self, low: u64) -> bool {
        let pool = lock(&self.pool);
        !pool.refilling && pool.ranges.iter().map(|range| range.end - range.start).sum::<u64>() < low
    }

    /// Adds what `lease` returns; callers at once share one lease.
    pub(super) async fn refill<F: Future<Output = Result<Range<u64>, Errno>>>(
        &self,
        lease: impl FnOnce() -> F,
    ) -> Result<(), Errno> {
        let listen = self.refilled.listen();
        let turn = Turn::take(self);
        let Some(turn) = turn else {
            listen.await;
            return Ok(());
        };
        let ids = lease().await?;
        lock(&turn.0.pool).ranges.push_back(ids);
        Ok(())
    }
}

/// The right to refill; ends with the attempt, also if its future is dropped.
struct Turn<'a>(&'a IdPool);

impl<'a> Turn<'a> {
    fn take(pool: &'a IdPool) -> Option<Self> {
        let mut state = lock(&pool.pool);
        (!core::mem::replace(&mut state.refilling, true)).then_some(Self(pool))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.pool).refilling = false;
        self.0.refilled.notify_all();
    }
}
