//! Operations on contents: open, write, read, truncate, fsync, close.
//!
//! Owns: who waits for memory, for a flush, for blocks. Leaves to others: the machine (`file`), its tasks (`driver`).
//!
//! Promise 1 is kept in `fsync`: the file's members are committed (each behind put and barrier), then the metadata
//! log is synced past them. Promise 5 is kept by `File::error_since` and `OpenFile::seen`. Promise 7: every wait here
//! has a deadline.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering;
use core::time::Duration;

use bytes::{Bytes, BytesMut};

use super::blocks::{Fault, Fetch, Unreadable};
use super::files::{Cell, Handle, OpenFile, OpenFlags};
use super::wait::{join_all, lock, timeout};
use super::{Client, Options, Shared};
use crate::env::{Env, MetaStore, StoreError};
use crate::errno::Errno;
use crate::file::{File, Segment};
use crate::format::block::object_key;
use crate::marks::{Mark, reached, reached_if};
use crate::meta::{self, SetAttr};
use crate::planted::{self, Bug};
use crate::types::{Attr, FILE_SIZE_MAX, FileType, Ino, InodeFlags, Timestamp};

/// Zeros for holes; longer ones are made of several.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// Blocks fetched ahead of a sequential reader at most.
const READAHEAD_BLOCKS: u64 = 4;
/// Memory is lent to the cache and asked back in pieces of this part of what dirty bytes may take.
const LENT_STEPS: u64 = 32;
/// A flush of no more bytes goes on on the thread that asks for it: more are better hashed and copied by several.
const FLUSHED_HERE: u64 = 128 << 10;

/// The bytes of a read, in pieces as they lie in memory.
#[derive(Clone, Debug, Default)]
pub struct ReadData {
    /// The pieces in order; together at most what was asked for, less only at the end of the file.
    pub segments: Vec<Bytes>,
}

impl ReadData {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.segments.iter().map(Bytes::len).sum()
    }

    /// At or past the end of the file.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// One piece: as it is if it is one already, else copied together.
    pub fn into_contiguous(mut self) -> Bytes {
        match self.segments.len() {
            0 => Bytes::new(),
            1 => self.segments.swap_remove(0),
            _ => {
                let mut all = BytesMut::with_capacity(self.len());
                self.segments.iter().for_each(|segment| all.extend_from_slice(segment));
                all.freeze()
            }
        }
    }
}

impl<E: Env> Client<E> {
    /// Opens a regular file. EISDIR, EINVAL (neither file nor directory), EROFS, EPERM (its flags).
    pub async fn open(&self, ino: Ino, flags: OpenFlags) -> Result<Handle, Errno> {
        self.open_telling(ino, flags).await.map(|(handle, _)| handle)
    }

    /// The same; true if this open is an access that getattr shows: attributes that were got before are stale.
    pub async fn open_telling(&self, ino: Ino, flags: OpenFlags) -> Result<(Handle, bool), Errno> {
        let shared = &self.0;
        if flags.write && shared.options.read_only {
            return Err(Errno::EROFS);
        }
        let (cell, fresh) = shared.pin_fresh(ino).await?;
        let allowed = match meta::attr::check_open(cell.flags(), flags.write, flags.append, flags.truncate) {
            Ok(()) if flags.truncate => shared.drop_capability(&cell).await,
            // So that what is written first need not be copied to wait for it.
            Ok(()) if flags.write => shared.look_for_capability(&cell).await.map(drop),
            other => other,
        };
        if let Err(errno) = allowed {
            shared.files.unpin(&cell);
            return Err(errno);
        }
        if flags.truncate {
            shared.truncate(&cell, 0);
        }
        // What the kernel reads from its own memory does not come by here: an open that is for reading alone counts.
        let mut shows = false;
        if flags.read && !flags.write && !flags.noatime {
            // A machine that is there may hold what the attributes do not say yet.
            let attr = match fresh {
                Some(attr) => Some(attr),
                None => shared.accepted_attr(ino).await.ok(),
            };
            shows = attr.is_some_and(|attr| shared.accessed_showing(ino, &attr));
        }
        Ok((shared.files.open(cell, flags), shows))
    }

