//! The client's part: what each call does to a file, and what makes the machines go.
//!
//! Owns: the order of put, barrier, commit and sync; who waits for whom; the composition of `client/{data,driver,names}`.
//! Leaves to others: the stores and what of them is durable (`world`), the calls (`kernel`).

use std::ops::Range;
use std::time::Duration;

use kiseki_core::errno::Errno;
use kiseki_core::file::machine::{Action, CommitOutcome, Fallocate, File, PutOutcome};
use kiseki_core::kv::Txn;
use kiseki_core::meta::acl::{Acl, AclKind};
use kiseki_core::meta::{self, Change, Commit, CommitReply, CopyRange, New, OpCtx, Removed, RenameMode, SetAttr};
use kiseki_core::types::{FileType, Ino, Place, SliceId};

use super::{Cell, Event, GEOMETRY, OpenFile, World};
use crate::mistakes::Mistake;
use crate::recovery::Order;

/// The machines see no time pass: nothing fails here, so nothing is tried again.
const NOW: Duration = Duration::ZERO;

/// How far a machine is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// It asks for nothing more.
    Idle,
    /// A commit is under way.
    Commit,
}

impl World {
    /// The machine of a file, if it has one.
    pub(crate) fn machine(&mut self, ino: Ino) -> Option<&mut File> {
        self.cells.get_mut(&ino).map(|cell| &mut cell.file)
    }

    /// The machine of a regular file, pinned.
    pub(crate) fn pin(&mut self, ino: Ino) -> Result<&mut File, Errno> {
        if !self.cells.contains_key(&ino) {
            let attr = self.try_read(|read| meta::attr::load(read, ino))?;
            assert_eq!(attr.kind, FileType::Regular, "the kernel opens files only");
            let file = File::new(ino, &attr, GEOMETRY, Duration::from_secs(60));
            self.cells.insert(ino, Cell { file, pins: 0, commit: None });
        }
        let cell = self.cells.get_mut(&ino).expect("it was there or was just inserted");
        cell.pins += 1;
        Ok(&mut cell.file)
    }

    /// Drops a pin; the last one of an unlinked file ends the file.
    pub(crate) fn unpin(&mut self, ino: Ino) {
        let cell = self.cells.get_mut(&ino).expect("it is pinned");
        cell.pins -= 1;
        if cell.pins == 0 && self.orphans.remove(&ino) {
            self.reap(ino);
        }
        self.retire(ino);
    }

    fn retire(&mut self, ino: Ino) {
        if self.cells.get(&ino).is_some_and(|cell| cell.pins == 0 && cell.file.is_clean()) {
            self.cells.remove(&ino);
        }
    }

    /// `write_now`, `write`: a write to an open file.
    pub(crate) fn write(&mut self, open: OpenFile, offset: u64, data: &[u8], drop_privileges: bool) {
        let wall = self.wall();
        let file = self.machine(open.ino).expect("it is open");
        let written = file.write(NOW, wall, offset, data, drop_privileges);
        if written.work {
            self.drive(open.ino, Until::Idle);
        }
        if open.sync {
            self.fsync(open.ino);
        }
    }

    /// EPERM if the inode's flags forbid opening it like this, or changing its length. (`Client::open`)
    pub(crate) fn allow(&self, ino: Ino, write: bool, append: bool, truncate: bool) -> Result<(), Errno> {
        let attr = self.try_read(|read| meta::attr::load(read, ino))?;
        meta::attr::check_open(attr.flags, write, append, truncate)
    }

    /// `Client::set_acl`: the mode that it brings takes its place among what is accepted and not committed.
    pub(crate) fn set_acl(&mut self, ino: Ino, kind: AclKind, acl: Option<&Acl>) -> Result<(), Errno> {
        let attr = self.try_read(|read| meta::attr::load(read, ino))?;
        let dirty = self.machine(ino).filter(|file| file.dirty_since().is_some());
        let apart = dirty.map(|file| file.overlay_attr(attr).mode);
        let set = |txn: &mut dyn Txn, ctx: &OpCtx| meta::acl::set(txn, ctx, ino, kind, acl, false, apart);
        let mode = self.txn(Event::Txn("set an ACL"), set)?;
        if apart.is_some() && kind == AclKind::Access && acl.is_some() && mode.is_some() {
            self.set_attr(ino, &SetAttr { mode, ..SetAttr::default() })?;
        }
        Ok(())
    }

