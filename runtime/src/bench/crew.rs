//! The threads of a phase, their clock, and how they write and read a file.
//!
//! The clock runs from the first thread's first call to the last thread's last one; the time in which a thread makes or
//! checks bytes is taken out of its own part.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{RwLock, mpsc};
use std::time::{Duration, Instant};

use super::plan::{Kind, Plan};
use super::{BenchError, Step, Stop, TICK};

/// Runs phases.
pub(super) struct Crew<'a> {
    pub(super) plan: &'a Plan,
    pub(super) stop: &'a Stop,
    pub(super) watch: &'a (dyn Fn(Step) + Sync),
}

/// One thread of a phase.
pub(super) struct Hand<'a> {
    /// Its number. (below the plan's threads)
    pub(super) index: u64,
    /// As long as the longest block.
    pub(super) buffer: Vec<u8>,
    /// Time that does not count.
    aside: Duration,
    done: &'a AtomicU64,
    given_up: &'a AtomicBool,
}

/// When a thread worked.
struct Span {
    began: Instant,
    ended: Instant,
    aside: Duration,
}

impl Crew<'_> {
    /// Has all threads do `job`, and returns how long it took them. The first error ends all of them.
    pub(super) fn run(
        &self,
        what: &'static str,
        kind: Kind,
        job: impl Fn(&mut Hand<'_>) -> Result<(), BenchError> + Sync,
    ) -> Result<Duration, BenchError> {
        let (done, given_up) = (AtomicU64::new(0), AtomicBool::new(false));
        let hand = |index| {
            // Not zeros: those would be pages that the kernel has yet to find.
            let buffer = vec![0xa5; self.plan.buffer_len()];
            Hand { index, buffer, aside: Duration::ZERO, done: &done, given_up: &given_up }
        };
        let hands: Vec<Hand<'_>> = (0..self.plan.threads).map(hand).collect();
        let (sender, receiver) = mpsc::channel();
        let gate = RwLock::new(());
        std::thread::scope(|scope| {
            let closed = gate.write();
            for mut hand in hands {
                let (sender, gate, job, given_up) = (sender.clone(), &gate, &job, &given_up);
                let work = move || {
                    let open = gate.read();
                    let began = Instant::now();
                    let worked = job(&mut hand);
                    let span = Span { began, ended: Instant::now(), aside: hand.aside };
                    drop(open);
                    let failed = worked.is_err();
                    // Fails only if the phase has its error already.
                    let _ = sender.send(worked.map(|()| span));
                    // After the error is sent: the others' errors only say that they were interrupted by this one.
                    if failed {
                        given_up.store(true, Ordering::Release);
                    }
                };
                if let Err(source) = std::thread::Builder::new().spawn_scoped(scope, work) {
                    given_up.store(true, Ordering::Relaxed);
                    return Err(BenchError::Call { doing: "start", path: "a thread".into(), source });
                }
            }
            drop(closed);
            drop(sender);
            self.follow(what, kind, &receiver, &done, &given_up)
        })
    }

    /// Shows progress until the last thread has ended.
    fn follow(
        &self,
        what: &'static str,
        kind: Kind,
        receiver: &mpsc::Receiver<Result<Span, BenchError>>,
        done: &AtomicU64,
        given_up: &AtomicBool,
    ) -> Result<Duration, BenchError> {
        let files = self.plan.threads * self.plan.count(kind);
        let (shift, total) = match kind {
            Kind::Big => (20, files.saturating_mul(self.plan.len(kind))),
            Kind::Small => (0, files),
        };
        let mut spans = Vec::new();
        let mut error = None;
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(Ok(span)) => spans.push(span),
                // The others then say that they were interrupted.
                Ok(Err(e)) => error = error.or(Some(e)),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if self.stop.is_set() {
                        given_up.store(true, Ordering::Relaxed);
                    }
                    let done = done.load(Ordering::Relaxed);
                    (self.watch)(Step { what, done: done >> shift, total: total >> shift });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        match error {
            Some(e) => Err(e),
            // A stop that came too late for the threads still ends the run.
            None if self.stop.is_set() => Err(BenchError::Interrupted),
            None => Ok(elapsed(&spans)),
        }
    }
}

