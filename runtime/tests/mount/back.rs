//! The write-back log of a mount: what it keeps, what is told of it, and what happens without it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::Value as Json;

use crate::harness::{UNPACKED, Volume, assert_same, eventually, kiseki, kiseki_ok, noise};

/// Where blocks are in a bucket.
const FOLDERS: [&str; 2] = ["blocks", "packs"];

/// A store that fails soon, for those who wait for it.
const IMPATIENT: [&str; 2] = ["--store-timeout", "1s"];

impl Volume {
    fn mount_point(&self) -> &str {
        self.mnt.to_str().expect("UTF-8")
    }

    /// No block can be put any more, by itself or in a pack: files are where their folders are.
    fn break_store(&self) {
        for name in FOLDERS {
            let (folder, aside) = (self.bucket().join("vol").join(name), self.beside(name));
            match fs::rename(&folder, &aside) {
                Ok(()) => {}
                Err(_) => fs::create_dir(&aside).expect("makes a folder"),
            }
            File::create(&folder).expect("creates");
        }
    }

    fn mend_store(&self) {
        for name in FOLDERS {
            let folder = self.bucket().join("vol").join(name);
            fs::remove_file(&folder).expect("unlinks");
            fs::rename(self.beside(name), &folder).expect("renames");
        }
    }

    /// Objects in the bucket whose keys begin with a folder.
    fn objects_in(&self, folder: &str) -> usize {
        let Ok(groups) = fs::read_dir(self.bucket().join("vol").join(folder)) else { return 0 };
        groups.map(|group| fs::read_dir(group.expect("lists").path()).map_or(0, Iterator::count)).sum()
    }

    /// Writes a file of less than a megabyte, and fsyncs it.
    #[track_caller]
    fn write_synced(&self, name: &str, seed: u64, len: usize) {
        let mut file = File::create(self.path(name)).expect("creates");
        file.write_all(&noise(seed, len)).expect("writes");
        file.sync_all().expect("syncs");
    }

    #[track_caller]
    fn holds(&self, name: &str, seed: u64, len: usize) {
        assert_same(&fs::read(self.path(name)).expect("reads"), &noise(seed, len), name);
    }

    fn status(&self) -> Json {
        status(self.mount_point())
    }

    fn log_folder(&self) -> PathBuf {
        Path::new(&self.meta()).join("writeback")
    }

    /// Files of the log, without those that are always there.
    fn log_files(&self) -> Vec<String> {
        let names = fs::read_dir(self.log_folder()).expect("lists").map(|entry| entry.expect("lists").file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().expect("UTF-8")).collect();
        names.retain(|name| name != "lock" && name != "owner");
        names.sort();
        names
    }

    /// Unmounts with objects left in the log, as a store that is away makes one do.
    fn leave_in_log(&self, name: &str, seed: u64, len: usize) {
        self.mount(&IMPATIENT);
        self.break_store();
        self.write_synced(name, seed, len);
        let told = kiseki_ok(&["umount", "--no-drain", self.mount_point()]);
        assert!(told.contains("stay in the write-back log"), "{told}");
        self.mend_store();
    }

    #[track_caller]
    fn refuses(&self, more: &[&str], texts: &[&str]) {
        let meta = self.meta();
        let output = kiseki(&[&["mount", "-d", &meta, self.mount_point()], more].concat());
        tells(&output, 1, texts);
    }
}

fn status(place: &str) -> Json {
    serde_json::from_str(&kiseki_ok(&["status", place, "--json"])).expect("JSON")
}

#[track_caller]
fn tells(output: &Output, code: i32, texts: &[&str]) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for expected in texts {
        assert!(text.contains(expected), "expected \"{expected}\": {text}");
    }
}

