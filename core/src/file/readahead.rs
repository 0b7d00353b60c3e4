//! What one handle will read next, judged from what it has read.
//!
//! Invariants
//! - A handle that does not read on from where it (nearly) stopped gets nothing.
//! - What was asked for once is not asked for again while the stream goes on.

use core::ops::Range;

/// The reads of one handle. Kernel readahead may swap neighbouring requests, so "nearly" is one window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readahead {
    /// End of the furthest read of the stream.
    end: u64,
    /// Bytes to stay ahead; doubles while the stream goes on. (0: no stream seen)
    window: u64,
    /// Everything below was asked for.
    asked: u64,
}

impl Readahead {
    /// The last read went on where an earlier one stopped.
    pub fn is_stream(&self) -> bool {
        self.window > 0
    }

    /// Notes a read of `range` and returns what to fetch ahead of it. `step` is the least window (a block), `max` the
    /// greatest.
    pub fn on_read(&mut self, range: Range<u64>, step: u64, max: u64) -> Range<u64> {
        let near = range.start <= self.end.saturating_add(self.window.max(1)) && range.end + step > self.end;
        let goes_on = if self.end == 0 { range.start == 0 } else { near };
        if !goes_on {
            *self = Self { end: range.end, window: 0, asked: range.end };
            return 0..0;
        }
        if range.end <= self.end {
            return 0..0;
        }
        self.end = range.end;
        self.window = (self.window * 2).clamp(step.min(max), max);
        let from = self.asked.max(self.end);
        let to = self.end + self.window;
        // Ask for half a window at a time at least, so that fetches are whole blocks, not slivers.
        if to < from + step.min(self.window) / 2 {
            return 0..0;
        }
        self.asked = to;
        from..to
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::rng::Rng;

    #[test]
    fn a_stream_is_fetched_once_and_ahead() {
        let mut readahead = Readahead::default();
        assert!(!readahead.is_stream());
        let mut asked = 1 << 20;
        for i in 0..64u64 {
            let range = i << 20..(i + 1) << 20;
            let ahead = readahead.on_read(range.clone(), 4 << 20, 16 << 20);
            if !ahead.is_empty() {
                assert!(ahead.start >= asked && ahead.start >= range.end);
                asked = ahead.end;
            }
            assert!(asked >= range.end + (2 << 20), "the stream is not ahead at {i}");
            assert!(readahead.is_stream());
        }
    }

    #[test]
    fn random_reads_ask_for_nothing() {
        let mut readahead = Readahead::default();
        let mut rng = Rng::new(77);
        for _ in 0..1000 {
            let start = (1 << 30) + (rng.below(1 << 31) << 12);
            assert!(readahead.on_read(start..start + 4096, 4 << 20, 16 << 20).is_empty());
            assert!(!readahead.is_stream());
        }
    }
}
