//! A budget of bytes: permits granted first come, first served.
//!
//! Owns: the count of bytes taken and the queue of those who wait.
//! Leaves to others: what the bytes are, and giving back each byte taken.
//!
//! Invariants
//! - Grants follow the order of the calls: nobody passes a waiter, however small its request.
//! - `used` passes `capacity` only by one request that is larger than the budget and was granted when nothing else
//!   was taken. So every request is granted once all others have given back.
//! - A dropped `Take` holds nothing.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::mem;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};

use super::std::sync::Mutex;
use super::wait::lock;

/// Byte permits. Clones share one budget.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    capacity: u64,
    shared: Arc<Shared>,
}

/// The count is an atomic, so that taking and giving lock nothing while nobody waits.
#[derive(Debug, Default)]
struct Shared {
    used: AtomicU64,
    /// Someone waits: set before the waiter looks at `used`, read after `used` was lowered.
    queued: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_ticket: u64,
    /// By ticket, so in the order of the calls.
    queue: BTreeMap<u64, Waiter>,
    /// Bytes of all in `queue`.
    waiting: u64,
    /// Tickets granted (counted in `used`) whose future has not been polled since.
    granted: BTreeSet<u64>,
}

#[derive(Debug)]
struct Waiter {
    bytes: u64,
    waker: Option<Waker>,
}

impl Budget {
    /// A budget of `capacity` bytes, all free.
    pub(crate) fn new(capacity: u64) -> Self {
        Self { capacity, shared: Arc::default() }
    }

    /// Takes `bytes` if that neither waits nor passes someone who does.
    pub(crate) fn try_take(&self, bytes: u64) -> bool {
        !self.shared.queued.load(Ordering::SeqCst) && self.reserve(bytes)
    }

    /// Completes when `bytes` were taken. The place in the queue is that of this call, polled or not; dropping the
    /// future before it completes gives up the place, or gives back what was granted.
    pub(crate) fn take(&self, bytes: u64) -> Take {
        if self.try_take(bytes) {
            return Take { budget: self.clone(), bytes, stage: Stage::Granted };
        }
        let (ticket, wakers) = {
            let mut state = lock(&self.shared.state);
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.waiting += bytes;
            state.queue.insert(ticket, Waiter { bytes, waker: None });
            self.shared.queued.store(true, Ordering::SeqCst);
            (ticket, self.grant(&mut state))
        };
        wakers.into_iter().for_each(Waker::wake);
        Take { budget: self.clone(), bytes, stage: Stage::Queued(ticket) }
    }

