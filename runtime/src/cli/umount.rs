//! `kiseki umount`: ends a mount and waits until everything is stored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::output::{Context, Done, Failure, Meter, Outcome, say};
use super::values::{show_secs, show_size};
use super::{open, place};
use crate::control::protocol::{MountView, Reply, Request, StoreView};
use crate::control::{Connection, status_of};

const EXAMPLES: &str = "\
Examples:
  kiseki umount /mnt/kiseki
  kiseki umount --force /mnt/kiseki

Returns 0 once everything that was written is stored and the mount process has ended. Also removes a mount whose
process was killed.

If the object store does not answer within the mount's --store-timeout, the command fails and the volume stays mounted
and usable: make the store reachable and repeat. With --force the mount point is freed all the same; its process keeps
what is not stored in memory and goes on trying until the store takes it. That is lost only if the process is ended
before (by two SIGTERM), or the machine goes down; what fsync(2) acknowledged is safe in any case.";

/// Unmount a volume, and wait until everything is stored
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UmountArgs {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Detach it although files on it are in use, or not everything can be stored; its process goes on in the
    /// background until they are closed and everything is stored
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(args: &UmountArgs) -> Outcome {
    let place = place::place(args.mountpoint.as_os_str())?;
    let Some(mount) = place.mount else {
        return Err(Failure::with_hint(
            format!("{} is not the mount point of a Kiseki volume", args.mountpoint.display()),
            "See /proc/self/mountinfo for what is mounted where.",
        ));
    };
    let connection =
        Connection::open(&mount.meta).context(|| format!("reach the mount of {}", mount.meta.display()))?;
    let Some(mut connection) = connection else {
        // Its process is gone: what is left is a mount point that answers "not connected".
        detach(&mount.mountpoint, UnmountFlags::DETACH)?;
        say(format!("removed the dead mount at {}", mount.mountpoint.display()));
        return Ok(Done::Clean);
    };
    let meter = Meter::new();
    if !args.force {
        store_first(&mount, &meter)?;
    }
    connection.ask(&Request::AwaitUnmount).context(|| "watch the unmount")?;
    let process = pidfd_open(connection.pid(), PidfdFlags::empty()).context(|| "watch the mount process")?;
    detach(&mount.mountpoint, if args.force { UnmountFlags::DETACH } else { UnmountFlags::empty() })?;
    if args.force && still_used(&process)? {
        say(detached(&mount, connection.pid()));
        return Ok(Done::Clean);
    }
    let outcome = await_stored(&mut connection, &meter);
    meter.spin("waiting for the mount process");
    wait(&process, None)?;
    meter.clear();
    outcome?;
    say(format!("unmounted {}", mount.mountpoint.display()));
    Ok(Done::Clean)
}

/// Stores what was written while the mount is still there, so that a store that does not answer is an error that
/// changes nothing.
#[expect(clippy::wildcard_enum_match_arm, reason = "any other reply breaks the protocol")]
fn store_first(mount: &place::MountEntry, meter: &Meter) -> Outcome<()> {
    meter.spin("storing what was written");
    let mut connection = open::connect(mount)?;
    connection.ask(&Request::Sync).context(|| "store what was written")?;
    match connection.next_reply().context(|| "store what was written")? {
        Reply::Done => Ok(()),
        Reply::Failed { text, .. } => {
            meter.clear();
            Err(not_stored(mount, &text))
        }
        reply => Err(open::unexpected(&reply)),
    }
}

/// Why the mount stays, and how to go on.
fn not_stored(mount: &place::MountEntry, text: &str) -> Failure {
    let point = mount.mountpoint.display();
    let (left, why) = match mounted(mount) {
        Some(mounted) => (
            format!("{} in {} files", show_size(mounted.dirty_bytes), mounted.dirty_files),
            match mounted.store.ok {
                true => format!("{text} (the objects are at {})", mounted.store.place),
                false => format!("the object store at {} {}", mounted.store.place, failing(&mounted.store)),
            },
        ),
        None => ("what was written".into(), text.to_owned()),
    };
    Failure::with_hint(
        format!("{point} stays mounted: {left} cannot be stored: {why}"),
        format!(
            "Make the object store reachable and repeat. `kiseki umount --force {point}` frees the mount point now: \
             its process keeps in memory what is not stored and goes on trying; it is lost only if that process is \
             ended before, or the machine goes down."
        ),
    )
}

/// What a forced unmount leaves behind: a process that open files or the object store keep.
fn detached(mount: &place::MountEntry, pid: Pid) -> String {
    let (point, pid) = (mount.mountpoint.display(), pid.as_raw_nonzero());
    let why = match mounted(mount) {
        Some(mounted) if mounted.dirty_bytes > 0 && !mounted.store.ok => format!(
            "its process ({pid}) goes on until the object store takes the {} in {} files that are not stored ({}). They \
             are lost if it is ended before: `kill {pid}` tells in its log what is left, a second one gives it up",
            show_size(mounted.dirty_bytes),
            mounted.dirty_files,
            failing(&mounted.store)
        ),
        Some(_) | None => "the volume stays in use until its last file is closed and everything is stored".into(),
    };
    format!("detached {point}; {why}")
}

/// How the mount is doing, if it says so.
fn mounted(mount: &place::MountEntry) -> Option<MountView> {
    // Only to say more about what is being said anyway.
    status_of(&mount.meta).ok().flatten()?.mount
}

fn failing(store: &StoreView) -> String {
    let error = store.error.as_deref().unwrap_or("does not answer");
    format!("fails since {}: {error}", show_secs(store.failing_secs.unwrap_or(0)))
}

fn await_stored(connection: &mut Connection, meter: &Meter) -> Outcome<()> {
    loop {
        match connection.next_reply() {
            Ok(Reply::Storing { bytes, error: None }) => meter.spin(format!("storing {}", show_size(bytes))),
            Ok(Reply::Storing { bytes, error: Some(error) }) => {
                meter.spin(format!("cannot store {} yet, trying again: {error}", show_size(bytes)));
            }
            Ok(Reply::Done) => return Ok(()),
            Ok(Reply::Failed { text, .. }) => {
                return Err(Failure::new(format!("unmounted, but not all was stored: {text}")));
            }
            Ok(reply) => return Err(open::unexpected(&reply)),
            Err(e) => {
                return Err(Failure::with_hint(
                    format!("unmounted, but the mount process ended without a word on whether all was stored: {e}"),
                    "What fsync acknowledged is safe; `kiseki fsck META` checks the volume.",
                ));
            }
        }
    }
}

/// umount(2), or fusermount3 for a user who may not.
fn detach(mountpoint: &Path, flags: UnmountFlags) -> Outcome<()> {
    let place = mountpoint.display();
    match rustix::mount::unmount(mountpoint, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(mountpoint)),
        Err(Errno::PERM) => fusermount(mountpoint, flags),
        Err(e) => Err(Failure::new(format!("cannot unmount {place}: {e}"))),
    }
}

