//! Packs: what `client::log::packs` does, one step after the other.
//!
//! Owns: the order of put, barrier and metadata for packs; removing those that nothing needs, rewriting those that are
//! mostly dead. Leaves to others: what goes into a pack (`store::log`, of the core), what the metadata says
//! (`meta::packs`).

use bytes::Bytes;
use kiseki_core::format::block::parse_key;
use kiseki_core::format::pack::blocks;
use kiseki_core::format::values::Pack;
use kiseki_core::meta;
use kiseki_core::meta::packs::{Member, Origin};
use kiseki_core::store::log::{Packing, Stored};
use kiseki_core::types::{PackId, SliceId};

use super::{Event, GEOMETRY, Name, VOLUME, World};
use crate::mistakes::Mistake;

/// Packs that are rewritten have numbers of their own.
const REWRITTEN: u32 = 1 << 31;

impl World {
    // --- putting

    /// `upload_pack`.
    pub(super) fn upload_pack(&mut self, packing: &Packing) {
        let objects: Vec<Bytes> = packing.members.iter().map(|member| self.staged(member)).collect();
        self.put_pack(packing.pack, objects.concat().into());
        self.staging().log.handle_pack(std::time::Duration::ZERO, packing.pack, true);
    }

    /// The metadata knows of a pack, durably, before it is put.
    fn put_pack(&mut self, pack: PackId, bytes: Bytes) {
        let begun = self.txn(Event::Txn("begin a pack"), |txn, _| meta::packs::begin(txn, pack));
        begun.expect("there is a volume");
        if self.mistake != Some(Mistake::PackUnannounced) {
            self.sync();
        }
        self.put_object(Name::Pack(pack), bytes);
    }

    /// `record`: the metadata is told what is in a pack that a barrier has covered; then its log records may go.
    pub(super) fn record(&mut self, pack: PackId) {
        let (len, stored) = self.staging().log.begin_recording(pack);
        let member = |Stored { key, at, len }: &Stored| {
            let (slice, index) = parse_key(key).expect("the key of a block");
            (Member { slice, index, at: *at as u32, len: *len as u32 }, Origin::Anywhere)
        };
        let members: Vec<_> = stored.iter().map(member).collect();
        let emptied = if members.is_empty() { vec![pack] } else { self.tell(pack, len as u32, &members) };
        self.staging().log.handle_recorded(pack, &stored, true);
        self.bury(&emptied);
        let live = members.iter().map(|(member, _)| member.len).sum();
        if self.mistake != Some(Mistake::ThinUnweighed) && (Pack { len: len as u32, live, condemned: false }).is_thin()
        {
            self.staging().thin.insert(pack);
        }
    }

    /// Which packs that has left without a block.
    fn tell(&mut self, pack: PackId, len: u32, members: &[(Member, Origin)]) -> Vec<PackId> {
        let told =
            self.txn(Event::Txn("say what is in a pack"), |txn, _| meta::packs::move_to(txn, pack, len, members));
        if self.mistake != Some(Mistake::PackUnsynced) {
            self.sync();
        }
        told.expect("it was begun, and is not condemned")
    }

    // --- removing

    /// `unpack`: the block leaves its pack, if it is in one.
    pub(super) fn unpack(&mut self, slice: SliceId, index: u32) {
        let removed = self.txn(Event::Txn("unpack"), |txn, _| meta::packs::remove(txn, slice, index));
        let Some((packed, pack)) = removed.expect("packs are whole") else { return };
        self.staging().unpacked = self.kv.last();
        if pack.live == 0 || self.mistake == Some(Mistake::PackDeletedInUse) {
            self.bury(&[packed.pack]);
        } else if pack.is_thin() {
            self.staging().thin.insert(packed.pack);
        }
    }

    /// Nothing is in these packs.
    fn bury(&mut self, packs: &[PackId]) {
        let staging = self.staging();
        for pack in packs {
            staging.thin.remove(pack);
            staging.dead.insert(*pack);
        }
    }

    /// `look_behind`: what earlier mounts have left half-way, or mostly dead.
    pub(super) fn look_behind(&mut self) {
        if self.mistake == Some(Mistake::KeepPacks) {
            return;
        }
        let packs = self.read(|read| meta::packs::all(read, None, usize::MAX));
        let staging = self.staging();
        for (pack, known) in packs {
            if known.live == 0 {
                staging.dead.insert(pack);
            } else if known.is_thin() {
                staging.thin.insert(pack);
            }
        }
    }