    /// Ends a handle. What it wrote stays on its way.
    pub async fn release(&self, handle: Handle) -> Result<(), Errno> {
        self.0.env.pause().await;
        let file = self.0.files.close(handle)?;
        self.0.files.unpin(&file.cell);
        Ok(())
    }

    /// close(2): reports an error that the handle was not told. Starts no flush: this mount is alone on its volume.
    pub async fn flush(&self, handle: Handle) -> Result<(), Errno> {
        self.0.env.pause().await;
        let file = self.0.files.handle(handle)?;
        let state = lock(&file.cell.state);
        report(&file, &state.file)
    }

    /// Accepts a write if memory is free: all of `data` or, with `false`, nothing of it, then `write` waits.
    /// EBADF, EFBIG, ENOSPC, or an error of earlier writes.
    pub fn write_now(&self, handle: Handle, offset: u64, data: &[u8], drop_privileges: bool) -> Result<bool, Errno> {
        let shared = &self.0;
        let len = data.len() as u64;
        let file = shared.writable(handle, offset, len)?;
        let waits = file.flags.sync || file.cell.capability.seen().is_some();
        if waits || shared.near_capacity(len) || !shared.try_take_memory(len) {
            return Ok(false);
        }
        // Others may have taken memory at the same moment.
        if shared.near_capacity(0) {
            shared.memory.give(len);
            return Ok(false);
        }
        shared.accept(&file, offset, data, drop_privileges)?;
        Ok(true)
    }

    /// Accepts a write; waits for memory, and on O_SYNC handles until it is durable. `data` is counted while it waits.
    pub async fn write(&self, handle: Handle, offset: u64, data: Bytes, drop_privileges: bool) -> Result<(), Errno> {
        let shared = &self.0;
        shared.env.pause().await;
        let len = data.len() as u64;
        let file = shared.writable(handle, offset, len)?;
        shared.drop_capability(&file.cell).await?;
        loop {
            let start = || if file.flags.appends() { lock(&file.cell.state).file.length() } else { offset };
            let at = start();
            let need = shared.room(&file.cell, at..at + len).await?;
            shared.take_memory(len).await?;
            // What others have accepted while this one waited counts as well, and may have moved the end of the file.
            if start() == at && (need == 0 || shared.within_capacity(len - need)) {
                break;
            }
            shared.memory.give(len);
        }
        shared.accept(&file, offset, &data, drop_privileges)?;
        let durable = file.flags.sync && !planted::is(Bug::SyncFlagIgnored);
        if durable { self.fsync(handle).await } else { Ok(()) }
    }

    /// Reads up to `len` bytes; fewer only at the end of the file.
    pub async fn read(&self, handle: Handle, offset: u64, len: u32) -> Result<ReadData, Errno> {
        let shared = &self.0;
        let file = shared.files.handle(handle)?;
        if !file.flags.read {
            return Err(Errno::EBADF);
        }
        // Before the plan is made: what it refers to is not deleted while the guard lives.
        let _reading = shared.grace.enter();
        if !file.flags.noatime {
            shared.accessed(file.cell.ino);
        }
        let segments = shared.plan(&file.cell, offset, len).await?;
        let end = offset + segments.iter().map(segment_len).sum::<u64>();
        let fetch = shared.read_ahead(&file, offset..end);
        if let [Segment::Block { id, off, len }] = segments[..] {
            // The common case, without a list of futures.
            let bytes = match shared.blocks.cached(id, off, len) {
                Some(bytes) => Ok(bytes),
                None => shared.blocks.read(id, off, len, fetch).await,
            };
            return match bytes {
                Ok(bytes) => Ok(ReadData { segments: Vec::from([bytes]) }),
                Err(unreadable) => Err(shared.unreadable(file.cell.ino, unreadable).await),
            };
        }
        match shared.collect(segments, fetch).await {
            Ok(data) => Ok(data),
            Err(unreadable) => Err(shared.unreadable(file.cell.ino, unreadable).await),
        }
    }

