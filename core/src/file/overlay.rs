//! Newer over older: which source shows at each byte of a range.
//!
//! Owns: the interval map. Leaves to others: what a source is and where its bytes are.
//!
//! Invariants
//! - Intervals are not empty and do not overlap.
//! - After `paint(range, source)` exactly `range` shows `source`; every other byte shows what it showed before.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// Something that can show at an interval.
pub trait Source: Clone {
    /// The same source as seen from `n` bytes further on.
    fn skip(&self, n: u64) -> Self;
    /// Whether `next` is this source as seen from `n` bytes further on, so that one interval can show both. (Need not be told.)
    fn goes_on(&self, n: u64, next: &Self) -> bool {
        _ = (n, next);
        false
    }
}

/// A part of a planned range and what shows there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<S> {
    /// The bytes, in the coordinates of the overlay. (not empty)
    pub range: Range<u64>,
    /// `None`: nothing was ever painted there.
    pub source: Option<S>,
}

/// An ordered map of painted intervals.
#[derive(Clone, Debug)]
pub struct Overlay<S> {
    /// start -> (end, source)
    map: BTreeMap<u64, (u64, S)>,
}

impl<S> Default for Overlay<S> {
    fn default() -> Self {
        Self { map: BTreeMap::new() }
    }
}

impl<S: Source> Overlay<S> {
    /// Nothing painted at all.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Number of intervals.
    pub fn count(&self) -> usize {
        self.map.len()
    }

    /// Lays `source` over `range`; its first byte shows at `range.start`.
    pub fn paint(&mut self, range: Range<u64>, source: S) {
        if range.is_empty() {
            return;
        }
        self.clear(range.clone());
        if let Some((&start, (end, before))) = self.map.range_mut(..range.start).next_back()
            && *end == range.start
            && before.goes_on(range.start - start, &source)
        {
            *end = range.end;
            return;
        }
        self.map.insert(range.start, (range.end, source));
    }

    /// Makes `range` show nothing.
    pub fn clear(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((&start, &(end, ref source))) = self.map.range(..range.start).next_back()
            && end > range.start
        {
            let tail = (end > range.end).then(|| (range.end, (end, source.skip(range.end - start))));
            self.map.get_mut(&start).expect("it was just found").0 = range.start;
            self.map.extend(tail);
        }
        while let Some((&start, &(end, ref source))) = self.map.range(range.clone()).next() {
            let tail = (end > range.end).then(|| (range.end, (end, source.skip(range.end - start))));
            self.map.remove(&start);
            self.map.extend(tail);
        }
    }

    /// Where the painted interval that holds `at` ends.
    pub fn end_of(&self, at: u64) -> Option<u64> {
        self.holding(at).map(|(end, _)| end)
    }

    /// What shows at `at`.
    pub fn get(&self, at: u64) -> Option<&S> {
        self.holding(at).map(|(_, source)| source)
    }

    /// What shows in `range`.
    pub fn sources(&self, range: Range<u64>) -> impl Iterator<Item = &S> {
        self.intervals(range).map(|(_, _, source)| source)
    }

    /// Removes every interval that reaches into `range` and whose source is not kept.
    pub fn retain_in(&mut self, range: Range<u64>, mut keep: impl FnMut(&S) -> bool) {
        let Some((from, ..)) = self.intervals(range.clone()).next() else { return };
        self.map.extract_if(from..range.end, |_, (_, source)| !keep(source)).for_each(drop);
    }

