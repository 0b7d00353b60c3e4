//! The mount point: what it must be before mounting, and how it is left.
//!
//! Owns: the checks and their messages, detaching a dead mount of our own, unmounting, also of a busy mount.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use tracing::{debug, info, warn};

use super::table::{self, Mounted};

/// How long a busy mount is given to become idle before it is detached from under its users.
const BUSY_WAIT: Duration = Duration::from_secs(1);
const BUSY_RETRY: Duration = Duration::from_millis(50);

/// Readahead of the mount. Sequential reads of a cold file are a third faster than with 128 KiB; 4 MiB adds nothing.
const READAHEAD_KIB: u32 = 1024;

/// Makes sure that a volume can be mounted at `point`; returns its canonical path.
///
/// A mount of ours that died there is detached.
pub(super) fn prepare(point: &Path, nonempty: bool) -> anyhow::Result<PathBuf> {
    let path = resolve(point)?;
    // One after the other: several may have died on top of each other.
    while let Some(mounted) = table::at(&path).context("cannot read /proc/self/mountinfo")? {
        match rustix::fs::statfs(&path) {
            Err(Errno::NOTCONN) => detach_dead(&path, &mounted)?,
            Ok(_) | Err(_) => {
                if let Some(meta) = mounted.meta() {
                    bail!(
                        "{} is already a mount of the Kiseki volume {}; unmount it first: kiseki umount {}",
                        path.display(),
                        meta.display(),
                        path.display()
                    );
                }
                break;
            }
        }
    }
    let metadata = std::fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
    if !metadata.is_dir() {
        bail!("{} is not a directory: a volume is mounted over a directory", path.display());
    }
    let mut entries = std::fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
    if !nonempty && entries.next().is_some() {
        bail!(
            "{} is not empty: what it holds would be hidden; choose an empty directory, or pass -o nonempty",
            path.display()
        );
    }
    Ok(path)
}

/// The canonical path of `point`, which may be a dead mount, whose last component cannot be looked at.
fn resolve(point: &Path) -> anyhow::Result<PathBuf> {
    let error = match point.canonicalize() {
        Ok(path) => return Ok(path),
        Err(error) => error,
    };
    match (error.raw_os_error().map(Errno::from_raw_os_error), point.file_name()) {
        (Some(Errno::NOTCONN), Some(name)) => {
            let parent = std::path::absolute(point)?.parent().unwrap_or(Path::new("/")).canonicalize()?;
            Ok(parent.join(name))
        }
        (Some(Errno::NOENT), _) => {
            Err(anyhow!("mount point {} does not exist; make it first: mkdir -p {0}", point.display()))
        }
        _ => Err(error).with_context(|| format!("cannot look at mount point {}", point.display())),
    }
}

fn detach_dead(path: &Path, mounted: &Mounted) -> anyhow::Result<()> {
    let Some(meta) = mounted.meta() else {
        bail!(
            "{} is a dead mount of another file system ({}); detach it first: fusermount3 -uz {0}",
            path.display(),
            mounted.kind
        );
    };
    warn!(point = %path.display(), meta = %meta.display(), "detaching the mount of a process that is gone");
    unmount(path, UnmountFlags::DETACH).with_context(|| format!("cannot detach the dead mount at {}", path.display()))
}

/// Unmounts what is at `path`; without privileges by way of fusermount3.
fn unmount(path: &Path, flags: UnmountFlags) -> io::Result<()> {
    match rustix::mount::unmount(path, flags) {
        Err(Errno::PERM) => fusermount(path, flags.contains(UnmountFlags::DETACH)),
        done => Ok(done?),
    }
}

fn fusermount(path: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(path);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // Its only sign of this; fusermount3 does not translate its messages.
    let kind = if text.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, text))
}

/// Ends the mount at `path` for good. May take as long as the kernel needs to write out mapped pages.
///
/// A mount that stays busy is detached and its connection ended: its open files fail from there on. What they wrote
/// before has been accepted and is kept.
pub(super) fn leave(path: &Path) {
    let deadline = Instant::now() + BUSY_WAIT;
    loop {
        match unmount(path, UnmountFlags::empty()) {
            Ok(()) => return,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                if Instant::now() >= deadline {
                    break;
                }
                std::thread::sleep(BUSY_RETRY);
            }
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return,
            Err(error) => {
                warn!(point = %path.display(), %error, "cannot unmount; ending the connection");
                break;
            }
        }
    }
    force(path);
}

fn force(path: &Path) {
    info!(point = %path.display(), "the mount is in use; its open files are cut off");
    // Pages written through mappings are not ours before the kernel has sent them.
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(root) => {
            if let Err(error) = rustix::fs::syncfs(&root) {
                warn!(%error, "some mapped pages were not written out");
            }
        }
        Err(error) => warn!(%error, "cannot ask for mapped pages to be written out"),
    }
    let connection = table::at(path).ok().flatten().map(|mounted| mounted.dev.1);
    // MNT_FORCE ends the connection; fusermount3 cannot, but the connection's owner may, if the kernel shows it.
    if let Err(error) = unmount(path, UnmountFlags::FORCE | UnmountFlags::DETACH) {
        warn!(point = %path.display(), %error, "cannot detach the mount");
    }
    if let Some(connection) = connection {
        match std::fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1") {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => debug!(%error, connection, "cannot end the connection"),
        }
    }
}

/// Lets the kernel read further ahead than the 128 KiB that a FUSE server may ask for, which only root can.
pub(super) fn raise_readahead(path: &Path) {
    let dev = match std::fs::metadata(path) {
        Ok(metadata) => metadata.dev(),
        Err(error) => return debug!(%error, "cannot look at the mount"),
    };
    let knob = format!("/sys/class/bdi/{}:{}/read_ahead_kb", rustix::fs::major(dev), rustix::fs::minor(dev));
    if let Err(error) = std::fs::write(&knob, READAHEAD_KIB.to_string()) {
        debug!(%error, knob, "readahead stays as the kernel set it");
    }
}

/// Asks the mounted file system through the kernel: it returns once the mount answers.
pub(super) fn wait_until_it_answers(path: &Path) -> anyhow::Result<()> {
    rustix::fs::statfs(path).with_context(|| format!("{} was mounted but does not answer", path.display()))?;
    Ok(())
}
