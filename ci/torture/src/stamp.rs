//! Bytes that say who wrote them, and the generator of random numbers.
//!
//! Owns: the contents of every write. Leaves to others: which writes there are (`writer`).
//!
//! A file is a row of cells of 32 bytes, aligned in the file. A write fills its part of each cell with the file's id,
//! the number of the write, the cell's offset, and a hash of the three: a cell read back whole names its origin.

/// Bytes in a cell.
pub(crate) const CELL: u64 = 32;

/// SplitMix64: small, seedable, good enough to spread operations.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed ^ 0x6B69_7365_6B69))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `end`, which is above 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number in `low..=high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn cell(file: u64, write: u64, offset: u64) -> [u8; CELL as usize] {
    let check = mix(file ^ mix(write ^ mix(offset)));
    let mut bytes = [0; CELL as usize];
    for (part, value) in bytes.chunks_exact_mut(8).zip([file, write, offset, check]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Fills `part`, which starts at `offset` of the file, as write number `write` does.
pub(crate) fn fill(part: &mut [u8], offset: u64, file: u64, write: u64) {
    let mut done = 0;
    while done < part.len() {
        let at = offset + done as u64;
        let skip = (at % CELL) as usize;
        let len = (CELL as usize - skip).min(part.len() - done);
        part[done..done + len].copy_from_slice(&cell(file, write, at - skip as u64)[skip..skip + len]);
        done += len;
    }
}

/// The write of `file` that a whole cell at `offset` comes from, if it comes from one.
pub(crate) fn origin(bytes: &[u8], offset: u64, file: u64) -> Option<u64> {
    let write = u64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?);
    (bytes == cell(file, write, offset)).then_some(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_to_the_whole_and_name_their_origin() {
        let mut whole = vec![0; 200];
        fill(&mut whole, 7, 3, 9);
        let mut parts = vec![0; 200];
        let (a, b) = parts.split_at_mut(61);
        fill(a, 7, 3, 9);
        fill(b, 68, 3, 9);
        assert_eq!(whole, parts);
        assert_eq!(origin(&whole[25..57], 32, 3), Some(9));
        assert_eq!(origin(&whole[25..57], 64, 3), None);
        assert_eq!(origin(&whole[25..57], 32, 4), None);
        assert_eq!(origin(&[0; 32], 32, 3), None);
    }
}