    /// `work`: removes and rewrites until there is nothing to do.
    pub(crate) fn tend_packs(&mut self) {
        while let Some(staging) = &self.staging {
            if !staging.dead.is_empty() {
                self.remove_packs();
            } else if !staging.thin.is_empty() {
                self.rewrite_packs();
            } else {
                return;
            }
        }
    }

    /// `remove`: condemned, durably; deleted, durably; forgotten.
    fn remove_packs(&mut self) {
        let dead: Vec<PackId> = std::mem::take(&mut self.staging().dead).into_iter().collect();
        let condemned = self.txn(Event::Txn("condemn packs"), |txn, _| meta::packs::condemn(txn, &dead));
        self.sync();
        let mut condemned = condemned.expect("packs are whole");
        if self.mistake == Some(Mistake::PackDeletedInUse) {
            condemned.clone_from(&dead);
        }
        let early = self.mistake == Some(Mistake::PackForgottenFirst);
        if early {
            self.forget_packs(&condemned);
            self.sync();
        }
        condemned.iter().for_each(|pack| self.delete_object(Name::Pack(*pack)));
        if self.mistake != Some(Mistake::DeleteWithoutBarrier) {
            self.store_barrier();
        }
        if !early {
            self.forget_packs(&condemned);
        }
    }

    fn forget_packs(&mut self, packs: &[PackId]) {
        self.txn(Event::Txn("forget packs"), |txn, _| meta::packs::forget(txn, packs)).expect("packs are whole");
    }

    // --- rewriting

    /// `rewrite`: what is in use of packs that are mostly dead goes into a new one.
    fn rewrite_packs(&mut self) {
        let staging = self.staging();
        staging.rewritten += 1;
        let new = PackId::new(staging.epoch, REWRITTEN | staging.rewritten);
        let thin = std::mem::take(&mut staging.thin);
        let (mut body, mut members) = (Vec::new(), Vec::new());
        for pack in thin {
            for (member, bytes) in self.in_use(pack) {
                members.push((Member { at: body.len() as u32, ..member }, Origin::Pack(pack)));
                body.extend_from_slice(&bytes);
            }
        }
        let len = body.len() as u32;
        self.put_pack(new, body.into());
        if self.mistake != Some(Mistake::RewriteUncovered) {
            self.store_barrier();
        }
        let emptied = self.tell(new, len, &members);
        self.bury(&emptied);
    }

    /// The blocks that are in a pack still, with their objects.
    fn in_use(&self, pack: PackId) -> Vec<(Member, Bytes)> {
        let bytes = self.objects.get(Name::Pack(pack)).expect("it is in use");
        let found = blocks(VOLUME, GEOMETRY.frame_size, bytes).expect("packs are whole");
        let live = found.into_iter().filter_map(|(id, range)| {
            let packed = self.read(|read| meta::packs::find(read, id.slice, id.index))?;
            let here = packed.pack == pack && packed.at as usize == range.start;
            let member = Member { slice: id.slice, index: id.index, at: 0, len: packed.len };
            here.then(|| (member, bytes.slice(range)))
        });
        live.collect()
    }

    /// What must hold of packs when nothing is under way: each of them is in the store and mostly in use, and nothing else
    /// is said to be in one.
    pub(crate) fn check_packs(&self, wanted: impl Fn((SliceId, u32)) -> bool) -> Result<(), String> {
        let known = self.read(|read| meta::packs::all(read, None, usize::MAX));
        for (pack, state) in &known {
            if state.live == 0 || state.is_thin() || self.objects.get(Name::Pack(*pack)).is_none() {
                return Err(format!("{} is left: {state:?}", Name::Pack(*pack)));
            }
        }
        for name in self.objects.names() {
            if let Name::Pack(pack) = name
                && !known.iter().any(|(known, _)| *known == pack)
            {
                return Err(format!("{name} is left, and the metadata does not know it"));
            }
        }
        let packed = self.read(|read| meta::packs::list(read, None, SliceId(u64::MAX), usize::MAX));
        match packed.into_iter().find(|block| !wanted(*block)) {
            Some((slice, index)) => Err(format!("block {}-{index} is in a pack, and nothing refers to it", slice.0)),
            None => Ok(()),
        }
    }
}
