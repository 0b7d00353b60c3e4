//! The FUSE adapter: each request of the kernel becomes one call of the client, and its result one reply.
//!
//! Owns: the translation (`convert`), what the kernel is told to do and to cache (`kernel`), listings (`dir`), where
//! a request runs, and which thread reads the next one (`turns`). Leaves to others: what every operation means
//! (`kiseki_core::client`), the mount itself (`mount`).
//!
//! Invariants
//! - No request blocks a FUSE thread on the object store, but for moments (`brief`): it is a future that is polled on the
//!   thread that read it; if it is ready the reply goes out there, else the future and its reply move to the executor when
//!   it is woken.
//! - Every lookup that a reply gives to the kernel is counted by the client: entries by the call that made them, those
//!   of a listing by `remember`, `.` and `..` and names that do not exist not at all.

mod attributes;
mod convert;
mod dir;
mod kernel;
mod opened;
mod requests;
mod serve;
mod turns;

use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier};
use kiseki_core::client::Client;
use kiseki_core::env::Env;
use kiseki_core::types::{AtimeMode, Ino};
use tokio::runtime::Handle;

pub(crate) use self::turns::Turns;
use crate::load::Load;

/// A mounted volume, as fuser sees it.
pub struct Adapter<E: Env> {
    client: Client<E>,
    /// What is mounted: what the kernel calls inode 1.
    root: Ino,
    /// Where requests wait.
    executor: Handle,
    load: Arc<Load>,
    /// OPENDIR is answered "not implemented": the kernel then neither sends it again nor RELEASEDIR.
    skip_opendir: bool,
    /// Files that are only written are opened for direct I/O.
    write_past_cache: bool,
    atime: AtimeMode,
    stale: Stale,
    opened: Arc<opened::Opened>,
    fitted: Arc<dir::Fitted>,
    turns: Arc<Turns>,
}

impl<E: Env> Adapter<E> {
    /// Serves the directory `root` of `client`; requests are counted by `load`, and those that have to wait do so on
    /// `executor`.
    pub(crate) fn new(client: Client<E>, root: Ino, atime: AtimeMode, executor: Handle, load: Arc<Load>) -> Self {
        let (stale, opened, fitted) = (Stale::default(), Arc::default(), Arc::default());
        let turns = Arc::new(Turns::new());
        let (skip_opendir, write_past_cache) = (false, false);
        Self { client, root, executor, load, skip_opendir, write_past_cache, atime, stale, opened, fitted, turns }
    }

    /// How the kernel is told of stale attributes, once there is a connection.
    pub(crate) fn notifier(&self) -> Stale {
        self.stale.clone()
    }

    /// The threads that serve it.
    pub(crate) fn turns(&self) -> Arc<Turns> {
        Arc::clone(&self.turns)
    }
}

/// Tells the kernel that attributes which it keeps have changed by what it does not know to change them: an open that
/// is an access, a change of flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stale(Arc<OnceLock<Notifier>>);

impl Stale {
    /// From here on the kernel is told by `notifier`.
    pub(crate) fn set(&self, notifier: Notifier) {
        // There is one connection.
        _ = self.0.set(notifier);
    }

    fn attributes(&self, inode: INodeNo) {
        if let Some(notifier) = self.0.get() {
            // From an offset below 0: no page is dropped. The kernel may know the inode no more.
            _ = notifier.inval_inode(inode, -1, 0);
        }
    }
}

impl<E: Env> Adapter<E> {
    /// The inode that the kernel means. Our replies name the root by its own number, which stat(2) then shows; the
    /// kernel goes on calling it 1.
    fn ino(&self, inode: INodeNo) -> Ino {
        if inode == INodeNo::ROOT { self.root } else { Ino(inode.0) }
    }
}

impl<E: Env> std::fmt::Debug for Adapter<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").finish_non_exhaustive()
    }
}
