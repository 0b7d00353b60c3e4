//! Which slices the metadata refers to, in the last state and in every state that a crash could leave; which blocks it
//! says are in packs, and whether it says that there is a write-back log.
//!
//! Owns: the counts, and since when a slice is free. Leaves to others: reading records (`meta`), objecting (`objects`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kiseki_core::env::TxnSeq;
use kiseki_core::format::values::Packed;
use kiseki_core::types::{PackId, SliceId};

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<SliceId, u64>,
    freed: BTreeMap<SliceId, TxnSeq>,
    synced: TxnSeq,
    /// Epoch of the volume's log in the durable state (0: it has none), and since when it is another.
    home: u64,
    homes: Vec<(TxnSeq, u64)>,
    /// Where blocks are in packs: in the durable state, and what has changed since.
    packed: BTreeMap<Block, Vec<(TxnSeq, Option<Packed>)>>,
}

/// A slice, and which of its blocks.
type Block = (SliceId, u32);

/// The references; clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct References(Arc<Mutex<State>>);

impl References {
    /// Starts again, after a crash.
    pub(super) fn reset(
        &self,
        slices: impl IntoIterator<Item = SliceId>,
        packed: Vec<(Block, Packed)>,
        synced: TxnSeq,
        home: u64,
    ) {
        *self.0.lock().unwrap() = State { synced, home, ..State::default() };
        slices.into_iter().for_each(|slice| self.enter(slice));
        for (block, packed) in packed {
            self.enter_packed(block, Some(packed), synced);
        }
    }

    /// A block is in a pack, or is not any more, by the transaction at `seq`. False: it was deleted, and is in one again.
    pub(super) fn enter_packed(&self, block: Block, packed: Option<Packed>, seq: TxnSeq) -> bool {
        let mut state = self.0.lock().unwrap();
        let past = state.packed.entry(block).or_default();
        let deleted = past.last().is_some_and(|(_, packed)| packed.is_none());
        past.push((seq, packed));
        !deleted || packed.is_none()
    }

    /// Where every crash would leave a block, if that is in a pack.
    pub(super) fn packed(&self, block: Block) -> Option<Packed> {
        let state = self.0.lock().unwrap();
        let (_, durable) = state.packed.get(&block)?.iter().rfind(|(seq, _)| *seq <= state.synced)?;
        *durable
    }

    /// Why a pack must not be destroyed yet, if so.
    pub(super) fn pack_needed(&self, pack: PackId) -> Option<String> {
        let blocks: Vec<Block> = {
            let state = self.0.lock().unwrap();
            let is_in = |past: &[(TxnSeq, Option<Packed>)]| {
                let durable = past.iter().rposition(|(seq, _)| *seq <= state.synced).unwrap_or(0);
                past[durable..].iter().any(|(_, packed)| packed.is_some_and(|packed| packed.pack == pack))
            };
            state.packed.iter().filter(|(_, past)| is_in(past)).map(|(block, _)| *block).collect()
        };
        blocks.iter().find_map(|(slice, index)| {
            let why = self.still_needed(*slice)?;
            Some(format!("a crash may leave block {index} of slice {} in it, and {why}", slice.0))
        })
    }

    /// A record of `slice` came.
    pub(super) fn enter(&self, slice: SliceId) {
        *self.0.lock().unwrap().counts.entry(slice).or_default() += 1;
    }

    /// A record of `slice` went, by the transaction at `seq`.
    pub(super) fn leave(&self, slice: SliceId, seq: TxnSeq) {
        let mut state = self.0.lock().unwrap();
        let count = state.counts.get_mut(&slice).expect("it was counted");
        *count -= 1;
        if *count == 0 {
            state.counts.remove(&slice);
            state.freed.insert(slice, seq);
        }
    }

    /// No crash goes back below `seq`.
    pub(super) fn synced(&self, seq: TxnSeq) {
        let mut state = self.0.lock().unwrap();
        let synced = state.synced.max(seq);
        state.synced = synced;
        let count = state.homes.iter().take_while(|(seq, _)| *seq <= synced).count();
        let durable = state.homes.drain(..count).next_back();
        state.home = durable.map_or(state.home, |(_, home)| home);
    }

    /// The volume has a log of this epoch (0: none), by the transaction at `seq`.
    pub(super) fn enter_home(&self, home: u64, seq: TxnSeq) {
        self.0.lock().unwrap().homes.push((seq, home));
    }

    /// Epoch of the volume's log, 0 if it has none, as far as that is durable.
    pub(super) fn home(&self) -> u64 {
        self.0.lock().unwrap().home
    }

    /// Why the blocks of `slice` must not be destroyed yet, if so.
    pub(super) fn still_needed(&self, slice: SliceId) -> Option<&'static str> {
        let state = self.0.lock().unwrap();
        if state.counts.contains_key(&slice) {
            return Some("its slice is referred to");
        }
        let freed = *state.freed.get(&slice)?;
        (freed > state.synced).then_some("the transaction that gave its slice up is not synced")
    }
}
