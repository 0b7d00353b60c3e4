//! The mount under test, the disk below it, and the ways to end them.
//!
//! Owns: mount points and the loop device. Leaves to others: the store (`store`), when to end what (`run`).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::process::{PATIENCE, Process};
use crate::store::{Store, VOLUME};
use crate::sys;

/// Where everything is; all but `mnt` and the logs may lie on `Disk`.
pub(crate) struct Setup {
    pub(crate) kiseki: PathBuf,
    pub(crate) meta: PathBuf,
    pub(crate) store: Store,
    pub(crate) mnt: PathBuf,
    pub(crate) log: PathBuf,
    /// Counts what the mount is doing, as it does it (see `Phases`).
    pub(crate) phases: PathBuf,
    pub(crate) mount_args: Vec<String>,
    pub(crate) no_fsync: bool,
}

/// What the mount was in the middle of: puts, commits, commits that hold a truncate, renames over another name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phases(pub(crate) [u64; 4]);

pub(crate) const PHASES: [&str; 4] = ["put", "commit", "truncate", "rename-over"];

impl Setup {
    pub(crate) fn format(&self) -> Result<(), String> {
        fs::create_dir_all(&self.mnt).map_err(|error| format!("{}: {error}", self.mnt.display()))?;
        let mut command = self.command("format");
        command.arg(&self.meta).arg(VOLUME).args(self.store.format_args());
        run(&mut command).map(drop)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.kiseki);
        command.arg(name);
        self.store.give_credentials(&mut command);
        command
    }

    /// Starts a mount and returns when it answers.
    pub(crate) fn mount(&self) -> Result<Mount<'_>, String> {
        let text = |error: io::Error| format!("cannot start the mount: {error}");
        fs::write(&self.phases, [0; 4096]).map_err(text)?;
        let log = File::options().create(true).append(true).open(&self.log).map_err(text)?;
        let mut command = self.command("mount");
        command.arg(&self.meta).arg(&self.mnt).args(&self.mount_args);
        command.env("KISEKI_TEST_PHASE_FILE", &self.phases).env("RUST_BACKTRACE", "1").stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(text)?).stderr(log);
        if self.no_fsync {
            sys::without_fsync(&mut command);
        }
        let mut mount = Mount { setup: self, process: Process::new(command.spawn().map_err(text)?) };
        let end = Instant::now() + PATIENCE;
        while !sys::answers(&self.mnt) {
            if let Some(status) = mount.has_ended() {
                return Err(format!("the mount ended with {status}"));
            }
            if Instant::now() > end {
                return Err(format!("the mount does not answer after {PATIENCE:?}"));
            }
            sleep(Duration::from_millis(5));
        }
        Ok(mount)
    }

    /// `fsck --data`, beside the running mount or without one.
    pub(crate) fn fsck(&self) -> Result<(), String> {
        run(self.command("fsck").arg(&self.meta).arg("--data")).map(drop)
    }

    pub(crate) fn read_phases(&self) -> Phases {
        let mut bytes = [0; 32];
        let mut phases = Phases::default();
        if File::open(&self.phases).and_then(|file| file.read_exact_at(&mut bytes, 0)).is_ok() {
            for (value, part) in phases.0.iter_mut().zip(bytes.chunks_exact(8)) {
                *value = part.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            }
        }
        phases
    }

    /// Lines at level ERROR that the mounts of this run have logged: each says that a promise was broken.
    pub(crate) fn logged_errors(&self) -> Vec<String> {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).lines().filter(|line| line.contains("ERROR")).map(Into::into).collect()
    }
}

/// A running mount. Dropping it kills it.
pub(crate) struct Mount<'a> {
    setup: &'a Setup,
    process: Process,
}

impl Mount<'_> {
    /// Ends it as `kiseki umount` does; everything must be flushed.
    pub(crate) fn unmount(mut self) -> Result<(), String> {
        run(self.setup.command("umount").arg(&self.setup.mnt))?;
        match self.process.wait()? {
            status if status.success() => Ok(()),
            status => Err(format!("the mount ended with {status} after umount")),
        }
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Holds the process still; returns what it was in the middle of.
    pub(crate) fn pause(&self) -> Phases {
        self.process.pause();
        self.setup.read_phases()
    }

    pub(crate) fn resume(&self) {
        self.process.resume();
    }

    /// Whether, held still, it waits for no disk.
    pub(crate) fn is_quiet(&self) -> bool {
        self.process.is_quiet()
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.process.has_ended()
    }
}

/// ext4 on a loop device.
pub(crate) struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    pub(crate) fn create(image: PathBuf, at: PathBuf, bytes: u64) -> Result<Self, String> {
        fs::create_dir_all(&at).map_err(|error| format!("{}: {error}", at.display()))?;
        let file = File::create(&image).map_err(|error| format!("{}: {error}", image.display()))?;
        file.set_len(bytes).map_err(|error| format!("{}: {error}", image.display()))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        Ok(Self { image, at })
    }

    pub(crate) fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&self.image).arg(&self.at)).map(drop)
    }

    /// What no fsync has made durable is gone from here on, and every write fails.
    pub(crate) fn cut_power(&self) -> Result<(), String> {
        let cut = File::open(&self.at).and_then(|root| sys::shut_down_ext4(&root));
        cut.map_err(|error| format!("cannot shut down {}: {error}", self.at.display()))
    }

    /// Unmounts, waiting for a killed process to let go of its files.
    pub(crate) fn unmount(&self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        loop {
            match run(Command::new("umount").arg(&self.at)) {
                Ok(_) => return Ok(()),
                Err(text) if Instant::now() > end => return Err(text),
                Err(_) => sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Runs a command to its end; the error holds what it printed.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(format!("{command:?} ended with {}:\n{text}", output.status)) }
}
