//! Reads and syncs of local files that the thread which asks waits for itself, but not for long.
//!
//! Owns: a ring (io_uring(7)) for each such thread, and what a read that takes too long leaves behind.
//! Leaves to others: which threads may wait (`fuse`), which files are read (`objects::folder`, `log_folder`) and synced
//! (`rounds`), and what is done instead where this does nothing: a thread of the blocking pool does it, which may take as
//! long as it likes.
//!
//! A disk of today answers in 0.1 ms, and to wake another thread takes 40 us where processors are idle: a read that goes by
//! way of the blocking pool and the executor pays that three times. pread(2) on the thread itself has no deadline; a ring
//! has. Reads go around the page cache (O_DIRECT): of 64 KiB at random, 105 us instead of 160 to 210.
//!
//! Invariants
//! - A thread waits for a read for `PATIENCE` at most; after that it does not try again for `REST`. A sync has to be waited
//!   for, since the kernel has none with a deadline; that holds for it after the second in a row.
//! - `AT_ONCE` threads wait at most: the others serve what needs no disk.
//! - What the kernel may still write to is kept until it says that it is done.

use std::cell::{Cell, RefCell};
use std::ffi::CString;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;

use crate::direct::Target;

/// Longer reads gain nothing.
pub(crate) const LEN_MAX: u64 = 128 << 10;
/// A disk that takes longer makes the way of other threads look short.
const PATIENCE: Duration = Duration::from_millis(2);
/// How long a thread does not wait itself after that.
const REST: Duration = Duration::from_millis(50);
/// Of four threads that serve.
const AT_ONCE: usize = 2;

static WAITING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MAY_WAIT: Cell<bool> = const { Cell::new(false) };
    /// The last `block` took too long.
    static SLOW: Cell<bool> = const { Cell::new(false) };
    /// `block` is not to be tried before.
    static RESTS_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
    static RING: RefCell<State> = const { RefCell::new(State::Untried) };
}

enum State {
    Untried,
    /// The kernel has none for us.
    Refused,
    Ready(Box<Ring>),
}

/// What is done in `work` may be waited for on this thread.
pub(crate) fn allowed<T>(work: impl FnOnce() -> T) -> T {
    struct Reset(bool);
    impl Drop for Reset {
        fn drop(&mut self) {
            MAY_WAIT.set(self.0);
        }
    }
    let _reset = Reset(MAY_WAIT.replace(true));
    work()
}

pub(crate) fn is_allowed() -> bool {
    MAY_WAIT.get()
}

/// Does `work`, which blocks for as long as the disk takes; gives it back where this thread may not wait. The second in a row
/// that took too long is the last for a while: a single one may have had much to write.
pub(crate) fn block<T, W: FnOnce() -> T>(work: W) -> Result<T, W> {
    if !MAY_WAIT.get() || RESTS_UNTIL.get().is_some_and(|until| Instant::now() < until) {
        return Err(work);
    }
    let Some(_place) = Place::take() else { return Err(work) };
    let began = Instant::now();
    let done = work();
    let ended = Instant::now();
    let slow = PATIENCE < ended - began;
    let again = SLOW.replace(slow) && slow;
    RESTS_UNTIL.set(again.then(|| ended + REST));
    Ok(done)
}

/// A place among those that wait.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let place = Self;
        (WAITING.fetch_add(1, Ordering::AcqRel) < AT_ONCE).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Opens a file for `read`. `None`: not here, or not in time.
pub(crate) fn open(path: &Path) -> Option<Result<OwnedFd, Errno>> {
    with_ring(|ring| {
        let path = CString::new(path.as_os_str().as_bytes()).ok()?;
        let entry = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr())
            .flags(libc::O_RDONLY | libc::O_DIRECT | libc::O_CLOEXEC)
            .build();
        let (result, _path) = ring.run(entry, Held::Path(path))?;
        // SAFETY: the kernel has just made it, for this call.
        Some(result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    })
}