    /// fsync(2), fdatasync(2): everything accepted for the file is durable, with its attributes and names.
    pub async fn fsync(&self, handle: Handle) -> Result<(), Errno> {
        let shared = &self.0;
        shared.env.pause().await;
        let file = shared.files.handle(handle)?;
        self.fsync_file(&file).await
    }

    pub(super) async fn fsync_file(&self, file: &OpenFile) -> Result<(), Errno> {
        let shared = &self.0;
        report(file, &lock(&file.cell.state).file)?;
        let seen = file.seen.load(Ordering::Acquire);
        reached_if(Mark::FsyncOfNothing, || {
            lock(&file.cell.state).file.is_clean() && shared.meta.synced() >= shared.meta.last()
        });
        if planted::is(Bug::CleanUnsynced) && lock(&file.cell.state).file.is_clean() {
            return Ok(());
        }
        let flushed = shared.flush(&file.cell, seen, shared.deadline()).await;
        if let Err(errno) = flushed {
            told(errno);
            // Told here; not again at the next call.
            file.seen.store(lock(&file.cell.state).file.error_count(), Ordering::Release);
        }
        flushed?;
        if planted::is(Bug::AckBeforeSync) {
            return Ok(());
        }
        shared.sync_meta().await
    }

    /// fsync(2) of a directory: every namespace operation that has returned is durable.
    pub async fn fsyncdir(&self, _ino: Ino) -> Result<(), Errno> {
        if planted::is(Bug::FsyncDirSkipped) {
            return Ok(());
        }
        self.0.sync_meta().await
    }

    /// sync(2), syncfs(2): everything accepted is durable.
    pub async fn sync(&self) -> Result<(), Errno> {
        let shared = &self.0;
        shared.env.pause().await;
        let cells = shared.files.dirty();
        shared.start_flush(&cells);
        let deadline = shared.deadline();
        let mut first_error = Ok(());
        for cell in cells {
            let seen = lock(&cell.state).file.error_count();
            let flushed = shared.flush(&cell, seen, deadline).await;
            first_error = first_error.and(flushed);
        }
        first_error?;
        shared.sync_meta().await
    }
}

impl<E: Env> Shared<E> {
    /// The machine of a regular file, pinned: `files.unpin` ends that.
    pub(super) async fn pin(&self, ino: Ino) -> Result<Arc<Cell>, Errno> {
        self.pin_fresh(ino).await.map(|(cell, _)| cell)
    }

    /// The same, with the attributes that were read for it, if they had to be.
    async fn pin_fresh(&self, ino: Ino) -> Result<(Arc<Cell>, Option<Attr>), Errno> {
        loop {
            self.env.pause().await;
            let ticket = match self.files.pin(ino) {
                Ok(cell) => return Ok((cell, None)),
                Err(ticket) => ticket,
            };
            let attr = self.read(|read| meta::attr::load(read, ino)).await?;
            match attr.kind {
                FileType::Regular => {}
                FileType::Directory => return Err(Errno::EISDIR),
                FileType::Symlink
                | FileType::Fifo
                | FileType::CharDevice
                | FileType::BlockDevice
                | FileType::Socket => return Err(Errno::EINVAL),
            }
            if let Some(cell) = self.files.insert(ino, attr.flags, ticket, || self.machine(ino, &attr)) {
                return Ok((cell, Some(attr)));
            }
        }
    }

    pub(super) fn machine(&self, ino: Ino, attr: &Attr) -> File {
        let Options { store_timeout, batch_slices, .. } = self.options;
        File::new(ino, attr, self.volume.geometry, store_timeout).with_batches_of(batch_slices)
    }

    pub(super) fn truncate(self: &Arc<Self>, cell: &Arc<Cell>, length: u64) {
        self.change(cell, |file, now, wall| {
            // Cutting nothing off nothing changes no byte, but times.
            file.truncate(now, wall, length);
        });
    }

