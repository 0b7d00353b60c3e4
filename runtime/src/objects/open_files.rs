//! Files of large objects that were put or read lately, open: to read a part of one, its name need not be looked for.
//!
//! Owns: which stay open. Leaves to others: reading them (`brief`), whether they are still what the name means: who finds
//! something wrong with what was read here reads by name.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// With blocks of 4 MiB, of 2 GiB.
const MAX: usize = 512;

#[derive(Debug, Default)]
pub(super) struct OpenFiles(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    files: HashMap<String, Arc<OwnedFd>>,
    /// The oldest first; also keys that are gone.
    order: VecDeque<String>,
}

impl OpenFiles {
    pub(super) fn get(&self, key: &str) -> Option<Arc<OwnedFd>> {
        self.state().files.get(key).cloned()
    }

    pub(super) fn insert(&self, key: &str, file: OwnedFd) -> Arc<OwnedFd> {
        let file = Arc::new(file);
        let mut state = self.state();
        let before = state.files.insert(key.to_owned(), Arc::clone(&file));
        if before.is_none() {
            state.order.push_back(key.to_owned());
        }
        // What goes is closed without the lock.
        let oldest = if MAX < state.order.len() { state.order.pop_front() } else { None };
        let gone = oldest.and_then(|oldest| state.files.remove(&oldest));
        drop(state);
        drop((before, gone));
        file
    }

    /// The object is about to go: an open file would keep its space.
    pub(super) fn remove(&self, key: &str) {
        let gone = self.state().files.remove(key);
        drop(gone);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    #[test]
    fn the_oldest_are_closed() {
        let files = OpenFiles::default();
        files.insert("first", file());
        let second = files.insert("second", file());
        files.remove("first");
        assert!(files.get("first").is_none());
        // The same again is no other.
        for _ in 0..2 * MAX {
            files.insert("second", file());
        }
        assert!(!Arc::ptr_eq(&second, &files.get("second").unwrap()));
        for number in 0..MAX - 1 {
            files.insert(&number.to_string(), file());
        }
        assert!(files.get("second").is_some() && files.get("0").is_some());
        files.insert("last", file());
        assert!(files.get("second").is_none() && files.get("last").is_some());
        assert_eq!(files.state().files.len(), MAX);
    }
}