#[test]
fn fsync_is_durable_in_the_log_while_the_store_fails() {
    let volume = Volume::formatted();
    volume.mount(&IMPATIENT);
    volume.write_synced("before", 1, 100_000);
    volume.break_store();
    for round in 0..3 {
        volume.write_synced(&format!("f{round}"), 10 + round, 200_000);
        let log = &volume.status()["mount"]["log"];
        assert!(log["objects"].as_u64().expect("a number") > 3 * round, "{log}");
        assert!(log["bytes"].as_u64().expect("a number") >= 200_000 * (round + 1), "{log}");
        volume.end_by(Signal::KILL);
        volume.mount(&IMPATIENT);
        for done in 0..=round {
            volume.holds(&format!("f{done}"), 10 + done, 200_000);
        }
    }
    let text = kiseki_ok(&["status", volume.mount_point()]);
    assert!(text.contains("back: durable once") && text.contains("not in the object store yet"), "{text}");
    volume.mend_store();
    volume.unmount();
    assert!(volume.objects_in("packs") + volume.blocks() > 0, "nothing is in the store");
    assert_eq!(volume.log_files(), [""; 0]);
    assert_eq!(status(&volume.meta())["volume"]["log"], Json::Null);
    volume.check();
}

#[test]
fn umount_puts_what_is_in_the_log_or_says_why_not() {
    let volume = Volume::formatted();
    volume.mount(&IMPATIENT);
    volume.break_store();
    volume.write_synced("f", 1, 200_000);
    let point = volume.mount_point();
    let failed = kiseki(&["umount", point]);
    tells(&failed, 1, &["stays mounted", "4 objects", "write-back log", "object store", "--no-drain"]);
    volume.holds("f", 1, 200_000);
    tells(&kiseki(&["umount", "--no-drain", point]), 0, &["unmounted", "4 objects stay in the write-back log"]);

    // What is told of it, and what is seen in it, without a mount and through one that reads only.
    let log = status(&volume.meta())["volume"]["log"].as_str().expect("a place").to_owned();
    assert!(log.ends_with(volume.log_folder().to_str().expect("UTF-8")), "{log}");
    assert!(kiseki_ok(&["status", &volume.meta()]).contains(&log));
    volume.check();
    volume.mount(&["--read-only"]);
    volume.holds("f", 1, 200_000);
    volume.unmount();
    assert_eq!(volume.log_files().len(), 1);

    // The next mount goes on with it.
    volume.mount(&IMPATIENT);
    volume.holds("f", 1, 200_000);
    volume.mend_store();
    volume.unmount();
    assert_eq!(volume.objects_in("packs") + volume.blocks(), 1, "four small blocks are one pack");
    volume.check();
}

#[test]
fn a_signal_puts_what_is_in_the_log_and_another_one_leaves_it() {
    let volume = Volume::formatted();
    for leave in ["signal", "command"] {
        volume.mount(&IMPATIENT);
        let pid = volume.pid();
        volume.break_store();
        volume.write_synced(leave, 1, 200_000);
        fs::write(volume.beside("log"), "").expect("empties the log");
        let signal = || rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
        signal();
        eventually("it tells what it does", || volume.log().contains("putting what is in the write-back log"));
        match leave {
            "signal" => {
                signal();
                eventually("it tells", || volume.log().contains("another signal leaves it for the next mount"));
                signal();
            }
            _ => tells(&kiseki(&["umount", "--no-drain", &volume.meta()]), 0, &["ended the mount", "4 objects stay"]),
        }
        eventually("it ends", || rustix::process::test_kill_process(pid).is_err());
        assert!(volume.log().contains("left in the write-back log, for the next mount"), "{}", volume.log());
        volume.mend_store();
        volume.mount(&[]);
        volume.holds(leave, 1, 200_000);
        volume.unmount();
        volume.check();
    }
}