    pub(super) fn set_attr(self: &Arc<Self>, cell: &Arc<Cell>, set: &SetAttr) {
        self.change(cell, |file, now, wall| file.set_attr(now, wall, set));
    }

    /// Accepts a member that holds no bytes.
    pub(super) fn change<T>(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        change: impl FnOnce(&mut File, Duration, Timestamp) -> T,
    ) -> T {
        let now = self.env.now();
        let (first, changed) = {
            let mut state = lock(&cell.state);
            let first = state.file.dirty_since().is_none();
            (first, change(&mut state.file, now, self.env.wall()))
        };
        if first {
            self.files.age(cell);
        }
        changed
    }

    pub(super) fn writable(&self, handle: Handle, offset: u64, len: u64) -> Result<Arc<OpenFile>, Errno> {
        let file = self.files.handle(handle)?;
        if !file.flags.write {
            return Err(Errno::EBADF);
        }
        if file.cell.flags().any(InodeFlags::IMMUTABLE) {
            return Err(Errno::EPERM);
        }
        match offset.checked_add(len) {
            Some(end) if end <= FILE_SIZE_MAX => Ok(file),
            Some(_) | None => Err(Errno::EFBIG),
        }
    }

    /// Takes a permit of `len` bytes, if there is one.
    fn try_take_memory(&self, len: u64) -> bool {
        let taken = self.memory.try_take(len);
        if taken {
            self.balance_memory();
        }
        taken
    }

    /// Waits for a permit of `len` bytes. Files are flushed meanwhile, so that permits come back.
    async fn take_memory(self: &Arc<Self>, len: u64) -> Result<(), Errno> {
        if self.try_take_memory(len) {
            return Ok(());
        }
        self.waiting.fetch_add(len, Ordering::AcqRel);
        let take = self.memory.take(len);
        self.press();
        let taken = timeout(&self.env, self.deadline(), take).await;
        self.waiting.fetch_sub(len, Ordering::AcqRel);
        reached(if taken.is_some() { Mark::WriteWaitedForMemory } else { Mark::WriteGotNoMemory });
        self.balance_memory();
        taken.ok_or(Errno::EIO)
    }

    /// Memory that dirty bytes do not need holds blocks until they do, but for a quarter: the allocator takes more for what
    /// comes and goes than is counted.
    pub(super) fn balance_memory(&self) {
        let free = || (self.memory.capacity() / 4 * 3).saturating_sub(self.memory.used());
        let step = self.memory.capacity() / LENT_STEPS;
        let lent = self.blocks.lent();
        let (least, most) = (free().saturating_sub(2 * step), free());
        if most < lent || lent < least {
            // Less than there is: the next writes find some free.
            self.blocks.lend(|| free().saturating_sub(step));
            reached(if most < lent { Mark::LentMemoryBack } else { Mark::MemoryLent });
        }
    }

    /// Hands bytes with their permit to the machine.
    fn accept(self: &Arc<Self>, open: &OpenFile, offset: u64, data: &[u8], drop_privileges: bool) -> Result<(), Errno> {
        let (len, now) = (data.len() as u64, self.env.now());
        let accepted = {
            let mut state = lock(&open.cell.state);
            let file = &mut state.file;
            let append = open.flags.appends() && !planted::is(Bug::AppendAtOldEnd);
            let offset = if append { file.length() } else { offset };
            // Where an append goes is known here alone.
            let fits = if FILE_SIZE_MAX - len < offset { Err(Errno::EFBIG) } else { Ok(()) };
            let fits = fits.and_then(|()| report(open, file));
            fits.map(|()| file.write(now, self.env.wall(), offset, data, drop_privileges))
        };
        let written = match accepted {
            Ok(written) => written,
            Err(errno) => {
                self.memory.give(len);
                return Err(errno);
            }
        };
        self.memory.give(len - written.grown);
        if written.first {
            self.files.age(&open.cell);
        }
        if written.work {
            self.drive(&open.cell);
        }
        // Half full: flush all, so that the other half lasts until permits come back.
        if self.memory.used() > self.memory.capacity() / 2 {
            self.press();
        }
        Ok(())
    }

