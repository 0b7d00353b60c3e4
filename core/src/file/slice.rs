//! One dirty slice: a contiguous run of accepted bytes, cut into blocks that are sealed as they fill.
//!
//! Owns: the bytes from accept to commit, and which blocks have been put.
//! Leaves to others: the order of commits (`machine`), identity (handed in before the first put).
//!
//! Invariants
//! - Bytes of a sealed block never change. Blocks are sealed in order.
//! - Every block but the last holds exactly `block_size` bytes.
//! - A frozen slice takes no more writes and all its blocks are sealed.

use alloc::vec::Vec;
use core::time::Duration;

use bytes::Bytes;

use super::buffer::Buffer;
use crate::marks::{Mark, reached, reached_if};
use crate::types::{BlockId, Geometry, Place, SliceId, SliceRecord};

/// How far a block is on its way into the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// Not there; may be tried from `retry_at` on.
    Idle { retry_at: Duration, attempts: u32 },
    /// A put is under way.
    Running { attempts: u32 },
    /// A put has returned.
    Done,
}

#[derive(Clone, Debug)]
struct Block {
    buffer: Buffer,
    put: Put,
}

/// A slice that is not committed yet.
#[derive(Clone, Debug)]
pub(super) struct DirtySlice {
    pub(super) chunk: u32,
    /// First byte in the chunk.
    pub(super) pos: u32,
    pub(super) len: u32,
    /// Set before the first put; stays `None` for slices that go inline.
    pub(super) id: Option<SliceId>,
    blocks: Vec<Block>,
    /// Number of blocks sealed. (<= blocks.len())
    sealed: usize,
    frozen: bool,
}

impl DirtySlice {
    pub(super) fn new(chunk: u32, pos: u32) -> Self {
        Self { chunk, pos, len: 0, id: None, blocks: Vec::new(), sealed: 0, frozen: false }
    }

    /// One past its last byte in the chunk.
    pub(super) fn end(&self) -> u32 {
        self.pos + self.len
    }

    /// Whether a write at `pos` of the chunk can go into this slice.
    pub(super) fn accepts(&self, geometry: &Geometry, chunk: u32, pos: u32) -> bool {
        let writable_from = self.pos + self.sealed as u32 * geometry.block_size;
        !self.frozen && chunk == self.chunk && writable_from <= pos && pos <= self.end()
    }

    /// Writes `data` at `pos` of the chunk; returns by how much the slice grew. `accepts` must hold.
    pub(super) fn write(&mut self, geometry: &Geometry, pos: u32, mut data: &[u8]) -> u32 {
        let block_size = geometry.block_size as usize;
        let before = self.len;
        let mut at = (pos - self.pos) as usize;
        self.len = self.len.max((at + data.len()) as u32);
        while !data.is_empty() {
            let (index, off) = (at / block_size, at % block_size);
            if index == self.blocks.len() {
                let idle = Put::Idle { retry_at: Duration::ZERO, attempts: 0 };
                // Past the first block a slice is a long run: take its memory at once instead of growing into it.
                self.blocks.push(Block { buffer: Buffer::new(geometry, index > 0), put: idle });
            }
            let Buffer::Open(open) = &mut self.blocks[index].buffer else { panic!("write into a sealed block") };
            let count = data.len().min(block_size - off);
            open.write(geometry, off, &data[..count]);
            data = &data[count..];
            at += count;
        }
        self.seal_full(block_size);
        self.len - before
    }

    /// Seals blocks that are full and no longer the tail: only a block with a successor or a full one can be.
    fn seal_full(&mut self, block_size: usize) {
        while self.sealed < self.blocks.len() && self.blocks[self.sealed].buffer.len() == block_size {
            self.blocks[self.sealed].buffer.seal();
            self.sealed += 1;
        }
    }

    pub(super) fn freeze(&mut self) {
        for block in &mut self.blocks[self.sealed..] {
            block.buffer.seal();
        }
        self.sealed = self.blocks.len();
        self.frozen = true;
    }

    /// Travels in its record: small, and none of it was put. Settled once frozen.
    pub(super) fn is_inline(&self, geometry: &Geometry) -> bool {
        self.frozen && self.len <= geometry.inline_max && self.id.is_none()
    }

    /// The next block that may be put at `now`.
    pub(super) fn next_put(&self, geometry: &Geometry, now: Duration) -> Option<u32> {
        if self.is_inline(geometry) {
            return None;
        }
        let due = |block: &Block| matches!(block.put, Put::Idle { retry_at, .. } if retry_at <= now);
        self.blocks[..self.sealed].iter().position(due).map(|index| index as u32)
    }

    /// Marks block `index` as under way and returns its identity and payload.
    pub(super) fn start_put(&mut self, index: u32, id: SliceId) -> (BlockId, Bytes) {
        self.id = Some(id);
        let block = &mut self.blocks[index as usize];
        let Put::Idle { attempts, .. } = block.put else { panic!("put of a block that is not idle") };
        let Buffer::Sealed(bytes) = &block.buffer else { panic!("put of an open block") };
        reached_if(Mark::PutRetried, || attempts > 0);
        block.put = Put::Running { attempts };
        (BlockId { slice: id, index, len: bytes.len() as u32 }, bytes.clone())
    }

