//! Which files are open, and how: by way of the page cache or past it, and whether they run.
//!
//! All descriptors of a file go the same way, that of the first, until the last is closed. Were one to write past the
//! page cache while another reads through it, then a page that is read while it is written could stay as it was.
//!
//! The kernel refuses to open a running program for writing. With ATOMIC_O_TRUNC it asks us to truncate before it looks
//! whether O_RDONLY | O_TRUNC may: only for that case the opens by execve(2) are counted here.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The flag of an open by execve(2): `__FMODE_EXEC` of linux/fs.h, which reaches OPEN and RELEASE.
const EXEC: i32 = 0x20;

/// Inodes that are open.
#[derive(Debug, Default)]
pub(super) struct Opened(Mutex<BTreeMap<u64, File>>);

#[derive(Debug)]
struct File {
    past_cache: bool,
    /// How often it is open.
    count: u32,
    /// How often to be run.
    running: u32,
}

impl Opened {
    /// `ino` was opened with these flags, best past the page cache or not; whether it is.
    pub(super) fn opened(&self, ino: u64, flags: i32, past_cache: bool) -> bool {
        let mut files = self.lock();
        let file = files.entry(ino).or_insert(File { past_cache, count: 0, running: 0 });
        file.count += 1;
        file.running += u32::from(flags & EXEC != 0);
        file.past_cache
    }

    /// An open of `ino` with these flags ended.
    pub(super) fn released(&self, ino: u64, flags: i32) {
        let mut files = self.lock();
        if let Some(file) = files.get_mut(&ino) {
            file.count -= 1;
            file.running -= u32::from(flags & EXEC != 0);
            if file.count == 0 {
                files.remove(&ino);
            }
        }
    }

    /// Whether `ino` runs.
    pub(super) fn runs(&self, ino: u64) -> bool {
        self.lock().get(&ino).is_some_and(|file| file.running > 0)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_until_its_last_release() {
        let opened = Opened::default();
        opened.opened(5, EXEC, false);
        opened.opened(5, EXEC | 0o100000, false);
        opened.opened(5, 0, false);
        opened.opened(6, 0o1002, false);
        assert!(opened.runs(5));
        assert!(!opened.runs(6), "opened to write, not to run");
        opened.released(5, EXEC);
        assert!(opened.runs(5));
        opened.released(5, EXEC);
        assert!(!opened.runs(5));
    }

    #[test]
    fn all_descriptors_of_a_file_go_the_way_of_the_first() {
        let opened = Opened::default();
        for first in [true, false] {
            assert_eq!(opened.opened(5, 0, first), first);
            assert_eq!(opened.opened(5, 0, !first), first);
            opened.released(5, 0);
            assert_eq!(opened.opened(5, 0, !first), first, "one is still open");
            opened.released(5, 0);
            opened.released(5, 0);
        }
        assert!(opened.lock().is_empty());
    }
}
