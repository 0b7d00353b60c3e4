//! The bytes that a benchmark writes: unique and incompressible, so that neither deduplication nor compression on the
//! way to the disk makes a figure better than it is.
//!
//! Every block is the same random base with all its 8-byte words changed by one key of its own: no two of the run share
//! a word other than by chance, and making 1 MiB takes some 30 us.

use std::io;

/// What the blocks of one run are made of.
pub(super) struct Data {
    /// As long as the longest block.
    base: Vec<u8>,
    seed: u64,
}

impl Data {
    /// Seeded by the operating system, for blocks of at most `len` bytes.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let mut base = vec![0; len];
        let mut seed = [0; 8];
        let random = |into: &mut [u8]| getrandom::fill(into).map_err(|e| io::Error::other(e.to_string()));
        random(&mut base)?;
        random(&mut seed)?;
        Ok(Self { base, seed: u64::from_ne_bytes(seed) })
    }

    /// Writes block `index` of the file number `stream` to `into`.
    pub(super) fn fill(&self, stream: u64, index: u64, into: &mut [u8]) {
        let key = self.key(stream, index);
        let base = &self.base[..into.len()];
        let mut words = into.chunks_exact_mut(8);
        for (word, from) in words.by_ref().zip(base.chunks_exact(8)) {
            word.copy_from_slice(&changed(from, key));
        }
        let rest = words.into_remainder();
        let from = &base[base.len() - rest.len()..];
        for ((byte, from), key) in rest.iter_mut().zip(from).zip(key.to_ne_bytes()) {
            *byte = from ^ key;
        }
    }

    /// Where `block` is first not what `fill` makes of the same numbers.
    pub(super) fn differs(&self, stream: u64, index: u64, block: &[u8]) -> Option<usize> {
        let key = self.key(stream, index).to_ne_bytes();
        let expected = self.base.iter().zip(key.iter().cycle()).map(|(base, key)| base ^ key);
        block.iter().zip(expected).position(|(byte, expected)| *byte != expected)
    }

    /// A key of its own for each pair of numbers below 2^32: all steps are one-to-one (the finalizer is that of
    /// splitmix64; Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn key(&self, stream: u64, index: u64) -> u64 {
        let mut key = (stream << 32 | index) ^ self.seed;
        key = (key ^ key >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        key = (key ^ key >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        key ^ key >> 31
    }
}

/// One word under a key.
fn changed(word: &[u8], key: u64) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(word);
    (u64::from_ne_bytes(bytes) ^ key).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_8_bytes_repeat() {
        let data = Data::new(64 << 10).unwrap();
        let mut seen = HashSet::new();
        let mut block = vec![0; 64 << 10];
        for (stream, index) in [(0, 0), (0, 1), (1, 0), (1, 1), (7, u64::from(u32::MAX))] {
            data.fill(stream, index, &mut block);
            for word in block.chunks_exact(8) {
                assert!(seen.insert(word.to_owned()), "{stream} {index}");
            }
        }
    }

    #[test]
    fn what_was_filled_does_not_differ() {
        let data = Data::new(1001).unwrap();
        for len in [0, 1, 7, 8, 9, 512, 1001] {
            let mut block = vec![0; len];
            data.fill(3, 4, &mut block);
            assert_eq!(data.differs(3, 4, &block), None, "{len}");
            for at in [0, len / 2, len.saturating_sub(1)] {
                if let Some(byte) = block.get_mut(at) {
                    *byte ^= 0x10;
                    assert_eq!(data.differs(3, 4, &block), Some(at), "{len}");
                    block[at] ^= 0x10;
                }
            }
            if len >= 8 {
                assert!(data.differs(3, 5, &block).is_some() && data.differs(4, 4, &block).is_some(), "{len}");
            }
        }
    }
}
