//! `kiseki umount`: ends a mount and waits until everything is in the object store.

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
use crate::control::protocol::{MountView, Reply, Request, StoreView, Storing};
use crate::control::{Connection, status_of};
use crate::mount::table;

const EXAMPLES: &str = "\
Examples:
  kiseki umount /mnt/kiseki
  kiseki umount --no-drain /mnt/kiseki
  kiseki umount --force /mnt/kiseki

Returns 0 once everything that was written is in the object store and the mount process has ended. Also removes a mount
whose process was killed.

With --no-drain what is in the write-back log stays there, durable on the local disk, and the next mount goes on with
it. Given META instead of a mount point, that ends a mount process which still empties its log after its mount point is
gone.

If the object store takes nothing for the mount's --store-timeout, the command fails and the volume stays mounted and
usable: make the store reachable and repeat, or add --no-drain. With --force the mount point is freed all the same; its
process goes on in the background until the store has everything. What is in its memory only (nothing, if the write-back
log takes it) is lost if the process is ended before by two SIGTERM, or the machine goes down; what fsync(2) acknowledged
is safe in any case.";

/// Unmount a volume, and wait until everything is in the object store
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct UmountArgs {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Detach it although files on it are in use, or not everything can be stored; its process goes on in the
    /// background until they are closed and everything is stored
    #[arg(short, long)]
    force: bool,
    /// Leave what is in the write-back log there, for the next mount
    #[arg(long)]
    no_drain: bool,
}

pub(super) fn run(args: &UmountArgs) -> Outcome {
    let place = place::place(args.mountpoint.as_os_str())?;
    let Some(mount) = place.mount else {
        if args.no_drain
            && let Some(connection) =
                Connection::open(&place.meta).context(|| format!("reach the mount of {}", place.meta.display()))?
        {
            return leave_log_of(connection, &place.meta);
        }
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
        if !args.no_drain {
            drain_first(&mount, &meter)?;
        }
    }
    connection.ask(&Request::AwaitUnmount).context(|| "watch the unmount")?;
    let process = pidfd_open(connection.pid(), PidfdFlags::empty()).context(|| "watch the mount process")?;
    detach(&mount.mountpoint, if args.force { UnmountFlags::DETACH } else { UnmountFlags::empty() })?;
    if args.no_drain {
        // Not before: a mount that stays, because it is in use, is to empty its log at its end.
        leave_log(&mount.meta)?;
    }
    if args.force && still_used(&process)? {
        say(detached(&mount, connection.pid()));
        return Ok(Done::Clean);
    }
    let kept = || kept_by(&mount);
    let outcome = await_stored(&mut connection, &meter, &kept);
    if let Ok(End::Kept(pid)) = outcome {
        meter.clear();
        say(format!(
            "unmounted {}; everything is in the object store, and the mount process ({}) goes on, for process {pid} sees \
             the mount too: in another place, or in a mount namespace of its own",
            mount.mountpoint.display(),
            connection.pid().as_raw_nonzero()
        ));
        return Ok(Done::Clean);
    }
    meter.spin("waiting for the mount process");
    wait(&process, None)?;
    meter.clear();
    let End::Stored(left) = outcome? else { return Ok(Done::Clean) };
    say(format!(
        "unmounted {}{}",
        mount.mountpoint.display(),
        if args.no_drain { stays(&left) } else { String::new() }
    ));
    Ok(Done::Clean)
}

/// What `--no-drain` has left.
fn stays(left: &Storing) -> String {
    if left.log_objects == 0 {
        return String::new();
    }
    format!("; {} stay in the write-back log, for the next mount", in_log(left))
}

fn in_log(storing: &Storing) -> String {
    format!("{} in {} objects", show_size(storing.log_bytes), storing.log_objects)
}

/// Tells the mount of the store at `meta` to leave its write-back log as it is at its end.
fn leave_log(meta: &Path) -> Outcome<()> {
    let doing = || "leave the write-back log as it is";
    // It may have ended by this time.
    let Some(mut connection) = Connection::open(meta).context(doing)? else { return Ok(()) };
    if connection.ask(&Request::LeaveLog).is_err() {
        return Ok(());
    }
    match connection.next_reply() {
        Ok(Reply::Done) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(error).context(doing),
        Ok(Reply::Failed { text, .. }) => {
            Err(Failure::new(format!("cannot leave the write-back log as it is: {text}")))
        }
        Ok(reply) => Err(open::unexpected(&reply)),
    }
}

