//! The thread that hands commits to RocksDB a moment after they were made, many of them at once.
//!
//! Invariant: what was there when `soon` was called is there when `hand` is called next, `DELAY` later or, at the end, before.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// So long a commit stays in the process, which takes it along if it is killed.
const DELAY: Duration = Duration::from_millis(5);

/// The thread; ends when this is dropped.
pub(super) struct Handing {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    wanted: AtomicBool,
    stopped: AtomicBool,
}

impl Handing {
    /// Calls `hand` after each `soon`, once for all that come within `DELAY`, and when it ends.
    pub(super) fn start(hand: impl Fn() + Send + 'static) -> io::Result<Self> {
        let state = Arc::<State>::default();
        let shared = Arc::clone(&state);
        let thread = thread::Builder::new().name("metadata log".into()).spawn(move || shared.run(hand))?;
        Ok(Self { state, thread: Some(thread) })
    }

    /// There is something to hand over.
    pub(super) fn soon(&self) {
        // Who finds it set is in time: it is cleared before `hand` is called.
        if !self.state.wanted.load(Ordering::Acquire) && !self.state.wanted.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Handing {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // One that has panicked has said so.
            _ = thread.join();
        }
    }
}

impl State {
    fn run(&self, hand: impl Fn()) {
        while !self.stopped.load(Ordering::Acquire) {
            if !self.wanted.load(Ordering::Acquire) {
                thread::park();
                continue;
            }
            let end = Instant::now() + DELAY;
            while !self.stopped.load(Ordering::Acquire) && Instant::now() < end {
                thread::park_timeout(end.saturating_duration_since(Instant::now()));
            }
            self.wanted.store(false, Ordering::Release);
            hand();
        }
        hand();
    }
}
