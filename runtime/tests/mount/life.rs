//! Mounting, unmounting and dying.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use rustix::io::Errno;
use rustix::process::Signal;

use crate::harness::{Volume, assert_same, eventually, kiseki, noise};

fn is_mounted(volume: &Volume) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("reads");
    table.contains(volume.mnt.to_str().expect("UTF-8"))
}

#[test]
fn signals_that_ask_for_an_end_store_everything() {
    let volume = Volume::mounted();
    for (signal, seed) in [(Signal::TERM, 1), (Signal::INT, 2), (Signal::HUP, 3)] {
        let name = format!("f{seed}");
        fs::write(volume.path(&name), noise(seed, 3 << 20)).expect("writes");
        volume.end_by(signal);
        assert!(!is_mounted(&volume), "{signal:?}");
        volume.mount(&[]);
        assert_same(&fs::read(volume.path(&name)).expect("reads"), &noise(seed, 3 << 20), &name);
    }
    volume.unmount();
    volume.check();
}

#[test]
fn a_mount_in_use_ends_by_signal_and_keeps_what_was_written() {
    let volume = Volume::mounted();
    let mut held = File::create(volume.path("held")).expect("creates");
    held.write_all(&noise(1, 300_000)).expect("writes");
    volume.end_by(Signal::TERM);
    assert!(!is_mounted(&volume));
    let error = held.write_all(b"too late").expect_err("the connection is gone");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOTCONN));
    volume.mount(&[]);
    assert_same(&fs::read(volume.path("held")).expect("reads"), &noise(1, 300_000), "held");
    volume.unmount();
    volume.check();
}

#[test]
fn other_ways_to_unmount_store_everything() {
    let volume = Volume::mounted();
    for (seed, command) in [(1, ["umount", "--"]), (2, ["fusermount3", "-u"]), (3, ["umount", "-l"])] {
        let name = format!("f{seed}");
        fs::write(volume.path(&name), noise(seed, 3 << 20)).expect("writes");
        let stored = volume.log().matches("everything is stored").count();
        let status = Command::new(command[0]).arg(command[1]).arg(&volume.mnt).status().expect("runs");
        assert!(status.success(), "{command:?}");
        eventually("the process stores everything", || volume.log().matches("everything is stored").count() > stored);
        // The process that ends holds the metadata's lock for a moment.
        eventually("the volume can be mounted again", || {
            let log = volume.beside("log");
            let log = log.to_str().expect("UTF-8");
            let mnt = volume.mnt.to_str().expect("UTF-8");
            kiseki(&["mount", "-d", &volume.meta(), mnt, "--log", log]).status.success()
        });
        assert_same(&fs::read(volume.path(&name)).expect("reads"), &noise(seed, 3 << 20), &name);
    }
}

/// A container that was started meanwhile keeps a copy of every mount, and with it the connection.
#[test]
fn unmounting_says_who_else_sees_the_mount() {
    let volume = Volume::mounted();
    fs::write(volume.path("file"), noise(1, 300_000)).expect("writes");
    let process = rustix::process::pidfd_open(volume.pid(), rustix::process::PidfdFlags::empty()).expect("it runs");
    let mut other =
        Command::new("unshare").args(["-m", "--propagation", "private", "sleep", "600"]).spawn().expect("runs");
    let copied = || {
        let table = fs::read_to_string(format!("/proc/{}/mountinfo", other.id())).unwrap_or_default();
        let name = fs::read_to_string(format!("/proc/{}/comm", other.id())).unwrap_or_default();
        name.trim() == "sleep" && table.contains(volume.mnt.to_str().expect("UTF-8"))
    };
    eventually("the other process has a mount namespace of its own", copied);
    let output = kiseki(&["umount", volume.mnt.to_str().expect("UTF-8")]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains(&format!("process {} sees the mount too", other.id())), "{said}");
    assert!(!is_mounted(&volume));
    other.kill().expect("it runs");
    other.wait().expect("it ends");
    let mut end = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut end, Some(&patience)), Ok(1), "the mount process goes on");
    volume.mount(&[]);
    assert_same(&fs::read(volume.path("file")).expect("reads"), &noise(1, 300_000), "file");
}