#[test]
fn a_volume_is_not_mounted_without_its_log() {
    let volume = Volume::formatted();
    volume.leave_in_log("f", 1, 200_000);
    let folder = volume.log_folder();
    let shown = folder.to_str().expect("UTF-8");
    let (aside, empty) = (volume.beside("log-aside"), volume.beside("empty"));
    fs::create_dir(&empty).expect("makes a folder");
    let stake = ["Bytes that were fsynced may be only in", shown, "--abandon-writeback", "Nothing was changed"];

    volume.refuses(&["--cache-dir", empty.to_str().expect("UTF-8")], &[&["does not hold"], &stake[..]].concat());
    fs::rename(&folder, &aside).expect("renames");
    volume.refuses(&[], &[&["there is no folder"], &stake[..]].concat());
    volume.refuses(&["--mode", "through"], &["there is no folder"]);
    volume.refuses(&["--read-only"], &["there is no folder"]);
    assert!(!folder.exists());
    // A check goes on, and says what it cannot see.
    tells(
        &kiseki(&["fsck", &volume.meta(), "--data"]),
        3,
        &["there is no folder", "counts as missing", "/f: block missing"],
    );
    kiseki_ok(&["fsck", &volume.meta(), "--data", "--cache-dir", aside.to_str().expect("UTF-8")]);

    // An older state of it: that of before a mount that has used it since.
    copy(&aside, &folder);
    volume.mount(&IMPATIENT);
    volume.break_store();
    volume.write_synced("g", 2, 100_000);
    kiseki_ok(&["umount", "--no-drain", volume.mount_point()]);
    volume.mend_store();
    let newer = volume.beside("newer");
    fs::rename(&folder, &newer).expect("renames");
    copy(&aside, &folder);
    volume.refuses(&["--cache-dir", shown], &[&["older state"], &stake[..]].concat());
    volume.refuses(&[], &["older state"]);
    fs::remove_dir_all(&folder).expect("removes");

    // That of another volume.
    let other = Volume::formatted();
    other.leave_in_log("x", 3, 100_000);
    volume.refuses(&["--cache-dir", other.log_folder().to_str().expect("UTF-8")], &["another volume"]);

    // The right one, wherever it is: the next mount finds it there by itself.
    volume.mount(&["--cache-dir", newer.to_str().expect("UTF-8")]);
    volume.refuses(&["--cache-dir", newer.to_str().expect("UTF-8")], &["mount"]);
    volume.break_store();
    volume.write_synced("h", 4, 100_000);
    volume.end_by(Signal::KILL);
    volume.mend_store();
    volume.mount(&[]);
    for (name, seed, len) in [("f", 1, 200_000), ("g", 2, 100_000), ("h", 4, 100_000)] {
        volume.holds(name, seed, len);
    }
    volume.unmount();
    assert!(!folder.exists());
    volume.check();
}

#[test]
fn a_log_that_is_lost_can_be_given_up() {
    let volume = Volume::formatted();
    volume.leave_in_log("f", 1, 200_000);
    volume.refuses(&["--abandon-writeback"], &["is not lost", "Nothing was changed"]);
    fs::remove_dir_all(volume.log_folder()).expect("removes");
    let meta = volume.meta();
    let log = volume.beside("log");
    let log = log.to_str().expect("UTF-8");
    let told = kiseki(&["mount", "-d", &meta, volume.mount_point(), "--log", log, "--abandon-writeback"]);
    tells(&told, 0, &["fsck", "--data"]);
    assert!(volume.log().contains("what was only there is lost"), "{}", volume.log());
    let error = fs::read(volume.path("f")).expect_err("its blocks are gone");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
    tells(&kiseki(&["fsck", volume.mount_point(), "--data"]), 3, &["/f: block missing"]);
    volume.write_synced("g", 2, 200_000);
    fs::remove_file(volume.path("f")).expect("unlinks");
    volume.unmount();
    volume.check();
}

#[test]
fn damage_in_the_log_is_told_and_the_rest_is_there() {
    let volume = Volume::formatted();
    volume.mount(&IMPATIENT);
    volume.break_store();
    for seed in 1..=4 {
        volume.write_synced(&format!("f{seed}"), seed, 50_000);
    }
    volume.end_by(Signal::KILL);
    volume.mend_store();
    let segment = volume.log_folder().join(&volume.log_files()[0]);
    let bytes = fs::read(&segment).expect("reads");
    let place = bytes.windows(64).position(|window| window == &noise(2, 50_000)[20_000..20_064]).expect("is there");
    let file = File::options().write(true).open(&segment).expect("opens");
    file.write_all_at(&[bytes[place] ^ 1], place as u64).expect("writes");

    volume.mount(&[]);
    assert!(volume.log().contains("the write-back log is damaged"), "{}", volume.log());
    let log = &volume.status()["mount"]["log"];
    assert_eq!(log["damaged"], 1, "{log}");
    for seed in [1, 3, 4] {
        volume.holds(&format!("f{seed}"), seed, 50_000);
    }
    let error = fs::read(volume.path("f2")).expect_err("it is damaged");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
    tells(&kiseki(&["fsck", volume.mount_point(), "--data"]), 3, &["/f2: block missing"]);
    fs::remove_file(volume.path("f2")).expect("unlinks");
    volume.unmount();
    volume.check();
    // What is damaged is kept for those who can make something of it.
    assert_eq!(volume.log_files(), ["damaged-000000000001"]);
}

