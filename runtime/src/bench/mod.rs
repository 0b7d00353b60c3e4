//! `kiseki bench`: the procedure of `juicefs bench` on any folder, and the time until what was written is safe.
//!
//! Owns: the order of the phases, and what each of them counts for.
//! Leaves to others: sizes and figures (`plan`), bytes (`data`), threads and clocks (`crew`), the folder and the kernel's
//! caches (`place`), the store below (`store`), arguments and output (`cli::bench`).
//!
//! Invariants
//! - What is read was written by the visible pass and is stored before the first read.
//! - Whatever a run returns, its folder is gone, or the error says that it is not.

mod crew;
mod data;
mod place;
mod plan;
mod store;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crew::{Crew, Hand};
use data::Data;
use place::Scratch;

pub use place::{Caches, file_system};
pub use plan::{Account, Item, Plan, Row};
pub use store::Store;

use plan::Kind;

use crate::objects::Counts;

/// How often a progress bar moves and a request to stop is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A call failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Call {
        /// The verb.
        doing: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file was read or looked at and is not what was written.
    #[error("{}: {what}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The difference.
        what: String,
    },
    /// Checked ahead, so that a benchmark does not fill a disk.
    #[error("{} has {free} free, and this run needs {needed}", path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes or files.
        free: Amount,
        /// As many would be written.
        needed: Amount,
    },
    /// Asked to stop.
    #[error("interrupted; nothing is left of it")]
    Interrupted,
    /// The folder of the run is still there.
    #[error("{}cannot remove {}: {source}", why.as_ref().map(|e| format!("{e}; also, ")).unwrap_or_default(), path.display())]
    Left {
        /// What ended the run, if it was not this.
        why: Option<Box<Self>>,
        /// What to remove.
        path: PathBuf,
        /// Why it could not be removed.
        source: io::Error,
    },
}

impl BenchError {
    fn call(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Call { doing, path: path.into(), source }
    }

    fn wrong(path: &Path, what: impl Into<String>) -> Self {
        Self::Wrong { path: path.into(), what: what.into() }
    }
}

/// What there can be too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// Of space.
    Bytes(u64),
    /// Of inodes.
    Files(u64),
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bytes(bytes) if bytes < 1 << 30 => write!(f, "{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
            Self::Bytes(bytes) => write!(f, "{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
            Self::Files(count) => write!(f, "{count} files"),
        }
    }
}

/// A request to end a run, from a signal for example.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks for the end.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a run is at, for a progress bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// In words.
    pub what: &'static str,
    /// MiB or files so far.
    pub done: u64,
    /// Of as many; 0: the end is not known.
    pub total: u64,
}

/// Runs `plan` in a folder of its own inside `folder`.
pub fn run(
    plan: &Plan,
    folder: &Path,
    store: Store,
    caches: &Caches,
    stop: &Stop,
    watch: &(dyn Fn(Step) + Sync),
) -> Result<Vec<Row>, BenchError> {
    place::check_space(folder, plan)?;
    let data = Data::new(plan.buffer_len()).map_err(BenchError::call("get random bytes for", folder))?;
    let scratch = Scratch::make(folder)?;
    let store = Arc::new(store);
    let run = Run { plan, scratch: &scratch, store: &store, data: &data, caches, stop, watch };
    let rows = run.everything();
    watch(Step { what: "removing what was written", done: 0, total: 0 });
    let path = scratch.path().to_owned();
    match (rows, scratch.remove()) {
        (rows, Ok(())) => rows,
        (rows, Err(source)) => Err(BenchError::Left { why: rows.err().map(Box::new), path, source }),
    }
}

/// What the phases of a run share.
struct Run<'a> {
    plan: &'a Plan,
    scratch: &'a Scratch,
    store: &'a Arc<Store>,
    data: &'a Data,
    caches: &'a Caches,
    stop: &'a Stop,
    watch: &'a (dyn Fn(Step) + Sync),
}