    /// `Client::fallocate`.
    pub(crate) fn fallocate(&mut self, open: OpenFile, range: Range<u64>, what: Fallocate) {
        let wall = self.wall();
        self.file(open.ino).fallocate(NOW, wall, range, what, 0, false);
    }

    /// `Client::copy_range`.
    pub(crate) fn copy(
        &mut self,
        (source, from): (OpenFile, u64),
        (target, to): (OpenFile, u64),
        len: u64,
    ) -> Result<(), Errno> {
        let wall = self.wall();
        let len = len.min(self.file(source.ino).length().saturating_sub(from));
        if len == 0 {
            return Ok(());
        }
        if source.ino == target.ino && from < to + len && to < from + len {
            return Err(Errno::EINVAL);
        }
        if source.ino != target.ino {
            self.flush(source.ino);
        }
        let commit = self.file(source.ino).committed();
        let copy = CopyRange { source: source.ino, commit, from, to, len };
        let number = self.file(target.ino).copy(NOW, wall, copy, 0, false);
        self.drive(target.ino, Until::Idle);
        assert_eq!(self.file(target.ino).copied(number), Some(len), "a copy of a file that does not change");
        Ok(())
    }

    /// `Client::setattr` with a size.
    pub(crate) fn truncate(&mut self, ino: Ino, length: u64) -> Result<(), Errno> {
        self.allow(ino, true, false, true)?;
        let wall = self.wall();
        self.pin(ino)?.truncate(NOW, wall, length);
        self.unpin(ino);
        Ok(())
    }

    /// `Client::setattr` without a size: in its place among what is accepted and not committed; else at once.
    pub(crate) fn set_attr(&mut self, ino: Ino, set: &SetAttr) -> Result<(), Errno> {
        set.check(self.try_read(|read| meta::attr::load(read, ino))?.flags)?;
        let (wall, overtakes) = (self.wall(), self.mistake == Some(Mistake::ChmodOvertakes));
        if let Some(file) = self.machine(ino)
            && file.dirty_since().is_some()
            && !overtakes
        {
            file.set_attr(NOW, wall, set);
            return Ok(());
        }
        self.txn(Event::Txn("setattr"), |txn, ctx| meta::attr::set(txn, ctx, ino, set)).map(drop)
    }

    /// `Client::fsync`: flush, which is put, barrier, commit; then the metadata log.
    pub(crate) fn fsync(&mut self, ino: Ino) {
        if self.mistake == Some(Mistake::SyncBeforeCommit) {
            self.sync();
            self.flush(ino);
            return;
        }
        self.flush(ino);
        if self.mistake != Some(Mistake::SkipSync) {
            self.sync();
        }
    }

    /// `Client::sync`.
    pub(crate) fn sync_all(&mut self) {
        self.flush_all();
        self.sync();
    }

    fn flush_all(&mut self) {
        let dirty: Vec<Ino> = self.cells.keys().copied().collect();
        dirty.into_iter().for_each(|ino| self.flush(ino));
    }

    /// `Client::rename`: what must not be shown uncommitted is committed first.
    pub(crate) fn rename(
        &mut self,
        names: [(Ino, &[u8]); 2],
        mode: RenameMode,
        whiteout: Option<&New>,
    ) -> Result<(), Errno> {
        let mut wanted = self.read(|read| meta::rename::to_settle(read, names, mode));
        match self.mistake {
            Some(Mistake::RenameDoesNotWait) => wanted = [None, None],
            Some(Mistake::ExchangeWaitsForOne) => wanted[1] = None,
            Some(_) | None => {}
        }
        for ino in wanted.into_iter().flatten() {
            if self.cells.contains_key(&ino) {
                self.flush(ino);
            }
        }
        let apart = self.mistake == Some(Mistake::WhiteoutApart);
        let leaving = whiteout.filter(|_| !apart);
        let renamed =
            self.txn(Event::Txn("rename"), |txn, ctx| meta::rename::rename_leaving(txn, ctx, names, mode, leaving))?;
        if let (true, Some(new)) = (apart, whiteout) {
            let (dir, name) = names[0];
            self.txn(Event::Txn("create"), |txn, ctx| meta::create::create(txn, ctx, dir, name, new))?;
        }
        if let Some(removed) = renamed.replaced {
            self.removed(removed);
        }
        Ok(())
    }

    /// A name went away; the last one of what is not open ends it.
    pub(crate) fn removed(&mut self, removed: Removed) {
        if removed.nlink > 0 {
            return;
        }
        if self.cells.get(&removed.ino).is_some_and(|cell| cell.pins > 0) {
            self.orphans.insert(removed.ino);
        } else {
            self.reap(removed.ino);
        }
    }