/// `range` of a file that was opened with O_DIRECT, or as much of it as there is. `None`: not here, or not in time.
pub(crate) fn read(file: &impl AsRawFd, range: Range<u64>) -> Option<Result<Bytes, Errno>> {
    if range.end < range.start || LEN_MAX < range.end - range.start {
        return None;
    }
    with_ring(|ring| {
        let mut target = Target::new(range);
        let Some((space, at)) = target.space() else { return Some(Ok(Bytes::new())) };
        // The kernel holds the file open until it is done.
        let (memory, len) = (space.as_mut_ptr().cast(), space.len() as u32);
        let entry = opcode::Read::new(Fd(file.as_raw_fd()), memory, len).offset(at).build();
        let (result, held) = ring.run(entry, Held::Memory(target))?;
        let Held::Memory(mut target) = held else { return None };
        Some(result.map(|count| {
            // SAFETY: the kernel has written so many bytes.
            unsafe { target.advance(count as usize) };
            target.finish()
        }))
    })
}

fn with_ring<T>(work: impl FnOnce(&mut Ring) -> Option<T>) -> Option<T> {
    if !MAY_WAIT.get() {
        return None;
    }
    let _place = Place::take()?;
    RING.with_borrow_mut(|state| {
        if let State::Untried = state {
            *state = Ring::new().map_or_else(
                |error| {
                    tracing::debug!(%error, "no io_uring: threads that serve do not read themselves");
                    State::Refused
                },
                |ring| State::Ready(Box::new(ring)),
            );
        }
        match state {
            State::Ready(ring) => ring.is_ready().then(|| work(ring)).flatten(),
            State::Refused | State::Untried => None,
        }
    })
}

/// What the kernel uses until an operation has ended.
enum Held {
    Path(#[expect(dead_code, reason = "the kernel reads it")] CString),
    Memory(Target),
}

struct Ring {
    ring: IoUring,
    /// Operations that have not ended, by number.
    held: Vec<(u64, Held)>,
    next: u64,
    rests_until: Option<Instant>,
}

impl Ring {
    fn new() -> io::Result<Self> {
        // What has ended is looked at by the thread that waits for it, which nothing else then has to wake.
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(Errno::OPNOTSUPP.into());
        }
        Ok(Self { ring, held: Vec::new(), next: 1, rests_until: None })
    }

    /// Nothing is left of an earlier operation.
    fn is_ready(&mut self) -> bool {
        if self.rests_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        self.rests_until = None;
        if !self.held.is_empty() {
            self.wait(Duration::ZERO);
            self.reap(0);
        }
        self.held.is_empty()
    }

