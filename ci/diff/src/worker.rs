//! A worker: one user's process on one side, which makes the calls that it is sent and answers what came of them.
//!
//! Owns: descriptors, working directory and running program of one process; turning calls into system calls.
//! Leaves to others: which calls (`draw`), comparing (`judge`), looking at the whole tree (`walk`).
//!
//! Invariants
//! - One call at a time; none waits for another process (every open and every lock is non-blocking).
//! - Numbers that are the system's own (descriptors, inodes, cookies, process ids) are not compared.

use std::io::{BufRead, Write};
use std::os::fd::RawFd;

use kiseki_core::testkit::ops::written_bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::call::{Answer, At, Base, Call, SLOTS, Sync, Target};
use crate::program;
use crate::sys::{self, Sys, c_path, call, signed};
use crate::walk::{self, Entry};

/// What the controller asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Do(Call),
    /// The attributes of everything in the tree.
    Walk,
    /// Contents, targets and extended attributes of everything in the tree.
    Contents,
    /// What the worker has open.
    Slots,
    /// Removes everything in the tree.
    Wipe,
}

/// What comes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Done(Answer),
    Tree(Vec<Entry>),
    Lines(Vec<String>),
}

/// Bits of FS_IOC_GETFLAGS that are compared: append-only, immutable, nodump, noatime. The rest are ext4's own.
pub(crate) const INODE_FLAGS: u32 = 0x20 | 0x10 | 0x40 | 0x80;
const FS_IOC_GETFLAGS: usize = 0x8008_6601;
const FS_IOC_SETFLAGS: usize = 0x4008_6602;

