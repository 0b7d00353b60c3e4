//! Who may do what, and which mode bits a change drops.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::harness::{Volume, copy_program};

/// The user "nobody", and a group of nobody in particular.
const NOBODY: u32 = 65_534;

/// Runs a shell line as nobody; whether it succeeded.
fn as_nobody(volume: &Volume, line: &str) -> bool {
    let output = Command::new("sh").args(["-c", line]).current_dir(&volume.mnt).uid(NOBODY).gid(NOBODY).output();
    output.expect("sh runs").status.success()
}

fn mode(volume: &Volume, name: &str) -> u32 {
    fs::metadata(volume.path(name)).expect("stats").permissions().mode() & 0o7777
}

#[test]
fn changes_drop_suid_and_sgid() {
    let volume = Volume::mounted();
    // (mode before, command, run as root, mode after)
    for (before, line, root, after) in [
        (0o6777, "printf x >> f", false, 0o777),
        (0o6777, "printf x > f", false, 0o777),
        (0o6777, "truncate -s 1 f", false, 0o777),
        (0o6777, "printf x >> f", true, 0o6777),
        (0o6777, "truncate -s 1 f", true, 0o6777),
        (0o6777, "chown 1:1 f", true, 0o777),
        (0o6777, "cat f", false, 0o6777),
    ] {
        for stored in [false, true] {
            let path = volume.path("f");
            fs::write(&path, "contents").expect("writes");
            fs::set_permissions(&path, PermissionsExt::from_mode(before)).expect("chmods");
            if stored {
                fs::File::open(&path).and_then(|file| file.sync_all()).expect("syncs");
            }
            if root {
                let ran = Command::new("sh").args(["-c", line]).current_dir(&volume.mnt).status();
                assert!(ran.expect("sh runs").success(), "{line}");
            } else {
                assert!(as_nobody(&volume, line), "{line}");
            }
            assert_eq!(mode(&volume, "f"), after, "{before:o} {line} root {root} stored {stored}");
            fs::remove_file(&path).expect("unlinks");
        }
    }
    // A change of owner to what it is, too; found by `ci/diff.sh`.
    fs::write(volume.path("same"), "contents").expect("writes");
    fs::set_permissions(volume.path("same"), PermissionsExt::from_mode(0o6777)).expect("chmods");
    let before = fs::metadata(volume.path("same")).expect("stats");
    chown(volume.path("same"), None, None).expect("chowns");
    assert_eq!(mode(&volume, "same"), 0o777);
    let after = fs::metadata(volume.path("same")).expect("stats");
    assert!((before.ctime(), before.ctime_nsec()) < (after.ctime(), after.ctime_nsec()));
    // But not of a file of another.
    fs::set_permissions(volume.path("same"), PermissionsExt::from_mode(0o6777)).expect("chmods");
    as_nobody(&volume, "perl -e 'chown -1, -1, \"same\"'");
    assert_eq!(mode(&volume, "same"), 0o6777);
    // A folder's sgid is not a privilege.
    fs::create_dir(volume.path("d")).expect("makes a folder");
    fs::set_permissions(volume.path("d"), PermissionsExt::from_mode(0o2775)).expect("chmods");
    chown(volume.path("d"), Some(1), Some(1)).expect("chowns");
    assert_eq!(mode(&volume, "d"), 0o2775);
}

/// The kernel that ran the file before, and was not asked for its mode since.
#[test]
fn a_program_that_was_written_runs_without_suid() {
    let volume = Volume::mounted();
    copy_program("/usr/bin/id", &volume.path("id"));
    fs::set_permissions(volume.path("id"), PermissionsExt::from_mode(0o4777)).expect("chmods");
    assert!(as_nobody(&volume, "test $(./id -u) = 0"));
    assert!(as_nobody(&volume, "printf x >> id && test $(./id -u) != 0"));
}

