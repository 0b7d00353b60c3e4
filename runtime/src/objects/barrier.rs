//! Which folders a barrier of a local store must sync.
//!
//! Owns: the folders that hold names not known to be durable. Leaves to others: the syncing itself, in rounds
//! (`objects`, `rounds`).
//!
//! Invariants
//! - A folder is unsynced from the moment a put into it or a delete in it has returned until a sync of it that began
//!   later succeeded.
//! - The name of a folder counts as durable only after a sync of its parent that began when the folder was there.
//! - Folders are relative to the store's root; the root is "", and its own name was synced when it was created.

use std::collections::BTreeSet;

/// Folders whose own name is durable, beyond which the list is forgotten: a forgotten one costs one sync too many.
const NAMED_MAX: usize = 16 << 10;

/// Bookkeeping between puts, deletes and barriers.
#[derive(Debug, Default)]
pub(super) struct Folders {
    /// Number of puts and deletes noted.
    noted: u64,
    unsynced: BTreeSet<String>,
    /// Folders whose name in their parent is durable.
    named: BTreeSet<String>,
}

/// What one round of a barrier has to sync.
#[derive(Debug)]
pub(super) struct Batch {
    /// The puts and deletes it covers: all that had returned when it was taken.
    pub(super) through: u64,
    /// Folders, parents first.
    pub(super) folders: BTreeSet<String>,
}

impl Folders {
    /// Number of puts and deletes noted: what a barrier that is called here must cover.
    pub(super) fn noted(&self) -> u64 {
        self.noted
    }

    /// Notes that an object was put under `key`, before the put returns to its caller.
    pub(super) fn note_put(&mut self, key: &str) {
        self.noted += 1;
        let mut folder = parent(key);
        self.unsynced.insert(folder.to_owned());
        while !folder.is_empty() && !self.named.contains(folder) {
            folder = parent(folder);
            self.unsynced.insert(folder.to_owned());
        }
    }

    /// Notes that the object under `key` was deleted, before the delete returns. Its folder is there.
    pub(super) fn note_delete(&mut self, key: &str) {
        self.noted += 1;
        self.unsynced.insert(parent(key).to_owned());
    }

    /// Takes everything that is to be synced.
    pub(super) fn take(&mut self) -> Batch {
        Batch { through: self.noted, folders: std::mem::take(&mut self.unsynced) }
    }

    /// All of `batch` was synced.
    pub(super) fn synced(&mut self, batch: &Batch) {
        if self.named.len() > NAMED_MAX {
            self.named.clear();
        }
        for folder in &batch.folders {
            if !folder.is_empty() && batch.folders.contains(parent(folder)) {
                self.named.insert(folder.clone());
            }
        }
    }

    /// Part of `batch` may not have been synced: all of it is to be synced again.
    pub(super) fn failed(&mut self, batch: Batch) {
        self.unsynced.extend(batch.folders);
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Put(&'static str),
        Delete(&'static str),
        /// A round that succeeds, and the folders that it must sync.
        Sync(&'static [&'static str]),
        /// A round that fails.
        Fail(&'static [&'static str]),
    }
    use Step::{Delete, Fail, Put, Sync};

    fn check(steps: &[Step]) {
        let mut folders = Folders::default();
        for step in steps {
            match step {
                Put(key) => folders.note_put(key),
                Delete(key) => folders.note_delete(key),
                Sync(expected) | Fail(expected) => {
                    let batch = folders.take();
                    assert_eq!(batch.through, folders.noted());
                    assert_eq!(batch.folders.iter().map(String::as_str).collect::<Vec<_>>(), *expected);
                    match step {
                        Sync(_) => folders.synced(&batch),
                        Put(_) | Delete(_) | Fail(_) => folders.failed(batch),
                    }
                }
            }
        }
    }

    #[test]
    fn first_put_into_a_folder_syncs_every_folder_above_it() {
        check(&[Put("blocks/01/a"), Sync(&["", "blocks", "blocks/01"])]);
    }

    #[test]
    fn a_delete_syncs_its_folder_alone() {
        check(&[Delete("blocks/01/a"), Sync(&["blocks/01"]), Sync(&[]), Delete("a"), Sync(&[""])]);
    }

    #[test]
    fn later_puts_sync_the_target_folder_alone() {
        check(&[Put("blocks/01/a"), Sync(&["", "blocks", "blocks/01"]), Put("blocks/01/b"), Sync(&["blocks/01"])]);
    }

    #[test]
    fn second_folder_syncs_itself_and_its_parent() {
        check(&[
            Put("blocks/01/a"),
            Sync(&["", "blocks", "blocks/01"]),
            Put("blocks/02/a"),
            Sync(&["blocks", "blocks/02"]),
            Put("blocks/02/b"),
            Sync(&["blocks/02"]),
        ]);
    }

    #[test]
    fn object_at_the_root_syncs_the_root() {
        check(&[Put("marker"), Sync(&[""]), Put("marker"), Sync(&[""])]);
    }

    #[test]
    fn nothing_put_is_nothing_to_sync() {
        check(&[Sync(&[]), Put("a/b"), Sync(&["", "a"]), Sync(&[])]);
    }

    #[test]
    fn failed_round_is_synced_again_with_what_came_since() {
        check(&[
            Put("blocks/01/a"),
            Fail(&["", "blocks", "blocks/01"]),
            Put("blocks/02/a"),
            Sync(&["", "blocks", "blocks/01", "blocks/02"]),
            Put("blocks/01/b"),
            Sync(&["blocks/01"]),
        ]);
    }

    #[test]
    fn put_during_a_round_is_left_to_the_next() {
        let mut folders = Folders::default();
        folders.note_put("blocks/01/a");
        let batch = folders.take();
        folders.note_put("blocks/01/b");
        folders.synced(&batch);
        assert_eq!((batch.through, folders.noted()), (1, 2));
        // The names above it were not durable when the put was noted.
        let batch = folders.take();
        assert_eq!(batch.folders, ["", "blocks", "blocks/01"].map(str::to_owned).into());
        folders.synced(&batch);
        folders.note_put("blocks/01/c");
        assert_eq!(folders.take().folders, ["blocks/01"].map(str::to_owned).into());
    }
}
