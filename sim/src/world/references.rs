//! Which slices the metadata refers to, in the last state and in every state that a crash could leave; and whether it
//! says that there is a write-back log.
//!
//! Owns: the counts, and since when a slice is free. Leaves to others: reading records (`meta`), objecting (`objects`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kiseki_core::env::TxnSeq;
use kiseki_core::types::SliceId;

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<SliceId, u64>,
    freed: BTreeMap<SliceId, TxnSeq>,
    synced: TxnSeq,
    /// Epoch of the volume's log in the durable state (0: it has none), and since when it is another.
    home: u64,
    homes: Vec<(TxnSeq, u64)>,
}

/// The references; clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct References(Arc<Mutex<State>>);

impl References {
    /// Starts again, after a crash.
    pub(super) fn reset(&self, slices: impl IntoIterator<Item = SliceId>, synced: TxnSeq, home: u64) {
        *self.0.lock().unwrap() = State { synced, home, ..State::default() };
        slices.into_iter().for_each(|slice| self.enter(slice));
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
