//! The command line: exit codes, messages, `--json` documents, and that what fails changes nothing.

mod volume;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiseki_core::format::keys;
use kiseki_core::format::values::{Value, Volume};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Value as Json, json};
use volume::{NAME, Ran, World, eventually, files_below, kiseki, noise};

/// The volume of a world, mounted in the background; unmounted at the end of the test also if that fails.
struct Mounted<'a> {
    world: &'a World,
    point: PathBuf,
}

impl<'a> Mounted<'a> {
    fn new(world: &'a World, more: &[&str]) -> Self {
        let point = world.path("mnt");
        fs::create_dir_all(&point).unwrap();
        let (meta, log) = (world.meta(), world.text("log"));
        kiseki(&[&["mount", "-d", "--log", &log, &meta, point.to_str().unwrap()], more].concat()).ends(0);
        Self { world, point }
    }

    fn text(&self) -> &str {
        self.point.to_str().unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    fn unmount(self) -> Ran {
        let ran = kiseki(&["umount", self.text()]);
        std::mem::forget(self);
        ran
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let ran = kiseki(&["umount", "--force", self.text()]);
        eprintln!("{ran:?}\n{}", fs::read_to_string(self.world.path("log")).unwrap_or_default());
    }
}

fn formatted() -> World {
    let world = World::new();
    world.format(&["--block-size", "64K"]).ends(0);
    world
}

#[test]
fn a_senseless_command_line_is_a_usage_error() {
    let cases: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["format"],
        &["format", "/nowhere/m", "vol"],
        &["format", "/nowhere/m", "UPPER", "--bucket", "/nowhere/b"],
        &["format", "/nowhere/m", "ab", "--bucket", "/nowhere/b"],
        &["format", "/nowhere/m", "vol", "--bucket", "/nowhere/b", "--storage", "punched-cards"],
        &["format", "/nowhere/m", "vol", "--bucket", "/nowhere/b", "--block-size", "3M"],
        &["format", "/nowhere/m", "vol", "--bucket", "/nowhere/b", "--block-size", "1K"],
        &["format", "/nowhere/m", "vol", "--bucket", "/nowhere/b", "--capacity", "many"],
        &["format", "/nowhere/m", "vol", "--bucket", "/nowhere/m"],
        &["format", "/nowhere/b/vol/m", "vol", "--bucket", "/nowhere/b"],
        &["format", "", "vol", "--bucket", "/nowhere/b"],
        &["mount", "/nowhere/m"],
        &["mount", "/nowhere/m", "/nowhere", "--buffer-size", "1M"],
        &["mount", "/nowhere/m", "/nowhere", "--commit-interval", "0"],
        &["status"],
        &["fsck", "--data"],
    ];
    for case in cases {
        let ran = kiseki(case).ends(2);
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "{case:?}: {ran:?}");
    }
    for command in ["status", "fsck"] {
        let ran = kiseki(&[command, "redis://localhost/1"]).ends(2);
        assert!(ran.stderr.contains("'redis' is not supported") && ran.stderr.contains("rocksdb://PATH"), "{ran:?}");
    }
    assert!(!Path::new("/nowhere").exists());
}

#[test]
fn help_teaches() {
    let ran = kiseki(&["--help"]).ends(0);
    for text in ["kiseki format", "kiseki mount -d", "Exit codes", "rocksdb://"] {
        assert!(ran.stdout.contains(text), "{text}: {ran:?}");
    }
    for command in ["format", "mount", "umount", "status", "info", "fsck"] {
        let ran = kiseki(&[command, "--help"]).ends(0);
        assert!(ran.stdout.contains("Examples:"), "{ran:?}");
    }
    for (command, texts) in [
        ("format", &["--storage minio", "amazonaws.com", "KISEKI_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"][..]),
        ("mount", &["--max-uploads", "--bucket", "KISEKI_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"]),
        ("fsck", &["KISEKI_SECRET_KEY"]),
    ] {
        let secret = "not-for-help";
        let mut help = Command::new(env!("CARGO_BIN_EXE_kiseki"));
        let ran = Ran::from(help.args([command, "--help"]).env("KISEKI_SECRET_KEY", secret).output().unwrap()).ends(0);
        for text in texts {
            assert!(ran.stdout.contains(text), "{text}: {ran:?}");
        }
        assert!(!ran.stdout.contains(secret), "{ran:?}");
    }
    kiseki(&["--version"]).ends(0);
}

