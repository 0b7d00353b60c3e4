//! Operations on ranges of contents: fallocate, lseek to data and holes, copies that share slices.
//!
//! Owns: who waits for space, for chunks, for a copy's commit. Leaves to others: the machine (`file`), space (`space`).

use super::files::{Cell, Handle};
use super::wait::{lock, timeout};
use super::{Client, Shared};
use crate::env::Env;
use crate::errno::Errno;
use crate::file::machine::{Fallocate, Whence};
use crate::marks::{Mark, reached};
use crate::meta::CopyRange;
use crate::planted::{self, Bug};
use crate::types::{FILE_SIZE_MAX, InodeFlags};

/// Chunks that one copy reads at most.
const COPY_CHUNKS: u64 = 64;
/// How often a copy is begun anew because its source was changed meanwhile.
const COPY_TRIES: u32 = 8;

impl<E: Env> Client<E> {
    /// fallocate(2). EBADF, EINVAL (nothing), EFBIG, ENOSPC, EPERM (immutable, append-only).
    pub async fn fallocate(
        &self,
        handle: Handle,
        offset: u64,
        len: u64,
        what: Fallocate,
        drop_privileges: bool,
    ) -> Result<(), Errno> {
        let shared = &self.0;
        shared.env.pause().await;
        let file = shared.writable(handle, offset, len)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        // An append-only file keeps its bytes; room may be reserved. (vfs_fallocate of Linux)
        if file.cell.flags().any(InodeFlags::APPEND) && !matches!(what, Fallocate::Reserve { .. }) {
            return Err(Errno::EPERM);
        }
        let range = offset..offset + len;
        if planted::is(Bug::ReservationForgotten)
            && let Fallocate::Reserve { extend } = what
        {
            let length = lock(&file.cell.state).file.length();
            if extend && length < range.end {
                shared.truncate(&file.cell, range.end);
            }
            return Ok(());
        }
        let charge = match what {
            Fallocate::Reserve { .. } | Fallocate::Zero { .. } => shared.claim(&file.cell, range.clone()).await?,
            Fallocate::Punch => 0,
        };
        shared.change(&file.cell, |file, now, wall| file.fallocate(now, wall, range, what, charge, drop_privileges));
        if file.flags.sync { self.fsync(handle).await } else { Ok(()) }
    }

    /// lseek(2) with SEEK_DATA or SEEK_HOLE. EBADF, ENXIO.
    pub async fn seek(&self, handle: Handle, offset: u64, whence: Whence) -> Result<u64, Errno> {
        let shared = &self.0;
        let file = shared.files.handle(handle)?;
        loop {
            shared.env.pause().await;
            let unloaded = match lock(&file.cell.state).file.seek(offset, whence) {
                Ok(found) => return found.ok_or(Errno::ENXIO),
                Err(unloaded) => unloaded,
            };
            shared.load(&file.cell, unloaded).await?;
        }
    }

    /// copy_file_range(2): up to `len` bytes from `from` to `to`, without reading any; returns how many, which is fewer
    /// at the end of the source and where one transaction would grow too large. EBADF, EFBIG, EINVAL (overlap), ENOSPC,
    /// EOPNOTSUPP (the source changes all the time: copy the bytes).
    pub async fn copy_range(
        &self,
        from: (Handle, u64),
        to: (Handle, u64),
        len: u64,
        drop_privileges: bool,
    ) -> Result<u64, Errno> {
        let shared = &self.0;
        shared.env.pause().await;
        let source = shared.files.handle(from.0)?;
        if !source.flags.read || shared.files.handle(to.0)?.flags.appends() {
            return Err(Errno::EBADF);
        }
        let target = shared.writable(to.0, to.1, 0)?;
        let same = source.cell.ino == target.cell.ino;
        let (from, to) = (from.1, to.1);
        // What it comes to at first is what is copied at last: an earlier try may have had its effect, and made this file
        // longer.
        let mut len = len;
        let mut tries = 0..COPY_TRIES;
        while tries.next().is_some() {
            let dirty = lock(&source.cell.state).file.dirty_since().is_some();
            if !same && dirty {
                let seen = lock(&source.cell.state).file.error_count();
                shared.flush(&source.cell, seen, shared.deadline()).await?;
            }
            let (commit, length) = {
                let state = lock(&source.cell.state);
                (state.file.committed(), state.file.length())
            };
            len = len.min(length.saturating_sub(from)).min(COPY_CHUNKS * shared.geometry().chunk_size);
            if len == 0 {
                return Ok(0);
            }
            if FILE_SIZE_MAX - to < len {
                return Err(Errno::EFBIG);
            }
            if same && from < to + len && to < from + len {
                return Err(Errno::EINVAL);
            }
            let charge = shared.claim(&target.cell, to..to + len).await?;
            let copy = CopyRange { source: source.cell.ino, commit, from, to, len };
            let seen = lock(&target.cell.state).file.error_count();
            let number =
                shared.change(&target.cell, |file, now, wall| file.copy(now, wall, copy, charge, drop_privileges));
            if let Err(errno) = shared.flush(&target.cell, seen, shared.deadline()).await {
                // What is about to be known is not answered with an error.
                shared.end_of_attempt(&target.cell, number).await;
                // What it copies later is not what the caller saw.
                let mut state = lock(&target.cell.state);
                state.file.cancel_copy(number);
                if state.file.copied(number).is_none() {
                    return Err(errno);
                }
            }
            let copied = lock(&target.cell.state).file.copied(number);
            if let Some(copied) = copied {
                if target.flags.sync {
                    self.fsync_file(&target).await?;
                }
                return Ok(copied);
            }
            reached(Mark::CopyTriedAgain);
        }
        Err(Errno::EOPNOTSUPP)
    }
}

impl<E: Env> Shared<E> {
    /// Waits, up to one more deadline, until no transaction with this commit number is under way.
    async fn end_of_attempt(&self, cell: &Cell, number: u64) {
        let deadline = self.deadline();
        loop {
            let changed = cell.changed.listen();
            if !lock(&cell.state).file.is_committing(number) || timeout(&self.env, deadline, changed).await.is_none() {
                return;
            }
        }
    }
}
