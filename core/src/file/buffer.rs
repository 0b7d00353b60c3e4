//! The bytes of one block: open while writes go into it, sealed from then on.
//!
//! Owns: how its memory grows, and where in memory it lies.
//! Leaves to others: when it is sealed (`slice`).
//!
//! A full block's bytes lie in memory as they will in its object: what has an offset there that is a multiple of `ALIGN`
//! has such an address. So a disk takes them around the page cache (O_DIRECT, open(2)) without another copy.

use alloc::vec::Vec;

use bytes::Bytes;

use crate::format::block::head_len;
use crate::types::Geometry;

/// What memory and offset are a multiple of. No disk asks for more. (statx(2), STATX_DIOALIGN)
pub const ALIGN: usize = 4096;
/// A block that holds this part of a full one and grows takes the memory of a full one.
const ROOMY_PART: usize = 4;
/// Smaller blocks do not go around the page cache.
const PLACED_MIN: usize = 64 * ALIGN;

#[derive(Clone, Debug)]
pub(super) enum Buffer {
    Open(Open),
    Sealed(Bytes),
}

impl Buffer {
    /// An empty one; `full`: it will be.
    pub(super) fn new(geometry: &Geometry, full: bool) -> Self {
        Self::Open(if full { Open::roomy(geometry) } else { Open::default() })
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Open(open) => open.bytes.len() - open.lead,
            Self::Sealed(bytes) => bytes.len(),
        }
    }

    /// It takes no more writes.
    pub(super) fn seal(&mut self) {
        if let Self::Open(open) = self {
            *self = Self::Sealed(core::mem::take(open).seal());
        }
    }

    /// `[start, stop)` of the block; of an open one, a copy.
    pub(super) fn read(&self, start: usize, stop: usize) -> Bytes {
        match self {
            Self::Open(open) => Bytes::copy_from_slice(&open.bytes[open.lead + start..open.lead + stop]),
            Self::Sealed(bytes) => bytes.slice(start..stop),
        }
    }
}

/// A block that takes writes.
#[derive(Clone, Debug, Default)]
pub(super) struct Open {
    bytes: Vec<u8>,
    /// How many of them come before the block's first.
    lead: usize,
}

impl Open {
    fn roomy(geometry: &Geometry) -> Self {
        let size = geometry.block_size as usize;
        if size < PLACED_MIN {
            return Self { bytes: Vec::with_capacity(size), lead: 0 };
        }
        let mut bytes: Vec<u8> = Vec::with_capacity(size + ALIGN);
        let head = head_len(geometry.frame_size, geometry.block_size) as usize;
        let lead = (ALIGN + head % ALIGN - bytes.as_ptr().addr() % ALIGN) % ALIGN;
        bytes.resize(lead, 0);
        Self { bytes, lead }
    }

    /// Writes `data` at `off`, which is inside the block or at its end.
    pub(super) fn write(&mut self, geometry: &Geometry, off: usize, data: &[u8]) {
        let end = self.lead + off + data.len();
        if self.bytes.capacity() < end && geometry.block_size as usize / ROOMY_PART <= self.bytes.len() {
            let mut roomy = Self::roomy(geometry);
            roomy.bytes.extend_from_slice(&self.bytes[self.lead..]);
            *self = roomy;
        }
        let off = self.lead + off;
        let overwrite = data.len().min(self.bytes.len() - off);
        self.bytes[off..off + overwrite].copy_from_slice(&data[..overwrite]);
        self.bytes.extend_from_slice(&data[overwrite..]);
    }

    fn seal(self) -> Bytes {
        if self.bytes.len() < self.bytes.capacity() / 2 {
            // Memory that stays unused would not be counted anywhere.
            return Bytes::copy_from_slice(&self.bytes[self.lead..]);
        }
        Bytes::from(self.bytes).slice(self.lead..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of a block that was written in pieces of `piece`.
    fn sealed(geometry: &Geometry, full: bool, len: usize, piece: usize) -> (Bytes, Vec<u8>) {
        let all: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251) as u8).collect();
        let mut buffer = Buffer::new(geometry, full);
        for (at, part) in all.chunks(piece).enumerate() {
            let Buffer::Open(open) = &mut buffer else { panic!("it was not sealed") };
            open.write(geometry, at * piece, part);
            assert_eq!(buffer.len(), at * piece + part.len());
        }
        assert_eq!(buffer.read(len / 3, len / 2), all[len / 3..len / 2]);
        buffer.seal();
        let Buffer::Sealed(bytes) = buffer else { panic!("it was sealed") };
        (bytes, all)
    }

    #[test]
    fn what_was_written_is_there_however_it_grew() {
        let geometry = Geometry { block_size: 512 << 10, ..Geometry::DEFAULT };
        for full in [false, true] {
            for len in [1, 4096, 100_000, 300_000, 512 << 10] {
                for piece in [4096, 65_521, 1 << 20] {
                    let (bytes, all) = sealed(&geometry, full, len, piece);
                    assert!(bytes == all, "{len} bytes by {piece}");
                }
            }
        }
    }

    #[test]
    fn a_full_block_lies_in_memory_as_in_its_object() {
        let geometry = Geometry::DEFAULT;
        for full in [false, true] {
            let (bytes, _) = sealed(&geometry, full, geometry.block_size as usize, 1 << 20);
            let head = head_len(geometry.frame_size, geometry.block_size) as usize;
            assert_eq!(bytes.as_ptr().addr() % ALIGN, head % ALIGN);
        }
    }

    #[test]
    fn writes_replace_what_was_written() {
        let geometry = Geometry { block_size: 512 << 10, ..Geometry::DEFAULT };
        let mut open = Open::roomy(&geometry);
        open.write(&geometry, 0, &[1; 100]);
        open.write(&geometry, 40, &[2; 80]);
        let bytes = open.seal();
        assert_eq!((&bytes[..40], &bytes[40..]), (&[1; 40][..], &[2; 80][..]));
    }
}