#[test]
fn what_was_synced_survives_a_kill_and_the_dead_mount_is_replaced() {
    let volume = Volume::mounted();
    for round in 0..3 {
        let synced = File::create(volume.path(&format!("synced{round}"))).expect("creates");
        synced.write_all_at(&noise(round, 500_000), 0).expect("writes");
        synced.sync_all().expect("syncs");
        fs::write(volume.path("lost"), noise(9, 100_000)).expect("writes");
        drop(synced);
        volume.end_by(Signal::KILL);
        assert_eq!(rustix::fs::statfs(&volume.mnt).map(drop), Err(Errno::NOTCONN));
        volume.mount(&[]);
        for done in 0..=round {
            let found = fs::read(volume.path(&format!("synced{done}"))).expect("reads");
            assert_same(&found, &noise(done, 500_000), "synced");
        }
    }
    volume.unmount();
    volume.check();
}

#[test]
fn a_broken_store_fails_fsync_and_nothing_else_and_loses_nothing() {
    let volume = Volume::formatted();
    volume.mount(&["--mode", "through", "--store-timeout", "2s"]);
    fs::create_dir(volume.path("dir")).expect("makes a folder");
    fs::write(volume.path("dir/before"), noise(1, 1 << 20)).expect("writes");
    File::open(volume.path("dir/before")).and_then(|file| file.sync_all()).expect("syncs");
    // No block can be put any more: a file is where their folder was.
    let (blocks, aside) = (volume.bucket().join("vol/blocks"), volume.beside("aside"));
    fs::rename(&blocks, &aside).expect("renames");
    File::create(&blocks).expect("creates");
    let mut file = File::create(volume.path("dir/after")).expect("creates");
    file.write_all(&noise(2, 1 << 20)).expect("is accepted in memory");
    let error = file.sync_all().expect_err("cannot be durable");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
    drop(file);
    // Names, attributes and what is in memory are served.
    assert_eq!(fs::read_dir(volume.path("dir")).expect("lists").count(), 2);
    assert_same(&fs::read(volume.path("dir/after")).expect("reads"), &noise(2, 1 << 20), "dirty");
    fs::rename(volume.path("dir/before"), volume.path("dir/moved")).expect("renames");
    let output = kiseki(&["umount", volume.mnt.to_str().expect("UTF-8")]);
    assert_eq!(output.status.code(), Some(1));
    assert!(is_mounted(&volume), "an unmount that would lose data is refused");
    // A signal unmounts, and the process stays until the store is back.
    let pid = volume.pid();
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    eventually("the process tries to store", || volume.log().contains("cannot store everything yet"));
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    eventually("it says what is missing", || volume.log().contains("still storing"));
    fs::remove_file(&blocks).expect("unlinks");
    fs::rename(&aside, &blocks).expect("renames");
    eventually("the process stores everything", || volume.log().contains("everything is stored"));
    eventually("the process ends", || rustix::process::test_kill_process(pid).is_err());
    volume.mount(&[]);
    assert_same(&fs::read(volume.path("dir/moved")).expect("reads"), &noise(1, 1 << 20), "before");
    assert_same(&fs::read(volume.path("dir/after")).expect("reads"), &noise(2, 1 << 20), "after");
    volume.unmount();
    volume.check();
}

#[test]
fn a_read_only_mount_changes_nothing() {
    let volume = Volume::mounted();
    fs::write(volume.path("f"), "contents").expect("writes");
    volume.unmount();
    volume.mount(&["--read-only"]);
    assert_eq!(fs::read_to_string(volume.path("f")).expect("reads"), "contents");
    let errno = |result: std::io::Result<()>| result.map_err(|error| Errno::from_io_error(&error).expect("an errno"));
    assert_eq!(errno(fs::write(volume.path("f"), "x")), Err(Errno::ROFS));
    assert_eq!(errno(fs::create_dir(volume.path("d"))), Err(Errno::ROFS));
    assert_eq!(errno(fs::remove_file(volume.path("f"))), Err(Errno::ROFS));
    volume.unmount();
    volume.check();
}

