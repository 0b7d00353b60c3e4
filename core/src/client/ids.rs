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
        // Not `then_some`: a turn that nobody takes would end, and take the lock that is held here.
        (!core::mem::replace(&mut state.refilling, true)).then(|| Self(pool))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.pool).refilling = false;
        self.0.refilled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use alloc::boxed::Box;
    use core::pin::pin;
    use core::task::{Context, Poll, Waker};

    use super::super::wait::Flight;
    use super::*;

    /// The second of two refills waits for the first; the pool is low for one of them only.
    #[test]
    fn callers_at_once_share_one_lease() {
        let pool = IdPool::new();
        assert!(pool.is_low(10));
        let (publisher, flight): (_, Flight<u64>) = super::super::wait::flight();
        let mut cx = Context::from_waker(Waker::noop());
        let mut first = pin!(pool.refill(async || {
            let start = flight.wait().await.expect("it is published");
            Ok(start..start + 2)
        }));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(!pool.is_low(10), "someone refills already");
        let mut second = Box::pin(pool.refill(async || panic!("a second lease at once")));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        publisher.publish(40);
        assert_eq!(first.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        assert_eq!(second.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        assert!(pool.is_low(3) && !pool.is_low(2), "two are left");
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(40), Some(41), None]);
    }

    #[test]
    fn a_refill_that_is_dropped_lets_the_next_one_try() {
        let pool = IdPool::new();
        let mut cx = Context::from_waker(Waker::noop());
        let mut dropped = Box::pin(pool.refill(async || core::future::pending().await));
        assert!(dropped.as_mut().poll(&mut cx).is_pending());
        drop(dropped);
        let mut next = pin!(pool.refill(async || Ok(1..2)));
        assert_eq!(next.as_mut().poll(&mut cx), Poll::Ready(Ok(())));
        assert_eq!(pool.take(), Some(1));
    }
}
