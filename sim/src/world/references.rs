//! Which slices the metadata refers to, in the last state and in every state that a crash could leave.
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
}

/// The references; clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct References(Arc<Mutex<State>>);

impl References {
    /// Starts again, after a crash.
    pub(super) fn reset(&self, slices: impl IntoIterator<Item = SliceId>, synced: TxnSeq) {
        *self.0.lock().unwrap() = State { synced, ..State::default() };
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
        state.synced = state.synced.max(seq);
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
