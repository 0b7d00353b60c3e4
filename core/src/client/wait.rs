//! Waiting without an executor: notifications, races, deadlines, joint waits, results that many wait for.
//!
//! Owns: the futures that the client waits with. They are woken, never polled in circles.
//! Leaves to others: time (`Env::sleep_until`), what is waited for.
//!
//! Invariants
//! - Dropping any of these futures loses a waiter and nothing else.
//! - Wakers are called outside the locks of this module.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::mem;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use super::std::sync::{Mutex, MutexGuard, PoisonError};
use crate::env::Env;

/// Locks a mutex whose critical sections do not panic, so that poison means nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wakers of pending futures, each under its own ticket.
#[derive(Debug, Default)]
struct Wakers {
    next: u64,
    parked: BTreeMap<u64, Waker>,
}

impl Wakers {
    /// Parks the waker of `cx` under `ticket`, which is made at the first call.
    fn park(&mut self, ticket: &mut Option<u64>, cx: &Context<'_>) {
        let ticket = *ticket.get_or_insert_with(|| {
            self.next += 1;
            self.next
        });
        self.parked.insert(ticket, cx.waker().clone());
    }

    fn leave(&mut self, ticket: Option<u64>) -> Option<Waker> {
        ticket.and_then(|ticket| self.parked.remove(&ticket))
    }

    fn take(&mut self) -> BTreeMap<u64, Waker> {
        mem::take(&mut self.parked)
    }
}

fn wake(wakers: BTreeMap<u64, Waker>) {
    for waker in wakers.into_values() {
        waker.wake();
    }
}

/// Wakes everyone who listens. Clones speak of the same event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notify(Arc<Mutex<NotifyState>>);

#[derive(Debug, Default)]
struct NotifyState {
    /// Number of `notify_all` calls.
    count: u64,
    wakers: Wakers,
}

impl Notify {
    /// Completes every `Listen` made before this call.
    pub(crate) fn notify_all(&self) {
        let wakers = {
            let mut state = lock(&self.0);
            state.count += 1;
            state.wakers.take()
        };
        wake(wakers);
    }

    /// A future that completes once `notify_all` is called after this call, polled yet or not.
    /// Listen first, then look at the condition, then await: no notification is missed.
    pub(crate) fn listen(&self) -> Listen {
        Listen { notify: self.clone(), since: lock(&self.0).count, ticket: None }
    }
}

/// See `Notify::listen`.
#[derive(Debug)]
pub(crate) struct Listen {
    notify: Notify,
    /// `count` when listening began.
    since: u64,
    ticket: Option<u64>,
}

impl Future for Listen {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut state = lock(&this.notify.0);
        if this.since < state.count {
            return Poll::Ready(());
        }
        state.wakers.park(&mut this.ticket, cx);
        Poll::Pending
    }
}

impl Drop for Listen {
    fn drop(&mut self) {
        let waker = lock(&self.notify.0).wakers.leave(self.ticket);
        drop(waker); // outside the lock: it may own the task that holds other waiters
    }
}

/// Which of two futures ended first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Either<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}

/// The result of whichever future is ready first; `a` if both are. The other one is dropped (pass `fut.as_mut()` of a
/// pinned future to keep it).
pub(crate) async fn race<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if let Poll::Ready(value) = a.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(value));
        }
        b.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// The result of `fut`, or `None` if it is not ready by `at` of `env.now()`'s clock.
pub(crate) async fn timeout<E: Env, F: Future>(env: &E, at: Duration, fut: F) -> Option<F::Output> {
    match race(fut, env.sleep_until(at)).await {
        Either::Left(value) => Some(value),
        Either::Right(()) => None,
    }
}

/// Runs all at once; results in the order given. Every wake-up polls all that are pending: for small counts.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for (future, result) in running.iter_mut().zip(&mut results) {
            if result.is_some() {
                continue;
            }
            match future.as_mut().poll(cx) {
                Poll::Ready(value) => *result = Some(value),
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    results.into_iter().flatten().collect()
}

