//! The threads that serve a mount, from its first request to the end of its connection.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, anyhow};
use fuser::Session;
use kiseki_core::env::Env;
use tokio::sync::oneshot;
use tracing::warn;

use super::options::Options;
use super::{point, table};
use crate::fuse::Adapter;

/// A mount that is being served.
pub(super) struct Serving {
    ended: oneshot::Receiver<io::Result<()>>,
    /// Number of the connection.
    connection: Option<u32>,
}

impl Serving {
    /// Mounts `adapter` at `path` and serves it.
    pub(super) fn start<E: Env>(
        adapter: Adapter<E>,
        options: &Options,
        meta: &Path,
        path: &Path,
    ) -> anyhow::Result<Self> {
        let is_root = rustix::process::geteuid().is_root();
        let config = options.fuser_config(meta, is_root);
        let (notifier, turns) = (adapter.notifier(), adapter.turns());
        let session = Session::new(adapter, path, &config).map_err(|error| explain(&error, path))?;
        notifier.set(session.notifier());
        let device = session.as_fd().try_clone_to_owned().context("cannot duplicate the descriptor of the mount")?;
        turns.start(device, config.n_threads.unwrap_or(1));
        let connection = table::at(path).ok().flatten().map(|mounted| mounted.dev.1);
        let mut background = session.spawn().context("cannot start the threads of the mount")?;
        // Dropping it, fuser would unmount by path whatever is mounted there by then, which may no longer be ours
        // (its test whether the mount is still there is always true). Unmounting is `point::leave`'s, so it is not
        // dropped: what leaks is one descriptor of a connection that lasts as long as the process.
        let guard = std::mem::replace(&mut background.guard, std::thread::spawn(|| Ok(())));
        std::mem::forget(background);
        let (tell, ended) = oneshot::channel();
        std::thread::Builder::new().name("session-end".into()).spawn(move || {
            let result = guard.join().unwrap_or_else(|_| Err(io::Error::other("a FUSE thread panicked")));
            // Nobody listens once the process ends for another reason.
            let _ = tell.send(result);
        })?;
        Ok(Self { ended, connection })
    }

    /// Completes when the kernel has closed the connection and no thread serves it any more.
    pub(super) async fn ended(&mut self) {
        match (&mut self.ended).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the connection to the kernel ended"),
            Err(_) => warn!("the thread that watches the connection is gone"),
        }
    }

    /// Removes the mount if it is still there although nobody serves it.
    pub(super) fn clear(&self, path: &Path) {
        let there = table::at(path).ok().flatten().map(|mounted| mounted.dev.1);
        if there.is_some() && there == self.connection {
            point::leave(path);
        }
    }
}

fn explain(error: &io::Error, path: &Path) -> anyhow::Error {
    let hint = if error.to_string().contains("user_allow_other") {
        "; to let other users in, add the line user_allow_other to /etc/fuse.conf"
    } else if !Path::new("/dev/fuse").exists() {
        "; /dev/fuse is missing: load the kernel's module (modprobe fuse), or give the container the device"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "; a user needs to read and write /dev/fuse (mode 666) and must own the mount point"
    } else if error.kind() == io::ErrorKind::NotFound {
        "; fusermount3 is missing: install the package fuse3"
    } else {
        ""
    };
    anyhow!("cannot mount at {}: {}{hint}", path.display(), error.to_string().trim())
}
