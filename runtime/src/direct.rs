//! Bytes written and read around the page cache (O_DIRECT, open(2)), from where they lie in memory if that can be.
//!
//! Owns: alignment, and whether the file system takes it at all. Leaves to others: which bytes are worth it, and
//! what they are (`objects::direct`, `log_folder`).
//!
//! Direct I/O wants memory, position and length aligned. Where a piece of the body lies in memory as it will in the file,
//! which the core sees to for full blocks (`kiseki_core::file::buffer`), it is written from there; the rest passes through
//! a small aligned buffer. The end is padded with zeros.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::ops::Range;
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
    /// What `attempt` returns; `None`: the file system takes no direct I/O, and nothing that counts was written.
    pub(crate) fn attempt<T>(&self, attempt: impl FnOnce() -> Result<T, Errno>) -> Option<Result<T, Errno>> {
        if self.refused.load(Ordering::Relaxed) {
            return None;
        }
        let done = attempt();
        if let Err(Errno::INVAL) = done {
            self.refused.store(true, Ordering::Relaxed);
            tracing::debug!("the file system takes no direct I/O");
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

/// `range` of a file that was opened with O_DIRECT, or as much of it as there is.
pub(crate) fn read(file: BorrowedFd<'_>, range: Range<u64>) -> Result<Bytes, Errno> {
    let mut target = Target::new(range);
    while let Some((space, at)) = target.space() {
        match rustix::io::pread(file, space, at) {
            Ok((read, _)) => {
                let count = read.len();
                // SAFETY: the kernel has written so many bytes to the space.
                if !unsafe { target.advance(count) } {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(target.finish())
}

/// The pages that a range touches.
fn aligned(range: &Range<u64>) -> Range<u64> {
    range.start - range.start % ALIGN as u64..range.end.next_multiple_of(ALIGN as u64)
}

/// Memory for a stretch of a file, aligned as direct I/O wants it.
#[derive(Debug)]
pub(crate) struct Target {
    /// Filled from its aligned beginning on: what was read.
    memory: Vec<u8>,
    /// Where that is.
    padding: usize,
    range: Range<u64>,
}

impl Target {
    pub(crate) fn new(range: Range<u64>) -> Self {
        let Range { start, end } = aligned(&range);
        let mut memory: Vec<u8> = Vec::with_capacity((end - start) as usize + ALIGN);
        let padding = memory.as_ptr().align_offset(ALIGN);
        memory.resize(padding, 0);
        Self { memory, padding, range }
    }

    /// What is to be filled next, and from where in the file.
    pub(crate) fn space(&mut self) -> Option<(&mut [MaybeUninit<u8>], u64)> {
        let Range { start, end } = aligned(&self.range);
        let at = start + (self.memory.len() - self.padding) as u64;
        (at < end).then(|| (&mut self.memory.spare_capacity_mut()[..(end - at) as usize], at))
    }

    /// Whether there may be more: a stretch that is no multiple of `ALIGN` ends where the file does.
    ///
    /// # Safety
    /// The first `count` bytes of `space` are written.
    pub(crate) unsafe fn advance(&mut self, count: usize) -> bool {
        // SAFETY: the caller's.
        unsafe { self.memory.set_len(self.memory.len() + count) };
        count > 0 && count.is_multiple_of(ALIGN)
    }

    /// As much of the range as was filled.
    pub(crate) fn finish(self) -> Bytes {
        let filled = self.memory.len();
        let skip = (self.range.start - aligned(&self.range).start) as usize;
        let wanted = (self.range.end - self.range.start) as usize;
        let start = (self.padding + skip).min(filled);
        Bytes::from(self.memory).slice(start..(start + wanted).min(filled))
    }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn ranges_are_read_as_far_as_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..1_000_000).map(|at| (at / 7) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
        for (start, end) in [(0, 0), (0, 1), (0, 4096), (4095, 300_000), (4096, 1_000_000), (999_999, 1_000_001)] {
            let read = read(file.as_fd(), start as u64..end as u64).expect("reads");
            assert_eq!(read, bytes[start..end.min(bytes.len())], "{start}..{end}");
        }
        assert!(read(file.as_fd(), 2_000_000..3_000_000).unwrap().is_empty());
    }
}
