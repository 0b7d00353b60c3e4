//! What removes things, and the life after a crash: upkeep in the order of the client's collector, and the checks of
//! the stores as they are.
//!
//! Owns: the order in which objects are destroyed; what must hold of stores whatever was done before.
//! Leaves to others: what the files and names must be (`testkit::judge`).

use std::collections::BTreeSet;
use std::ops::Range;

use kiseki_core::meta;
use kiseki_core::testkit::stores::{self, blocks};
use kiseki_core::types::{BlockId, SliceId};

use super::mistakes::Mistake;
use super::world::{Event, GEOMETRY, Objects, VOLUME, World};

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
            blocks(GEOMETRY, slice, len).for_each(|id| self.delete(id));
        }
        if !early {
            self.forget(&queued);
        }
    }

    fn forget(&mut self, queued: &[(SliceId, u32)]) {
        let slices: Vec<SliceId> = queued.iter().map(|(slice, _)| *slice).collect();
        self.txn(Event::Txn("dequeue"), |txn, _| meta::sweep::drop_delslices(txn, &slices)).expect("queues shrink");
    }

    /// `Collector::collect`: what ended sessions put and never committed.
    pub(crate) fn collect(&mut self) {
        let leases = self.read(|read| meta::session::leases(read));
        let session = self.session;
        let ended: Vec<Range<u64>> = leases.into_iter().filter(|(_, of)| *of != session).map(|(ids, _)| ids).collect();
        let mut held = BTreeSet::new();
        self.read(|read| meta::sweep::references(read, None, usize::MAX, &mut |slice| _ = held.insert(slice)));
        held.extend(self.read(|read| meta::sweep::delslices(read, None, usize::MAX)).into_iter().map(|(id, _)| id));
        self.sync();
        for lease in ended {
            let garbage = self.objects.keys().filter(|(slice, _)| lease.contains(&slice.0) && !held.contains(slice));
            for (slice, index) in garbage.copied().collect::<Vec<_>>() {
                if self.mistake != Some(Mistake::KeepUncommitted) {
                    self.delete(BlockId { slice, index, len: 0 });
                }
            }
            let start = lease.start;
            self.txn(Event::Txn("drop a lease"), |txn, _| meta::session::drop_lease(txn, start)).expect("leases go");
        }
    }

    /// What must hold at every moment: the invariants of the metadata, and every slice that a record refers to has its
    /// blocks, whole.
    pub(crate) fn check(&self) -> Result<Vec<BlockId>, String> {
        let object = |id: BlockId| self.objects.get(&(id.slice, id.index)).map(|object| object.bytes.clone());
        stores::check(&self.kv, VOLUME, GEOMETRY, object)
    }

    /// What must hold when nothing is under way and nothing dirty: all that is there is used by somebody.
    pub(crate) fn check_tidy(&self) -> Result<(), String> {
        let used: BTreeSet<(SliceId, u32)> = self.check()?.into_iter().map(|id| (id.slice, id.index)).collect();
        if let Some((slice, index)) = self.objects.keys().find(|key| !used.contains(key)) {
            return Err(format!("block {}-{index} is left, and nothing refers to it", slice.0));
        }
        let orphans = self.read(|read| meta::sweep::orphans(read, None, usize::MAX));
        if orphans.iter().eq(&self.orphans) {
            Ok(())
        } else {
            Err(format!("{orphans:?} are unlinked, and {:?} of them open", self.orphans))
        }
    }
}

/// The objects that a crash may leave: all, or those past a barrier with none or one of the others.
pub(crate) fn survivors(objects: &Objects) -> Vec<Objects> {
    let with = |keep: &dyn Fn(&(SliceId, u32)) -> bool| -> Objects {
        let kept = objects.iter().filter(|(key, object)| object.durable || keep(key));
        kept.map(|(key, object)| (*key, super::world::Object { durable: true, ..object.clone() })).collect()
    };
    let volatile: Vec<_> = objects.iter().filter(|(_, object)| !object.durable).map(|(key, _)| *key).collect();
    let mut left = vec![with(&|_| true)];
    if !volatile.is_empty() {
        left.push(with(&|_| false));
    }
    if volatile.len() > 1 {
        left.extend(volatile.iter().map(|one| with(&|key| key == one)));
    }
    left
}
