//! System calls without a library between: what the kernel answers is what is compared.
//!
//! Owns: the passage to the kernel, names of errors, a few structures that libc has no calls for.
//! Leaves to others: which calls to make (`worker`, `walk`).

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;

/// What a call gives: its result, or an errno.
pub(crate) type Sys<T> = Result<T, i32>;

/// Makes system call `number`.
///
/// Addresses among `arguments` are of buffers that live until it returns and are as long as the other arguments say;
/// the kernel checks that they are mapped.
pub(crate) fn call<const N: usize>(number: libc::c_long, arguments: [usize; N]) -> Sys<i64> {
    let at = |index: usize| arguments.get(index).copied().unwrap_or(0);
    // SAFETY: by the contract above, the kernel reads and writes only memory that the caller lent to this call.
    let result = unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) };
    if result == -1 { Err(last_errno()) } else { Ok(result) }
}

fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// An argument that is signed, such as a descriptor or an offset.
pub(crate) fn signed(value: impl Into<i64>) -> usize {
    value.into() as usize
}

/// The bytes of a path. Each `char` stands for the byte of its number, so that any byte can be written in text.
pub(crate) fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|letter| letter as u32 as u8).collect()
}

/// The reverse of `bytes_of`.
pub(crate) fn text_of(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

/// A path for the kernel.
pub(crate) fn c_path(text: &str) -> CString {
    CString::new(bytes_of(text)).unwrap_or_default()
}

pub(crate) fn open(dir: RawFd, path: &str, flags: i32, mode: u32) -> Sys<RawFd> {
    let path = c_path(path);
    let fd = call(
        libc::SYS_openat,
        [signed(dir), path.as_ptr() as usize, (flags | libc::O_CLOEXEC) as usize, mode as usize],
    )?;
    Ok(fd as RawFd)
}

pub(crate) fn close(fd: RawFd) -> Sys<()> {
    call(libc::SYS_close, [signed(fd)]).map(drop)
}

/// statx(2) of `path` below `dir`; an empty path with AT_EMPTY_PATH is `dir` itself.
pub(crate) fn statx(dir: RawFd, path: &str, flags: i32) -> Sys<libc::statx> {
    let path = c_path(path);
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let mask = libc::STATX_BASIC_STATS;
    call(
        libc::SYS_statx,
        [signed(dir), path.as_ptr() as usize, flags as usize, mask as usize, found.as_mut_ptr() as usize],
    )?;
    // SAFETY: it was zeroed, which is a value of this structure of numbers, and then filled.
    Ok(unsafe { found.assume_init() })
}

pub(crate) fn fstat(fd: RawFd) -> Sys<libc::statx> {
    statx(fd, "", libc::AT_EMPTY_PATH)
}

/// Maps `len` bytes of `fd` from `offset` and gives the address.
pub(crate) fn map(fd: RawFd, offset: u64, len: usize, protection: i32, flags: i32) -> Sys<usize> {
    let arguments = [0, len, protection as usize, flags as usize, signed(fd), offset as usize];
    call(libc::SYS_mmap, arguments).map(|address| address as usize)
}

pub(crate) fn unmap(address: usize, len: usize) -> Sys<()> {
    call(libc::SYS_munmap, [address, len]).map(drop)
}

/// One entry of a directory, as getdents64(2) gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dirent {
    pub(crate) name: String,
    pub(crate) ino: u64,
    pub(crate) kind: u8,
    /// Where the next one begins.
    pub(crate) cookie: i64,
}

/// The next entries of an open directory, as many as fit into `room` bytes; none at its end.
pub(crate) fn getdents(fd: RawFd, room: usize) -> Sys<Vec<Dirent>> {
    let mut buffer = vec![0u8; room];
    let filled = call(libc::SYS_getdents64, [signed(fd), buffer.as_mut_ptr() as usize, room])? as usize;
    let mut rest = &buffer[..filled];
    let mut entries = vec![];
    while rest.len() >= 19 {
        let number = |at: usize| u64::from_ne_bytes(rest[at..at + 8].try_into().unwrap_or_default());
        let len = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
        let name = rest[19..len].split(|&byte| byte == 0).next().unwrap_or_default();
        entries.push(Dirent { name: text_of(name), ino: number(0), kind: rest[18], cookie: number(8) as i64 });
        rest = &rest[len..];
    }
    Ok(entries)
}

/// All entries of an open directory from where it stands.
pub(crate) fn all_entries(fd: RawFd) -> Sys<Vec<Dirent>> {
    let mut entries = vec![];
    loop {
        let more = getdents(fd, 32 << 10)?;
        if more.is_empty() {
            return Ok(entries);
        }
        entries.extend(more);
    }
}

/// The bytes at `address`, or EFAULT where no page can be had: a pipe asks the kernel, which does not signal.
pub(crate) fn peek(address: usize, len: usize) -> Sys<Vec<u8>> {
    through_pipe(
        len,
        |_, write| call(libc::SYS_write, [signed(write), address, len]).map(drop),
        |read| {
            let mut bytes = vec![0; len];
            call(libc::SYS_read, [signed(read), bytes.as_mut_ptr() as usize, len])?;
            Ok(bytes)
        },
    )
}

/// Writes to mapped memory, or EFAULT where no page can be had.
pub(crate) fn poke(address: usize, bytes: &[u8]) -> Sys<()> {
    let len = bytes.len();
    through_pipe(
        len,
        |_, write| call(libc::SYS_write, [signed(write), bytes.as_ptr() as usize, len]).map(drop),
        |read| call(libc::SYS_read, [signed(read), address, len]).map(drop),
    )
}

fn through_pipe<T>(
    len: usize,
    fill: impl FnOnce(RawFd, RawFd) -> Sys<()>,
    drain: impl FnOnce(RawFd) -> Sys<T>,
) -> Sys<T> {
    assert!(len <= 4096, "more than a pipe takes at once");
    let mut ends = [0 as RawFd; 2];
    call(libc::SYS_pipe2, [ends.as_mut_ptr() as usize, libc::O_CLOEXEC as usize])?;
    let done = fill(ends[0], ends[1]).and_then(|()| drain(ends[0]));
    close(ends[0])?;
    close(ends[1])?;
    done
}

/// Becomes another user for good.
pub(crate) fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Sys<()> {
    call(libc::SYS_setgroups, [groups.len(), groups.as_ptr() as usize])?;
    call(libc::SYS_setresgid, [gid as usize; 3])?;
    call(libc::SYS_setresuid, [uid as usize; 3])?;
    Ok(())
}

/// The name of an errno.
pub(crate) fn errno_name(errno: i32) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::EINTR, "EINTR"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::E2BIG, "E2BIG"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EXDEV, "EXDEV"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EISDIR, "EISDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::EFBIG, "EFBIG"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::ESPIPE, "ESPIPE"),
        (libc::EROFS, "EROFS"),
        (libc::EMLINK, "EMLINK"),
        (libc::EPIPE, "EPIPE"),
        (libc::ERANGE, "ERANGE"),
        (libc::ENAMETOOLONG, "ENAMETOOLONG"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ENOTEMPTY, "ENOTEMPTY"),
        (libc::ELOOP, "ELOOP"),
        (libc::ENODATA, "ENODATA"),
        (libc::EOVERFLOW, "EOVERFLOW"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::ESTALE, "ESTALE"),
    ];
    known
        .iter()
        .find(|(number, _)| *number == errno)
        .map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).to_owned())
}
