//! How many requests may be under way at once: additive increase, multiplicative decrease, as TCP does it.
//!
//! Owns: the window of one kind of requests, and the wait for a place in it.
//! Leaves to others: what a request is, deadlines, trying again.
//!
//! Invariants
//! - At least one request and at most `max` may be under way; a window shrinks as requests end, none is broken off.
//! - Requests start in the order in which they came. A waiter that is dropped leaves no trace.
//! - A refusal counts once per window of requests: those that were under way at a cut do not cut again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Pause after a first refusal; doubled with each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A server that asks for a longer pause is asked again after this one.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// How a request ended, as far as its number is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The store kept up.
    Fine,
    /// The store is asked too much, and says when to come back or does not.
    Refused(Option<Duration>),
    /// Says nothing about how much the store can take.
    Unknown,
}

/// The window, as a state machine without a clock. Times count from its creation.
#[derive(Debug)]
struct Window {
    max: f64,
    /// (1 <= size <= max)
    size: f64,
    /// Number of the next request.
    next: u64,
    /// Number of the first request that started after the last cut.
    uncut: u64,
    /// Pause after the next refusal.
    backoff: Duration,
    /// Nothing starts before.
    hold: Duration,
}

impl Window {
    fn new(max: usize) -> Self {
        let max = max.max(1) as f64;
        Self { max, size: max, next: 0, uncut: 0, backoff: BACKOFF_MIN, hold: Duration::ZERO }
    }

    /// How many may be under way.
    fn allowed(&self) -> usize {
        self.size as usize
    }

    /// The number of a request that starts, or the time until which none does.
    fn start(&mut self, now: Duration) -> Result<u64, Duration> {
        if now < self.hold {
            return Err(self.hold);
        }
        let number = self.next;
        self.next += 1;
        Ok(number)
    }

    /// A request has ended. `jitter` is in 0..1: clients that were refused together should not come back together.
    fn end(&mut self, number: u64, outcome: Outcome, now: Duration, jitter: impl FnOnce() -> f64) {
        let uncut = number >= self.uncut;
        match outcome {
            Outcome::Fine if uncut => {
                self.backoff = BACKOFF_MIN;
                self.size = (self.size + 1.0 / self.size).min(self.max);
            }
            Outcome::Refused(after) => {
                if let Some(after) = after {
                    self.hold = self.hold.max(now + after.min(RETRY_AFTER_MAX));
                }
                if uncut {
                    self.uncut = self.next;
                    self.size = (self.size / 2.0).max(1.0);
                    self.hold = self.hold.max(now + self.backoff.mul_f64(0.5 + jitter() / 2.0));
                    self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                }
            }
            Outcome::Fine | Outcome::Unknown => {}
        }
    }
}

/// A window, and those who wait for a place in it.
pub(super) struct Pace {
    start: Instant,
    state: Mutex<State>,
    places: Arc<Semaphore>,
}

struct State {
    window: Window,
    /// Places that exist, free or taken. More than the window allows, if it shrank while they were taken.
    places: usize,
}

impl Pace {
    /// At most `max` requests at once.
    pub(super) fn new(max: usize) -> Arc<Self> {
        let window = Window::new(max);
        let places = window.allowed();
        Arc::new(Self {
            start: Instant::now(),
            state: Mutex::new(State { window, places }),
            places: Arc::new(Semaphore::new(places)),
        })
    }

    /// Waits until a request may start.
    pub(super) async fn enter(self: &Arc<Self>) -> Pass {
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        loop {
            let started = self.lock().window.start(self.start.elapsed());
            match started {
                Ok(number) => return Pass { pace: Arc::clone(self), place, number, outcome: Outcome::Unknown },
                Err(hold) => tokio::time::sleep_until(self.start + hold).await,
            }
        }
    }

