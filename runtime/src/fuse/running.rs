//! Programs that run from the mount, whose files must not be cut off.
//!
//! The kernel refuses to open a running program for writing. With ATOMIC_O_TRUNC it asks us to truncate before it looks
//! whether O_RDONLY | O_TRUNC may: only for that case the opens by execve(2) are counted here.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The flag of an open by execve(2): `__FMODE_EXEC` of linux/fs.h, which reaches OPEN and RELEASE.
const EXEC: i32 = 0x20;

/// Inodes opened to be run, and how often.
#[derive(Debug, Default)]
pub(super) struct Running(Mutex<BTreeMap<u64, u32>>);

impl Running {
    /// `ino` was opened with these flags.
    pub(super) fn opened(&self, ino: u64, flags: i32) {
        if flags & EXEC != 0 {
            *self.lock().entry(ino).or_default() += 1;
        }
    }

    /// An open of `ino` with these flags ended.
    pub(super) fn released(&self, ino: u64, flags: i32) {
        if flags & EXEC != 0 {
            let mut running = self.lock();
            if let Some(count) = running.get_mut(&ino) {
                *count -= 1;
                if *count == 0 {
                    running.remove(&ino);
                }
            }
        }
    }

    /// Whether `ino` runs.
    pub(super) fn contains(&self, ino: u64) -> bool {
        self.lock().contains_key(&ino)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_runs_until_its_last_release() {
        let running = Running::default();
        running.opened(5, EXEC);
        running.opened(5, EXEC | 0o100000);
        running.opened(6, 0o1002);
        assert!(running.contains(5));
        assert!(!running.contains(6), "opened to write, not to run");
        running.released(5, EXEC);
        assert!(running.contains(5));
        running.released(5, EXEC);
        assert!(!running.contains(5));
    }
}
