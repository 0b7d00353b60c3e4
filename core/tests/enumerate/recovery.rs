//! What removes things, and the life after a crash: upkeep in the order of the client's collector, and the checks of
//! the stores as they are.
//!
//! Owns: the order in which objects are destroyed; what must hold of stores whatever was done before.
//! Leaves to others: what the files and names must be (`testkit::judge`).

use std::collections::BTreeSet;
use std::ops::Range;

use kiseki_core::format::block::parse_key;
use kiseki_core::meta;
use kiseki_core::testkit::stores::{self, blocks};
use kiseki_core::types::{BlockId, SliceId};

use super::mistakes::Mistake;
use super::world::{Event, Form, GEOMETRY, Name, VOLUME, World};

/// In which order a mount comes to what it has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// What is in the log goes into the store, and its segments stay until the rest is done.
    DrainFirst,
    /// What nothing refers to is deleted while it may be in the log.
    DeleteFirst,
}

impl Order {
    /// Those that differ.
    pub(crate) fn all(form: Form) -> &'static [Self] {
        match form {
            Form::Through => &[Self::DeleteFirst],
            Form::Logged | Form::Packed => &[Self::DrainFirst, Self::DeleteFirst],
        }
    }
}

/// Records that one sweep handles: so few that there are several.
const SWEEP: usize = 2;

impl World {
    /// A pass of the collector: `sweep_all`, then `delete_queued`.
    pub(crate) fn upkeep(&mut self) {
        loop {
            let files = self.read(|read| meta::sweep::delfiles(read, usize::MAX));
            let Some(&ino) = files.first() else { break };
            let swept = self.txn(Event::Txn("sweep"), |txn, ctx| meta::sweep::sweep_delfile(txn, ctx, ino, SWEEP));
            swept.expect("it can be swept");
        }
        loop {
            let files = self.read(|read| meta::sweep::cutfiles(read, usize::MAX));
            let Some(&ino) = files.first() else { break };
            let swept = self.txn(Event::Txn("sweep cuts"), |txn, ctx| meta::sweep::sweep_cuts(txn, ctx, ino, SWEEP));
            swept.expect("it can be swept");
        }
        let queued = self.read(|read| meta::sweep::delslices(read, None, usize::MAX));
        if queued.is_empty() {
            return;
        }
        if self.mistake != Some(Mistake::DeleteBeforeSync) {
            self.sync();
        }
        let early = self.mistake == Some(Mistake::ForgetBeforeDelete);
        if early {
            self.forget(&queued);
            self.sync();
        }
        for &(slice, len) in &queued {
            blocks(GEOMETRY, slice, len).for_each(|id| self.delete(id.slice, id.index));
        }
        self.delete_barrier();
        if !early {
            self.forget(&queued);
        }
    }

    fn forget(&mut self, queued: &[(SliceId, u32)]) {
        let slices: Vec<SliceId> = queued.iter().map(|(slice, _)| *slice).collect();
        self.txn(Event::Txn("dequeue"), |txn, _| meta::sweep::drop_delslices(txn, &slices)).expect("queues shrink");
    }

    /// `Collector::collect`: what ended sessions put and never committed; or `collect_early`, after which their leases are
    /// looked at once more.
    fn collect(&mut self, early: bool) {
        let leases = self.read(|read| meta::session::leases(read));
        let session = self.session;
        let ended: Vec<Range<u64>> = leases.into_iter().filter(|(_, of)| *of != session).map(|(ids, _)| ids).collect();
        if ended.is_empty() {
            return;
        }
        let mut held = BTreeSet::new();
        self.read(|read| meta::sweep::references(read, None, usize::MAX, &mut |slice| _ = held.insert(slice)));
        held.extend(self.read(|read| meta::sweep::delslices(read, None, usize::MAX)).into_iter().map(|(id, _)| id));
        self.sync();
        for lease in ended {
            let garbage = |(slice, _): &(SliceId, u32)| lease.contains(&slice.0) && !held.contains(slice);
            for (slice, index) in self.listing().into_iter().filter(garbage) {
                if self.mistake != Some(Mistake::KeepUncommitted) {
                    self.delete(slice, index);
                }
            }
            self.delete_barrier();
            if !early {
                let start = lease.start;
                let dropped = self.txn(Event::Txn("drop a lease"), |txn, _| meta::session::drop_lease(txn, start));
                dropped.expect("leases go");
            }
        }
    }

    /// What a mount does by and by.
    pub(crate) fn settle_down(&mut self, order: Order) {
        match order {
            Order::DeleteFirst => {
                self.upkeep();
                self.collect(self.form != Form::Through && self.mistake != Some(Mistake::LogUnlisted));
                self.drain();
                self.remove_segments(false);
                self.collect(false);
            }
            Order::DrainFirst => {
                self.drain();
                self.collect(false);
                self.upkeep();
                self.remove_segments(false);
            }
        }
        self.tend_packs();
    }

    /// What must hold at every moment: the invariants of the metadata, and every slice that a record refers to has its
    /// blocks, whole.
    pub(crate) fn check(&self) -> Result<Vec<BlockId>, String> {
        stores::check(&self.kv, VOLUME, GEOMETRY, |id| self.object(id))
    }

    /// What must hold when nothing is under way and nothing dirty: all that is there is used by somebody.
    pub(crate) fn check_tidy(&self) -> Result<(), String> {
        let used: BTreeSet<(SliceId, u32)> = self.check()?.into_iter().map(|id| (id.slice, id.index)).collect();
        let alone = |name: &Name| matches!(name, Name::Block(slice, index) if !used.contains(&(*slice, *index)));
        if let Some(name) = self.objects.names().find(alone) {
            return Err(format!("{name} is left, and nothing refers to it"));
        }
        self.check_packs(|block| used.contains(&block))?;
        self.check_log(|key| parse_key(key).is_some_and(|block| used.contains(&block)))?;
        let orphans = self.read(|read| meta::sweep::orphans(read, None, usize::MAX));
        if orphans.iter().eq(&self.orphans) {
            Ok(())
        } else {
            Err(format!("{orphans:?} are unlinked, and {:?} of them open", self.orphans))
        }
    }
}
