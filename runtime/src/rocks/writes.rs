//! What one transaction does to keys.
//!
//! Owns: their values, in order of the keys. Leaves to others: what that means (`txn`, `pending`).
//!
//! Invariant: each key is there once, with the last value that it was given.

use std::ops::Range;

/// Room for the keys and values of a short transaction: a create takes half of it.
const BYTES: usize = 1 << 10;
/// And for as many keys.
const KEYS: usize = 8;

/// Writes, in order of their keys.
#[derive(Debug, Default)]
pub(super) struct Writes {
    /// Keys and values, as they came.
    bytes: Vec<u8>,
    list: Vec<Write>,
}

#[derive(Debug)]
struct Write {
    hash: u64,
    key: Range<usize>,
    /// `None`: it is removed.
    value: Option<Range<usize>>,
    new: bool,
}

impl Writes {
    /// None, and room for those of a short transaction.
    pub(super) fn with_room() -> Self {
        Self { bytes: Vec::with_capacity(BYTES), list: Vec::with_capacity(KEYS) }
    }

    /// Sets a key of this hash, or removes it. `new`: it was not there before. Whether it is the key's first write here.
    pub(super) fn set(&mut self, hash: u64, key: &[u8], value: Option<&[u8]>, new: bool) -> bool {
        let found = self.find(key);
        match found {
            Ok(at) => self.list[at].value = value.map(|value| self.keep(value)),
            Err(at) => {
                let (key, value) = (self.keep(key), value.map(|value| self.keep(value)));
                self.list.insert(at, Write { hash, key, value, new });
            }
        }
        found.is_err()
    }

    /// Where a key is, or would be.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.list.binary_search_by(|write| self.bytes[write.key.clone()].cmp(key))
    }

    /// Those whose keys are in `start..end`; `None`: the key is removed.
    pub(super) fn range(&self, start: &[u8], end: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        let place = |key| self.find(key).unwrap_or_else(|place| place);
        self.pairs(place(start)..place(end))
    }

    /// The same by their places.
    pub(super) fn pairs(&self, places: Range<usize>) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        places.map(|at| (self.key(at), self.value(at)))
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn key(&self, at: usize) -> &[u8] {
        &self.bytes[self.list[at].key.clone()]
    }

    pub(super) fn hash(&self, at: usize) -> u64 {
        self.list[at].hash
    }

    /// `None`: the key is removed.
    pub(super) fn value(&self, at: usize) -> Option<&[u8]> {
        self.list[at].value.clone().map(|value| &self.bytes[value])
    }

    /// The key was not there before: if it is gone again by the time that it would be stored, nobody need hear of it.
    pub(super) fn is_new(&self, at: usize) -> bool {
        self.list[at].new
    }

    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Without writes, to be used again; `None`: it would take too much memory.
    pub(super) fn emptied(mut self) -> Option<Self> {
        self.bytes.clear();
        self.list.clear();
        (self.bytes.capacity() <= 4 * BYTES && self.list.capacity() <= 4 * KEYS).then_some(self)
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_there_once_and_in_order() {
        let mut writes = Writes::default();
        for (key, value) in [("b", Some("1")), ("d", None), ("a", Some("2")), ("b", Some("")), ("c", Some("3"))] {
            let value = value.map(str::as_bytes);
            let first = writes.find(key.as_bytes()).is_err();
            assert_eq!(writes.set(7, key.as_bytes(), value, key == "d"), first);
        }
        let all: Vec<_> = writes.range(b"", b"z").collect();
        let pair = |key: &'static str, value: Option<&'static str>| (key.as_bytes(), value.map(str::as_bytes));
        assert_eq!(all, [pair("a", Some("2")), pair("b", Some("")), pair("c", Some("3")), pair("d", None)]);
        assert_eq!(writes.range(b"aa", b"c").collect::<Vec<_>>(), all[1..2]);
        assert_eq!(writes.range(b"c", b"c").count(), 0);
        assert_eq!((writes.find(b"c"), writes.find(b"cc")), (Ok(2), Err(3)));
        assert_eq!((0..4).map(|at| writes.is_new(at)).collect::<Vec<_>>(), [false, false, false, true]);
        assert_eq!((writes.len(), writes.key(3), writes.hash(3)), (4, b"d".as_slice(), 7));
    }
}
