//! The control socket: how commands talk to the process that has a volume mounted.
//!
//! The mount process holds the metadata store's lock, so `status`, `info`, `fsck` and `umount` ask it instead of
//! opening the store. The socket is `kiseki.sock` inside the store's folder, mode 0600. Requests and replies are JSON,
//! one to a line: any number of `progress` and `finding` lines, then one line that ends the answer.
//!
//! Owns: the socket, its protocol, both ends of it.
//! Leaves to others: what the answers say (`service`, over `kiseki_core::client`), how they are shown (`cli`).
//!
//! Invariants
//! - Only the process that holds the store's lock binds the socket, so a socket file found then is stale.
//! - Whoever may open the socket may read the metadata store: same owner, mode 0600.

pub(crate) mod check;
mod connect;
pub mod protocol;
mod server;
mod service;
pub(crate) mod view;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

pub use connect::{Connection, status_of};
pub use server::{Server, Service, ServiceError, Stop};
pub use service::MountService;

/// Name of the socket inside the folder of the metadata store.
pub const SOCKET_NAME: &str = "kiseki.sock";

/// Longest path that fits a `sockaddr_un`, without its final NUL.
const SOCKET_PATH_MAX: usize = 107;

/// A path to the socket that fits a socket address; what it goes through stays open as long as this lives.
struct SocketPath {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

impl SocketPath {
    /// The socket of the store at `meta`. A path that is too long is shortened by way of an open descriptor of the
    /// folder, which keeps the permissions of the file (an abstract name would have none).
    fn of(meta: &Path) -> std::io::Result<Self> {
        let path = meta.join(SOCKET_NAME);
        if path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX {
            return Ok(Self { path, _folder: None });
        }
        let folder = rustix::fs::open(meta, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let short = format!("/proc/self/fd/{}/{SOCKET_NAME}", folder.as_fd().as_raw_fd());
        Ok(Self { path: short.into(), _folder: Some(folder) })
    }
}
