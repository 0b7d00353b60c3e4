//! Which bytes of a chunk newer slices hide.
//!
//! Owns: a set of positions, and the effect of cuts on a record.
//! Leaves to others: which records add to a set (`chunk`), what is read where (`file`).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

use crate::types::SliceRecord;

/// A set of positions, as disjoint intervals that do not touch: start to end.
#[derive(Debug, Default)]
pub(super) struct Cover(BTreeMap<u32, u32>);

impl Cover {
    /// Whether all of `[start, end)` is in the set.
    pub(super) fn covers(&self, start: u32, end: u32) -> bool {
        start >= end || self.0.range(..=start).next_back().is_some_and(|(_, &to)| end <= to)
    }

    /// Whether some of `[start, end)` is in the set.
    pub(super) fn touches(&self, start: u32, end: u32) -> bool {
        start < end && self.0.range(..end).next_back().is_some_and(|(_, &to)| start < to)
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

    /// Takes `[start, end)` out.
    pub(super) fn remove(&mut self, start: u32, end: u32) {
        if start >= end {
            return;
        }
        while let Some((&from, &to)) = self.0.range(..end).next_back() {
            if to <= start {
                return;
            }
            self.0.remove(&from);
            if end < to {
                self.0.insert(end, to);
            }
            if from < start {
                self.0.insert(from, start);
            }
        }
    }

    /// What of `[start, end)` is not in the set, in order.
    pub(super) fn gaps(&self, start: u32, end: u32) -> Vec<Range<u32>> {
        let mut gaps = Vec::new();
        let mut at = start;
        let before = self.0.range(..start).next_back();
        for (&from, &to) in before.into_iter().chain(self.0.range(start..end.max(start))) {
            if at < from {
                gaps.push(at..from);
            }
            at = at.max(to);
        }
        if at < end {
            gaps.push(at..end);
        }
        gaps
    }

    /// Number of positions.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|(from, to)| u64::from(to - from)).sum()
    }
}

/// The cuts of a file, as (seq, range of offsets) in the order of seq.
#[derive(Debug, Default)]
pub(super) struct Cuts(pub(super) Vec<(u64, Range<u64>)>);

impl Cuts {
    /// How much of a record with this `seq` in the chunk that starts at `chunk_start` is left of the cuts after it.
    /// A cut that does not reach to the end of the file holds whole chunks, so no record begins in it and ends past it.
    pub(super) fn left(&self, seq: u64, chunk_start: u64, record: &SliceRecord) -> u32 {
        let start = chunk_start + u64::from(record.pos);
        let cuts = self.0.iter().filter(|(at, range)| seq < *at && start < range.end);
        let cut = cuts.map(|(_, range)| range.start).min().unwrap_or(u64::MAX);
        u32::try_from(cut.saturating_sub(start)).unwrap_or(u32::MAX).min(record.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::rng::Rng;

    /// Against a plain array of flags.
    #[test]
    fn a_cover_is_a_set() {
        let (mut cover, mut flags, mut rng) = (Cover::default(), [false; 24], Rng::new(1));
        for _ in 0..20_000 {
            let (start, len) = (rng.below(24) as usize, rng.below(9) as usize);
            let end = (start + len).min(24);
            let (from, to) = (start as u32, end as u32);
            assert_eq!(cover.covers(from, to), flags[start..end].iter().all(|flag| *flag));
            assert_eq!(cover.touches(from, to), flags[start..end].iter().any(|flag| *flag));
            let gaps: Vec<usize> = cover.gaps(from, to).into_iter().flatten().map(|at| at as usize).collect();
            assert_eq!(gaps, (start..end).filter(|at| !flags[*at]).collect::<Vec<usize>>());
            let add = rng.below(2) == 0;
            if add {
                cover.add(from, to)
            } else {
                cover.remove(from, to)
            }
            flags[start..end].fill(add);
            assert_eq!(cover.count(), flags.iter().filter(|flag| **flag).count() as u64);
        }
    }
}