    /// Runs one operation: what it has returned and used. `None`: it takes too long, and what it uses stays here.
    fn run(&mut self, entry: squeue::Entry, held: Held) -> Option<(Result<u32, Errno>, Held)> {
        let number = self.next;
        self.next += 1;
        // SAFETY: what the entry points to is in `held` before it is submitted, and until the operation has ended.
        unsafe { self.ring.submission().push(&entry.user_data(number)) }.ok()?;
        self.held.push((number, held));
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            self.wait(left);
            if let Some(ended) = self.reap(number) {
                return Some(ended);
            }
            if left.is_zero() {
                break;
            }
        }
        let cancel = opcode::AsyncCancel::new(number).build();
        // SAFETY: it points to nothing.
        if unsafe { self.ring.submission().push(&cancel) }.is_ok() {
            // What it has brought about is seen before the next operation.
            _ = self.ring.submit();
        }
        self.rests_until = Some(Instant::now() + REST);
        None
    }

    /// Submits what is queued, and waits until anything has ended, but no longer than this.
    fn wait(&mut self, limit: Duration) {
        let limit = Timespec::new().nsec(limit.subsec_nanos()).sec(limit.as_secs());
        // Out of time, or interrupted: whoever called looks at the clock. Other errors show as nothing that ends.
        _ = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit));
    }

    /// Takes note of what has ended; what number `wanted` has returned, if that has.
    fn reap(&mut self, wanted: u64) -> Option<(Result<u32, Errno>, Held)> {
        let mut found = None;
        for ended in self.ring.completion() {
            let Some(at) = self.held.iter().position(|(number, _)| *number == ended.user_data()) else { continue };
            let (number, held) = self.held.swap_remove(at);
            let result = u32::try_from(ended.result()).map_err(|_| Errno::from_raw_os_error(-ended.result()));
            if number == wanted {
                found = Some((result, held));
            } else if let (Ok(fd), Held::Path(_)) = (result, held) {
                // Nobody waits for the file any more.
                // SAFETY: the kernel has made it, for that operation.
                drop(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
            }
        }
        found
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may write to it later.
        std::mem::take(&mut self.held).into_iter().for_each(std::mem::forget);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    /// `AT_ONCE` is the process's: one test at a time.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    /// What `work` returns once it is in time: the machine has other work.
    fn in_time<T>(work: impl Fn() -> Option<Result<T, Errno>>) -> Result<T, Errno> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(done) = work() {
                return done;
            }
            assert!(Instant::now() < until, "it is never in time");
            RING.with_borrow_mut(|state| {
                let State::Ready(ring) = state else { panic!("there is no ring") };
                ring.rests_until = None;
            });
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 7) as u8).collect()
    }

    #[test]
    fn ranges_of_a_file_are_read_on_the_thread_that_may_wait() {
        let _alone = ALONE.lock();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes = pattern(100_000);
        fs::write(&path, &bytes).unwrap();
        assert!(open(&path).is_none(), "this thread may not wait");
        allowed(|| {
            let file = in_time(|| open(&path)).expect("opens");
            for (start, end) in [(0, 1), (0, 4096), (4095, 4097), (40_000, 90_001), (99_999, 100_000), (5, 5)] {
                let read = in_time(|| read(&file, start..end)).expect("reads");
                assert_eq!(read, bytes[start as usize..end as usize], "{start}..{end}");
            }
            // Less than was asked for: the file ends.
            assert_eq!(in_time(|| read(&file, 99_990..100_010)).unwrap(), bytes[99_990..]);
            assert!(in_time(|| read(&file, 200_000..200_010)).unwrap().is_empty());
            assert!(read(&file, 0..LEN_MAX + 1).is_none());
            assert_eq!(in_time(|| open(&dir.path().join("absent"))).unwrap_err(), Errno::NOENT);
        });
    }

    #[test]
    fn what_does_not_come_in_time_is_given_up_and_its_memory_kept() {
        let _alone = ALONE.lock();
        allowed(|| {
            let (reader, mut writer) = io::pipe().unwrap();
            let began = Instant::now();
            assert!(
                with_ring(|ring| {
                    let mut target = Target::new(0..16);
                    let memory = target.space().expect("nothing is filled").0.as_mut_ptr().cast();
                    // Nobody writes to the pipe.
                    let entry = opcode::Read::new(Fd(reader.as_raw_fd()), memory, 16).build();
                    ring.run(entry, Held::Memory(target)).map(|(result, _)| result)
                })
                .is_none()
            );
            assert!(began.elapsed() < Duration::from_secs(1));
            // It rests.
            assert!(with_ring(|_| Some(())).is_none());
            RING.with_borrow_mut(|state| {
                let State::Ready(ring) = state else { panic!("there is a ring") };
                ring.rests_until = None;
                assert!(ring.is_ready(), "what was cancelled has ended");
            });
            writer.write_all(b"to nobody").unwrap();
            assert!(with_ring(|_| Some(())).is_some());
        });
    }

    #[test]
    fn some_threads_go_on_serving() {
        let _alone = ALONE.lock();
        allowed(|| {
            let places: Vec<Option<Place>> = (0..=AT_ONCE).map(|_| Place::take()).collect();
            assert_eq!(places.iter().filter(|place| place.is_some()).count(), AT_ONCE);
            assert!(with_ring(|_| Some(())).is_none());
            drop(places);
            assert!(with_ring(|_| Some(())).is_some());
        });
    }

    #[test]
    fn what_blocks_too_long_is_not_done_here_for_a_while() {
        let _alone = ALONE.lock();
        assert!(block(|| ()).is_err(), "this thread may not wait");
        allowed(|| {
            assert_eq!(block(|| 7).map_err(drop), Ok(7));
            SLOW.set(false);
            RESTS_UNTIL.set(None);
            let slow = || std::thread::sleep(PATIENCE + Duration::from_millis(1));
            block(slow).map_err(drop).expect("it is done");
            assert!(SLOW.get() && RESTS_UNTIL.get().is_none());
            let until = Instant::now() + REST;
            block(slow).map_err(drop).expect("it is done");
            assert!(RESTS_UNTIL.get().is_some_and(|rests| until <= rests));
            RESTS_UNTIL.set(Some(Instant::now() + Duration::from_secs(60)));
            let work = block(|| 7).expect_err("it rests");
            assert_eq!(work(), 7);
            RESTS_UNTIL.set(Some(Instant::now()));
            assert_eq!(block(|| 7).map_err(drop), Ok(7));
        });
    }
}