impl Run<'_> {
    fn everything(&self) -> Result<Vec<Row>, BenchError> {
        let mut rows = Vec::new();
        for kind in [Kind::Big, Kind::Small] {
            if self.plan.has(kind) {
                self.visible(kind, &mut rows)?;
                self.read(kind, &mut rows)?;
                if kind == Kind::Small {
                    self.stat(&mut rows)?;
                }
                // Last, so that it does not disturb what is compared with `juicefs bench`.
                self.durable(kind, &mut rows)?;
            }
        }
        rows.sort_by_key(|row| (row.item, row.account));
        Ok(rows)
    }

    /// Writes, until the last close has returned and then until everything is stored.
    fn visible(&self, kind: Kind, rows: &mut Vec<Row>) -> Result<(), BenchError> {
        let item = kind.write();
        let what = match kind {
            Kind::Big => "writing big files",
            Kind::Small => "writing small files",
        };
        self.caches.drop()?;
        let before = self.requests()?;
        let elapsed = self.write(kind, Account::Visible, what)?;
        let written = Instant::now();
        let closed = self.requests()?;
        self.drain()?;
        // As in `elapsed`, the making of bytes does not count.
        let drained = elapsed + written.elapsed();
        let stored = self.requests()?;
        rows.push(self.plan.row(item, Some(Account::Visible), elapsed, between(before, closed)));
        rows.push(self.plan.row(item, Some(Account::Drained), drained, between(before, stored)));
        Ok(())
    }

    /// Writes with an fsync before each close.
    fn durable(&self, kind: Kind, rows: &mut Vec<Row>) -> Result<(), BenchError> {
        let what = match kind {
            Kind::Big => "writing big files with fsync",
            Kind::Small => "writing small files with fsync",
        };
        self.caches.drop()?;
        let before = self.requests()?;
        let elapsed = self.write(kind, Account::Durable, what)?;
        // What the phase left to do in the background is no part of the next one, and its requests are this one's.
        self.drain()?;
        let after = self.requests()?;
        rows.push(self.plan.row(kind.write(), Some(Account::Durable), elapsed, between(before, after)));
        Ok(())
    }

    fn read(&self, kind: Kind, rows: &mut Vec<Row>) -> Result<(), BenchError> {
        let what = match kind {
            Kind::Big => "reading big files",
            Kind::Small => "reading small files",
        };
        self.caches.drop()?;
        let before = self.requests()?;
        let elapsed = self.crew().run(what, kind, |hand| {
            for number in 0..self.plan.count(kind) {
                self.read_file(hand, kind, number)?;
            }
            Ok(())
        })?;
        let after = self.requests()?;
        rows.push(self.plan.row(kind.read(), None, elapsed, between(before, after)));
        Ok(())
    }

    fn stat(&self, rows: &mut Vec<Row>) -> Result<(), BenchError> {
        self.caches.drop()?;
        let before = self.requests()?;
        let expected = self.plan.len(Kind::Small);
        let elapsed = self.crew().run("looking at small files", Kind::Small, |hand| {
            for number in 0..self.plan.count(Kind::Small) {
                let path = self.scratch.file(Account::Visible, Kind::Small, hand.index, number);
                let metadata = std::fs::metadata(&path).map_err(BenchError::call("look at", &path))?;
                if metadata.len() != expected {
                    let what = format!("is {} bytes long, and {expected} were written", metadata.len());
                    return Err(BenchError::wrong(&path, what));
                }
                hand.advance(1)?;
            }
            Ok(())
        })?;
        let after = self.requests()?;
        rows.push(self.plan.row(Item::Stat, None, elapsed, between(before, after)));
        Ok(())
    }

    fn write(&self, kind: Kind, account: Account, what: &'static str) -> Result<Duration, BenchError> {
        self.crew().run(what, kind, |hand| {
            for number in 0..self.plan.count(kind) {
                self.write_file(hand, account, kind, number)?;
            }
            Ok(())
        })
    }

    fn write_file(&self, hand: &mut Hand<'_>, account: Account, kind: Kind, number: u64) -> Result<(), BenchError> {
        let path = self.scratch.file(account, kind, hand.index, number);
        let stream = self.plan.stream(account, kind, hand.index, number);
        let mut file = crew::Writing::create(&path)?;
        for (index, len) in self.plan.blocks(kind).enumerate() {
            hand.fill(|buffer| self.data.fill(stream, index as u64, &mut buffer[..len]));
            file.write(&hand.buffer[..len])?;
            if kind == Kind::Big {
                hand.advance(len as u64)?;
            }
        }
        if account == Account::Durable {
            file.sync()?;
        }
        file.close()?;
        if kind == Kind::Small { hand.advance(1) } else { Ok(()) }
    }

    fn read_file(&self, hand: &mut Hand<'_>, kind: Kind, number: u64) -> Result<(), BenchError> {
        let path = self.scratch.file(Account::Visible, kind, hand.index, number);
        let stream = self.plan.stream(Account::Visible, kind, hand.index, number);
        let mut file = crew::Reading::open(&path)?;
        for (index, len) in self.plan.blocks(kind).enumerate() {
            file.read(&mut hand.buffer[..len])?;
            if self.plan.verify {
                let at = hand.fill(|buffer| self.data.differs(stream, index as u64, &buffer[..len]));
                if let Some(at) = at {
                    let at = index as u64 * self.plan.block_size + at as u64;
                    return Err(BenchError::wrong(&path, format!("byte {at} is not what was written")));
                }
            }
            if kind == Kind::Big {
                hand.advance(len as u64)?;
            }
        }
        if kind == Kind::Small { hand.advance(1) } else { Ok(()) }
    }

    fn crew(&self) -> Crew<'_> {
        Crew { plan: self.plan, stop: self.stop, watch: self.watch }
    }

    fn requests(&self) -> Result<Option<Counts>, BenchError> {
        self.store.requests().map_err(BenchError::call("ask for the requests of the mount below", self.scratch.path()))
    }

    /// Waits until everything that was written is stored. A stop ends the waiting, not the storing.
    fn drain(&self) -> Result<(), BenchError> {
        let (sender, receiver) = mpsc::channel();
        let store = Arc::clone(self.store);
        std::thread::spawn(move || sender.send(store.drain()));
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(drained) => {
                    return drained.map_err(BenchError::call("store what was written to", self.scratch.path()));
                }
                Err(mpsc::RecvTimeoutError::Timeout) if self.stop.is_set() => return Err(BenchError::Interrupted),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    (self.watch)(Step { what: "waiting until it is stored", done: 0, total: 0 });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => unreachable!("the thread sends before it ends"),
            }
        }
    }
}

/// Requests made from `earlier` to `later`; none where nobody counts them.
fn between(earlier: Option<Counts>, later: Option<Counts>) -> Option<Counts> {
    earlier.zip(later).map(|(earlier, later)| later.since(&earlier))
}
