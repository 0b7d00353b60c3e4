//! The tables of a mount: dirty or open files, handles, the kernel's lookup counts.
//!
//! Owns: which machine serves an inode, how long it stays, what the kernel still knows.
//! Leaves to others: what a machine does (`driver`), reaping (`reaping`).
//!
//! Invariants
//! - One inode has one machine at a time. It stays while it is pinned (by a handle or an operation) or not clean.
//! - Every file that is not clean has an entry in the aging queue of its shard.
//! - Locks: shard before cell.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::hash::{BuildHasherDefault, Hasher};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::Mutex;

use super::std;
use super::wait::{Notify, lock};
use crate::errno::Errno;
use crate::file::File;
use crate::file::readahead::Readahead;
use crate::marks::{Mark, reached};
use crate::planted::{self, Bug};
use crate::types::{Ino, InodeFlags};

pub(super) const SHARDS: usize = 64;

/// An open file, as the kernel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// How a file is opened (open(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFlags {
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
    /// Every write goes to the end (O_APPEND).
    pub append: bool,
    /// Each write comes with the offset it goes to, also with `append`: a kernel that is alone on the volume takes the
    /// length under the inode's lock. It knows what `append` at the opening cannot tell: fcntl(2) sets and clears the flag
    /// on an open file, and pages of a shared map go where they are.
    pub positioned: bool,
    /// The contents are dropped (O_TRUNC).
    pub truncate: bool,
    /// A write returns when it is durable (O_SYNC, O_DSYNC).
    pub sync: bool,
    /// The file must not exist yet (O_EXCL; `create` only).
    pub exclusive: bool,
    /// Reads leave no access time (O_NOATIME).
    pub noatime: bool,
}

impl OpenFlags {
    /// Whether writes find their offset here.
    pub(super) fn appends(self) -> bool {
        self.append && !self.positioned
    }
}

/// One inode's machine and those who wait for it.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) ino: Ino,
    /// `InodeFlags` as they are now.
    flags: AtomicU8,
    pub(super) capability: Capability,
    pub(super) state: Mutex<CellState>,
    /// Something completed, or a pin was dropped.
    pub(super) changed: Notify,
}

impl Cell {
    /// The inode's flags.
    pub(super) fn flags(&self) -> InodeFlags {
        InodeFlags::from_bits(self.flags.load(Ordering::Acquire)).expect("they are of an inode")
    }

    /// The inode's flags were changed.
    pub(super) fn set_flags(&self, flags: InodeFlags) {
        self.flags.store(flags.bits(), Ordering::Release);
    }
}

/// Whether a file may have security.capability, which a write has to take away first. The kernel does that for what goes
/// through its page cache, and leaves it to us for direct I/O.
///
/// A count that is odd while it may: it is not lost if the attribute is set while it is being taken away.
#[derive(Debug)]
pub(super) struct Capability(AtomicU64);

impl Capability {
    /// Nobody has looked.
    fn unknown() -> Self {
        Self(AtomicU64::new(1))
    }

    /// `Some`: it may be there; what `gone` wants to know.
    pub(super) fn seen(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|count| count % 2 == 1)
    }

    /// It is not there, unless it was set since it was `seen`.
    pub(super) fn gone(&self, seen: u64) {
        // Someone else says the same, or it was set.
        _ = self.0.compare_exchange(seen, seen + 1, Ordering::AcqRel, Ordering::Acquire);
    }

    /// It was set.
    pub(super) fn set(&self) {
        let next = |count: u64| Some((count + 2) | 1);
        _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }
}

#[derive(Debug)]
pub(super) struct CellState {
    pub(super) file: File,
    pub(super) pins: u32,
    /// A timer will drive this file at that time.
    pub(super) timer: Option<Duration>,
    /// A task gets slice ids for this file, and will drive it.
    pub(super) leasing: bool,
    /// Puts of this file that wait for their turn.
    pub(super) queued: u32,
    /// When a put or commit of this file succeeded last.
    pub(super) moved: Duration,
    /// The file is in the aging queue of its shard.
    aging: bool,
}

