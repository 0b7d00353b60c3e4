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
//! - What pads the last piece is cut off again before the sync.

use std::os::fd::AsFd;
use std::path::Path;
use std::{fs, io};

use bytes::Bytes;
use kiseki_core::file::buffer::ALIGN;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::direct::{Direct, LEAST};

/// Writes `body` to `tmp`, durable, and renames it to `path`, whose folders are made if need be.
/// `None`, and nothing happened: the object is short, or the file system takes no direct writes.
pub(super) fn put(direct: &Direct, tmp: &Path, path: &Path, body: &[Bytes]) -> Option<Result<(), Errno>> {
    let len = body.iter().map(Bytes::len).sum();
    if len < LEAST {
        return None;
    }
    direct.attempt(|| {
        let put = write(direct, tmp, body, len).and_then(|()| rename(tmp, path));
        if put.is_err() {
            // What cannot be removed now is swept at the next mount.
            let _ = fs::remove_file(tmp);
        }
        put
    })
}

fn write(direct: &Direct, tmp: &Path, body: &[Bytes], len: usize) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::DIRECT | OFlags::CLOEXEC;
    let file = rustix::fs::open(tmp, flags, Mode::from_raw_mode(0o666))?;
    direct.write(file.as_fd(), 0, body)?;
    if !len.is_multiple_of(ALIGN) {
        rustix::fs::ftruncate(&file, len as u64)?;
    }
    rustix::fs::fdatasync(&file)
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
    use crate::direct::PIECE;

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
            assert_eq!(put(&direct, &dir.path().join("tmp"), &path, &body), Some(Ok(())), "{len}");
            assert!(fs::read(&path).unwrap() == bytes[..len], "{len}");
            assert!(!dir.path().join("tmp").exists());
        }
        assert_eq!(
            put(&direct, &dir.path().join("tmp"), &dir.path().join("s"), &[Bytes::from(vec![1; LEAST - 1])]),
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
                    assert_eq!(put(&direct, &dir.path().join("tmp"), &path, &body), Some(Ok(())));
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
        assert_eq!(put(&direct, &tmp, &path, &[Bytes::from(vec![1; LEAST])]), Some(Err(Errno::NOTDIR)));
        assert!(!tmp.exists());
    }
}