/// Runs the futures of `source`, at most `limit()` at once, handing each result to `each` as it comes, until all are
/// done or `each` answers `false`: then no more are started, and those running are awaited.
pub(crate) async fn run_bounded<F, I>(limit: impl Fn() -> usize, source: I, mut each: impl FnMut(F::Output) -> bool)
where
    F: Future,
    I: IntoIterator<Item = F>,
{
    assert!(0 < limit());
    let mut source = source.into_iter();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut open = true;
    poll_fn(|cx| {
        loop {
            while open && running.len() < limit() {
                match source.next() {
                    Some(future) => running.push(Box::pin(future)),
                    None => open = false,
                }
            }
            let mut ended = false;
            let mut index = 0;
            while index < running.len() {
                match running[index].as_mut().poll(cx) {
                    Poll::Ready(value) => {
                        drop(running.swap_remove(index));
                        ended = true;
                        open &= each(value);
                    }
                    Poll::Pending => index += 1,
                }
            }
            if running.is_empty() && !open {
                return Poll::Ready(());
            }
            if !(ended && open) {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// One result that many wait for: the receiving side. Clones wait for the same result.
#[derive(Debug)]
pub(crate) struct Flight<T>(Arc<Mutex<FlightState<T>>>);

/// The side of a `Flight` that brings the result. Dropping it unpublished ends the wait with `None`.
#[derive(Debug)]
pub(crate) struct Publisher<T>(Arc<Mutex<FlightState<T>>>);

#[derive(Debug)]
struct FlightState<T> {
    landed: Option<Option<T>>,
    wakers: Wakers,
}

/// A result to come: who will publish it, and who may wait for it.
pub(crate) fn flight<T: Clone>() -> (Publisher<T>, Flight<T>) {
    let state = Arc::new(Mutex::new(FlightState { landed: None, wakers: Wakers::default() }));
    (Publisher(Arc::clone(&state)), Flight(state))
}

impl<T> Publisher<T> {
    /// Hands `value` to all waiters, those to come as well.
    pub(crate) fn publish(self, value: T) {
        self.land(Some(value));
    }

    fn land(&self, value: Option<T>) {
        let wakers = {
            let mut state = lock(&self.0);
            if state.landed.is_some() {
                return;
            }
            state.landed = Some(value);
            state.wakers.take()
        };
        wake(wakers);
    }
}

impl<T> Drop for Publisher<T> {
    fn drop(&mut self) {
        self.land(None);
    }
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone> Flight<T> {
    /// A clone of the result; `None` if the publisher gave up.
    pub(crate) fn wait(&self) -> FlightWait<T> {
        FlightWait { flight: self.clone(), ticket: None }
    }
}

/// See `Flight::wait`.
pub(crate) struct FlightWait<T> {
    flight: Flight<T>,
    ticket: Option<u64>,
}

impl<T: Clone> Future for FlightWait<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let this = self.get_mut();
        let mut state = lock(&this.flight.0);
        if let Some(landed) = &state.landed {
            return Poll::Ready(landed.clone());
        }
        state.wakers.park(&mut this.ticket, cx);
        Poll::Pending
    }
}

impl<T> Drop for FlightWait<T> {
    fn drop(&mut self) {
        let waker = lock(&self.flight.0).wakers.leave(self.ticket);
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use alloc::task::Wake;
    use alloc::vec;
    use core::future::{pending, ready};
    use core::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll<F: Future>(fut: Pin<&mut F>) -> Poll<F::Output> {
        fut.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn listen_completes_only_for_notifications_after_it() {
        let notify = Notify::default();
        notify.notify_all();
        let mut late = pin!(notify.listen());
        assert_eq!(poll(late.as_mut()), Poll::Pending);
        notify.notify_all();
        assert_eq!(poll(late.as_mut()), Poll::Ready(()));

        let mut unpolled = pin!(notify.listen());
        notify.notify_all();
        assert_eq!(poll(unpolled.as_mut()), Poll::Ready(()));
    }

    #[test]
    fn notify_wakes_each_listener_once_and_forgets_the_dropped() {
        let notify = Notify::default();
        let (kept, gone) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let (kept_waker, gone_waker) = (Waker::from(Arc::clone(&kept)), Waker::from(Arc::clone(&gone)));
        let mut first = notify.listen();
        let mut second = notify.listen();
        for _ in 0..3 {
            assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&kept_waker)).is_pending());
            assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&gone_waker)).is_pending());
        }
        drop(second);
        notify.notify_all();
        notify.notify_all();
        assert_eq!(kept.0.load(Ordering::SeqCst), 1);
        assert_eq!(gone.0.load(Ordering::SeqCst), 0);
        assert!(lock(&notify.0).wakers.parked.is_empty());
    }

    #[test]
    fn race_prefers_the_first_and_takes_the_second() {
        assert_eq!(poll(pin!(race(ready(1), ready("b")))), Poll::Ready(Either::Left(1)));
        assert_eq!(poll(pin!(race(pending::<u8>(), ready("b")))), Poll::Ready(Either::Right("b")));
        assert_eq!(poll(pin!(race(pending::<u8>(), pending::<u8>()))), Poll::Pending);
    }

    #[test]
    fn join_all_keeps_the_order() {
        let notify = Notify::default();
        let make = |n: u32| {
            let (listen, late) = (notify.listen(), n == 1);
            async move {
                if late {
                    listen.await;
                }
                n
            }
        };
        let mut all = pin!(join_all(vec![make(0), make(1), make(2)]));
        assert_eq!(poll(all.as_mut()), Poll::Pending);
        notify.notify_all();
        assert_eq!(poll(all.as_mut()), Poll::Ready(vec![0, 1, 2]));
        assert_eq!(poll(pin!(join_all(Vec::<core::future::Ready<u8>>::new()))), Poll::Ready(vec![]));
    }

    #[test]
    fn run_bounded_never_runs_more_than_the_limit_and_stops_when_told() {
        let (active, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let notify = Notify::default();
        let job = |n: usize| {
            let (active, peak, notify) = (&active, &peak, &notify);
            async move {
                peak.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                notify.listen().await;
                active.fetch_sub(1, Ordering::SeqCst);
                n
            }
        };
        let mut seen = vec![];
        {
            let limit = || 3;
            let mut run = pin!(run_bounded(limit, (0..10).map(job), |n| {
                seen.push(n);
                seen.len() < 5
            }));
            let mut rounds = 0;
            while poll(run.as_mut()).is_pending() {
                rounds += 1;
                assert!(rounds < 10);
                notify.notify_all();
            }
        }
        assert_eq!(peak.load(Ordering::SeqCst), 3);
        assert_eq!(active.load(Ordering::SeqCst), 0);
        assert!((5..=7).contains(&seen.len()), "{seen:?}");
        let mut sum = 0;
        let (limit, ready_ones) = (|| 4, (1..=100).map(ready));
        assert!(
            poll(pin!(run_bounded(limit, ready_ones, |n| {
                sum += n;
                true
            })))
            .is_ready()
        );
        assert_eq!(sum, 5050);
    }

    #[test]
    fn flight_gives_every_waiter_the_result_or_the_news_that_there_is_none() {
        let (publisher, flight) = flight::<u32>();
        let mut early = pin!(flight.wait());
        assert_eq!(poll(early.as_mut()), Poll::Pending);
        publisher.publish(7);
        assert_eq!(poll(early), Poll::Ready(Some(7)));
        assert_eq!(poll(pin!(flight.clone().wait())), Poll::Ready(Some(7)));

        let (publisher, flight) = super::flight::<u32>();
        let mut waiter = pin!(flight.wait());
        assert_eq!(poll(waiter.as_mut()), Poll::Pending);
        drop(publisher);
        assert_eq!(poll(waiter), Poll::Ready(None));
    }
}
