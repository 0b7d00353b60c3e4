//! Which bytes of a chunk newer slices hide.
//!
//! Owns: a set of covered bytes, and the effect of cuts on a record.
//! Leaves to others: what is read where (`file`).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::types::SliceRecord;

/// A set of positions, as disjoint intervals that do not touch: start to end.
#[derive(Debug, Default)]
pub(super) struct Cover(BTreeMap<u32, u32>);

impl Cover {
    /// Whether all of `[start, end)` is in the set.
    pub(super) fn covers(&self, start: u32, end: u32) -> bool {
        start >= end || self.0.range(..=start).next_back().is_some_and(|(_, &to)| end <= to)
    }

    /// Adds `[start, end)`.
    pub(super) fn add(&mut self, mut start: u32, mut end: u32) {
        if start >= end {
            return;
        }
        // Intervals that begin at or before the new end and reach its start become part of it.
        while let Some((&from, &to)) = self.0.range(..=end).next_back() {
            if to < start {
                break;
            }
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }
}

/// The cuts of a file, as `(seq, offset)` in the order of seq.
#[derive(Debug, Default)]
pub(super) struct Cuts(pub(super) Vec<(u64, u64)>);

impl Cuts {
    /// How much of a record with this `seq` in the chunk that starts at `chunk_start` is left of the cuts after it.
    pub(super) fn left(&self, seq: u64, chunk_start: u64, record: &SliceRecord) -> u32 {
        let start = chunk_start + u64::from(record.pos);
        let cut = self.0.iter().filter(|(at, _)| seq < *at).map(|(_, offset)| *offset).min().unwrap_or(u64::MAX);
        u32::try_from(cut.saturating_sub(start)).unwrap_or(u32::MAX).min(record.len)
    }
}
