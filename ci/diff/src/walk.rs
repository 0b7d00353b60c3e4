//! The whole tree of one side, as an observer sees it who leaves no trace.
//!
//! Owns: attributes and contents of everything, removing everything. Leaves to others: comparing (`judge`).

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::sys::{self, Sys, c_path, call, signed};
use crate::worker::INODE_FLAGS;

/// Attributes of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Below the root, whose own path is empty.
    pub(crate) path: String,
    pub(crate) ino: u64,
    /// What the directory says of the file's type.
    pub(crate) listed: u8,
    pub(crate) mode: u32,
    pub(crate) nlink: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) rdev: (u32, u32),
    /// On the same device as the root.
    pub(crate) inside: bool,
    /// Immutable or append-only, where statx(2) says so.
    pub(crate) fixed: bool,
    /// Nanoseconds since 1970 of access, modification, change.
    pub(crate) times: [i128; 3],
}

impl Entry {
    pub(crate) fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
}

/// Opens a directory so that reading it changes no time.
fn open_directory(dir: RawFd, path: &str) -> Sys<RawFd> {
    sys::open(dir, path, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_NOATIME, 0)
}

/// Everything below `root`, sorted by path.
pub(crate) fn tree(root: RawFd) -> Sys<Vec<Entry>> {
    let found = sys::fstat(root)?;
    let device = (found.stx_dev_major, found.stx_dev_minor);
    let mut entries = vec![entry(String::new(), libc::DT_DIR, &found, device)];
    below(root, "", device, &mut entries)?;
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

fn below(root: RawFd, path: &str, device: (u32, u32), entries: &mut Vec<Entry>) -> Sys<()> {
    let directory = open_directory(root, if path.is_empty() { "." } else { path })?;
    let listed = sys::all_entries(directory);
    for listed in listed? {
        if listed.name == "." || listed.name == ".." {
            continue;
        }
        let found = sys::statx(directory, &listed.name, libc::AT_SYMLINK_NOFOLLOW)?;
        let path = if path.is_empty() { listed.name } else { format!("{path}/{}", listed.name) };
        let entry = entry(path, listed.kind, &found, device);
        assert_eq!(listed.ino, entry.ino, "the listing names another inode than stat does, of {}", entry.path);
        let is_directory = entry.is_directory();
        let path = entry.path.clone();
        entries.push(entry);
        if is_directory {
            below(root, &path, device, entries)?;
        }
    }
    sys::close(directory)
}

fn entry(path: String, listed: u8, found: &libc::statx, device: (u32, u32)) -> Entry {
    let nanos = |time: libc::statx_timestamp| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    Entry {
        path,
        ino: found.stx_ino,
        listed,
        mode: found.stx_mode.into(),
        nlink: found.stx_nlink,
        uid: found.stx_uid,
        gid: found.stx_gid,
        size: found.stx_size,
        rdev: (found.stx_rdev_major, found.stx_rdev_minor),
        fixed: found.stx_attributes & (libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_APPEND) as u64 != 0,
        inside: (found.stx_dev_major, found.stx_dev_minor) == device,
        times: [found.stx_atime, found.stx_mtime, found.stx_ctime].map(nanos),
    }
}

/// One line for each name: bytes, target, extended attributes.
pub(crate) fn contents(root: RawFd) -> Vec<String> {
    let tree = match tree(root) {
        Ok(tree) => tree,
        Err(errno) => return vec![format!("the tree cannot be read: {}", sys::errno_name(errno))],
    };
    let line = |entry: &Entry| {
        let text = match entry.kind() {
            libc::S_IFREG => file(root, &entry.path).unwrap_or_else(sys::errno_name),
            libc::S_IFLNK => target(root, &entry.path).unwrap_or_else(sys::errno_name),
            _ => String::new(),
        };
        let attributes = attributes(root, &entry.path).unwrap_or_else(sys::errno_name);
        format!("{}: {text} xattrs [{attributes}]", entry.path)
    };
    tree.iter().map(line).collect()
}

/// A hash of the bytes, hole or not.
fn file(root: RawFd, path: &str) -> Sys<String> {
    let fd = sys::open(root, path, libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NOATIME, 0)?;
    let size = sys::fstat(fd)?.stx_size;
    let mut buffer = vec![0u8; 1 << 20];
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    let mut len = 0;
    // Beyond it lies a hole that `Truncate` made: its length is compared, its zeros would take hours.
    while len < READ_MAX {
        let read = call(libc::SYS_read, [signed(fd), buffer.as_mut_ptr() as usize, buffer.len()])? as usize;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        len += read as u64;
    }
    sys::close(fd)?;
    Ok(format!("size {size} read {len} {:016x}", hash.digest()))
}

/// Bytes of a file that are compared: what writes reach.
pub(crate) const READ_MAX: u64 = 16 << 20;

fn target(root: RawFd, path: &str) -> Sys<String> {
    let (path, mut target) = (c_path(path), vec![0u8; 4096]);
    let (path, room) = (path.as_ptr() as usize, target.as_mut_ptr() as usize);
    let len = call(libc::SYS_readlinkat, [signed(root), path, room, target.len()])?;
    Ok(sys::text_of(&target[..len as usize]))
}

fn attributes(root: RawFd, path: &str) -> Sys<String> {
    let path = c_path(&format!("/proc/self/fd/{root}/{path}"));
    let path = path.as_ptr() as usize;
    let mut list = vec![0u8; 64 << 10];
    let len = call(libc::SYS_llistxattr, [path, list.as_mut_ptr() as usize, list.len()])?;
    let mut names: Vec<&[u8]> = list[..len as usize].split(|&byte| byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    let mut lines = vec![];
    for name in names {
        let name = sys::text_of(name);
        let (c_name, mut value) = (c_path(&name), vec![0u8; 64 << 10]);
        let room = value.as_mut_ptr() as usize;
        let len = call(libc::SYS_lgetxattr, [path, c_name.as_ptr() as usize, room, value.len()])?;
        lines.push(format!("{name}={len}:{:016x}", xxh3_64(&value[..len as usize])));
    }
    Ok(lines.join(" "))
}

/// Removes everything below `root`; says what could not be removed.
pub(crate) fn wipe(root: RawFd) -> Vec<String> {
    let tree = match tree(root) {
        Ok(tree) => tree,
        Err(errno) => return vec![format!("the tree cannot be read: {}", sys::errno_name(errno))],
    };
    // Nothing immutable first, in whatever order.
    for entry in &tree {
        if entry.is_directory() || entry.kind() == libc::S_IFREG {
            unprotect(root, &entry.path);
        }
    }
    let mut left = vec![];
    for entry in tree.iter().rev().filter(|entry| !entry.path.is_empty()) {
        let path = c_path(&entry.path);
        let flags = if entry.is_directory() { libc::AT_REMOVEDIR } else { 0 };
        if let Err(errno) = call(libc::SYS_unlinkat, [signed(root), path.as_ptr() as usize, flags as usize]) {
            left.push(format!("{}: {}", entry.path, sys::errno_name(errno)));
        }
    }
    left
}

/// Takes the flags that forbid removing, where the file system has any.
fn unprotect(root: RawFd, path: &str) {
    let path = if path.is_empty() { "." } else { path };
    let Ok(fd) = sys::open(root, path, libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NOATIME | libc::O_NONBLOCK, 0)
    else {
        return;
    };
    let mut flags = 0u64;
    if call(libc::SYS_ioctl, [signed(fd), 0x8008_6601, &raw mut flags as usize]).is_ok() {
        let without = flags & !u64::from(INODE_FLAGS);
        if without != flags {
            let _ = call(libc::SYS_ioctl, [signed(fd), 0x4008_6602, &raw const without as usize]);
        }
    }
    let _ = sys::close(fd);
}