#[test]
fn format_makes_a_volume_that_status_shows() {
    let world = World::new();
    let made = world.format(&["--block-size", "1M", "--capacity", "10G", "--inodes", "1000", "--json"]).ends(0).json();
    let shown = kiseki(&["status", &world.meta(), "--json"]).ends(0).json();
    assert_eq!(made, shown);
    assert_eq!(shown["meta"], world.meta());
    assert_eq!(shown["mount"], Json::Null);
    assert_eq!(shown["usage"], json!({ "bytes": 0, "inodes": 1 }));
    let volume = shown["volume"].as_object().unwrap();
    let expected = json!({
        "name": NAME, "version": 1, "storage": "file", "bucket": world.text("bucket"), "block_size": 1 << 20,
        "chunk_size": 64 << 20, "capacity": 10_u64 << 30, "inodes": 1000, "acl": false,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&volume[key], value, "{key}");
    }
    assert_eq!(volume["id"].as_str().unwrap().len(), 36);
    assert!(volume["created"].as_i64().unwrap() > 1_700_000_000);

    let text = kiseki(&["status", &format!("rocksdb://{}", world.meta())]).ends(0).stdout;
    for expected in [NAME, "10.0 GiB", "Mounted:", "no"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let files = files_below(&world.prefix());
    assert_eq!(files.iter().map(|(path, _)| path.to_str().unwrap()).collect::<Vec<_>>(), ["kiseki.volume"]);
}

#[test]
fn format_leaves_an_existing_volume_alone() {
    let world = formatted();
    let before = kiseki(&["status", &world.meta(), "--json"]).json();
    world.format(&[]).fails_with(&["already holds the volume 'test-volume'", "--force"]);
    let elsewhere = world.text("elsewhere");
    let args = ["format", &world.meta(), NAME, "--bucket", &elsewhere, "--force"];
    kiseki(&args).fails_with(&["already holds", "Nothing was changed"]);
    world.format(&["--force", "--block-size", "4M"]).fails_with(&["blocks of 64.0 KiB"]);
    assert_eq!(kiseki(&["status", &world.meta(), "--json"]).json(), before);
    assert!(!world.path("elsewhere").exists());
}

#[test]
fn force_changes_limits_and_follows_moved_objects() {
    let world = formatted();
    let before = kiseki(&["status", &world.meta(), "--json"]).json();
    world.format(&["--force", "--capacity", "1G"]).ends(0);
    let mut after = world.format(&["--force", "--inodes", "7", "--json"]).ends(0).json();
    assert_eq!(after["volume"]["capacity"], 1 << 30);
    assert_eq!(after["volume"]["inodes"], 7);
    after["volume"]["capacity"] = json!(0);
    after["volume"]["inodes"] = json!(0);
    assert_eq!(after, before);

    fs::rename(world.path("bucket"), world.path("moved")).unwrap();
    kiseki(&["fsck", &world.meta()]).ends(1);
    kiseki(&["format", &world.meta(), NAME, "--bucket", &world.text("moved"), "--force"]).ends(0);
    kiseki(&["fsck", &world.meta()]).ends(0);
}

#[test]
fn format_refuses_what_is_not_its_own() {
    let world = formatted();
    let other = world.text("other-meta");
    let bucket = world.text("bucket");
    let format = |meta: &str, bucket: &str| kiseki(&["format", meta, NAME, "--bucket", bucket]);

    format(&other, &bucket).fails_with(&["the objects of another volume", "Choose another bucket"]);
    assert!(!Path::new(&other).exists());

    fs::create_dir_all(world.path("used").join(NAME)).unwrap();
    fs::write(world.path("used").join(NAME).join("thesis.txt"), "years of work").unwrap();
    format(&other, &world.text("used")).fails_with(&["is not empty", "thesis.txt"]);
    assert!(!Path::new(&other).exists());

    fs::write(world.path("file"), "").unwrap();
    format(&other, &world.text("file")).fails_with(&["is not a folder"]);
    format(&world.text("file"), &world.text("fresh")).fails_with(&["not a Kiseki metadata folder"]);
    format(&world.text("used"), &world.text("fresh")).fails_with(&["not a Kiseki metadata folder"]);
    assert!(!Path::new(&other).exists());
    assert!(!world.path("fresh").exists());
    assert_eq!(files_below(&world.path("used")).len(), 1);
}

#[test]
fn format_on_a_full_disk_leaves_nothing_behind() {
    // Both ways: the metadata does not fit, and the objects do not.
    for (meta, bucket) in [("small/a/meta", "bucket"), ("meta", "small/b/bucket")] {
        let world = World::new();
        let small = world.path("small");
        fs::create_dir(&small).unwrap();
        let script =
            "mount -t tmpfs -o size=16k,nr_inodes=20 none \"$1\" && head -c 16k /dev/zero >\"$1/ballast\" || true
            shift; \"$@\"; code=$?; find \"$0\" >&2; exit $code";
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
            .args([&small, &small])
            .args([env!("CARGO_BIN_EXE_kiseki"), "format", &world.text(meta), NAME, "--bucket", &world.text(bucket)])
            .stdin(Stdio::null())
            .output();
        let ran = Ran::from(output.expect("unshare runs")).fails_with(&["No space left"]);
        let left: Vec<_> = ran.stderr.lines().filter(|line| line.starts_with(small.to_str().unwrap())).collect();
        assert_eq!(left, [world.text("small"), world.text("small/ballast")], "{ran:?}");
        assert!(!world.path("meta").exists() && !world.path("bucket").exists(), "{ran:?}");
    }
}

#[test]
fn a_wrong_meta_is_told_and_not_touched() {
    let world = World::new();
    let missing = world.text("missing");
    fs::create_dir(world.path("folder")).unwrap();
    fs::create_dir(world.path("mnt")).unwrap();
    fs::write(world.path("folder/file"), "x").unwrap();
    let (folder, mnt) = (world.text("folder"), world.text("mnt"));
    for command in [&["status"][..], &["fsck"], &["mount"]] {
        let run = |meta: &str| {
            let end: &[&str] = if command == ["mount"] { &[meta, &mnt] } else { &[meta] };
            kiseki(&[command, end].concat())
        };
        run(&missing).fails_with(&["no metadata folder", &missing, "kiseki format"]);
        run(&folder).fails_with(&["not a Kiseki metadata folder", &folder]);
    }
    assert!(!Path::new(&missing).exists());
    assert_eq!(files_below(&world.path("folder")), [(PathBuf::from("file"), 1)]);
}

#[test]
fn a_volume_from_the_future_is_refused() {
    let world = formatted();
    world.change(|txn| {
        let volume = txn.get(&keys::volume())?.expect("formatted");
        let volume = Volume::decode(&volume).expect("decodes");
        txn.put(&keys::volume(), &Volume { version: 7, ..volume }.encode());
        Ok(())
    });
    fs::create_dir(world.path("mnt")).unwrap();
    let (meta, mnt) = (world.meta(), world.text("mnt"));
    for args in [&["status", &meta][..], &["fsck", &meta], &["mount", &meta, &mnt], &["mount", "-d", &meta, &mnt]] {
        kiseki(args).fails_with(&["version 7", "newer kiseki"]);
    }
    world.format(&["--force", "--capacity", "1G"]).fails_with(&["version 7", "newer kiseki"]);
}

#[test]
fn a_mounted_volume_answers_for_itself() {
    let world = formatted();
    let mounted = Mounted::new(&world, &["--pack-below", "0"]);
    fs::create_dir(mounted.file("docs")).unwrap();
    let contents = noise(3, 200 << 10);
    fs::write(mounted.file("docs/large"), &contents).unwrap();
    fs::write(mounted.file("docs/small"), "few").unwrap();
    for name in ["docs/large", "docs/small"] {
        fs::File::open(mounted.file(name)).unwrap().sync_all().unwrap();
    }

    // The socket is for its owner only.
    let socket = fs::metadata(world.path("meta/kiseki.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);

    // By META and by MOUNTPOINT.
    for place in [&world.meta(), mounted.text()] {
        let status = kiseki(&["status", place, "--json"]).ends(0).json();
        assert_eq!(status["meta"], world.meta());
        assert_eq!(status["volume"]["name"], NAME);
        assert_eq!(status["usage"], json!({ "bytes": contents.len() + 3, "inodes": 4 }));
        assert_eq!(status["mount"]["mountpoint"], mounted.text());
        assert_eq!(status["mount"]["read_only"], false);
        assert_eq!(status["mount"]["dirty_bytes"], 0);
        for key in ["pid", "session", "uptime_secs", "open_files", "buffer_size", "waiting_bytes"] {
            assert!(status["mount"][key].is_u64(), "{key}: {status}");
        }
        assert!(kiseki(&["status", place]).ends(0).stdout.contains(mounted.text()));
        for data in [&[][..], &["--data"]] {
            let ran = kiseki(&[&["fsck", place, "--json"], data].concat()).ends(0).json();
            assert_eq!(ran["findings"], json!([]));
            assert_eq!(ran["checked"]["blocks"], 4);
            assert_eq!(ran["checked"]["inodes"], 4);
        }
    }

    let large = mounted.file("docs/large");
    let info = || kiseki(&["info", large.to_str().unwrap(), "--json"]).ends(0).json();
    assert_eq!(info()["ino"], fs::metadata(&large).unwrap().ino());
    assert_eq!(info()["kind"], "file");
    assert_eq!(info()["length"], contents.len());
    eventually("its blocks are where it says", || {
        let info = info();
        let keys = info["slices"].as_array().unwrap().iter().flat_map(|slice| slice["blocks"].as_array().unwrap());
        let keys: Vec<_> = keys.map(|key| key.as_str().unwrap()).collect();
        assert_eq!(keys.len(), 4, "{info}");
        keys.iter().all(|key| world.prefix().join(key).exists())
    });
    let info = kiseki(&["info", mounted.file("docs/small").to_str().unwrap(), "--json"]).ends(0).json();
    assert_eq!(info["slices"][0]["place"], "inline");
    let text = kiseki(&["info", mounted.file("docs").to_str().unwrap()]).ends(0).stdout;
    assert!(text.contains("directory"), "{text}");

    // A damage under a live mount is found too.
    let block = files_below(&world.prefix().join("blocks"))[0].0.clone();
    fs::remove_file(world.prefix().join("blocks").join(block)).unwrap();
    let ran = kiseki(&["fsck", mounted.text()]).ends(3);
    assert!(ran.stdout.contains("/docs/large: block missing: "), "{ran:?}");

    mounted.unmount().ends(0);
    assert!(!world.path("meta/kiseki.sock").exists());
    kiseki(&["fsck", &world.meta()]).ends(3);
}

#[test]
fn a_mounted_volume_is_not_mounted_or_formatted_again() {
    let world = formatted();
    let mounted = Mounted::new(&world, &[]);
    let (meta, log, other) = (world.meta(), world.text("second-log"), world.text("other"));
    fs::create_dir(&other).unwrap();
    for flag in [&[][..], &["-d"]] {
        let args = [&["mount", "--log", &log, &meta, &other][..], flag].concat();
        kiseki(&args).fails_with(&["in use", mounted.text(), "pid"]);
        let args = [&["mount", "--log", &log, &meta, mounted.text()][..], flag].concat();
        kiseki(&args).fails_with(&["already", mounted.text()]);
    }
    world.format(&["--force", "--capacity", "1G"]).fails_with(&["in use", mounted.text()]);
    fs::write(mounted.file("still-there"), "yes").unwrap();
    mounted.unmount().ends(0);
}

#[test]
fn a_mount_point_must_be_an_empty_folder() {
    let world = formatted();
    fs::write(world.path("file"), "").unwrap();
    fs::create_dir(world.path("full")).unwrap();
    fs::write(world.path("full/something"), "").unwrap();
    let cases = [("file", "not a directory"), ("full", "is not empty"), ("absent", "does not exist")];
    for (name, text) in cases {
        for flag in [&[][..], &["-d"]] {
            let (meta, point, log) = (world.meta(), world.text(name), world.text("log"));
            kiseki(&[&["mount", "--log", &log, &meta, &point][..], flag].concat()).fails_with(&[text, &point]);
        }
    }
    assert!(!world.path("absent").exists());
    assert_eq!(files_below(&world.path("full")), [(PathBuf::from("something"), 0)]);
    kiseki(&["fsck", &world.meta()]).ends(0);
}

#[test]
fn a_mount_shows_its_store_and_may_find_it_elsewhere() {
    let world = formatted();
    fs::rename(world.path("bucket"), world.path("moved")).unwrap();
    let moved = world.text("moved");
    let mounted = Mounted::new(&world, &["--bucket", &moved, "--max-uploads", "3", "--mode", "through"]);
    fs::write(mounted.file("file"), noise(1, 200 << 10)).unwrap();
    fs::File::open(mounted.file("file")).and_then(|file| file.sync_all()).unwrap();
    let status = kiseki(&["status", mounted.text(), "--json"]).ends(0).json();
    assert_eq!(status["volume"]["objects"], world.prefix().to_str().unwrap());
    let store = &status["mount"]["store"];
    assert_eq!(store["place"], world.path("moved").join(NAME).to_str().unwrap());
    assert_eq!((&store["ok"], &store["error"], &store["max_uploads"]), (&json!(true), &Json::Null, &json!(3)));
    assert_eq!((&store["puts"], &store["failures"]), (&json!(4), &json!(0)), "{store}");
    assert!(store["put_bytes"].as_u64().unwrap() > 200 << 10, "{store}");
    let text = kiseki(&["status", mounted.text()]).ends(0).stdout;
    for expected in ["Object store:", "answers", "Requests:", "4 puts"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    mounted.unmount().ends(0);
    // Where it was reached that time is not remembered.
    kiseki(&["fsck", &world.meta()]).fails_with(&["are missing"]);
    kiseki(&["fsck", &world.meta(), "--data", "--bucket", &moved]).ends(0);
}

#[test]
fn umount_stores_everything_before_it_returns() {
    let world = formatted();
    let mounted = Mounted::new(&world, &["--commit-interval", "1h"]);
    let contents = noise(5, 1 << 20);
    fs::write(mounted.file("unsynced"), &contents).unwrap();
    let ran = mounted.unmount().ends(0);
    assert!(ran.stdout.contains("unmounted"), "{ran:?}");
    let checked = kiseki(&["fsck", &world.meta(), "--data", "--json"]).ends(0).json();
    assert_eq!(checked["checked"]["blocks"], 16);
    let mounted = Mounted::new(&world, &["--read-only"]);
    assert_eq!(fs::read(mounted.file("unsynced")).unwrap(), contents);
    let status = kiseki(&["status", mounted.text(), "--json"]).ends(0).json();
    assert_eq!(status["mount"]["read_only"], true);
    assert!(fs::write(mounted.file("new"), "x").is_err());
    mounted.unmount().ends(0);
}

#[test]
fn a_mount_stays_until_all_can_be_stored() {
    let world = formatted();
    let mounted = Mounted::new(&world, &["--mode", "through", "--commit-interval", "1h", "--store-timeout", "1s"]);
    // Less than a block: nothing of it is stored before something asks for that.
    let contents = noise(6, 40 << 10);
    fs::write(mounted.file("precious"), &contents).unwrap();
    fs::rename(world.path("bucket"), world.path("gone")).unwrap();
    kiseki(&["umount", mounted.text()]).fails_with(&["stays mounted", "cannot be stored", "--force"]);
    assert_eq!(fs::read(mounted.file("precious")).unwrap(), contents);
    let status = kiseki(&["status", mounted.text(), "--json"]).ends(0).json();
    assert_eq!(status["mount"]["dirty_files"], 1);
    fs::rename(world.path("gone"), world.path("bucket")).unwrap();
    mounted.unmount().ends(0);
    let checked = kiseki(&["fsck", &world.meta(), "--data", "--json"]).ends(0).json();
    assert_eq!(checked["checked"]["blocks"], 1);
}

#[test]
fn a_mount_in_use_stays_unless_forced() {
    let world = formatted();
    let mounted = Mounted::new(&world, &[]);
    let file = fs::File::create(mounted.file("open")).unwrap();
    kiseki(&["umount", mounted.text()]).fails_with(&["is in use", "--force"]);
    assert!(mounted.file("open").exists());
    let ran = kiseki(&["umount", "--force", mounted.text()]).ends(0);
    assert!(ran.stdout.contains("last file is closed"), "{ran:?}");
    assert!(!mounted.file("open").exists());
    std::mem::forget(mounted);
    drop(file);
}

#[test]
fn the_mount_of_a_killed_process_is_told_and_removed() {
    let world = formatted();
    let mounted = Mounted::new(&world, &[]);
    fs::write(mounted.file("file"), "x").unwrap();
    fs::File::open(mounted.file("file")).unwrap().sync_all().unwrap();
    let status = kiseki(&["status", mounted.text(), "--json"]).ends(0).json();
    let pid = Pid::from_raw(status["mount"]["pid"].as_i64().unwrap() as i32).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    // Readable once it has ended, and with it its lock of the store.
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
    let ran = kiseki(&["status", mounted.text(), "--json"]).ends(0);
    assert!(ran.stderr.contains("the process of the mount") && ran.stderr.contains("kiseki umount"), "{ran:?}");
    assert_eq!(ran.json()["mount"], Json::Null);
    kiseki(&["fsck", &world.meta(), "--data"]).ends(0);
    let ran = mounted.unmount().ends(0);
    assert!(ran.stdout.contains("removed the dead mount"), "{ran:?}");
    let mounted = Mounted::new(&world, &[]);
    assert_eq!(fs::read(mounted.file("file")).unwrap(), b"x");
    mounted.unmount().ends(0);
}

#[test]
fn commands_on_other_places_say_so() {
    let world = World::new();
    fs::write(world.path("file"), "x").unwrap();
    kiseki(&["umount", &world.text("")]).fails_with(&["not the mount point of a Kiseki volume"]);
    kiseki(&["info", &world.text("file")]).fails_with(&["is not on a mounted Kiseki volume"]);
    kiseki(&["info", &world.text("absent")]).fails_with(&["absent", "No such file"]);
}

#[test]
fn a_stale_socket_is_no_mount() {
    let world = formatted();
    // As a killed process leaves it: the file is there, nobody listens.
    drop(UnixListener::bind(world.path("meta/kiseki.sock")).unwrap());
    assert_eq!(kiseki(&["status", &world.meta(), "--json"]).ends(0).json()["mount"], Json::Null);
    let mounted = Mounted::new(&world, &[]);
    assert!(kiseki(&["status", &world.meta(), "--json"]).ends(0).json()["mount"].is_object());
    mounted.unmount().ends(0);
}

#[test]
fn a_path_too_long_for_a_socket_works() {
    let world = World::new();
    let meta = world.text(&format!("{}/{}/meta", "d".repeat(80), "e".repeat(80)));
    kiseki(&["format", &meta, NAME, "--bucket", &world.text("bucket")]).ends(0);
    fs::create_dir(world.path("mnt")).unwrap();
    let mnt = world.text("mnt");
    kiseki(&["mount", "-d", "--log", &world.text("log"), &meta, &mnt]).ends(0);
    let status = kiseki(&["status", &meta, "--json"]).ends(0).json();
    assert_eq!(status["mount"]["mountpoint"], mnt);
    kiseki(&["umount", &mnt]).ends(0);
}