    pub(super) fn put_done(&mut self, index: u32) {
        self.blocks[index as usize].put = Put::Done;
    }

    /// The put failed: it may be tried again after a delay that doubles from 20 ms to 5 s.
    pub(super) fn put_failed(&mut self, index: u32, now: Duration) {
        let block = &mut self.blocks[index as usize];
        let Put::Running { attempts } = block.put else { panic!("completion of a put that was not started") };
        block.put = Put::Idle { retry_at: now + backoff(attempts), attempts: attempts + 1 };
    }

    /// What was put may be lost: everything is to be put again.
    pub(super) fn forget_puts(&mut self, retry_at: Duration) {
        for block in &mut self.blocks {
            if block.put == Put::Done {
                block.put = Put::Idle { retry_at, attempts: 0 };
            }
        }
    }

    pub(super) fn all_put(&self, geometry: &Geometry) -> bool {
        self.is_inline(geometry) || (self.frozen && self.blocks.iter().all(|block| block.put == Put::Done))
    }

    /// Something of it is in the store.
    pub(super) fn any_put(&self) -> bool {
        self.blocks.iter().any(|block| block.put == Put::Done)
    }

    /// Every block is put or on its way.
    pub(super) fn all_started(&self) -> bool {
        self.frozen && self.blocks.iter().all(|block| !matches!(block.put, Put::Idle { .. }))
    }

    pub(super) fn any_running(&self) -> bool {
        self.blocks.iter().any(|block| matches!(block.put, Put::Running { .. }))
    }

    /// Earliest time after `now` at which a failed put may be tried again.
    pub(super) fn retry_at(&self, now: Duration) -> Option<Duration> {
        let later = |block: &Block| match block.put {
            Put::Idle { retry_at, .. } => (retry_at > now).then_some(retry_at),
            Put::Running { .. } | Put::Done => None,
        };
        self.blocks.iter().filter_map(later).min()
    }

    /// Appends `[off, off + len)` of the slice to `out`; bytes of an open block are copied.
    pub(super) fn read(&self, geometry: &Geometry, mut off: u32, len: u32, mut out: impl FnMut(Bytes)) {
        let end = off + len;
        while off < end {
            let (index, start) = ((off / geometry.block_size) as usize, (off % geometry.block_size) as usize);
            let stop = (start + (end - off) as usize).min(geometry.block_size as usize);
            out(self.blocks[index].buffer.read(start, stop));
            off += (stop - start) as u32;
        }
    }

    /// The record of a frozen slice that is inline or all put.
    pub(super) fn record(&self, geometry: &Geometry) -> SliceRecord {
        assert!(self.all_put(geometry), "record of a slice that is not in the store");
        let place = if self.is_inline(geometry) {
            let Buffer::Sealed(bytes) = &self.blocks[0].buffer else { panic!("a frozen block is open") };
            reached(Mark::SliceInline);
            Place::Inline(bytes.clone())
        } else {
            reached_if(Mark::SliceOverBlocks, || self.blocks.len() > 1);
            Place::Blocks
        };
        let slice = self.id.unwrap_or(SliceId(0));
        SliceRecord { slice, stored_len: self.len, off: 0, pos: self.pos, len: self.len, place }
    }

    /// Blocks with their payloads, once identity is known: what a cache may keep after the commit.
    pub(super) fn payloads(&self) -> impl Iterator<Item = (BlockId, Bytes)> + '_ {
        self.id.into_iter().flat_map(|slice| {
            self.blocks.iter().enumerate().filter_map(move |(index, block)| match &block.buffer {
                Buffer::Sealed(bytes) => {
                    Some((BlockId { slice, index: index as u32, len: bytes.len() as u32 }, bytes.clone()))
                }
                Buffer::Open(_) => None,
            })
        })
    }

    pub(super) fn check(&self, geometry: &Geometry) {
        assert!(self.len > 0, "a slice is empty");
        assert!(u64::from(self.end()) <= geometry.chunk_size, "a slice leaves its chunk");
        assert_eq!(self.blocks.iter().map(|block| block.buffer.len()).sum::<usize>(), self.len as usize);
        let full = self.blocks.len() - 1;
        assert!(self.blocks[..full].iter().all(|block| block.buffer.len() == geometry.block_size as usize));
        assert!(self.blocks[..self.sealed].iter().all(|block| matches!(block.buffer, Buffer::Sealed(_))));
        assert!(!self.frozen || self.sealed == self.blocks.len());
    }
}

/// Delay before attempt number `attempts + 1`.
pub(super) fn backoff(attempts: u32) -> Duration {
    Duration::from_millis(20 << attempts.min(8)).min(Duration::from_secs(5))
}