/// Serves requests from standard input until it ends.
pub(crate) fn serve(root: &str, uid: u32, gid: u32, groups: &[u32]) -> Result<(), String> {
    let text = |errno: i32| format!("cannot begin below {root}: {}", sys::errno_name(errno));
    let flags = libc::O_RDONLY | libc::O_DIRECTORY;
    let directory = sys::open(libc::AT_FDCWD, root, flags, 0).map_err(text)?;
    call(libc::SYS_fchdir, [signed(directory)]).map_err(text)?;
    program::no_core_dumps();
    sys::become_user(uid, gid, groups).map_err(text)?;
    call(libc::SYS_umask, [0o022]).map_err(text)?;
    let mut worker =
        Worker { root: directory, path: root.to_owned(), slots: [None; SLOTS], running: None, opened_ino: 0 };
    let (input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    for line in input.lines() {
        let line = line.map_err(|error| error.to_string())?;
        let request: Request = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        let response = worker.answer(request);
        let mut line = serde_json::to_vec(&response).map_err(|error| error.to_string())?;
        line.push(b'\n');
        output.write_all(&line).and_then(|()| output.flush()).map_err(|error| error.to_string())?;
    }
    // Nothing of it is in the tree any more when its process is gone.
    worker.running.map_or(Ok(0), program::Running::stop).map(drop).map_err(text)
}

struct Worker {
    root: RawFd,
    path: String,
    slots: [Option<RawFd>; SLOTS],
    running: Option<program::Running>,
    /// What the last call opened.
    opened_ino: u64,
}

/// A result and what else there is to say.
type Done = Sys<(i64, String)>;

fn plain(value: i64) -> Done {
    Ok((value, String::new()))
}

/// What is compared of bytes.
fn digest(bytes: &[u8]) -> String {
    let zeros = bytes.iter().filter(|&&byte| byte == 0).count();
    format!("{} bytes, {zeros} zero, {:016x}", bytes.len(), xxh3_64(bytes))
}

/// Type, permissions, links, owner, length and device. The length of a directory is left to `walk`.
fn attributes(found: &libc::statx) -> String {
    let directory = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
    let size = if directory { 0 } else { found.stx_size };
    format!(
        "mode {:o} nlink {} uid {} gid {} size {size} rdev {}:{}",
        found.stx_mode, found.stx_nlink, found.stx_uid, found.stx_gid, found.stx_rdev_major, found.stx_rdev_minor
    )
}

impl Worker {
    fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Do(call) => {
                let done = self.make(call);
                Response::Done(match done {
                    Ok((value, text)) => Answer { value, text, ino: std::mem::take(&mut self.opened_ino) },
                    Err(errno) => Answer { value: -i64::from(errno), text: String::new(), ino: 0 },
                })
            }
            Request::Walk => match walk::tree(self.root) {
                Ok(entries) => Response::Tree(entries),
                Err(errno) => Response::Lines(vec![format!("the tree cannot be read: {}", sys::errno_name(errno))]),
            },
            Request::Contents => Response::Lines(walk::contents(self.root)),
            Request::Slots => Response::Lines(self.open_files()),
            Request::Wipe => Response::Lines(walk::wipe(self.root)),
        }
    }

    fn fd(&self, slot: usize) -> RawFd {
        self.slots[slot].unwrap_or(-1)
    }

    fn place(&self, at: &At) -> (RawFd, String) {
        let base = match at.base {
            Base::Cwd => libc::AT_FDCWD,
            Base::Root => self.root,
            Base::Slot(slot) => self.fd(slot),
        };
        (base, at.path.clone())
    }

    /// A path for calls that take no directory.
    fn path(&self, at: &At) -> String {
        match self.place(at) {
            (libc::AT_FDCWD, path) => path,
            (_, path) if path.is_empty() => path,
            (base, path) => format!("/proc/self/fd/{base}/{path}"),
        }
    }

    /// A system call whose first two arguments are a directory and a path.
    fn at<const N: usize>(&self, number: libc::c_long, at: &At, more: [usize; N]) -> Done {
        let (base, path) = self.place(at);
        let path = c_path(&path);
        let mut arguments = [0; 6];
        arguments[0] = signed(base);
        arguments[1] = path.as_ptr() as usize;
        arguments[2..2 + N].copy_from_slice(&more);
        call(number, arguments).and_then(plain)
    }

    /// A system call whose first argument is a path.
    fn by_path<const N: usize>(&self, number: libc::c_long, at: &At, more: [usize; N]) -> Done {
        let path = c_path(&self.path(at));
        let mut arguments = [0; 6];
        arguments[0] = path.as_ptr() as usize;
        arguments[1..=N].copy_from_slice(&more);
        call(number, arguments).and_then(plain)
    }

    /// A system call whose first argument is a descriptor.
    fn on<const N: usize>(&self, number: libc::c_long, slot: usize, more: [usize; N]) -> Done {
        let mut arguments = [0; 6];
        arguments[0] = signed(self.fd(slot));
        arguments[1..=N].copy_from_slice(&more);
        call(number, arguments).and_then(plain)
    }

    fn make(&mut self, call: Call) -> Done {
        match call {
            Call::Open { at, flags, mode, slot } => {
                let (base, path) = self.place(&at);
                self.opened(slot, sys::open(base, &path, flags, mode))
            }
            Call::Reopen { from, flags, slot } => {
                let path = format!("/proc/self/fd/{}", self.fd(from));
                self.opened(slot, sys::open(libc::AT_FDCWD, &path, flags, 0))
            }
            Call::Close { slot } => {
                let fd = self.slots[slot].take().unwrap_or(-1);
                sys::close(fd).map(|()| (0, String::new()))
            }
            Call::Pread { slot, offset, len } => self.read_at(slot, Some(offset), &[len]),
            Call::Read { slot, len } => self.read_at(slot, None, &[len]),
            Call::Readv { slot, offset, lens } => self.read_at(slot, Some(offset), &lens),
            Call::Pwrite { slot, offset, len, number } => self.write_at(slot, Some(offset), &[len], number),
            Call::Write { slot, len, number } => self.write_at(slot, None, &[len], number),
            Call::Writev { slot, offset, lens, number } => self.write_at(slot, Some(offset), &lens, number),
            Call::Lseek { slot, offset, whence: whence @ (libc::SEEK_DATA | libc::SEEK_HOLE) } => {
                self.seek_data(slot, offset, whence)
            }
            Call::Lseek { slot, offset, whence } => self.on(libc::SYS_lseek, slot, [signed(offset), whence as usize]),
            Call::Truncate { at, length } => self.by_path(libc::SYS_truncate, &at, [signed(length)]),
            Call::Ftruncate { slot, length } => self.on(libc::SYS_ftruncate, slot, [signed(length)]),
            Call::Fallocate { slot, mode, offset, len } => {
                self.on(libc::SYS_fallocate, slot, [mode as usize, signed(offset), signed(len)])
            }
            Call::Sync { slot, how } => match how {
                Sync::Fsync => self.on(libc::SYS_fsync, slot, []),
                Sync::Fdatasync => self.on(libc::SYS_fdatasync, slot, []),
                Sync::Range => self.on(libc::SYS_sync_file_range, slot, [0, 0, 7]),
                Sync::Filesystem => self.on(libc::SYS_syncfs, slot, []),
            },
            Call::CopyRange { from, to, from_offset, to_offset, len } => {
                self.copy_range(from, to, from_offset, to_offset, len)
            }
            Call::Sendfile { from, to, mut offset, len } => {
                let (input, output) = (signed(self.fd(from)), signed(self.fd(to)));
                let sent = sys::call(libc::SYS_sendfile, [output, input, &raw mut offset as usize, len as usize])?;
                Ok((sent, format!("up to {offset}")))
            }
            Call::MapRead { slot, offset, len } => self.map_read(slot, offset, len as usize),
            Call::MapWrite { slot, offset, len, number, private } => {
                self.map_write(slot, offset, len as usize, number, private)
            }
            Call::MapTruncate { slot, mapped, length } => self.map_truncate(slot, mapped as usize, length),
            Call::Advise { slot, offset, len, advice } => {
                self.on(libc::SYS_fadvise64, slot, [offset as usize, len as usize, advice as usize])
            }
            Call::Mkdir { at, mode } => self.at(libc::SYS_mkdirat, &at, [mode as usize]),
            Call::Rmdir { at } => self.at(libc::SYS_unlinkat, &at, [libc::AT_REMOVEDIR as usize]),
            Call::Unlink { at } => self.at(libc::SYS_unlinkat, &at, [0]),
            Call::Rename { from, to, flags } => {
                let ((from, from_path), (to, to_path)) = (self.place(&from), self.place(&to));
                let (from_path, to_path) = (c_path(&from_path), c_path(&to_path));
                let (from_path, to_path) = (from_path.as_ptr() as usize, to_path.as_ptr() as usize);
                sys::call(libc::SYS_renameat2, [signed(from), from_path, signed(to), to_path, flags as usize])
                    .and_then(plain)
            }
            Call::Link { from, to, flags } => {
                let (from, from_path) = self.place(&from);
                self.link(from, &from_path, &to, flags)
            }
            Call::LinkSlot { slot, to } => {
                let path = format!("/proc/self/fd/{}", self.fd(slot));
                self.link(libc::AT_FDCWD, &path, &to, libc::AT_SYMLINK_FOLLOW)
            }
            Call::Symlink { at, target } => {
                let ((base, path), target) = (self.place(&at), c_path(&target));
                let path = c_path(&path);
                sys::call(libc::SYS_symlinkat, [target.as_ptr() as usize, signed(base), path.as_ptr() as usize])
                    .and_then(plain)
            }
            Call::Readlink { at } => {
                let mut target = vec![0u8; 4096];
                let (len, _) = self.at(libc::SYS_readlinkat, &at, [target.as_mut_ptr() as usize, target.len()])?;
                Ok((len, digest(&target[..len as usize])))
            }
            Call::Mknod { at, mode, rdev: (major, minor) } => {
                self.at(libc::SYS_mknodat, &at, [mode as usize, libc::makedev(major, minor) as usize])
            }
            Call::Chmod { at, mode } => self.at(libc::SYS_fchmodat, &at, [mode as usize]),
            Call::Fchmod { slot, mode } => self.on(libc::SYS_fchmod, slot, [mode as usize]),
            Call::Chown { at, uid, gid, flags } => {
                self.at(libc::SYS_fchownat, &at, [uid as usize, gid as usize, flags as usize])
            }
            Call::Fchown { slot, uid, gid } => self.on(libc::SYS_fchown, slot, [uid as usize, gid as usize]),
            Call::Utimes { at, atime, mtime, flags } => {
                let times = [atime.0, atime.1, mtime.0, mtime.1];
                self.at(libc::SYS_utimensat, &at, [times.as_ptr() as usize, flags as usize])
            }
            Call::Futimes { slot, atime, mtime } => {
                let times = [atime.0, atime.1, mtime.0, mtime.1];
                self.on(libc::SYS_utimensat, slot, [0, times.as_ptr() as usize, 0])
            }
            Call::Stat { at, flags } => {
                let (base, path) = self.place(&at);
                sys::statx(base, &path, flags).map(|found| (0, attributes(&found)))
            }
            Call::Fstat { slot } => sys::fstat(self.fd(slot)).map(|found| (0, attributes(&found))),
            Call::Access { at, mode, flags } => self.at(libc::SYS_faccessat2, &at, [mode as usize, flags as usize]),
            Call::SetXattr { on, name, len, number, flags } => {
                self.set_xattr(&on, &name, &written_bytes(number, 0, len), flags)
            }
            Call::GetXattr { on, name, size } => self.get_xattr(&on, &name, size as usize),
            Call::ListXattr { on, size } => self.list_xattr(&on, size as usize),
            Call::RemoveXattr { on, name } => {
                let numbers = [libc::SYS_removexattr, libc::SYS_lremovexattr, libc::SYS_fremovexattr];
                let name = c_path(&name);
                self.xattr(numbers, &on, [name.as_ptr() as usize]).and_then(plain)
            }
            Call::SetAcl { at, default, entries } => {
                let mut value = 2u32.to_le_bytes().to_vec();
                for (tag, permissions, id) in entries {
                    value.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
                    value.extend(id.to_le_bytes());
                }
                self.set_xattr(&Target::Path(at), acl_name(default), &value, 0)
            }
            Call::GetAcl { at, default } => self.get_xattr(&Target::Path(at), acl_name(default), 4096),
            Call::List { slot } => {
                let fd = self.fd(slot);
                rewind(fd)?;
                let entries = sys::all_entries(fd)?;
                rewind(fd)?;
                listing(&entries)
            }
            Call::Seekdir { slot, skip } => seek_directory(self.fd(slot), skip as usize),
            Call::Flock { slot, operation } => self.on(libc::SYS_flock, slot, [(operation | libc::LOCK_NB) as usize]),
            Call::Lock { slot, kind, start, len, description } => {
                let command = if description { libc::F_OFD_SETLK } else { libc::F_SETLK };
                let lock = file_lock(kind, start, len);
                self.on(libc::SYS_fcntl, slot, [command as usize, &raw const lock as usize])
            }
            Call::GetLock { slot, kind, start, len, description } => {
                let command = if description { libc::F_OFD_GETLK } else { libc::F_GETLK };
                let mut lock = file_lock(kind, start, len);
                self.on(libc::SYS_fcntl, slot, [command as usize, &raw mut lock as usize])?;
                Ok((i64::from(lock.l_type), format!("{} {} {}", lock.l_whence, lock.l_start, lock.l_len)))
            }
            Call::Chdir { at } => {
                self.by_path(libc::SYS_chdir, &at, [])?;
                self.working_directory()
            }
            Call::Fchdir { slot } => {
                self.on(libc::SYS_fchdir, slot, [])?;
                self.working_directory()
            }
            Call::Getcwd => self.working_directory(),
            Call::Statfs { at } => self.statfs(&at),
            Call::SetFlags { slot, flags } => {
                let mut all = 0u64;
                self.on(libc::SYS_ioctl, slot, [FS_IOC_GETFLAGS, &raw mut all as usize])?;
                all = (all & !u64::from(INODE_FLAGS)) | u64::from(flags);
                self.on(libc::SYS_ioctl, slot, [FS_IOC_SETFLAGS, &raw const all as usize])
            }
            Call::GetFlags { slot } => {
                let mut all = 0u64;
                self.on(libc::SYS_ioctl, slot, [FS_IOC_GETFLAGS, &raw mut all as usize])?;
                plain((all & u64::from(INODE_FLAGS)) as i64)
            }
            Call::Program { at } => {
                let (base, path) = self.place(&at);
                program::write(base, &path)
            }
            Call::Run { at } => program::Running::start(&self.path(&at), "0")?.wait(),
            Call::Start { at } => {
                if let Some(running) = self.running.take() {
                    running.stop()?;
                }
                self.running = Some(program::Running::start(&self.path(&at), "1000")?);
                plain(0)
            }
            Call::Stop => match self.running.take() {
                Some(running) => running.stop().and_then(plain),
                None => Err(libc::ESRCH),
            },
            Call::Umask { mask } => sys::call(libc::SYS_umask, [mask as usize]).and_then(plain),
            Call::SetStatus { slot, flags } => self.on(libc::SYS_fcntl, slot, [libc::F_SETFL as usize, flags as usize]),
        }
    }

    fn opened(&mut self, slot: usize, fd: Sys<RawFd>) -> Done {
        let fd = fd?;
        if let Some(before) = self.slots[slot].replace(fd) {
            sys::close(before)?;
        }
        let found = sys::fstat(fd)?;
        self.opened_ino = found.stx_ino;
        Ok((0, attributes(&found)))
    }

    fn read_at(&self, slot: usize, offset: Option<u64>, lens: &[u32]) -> Done {
        let total: usize = lens.iter().map(|&len| len as usize).sum();
        // O_DIRECT wants memory at the border of a page.
        let mut room = vec![0u8; total + 4096];
        let begin = room.as_ptr().align_offset(4096);
        let mut address = room[begin..].as_mut_ptr() as usize;
        let parts = split(&mut address, lens);
        let read = match offset {
            Some(offset) => {
                self.on(libc::SYS_preadv, slot, [parts.as_ptr() as usize, parts.len(), offset as usize, 0])?.0
            }
            None => self.on(libc::SYS_readv, slot, [parts.as_ptr() as usize, parts.len()])?.0,
        };
        Ok((read, digest(&room[begin..begin + read as usize])))
    }

    fn write_at(&self, slot: usize, offset: Option<u64>, lens: &[u32], number: u64) -> Done {
        let total = lens.iter().sum::<u32>();
        let mut room = vec![0u8; total as usize + 4096];
        let begin = room.as_ptr().align_offset(4096);
        let bytes = written_bytes(number, offset.unwrap_or(0), total);
        room[begin..begin + bytes.len()].copy_from_slice(&bytes);
        let mut address = room[begin..].as_ptr() as usize;
        let parts = split(&mut address, lens);
        match offset {
            Some(offset) => {
                self.on(libc::SYS_pwritev, slot, [parts.as_ptr() as usize, parts.len(), offset as usize, 0])
            }
            None => self.on(libc::SYS_writev, slot, [parts.as_ptr() as usize, parts.len()]),
        }
    }

    /// Whether the place that SEEK_DATA or SEEK_HOLE gives is a right one: holes may be reported coarsely or not at all,
    /// so there are several. What SEEK_DATA passes over must be zeros, and so must be what SEEK_HOLE finds.
    fn seek_data(&self, slot: usize, offset: i64, whence: i32) -> Done {
        let size = sys::fstat(self.fd(slot))?.stx_size as i64;
        let found = self.on(libc::SYS_lseek, slot, [signed(offset), whence as usize]);
        self.on(libc::SYS_lseek, slot, [signed(offset), libc::SEEK_SET as usize])?;
        let zeros = match (found, whence) {
            (Ok((at, _)), libc::SEEK_DATA) => offset..at,
            (Err(libc::ENXIO), libc::SEEK_DATA) if (0..size).contains(&offset) => offset..size,
            (Ok((at, _)), _) => at..(at + 1).min(size),
            (Err(errno), _) => return Err(errno),
        };
        // A hole of a terabyte is looked at where it begins; what cannot be read is not looked at.
        let mut bytes = vec![0u8; (zeros.end - zeros.start).clamp(0, 1 << 20) as usize];
        let room = bytes.as_mut_ptr() as usize;
        let _ = self.on(libc::SYS_pread64, slot, [room, bytes.len(), zeros.start as usize]);
        Ok((0, format!("only zeros {}", bytes.iter().all(|&byte| byte == 0))))
    }

    /// All of it: a file system may copy less than it was asked for at a time.
    fn copy_range(&self, from: usize, to: usize, mut from_offset: u64, mut to_offset: u64, len: u64) -> Done {
        let (input, output) = (signed(self.fd(from)), signed(self.fd(to)));
        let mut done = 0;
        while done < len {
            let (read, write) = (&raw mut from_offset as usize, &raw mut to_offset as usize);
            let left = (len - done) as usize;
            match call(libc::SYS_copy_file_range, [input, read, output, write, left, 0]) {
                Ok(0) => break,
                Ok(copied) => done += copied as u64,
                Err(_) if 0 < done => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok((done as i64, format!("up to {from_offset}, {to_offset}")))
    }

    fn map_read(&self, slot: usize, offset: u64, len: usize) -> Done {
        let address = sys::map(self.fd(slot), offset, len, libc::PROT_READ, libc::MAP_SHARED)?;
        let text = pages(address, len);
        sys::unmap(address, len)?;
        Ok((len as i64, text))
    }

    fn map_write(&self, slot: usize, offset: u64, len: usize, number: u64, private: bool) -> Done {
        let sharing = if private { libc::MAP_PRIVATE } else { libc::MAP_SHARED };
        let address = sys::map(self.fd(slot), offset, len, libc::PROT_READ | libc::PROT_WRITE, sharing)?;
        let bytes = written_bytes(number, offset, len as u32);
        let outcome =
            bytes.chunks(4096).enumerate().try_for_each(|(page, bytes)| sys::poke(address + page * 4096, bytes));
        let (mut bytes, missing) = peeked(address, len);
        let synced = call(libc::SYS_msync, [address, len, libc::MS_SYNC as usize]);
        sys::unmap(address, len)?;
        outcome?;
        synced?;
        // What was stored behind the end of the file is there until the kernel writes the page out, whenever that is.
        let file_len = sys::fstat(self.fd(slot))?.stx_size;
        bytes.truncate(file_len.saturating_sub(offset) as usize);
        Ok((len as i64, pages_text(&bytes, missing)))
    }

    fn map_truncate(&self, slot: usize, mapped: usize, length: i64) -> Done {
        let address = sys::map(self.fd(slot), 0, mapped, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED)?;
        let before = pages(address, mapped);
        let outcome = self.on(libc::SYS_ftruncate, slot, [signed(length)]);
        let after = pages(address, mapped);
        sys::unmap(address, mapped)?;
        outcome.map(|(value, _)| (value, format!("{before}; {after}")))
    }

    fn link(&self, from: RawFd, path: &str, to: &At, flags: i32) -> Done {
        let (path, (to, to_path)) = (c_path(path), self.place(to));
        let to_path = c_path(&to_path);
        let (path, to_path) = (path.as_ptr() as usize, to_path.as_ptr() as usize);
        call(libc::SYS_linkat, [signed(from), path, signed(to), to_path, flags as usize]).and_then(plain)
    }

    /// One of the three forms of an extended attribute's call: by path, of a link, by descriptor.
    fn xattr<const N: usize>(&self, numbers: [libc::c_long; 3], on: &Target, more: [usize; N]) -> Sys<i64> {
        match on {
            Target::Path(at) => self.by_path(numbers[0], at, more),
            Target::Link(at) => self.by_path(numbers[1], at, more),
            Target::Slot(slot) => self.on(numbers[2], *slot, more),
        }
        .map(|(value, _)| value)
    }

    fn set_xattr(&self, on: &Target, name: &str, value: &[u8], flags: i32) -> Done {
        let numbers = [libc::SYS_setxattr, libc::SYS_lsetxattr, libc::SYS_fsetxattr];
        let name = c_path(name);
        let more = [name.as_ptr() as usize, value.as_ptr() as usize, value.len(), flags as usize];
        self.xattr(numbers, on, more).and_then(plain)
    }

    fn get_xattr(&self, on: &Target, name: &str, size: usize) -> Done {
        let numbers = [libc::SYS_getxattr, libc::SYS_lgetxattr, libc::SYS_fgetxattr];
        let (name, mut value) = (c_path(name), vec![0u8; size]);
        let len = self.xattr(numbers, on, [name.as_ptr() as usize, value.as_mut_ptr() as usize, size])?;
        value.truncate(len as usize);
        Ok((len, digest(&value)))
    }

    fn list_xattr(&self, on: &Target, size: usize) -> Done {
        let numbers = [libc::SYS_listxattr, libc::SYS_llistxattr, libc::SYS_flistxattr];
        let mut list = vec![0u8; size];
        let len = self.xattr(numbers, on, [list.as_mut_ptr() as usize, size])?;
        list.truncate(len as usize);
        let mut names: Vec<String> = list.split(|&byte| byte == 0).map(sys::text_of).collect();
        names.sort();
        Ok((len, names.join(" ").trim().to_owned()))
    }

    fn working_directory(&self) -> Done {
        let mut path = vec![0u8; 4096];
        let len = call(libc::SYS_getcwd, [path.as_mut_ptr() as usize, path.len()])? as usize;
        let path = sys::text_of(&path[..len - 1]);
        // Outside of the tree the two sides have names of their own.
        let below = path.strip_prefix(&self.path).map(|below| below.trim_start_matches('/'));
        Ok((0, below.unwrap_or("/outside").to_owned()))
    }

    /// What must hold between the numbers of a file system, and its one number that is a limit of names.
    fn statfs(&self, at: &At) -> Done {
        // SAFETY: zeros are a value of this structure of numbers.
        let mut found: libc::statfs = unsafe { std::mem::zeroed() };
        self.by_path(libc::SYS_statfs, at, [&raw mut found as usize])?;
        let ordered =
            found.f_bavail <= found.f_bfree && found.f_bfree <= found.f_blocks && found.f_ffree <= found.f_files;
        Ok((0, format!("ordered {ordered} namelen {} free {}", found.f_namelen, 0 < found.f_bfree)))
    }

    fn open_files(&self) -> Vec<String> {
        let line = |(slot, fd): (usize, &Option<RawFd>)| {
            let fd = (*fd)?;
            let position = call(libc::SYS_lseek, [signed(fd), 0, libc::SEEK_CUR as usize]);
            let flags = call(libc::SYS_fcntl, [signed(fd), libc::F_GETFL as usize]).unwrap_or(-1);
            match sys::fstat(fd) {
                Ok(found) => {
                    let directory = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
                    // The place in a directory is a number of the file system's own.
                    let position = if directory { Ok(0) } else { position };
                    Some(format!("slot {slot}: {} at {position:?} flags {flags:o}", attributes(&found)))
                }
                Err(errno) => Some(format!("slot {slot}: {}", sys::errno_name(errno))),
            }
        };
        self.slots.iter().enumerate().filter_map(line).collect()
    }
}

fn acl_name(default: bool) -> &'static str {
    if default { "system.posix_acl_default" } else { "system.posix_acl_access" }
}