    /// How many may be under way.
    pub(super) fn allowed(&self) -> usize {
        self.lock().window.allowed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way; its place is free again once this is dropped.
pub(super) struct Pass {
    pace: Arc<Pace>,
    place: Option<OwnedSemaphorePermit>,
    number: u64,
    outcome: Outcome,
}

impl Pass {
    /// The request has ended.
    pub(super) fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = self.pace.lock();
        state.window.end(self.number, self.outcome, self.pace.start.elapsed(), jitter);
        let allowed = state.window.allowed();
        if state.places > allowed
            && let Some(place) = self.place.take()
        {
            place.forget();
            state.places -= 1;
            state.places -= self.pace.places.forget_permits(state.places - allowed);
        } else if state.places < allowed {
            self.pace.places.add_permits(allowed - state.places);
            state.places = allowed;
        }
    }
}

fn jitter() -> f64 {
    // Without entropy all clients come back together, which is no worse than bad luck.
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Starts and ends a request at `now`.
    fn ask(window: &mut Window, now: Duration, outcome: Outcome) {
        let number = window.start(now).expect("nothing is held");
        window.end(number, outcome, now, || 1.0);
    }

    #[test]
    fn window_halves_once_for_the_requests_that_were_under_way() {
        let mut window = Window::new(64);
        let numbers: Vec<u64> = (0..64).map(|_| window.start(Duration::ZERO).expect("not held")).collect();
        for number in &numbers {
            window.end(*number, Outcome::Refused(None), MS, || 1.0);
        }
        assert_eq!(window.allowed(), 32);
        assert_eq!(window.hold, 51 * MS);
        // One that started after the cut cuts again.
        ask(&mut window, 60 * MS, Outcome::Refused(None));
        assert_eq!((window.allowed(), window.hold), (16, 160 * MS));
        // Success of an old one proves nothing.
        window.end(numbers[0], Outcome::Fine, 60 * MS, || 1.0);
        assert_eq!(window.backoff, 200 * MS);
    }

    #[test]
    fn window_never_closes_and_grows_back_by_one_per_window() {
        let mut window = Window::new(64);
        let mut now = Duration::ZERO;
        for _ in 0..20 {
            ask(&mut window, now, Outcome::Refused(None));
            assert!(window.hold - now <= BACKOFF_MAX);
            now = window.hold;
        }
        assert_eq!((window.allowed(), window.backoff), (1, BACKOFF_MAX));
        let mut asked = 0;
        while window.allowed() < 64 {
            ask(&mut window, now, Outcome::Fine);
            asked += 1;
        }
        // 1 + 2 + ... + 63 requests, more or less.
        assert!((1900..2200).contains(&asked), "{asked}");
        assert_eq!(window.backoff, BACKOFF_MIN);
        ask(&mut window, now, Outcome::Fine);
        assert_eq!(window.allowed(), 64);
    }

    #[test]
    fn server_says_when_to_come_back() {
        let mut window = Window::new(8);
        ask(&mut window, Duration::ZERO, Outcome::Refused(Some(2000 * MS)));
        assert_eq!(window.start(1999 * MS), Err(2000 * MS));
        assert_eq!(window.start(2000 * MS), Ok(1));
        window.end(1, Outcome::Refused(Some(Duration::from_secs(86_400))), 2000 * MS, || 0.0);
        assert_eq!(window.hold, 2000 * MS + RETRY_AFTER_MAX);
    }

    #[test]
    fn pause_is_jittered() {
        let pause = |jitter| {
            let mut window = Window::new(8);
            let number = window.start(Duration::ZERO).expect("not held");
            window.end(number, Outcome::Refused(None), Duration::ZERO, || jitter);
            window.hold
        };
        assert_eq!([pause(0.0), pause(0.5), pause(1.0)], [25 * MS, 37 * MS + 500 * MS / 1000, 50 * MS]);
    }

    fn executor() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor")
    }

    /// Whether a request may start at once.
    async fn enters(pace: &Arc<Pace>) -> Option<Pass> {
        let mut entering = pin!(pace.enter());
        std::future::poll_fn(|cx| match entering.as_mut().poll(cx) {
            std::task::Poll::Ready(pass) => std::task::Poll::Ready(Some(pass)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[test]
    fn places_follow_the_window() {
        executor().block_on(async {
            let pace = Pace::new(4);
            let mut passes = Vec::new();
            while let Some(pass) = enters(&pace).await {
                passes.push(pass);
            }
            assert_eq!(passes.len(), 4);
            passes.remove(0).end(Outcome::Refused(None));
            assert_eq!(pace.allowed(), 2);
            // Three are still under way, and two of them would be enough.
            passes.remove(0).end(Outcome::Refused(None));
            assert!(enters(&pace).await.is_none());
            drop(passes);
            // Once the pause is over the window is what it should be, and grows with what succeeds.
            let first = pace.enter().await;
            let second = pace.enter().await;
            assert!(enters(&pace).await.is_none());
            first.end(Outcome::Fine);
            second.end(Outcome::Fine);
            while pace.allowed() < 4 {
                pace.enter().await.end(Outcome::Fine);
            }
            let all: Vec<Pass> =
                [pace.enter().await, pace.enter().await, pace.enter().await, pace.enter().await].into();
            assert!(enters(&pace).await.is_none());
            drop(all);
        });
    }

    #[test]
    fn waiter_that_is_dropped_leaves_its_place_to_the_next() {
        executor().block_on(async {
            let pace = Pace::new(1);
            let only = pace.enter().await;
            let mut dropped = Box::pin(pace.enter());
            let mut next = Box::pin(pace.enter());
            let pending = |polled: std::task::Poll<Pass>| assert!(polled.is_pending());
            std::future::poll_fn(|cx| {
                pending(dropped.as_mut().poll(cx));
                pending(next.as_mut().poll(cx));
                std::task::Poll::Ready(())
            })
            .await;
            drop(dropped);
            drop(only);
            next.await.end(Outcome::Fine);
            assert!(enters(&pace).await.is_some());
        });
    }
}
