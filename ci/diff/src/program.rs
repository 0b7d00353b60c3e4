//! Programs that are executed from the tree under test.
//!
//! Owns: making one, running it, ending it. Leaves to others: when (`worker`).

use std::os::fd::RawFd;

use crate::sys::{self, Sys, c_path, call, signed};

/// A small program that every system has, which waits as long as its argument says.
const SLEEP: &str = "/bin/sleep";

/// Writes a program to a file that must not be there.
pub(crate) fn write(dir: RawFd, path: &str) -> Sys<(i64, String)> {
    let program = std::fs::read(SLEEP).map_err(|_| libc::ENOENT)?;
    let fd = sys::open(dir, path, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o755)?;
    let written = call(libc::SYS_write, [signed(fd), program.as_ptr() as usize, program.len()]);
    sys::close(fd)?;
    written.map(|len| (len, String::new()))
}

/// A mistaken program must not leave its memory in the tree.
pub(crate) fn no_core_dumps() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call reads the structure behind the pointer, which outlives it.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    assert_eq!(result, 0, "a limit can be lowered");
}

/// Ends with the worker: the kernel kills it then.
#[derive(Debug)]
pub(crate) struct Running(i32);

impl Running {
    /// Executes `path` with one argument; returns once it runs.
    pub(crate) fn start(path: &str, argument: &str) -> Sys<Self> {
        let (path, argument) = (c_path(path), c_path(argument));
        let arguments = [path.as_ptr(), argument.as_ptr(), std::ptr::null()];
        let environment = [std::ptr::null::<libc::c_char>()];
        let mut ends = [0 as RawFd; 2];
        call(libc::SYS_pipe2, [ends.as_mut_ptr() as usize, libc::O_CLOEXEC as usize])?;
        // SAFETY: the process has one thread, and the child makes system calls only, on memory prepared above.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above; `execve` and `_exit` do not return to what the parent shares. A program that was written
            // over may run wild: ten seconds, if it is not to wait.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if *argument.as_ptr().add(1) == 0 {
                    libc::alarm(10);
                }
                libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                let errno = *libc::__errno_location();
                libc::write(ends[1], (&raw const errno).cast(), 4);
                libc::_exit(127);
            }
        }
        sys::close(ends[1])?;
        let mut errno = 0i32;
        let read = call(libc::SYS_read, [signed(ends[0]), &raw mut errno as usize, 4])?;
        sys::close(ends[0])?;
        if read == 0 {
            return Ok(Self(pid));
        }
        Self(pid).wait()?;
        Err(errno)
    }

    /// How it ended, as wait(2) says.
    pub(crate) fn wait(self) -> Sys<(i64, String)> {
        let mut status = 0i32;
        call(libc::SYS_wait4, [signed(self.0), &raw mut status as usize, 0, 0])?;
        Ok((0, format!("status {status:#x}")))
    }

    pub(crate) fn stop(self) -> Sys<i64> {
        call(libc::SYS_kill, [signed(self.0), libc::SIGKILL as usize])?;
        self.wait().map(|_| 0)
    }
}
