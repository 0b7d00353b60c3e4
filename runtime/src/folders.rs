//! Folders that survive a power cut: creating them, and syncing their entries.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Creates `path` and whatever is missing above it, and makes these names durable (also `path`'s, if it was there).
pub(crate) fn create_synced(path: &Path) -> io::Result<()> {
    let mut named = vec![path];
    for folder in path.ancestors().skip(1) {
        if folder.as_os_str().is_empty() || folder.try_exists()? {
            break;
        }
        named.push(folder);
    }
    fs::create_dir_all(path)?;
    for folder in named.into_iter().rev() {
        match folder.parent() {
            Some(parent) if parent.as_os_str().is_empty() => sync(Path::new("."))?,
            Some(parent) => sync(parent)?,
            None => {}
        }
    }
    Ok(())
}

/// Makes the entries of the folder durable (fsync(2) of a directory).
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
