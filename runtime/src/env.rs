//! The world of a client: RocksDB, OpenDAL, the machine's clocks and tokio, as `kiseki_core::env::Env`.
//!
//! Owns: clocks, timers, spawning, which counter stripe a thread uses. Leaves to others: the stores.
//!
//! Invariant: every method may be called, and every future polled, outside tokio (on a FUSE thread).

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kiseki_core::client::Logged;
use kiseki_core::env::{Edge, Env, Point};
use kiseki_core::types::{STRIPES, Timestamp};
use tokio::runtime::Handle;

use crate::load::Load;
use crate::log_folder::LogFolder;
use crate::objects::Objects;
use crate::rocks::RocksMeta;
use crate::waiting;

/// The world of a mount: with a write-back log, or without one.
pub type World = Logged<TokioEnv, LogFolder>;

/// The world of one client on this machine. Clones share everything.
#[derive(Clone)]
pub struct TokioEnv {
    meta: Arc<RocksMeta>,
    objects: Arc<Objects>,
    handle: Handle,
    /// Where `now` starts.
    start: Instant,
    load: Arc<Load>,
    phases: Option<Arc<Phases>>,
}

impl TokioEnv {
    /// A world of these stores, whose tasks and timers run on `handle`.
    pub fn new(meta: Arc<RocksMeta>, objects: Arc<Objects>, handle: Handle) -> Self {
        let start = Instant::now();
        let (load, phases) = (Arc::new(Load::new(start)), Phases::from_env().map(Arc::new));
        Self { meta, objects, handle, start, load, phases }
    }

    /// Where requests are to be counted.
    pub(crate) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    /// The executor.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Env for TokioEnv {
    type Meta = RocksMeta;
    type Objects = Objects;

    fn meta(&self) -> &RocksMeta {
        &self.meta
    }

    fn objects(&self) -> &Objects {
        &self.objects
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> Timestamp {
        timestamp(SystemTime::now())
    }

    fn sleep_until(&self, at: Duration) -> impl Future<Output = ()> + Send {
        let _context = self.handle.enter();
        tokio::time::sleep_until((self.start + at).into())
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        waiting::spawn(&self.handle, task);
    }

    fn here(&self, work: impl FnOnce()) {
        waiting::here(&self.handle, work);
    }

    fn stripe(&self) -> u8 {
        (thread_number() % u32::from(STRIPES)) as u8
    }

    fn is_busy(&self) -> bool {
        self.load.is_busy(Instant::now())
    }

    fn pause(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    fn at(&self, point: Point, edge: Edge) {
        if let Some(phases) = &self.phases {
            phases.pass(point, edge);
        }
    }
}

/// What is under way, told to a crash test: the file that `KISEKI_TEST_PHASE_FILE` names holds four little-endian
/// u64 gauges (puts, commits, of these with a truncate, renames over a name that wait).
struct Phases {
    file: File,
    gauges: Mutex<[u64; 4]>,
}

impl Phases {
    fn from_env() -> Option<Self> {
        let path = std::env::var_os("KISEKI_TEST_PHASE_FILE")?;
        match File::options().write(true).open(&path) {
            Ok(file) => Some(Self { file, gauges: Mutex::default() }),
            Err(error) => {
                tracing::warn!(?path, %error, "KISEKI_TEST_PHASE_FILE cannot be written");
                None
            }
        }
    }

    fn pass(&self, point: Point, edge: Edge) {
        let moved: &[usize] = match point {
            Point::Put => &[0],
            Point::Commit => &[1],
            Point::Truncate => &[1, 2],
            Point::RenameOver => &[3],
        };
        let mut gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        for &gauge in moved {
            match edge {
                Edge::Begin => gauges[gauge] += 1,
                Edge::End => gauges[gauge] -= 1,
            }
            // The crash test notices a gauge that never moves.
            let _ = self.file.write_all_at(&gauges[gauge].to_le_bytes(), 8 * gauge as u64);
        }
    }
}

/// A small number of the calling thread, given out in order of first use: threads that run at once differ.
pub(crate) fn thread_number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    thread_local! {
        static NUMBER: Cell<Option<u32>> = const { Cell::new(None) };
    }
    NUMBER.with(|number| {
        number.get().unwrap_or_else(|| {
            let given = NEXT.fetch_add(1, Ordering::Relaxed);
            number.set(Some(given));
            given
        })
    })
}

/// `time` as the core writes it, floored to whole seconds also before 1970.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let (whole, nanos) = (before.as_secs() as i64, before.subsec_nanos());
            match nanos {
                0 => Timestamp { secs: -whole, nanos: 0 },
                _ => Timestamp { secs: -whole - 1, nanos: 1_000_000_000 - nanos },
            }
        }
    }
}