fn busy(mountpoint: &Path) -> Failure {
    let place = mountpoint.display();
    Failure::with_hint(
        format!("{place} is in use; it stays mounted"),
        format!("`fuser -vm {place}` shows by whom. --force detaches it all the same."),
    )
}

fn fusermount(mountpoint: &Path, flags: UnmountFlags) -> Outcome<()> {
    let mode = if flags.contains(UnmountFlags::DETACH) { "-uz" } else { "-u" };
    let output = std::process::Command::new("fusermount3").arg(mode).arg("--").arg(mountpoint).output();
    let output = output.context(|| "run fusermount3 (Debian package fuse3)")?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    // Its only sign of this; fusermount3 does not translate its messages.
    if text.ends_with("busy") {
        return Err(busy(mountpoint));
    }
    Err(Failure::new(format!("cannot unmount {}: {text}", mountpoint.display())))
}

/// Whether the process lives on after a forced unmount for the sake of open files. One that has none ends within
/// the time that storing takes, which nobody can bound; 2 s decide what is said, nothing else.
fn still_used(process: &impl std::os::fd::AsFd) -> Outcome<bool> {
    Ok(!wait(process, Some(Duration::from_secs(2)))?)
}

/// Whether the process ended within `limit`.
fn wait(process: &impl std::os::fd::AsFd, limit: Option<Duration>) -> Outcome<bool> {
    let timeout = limit
        .map(|limit| rustix::event::Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() });
    loop {
        match poll(&mut [PollFd::new(process, PollFlags::IN)], timeout.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Failure::new(format!("cannot wait for the mount process: {e}"))),
        }
    }
}