/// One open(2).
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) cell: Arc<Cell>,
    pub(super) flags: OpenFlags,
    /// Errors of the file that this handle was told or that are older than it.
    pub(super) seen: AtomicU64,
    pub(super) readahead: Mutex<Readahead>,
}

/// Hashes the inodes of a shard: those that follow each other are next to each other.
#[derive(Default)]
pub(super) struct InoHasher(u64);

impl Hasher for InoHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("inodes are numbers");
    }

    fn write_u64(&mut self, ino: u64) {
        let place = ino / SHARDS as u64;
        // A table of std tells apart what is next to each other by the upper bits.
        self.0 = place & !0 >> 8 | place << 56;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Debug, Default)]
struct Shard {
    cells: BTreeMap<Ino, Arc<Cell>>,
    /// Counts cells taken out: what was read before may be older than what one of them committed.
    retired: u64,
    /// (since when it is dirty, which file), nearly in order of time; a file is in it once.
    aging: VecDeque<(Duration, Ino)>,
    /// How often the kernel was told of an inode, less what it forgot.
    lookups: HashMap<Ino, u64, BuildHasherDefault<InoHasher>>,
    /// Unlinked by this mount and known to the kernel still.
    orphans: BTreeSet<Ino>,
}

#[derive(Debug)]
pub(super) struct Files {
    shards: [Mutex<Shard>; SHARDS],
    handles: [Mutex<BTreeMap<u64, Arc<OpenFile>>>; SHARDS],
    next_handle: AtomicU64,
    /// Sum of all shards' `retired`.
    retired: AtomicU64,
}

