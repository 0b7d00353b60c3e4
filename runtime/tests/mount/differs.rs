//! What differs from a local file system, as SEMANTICS.md says: here it is on purpose.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, chown};
use std::process::Command;

use memmap2::MmapMut;
use rustix::fs::{Access, CWD, IFlags, OFlags, XattrFlags, access, fcntl_setfl, getxattr, openat, setxattr};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::attributes::{NO_GROUPS, as_nobody, atime, capability, chmod, errno, flag, mode, set_times, tick};
use crate::harness::{Volume, assert_same, kiseki_ok, noise};

#[test]
fn o_tmpfile_is_not_supported() {
    let volume = Volume::mounted();
    let opened = openat(CWD, &volume.mnt, OFlags::TMPFILE | OFlags::RDWR, rustix::fs::Mode::from_raw_mode(0o600));
    assert_eq!(opened.map(drop), Err(Errno::OPNOTSUPP));
}

#[test]
fn the_length_of_a_directory_says_nothing_of_its_entries() {
    let volume = Volume::mounted();
    let len = || fs::metadata(&volume.mnt).expect("stats").len();
    let empty = len();
    for index in 0..300 {
        File::create(volume.path(&format!("{index:0100}"))).expect("creates");
    }
    assert_eq!(len(), empty);
}

#[test]
fn access_says_of_an_immutable_file_what_its_mode_says() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    fs::write(&path, "x").expect("writes");
    flag(&path, IFlags::IMMUTABLE);
    assert_eq!(access(&path, Access::WRITE_OK), Ok(()));
    assert_eq!(errno(OpenOptions::new().write(true).open(&path)), Some(Errno::PERM.raw_os_error()));
    flag(&path, IFlags::empty());
}

#[test]
fn a_flag_that_is_set_late_does_not_bind_the_kernel() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    fs::write(&path, noise(1, 10_000)).expect("writes");
    let eperm = Some(Errno::PERM.raw_os_error());
    let open = || OpenOptions::new().read(true).append(true).open(&path).expect("opens");
    let (before, again) = (open(), open());
    flag(&path, IFlags::APPEND);
    // What comes to the mount is refused.
    assert_eq!(errno(before.set_len(5)), eperm);
    // The kernel by itself refuses neither; ext4 answers EPERM and EACCES.
    assert_eq!(fcntl_setfl(&before, OFlags::empty()), Ok(()));
    // SAFETY: nothing changes the file while it is mapped, which nobody reads or writes.
    assert!(unsafe { MmapMut::map_mut(&again) }.is_ok());
    flag(&path, IFlags::IMMUTABLE);
    assert_eq!(errno(again.write_at(b"x", 0)), eperm);
    flag(&path, IFlags::empty());
}

#[test]
fn where_a_flag_and_something_else_forbid_it_the_other_is_told() {
    let volume = Volume::mounted();
    fs::create_dir_all(volume.path("d/full/x")).expect("makes folders");
    fs::write(volume.path("d/f"), "x").expect("writes");
    chmod(&volume.path("d/f"), 0o644);
    flag(&volume.path("d/f"), IFlags::IMMUTABLE);
    flag(&volume.path("d"), IFlags::IMMUTABLE);
    let told = |errno: Errno| Some(errno.raw_os_error());
    assert_eq!(errno(fs::remove_file(volume.path("d/full"))), told(Errno::ISDIR));
    assert_eq!(errno(fs::remove_dir(volume.path("d/f"))), told(Errno::NOTDIR));
    let line = "perl -e 'open(F, \">>\", \"d/f\") and exit 1; exit($!{EACCES} ? 0 : 2)'";
    assert!(as_nobody(&volume, NO_GROUPS, line), "EACCES, not EPERM");
    flag(&volume.path("d"), IFlags::empty());
    flag(&volume.path("d/f"), IFlags::empty());
}

#[test]
fn sendfile_into_the_same_file_sends_what_was_there() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    let mut expected = noise(1, 20_000);
    let mut to = File::create(&path).expect("makes a file");
    to.write_all(&expected).expect("writes");
    to.seek(SeekFrom::Start(3000)).expect("seeks");
    let from = File::open(&path).expect("opens");
    assert_eq!(rustix::fs::sendfile(&to, &from, Some(&mut 1000), 16_000), Ok(16_000));
    expected.copy_within(1000..17_000, 3000);
    assert_same(&fs::read(&path).expect("reads"), &expected, "sent");
}

#[test]
fn a_store_into_a_map_takes_capabilities() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    fs::write(&path, [1; 4096]).expect("writes");
    setxattr(&path, "security.capability", &capability(), XattrFlags::empty()).expect("sets");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
    // SAFETY: nothing else changes the file while it is mapped.
    let mut map = unsafe { MmapMut::map_mut(&file) }.expect("maps");
    map[0] = 2;
    map.flush().expect("syncs");
    assert_eq!(getxattr(&path, "security.capability", &mut [0; 64]), Err(Errno::NODATA));
}

