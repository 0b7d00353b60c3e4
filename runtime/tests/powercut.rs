//! What RocksDB, a folder and a write-back log keep when the power is cut is what their fakes may keep: the same courses
//! of calls and the same verdict (`testkit::power_cut`, `sim/tests/conformance.rs`).
//!
//! The power cut is that of an ext4 on a loop device, which forgets what no fsync has made durable and takes nothing
//! more (EXT4_IOC_SHUTDOWN without a flush of the journal). Needs root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use kiseki::objects::{Access, Objects, Place};
use kiseki::rocks::{OpenMode, RocksMeta};
use kiseki_core::env::Env;
use kiseki_core::testkit::disk_conformance::{self, DiskPast, Left};
use kiseki_core::testkit::power_cut::{self, MetaPast, ObjectsPast, Power};
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;
use tokio::runtime::Runtime;

mod logged;
mod volume;

use logged::{executor, open_folder, stores, wait, with_log};
use volume::{eventually, within};

/// Power cuts of each store: after so many calls and, as many, in the middle of one.
const CUTS: u64 = 10;
/// Calls of the courses that the power is cut in the middle of: more than it takes until then.
const CALLS_MAX: u64 = 100_000;
const DISK_BYTES: u64 = 256 << 20;
/// How long the kernel may take to let go of a disk.
const PATIENCE: Duration = Duration::from_secs(30);

/// ext4 on a loop device.
struct Disk {
    folder: TempDir,
}