    /// Memory runs short: flushes every dirty file, in the background, one such flush at a time.
    fn press(self: &Arc<Self>) {
        if self.pressed.swap(true, Ordering::AcqRel) {
            return;
        }
        reached(Mark::MemoryPressed);
        let shared = self.clone();
        self.env.spawn(async move {
            let cells = shared.files.dirty();
            shared.start_flush(&cells);
            // The oldest half of them done is enough to look again.
            for cell in cells.iter().take(cells.len().div_ceil(2)) {
                let seen = lock(&cell.state).file.error_count();
                // An error is told to those who have the file open.
                let _ = shared.flush(cell, seen, shared.deadline()).await;
            }
            shared.pressed.store(false, Ordering::Release);
            // Where nothing is dirty there is nothing to wait for here: memory comes back with what is given up.
            if shared.memory.waiting() > 0 && !shared.files.dirty().is_empty() {
                shared.press();
            }
        });
    }

    pub(super) fn start_flush(self: &Arc<Self>, cells: &[Arc<Cell>]) {
        self.drive_all(cells, |file| {
            file.flush();
            true
        });
    }

    /// Flushes those files that have members accepted at or before `before`.
    pub(super) fn flush_aged(self: &Arc<Self>, cells: &[Arc<Cell>], before: Duration) {
        self.drive_all(cells, |file| {
            let aged = file.flush_aged(before).is_some();
            reached_if(Mark::FlushedByAge, || aged);
            aged
        });
    }

    /// Waits until everything accepted so far is committed, or an error newer than `seen` is raised. EIO past `deadline`,
    /// and `store_timeout` after the store has last taken anything that this waits for: one that is slow is not away.
    pub(super) async fn flush(
        self: &Arc<Self>,
        cell: &Arc<Cell>,
        seen: u64,
        mut deadline: Duration,
    ) -> Result<(), Errno> {
        let (number, dirty) = {
            let mut state = lock(&cell.state);
            (state.file.flush(), state.file.dirty_bytes())
        };
        if dirty <= FLUSHED_HERE {
            self.env.here(|| self.drive(cell));
        } else {
            self.drive(cell);
        }
        loop {
            let changed = cell.changed.listen();
            {
                let state = lock(&cell.state);
                if state.file.committed() >= number {
                    return Ok(());
                }
                if let Some((_, errno)) = state.file.error_since(seen) {
                    return Err(errno);
                }
            }
            if timeout(&self.env, deadline, changed).await.is_none() {
                let moved = self.moved(cell) + self.options.store_timeout;
                if self.env.now() < moved {
                    reached(Mark::FlushPatient);
                    deadline = moved;
                    continue;
                }
                reached(Mark::FlushOutOfTime);
                if planted::is(Bug::FlushDeadlineAccepted) {
                    return Ok(());
                }
                tracing::warn!(ino = cell.ino.0, "a flush was not done in time; its bytes stay dirty");
                return Err(Errno::EIO);
            }
        }
    }

    /// When what a flush of the file waits for went on last: a put or commit of its own, or another's put while its own
    /// wait for their turn. No put counts once what comes after puts has failed.
    fn moved(&self, cell: &Cell) -> Duration {
        let state = lock(&cell.state);
        let any = Duration::from_nanos(self.last_put.load(Ordering::Acquire));
        if state.queued > 0 && state.file.is_getting_on() { state.moved.max(any) } else { state.moved }
    }

