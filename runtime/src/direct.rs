//! Bytes written around the page cache (O_DIRECT, open(2)), from where they lie in memory if that can be.
//!
//! Owns: alignment, and whether the file system takes such writes at all. Leaves to others: which bytes are worth it, and
//! what they are (`objects::direct`, `log_folder`).
//!
//! Direct I/O wants memory, position and length aligned. Where a piece of the body lies in memory as it will in the file,
//! which the core sees to for full blocks (`kiseki_core::file::buffer`), it is written from there; the rest passes through
//! a small aligned buffer. The end is padded with zeros.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kiseki_core::file::buffer::ALIGN;
use rustix::io::Errno;

/// Shorter bodies gain nothing.
pub(crate) const LEAST: usize = 256 << 10;
/// What is written at once. Longer pieces were not faster.
pub(crate) const PIECE: usize = 1 << 20;

/// Writes to the files of one file system.
#[derive(Debug, Default)]
pub(crate) struct Direct {
    refused: AtomicBool,
    /// `PIECE + ALIGN` bytes each; as many as were in use at once.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Direct {
    /// What `attempt` returns; `None`: the file system takes no direct writes, and nothing that counts was written.
    pub(crate) fn attempt(&self, attempt: impl FnOnce() -> Result<(), Errno>) -> Option<Result<(), Errno>> {
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        let done = attempt();
        if done == Err(Errno::INVAL) {
            self.refused.store(true, Ordering::Relaxed);
            tracing::debug!("the file system takes no direct writes");
            return None;
        }
        Some(done)
    }

    /// Writes `body` to `file`, opened with O_DIRECT, at `at`, a multiple of `ALIGN`, and zeros behind it up to the next one.
    pub(crate) fn write(&self, file: BorrowedFd<'_>, at: u64, body: &[Bytes]) -> Result<(), Errno> {
        let mut buffer = self.buffers().pop().unwrap_or_else(|| vec![0; PIECE + ALIGN]);
        let written = write(file, at, body, &mut buffer);
        self.buffers().push(buffer);
        written
    }

    pub(crate) fn buffers(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(file: BorrowedFd<'_>, at: u64, body: &[Bytes], buffer: &mut [u8]) -> Result<(), Errno> {
    let start = buffer.as_ptr().align_offset(ALIGN);
    let end = at + body.iter().map(|piece| piece.len() as u64).sum::<u64>();
    let mut out = Out { file, piece: &mut buffer[start..start + PIECE], filled: 0, at };
    for piece in body {
        out.add(piece, end)?;
    }
    if out.filled > 0 { out.write(&[], 0) } else { Ok(()) }
}

/// A stretch of a file that is written from its start to its end.
struct Out<'a> {
    file: BorrowedFd<'a>,
    /// Aligned.
    piece: &'a mut [u8],
    /// Bytes in `piece` that are to be written next.
    filled: usize,
    /// Where: a multiple of `ALIGN`.
    at: u64,
}

impl Out<'_> {
    /// Adds the next bytes; the last of them end at `end`.
    fn add(&mut self, mut segment: &[u8], end: u64) -> Result<(), Errno> {
        while !segment.is_empty() {
            // Up to where the file is at a multiple of `ALIGN`, if memory is at one there, too.
            let ahead = self.filled.next_multiple_of(ALIGN) - self.filled;
            let straight = segment.get(ahead..).map_or(&[][..], |rest| &rest[..rest.len() - rest.len() % ALIGN]);
            if LEAST <= straight.len() && straight.as_ptr().addr().is_multiple_of(ALIGN) {
                self.take(&segment[..ahead]);
                segment = &segment[ahead + straight.len()..];
                let ends = self.at + (self.filled + straight.len() + segment.len()) as u64 == end;
                let tail = if ends && self.filled + segment.len() <= PIECE { segment.len() } else { 0 };
                let before = self.filled;
                self.take(&segment[..tail]);
                segment = &segment[tail..];
                self.write(straight, before)?;
                continue;
            }
            let count = segment.len().min(PIECE - self.filled);
            self.take(&segment[..count]);
            segment = &segment[count..];
            if self.filled == PIECE {
                self.write(&[], 0)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        self.piece[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// Writes what is in `piece`, with `straight` after the first `before` bytes of it.
    fn write(&mut self, straight: &[u8], before: usize) -> Result<(), Errno> {
        let padded = self.filled.next_multiple_of(ALIGN);
        self.piece[self.filled..padded].fill(0);
        let (head, tail) = self.piece[..padded].split_at(before);
        let mut slices = [head, straight, tail].map(IoSlice::new);
        let mut rest = &mut slices[..];
        // Drops what is empty ahead of the first that is not.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::pwritev(self.file, rest, self.at) {
                Ok(0) => return Err(Errno::IO),
                Ok(count) => {
                    self.at += count as u64;
                    IoSlice::advance_slices(&mut rest, count);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        self.filled = 0;
        Ok(())
    }
}
