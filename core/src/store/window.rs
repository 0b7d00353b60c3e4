//! What is fetched of a pack beside the block that is asked for: the blocks that lie behind it, if they are read in turn.
//!
//! Owns: seeing that packs are read in order, the bytes that were fetched ahead. Leaves to others: fetching (`client::log`).
//!
//! Invariant: no byte is given twice. A pack never changes and its identity never comes again, but an answer of the store
//! may be damaged: who asks again has verified what came, and gets it from the store. And what is given is a copy: a block
//! in the cache must not hold a window in memory that nobody counts.

use alloc::collections::VecDeque;
use core::ops::Range;

use bytes::Bytes;

use crate::types::PackId;

/// Most that is fetched at once.
const WINDOW_MAX: u64 = 1 << 20;
/// Windows that are kept, and packs of which it is known how far they were read: as many readers as are served in turn.
const KEPT: usize = 8;

/// Where a pack was read last, and how much is fetched the next time.
#[derive(Debug)]
struct Reader {
    pack: PackId,
    end: u64,
    window: u64,
}

#[derive(Debug)]
struct Window {
    pack: PackId,
    /// Of what was not given yet.
    start: u64,
    bytes: Bytes,
}

/// Windows into packs, at most `KEPT` of `WINDOW_MAX` bytes.
#[derive(Debug, Default)]
pub struct Windows {
    kept: VecDeque<Window>,
    readers: VecDeque<Reader>,
}

impl Windows {
    /// `range` of a pack, if it was fetched with something else.
    pub fn find(&mut self, pack: PackId, range: &Range<u64>) -> Option<Bytes> {
        let holds = |window: &Window| {
            let end = window.start + window.bytes.len() as u64;
            window.pack == pack && window.start <= range.start && range.end <= end
        };
        let found = self.kept.iter_mut().find(|window| holds(window))?;
        let (start, end) = ((range.start - found.start) as usize, (range.end - found.start) as usize);
        let bytes = Bytes::copy_from_slice(&found.bytes[start..end]);
        (found.start, found.bytes) = (range.end, found.bytes.slice(end..));
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.pack == pack) {
            reader.end = range.end;
        }
        Some(bytes)
    }

    /// What to fetch of a pack of `len` bytes where `range` is asked for: more each time that it goes on where it ended.
    pub fn plan(&mut self, pack: PackId, range: &Range<u64>, len: u64) -> Range<u64> {
        let asked = range.end - range.start;
        let before = self.readers.iter().position(|reader| reader.pack == pack).and_then(|at| self.readers.remove(at));
        let window = match before {
            Some(reader) if reader.end == range.start => (2 * reader.window.max(asked)).min(WINDOW_MAX),
            Some(_) | None => 0,
        };
        self.readers.push_front(Reader { pack, end: range.end, window: window.max(asked) });
        self.readers.truncate(KEPT);
        range.start..(range.start + window).min(len).max(range.end)
    }

    /// This was fetched at `start` of a pack: the `asked` bytes that were asked for, and what is kept.
    pub fn keep(&mut self, pack: PackId, start: u64, mut bytes: Bytes, asked: u64) -> Bytes {
        if asked == bytes.len() as u64 {
            return bytes;
        }
        let given = Bytes::copy_from_slice(&bytes.split_to(asked as usize));
        self.kept.push_front(Window { pack, start: start + asked, bytes });
        self.kept.truncate(KEPT);
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: PackId = PackId(7);

    /// Bytes that are fetched for each of some ranges of a pack of 1000, one after the other.
    fn fetched(ranges: impl IntoIterator<Item = Range<u64>>) -> alloc::vec::Vec<u64> {
        let mut windows = Windows::default();
        let pack: Bytes = (0..1000_u32).map(|at| at as u8).collect();
        let fetch = |range: Range<u64>| {
            let wanted = pack.slice(range.start as usize..range.end as usize);
            if let Some(found) = windows.find(PACK, &range) {
                assert!(found == wanted && found.is_unique(), "what is given holds more in memory");
                return 0;
            }
            let plan = windows.plan(PACK, &range, 1000);
            assert!(plan.start == range.start && range.end <= plan.end && plan.end <= 1000);
            let bytes = Bytes::copy_from_slice(&pack[plan.start as usize..plan.end as usize]);
            let given = windows.keep(PACK, plan.start, bytes, range.end - range.start);
            assert!(given == wanted && given.is_unique(), "what is given holds more in memory");
            plan.end - plan.start
        };
        ranges.into_iter().map(fetch).collect()
    }

    #[test]
    fn what_is_read_in_turn_takes_few_fetches() {
        assert_eq!(fetched((0..10).map(|at| at * 100..at * 100 + 100)), [100, 200, 0, 400, 0, 0, 0, 300, 0, 0]);
    }

    #[test]
    fn what_is_read_here_and_there_is_fetched_alone() {
        assert_eq!(fetched([0..100, 500..600, 200..300, 900..1000, 700..800]), [100; 5]);
    }

    #[test]
    fn what_is_asked_again_is_fetched_again() {
        assert_eq!(fetched([0..100, 100..200, 200..300, 200..300, 100..200]), [100, 200, 0, 100, 100]);
    }

    #[test]
    fn few_windows_are_kept() {
        let mut windows = Windows::default();
        for pack in 0..100 {
            windows.plan(PackId(pack), &(0..10), 1000);
            windows.plan(PackId(pack), &(10..20), 1000);
            windows.keep(PackId(pack), 10, Bytes::from_static(&[0; 20]), 10);
        }
        assert!(windows.kept.len() <= KEPT && windows.readers.len() <= KEPT);
        assert!(windows.find(PackId(99), &(20..30)).is_some() && windows.find(PackId(0), &(20..30)).is_none());
    }
}