fn elapsed(spans: &[Span]) -> Duration {
    let began = spans.iter().map(|span| span.began).min();
    let ended = spans.iter().map(|span| span.ended - span.aside).max();
    ended.zip(began).map_or(Duration::ZERO, |(ended, began)| ended.saturating_duration_since(began))
}

impl Hand<'_> {
    /// `count` more bytes or files are done; an error if the phase is over.
    pub(super) fn advance(&self, count: u64) -> Result<(), BenchError> {
        self.done.fetch_add(count, Ordering::Relaxed);
        if self.given_up.load(Ordering::Acquire) { Err(BenchError::Interrupted) } else { Ok(()) }
    }

    /// Works on the buffer off the clock.
    pub(super) fn fill<T>(&mut self, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let began = Instant::now();
        let result = work(&mut self.buffer);
        self.aside += began.elapsed();
        result
    }
}

/// A file that is being written.
pub(super) struct Writing<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Writing<'a> {
    pub(super) fn create(path: &'a Path) -> Result<Self, BenchError> {
        let file = File::create_new(path).map_err(BenchError::call("create", path))?;
        Ok(Self { path, file })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), BenchError> {
        self.file.write_all(bytes).map_err(BenchError::call("write to", self.path))
    }

    pub(super) fn sync(&self) -> Result<(), BenchError> {
        self.file.sync_all().map_err(BenchError::call("fsync", self.path))
    }

    /// A file system may keep an error for close(2), which dropping a `File` does not show.
    pub(super) fn close(self) -> Result<(), BenchError> {
        // SAFETY: the descriptor was taken out of its only owner.
        let closed = unsafe { rustix::io::try_close(self.file.into_raw_fd()) };
        closed.map_err(|e| BenchError::call("close", self.path)(e.into()))
    }
}

/// A file that is being read.
pub(super) struct Reading<'a> {
    path: &'a Path,
    file: File,
}

impl<'a> Reading<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, BenchError> {
        let file = File::open(path).map_err(BenchError::call("open", path))?;
        Ok(Self { path, file })
    }

    /// Fills `buffer`.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<(), BenchError> {
        let read = self.file.read_exact(buffer);
        read.map_err(|e| {
            if e.kind() == ErrorKind::UnexpectedEof {
                return BenchError::wrong(self.path, "ends before what was written does");
            }
            BenchError::call("read", self.path)(e)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(threads: u64) -> Plan {
        Plan { threads, block_size: 4096, big_file_size: 8192, small_file_size: 10, small_file_count: 3, verify: false }
    }

    #[test]
    fn the_clock_runs_from_the_first_to_the_last() {
        let at = |ms| Duration::from_millis(ms);
        let zero = Instant::now();
        let span = |began, ended, aside| Span { began: zero + at(began), ended: zero + at(ended), aside: at(aside) };
        assert_eq!(elapsed(&[span(5, 100, 0)]), at(95));
        assert_eq!(elapsed(&[span(5, 100, 20), span(2, 90, 0)]), at(88));
        assert_eq!(elapsed(&[span(0, 100, 50), span(0, 70, 0)]), at(70));
    }

    #[test]
    fn the_first_error_ends_all_threads() {
        let (plan, stop) = (plan(3), Stop::default());
        let crew = Crew { plan: &plan, stop: &stop, watch: &|_| {} };
        let outcome = crew.run("failing", Kind::Small, |hand| {
            if hand.index == 1 {
                return Err(BenchError::wrong(Path::new("f"), "is wrong"));
            }
            loop {
                hand.advance(1)?;
            }
        });
        assert_eq!(outcome.unwrap_err().to_string(), "f: is wrong");
    }

    #[test]
    fn a_stop_ends_all_threads() {
        let (plan, stop) = (plan(2), Stop::default());
        let crew = Crew { plan: &plan, stop: &stop, watch: &|_| stop.set() };
        let outcome = crew.run("stopping", Kind::Small, |hand| {
            loop {
                hand.advance(1)?;
            }
        });
        assert!(matches!(outcome, Err(BenchError::Interrupted)));
    }
}
