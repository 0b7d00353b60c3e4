//! Grace for readers: waiting until everyone who was reading has finished.
//!
//! Owns: the count of readers inside. Leaves to others: who counts as a reader, and for how long.
//!
//! Readers are counted under the parity of an epoch. `quiesce` begins the next epoch and waits until the count of the
//! one before is zero; the two parities are enough because one `quiesce` runs at a time, and the first thing it does
//! is to wait for what an earlier one, dropped halfway, left under the other parity.
//!
//! Invariants
//! - A guard given out before a call of `quiesce` is gone when that call completes.
//! - Guards given out after the call do not delay it.
//! - Entering and leaving take no lock, unless someone waits.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::super::std::sync::Mutex;
use super::super::wait::{Notify, lock};
use crate::marks::{Mark, reached};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    epoch: AtomicU64,
    /// Readers that entered in an even and in an odd epoch.
    inside: [AtomicU64; 2],
    /// A reader of an earlier epoch was the last to leave.
    left: Notify,
    /// Whether a `quiesce` runs.
    busy: Mutex<bool>,
    /// The `quiesce` that ran has ended.
    free: Notify,
}

/// A reader inside; leaves when dropped.
#[must_use]
#[derive(Debug)]
pub(crate) struct Guard {
    grace: Arc<Grace>,
    parity: usize,
}

impl Grace {
    /// Nobody inside.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Counts the caller as a reader from here on. To be called before looking up what to read.
    pub(crate) fn enter(self: &Arc<Self>) -> Guard {
        loop {
            let epoch = self.epoch.load(SeqCst);
            let parity = (epoch % 2) as usize;
            self.inside[parity].fetch_add(1, SeqCst);
            let guard = Guard { grace: Arc::clone(self), parity };
            // If the epoch still holds, whoever begins the next one sees this reader. If not, that one may have
            // looked already: enter again.
            if self.epoch.load(SeqCst) == epoch {
                return guard;
            }
        }
    }

    /// Completes when every guard that exists at the call was dropped. Dropping the future has no effect.
    pub(crate) async fn quiesce(&self) {
        let _turn = self.turn().await;
        let epoch = self.epoch.load(SeqCst);
        self.emptied((epoch + 1) % 2).await;
        self.epoch.store(epoch + 1, SeqCst);
        self.emptied(epoch % 2).await;
    }

    /// Waits until nobody is inside under a parity that nobody enters under.
    async fn emptied(&self, parity: u64) {
        loop {
            let left = self.left.listen();
            if self.inside[parity as usize].load(SeqCst) == 0 {
                return;
            }
            reached(Mark::DeleteWaitedForReaders);
            left.await;
        }
    }

    async fn turn(&self) -> Turn<'_> {
        loop {
            let free = self.free.listen();
            {
                let mut busy = lock(&self.busy);
                if !*busy {
                    *busy = true;
                    return Turn(self);
                }
            }
            free.await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let last = self.grace.inside[self.parity].fetch_sub(1, SeqCst) == 1;
        // Under the parity of the running epoch nobody waits; if an epoch begins after this look, whoever begins it
        // looks at the count after that.
        if last && (self.grace.epoch.load(SeqCst) % 2) as usize != self.parity {
            self.grace.left.notify_all();
        }
    }
}

/// The right to begin an epoch.
struct Turn<'a>(&'a Grace);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.busy) = false;
        self.0.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use core::future::Future;
    use core::pin::{Pin, pin};
    use core::task::{Context, Waker};

    use super::super::super::std::{thread, vec::Vec};
    use super::*;

    fn done<F: Future<Output = ()>>(fut: Pin<&mut F>) -> bool {
        fut.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn waits_for_those_inside_and_for_nobody_else() {
        let grace = Arc::new(Grace::new());
        assert!(done(pin!(grace.quiesce())));
        let first = grace.enter();
        let second = grace.enter();
        let mut quiesce = pin!(grace.quiesce());
        assert!(!done(quiesce.as_mut()));
        let after = grace.enter();
        drop(first);
        assert!(!done(quiesce.as_mut()));
        drop(second);
        assert!(done(quiesce.as_mut()));
        drop(after);
    }

    #[test]
    fn one_dropped_halfway_hides_no_reader_from_the_next() {
        let grace = Arc::new(Grace::new());
        for _ in 0..5 {
            let inside = grace.enter();
            for _ in 0..3 {
                let mut quiesce = pin!(grace.quiesce());
                assert!(!done(quiesce.as_mut()));
            }
            let later = grace.enter();
            let mut quiesce = pin!(grace.quiesce());
            assert!(!done(quiesce.as_mut()));
            drop(inside);
            assert!(!done(quiesce.as_mut()), "`later` is inside");
            drop(later);
            assert!(done(quiesce.as_mut()));
        }
    }

    #[test]
    fn several_at_once_all_end() {
        let grace = Arc::new(Grace::new());
        let inside = grace.enter();
        let mut first = pin!(grace.quiesce());
        let mut second = pin!(grace.quiesce());
        assert!(!done(first.as_mut()) && !done(second.as_mut()));
        drop(inside);
        assert!(!done(second.as_mut()), "not its turn");
        assert!(done(first.as_mut()));
        assert!(done(second.as_mut()));
    }

    /// Readers on several threads: none is inside across a whole `quiesce`.
    #[test]
    fn threads_never_hold_what_was_quiesced() {
        let grace = Arc::new(Grace::new());
        let destroyed = Arc::new(AtomicU64::new(0));
        let running = Arc::new(AtomicU64::new(3));
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let (grace, destroyed, running) = (Arc::clone(&grace), Arc::clone(&destroyed), Arc::clone(&running));
                thread::spawn(move || {
                    for _ in 0..20_000 {
                        let guard = grace.enter();
                        // `destroyed` is the number of whole quiesces: one may end here that had begun before the
                        // guard, a second one must not.
                        let before = destroyed.load(SeqCst);
                        core::hint::spin_loop();
                        assert!(destroyed.load(SeqCst) <= before + 1);
                        drop(guard);
                    }
                    running.fetch_sub(1, SeqCst);
                })
            })
            .collect();
        while 0 < running.load(SeqCst) {
            let mut quiesce = pin!(grace.quiesce());
            while !done(quiesce.as_mut()) {
                thread::yield_now();
            }
            destroyed.fetch_add(1, SeqCst);
        }
        assert!(readers.into_iter().all(|reader| reader.join().is_ok()));
    }
}
