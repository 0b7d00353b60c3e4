//! What lies below the folder: how to wait until everything is stored there, and what that takes.

use std::fs::File;
use std::io::{self, Error};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::control::protocol::{Reply, Request, StoreView};
use crate::control::{Connection, status_of};

/// Where written bytes end up.
#[derive(Debug)]
pub enum Store {
    /// Any file system, by a descriptor of a folder on it.
    Disk(File),
    /// A mounted Kiseki volume, by its metadata store.
    Mount(PathBuf),
}

/// Requests that a mount made of its object store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Objects written.
    pub puts: u64,
    /// Bytes of them.
    pub put_bytes: u64,
    /// Reads of objects or of parts.
    pub gets: u64,
    /// Bytes of them.
    pub got_bytes: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Pages listed.
    pub lists: u64,
    /// Of all these, those that failed.
    pub failures: u64,
    /// Of these, those that the store refused because it was asked too much.
    pub throttled: u64,
}

impl Store {
    /// The store below `folder`, which is not on a Kiseki mount.
    pub fn disk(folder: &Path) -> io::Result<Self> {
        File::open(folder).map(Self::Disk)
    }

    /// Returns once everything that was written is stored: on a disk as syncfs(2) means it, on a mount in its object
    /// store and its metadata log.
    #[expect(clippy::wildcard_enum_match_arm, reason = "any other reply breaks the protocol")]
    pub(super) fn drain(&self) -> io::Result<()> {
        let meta = match self {
            Self::Disk(folder) => return Ok(rustix::fs::syncfs(folder)?),
            Self::Mount(meta) => meta,
        };
        let mut connection = Connection::open(meta)?.ok_or_else(gone)?;
        connection.ask(&Request::Sync)?;
        match connection.next_reply()? {
            Reply::Done => Ok(()),
            Reply::Failed { text, .. } => Err(Error::other(text)),
            reply => Err(Error::other(format!("the mount process answered {reply:?}"))),
        }
    }

    /// Requests so far; `None` where nobody counts them.
    pub(super) fn requests(&self) -> io::Result<Option<Requests>> {
        let Self::Mount(meta) = self else { return Ok(None) };
        let status = status_of(meta)?.ok_or_else(gone)?;
        Ok(status.mount.map(|mount| Requests::of(&mount.store)))
    }
}

fn gone() -> Error {
    Error::other("the mount process is gone")
}

impl Requests {
    fn of(store: &StoreView) -> Self {
        Self {
            puts: store.puts,
            put_bytes: store.put_bytes,
            gets: store.gets,
            got_bytes: store.got_bytes,
            deletes: store.deletes,
            lists: store.lists,
            failures: store.failures,
            throttled: store.throttled,
        }
    }

    /// Those made after `earlier` and up to `later`.
    pub(super) fn between(earlier: Option<Self>, later: Option<Self>) -> Option<Self> {
        let (earlier, later) = earlier.zip(later)?;
        Some(Self {
            puts: later.puts.saturating_sub(earlier.puts),
            put_bytes: later.put_bytes.saturating_sub(earlier.put_bytes),
            gets: later.gets.saturating_sub(earlier.gets),
            got_bytes: later.got_bytes.saturating_sub(earlier.got_bytes),
            deletes: later.deletes.saturating_sub(earlier.deletes),
            lists: later.lists.saturating_sub(earlier.lists),
            failures: later.failures.saturating_sub(earlier.failures),
            throttled: later.throttled.saturating_sub(earlier.throttled),
        })
    }
}
