//! What all targets share: the inputs that are kept in the repository (`__fuzz__/TARGET/corpus`), and what is shown of them.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bolero::bolero_engine::{RunPhase, test_context};

/// The inputs of a target that are kept. Dropped at the end of the test, it sees to it that each was replayed.
pub(crate) struct Kept {
    target: &'static str,
    files: usize,
    replayed: AtomicUsize,
}

impl Kept {
    /// Those of the test of that name.
    pub(crate) fn of(target: &'static str) -> Self {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/__fuzz__").join(target);
        let count = |folder: &str| fs::read_dir(home.join(folder)).map_or(0, Iterator::count);
        Self { target, files: count("corpus") + count("crashes"), replayed: AtomicUsize::new(0) }
    }

    /// An input is tried.
    pub(crate) fn seen(&self) {
        let is_file = test_context::with_context(|context| context.input.file.is_some());
        self.replayed.fetch_add(usize::from(is_file == Some(true)), Ordering::Relaxed);
    }
}

/// Whether somebody will read what an input does: it has failed and is run once more, or `KISEKI_FUZZ_LOG` is set.
#[allow(dead_code, reason = "not every target has more to show than its input")]
pub(crate) fn is_shown() -> bool {
    let failed = test_context::with_context(|context| context.run_phase == RunPhase::Failure);
    failed == Some(true) || std::env::var_os("KISEKI_FUZZ_LOG").is_some()
}

impl Drop for Kept {
    fn drop(&mut self) {
        // cargo-bolero runs the test to learn what it is, without an input.
        if std::thread::panicking() || std::env::var_os("CARGO_BOLERO_SELECT").is_some() {
            return;
        }
        let replayed = *self.replayed.get_mut();
        println!("{}: {replayed} kept inputs replayed", self.target);
        assert!(replayed >= self.files, "{}: only {replayed} of {} kept inputs were tried", self.target, self.files);
    }
}