#[test]
fn small_files_travel_in_packs() {
    const COUNT: u64 = 100;
    const LEN: usize = 20_000;
    let volume = Volume::formatted();
    volume.mount(&[]);
    let name = |number: u64| format!("f{number}");
    let hold = || (0..COUNT).for_each(|number| volume.holds(&name(number), number, LEN));
    (0..COUNT).for_each(|number| volume.write_synced(&name(number), number, LEN));
    volume.end_by(Signal::KILL);
    volume.mount(&[]);
    hold();
    volume.unmount();
    let objects = (volume.objects_in("packs"), volume.objects_in("blocks"));
    assert!(1 <= objects.0 && objects.0 + objects.1 < 20, "{COUNT} files are {objects:?} packs and blocks");
    volume.mount(&["--mode", "through"]);
    hold();
    assert!(kiseki_ok(&["info", volume.path(&name(0)).to_str().expect("UTF-8")]).contains("packs/"));
    (0..COUNT).for_each(|number| fs::remove_file(volume.path(&name(number))).expect("unlinks"));
    eventually("packs that nothing needs go", || volume.objects_in("packs") == 0 && volume.objects_in("blocks") == 0);
    volume.unmount();
    kiseki_ok(&["fsck", &volume.meta(), "--data"]);
}

#[test]
fn a_full_log_lets_writes_through() {
    let volume = Volume::formatted();
    volume.mount(&["--store-timeout", "2s", "--writeback-size", "16M", UNPACKED[0], UNPACKED[1]]);
    volume.break_store();
    let within = || {
        let log = &volume.status()["mount"]["log"];
        let (size, size_max) = (log["size"].as_u64().expect("a number"), log["size_max"].as_u64().expect("a number"));
        assert!(size <= size_max && size_max == 16 << 20, "{log}");
        size
    };
    // Until it is full nobody notices that the store is away; then they do, as without a log.
    let mut stored = 0;
    loop {
        let mut file = File::create(volume.path(&format!("f{stored}"))).expect("creates");
        file.write_all(&noise(stored, 1 << 20)).expect("writes");
        match file.sync_all() {
            Ok(()) => stored += 1,
            Err(error) => break assert_eq!(Errno::from_io_error(&error), Some(Errno::IO)),
        }
        within();
    }
    assert!((12..17).contains(&stored), "{stored} MiB");
    volume.mend_store();
    for seed in stored..64 {
        volume.write_synced(&format!("f{seed}"), seed, 1 << 20);
        within();
    }
    for seed in 0..64 {
        volume.holds(&format!("f{seed}"), seed, 1 << 20);
    }
    volume.unmount();
    volume.check();
    assert_eq!(volume.blocks(), 64 * 16);
}

#[test]
fn without_a_log_fsync_waits_for_the_store_and_an_old_log_is_emptied() {
    let volume = Volume::formatted();
    volume.leave_in_log("f", 1, 200_000);
    volume.mount(&["--mode", "through", UNPACKED[0], UNPACKED[1]]);
    let mount = &volume.status()["mount"];
    assert_eq!((&mount["mode"], &mount["log"]["takes_writes"]), (&"through".into(), &false.into()), "{mount}");
    volume.holds("f", 1, 200_000);
    eventually("the log is emptied", || volume.status()["mount"]["log"]["objects"] == 0);
    assert_eq!(volume.blocks(), 4);
    volume.write_synced("g", 2, 100_000);
    assert_eq!(volume.blocks(), 6, "it is in the store when fsync returns");
    volume.unmount();
    assert_eq!(status(&volume.meta())["volume"]["log"], Json::Null);

    volume.mount(&["--mode", "through"]);
    let mount = &volume.status()["mount"];
    assert_eq!((&mount["mode"], &mount["log"]), (&"through".into(), &Json::Null), "{mount}");
    volume.write_synced("h", 3, 100_000);
    volume.end_by(Signal::KILL);
    volume.mount(&[]);
    for (name, seed, len) in [("f", 1, 200_000), ("g", 2, 100_000), ("h", 3, 100_000)] {
        volume.holds(name, seed, len);
    }
    volume.unmount();
    volume.check();
}

/// A copy of a folder of files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("makes a folder");
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}