    /// Gives `bytes` back.
    pub(crate) fn give(&self, bytes: u64) {
        let used = self.shared.used.fetch_sub(bytes, Ordering::SeqCst);
        assert!(bytes <= used, "gave back {bytes} of {used} bytes");
        if self.shared.queued.load(Ordering::SeqCst) {
            let wakers = self.grant(&mut lock(&self.shared.state));
            wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Bytes taken.
    pub(crate) fn used(&self) -> u64 {
        self.shared.used.load(Ordering::SeqCst)
    }

    /// Bytes that callers wait for.
    pub(crate) fn waiting(&self) -> u64 {
        lock(&self.shared.state).waiting
    }

    /// Bytes in all.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Counts `bytes` as taken if they fit.
    fn reserve(&self, bytes: u64) -> bool {
        let fits = |used: u64| {
            let sum = used.saturating_add(bytes);
            (used == 0 || sum <= self.capacity).then_some(sum)
        };
        self.shared.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    /// Grants from the front of the queue what fits; returns whom to wake, once the lock is released.
    fn grant(&self, state: &mut State) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some((&ticket, waiter)) = state.queue.first_key_value() {
            let bytes = waiter.bytes;
            if !self.reserve(bytes) {
                return wakers;
            }
            state.waiting -= bytes;
            state.granted.insert(ticket);
            wakers.extend(state.queue.remove(&ticket).and_then(|waiter| waiter.waker));
        }
        self.shared.queued.store(false, Ordering::SeqCst);
        wakers
    }
}

/// See `Budget::take`.
#[derive(Debug)]
pub(crate) struct Take {
    budget: Budget,
    bytes: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// In the queue, or granted since: `State` knows.
    Queued(u64),
    /// Counted in `used` on behalf of this future.
    Granted,
    /// The caller's to give back.
    Done,
}

impl Future for Take {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if let Stage::Queued(ticket) = this.stage {
            let mut state = lock(&this.budget.shared.state);
            if let Some(waiter) = state.queue.get_mut(&ticket) {
                waiter.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            assert!(state.granted.remove(&ticket));
        }
        this.stage = Stage::Done;
        Poll::Ready(())
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        match mem::replace(&mut self.stage, Stage::Done) {
            Stage::Done => {}
            Stage::Granted => self.budget.give(self.bytes),
            Stage::Queued(ticket) => {
                let (left, wakers) = {
                    let mut state = lock(&self.budget.shared.state);
                    let left = state.queue.remove(&ticket);
                    if left.is_some() {
                        state.waiting -= self.bytes;
                    } else {
                        assert!(state.granted.remove(&ticket));
                        self.budget.shared.used.fetch_sub(self.bytes, Ordering::SeqCst);
                    }
                    (left, self.budget.grant(&mut state))
                };
                drop(left); // outside the lock: its waker may own other futures of this budget
                wakers.into_iter().for_each(Waker::wake);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::testkit::rng::Rng;

    fn poll(take: &mut Take) -> bool {
        Pin::new(take).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn grants_follow_the_order_of_the_calls() {
        let budget = Budget::new(100);
        assert!(budget.try_take(80));
        let mut large = budget.take(50);
        let mut small = budget.take(10);
        assert!(!poll(&mut small));
        assert!(!poll(&mut large));
        assert!(!budget.try_take(1), "nobody passes a waiter");
        assert_eq!((budget.used(), budget.waiting(), budget.capacity()), (80, 60, 100));
        budget.give(20);
        assert!(!poll(&mut small));
        budget.give(10);
        assert!(poll(&mut large));
        assert!(!poll(&mut small));
        budget.give(10);
        assert!(poll(&mut small));
        assert_eq!((budget.used(), budget.waiting()), (100, 0));
    }

    #[test]
    fn larger_than_the_budget_is_granted_alone() {
        let budget = Budget::new(10);
        assert!(budget.try_take(1));
        let mut huge = budget.take(1000);
        assert!(!poll(&mut huge));
        budget.give(1);
        assert!(poll(&mut huge));
        assert!(!budget.try_take(1));
        budget.give(1000);
        assert!(budget.try_take(10));
    }

    #[test]
    fn dropped_futures_hold_nothing() {
        let budget = Budget::new(10);
        drop(budget.take(10));
        assert_eq!(budget.used(), 0);
        assert!(budget.try_take(10));
        let first = budget.take(10);
        let second = budget.take(5);
        let mut third = budget.take(5);
        drop(first);
        budget.give(10); // grants second, unpolled, and third
        assert_eq!(budget.used(), 10);
        drop(second);
        assert_eq!((budget.used(), budget.waiting()), (5, 0));
        assert!(poll(&mut third));
        drop(third);
        assert_eq!(budget.used(), 5, "what completed is the caller's");
    }

    #[test]
    fn leaving_the_queue_lets_the_next_in() {
        let budget = Budget::new(10);
        assert!(budget.try_take(5));
        let blocking = budget.take(10);
        let mut behind = budget.take(5);
        assert!(!poll(&mut behind));
        drop(blocking);
        assert!(poll(&mut behind));
    }

    /// Any mix of calls keeps the count equal to what is held, and serves in order.
    #[test]
    fn random_calls_keep_the_count() {
        let mut rng = Rng::new(1);
        let budget = Budget::new(64);
        let mut held: Vec<u64> = vec![];
        let mut waiting: Vec<Take> = vec![];
        for _ in 0..20_000 {
            match rng.below(5) {
                0 => {
                    let bytes = rng.below(80);
                    if budget.try_take(bytes) {
                        assert!(
                            waiting.iter().all(|take| matches!(take.stage, Stage::Granted)) || budget.waiting() == 0
                        );
                        held.push(bytes);
                    }
                }
                1 => waiting.push(budget.take(rng.below(80))),
                2 if !held.is_empty() => budget.give(held.swap_remove(rng.below(held.len() as u64) as usize)),
                3 if !waiting.is_empty() => drop(waiting.remove(rng.below(waiting.len() as u64) as usize)),
                _ => {
                    let mut blocked = false;
                    waiting.retain_mut(|take| {
                        let ready = poll(take);
                        assert!(!(blocked && ready), "passed a waiter");
                        blocked |= !ready;
                        if ready {
                            held.push(take.bytes);
                        }
                        !ready
                    });
                    assert_eq!(budget.used(), held.iter().sum::<u64>());
                    assert_eq!(budget.waiting(), waiting.iter().map(|take| take.bytes).sum::<u64>());
                    assert!(budget.used() <= 64 || held.iter().filter(|bytes| 0 < **bytes).count() == 1);
                    assert!(waiting.is_empty() || 0 < budget.used(), "all free, yet someone waits");
                }
            }
        }
    }
}