    /// The segments of a read; loads the slices of chunks that are not in memory.
    async fn plan(&self, cell: &Cell, offset: u64, len: u32) -> Result<Vec<Segment>, Errno> {
        loop {
            self.env.pause().await;
            let (chunks, version) = match lock(&cell.state).file.read(offset, u64::from(len)) {
                Ok(segments) => return Ok(segments),
                Err(missing) => missing,
            };
            for chunk in chunks {
                let slices = self.read(|read| meta::data::chunk(read, self.geometry(), cell.ino, chunk)).await?;
                lock(&cell.state).file.install(version, chunk, slices.iter().map(|(_, record)| record));
            }
        }
    }

    /// Starts fetching what a reader will want next; says how to fetch what it wants at once.
    fn read_ahead(&self, file: &OpenFile, range: Range<u64>) -> Fetch {
        let block = u64::from(self.geometry().block_size);
        let advice = lock(&file.readahead).on_read(range, block, READAHEAD_BLOCKS * block);
        for ahead in advice.ahead {
            // A chunk that is not loaded is fetched ahead of when the reader has come to it.
            let planned = lock(&file.cell.state).file.read(ahead.start, ahead.end - ahead.start);
            for segment in planned.unwrap_or_default() {
                if let Segment::Block { id, .. } = segment {
                    self.blocks.prefetch(id, self.grace.enter());
                }
            }
        }
        if advice.stream { Fetch::Whole } else { Fetch::Part }
    }

    /// Logs which file a reader could not read, and why; returns what the reader is told.
    async fn unreadable(&self, ino: Ino, unreadable: Unreadable) -> Errno {
        reached(Mark::UnreadableTold);
        let object = object_key(unreadable.id);
        let path = self.read(|read| meta::lookup::path_of(read, ino)).await;
        // A file that was unlinked has none.
        let file = path.map_or("(unlinked)".into(), |path| String::from_utf8_lossy(&path).into_owned());
        match unreadable.fault {
            Fault::Store(StoreError::Retry | StoreError::Full) => {
                tracing::warn!(file, ino = ino.0, object, "the object store did not give a block in time");
            }
            fault @ (Fault::Damaged(_)
            | Fault::Store(StoreError::NotFound | StoreError::Short | StoreError::Denied)) => {
                tracing::error!(file, ino = ino.0, object, error = %fault, "a block cannot be read");
            }
        }
        Errno::EIO
    }

    async fn collect(&self, segments: Vec<Segment>, fetch: Fetch) -> Result<ReadData, Unreadable> {
        let blocks = segments.iter().filter_map(|segment| match *segment {
            Segment::Block { id, off, len } => Some(self.blocks.read(id, off, len, fetch)),
            Segment::Bytes(_) | Segment::Zeros(_) => None,
        });
        let mut fetched = join_all(blocks).await.into_iter();
        let mut data = ReadData { segments: Vec::with_capacity(segments.len()) };
        for segment in segments {
            match segment {
                Segment::Bytes(bytes) => data.segments.push(bytes),
                Segment::Block { .. } => data.segments.push(fetched.next().expect("one for each block")?),
                Segment::Zeros(mut len) => {
                    while len > 0 {
                        let part = len.min(ZEROS.len() as u64);
                        data.segments.push(Bytes::from_static(&ZEROS[..part as usize]));
                        len -= part;
                    }
                }
            }
        }
        Ok(data)
    }
}

/// Tells the handle an error of the file that it was not told.
fn report(open: &OpenFile, file: &File) -> Result<(), Errno> {
    match file.error_since(open.seen.load(Ordering::Acquire)) {
        Some((count, errno)) => {
            open.seen.store(count, Ordering::Release);
            told(errno);
            Err(errno)
        }
        None => {
            reached_if(Mark::ErrorOldForHandle, || file.error_count() > 0);
            Ok(())
        }
    }
}

fn told(errno: Errno) {
    reached(Mark::ErrorTold);
    reached_if(Mark::NoSpaceTold, || errno == Errno::ENOSPC);
}

fn segment_len(segment: &Segment) -> u64 {
    match segment {
        Segment::Bytes(bytes) => bytes.len() as u64,
        Segment::Zeros(len) => *len,
        Segment::Block { len, .. } => u64::from(*len),
    }
}
