//! What one handle will read next, judged from what it has read.
//!
//! Invariants
//! - A read that goes on from no earlier one, and makes no third equal step, asks for nothing.
//! - What was asked for once is not asked for again while its stream goes on.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Streams of one handle that are told apart: a program reads a few places of a file in turn, or a few threads do.
const STREAMS: usize = 4;
/// Steps that are fetched ahead of a reader that leaves out parts of the file.
const STEPS_MAX: u64 = 4;

/// A run of reads.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Start of the last read.
    start: u64,
    /// End of the furthest read.
    end: u64,
    /// Distance of the starts. (0: each read goes on where another stopped)
    stride: u64,
    /// Bytes to stay ahead; doubles while the stream goes on. (0: a single read)
    window: u64,
    /// Everything below was asked for.
    asked: u64,
    /// When it went on last, in reads of the handle. (0: never)
    used: u64,
}

impl Stream {
    /// Whether `range` goes on where this stream is. Kernel readahead may swap neighbouring requests, so "where" is one
    /// window; of a single read it is one read.
    fn goes_on(&self, range: &Range<u64>, step: u64) -> bool {
        if self.used == 0 {
            return false;
        }
        let steps_on = self.stride > 0 && range.start == self.start.saturating_add(self.stride);
        if self.window == 0 {
            return steps_on || range.start.abs_diff(self.end) <= range.end - range.start;
        }
        if self.stride > 0 {
            return steps_on;
        }
        range.start <= self.end.saturating_add(self.window) && self.end < range.end + step
    }

    /// Notes a read that goes on, and returns what to fetch ahead of it.
    fn go_on(&mut self, range: &Range<u64>, step: u64, max: u64) -> Vec<Range<u64>> {
        if range.start != self.start.saturating_add(self.stride) {
            self.stride = 0;
        }
        self.start = range.start;
        if range.end <= self.end {
            return Vec::new();
        }
        self.end = range.end;
        self.window = (self.window * 2).clamp(step.min(max), max);
        if self.skips(step) {
            let steps = (self.window / step).clamp(1, STEPS_MAX);
            let next = (1..=steps).map(|count| range.start.saturating_add(count * self.stride));
            let next = next.filter(|start| self.asked <= *start).map(|start| start..start + (range.end - range.start));
            let next: Vec<Range<u64>> = next.collect();
            self.asked = next.last().map_or(self.asked, |last| last.end);
            return next;
        }
        let from = self.asked.max(self.end);
        let to = self.end + self.window;
        // Ask for half a window at a time at least, so that fetches are whole blocks, not slivers.
        if to < from + step.min(self.window) / 2 {
            return Vec::new();
        }
        self.asked = to;
        vec![Range { start: from, end: to }]
    }

    /// It leaves out whole blocks.
    fn skips(&self, step: u64) -> bool {
        self.stride > step
    }
}

/// What to do for a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advice {
    /// The read is part of a stream that will want the rest of the blocks that it touches.
    pub stream: bool,
    /// What to fetch ahead of it, in order.
    pub ahead: Vec<Range<u64>>,
}

/// The reads of one handle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readahead {
    streams: [Stream; STREAMS],
    /// Starts of the last two reads that went on from none.
    single: [Option<u64>; 2],
    reads: u64,
}

impl Readahead {
    /// Notes a read of `range`, which is not empty. `step` is the least window (a block), `max` the greatest.
    pub fn on_read(&mut self, range: Range<u64>, step: u64, max: u64) -> Advice {
        self.reads += 1;
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.goes_on(&range, step)) {
            stream.used = self.reads;
            // Of a block that little is taken of, the rest is not worth its fetch.
            let sparse = stream.skips(step) && 4 * (range.end - range.start) < step;
            let ahead = stream.go_on(&range, step, max);
            return if sparse { Advice::default() } else { Advice { stream: true, ahead } };
        }
        let [first, second] = self.single;
        self.single = [second, Some(range.start)];
        let step_to = |from: Option<u64>, to: u64| from.and_then(|from| to.checked_sub(from));
        let last = step_to(second, range.start).filter(|last| second.and_then(|at| step_to(first, at)) == Some(*last));
        let stride = last.unwrap_or(0);
        let fresh =
            Stream { start: range.start, end: range.end, stride, window: 0, asked: range.end, used: self.reads };
        // A stream that has gone on is worth more than a single read, and among equals the one that did so last.
        let worth = |stream: &&mut Stream| (stream.window > 0 && self.reads < stream.used + 64, stream.used);
        let oldest = self.streams.iter_mut().min_by_key(worth).expect("there are some");
        *oldest = fresh;
        // Who begins at the beginning will go on.
        if range.start == 0 {
            oldest.end = 0;
            return Advice { stream: true, ahead: oldest.go_on(&range, step, max) };
        }
        Advice::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::rng::Rng;

