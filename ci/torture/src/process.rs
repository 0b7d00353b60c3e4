//! A process under test: held still, let go, killed.
//!
//! Owns: signals and waiting. Leaves to others: when (`run`), what runs (`world`, `store`).

use std::fs;
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::sys;

/// How long a mount, an unmount, or a kill may take before something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Dropping it kills it.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    pub(crate) fn wait(&mut self) -> Result<ExitStatus, String> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() > end => {
                    return Err(format!("the process is still there after {PATIENCE:?}"));
                }
                Ok(None) => sleep(Duration::from_millis(5)),
                Err(error) => return Err(format!("cannot wait for the process: {error}")),
            }
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if self.has_ended().is_none() {
            let _ = sys::signal(self.0.id(), libc::SIGKILL);
            let _ = self.wait();
        }
    }

    /// Holds it still: when this returns, no thread will run a line more.
    pub(crate) fn pause(&self) {
        let _ = sys::signal(self.0.id(), libc::SIGSTOP);
        let end = Instant::now() + Duration::from_secs(5);
        // Stopped, or in the kernel, where the stop awaits it.
        while !self.threads_are("TtDZX") && Instant::now() < end {
            std::thread::yield_now();
        }
    }

    pub(crate) fn resume(&self) {
        let _ = sys::signal(self.0.id(), libc::SIGCONT);
    }

    /// Whether, held still, no thread waits for a disk either.
    pub(crate) fn is_quiet(&self) -> bool {
        self.threads_are("TtZX")
    }

    fn threads_are(&self, states: &str) -> bool {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.0.id())) else { return true };
        tasks.flatten().all(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            state.is_none_or(|state| states.contains(state))
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
