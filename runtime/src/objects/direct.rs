//! Large objects written around the page cache (O_DIRECT, open(2)).
//!
//! Owns: the way of an object's bytes from memory to the disk. Leaves to others: when to take it (`folder`), the folders
//! that hold new names (`barrier`).
//!
//! Through the page cache, putting 1 GiB takes this process 2.2 to 3.8 s of processor time, most of it to copy into
//! pages that nobody reads, for what was written is in our own cache; around it 0.9 to 1.5 s.
//!
//! Invariants
//! - As with OpenDAL: an object is written under a name of its own, synced, then renamed.
//! - Direct I/O wants memory, position and length aligned. Where a piece of the body lies in memory as it will in the file,
//!   which the core sees to for full blocks (`kiseki_core::file::buffer`), it is written from there; the rest passes through
//!   a small aligned buffer. The last piece is padded and cut off again before the sync.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use bytes::Bytes;
use kiseki_core::file::buffer::ALIGN;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Shorter objects go through the page cache: there a put costs what its syncs cost, and those are the same.
const LEAST: usize = 256 << 10;
/// What is written at once. Longer pieces were not faster.
const PIECE: usize = 1 << 20;

/// Writes objects, as long as the folder's file system can.
#[derive(Debug, Default)]
pub(super) struct Direct {
    refused: AtomicBool,
    /// `PIECE + ALIGN` bytes each; as many as were in use at once.
    buffers: Mutex<Vec<Vec<u8>>>,
}

impl Direct {
    /// Writes `body` to `tmp`, durable, and renames it to `path`, whose folders are made if need be.
    /// `None`, and nothing happened: the object is short, or the file system takes no direct writes.
    pub(super) fn put(&self, tmp: &Path, path: &Path, body: &[Bytes]) -> Option<Result<(), Errno>> {
        let len = body.iter().map(Bytes::len).sum();
        if len < LEAST || self.refused.load(Ordering::Relaxed) {
            return None;
        }
        let mut buffer = self.buffers().pop().unwrap_or_else(|| vec![0; PIECE + ALIGN]);
        let put = write(tmp, body, len, &mut buffer).and_then(|()| rename(tmp, path));
        self.buffers().push(buffer);
        if put.is_err() {
            // What cannot be removed now is swept at the next mount.
            let _ = fs::remove_file(tmp);
        }
        if put == Err(Errno::INVAL) {
            self.refused.store(true, Ordering::Relaxed);
            tracing::debug!(tmp = %tmp.display(), "the file system takes no direct writes");
            return None;
        }
        Some(put)
    }

    fn buffers(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(tmp: &Path, body: &[Bytes], len: usize, buffer: &mut [u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = rustix::fs::open(tmp, flags, Mode::from_raw_mode(0o666))?;
    let start = buffer.as_ptr().align_offset(ALIGN);
    let mut out = Out { file, piece: &mut buffer[start..start + PIECE], filled: 0, at: 0 };
    for segment in body {
        out.add(segment, len)?;
    }
    if out.filled > 0 {
        out.write(&[], 0)?;
    }
    if !len.is_multiple_of(ALIGN) {
        rustix::fs::ftruncate(&out.file, len as u64)?;
    }
    rustix::fs::fdatasync(&out.file)
}

/// A file that is written from its start to its end.
struct Out<'a> {
    file: OwnedFd,
    /// Aligned.
    piece: &'a mut [u8],
    /// Bytes in `piece` that are to be written next.
    filled: usize,
    /// Where: a multiple of `ALIGN`.
    at: u64,
}

impl Out<'_> {
    /// Adds the next bytes of an object of `len` bytes.
    fn add(&mut self, mut segment: &[u8], len: usize) -> Result<(), Errno> {
        while !segment.is_empty() {
            // Up to where the file is at a multiple of `ALIGN`, if memory is at one there, too.
            let ahead = self.filled.next_multiple_of(ALIGN) - self.filled;
            let straight = segment.get(ahead..).map_or(&[][..], |rest| &rest[..rest.len() - rest.len() % ALIGN]);
            if LEAST <= straight.len() && straight.as_ptr().addr().is_multiple_of(ALIGN) {
                self.take(&segment[..ahead]);
                segment = &segment[ahead + straight.len()..];
                let ends = self.at as usize + self.filled + straight.len() + segment.len() == len;
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
        // What pads the end is bytes of earlier objects until it is cut off: nobody has the file's name.
        let (head, tail) = self.piece[..self.filled.next_multiple_of(ALIGN)].split_at(before);
        let mut slices = [head, straight, tail].map(IoSlice::new);
        let mut rest = &mut slices[..];
        // Drops what is empty ahead of the first that is not.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::pwritev(&self.file, rest, self.at) {
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

fn rename(tmp: &Path, path: &Path) -> Result<(), Errno> {
    match rustix::fs::rename(tmp, path) {
        Err(Errno::NOENT) => {}
        renamed => return renamed,
    }
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.map_err(|error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::fs::rename(tmp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_every_length_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let direct = Direct::default();
        let bytes: Vec<u8> = (0..3 * PIECE + 5).map(|at| (at * 7 + at / 251) as u8).collect();
        for (at, len) in [LEAST, LEAST + 1, PIECE, PIECE + ALIGN, 2 * PIECE - 1, 3 * PIECE + 5].into_iter().enumerate()
        {
            let path = dir.path().join(format!("a/{at}/object"));
            let (head, rest) = bytes[..len].split_at(577);
            let body = [head, &rest[..1000], &[], &rest[1000..]].map(Bytes::copy_from_slice);
            assert_eq!(direct.put(&dir.path().join("tmp"), &path, &body), Some(Ok(())), "{len}");
            assert!(fs::read(&path).unwrap() == bytes[..len], "{len}");
            assert!(!dir.path().join("tmp").exists());
        }
        assert_eq!(
            direct.put(&dir.path().join("tmp"), &dir.path().join("s"), &[Bytes::from(vec![1; LEAST - 1])]),
            None
        );
        assert_eq!(direct.buffers().len(), 1, "the buffer is used again");
    }

    /// Where memory lies as the file does, by one byte beside that, and what of the body lies so.
    #[test]
    fn what_is_aligned_is_written_from_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let direct = Direct::default();
        let all: Vec<u8> = (0..5 * PIECE).map(|at| (at * 7 + at / 251) as u8).collect();
        let start = all.as_ptr().align_offset(ALIGN);
        let all = Bytes::from(all);
        for head in [0, 1, 568, ALIGN, ALIGN + 1, PIECE - 1] {
            for beside in [0, 1] {
                for len in [LEAST, LEAST + ALIGN - 1, PIECE + 568, 3 * PIECE] {
                    let at = start + head + beside;
                    let body = [Bytes::from(vec![9; head]), all.slice(at..at + len), all.slice(7..7 + 2 * head)];
                    let path = dir.path().join(format!("{head}-{beside}-{len}"));
                    assert_eq!(direct.put(&dir.path().join("tmp"), &path, &body), Some(Ok(())));
                    assert!(fs::read(&path).unwrap() == body.concat(), "{head} {beside} {len}");
                }
            }
        }
    }

    #[test]
    fn a_failed_put_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let direct = Direct::default();
        let (tmp, path) = (dir.path().join("tmp"), dir.path().join("file/object"));
        fs::write(dir.path().join("file"), "in the way").unwrap();
        assert_eq!(direct.put(&tmp, &path, &[Bytes::from(vec![1; LEAST])]), Some(Err(Errno::NOTDIR)));
        assert!(!tmp.exists());
    }
}