fn file_lock(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

/// Buffers of `lens` bytes, one after the other.
fn split(address: &mut usize, lens: &[u32]) -> Vec<libc::iovec> {
    let part = |&len: &u32| {
        let part = libc::iovec { iov_base: *address as *mut libc::c_void, iov_len: len as usize };
        *address += len as usize;
        part
    };
    lens.iter().map(part).collect()
}

/// Every page of mapped memory: its bytes, or that there is none.
fn pages(address: usize, len: usize) -> String {
    let (bytes, missing) = peeked(address, len);
    pages_text(&bytes, missing)
}

fn pages_text(bytes: &[u8], missing: usize) -> String {
    format!("{}, {missing} pages missing", digest(bytes))
}

/// The bytes of the pages that are there, and how many are not.
fn peeked(address: usize, len: usize) -> (Vec<u8>, usize) {
    let mut bytes = vec![];
    let mut missing = 0;
    for begin in (0..len).step_by(4096) {
        match sys::peek(address + begin, 4096.min(len - begin)) {
            Ok(page) => bytes.extend(page),
            Err(_) => missing += 1,
        }
    }
    (bytes, missing)
}

fn listing(entries: &[sys::Dirent]) -> Done {
    let mut names: Vec<String> = entries.iter().map(|entry| format!("{}:{}", entry.name, entry.kind)).collect();
    names.sort();
    Ok((names.len() as i64, names.join(" ")))
}

/// Leaves a directory at a place that is the same everywhere.
fn rewind(fd: RawFd) -> Sys<()> {
    call(libc::SYS_lseek, [signed(fd), 0, libc::SEEK_SET as usize]).map(drop)
}

fn seek_directory(fd: RawFd, skip: usize) -> Done {
    rewind(fd)?;
    let mut all = vec![];
    while all.len() < skip {
        // Room for the longest name, and for few of the usual ones.
        let more = sys::getdents(fd, 288)?;
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    let place = all.last().map_or(0, |entry| entry.cookie);
    let rest = sys::all_entries(fd)?;
    call(libc::SYS_lseek, [signed(fd), signed(place), libc::SEEK_SET as usize])?;
    let again = sys::all_entries(fd)?;
    rewind(fd)?;
    all.extend(rest.iter().cloned());
    let (count, names) = listing(&all)?;
    Ok((count, format!("again {} {names}", rest == again)))
}
