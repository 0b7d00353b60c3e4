//! The few system calls that std has no name for.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
/// `EXT4_IOC_SHUTDOWN`, and its flag that leaves the journal where it is: a power cut.
const EXT4_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587D;
const SHUTDOWN_NOLOGFLUSH: u32 = 2;

fn path_c(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a FUSE file system answers at `path`.
pub(crate) fn answers(path: &Path) -> bool {
    let Ok(path) = path_c(path) else { return false };
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with NUL, and `found` has room for a statfs.
    let result = unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) };
    // SAFETY: a statfs call that returned 0 has filled `found`.
    result == 0 && unsafe { found.assume_init() }.f_type == FUSE_SUPER_MAGIC
}

/// Asks the file system for the attributes of `path`, whatever the kernel still knows of them.
pub(crate) fn fresh_attributes(path: &Path) -> io::Result<()> {
    let path = path_c(path)?;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_FORCE_SYNC;
    let mut found = MaybeUninit::<libc::statx>::uninit();
    // SAFETY: `path` ends with NUL, and `found` has room for a statx, which is not looked at.
    check(unsafe {
        libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_BASIC_STATS, found.as_mut_ptr()).into()
    })
}

/// renameat2(2) with RENAME_EXCHANGE.
pub(crate) fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let (a, b) = (path_c(a)?, path_c(b)?);
    // SAFETY: both paths end with NUL and outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_renameat2,
            libc::AT_FDCWD,
            a.as_ptr(),
            libc::AT_FDCWD,
            b.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    })
}

pub(crate) fn signal(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes no memory; `pid` is a child that was not waited for, so the number is still its own.
    check(unsafe { libc::kill(pid as i32, signal) }.into())
}

/// Cuts the power of the ext4 file system that `root` is on.
pub(crate) fn shut_down_ext4(root: &File) -> io::Result<()> {
    let flags = SHUTDOWN_NOLOGFLUSH;
    // SAFETY: the request reads one u32 behind the pointer, which outlives the call.
    check(unsafe { libc::ioctl(root.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) }.into())
}

/// Lets `command` run with every call that makes data durable turned into a no-op that succeeds,
/// also the calls that go past libc: a seccomp filter answers them.
pub(crate) fn without_fsync(command: &mut Command) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let calls = [
        libc::SYS_fsync,
        libc::SYS_fdatasync,
        libc::SYS_sync_file_range,
        libc::SYS_syncfs,
        libc::SYS_sync,
        libc::SYS_msync,
    ];
    // Load the call's number (the first word); a match jumps to the last line.
    let mut filter = vec![libc::sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 }];
    for (index, call) in calls.iter().enumerate() {
        filter.push(libc::sock_filter { code: EQUAL, jt: (calls.len() - index) as u8, jf: 0, k: *call as u32 });
    }
    filter.push(libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW });
    filter.push(libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO });
    let install = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: `program` points to `len` instructions that outlive the call, which only reads them. The caller is
        // root (it mounts ext4), so no_new_privs, which would take fusermount3's rights, is not needed.
        check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }.into())
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { command.pre_exec(install) };
}
