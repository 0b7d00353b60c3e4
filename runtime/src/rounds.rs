//! Group sync: callers share rounds of one slow, blocking piece of work (an fsync), one round at a time.
//!
//! Owns: who waits for which round, and who starts the next one.
//! Leaves to others: the work itself, and what a position means (`rocks`: transactions, `objects`: puts).
//!
//! Invariants
//! - A round covers the positions that `work` reports, which it reads before it syncs anything.
//! - At most one round runs, on the thread that asks if that may wait (`brief`), else on the blocking pool. Dropping a
//!   waiter neither stops nor delays it.
//! - A waiter fails if a round that ended after the waiter came has failed, even if that round did not cover it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::brief;

/// A round failed; whoever did the work has logged why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoundFailed;

/// The rounds of one resource.
pub(crate) struct Rounds {
    /// Every position at or below it is durable.
    through: AtomicU64,
    state: Mutex<State>,
    /// Wakes `wait_idle`.
    idle: Condvar,
    /// Number of rounds ended. Its change wakes the waiters.
    ended: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    running: bool,
    /// Number of rounds ended.
    ended: u64,
    /// `ended` just after the last round that failed; 0 if none has.
    failed: u64,
}

impl Rounds {
    /// No round has run; positions up to `through` need none.
    pub(crate) fn new(through: u64) -> Self {
        Self {
            through: AtomicU64::new(through),
            state: Mutex::default(),
            idle: Condvar::new(),
            ended: watch::Sender::new(0),
        }
    }

    /// Every position at or below it is durable.
    pub(crate) fn through(&self) -> u64 {
        self.through.load(Ordering::Acquire)
    }

    /// Number of rounds that have ended.
    pub(crate) fn ended(&self) -> u64 {
        self.lock().ended
    }

    /// Waits until `position` is durable; runs `work` in rounds until it is, here or on the blocking pool of `handle`.
    ///
    /// `work` returns the highest position that it has made durable: at least what any caller had reached before it ran.
    pub(crate) async fn wait<W>(self: &Arc<Self>, handle: &Handle, position: u64, work: W) -> Result<(), RoundFailed>
    where
        W: FnOnce() -> Result<u64, RoundFailed> + Clone + Send + 'static,
    {
        if self.through() >= position {
            return Ok(());
        }
        let mut ended = self.ended.subscribe();
        let arrived = self.lock().ended;
        loop {
            // Marked as seen before the state is looked at: a round that ends from here on wakes this waiter.
            ended.borrow_and_update();
            let starts = {
                let mut state = self.lock();
                if self.through() >= position {
                    return Ok(());
                }
                if state.failed > arrived {
                    return Err(RoundFailed);
                }
                !std::mem::replace(&mut state.running, true)
            };
            if starts {
                let (rounds, work) = (Arc::clone(self), work.clone());
                match brief::block(move || rounds.run(work)) {
                    Ok(()) => continue,
                    Err(run) => drop(handle.spawn_blocking(run)),
                }
            }
            if ended.changed().await.is_err() {
                return Err(RoundFailed);
            }
        }
    }

    /// Blocks until no round runs.
    pub(crate) fn wait_idle(&self) {
        let mut state = self.lock();
        while state.running {
            state = self.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, work: impl FnOnce() -> Result<u64, RoundFailed>) {
        // A panic must not leave the waiters of this and all later rounds waiting.
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(RoundFailed));
        let mut state = self.lock();
        state.running = false;
        state.ended += 1;
        match result {
            Ok(through) => {
                self.through.fetch_max(through, Ordering::AcqRel);
            }
            Err(RoundFailed) => state.failed = state.ended,
        }
        self.ended.send_replace(state.ended);
        self.idle.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