/// Ends a mount process whose mount point is gone and that empties its log.
fn leave_log_of(mut connection: Connection, meta: &Path) -> Outcome {
    let meter = Meter::new();
    let process = pidfd_open(connection.pid(), PidfdFlags::empty()).context(|| "watch the mount process")?;
    connection.ask(&Request::AwaitUnmount).context(|| "watch the unmount")?;
    leave_log(meta)?;
    let outcome = await_stored(&mut connection, &meter, &|| None);
    wait(&process, None)?;
    meter.clear();
    if let End::Stored(left) = outcome? {
        say(format!("ended the mount of {}{}", meta.display(), stays(&left)));
    }
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

/// Puts what is in the write-back log into the object store while the mount is still there, for the same reason.
#[expect(clippy::wildcard_enum_match_arm, reason = "any other reply breaks the protocol")]
fn drain_first(mount: &place::MountEntry, meter: &Meter) -> Outcome<()> {
    let doing = || "put what is in the write-back log into the object store";
    let mut connection = open::connect(mount)?;
    connection.ask(&Request::Drain).context(doing)?;
    let mut bar = Draining::default();
    loop {
        match connection.next_reply().context(doing)? {
            Reply::Storing(storing) => bar.show(meter, &storing),
            Reply::Done => return Ok(()),
            Reply::Failed { text, .. } => {
                meter.clear();
                let point = mount.mountpoint.display();
                return Err(Failure::with_hint(
                    format!("{point} stays mounted: {text}"),
                    format!(
                        "Nothing is lost: it is durable on the local disk. Make the object store reachable and repeat; \
                         or `kiseki umount --no-drain {point}`: the next mount of the volume goes on with it."
                    ),
                ));
            }
            reply => return Err(open::unexpected(&reply)),
        }
    }
}

/// A bar over what was in the write-back log when it was most.
#[derive(Default)]
struct Draining {
    most: u64,
}

impl Draining {
    fn show(&mut self, meter: &Meter, storing: &Storing) {
        self.most = self.most.max(storing.log_objects);
        let trouble = storing.error.as_ref().map(|error| format!(", trying again: {error}")).unwrap_or_default();
        let text = format!("{} to go to the object store{trouble}", show_size(storing.log_bytes));
        meter.advance(text, self.most - storing.log_objects, self.most);
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
        Some(MountView { log: Some(log), store, .. }) if log.objects > 0 && !store.ok => format!(
            "its process ({pid}) goes on until the object store takes the {} in {} objects that are in the write-back \
             log only ({}). `kiseki umount --no-drain {}` leaves them there for the next mount",
            show_size(log.bytes),
            log.objects,
            failing(&store),
            mount.meta.display()
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

/// How a mount has ended, or why it has not.
enum End {
    /// It has; this is what it has said last of what is to be stored.
    Stored(Storing),
    /// Everything is stored, but this process sees the mount in another place.
    Kept(u32),
}

/// The process, if any, that keeps a mount alive whose mount point is gone here.
fn kept_by(mount: &place::MountEntry) -> Option<u32> {
    let dev = (rustix::fs::major(mount.dev), rustix::fs::minor(mount.dev));
    // Who may not look waits, as for any other reason.
    table::seen_by(dev).ok().flatten()
}

/// Replies in a row without anything to store, five a second, after which it is asked who keeps the mount.
const IDLE_REPLIES: u32 = 10;

/// Waits for the end of the mount, or until `kept` names who keeps it although there is nothing to store.
fn await_stored(connection: &mut Connection, meter: &Meter, kept: &dyn Fn() -> Option<u32>) -> Outcome<End> {
    let mut last = Storing::default();
    let mut bar = Draining::default();
    let mut idle = 0;
    loop {
        match connection.next_reply() {
            Ok(Reply::Storing(storing)) => {
                idle = if storing == Storing::default() { idle + 1 } else { 0 };
                if IDLE_REPLIES <= idle
                    && let Some(pid) = kept()
                {
                    return Ok(End::Kept(pid));
                }
                match &storing {
                    Storing { bytes: 0, log_objects: 1.., .. } => bar.show(meter, &storing),
                    Storing { bytes, error: None, .. } => meter.spin(format!("storing {}", show_size(*bytes))),
                    Storing { bytes, error: Some(error), .. } => {
                        meter.spin(format!("cannot store {} yet, trying again: {error}", show_size(*bytes)));
                    }
                }
                last = storing;
            }
            Ok(Reply::Done) => return Ok(End::Stored(last)),
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