impl Files {
    pub(super) fn new() -> Self {
        Self {
            shards: core::array::from_fn(|_| Mutex::default()),
            handles: core::array::from_fn(|_| Mutex::default()),
            next_handle: AtomicU64::new(1),
            retired: AtomicU64::new(0),
        }
    }

    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[ino.0 as usize % SHARDS]
    }

    pub(super) fn get(&self, ino: Ino) -> Option<Arc<Cell>> {
        lock(self.shard(ino)).cells.get(&ino).cloned()
    }

    /// Counts machines that were taken out of the table.
    pub(super) fn retired(&self) -> u64 {
        self.retired.load(Ordering::Acquire)
    }

    /// The machine of `ino`, and the count of machines that were taken out of its shard.
    pub(super) fn get_counted(&self, ino: Ino) -> (Option<Arc<Cell>>, u64) {
        let shard = lock(self.shard(ino));
        (shard.cells.get(&ino).cloned(), shard.retired)
    }

    /// Pins the machine of `ino` if there is one; else the ticket to `insert` it with attributes read after this.
    pub(super) fn pin(&self, ino: Ino) -> Result<Arc<Cell>, u64> {
        let shard = lock(self.shard(ino));
        match shard.cells.get(&ino) {
            Some(cell) => {
                lock(&cell.state).pins += 1;
                Ok(cell.clone())
            }
            None => Err(shard.retired),
        }
    }

    /// Puts a machine in place and pins it, or pins the one that got there first; `None`: what `make` knows may be
    /// stale (a machine came and went since the ticket).
    pub(super) fn insert(
        &self,
        ino: Ino,
        flags: InodeFlags,
        ticket: u64,
        make: impl FnOnce() -> File,
    ) -> Option<Arc<Cell>> {
        let mut shard = lock(self.shard(ino));
        if let Some(cell) = shard.cells.get(&ino) {
            lock(&cell.state).pins += 1;
            return Some(cell.clone());
        }
        if shard.retired != ticket {
            reached(Mark::StaleMachineRefused);
            return None;
        }
        let state = CellState {
            file: make(),
            pins: 1,
            timer: None,
            leasing: false,
            queued: 0,
            moved: Duration::ZERO,
            aging: false,
        };
        let state = Mutex::new(state);
        let (flags, capability) = (AtomicU8::new(flags.bits()), Capability::unknown());
        let cell = Arc::new(Cell { ino, flags, capability, state, changed: Notify::default() });
        shard.cells.insert(ino, cell.clone());
        Some(cell)
    }

    /// Drops a pin, and the machine with the last one if it is clean.
    pub(super) fn unpin(&self, cell: &Arc<Cell>) {
        lock(&cell.state).pins -= 1;
        cell.changed.notify_all();
        self.retire(cell);
    }

    /// Takes the machine out if nobody needs it.
    pub(super) fn retire(&self, cell: &Arc<Cell>) {
        let mut shard = lock(self.shard(cell.ino));
        let state = lock(&cell.state);
        let listed = shard.cells.get(&cell.ino).is_some_and(|listed| Arc::ptr_eq(listed, cell));
        if listed && state.pins == 0 && state.file.is_clean() {
            shard.cells.remove(&cell.ino);
            shard.retired += 1;
            self.retired.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The file has become dirty: puts it into the aging queue.
    pub(super) fn age(&self, cell: &Cell) {
        let mut shard = lock(self.shard(cell.ino));
        let mut state = lock(&cell.state);
        if let Some(since) = state.file.dirty_since()
            && !core::mem::replace(&mut state.aging, true)
        {
            shard.aging.push_back((since, cell.ino));
        }
    }

    /// The files that have been dirty since `before` or longer. They stay in the aging queue: whoever asks for all dirty
    /// files meanwhile must find them.
    pub(super) fn aged(&self, before: Duration) -> Vec<Arc<Cell>> {
        let mut cells = Vec::new();
        for shard in &self.shards {
            let shard = &mut *lock(shard);
            let mut again = Vec::new();
            while let Some((_, ino)) = shard.aging.pop_front_if(|(since, _)| *since <= before) {
                let Some(cell) = shard.cells.get(&ino) else { continue };
                let mut state = lock(&cell.state);
                let since = state.file.dirty_since();
                state.aging = since.is_some();
                again.extend(since.map(|since| (since, ino)));
                if since.is_some_and(|since| since <= before) {
                    cells.push(cell.clone());
                }
            }
            if !again.is_empty() {
                shard.aging.extend(again);
            }
        }
        cells
    }

    /// All files that are dirty.
    pub(super) fn dirty(&self) -> Vec<Arc<Cell>> {
        let mut cells = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            let listed = shard.aging.iter().filter_map(|(_, ino)| shard.cells.get(ino));
            cells.extend(listed.filter(|cell| lock(&cell.state).file.dirty_since().is_some()).cloned());
        }
        cells
    }

    pub(super) fn open(&self, cell: Arc<Cell>, flags: OpenFlags) -> Handle {
        let seen = AtomicU64::new(lock(&cell.state).file.error_count());
        let wrap = if planted::is(Bug::HandleReuse) { 16 } else { u64::MAX };
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed) % wrap;
        let file = Arc::new(OpenFile { cell, flags, seen, readahead: Mutex::default() });
        lock(&self.handles[handle as usize % SHARDS]).insert(handle, file);
        Handle(handle)
    }

    pub(super) fn handle(&self, handle: Handle) -> Result<Arc<OpenFile>, Errno> {
        lock(&self.handles[handle.0 as usize % SHARDS]).get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    pub(super) fn close(&self, handle: Handle) -> Result<Arc<OpenFile>, Errno> {
        lock(&self.handles[handle.0 as usize % SHARDS]).remove(&handle.0).ok_or(Errno::EBADF)
    }

    pub(super) fn open_count(&self) -> u64 {
        self.handles.iter().map(|shard| lock(shard).len() as u64).sum()
    }

    /// The kernel was told of `ino` once more.
    pub(super) fn remember(&self, ino: Ino) {
        *lock(self.shard(ino)).lookups.entry(ino).or_insert(0) += 1;
    }

    /// The kernel forgot `count` lookups; true if it knows the inode no more and the inode is an orphan.
    pub(super) fn forget(&self, ino: Ino, count: u64) -> bool {
        let mut shard = lock(self.shard(ino));
        let Some(known) = shard.lookups.get_mut(&ino) else { return false };
        *known = known.saturating_sub(count);
        if *known > 0 {
            return false;
        }
        shard.lookups.remove(&ino);
        shard.orphans.remove(&ino)
    }

    /// `ino` lost its last name; true if the kernel does not know it.
    pub(super) fn orphan(&self, ino: Ino) -> bool {
        let mut shard = lock(self.shard(ino));
        let known = shard.lookups.contains_key(&ino);
        if known {
            shard.orphans.insert(ino);
        }
        !known
    }

    /// Takes all orphans: the kernel is gone.
    pub(super) fn orphans(&self) -> Vec<Ino> {
        self.shards.iter().flat_map(|shard| core::mem::take(&mut lock(shard).orphans)).collect()
    }

    /// Drops all handles: the kernel is gone.
    pub(super) fn close_all(&self) -> Vec<Arc<OpenFile>> {
        self.handles.iter().flat_map(|shard| core::mem::take(&mut *lock(shard)).into_values()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Attr, FileType, Geometry, Timestamp};

    fn machine(ino: Ino) -> File {
        let zero = Timestamp::default();
        let attr = Attr {
            kind: FileType::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 1,
            length: 0,
            stored: 0,
            atime: zero,
            mtime: zero,
            ctime: zero,
            btime: zero,
            commit: 0,
            next_seq: 0,
            reach: 0,
            exact: true,
            bare: true,
            parent: Ino::ROOT,
            flags: InodeFlags::default(),
        };
        File::new(ino, &attr, Geometry::DEFAULT, Duration::from_secs(1))
    }

    #[test]
    fn a_capability_that_is_set_while_it_is_taken_away_is_seen() {
        let capability = Capability::unknown();
        let first = capability.seen().expect("nobody has looked");
        capability.gone(first);
        assert_eq!(capability.seen(), None);
        capability.set();
        let second = capability.seen().expect("it was set");
        capability.gone(first);
        assert_eq!(capability.seen(), Some(second), "whoever looked before does not know of it");
        capability.set();
        capability.gone(second);
        assert!(capability.seen().is_some(), "nor does whoever looked between");
    }

    /// A sync that asks for all dirty files between the ager's look at a file and its flush must wait for that file.
    #[test]
    fn what_is_flushed_by_age_is_still_among_the_dirty() {
        let files = Files::new();
        let cell = files.insert(Ino(2), InodeFlags::default(), 0, || machine(Ino(2))).expect("there is none");
        let clean = files.insert(Ino(3), InodeFlags::default(), 0, || machine(Ino(3))).expect("there is none");
        let at = Duration::from_secs(10);
        for cell in [&cell, &clean] {
            lock(&cell.state).file.write(at, Timestamp::default(), 0, b"bytes", false);
            files.age(cell);
        }
        // One is removed: it is clean then, and stays in the table while somebody has it.
        lock(&clean.state).file.discard();
        lock(&clean.state).file.take_given_up();
        let inos = |cells: Vec<Arc<Cell>>| cells.iter().map(|cell| cell.ino).collect::<Vec<Ino>>();
        assert_eq!(inos(files.dirty()), [Ino(2)]);
        assert_eq!(inos(files.aged(Duration::from_secs(9))), []);
        for _ in 0..3 {
            assert_eq!(inos(files.aged(at)), [Ino(2)]);
            assert_eq!(inos(files.dirty()), [Ino(2)]);
        }
    }
}
