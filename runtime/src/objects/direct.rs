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
//! - Direct I/O wants memory, position and length aligned, which an object is not: it passes through a small aligned
//!   buffer, and the last piece is padded and cut off again before the sync.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::{fs, io};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Shorter objects go through the page cache: there a put costs what its syncs cost, and those are the same.
const LEAST: usize = 256 << 10;
/// What is written at once. Longer pieces were not faster.
const PIECE: usize = 1 << 20;
/// More than any disk asks for (statx(2), STATX_DIOALIGN).
const ALIGN: usize = 4096;

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
    let piece = &mut buffer[start..start + PIECE];
    let (mut filled, mut at) = (0, 0);
    for mut segment in body.iter().map(|segment| &segment[..]) {
        while !segment.is_empty() {
            let count = segment.len().min(PIECE - filled);
            piece[filled..filled + count].copy_from_slice(&segment[..count]);
            (filled, segment) = (filled + count, &segment[count..]);
            if filled == PIECE {
                write_all(&file, piece, at)?;
                (filled, at) = (0, at + PIECE as u64);
            }
        }
    }
    if filled > 0 {
        // What pads it is bytes of earlier objects until it is cut off: nobody has the file's name.
        write_all(&file, &piece[..filled.next_multiple_of(ALIGN)], at)?;
        rustix::fs::ftruncate(&file, len as u64)?;
    }
    rustix::fs::fdatasync(&file)
}

fn write_all(file: &impl std::os::fd::AsFd, mut piece: &[u8], mut at: u64) -> Result<(), Errno> {
    while !piece.is_empty() {
        match rustix::io::pwrite(file, piece, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => (piece, at) = (&piece[count..], at + count as u64),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