#[test]
fn what_cannot_be_a_mount_point_is_told() {
    let volume = Volume::formatted();
    let meta = volume.meta();
    fs::create_dir(volume.beside("full")).expect("makes a folder");
    fs::write(volume.beside("full/x"), "").expect("writes");
    fs::write(volume.beside("file"), "").expect("writes");
    let other = Volume::mounted();
    let path = |name: &str| volume.beside(name).to_str().expect("UTF-8").to_owned();
    for (point, more, message) in [
        (path("nosuch"), &[][..], "does not exist"),
        (path("file"), &[], "is not a directory"),
        (path("full"), &[], "is not empty"),
        (path("mnt"), &["-o", "ro,nosuch"], "unknown mount option 'nosuch'"),
        (other.mnt.to_str().expect("UTF-8").into(), &[], "is already a mount of the Kiseki volume"),
    ] {
        for daemon in [&[][..], &["-d"]] {
            let args = [&["mount", &meta, &point], more, daemon].concat();
            let output = kiseki(&args);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains(message), "{args:?}: {text}");
        }
    }
    assert_eq!(fs::read_dir(volume.beside("full")).expect("lists").count(), 1);
    // What was refused is possible when it is asked for.
    let log = path("log");
    let args = ["mount", "-d", &meta, &path("full"), "-o", "nonempty", "--log", &log];
    let output = kiseki(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(volume.beside("full")).expect("lists").count(), 0, "the volume hides what was there");
    let output = kiseki(&["umount", &path("full")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(volume.beside("full")).expect("lists").count(), 1);
}

#[test]
fn a_directory_of_the_volume_can_be_mounted_alone() {
    let volume = Volume::mounted();
    fs::create_dir_all(volume.path("a/b/c")).expect("makes");
    fs::write(volume.path("a/b/f"), noise(1, 100_000)).expect("writes");
    volume.unmount();
    let mnt = volume.mnt.to_str().expect("UTF-8");
    for (subdir, told) in [("a/none", "no none there"), ("a/b/f", "f is not a directory"), ("/a/../a", "'..'")] {
        let refused = kiseki(&["mount", "-d", &volume.meta(), mnt, "--subdir", subdir]);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && text.contains(told), "{subdir}: {text}");
        assert!(!is_mounted(&volume));
    }

    volume.mount(&["--subdir", "/a/b"]);
    assert_same(&fs::read(volume.path("f")).expect("reads"), &noise(1, 100_000), "f");
    fs::rename(volume.path("f"), volume.path("c/f")).expect("renames");
    fs::write(volume.path("new"), noise(2, 100_000)).expect("writes");
    let ino = |name: &str| fs::metadata(volume.path(name)).expect("is there").ino();
    assert_eq!(ino("c/.."), ino("."));
    let listed = Command::new("ls").args(["-1ai", mnt]).output().expect("runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let numbers: Vec<u64> = listed
        .lines()
        .filter(|line| line.ends_with(" .") || line.ends_with(" .."))
        .map(|line| line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number"))
        .collect();
    assert_eq!(numbers[0], ino("."), "{listed}");
    let info = kiseki(&["info", mnt, "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(info["ino"], ino("."));
    volume.unmount();

    volume.mount(&[]);
    assert_eq!(fs::metadata(volume.path("a/b")).expect("is there").ino(), numbers[0]);
    assert_same(&fs::read(volume.path("a/b/c/f")).expect("reads"), &noise(1, 100_000), "c/f");
    assert_same(&fs::read(volume.path("a/b/new")).expect("reads"), &noise(2, 100_000), "new");
    volume.unmount();
    volume.check();
}
