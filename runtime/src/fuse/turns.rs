//! Which of the threads that serve reads the kernel's next request, and how it waits for it.
//!
//! A program that does one thing after the other keeps one thread busy. Where several sleep in read(2) the kernel wakes
//! them in turn, so that each request finds other caches; and to wake a thread on another processor costs both sides some
//! microseconds. So while requests come one at a time, one thread reads and the others *rest*, and the one that reads looks
//! for the next request for a moment before it sleeps.
//!
//! Owns: who rests, how long is looked. Leaves to others: reading (fuser), serving (`serve`).
//!
//! Invariants
//! - While a request waits and none is served for two `TICK`, nobody rests: one of those that rest watches.
//! - Nobody rests once the connection has ended.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;

/// All in nanoseconds since the mount began.
type Nanos = u64;

const MICRO: Nanos = 1000;
/// So many requests one after the other, each so soon after another, and a program does one thing at a time.
const STREAK: u32 = 64;
const SOON: Nanos = 200 * MICRO;
/// How long is looked for the next request: about what it costs to wake both sides, and twice what a program needs to ask
/// again.
const PATIENCE: Nanos = 50 * MICRO;
/// Longest time between two looks while nobody else wants the processor. Who goes on looking would keep him waiting, and
/// sleeps instead for so long.
const UNDISTURBED: Nanos = 15 * MICRO;
const BLIND: Nanos = 2000 * MICRO;
/// Parts of one request follow each other sooner: read(2) takes longer.
const READ: Nanos = MICRO;
/// One thread that has found a request waiting after each for so long is not enough.
const SATURATED: Nanos = 1000 * MICRO;
/// All read for so long before one does again: waking them takes 20 us.
const APART: Nanos = 10_000 * MICRO;
/// How often it is looked whether anything was served.
const TICK: Duration = Duration::from_millis(2);

thread_local! {
    static IN_TURN: Cell<bool> = const { Cell::new(false) };
}

/// The threads that serve one mount.
#[derive(Debug)]
pub(crate) struct Turns {
    since: Instant,
    connection: OnceLock<Connection>,
    /// One thread reads.
    alone: AtomicBool,
    resting: Mutex<Resting>,
    /// All are to read.
    over: Condvar,

    /// Requests that threads are at.
    serving: AtomicU32,
    /// When a request was served last.
    ended: AtomicU64,
    /// Requests one after the other, so far.
    streak: AtomicU32,
    /// `alone` is not to be set before.
    apart_until: AtomicU64,

    // Of the one that reads alone.
    /// How long it looks: `PATIENCE`, or 0 if the last look was in vain and no request has come soon since.
    patience: AtomicU64,
    blind_until: AtomicU64,
    /// When it found no request waiting.
    idle: AtomicU64,
}

#[derive(Debug)]
struct Connection {
    /// Readable when a request waits.
    device: OwnedFd,
    threads: usize,
    /// There is a processor for others while one thread looks.
    can_look: bool,
}

#[derive(Debug, Default)]
struct Resting {
    threads: usize,
    /// One of them watches.
    watched: bool,
}

/// What a look at the device finds.
enum Found {
    Nothing,
    Request,
    End,
}

