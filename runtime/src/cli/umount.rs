//! `kiseki umount`: ends a mount and waits until everything is stored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{PidfdFlags, pidfd_open};

use super::output::{Context, Done, Failure, Meter, Outcome, say};
use super::values::show_size;
use super::{open, place};
use crate::control::Connection;
use crate::control::protocol::{Reply, Request};

const EXAMPLES: &str = "\
Examples:
  kiseki umount /mnt/kiseki
  kiseki umount --force /mnt/kiseki

Returns 0 once everything that was written is stored and the mount process has ended. Also removes a mount whose
process was killed.";

/// Unmount a volume, and wait until everything is stored
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UmountArgs {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Detach it although files on it are in use; they stay usable for those who have them open, and the volume stays
    /// mounted in the background until they are closed
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
        say(format!("detached {}; the volume stays in use until its last file is closed", mount.mountpoint.display()));
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
        Reply::Failed { text, .. } => Err(Failure::with_hint(
            format!("{} stays mounted: what was written cannot be stored: {text}", mount.mountpoint.display()),
            "Make the object store reachable and try again; --force unmounts and loses what is not stored.",
        )),
        reply => Err(open::unexpected(&reply)),
    }
}

fn await_stored(connection: &mut Connection, meter: &Meter) -> Outcome<()> {
    loop {
        match connection.next_reply() {
            Ok(Reply::Storing { bytes }) => meter.spin(format!("storing {}", show_size(bytes))),
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