    /// `Shared::reap`.
    fn reap(&mut self, ino: Ino) {
        let mut given_up = Vec::new();
        if let Some(file) = self.machine(ino) {
            file.discard();
            // What is under way ends first.
            self.drive(ino, Until::Idle);
            (given_up, _) = self.file(ino).take_given_up();
            self.cells.remove(&ino);
        }
        self.txn(Event::Txn("reap"), |txn, ctx| meta::remove::reap(txn, ctx, ino, &given_up)).expect("orphans go");
    }

    /// `Shared::flush`: everything accepted for the file is committed.
    fn flush(&mut self, ino: Ino) {
        let Some(file) = self.machine(ino) else { return };
        let number = file.flush();
        self.drive(ino, Until::Idle);
        if let Some(file) = self.machine(ino) {
            assert!(file.committed() >= number, "nothing failed, so everything is committed");
        }
        self.retire(ino);
    }

    /// `driver`: does what the machine asks for. What it asks for at once runs at once in the client and ends in any
    /// order; here the last thing ends first, so that what should have waited for another has not.
    fn drive(&mut self, ino: Ino, until: Until) {
        loop {
            let slices = &mut self.slices;
            let Some(cell) = self.cells.get_mut(&ino) else { return };
            if let Some(commit) = cell.commit.take() {
                let reply = self.commit(&commit);
                self.file(ino).handle_commit(NOW, CommitOutcome::from(&reply), |_, _| {});
                for (id, payload) in std::mem::take(&mut self.late) {
                    self.put(id, &payload);
                }
                continue;
            }
            let mut actions = Vec::new();
            while let Some(action) = cell.file.poll_action(NOW, &mut || slices.next().map(SliceId)) {
                actions.push(action);
                if matches!(actions.last(), Some(Action::NeedId)) {
                    break;
                }
            }
            if actions.is_empty() {
                return;
            }
            for action in actions.into_iter().rev() {
                self.act(ino, action);
                self.file(ino).check();
            }
            if until == Until::Commit && self.cells.get(&ino).is_some_and(|cell| cell.commit.is_some()) {
                return;
            }
        }
    }

    fn act(&mut self, ino: Ino, action: Action) {
        match action {
            Action::NeedId => self.refill_slices(),
            Action::Put { key, id, payload } => {
                if self.mistake == Some(Mistake::CommitBeforePut) {
                    self.late.push((id, payload));
                } else {
                    self.put(id, &payload);
                }
                self.file(ino).handle_put(NOW, key, id.index, PutOutcome::Done);
            }
            Action::Barrier { number } => {
                self.barrier();
                self.file(ino).handle_barrier(NOW, number, PutOutcome::Done);
            }
            Action::Commit(commit) => {
                self.cells.get_mut(&ino).expect("a machine stays while it works").commit = Some(commit);
            }
        }
    }

    fn file(&mut self, ino: Ino) -> &mut File {
        self.machine(ino).expect("a machine stays while it works")
    }

    fn commit(&mut self, commit: &Commit) -> CommitReply {
        let mut commit = commit.clone();
        if self.mistake == Some(Mistake::LengthWithoutSlice) {
            for change in &mut commit.changes {
                if let Change::Slice { chunk, record } = change
                    && record.place == Place::Blocks
                {
                    let end = u64::from(*chunk) * GEOMETRY.chunk_size + u64::from(record.pos + record.len);
                    *change = Change::Truncate { length: end };
                }
            }
        }
        let reply = self.txn(Event::Commit(commit.ino), |txn, ctx| meta::data::commit(txn, ctx, &commit));
        reply.expect("the file is there")
    }

    /// A flush of everything that has come as far as its commits, and puts from the log into the store: the commits are under
    /// way when the next call is made, and no barrier of the store covers the puts.
    pub(crate) fn write_back(&mut self) {
        let dirty: Vec<Ino> = self.cells.keys().copied().collect();
        for ino in dirty {
            self.file(ino).flush();
            self.drive(ino, Until::Commit);
            self.retire(ino);
        }
        if self.has_log() {
            self.pump();
        }
    }

    /// What goes on in the background, once: aged files are flushed, what was removed is swept and deleted, the log is
    /// drained, and what earlier mounts have left is collected.
    pub(crate) fn background(&mut self) {
        self.flush_all();
        self.settle_down(Order::DeleteFirst);
    }
}