impl Turns {
    /// All threads read.
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            connection: OnceLock::new(),
            alone: AtomicBool::new(false),
            resting: Mutex::default(),
            over: Condvar::new(),
            serving: AtomicU32::new(0),
            ended: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            apart_until: AtomicU64::new(0),
            patience: AtomicU64::new(0),
            blind_until: AtomicU64::new(0),
            idle: AtomicU64::new(0),
        }
    }

    /// From here on they take turns: `threads`, which read from `device`.
    pub(crate) fn start(&self, device: OwnedFd, threads: usize) {
        let can_look = std::thread::available_parallelism().is_ok_and(|processors| 1 < processors.get());
        // There is one connection.
        _ = self.connection.set(Connection { device, threads, can_look });
    }

    /// This thread is at a request until what this returns is dropped.
    pub(super) fn begin(&self) -> Turn<'_> {
        if IN_TURN.replace(true) {
            return Turn(None);
        }
        let now = self.now();
        let gap = now.saturating_sub(self.ended.load(Relaxed));
        let others = self.serving.fetch_add(1, Relaxed);
        if gap < PATIENCE && self.patience.load(Relaxed) == 0 {
            self.patience.store(PATIENCE, Relaxed);
        }
        if SATURATED / 2 < gap {
            self.idle.store(now, Relaxed);
        }
        if others == 0 && gap < SOON {
            self.streak.fetch_add(1, Relaxed);
        } else {
            self.streak.store(0, Relaxed);
        }
        Turn(Some(self))
    }

    /// As `begin`, of a part of a request that fuser takes apart: the first is all of it.
    pub(super) fn begin_part(&self) -> Turn<'_> {
        let now = self.now();
        if now.saturating_sub(self.ended.load(Relaxed)) < READ {
            self.ended.store(now, Relaxed);
            return Turn(None);
        }
        self.begin()
    }

    fn end(&self) {
        let now = self.now();
        self.serving.fetch_sub(1, Relaxed);
        self.ended.store(now, Relaxed);
        let Some(connection) = self.connection.get() else { return };
        if STREAK <= self.streak.load(Relaxed) && self.apart_until.load(Relaxed) <= now {
            self.alone.store(true, Relaxed);
        }
        if self.alone.load(Relaxed) && !self.rest(connection.threads) {
            self.look(connection, now);
        }
    }

    /// Rests while another of the `threads` reads. False: there is no other.
    fn rest(&self, threads: usize) -> bool {
        let mut resting = self.resting();
        if threads <= resting.threads + 1 {
            return false;
        }
        resting.threads += 1;
        let watches = !std::mem::replace(&mut resting.watched, true);
        let mut ended = self.ended.load(Relaxed);
        while self.alone.load(Relaxed) {
            resting = if watches {
                self.over.wait_timeout(resting, TICK).unwrap_or_else(PoisonError::into_inner).0
            } else {
                self.over.wait(resting).unwrap_or_else(PoisonError::into_inner)
            };
            if watches && std::mem::replace(&mut ended, self.ended.load(Relaxed)) == ended {
                self.all_read(&resting);
            }
        }
        resting.threads -= 1;
        resting.watched &= !watches;
        true
    }

    fn all_read(&self, _: &MutexGuard<'_, Resting>) {
        self.apart_until.store(self.now() + APART, Relaxed);
        self.streak.store(0, Relaxed);
        self.alone.store(false, Relaxed);
        self.over.notify_all();
    }

    /// Waits for the next request, but not for long.
    fn look(&self, connection: &Connection, ended: Nanos) {
        match connection.look() {
            Found::Request if self.idle.load(Relaxed) + SATURATED < ended => return self.all_read(&self.resting()),
            Found::Request => return,
            Found::End => return self.all_read(&self.resting()),
            Found::Nothing => self.idle.store(ended, Relaxed),
        }
        if !connection.can_look || ended < self.blind_until.load(Relaxed) {
            return;
        }
        let patience = self.patience.load(Relaxed);
        let mut last = ended;
        while last < ended + patience {
            for _ in 0..8 {
                std::hint::spin_loop();
            }
            match connection.look() {
                Found::Nothing => {}
                Found::Request => return,
                Found::End => return self.all_read(&self.resting()),
            }
            let now = self.now();
            if UNDISTURBED < now - last {
                self.blind_until.store(now + BLIND, Relaxed);
                return;
            }
            last = now;
        }
        self.patience.store(0, Relaxed);
    }

    fn resting(&self) -> MutexGuard<'_, Resting> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Nanos {
        self.since.elapsed().as_nanos() as Nanos
    }
}

impl Connection {
    fn look(&self) -> Found {
        let mut device = [PollFd::new(&self.device, PollFlags::IN)];
        match poll(&mut device, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(0) => Found::Nothing,
            Ok(_) if device[0].revents() == PollFlags::IN => Found::Request,
            Ok(_) => Found::End,
            // Whoever reads is told what is wrong.
            Err(_) => Found::End,
        }
    }
}

/// A request that a thread is at; the innermost of one thread's means nothing.
pub(super) struct Turn<'a>(Option<&'a Turns>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(turns) = self.0 {
            IN_TURN.set(false);
            turns.end();
        }
    }
}