    const STEP: u64 = 4 << 20;
    const MAX: u64 = 16 << 20;

    /// A reader of 1 MiB at a time that starts at `start`; how far it is ahead after each read is checked.
    fn stream(readahead: &mut Readahead, start: u64, reads: Range<u64>, asked: &mut u64) {
        for i in reads {
            let range = start + (i << 20)..start + ((i + 1) << 20);
            let advice = readahead.on_read(range.clone(), STEP, MAX);
            for ahead in advice.ahead {
                assert!(ahead.start >= *asked && ahead.start >= range.end, "asked again at {i}");
                *asked = ahead.end;
            }
            if i > 0 || start == 0 {
                assert!(advice.stream);
                assert!(*asked >= range.end + (2 << 20), "the stream is not ahead at {i}");
            }
        }
    }

    #[test]
    fn a_stream_is_fetched_once_and_ahead() {
        let mut readahead = Readahead::default();
        stream(&mut readahead, 0, 0..64, &mut 0);
        stream(&mut Readahead::default(), 7 << 30, 0..64, &mut 0);
    }

    #[test]
    fn streams_in_turn_are_each_fetched() {
        let mut readahead = Readahead::default();
        let mut asked = [0; STREAMS];
        for i in 0..64 {
            for (number, asked) in asked.iter_mut().enumerate() {
                // At distances that differ: equal ones are steps.
                stream(&mut readahead, (number as u64).pow(2) << 32, i..i + 1, asked);
            }
        }
    }

    #[test]
    fn random_reads_ask_for_nothing() {
        let mut readahead = Readahead::default();
        let mut rng = Rng::new(77);
        for _ in 0..1000 {
            let start = (1 << 30) + (rng.below(1 << 31) << 12);
            assert_eq!(readahead.on_read(start..start + 4096, STEP, MAX), Advice::default());
        }
    }

    #[test]
    fn a_stream_goes_on_among_random_reads() {
        let mut readahead = Readahead::default();
        let (mut rng, mut asked) = (Rng::new(78), 0);
        for i in 0..64 {
            stream(&mut readahead, 0, i..i + 1, &mut asked);
            for _ in 0..8 {
                let start = (1 << 30) + (rng.below(1 << 31) << 12);
                assert_eq!(readahead.on_read(start..start + 4096, STEP, MAX), Advice::default());
            }
        }
    }

    #[test]
    fn equal_steps_are_followed() {
        let check = |stride: u64, len: u64, expected: fn(u64, u64) -> Option<Range<u64>>| {
            let mut readahead = Readahead::default();
            let mut asked = Vec::new();
            for i in 1..20 {
                asked.extend(readahead.on_read(i * stride..i * stride + len, STEP, MAX).ahead);
            }
            assert_eq!(asked.first().cloned(), expected(stride, len), "stride {stride}, {len} bytes");
            assert!(asked.windows(2).all(|pair| pair[0].end <= pair[1].start), "asked twice: {asked:?}");
        };
        // Whole blocks are left out: each next step, from the fourth read on.
        check(64 << 20, 2 << 20, |stride, len| Some(5 * stride..5 * stride + len));
        // Every block is touched: what comes next, whole.
        check(2 << 20, 64 << 10, |stride, len| Some(4 * stride + len..4 * stride + len + STEP));
        // Little of each block: nothing.
        check(64 << 20, 4096, |_, _| None);
    }
}
