//! A set of identifiers, small where they are dense, as leased ids are.

use alloc::collections::BTreeMap;

/// A set of `u64`: 64 neighbours per entry.
#[derive(Debug, Default)]
pub(super) struct IdSet(BTreeMap<u64, u64>);

impl IdSet {
    /// Adds `id`; false if it was there.
    pub(super) fn insert(&mut self, id: u64) -> bool {
        let word = self.0.entry(id / 64).or_default();
        let bit = 1 << (id % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    /// Whether `id` is there.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.0.get(&(id / 64)).is_some_and(|word| word & (1 << (id % 64)) != 0)
    }
}