    /// Removes every interval whose source is not kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&S) -> bool) {
        self.map.retain(|_, (_, source)| keep(source));
    }

    /// The pieces of `range`, in order and without gaps: together they are `range`.
    pub fn plan(&self, range: Range<u64>) -> Vec<Piece<S>> {
        let mut pieces = Vec::new();
        if range.is_empty() {
            return pieces;
        }
        let mut at = range.start;
        for (start, end, source) in self.intervals(range.clone()) {
            if start > at {
                pieces.push(Piece { range: at..start, source: None });
            }
            let from = start.max(range.start);
            let to = end.min(range.end);
            pieces.push(Piece { range: from..to, source: Some(source.skip(from - start)) });
            at = to;
        }
        if at < range.end {
            pieces.push(Piece { range: at..range.end, source: None });
        }
        pieces
    }

    /// The interval that holds `at`: its end, and its source as seen from its start.
    fn holding(&self, at: u64) -> Option<(u64, &S)> {
        let (_, (end, source)) = self.map.range(..=at).next_back()?;
        (at < *end).then_some((*end, source))
    }

    /// Start, end and source of all that reach into `range`, in order.
    fn intervals(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64, &S)> {
        let first = self.map.range(..range.start).next_back().filter(|(_, (end, _))| *end > range.start);
        let rest = self.map.range(range.start..range.end.max(range.start));
        first.into_iter().chain(rest).map(|(start, (end, source))| (*start, *end, source))
    }

    /// Panics if an invariant does not hold.
    pub fn check(&self) {
        let mut last = 0;
        for (&start, &(end, _)) in &self.map {
            assert!(start < end, "an interval is empty");
            assert!(last <= start, "intervals overlap");
            last = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Mark(char, u64);
    impl Source for Mark {
        fn skip(&self, n: u64) -> Self {
            Self(self.0, self.1 + n)
        }

        fn goes_on(&self, n: u64, next: &Self) -> bool {
            self.skip(n) == *next
        }
    }

    /// Each paint lays `0..` of its letter; the expected text shows letter and source offset modulo 10.
    fn check(paints: &[(Range<u64>, char)], expected: &str) {
        let mut overlay = Overlay::default();
        for (range, letter) in paints {
            match letter {
                '.' => overlay.clear(range.clone()),
                _ => overlay.paint(range.clone(), Mark(*letter, 0)),
            }
            overlay.check();
        }
        let mut text = alloc::string::String::new();
        for piece in overlay.plan(0..10) {
            for i in 0..piece.range.end - piece.range.start {
                match &piece.source {
                    None => text.push_str(".. "),
                    Some(Mark(letter, off)) => text.push_str(&alloc::format!("{letter}{} ", (off + i) % 10)),
                }
            }
        }
        assert_eq!(text.trim_end(), expected);
    }

    #[test]
    fn newer_lies_over_older() {
        check(&[], ".. .. .. .. .. .. .. .. .. ..");
        check(&[(2..5, 'a')], ".. .. a0 a1 a2 .. .. .. .. ..");
        check(&[(0..10, 'a'), (3..6, 'b')], "a0 a1 a2 b0 b1 b2 a6 a7 a8 a9");
        check(&[(0..4, 'a'), (6..9, 'b'), (2..8, 'c')], "a0 a1 c0 c1 c2 c3 c4 c5 b2 ..");
        check(&[(2..8, 'a'), (2..8, 'b')], ".. .. b0 b1 b2 b3 b4 b5 .. ..");
        check(&[(2..4, 'a'), (5..6, 'b'), (1..9, 'c')], ".. c0 c1 c2 c3 c4 c5 c6 c7 ..");
        check(&[(0..10, 'a'), (4..20, '.')], "a0 a1 a2 a3 .. .. .. .. .. ..");
        check(&[(0..10, 'a'), (4..5, '.')], "a0 a1 a2 a3 .. a5 a6 a7 a8 a9");
    }

    #[test]
    fn what_goes_on_is_one_interval() {
        let mut overlay = Overlay::default();
        overlay.paint(10..20, Mark('a', 0));
        for (range, source, count) in
            [(20..30, Mark('a', 10), 1), (30..40, Mark('a', 10), 2), (40..50, Mark('b', 20), 3)]
        {
            overlay.paint(range.clone(), source.clone());
            overlay.check();
            assert_eq!(overlay.count(), count);
            assert_eq!(overlay.plan(range.clone()), [Piece { range, source: Some(source) }]);
        }
    }

    #[test]
    fn only_what_reaches_into_a_range_is_not_retained() {
        let mut overlay = Overlay::default();
        for (range, letter) in [(0..10, 'a'), (10..20, 'b'), (20..30, 'a'), (40..50, 'a'), (50..60, 'a')] {
            overlay.paint(range, Mark(letter, 7));
        }
        overlay.retain_in(5..45, |source| source.0 != 'a');
        overlay.check();
        let left: Vec<Range<u64>> = overlay.plan(0..60).into_iter().filter_map(|p| p.source.map(|_| p.range)).collect();
        assert_eq!(left, [10..20, 50..60]);
        assert_eq!(
            (overlay.get(19), overlay.get(20), overlay.get(59)),
            (Some(&Mark('b', 7)), None, Some(&Mark('a', 7)))
        );
        assert_eq!(overlay.sources(15..51).map(|source| source.0).collect::<Vec<_>>(), ['b', 'a']);
    }

    #[test]
    fn a_plan_may_start_inside_an_interval() {
        let mut overlay = Overlay::default();
        overlay.paint(0..100, Mark('a', 0));
        assert_eq!(overlay.plan(40..42), [Piece { range: 40..42, source: Some(Mark('a', 40)) }]);
        assert_eq!(overlay.plan(42..42), []);
    }
}