impl Disk {
    fn create() -> Self {
        let disk = Self { folder: TempDir::new().expect("a folder") };
        fs::create_dir(disk.root()).expect("a mount point");
        let image = File::create(disk.image()).expect("an image");
        image.set_len(DISK_BYTES).expect("a sparse image");
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()));
        disk.mount();
        disk
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn mount(&self) {
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(self.image()).arg(self.root()));
    }

    fn cut_power(&self) {
        const EXT4_IOC_SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587D;
        /// The journal stays where it is.
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(self.root()).expect("the disk's root");
        // SAFETY: the request reads one u32.
        let cut = unsafe { rustix::ioctl::Setter::<EXT4_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH) };
        // SAFETY: the request is known to ext4 alone, which the disk is, and changes no memory.
        unsafe { rustix::ioctl::ioctl(&root, cut) }.expect("shut down ext4 (as root)");
    }

    /// Unmounts what was cut off, and mounts what is left.
    fn mount_again(&self) {
        let root = self.root();
        within(PATIENCE, "the kernel lets go of the disk", || unmount(&root, UnmountFlags::empty()).is_ok());
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that fails may have left a store open.
        let gone = unmount(self.root(), UnmountFlags::DETACH);
        assert!(gone.is_ok() || thread::panicking(), "unmount {}: {gone:?}", self.root().display());
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn open_meta(path: &Path, mode: OpenMode, runtime: &Runtime) -> RocksMeta {
    RocksMeta::open(path, mode, runtime.handle().clone()).expect("the metadata store")
}

fn open_objects(path: &Path, access: Access, runtime: &Runtime) -> Objects {
    let place = Place::Folder(path.join("volume"));
    Objects::open(&place, None, access, PATIENCE, runtime.handle().clone()).expect("the object store")
}

/// Lets `course` make calls, the number of which it is given, and cuts the power: after some calls (`cut` is even), or
/// in the middle of one. What the course is given beside is off before the cut begins.
fn cut_short<T: Send>(disk: &Disk, cut: u64, course: impl Fn(u64, &Power) -> T + Sync) -> T {
    let power = Power::default();
    if cut.is_multiple_of(2) {
        let past = course(3 + cut, &power);
        disk.cut_power();
        return past;
    }
    thread::scope(|scope| {
        let calling = scope.spawn(|| course(CALLS_MAX, &power));
        // Where it falls after so many calls is chance; whatever it is in the middle of, the verdict holds.
        eventually("the course goes on", || power.calls() >= 20 * cut);
        power.off();
        disk.cut_power();
        calling.join().expect("the course ends with the power")
    })
}

#[test]
fn rocks_keeps_what_its_fake_may_keep() {
    let (disk, runtime) = (Disk::create(), executor());
    let (mut lost, mut calls) = (0, 0);
    for cut in 0..2 * CUTS {
        let path = disk.root().join(format!("meta{cut}"));
        let past: MetaPast = {
            let meta = open_meta(&path, OpenMode::Create, &runtime);
            cut_short(&disk, cut, |calls, power| wait(power_cut::write_meta(&meta, cut, calls, power)))
        };
        disk.mount_again();
        let meta = open_meta(&path, OpenMode::Existing, &runtime);
        let left = wait(past.left(&meta));
        calls += past.written;
        lost += past.written - past.synced - left;
        meta.close().expect("a clean close");
    }
    println!("rocks: cuts={} transactions={calls} lost={lost}", 2 * CUTS);
    assert!(lost > 0, "a power cut that takes nothing is none");
}

#[test]
fn folder_keeps_what_its_fake_may_keep() {
    let (disk, runtime) = (Disk::create(), executor());
    let (mut undone, mut open) = (0, 0);
    for cut in 0..2 * CUTS {
        let path = disk.root().join(format!("bucket{cut}"));
        let past: ObjectsPast = {
            let objects = open_objects(&path, Access::Create, &runtime);
            cut_short(&disk, cut, |calls, power| wait(power_cut::write_objects(&objects, cut, calls, power)))
        };
        disk.mount_again();
        let objects = open_objects(&path, Access::Write, &runtime);
        let left = wait(past.left(&objects));
        undone += past.undone(&left);
        open += past.open().len();
    }
    println!("folder: cuts={} open={open} undone={undone}", 2 * CUTS);
    assert!(undone > 0, "a power cut that undoes nothing is none");
}

#[test]
fn a_log_folder_keeps_what_its_fake_may_keep() {
    let (disk, runtime) = (Disk::create(), executor());
    let mut left = Left::default();
    for cut in 0..2 * CUTS {
        let path = disk.root().join(format!("log{cut}"));
        let past: DiskPast = {
            let folder = open_folder(&path, &runtime);
            cut_short(&disk, cut, |calls, power| wait(disk_conformance::write_before_cut(&folder, cut, calls, power)))
        };
        disk.mount_again();
        let Left { whole, torn, none, kept, gone } =
            wait(disk_conformance::check_after_cut(&open_folder(&path, &runtime), &past));
        left.whole += whole;
        left.torn += torn;
        left.none += none;
        left.kept += kept;
        left.gone += gone;
    }
    println!("log folder: cuts={} {left:?}", 2 * CUTS);
    assert!(left.none + left.gone > 0, "a power cut that takes nothing is none");
}

#[test]
fn a_write_back_log_keeps_what_a_barrier_covered() {
    let (disk, runtime) = (Disk::create(), executor());
    let (mut undone, mut open) = (0, 0);
    for cut in 0..2 * CUTS {
        let root = disk.root().join(format!("volume{cut}"));
        let past: ObjectsPast = {
            let logged = with_log(stores(&root, OpenMode::Create, &runtime), &root, &runtime);
            let write = |calls, power: &Power| wait(power_cut::write_objects(logged.objects(), cut, calls, power));
            let past = cut_short(&disk, cut, write);
            // Its tasks let go of their files; that nothing can be removed any more is no matter.
            let _ = wait(logged.close());
            past
        };
        disk.mount_again();
        let env = stores(&root, OpenMode::Existing, &runtime);
        let logged = with_log(env.clone(), &root, &runtime);
        let left = wait(past.left(logged.objects()));
        undone += past.undone(&left);
        open += past.open().len();
        // Also once all of it is in the store.
        wait(logged.drain());
        assert!(wait(logged.close()).expect("the log ends"));
        assert_eq!(wait(past.left(env.objects())), left);
        drop(logged);
        env.meta().close().expect("a clean close");
    }
    println!("log: cuts={} open={open} undone={undone}", 2 * CUTS);
    assert!(undone > 0, "a power cut that undoes nothing is none");
}