/// In place of CAP_FSETID: setpriv(1) makes a root without it, and another user with it.
#[test]
fn root_alone_keeps_suid_and_sgid_at_a_truncate() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    for (who, kept) in [
        (&["--bounding-set", "-fsetid", "--inh-caps", "-fsetid"][..], true),
        (
            &[
                "--reuid",
                "65534",
                "--regid",
                "65534",
                "--clear-groups",
                "--inh-caps",
                "+fsetid",
                "--ambient-caps",
                "+fsetid",
            ],
            false,
        ),
    ] {
        fs::write(&path, "contents").expect("writes");
        chmod(&path, 0o6777);
        let ran = Command::new("setpriv").args(who).args(["truncate", "-s", "1"]).arg(&path).output().expect("runs");
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(mode(&path), if kept { 0o6777 } else { 0o777 }, "{who:?}");
        fs::remove_file(&path).expect("unlinks");
    }
}

#[test]
fn a_chown_of_nothing_by_others_succeeds_and_changes_nothing() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    fs::write(&path, "contents").expect("writes");
    chmod(&path, 0o6777);
    let before = fs::metadata(&path).expect("stats");
    assert!(as_nobody(&volume, NO_GROUPS, "perl -e 'exit(chown(-1, -1, \"f\") == 1 ? 0 : 1)'"));
    let after = fs::metadata(&path).expect("stats");
    let all = |meta: &fs::Metadata| (meta.mode(), meta.uid(), meta.gid(), meta.ctime(), meta.ctime_nsec());
    assert_eq!(all(&after), all(&before));
    // What they would not take anyway is no reason: ctime alone. (found by `ci/diff.sh`)
    chown(&path, Some(1), Some(65_534)).expect("chowns");
    chmod(&path, 0o2767);
    let before = fs::metadata(&path).expect("stats");
    tick();
    assert!(as_nobody(&volume, NO_GROUPS, "perl -e 'exit(chown(-1, -1, \"f\") == 1 ? 0 : 1)'"));
    let after = fs::metadata(&path).expect("stats");
    assert_eq!(after.mode(), before.mode());
    assert!((before.ctime(), before.ctime_nsec()) < (after.ctime(), after.ctime_nsec()));
}

#[test]
fn a_fifo_and_a_device_keep_their_times() {
    let volume = Volume::mounted();
    let run = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).current_dir(&volume.mnt).output().expect("sh runs");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("mkfifo p && mknod z c 1 5");
    let times = |name: &str| {
        let meta = fs::symlink_metadata(volume.path(name)).expect("stats");
        [meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()]
    };
    let before = [times("p"), times("z")];
    tick();
    run("(echo x >p &) && cat p >/dev/null && echo x >z && head -c 1 z >/dev/null");
    assert_eq!([times("p"), times("z")], before);
}

#[test]
fn a_crash_may_take_back_access_times_even_after_fsync() {
    let volume = Volume::formatted();
    volume.mount(&["--commit-interval", "1h"]);
    let path = volume.path("f");
    fs::write(&path, "contents").expect("writes");
    set_times(&path, (77, 5), (88, 5));
    let file = File::open(&path).expect("opens");
    file.sync_all().expect("syncs");
    assert_eq!(fs::read(&path).expect("reads"), b"contents");
    assert!((77, 5) < atime(&path), "the read shows");
    file.sync_all().expect("syncs");
    volume.end_by(Signal::KILL);
    drop(file);
    volume.mount(&["-o", "noatime"]);
    assert_eq!(atime(&path), (77, 5));
}

#[test]
fn a_selinux_label_that_is_missing_is_not_supported() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    fs::write(&path, "x").expect("writes");
    let get = || getxattr(&path, "security.selinux", &mut [0; 64][..]);
    assert_eq!(get(), Err(Errno::OPNOTSUPP));
    setxattr(&path, "security.selinux", b"label", XattrFlags::empty()).expect("sets");
    assert_eq!(get(), Ok(5));
}

#[test]
fn sync_2_does_not_store_what_is_in_memory() {
    let volume = Volume::formatted();
    volume.mount(&["--commit-interval", "1h"]);
    fs::write(volume.path("f"), noise(1, 40_000)).expect("writes");
    let dirty = || {
        let status = kiseki_ok(&["status", volume.mnt.to_str().expect("UTF-8"), "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        status["mount"]["dirty_bytes"].as_u64()
    };
    let ran = Command::new("sync").arg("--file-system").arg(volume.path("f")).status().expect("runs");
    assert!(ran.success());
    assert_eq!(dirty(), Some(40_000));
    File::open(volume.path("f")).and_then(|file| file.sync_all()).expect("syncs");
    assert_eq!(dirty(), Some(0));
}
