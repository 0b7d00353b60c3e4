//! What lies below the folder: how to wait until everything is stored there, and what that takes.

use std::fs::File;
use std::io::{self, Error};
use std::path::{Path, PathBuf};

use crate::control::protocol::{Reply, Request};
use crate::control::{Connection, status_of};
use crate::objects::Counts;

/// Where written bytes end up.
#[derive(Debug)]
pub enum Store {
    /// Any file system, by a descriptor of a folder on it.
    Disk(File),
    /// A mounted Kiseki volume, by its metadata store.
    Mount(PathBuf),
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
        for request in [Request::Sync, Request::Drain] {
            connection.ask(&request)?;
            loop {
                match connection.next_reply()? {
                    Reply::Storing(_) => {}
                    Reply::Done => break,
                    Reply::Failed { text, .. } => return Err(Error::other(text)),
                    reply => return Err(Error::other(format!("the mount process answered {reply:?}"))),
                }
            }
        }
        Ok(())
    }

    /// Requests so far; `None` where nobody counts them.
    pub(super) fn requests(&self) -> io::Result<Option<Counts>> {
        let Self::Mount(meta) = self else { return Ok(None) };
        let status = status_of(meta)?.ok_or_else(gone)?;
        Ok(status.mount.map(|mount| mount.store.counts))
    }
}

fn gone() -> Error {
    Error::other("the mount process is gone")
}