/// Without group execution sgid once meant mandatory locking; found by `ci/diff.sh`: it stayed whoever wrote.
#[test]
fn an_outsider_takes_sgid_also_without_group_execution() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    for line in ["printf x >> f", "printf x > f", "truncate -s 1 f", "fallocate -l 10 f", "chown 65534 f"] {
        let of_group_77 = ["--reuid", "65534", "--regid", "65534", "--groups", "77"];
        let root_without = ["--bounding-set", "-fsetid", "--inh-caps", "-fsetid"];
        for (who, kept) in [
            (&["--reuid", "65534", "--regid", "65534", "--clear-groups"][..], false),
            (&of_group_77, true),
            (&["--reuid", "65534", "--regid", "77", "--clear-groups"], true),
            // The kernel does not tell capabilities.
            (&root_without, true),
        ] {
            fs::write(&path, "contents").expect("writes");
            chown(&path, Some(NOBODY), Some(77)).expect("chowns");
            fs::set_permissions(&path, PermissionsExt::from_mode(0o2666)).expect("chmods");
            let ran = Command::new("setpriv").args(who).args(["sh", "-c", line]).current_dir(&volume.mnt).output();
            let ran = ran.expect("setpriv runs");
            assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
            assert_eq!(mode(&volume, "f"), if kept { 0o2666 } else { 0o666 }, "{line} {who:?}");
            fs::remove_file(&path).expect("unlinks");
        }
    }
    // After a remount, which knows nothing of the file.
    for name in ["a", "b"] {
        fs::write(volume.path(name), "contents").expect("writes");
        fs::set_permissions(volume.path(name), PermissionsExt::from_mode(0o2666)).expect("chmods");
    }
    volume.remount();
    assert!(as_nobody(&volume, "printf x >> a"));
    assert_eq!(mode(&volume, "a"), 0o666);
    volume.remount();
    assert_eq!((mode(&volume, "a"), mode(&volume, "b")), (0o666, 0o2666));
    volume.unmount();
    volume.check();
}

#[test]
fn permissions_are_checked() {
    let volume = Volume::mounted();
    fs::set_permissions(&volume.mnt, PermissionsExt::from_mode(0o777)).expect("chmods");
    fs::write(volume.path("secret"), "x").expect("writes");
    fs::set_permissions(volume.path("secret"), PermissionsExt::from_mode(0o600)).expect("chmods");
    fs::create_dir(volume.path("closed")).expect("makes a folder");
    fs::set_permissions(volume.path("closed"), PermissionsExt::from_mode(0o700)).expect("chmods");
    fs::create_dir(volume.path("tmp")).expect("makes a folder");
    fs::set_permissions(volume.path("tmp"), PermissionsExt::from_mode(0o1777)).expect("chmods");
    fs::write(volume.path("tmp/roots"), "x").expect("writes");
    for (line, allowed) in [
        ("cat secret", false),
        ("printf x >> secret", false),
        ("chmod 666 secret", false),
        ("chown 65534 secret", false),
        ("ls closed", false),
        ("touch closed/x", false),
        ("rm -f tmp/roots", false),
        ("mv tmp/roots tmp/mine", false),
        ("printf x > tmp/mine && cat tmp/mine && chmod 600 tmp/mine", true),
        ("rm tmp/mine", true),
        ("umask 027 && mkdir new && touch new/f", true),
    ] {
        assert_eq!(as_nobody(&volume, line), allowed, "{line}");
    }
    assert_eq!(mode(&volume, "new"), 0o750, "the umask applies");
    assert_eq!(mode(&volume, "new/f"), 0o640, "the umask applies");
}

#[test]
fn a_group_folder_hands_its_group_on() {
    let volume = Volume::mounted();
    fs::create_dir(volume.path("team")).expect("makes a folder");
    chown(volume.path("team"), Some(0), Some(77)).expect("chowns");
    fs::set_permissions(volume.path("team"), PermissionsExt::from_mode(0o2777)).expect("chmods");
    assert!(as_nobody(&volume, "mkdir team/sub && touch team/f team/sub/g"));
    for name in ["team/f", "team/sub", "team/sub/g"] {
        let meta = fs::metadata(volume.path(name)).expect("stats");
        assert_eq!(meta.gid(), 77, "{name}");
        assert_eq!(meta.uid(), NOBODY, "{name}");
    }
    assert_eq!(mode(&volume, "team/sub") & 0o2000, 0o2000);
}
