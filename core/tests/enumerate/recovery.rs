//! What removes things, and the life after a crash: upkeep in the order of the client's collector, and the checks of
//! the stores as they are.
//!
//! Owns: the order in which objects are destroyed; what must hold of stores whatever was done before.
//! Leaves to others: what the files and names must be (`judge`).

use std::collections::BTreeSet;
use std::ops::Range;

use kiseki_core::format::block::verify_object;
use kiseki_core::format::keys;
use kiseki_core::format::values::Value;
use kiseki_core::kv::Txn;
use kiseki_core::meta::{self, invariant};
use kiseki_core::types::{BlockId, Place, SliceId, SliceRecord};

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
            blocks(slice, len).for_each(|id| self.delete(id));
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
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut findings = Vec::new();
        let checked = invariant::check(self.kv.begin().as_read(), &mut |_| {}, &mut |finding| findings.push(finding));
        checked.map_err(|error| format!("the metadata cannot be checked: {error}"))?;
        if let Some(finding) = findings.first() {
            return Err(format!("the metadata is not whole: {finding:?}"));
        }
        for id in self.referenced() {
            let Some(object) = self.objects.get(&(id.slice, id.index)) else {
                return Err(format!("{id:?} is referred to and is not in the store"));
            };
            verify_object(VOLUME, id, GEOMETRY.frame_size, &object.bytes)
                .map_err(|error| format!("{id:?} is referred to and damaged: {error}"))?;
        }
        Ok(())
    }

    /// What must hold when nothing is under way and nothing dirty: all that is there is used by somebody.
    pub(crate) fn check_tidy(&self) -> Result<(), String> {
        self.check()?;
        let used: BTreeSet<(SliceId, u32)> = self.referenced().into_iter().map(|id| (id.slice, id.index)).collect();
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

    /// Blocks of all slice records.
    fn referenced(&self) -> Vec<BlockId> {
        let (start, end) = keys::all_slices();
        let records = self.read(|read| Ok(read.scan(&start, &end, usize::MAX)?));
        let records = records.iter().map(|(_, value)| SliceRecord::decode(value).expect("it was checked"));
        records
            .filter(|record| record.place == Place::Blocks)
            .flat_map(|record| blocks(record.slice, record.stored_len))
            .collect()
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

/// The blocks of a slice.
fn blocks(slice: SliceId, stored_len: u32) -> impl Iterator<Item = BlockId> {
    (0..GEOMETRY.block_count(stored_len)).map(move |index| {
        let len = (stored_len - index * GEOMETRY.block_size).min(GEOMETRY.block_size);
        BlockId { slice, index, len }
    })
}
