//! Names, links, attributes, extended attributes, listings.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

use rustix::fs::{AtFlags, CWD, Mode, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use crate::harness::{Volume, picture};

#[test]
fn a_tree_is_the_same_after_a_remount() {
    let volume = Volume::mounted();
    fs::create_dir_all(volume.path("a/b/c")).expect("makes folders");
    for (name, mode) in [("a/plain", 0o644), ("a/b/program", 0o755), ("a/b/c/secret", 0o600), ("a/sticky", 0o1777)] {
        fs::write(volume.path(name), name).expect("writes");
        fs::set_permissions(volume.path(name), PermissionsExt::from_mode(mode)).expect("chmods");
    }
    std::os::unix::fs::lchown(volume.path("a/plain"), Some(1234), Some(5678)).expect("chowns");
    symlink("../b/program", volume.path("a/b/link")).expect("links");
    symlink("x".repeat(4095), volume.path("a/long-target")).expect("links");
    fs::hard_link(volume.path("a/plain"), volume.path("a/b/c/plain-too")).expect("links");
    fs::hard_link(volume.path("a/plain"), volume.path("third")).expect("links");
    fs::remove_file(volume.path("third")).expect("unlinks");
    for (name, kind, dev) in [
        ("fifo", rustix::fs::FileType::Fifo, 0),
        ("socket", rustix::fs::FileType::Socket, 0),
        ("null", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("block", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(259, 70_000)),
    ] {
        rustix::fs::mknodat(CWD, volume.path(name), kind, Mode::from(0o640), dev).expect("makes a node");
    }
    let odd = [&b"non-utf8 \xff\xfe"[..], b"new\nline", b" ", b"\\", &[b'n'; 255]];
    for name in odd {
        File::create(volume.mnt.join(OsStr::from_bytes(name))).expect("creates");
    }
    for (name, secs, nanos) in [("a/plain", -86_400, 500_000_000), ("a/b", 1_000_000_000, 123_456_789)] {
        let time = Timespec { tv_sec: secs, tv_nsec: nanos };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, volume.path(name), &times, AtFlags::empty()).expect("sets times");
        let meta = fs::metadata(volume.path(name)).expect("stats");
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (secs, nanos), "{name}");
        assert_eq!((meta.atime(), meta.atime_nsec()), (secs, nanos), "{name}");
    }
    let before = picture(&volume.mnt);
    assert_eq!(before.len(), 1 + 3 + 4 + 2 + 1 + 4 + odd.len());
    assert_eq!(fs::metadata(volume.path("a")).expect("stats").nlink(), 3);
    volume.remount();
    assert_eq!(picture(&volume.mnt), before);
    assert!(fs::metadata(volume.path("null")).expect("stats").file_type().is_char_device());
    let mut nothing = Vec::new();
    File::open(volume.path("null")).and_then(|mut file| file.read_to_end(&mut nothing)).expect("is the null device");
    volume.unmount();
    volume.check();
}

#[test]
fn a_rename_replaces_and_an_open_file_stays() {
    let volume = Volume::mounted();
    fs::write(volume.path("old"), "old contents").expect("writes");
    let mut held = File::open(volume.path("old")).expect("opens");
    fs::write(volume.path("new"), "new contents").expect("writes");
    fs::rename(volume.path("new"), volume.path("old")).expect("renames");
    assert_eq!(fs::read_to_string(volume.path("old")).expect("reads"), "new contents");
    assert_eq!(fs::metadata(volume.path("new")).expect_err("it moved").kind(), ErrorKind::NotFound);
    let mut text = String::new();
    held.read_to_string(&mut text).expect("reads");
    assert_eq!(text, "old contents");
    drop(held);
    volume.remount();
    assert_eq!(fs::read_to_string(volume.path("old")).expect("reads"), "new contents");
    volume.unmount();
    volume.check();
}

#[test]
fn renames_follow_renameat2() {
    let volume = Volume::mounted();
    let rename =
        |from: &str, to: &str, flags| rustix::fs::renameat_with(CWD, volume.path(from), CWD, volume.path(to), flags);
    fs::write(volume.path("a"), "a").expect("writes");
    fs::write(volume.path("b"), "b").expect("writes");
    fs::create_dir_all(volume.path("d/sub")).expect("makes folders");
    fs::create_dir(volume.path("empty")).expect("makes a folder");
    for (from, to, flags, expected) in [
        ("a", "b", RenameFlags::NOREPLACE, Err(Errno::EXIST)),
        ("a", "nosuch/x", RenameFlags::empty(), Err(Errno::NOENT)),
        ("a", "nosuch", RenameFlags::EXCHANGE, Err(Errno::NOENT)),
        ("a", "b", RenameFlags::WHITEOUT | RenameFlags::EXCHANGE, Err(Errno::INVAL)),
        ("d", "d/sub/x", RenameFlags::empty(), Err(Errno::INVAL)),
        ("empty", "d", RenameFlags::empty(), Err(Errno::NOTEMPTY)),
        ("a", "d", RenameFlags::empty(), Err(Errno::ISDIR)),
        ("d", "a", RenameFlags::empty(), Err(Errno::NOTDIR)),
        ("a", "b", RenameFlags::EXCHANGE, Ok(())),
        ("a", "c", RenameFlags::NOREPLACE, Ok(())),
        ("d", "empty", RenameFlags::empty(), Ok(())),
        ("b", "empty/sub", RenameFlags::EXCHANGE, Ok(())),
    ] {
        assert_eq!(rename(from, to, flags), expected, "{from} {to} {flags:?}");
    }
    // c holds b's contents, empty/sub is the file a, b is the folder sub.
    assert_eq!(fs::read_to_string(volume.path("c")).expect("reads"), "b");
    assert_eq!(fs::read_to_string(volume.path("empty/sub")).expect("reads"), "a");
    assert!(fs::metadata(volume.path("b")).expect("stats").is_dir());
    let before = picture(&volume.mnt);
    volume.remount();
    assert_eq!(picture(&volume.mnt), before);
    volume.unmount();
    volume.check();
}

#[test]
fn a_directory_of_10000_names_lists_each_once() {
    const COUNT: usize = 10_000;
    let volume = Volume::mounted();
    let dir = volume.path("big");
    fs::create_dir(&dir).expect("makes a folder");
    let name = |index: usize| format!("entry-{index:05}-{}", "x".repeat(index % 60));
    for index in 0..COUNT {
        File::create(dir.join(name(index))).expect("creates");
    }
    let list = || {
        let names: Vec<_> = fs::read_dir(&dir).expect("opens").map(|entry| entry.expect("lists").file_name()).collect();
        let set: BTreeSet<_> = names.iter().cloned().collect();
        assert_eq!(set.len(), names.len(), "a name came twice");
        set
    };
    let expected: BTreeSet<_> = (0..COUNT).map(|index| name(index).into()).collect();
    assert_eq!(list(), expected);
    volume.remount();
    assert_eq!(list(), expected, "after a remount");
    // With attributes, as `ls -l` does.
    let lengths = fs::read_dir(&dir).expect("opens").filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == 0))
    });
    assert_eq!(lengths.count(), COUNT);
    // Names that stay are listed once each while others go.
    let mut seen = BTreeSet::new();
    for (index, entry) in fs::read_dir(&dir).expect("opens").enumerate() {
        assert!(seen.insert(entry.expect("lists").file_name()), "a name came twice");
        if index % 2 == 0 && index / 2 < COUNT / 4 {
            fs::remove_file(dir.join(name(4 * (index / 2)))).expect("unlinks");
        }
    }
    let kept = |index: &usize| !index.is_multiple_of(4);
    assert!(
        (0..COUNT).filter(kept).all(|index| seen.contains(OsStr::new(&name(index)))),
        "a name that stayed is missing"
    );
    assert_eq!(list(), (0..COUNT).filter(kept).map(|index| name(index).into()).collect());
    fs::remove_dir_all(&dir).expect("removes");
    assert_eq!(fs::read_dir(&volume.mnt).expect("lists").count(), 0);
    volume.unmount();
    volume.check();
}

#[test]
fn a_listing_seen_before_shows_what_changed_since() {
    let volume = Volume::mounted();
    let list = || -> BTreeSet<_> {
        fs::read_dir(&volume.mnt).expect("opens").map(|entry| entry.expect("lists").file_name()).collect()
    };
    let names = |names: &[&str]| -> BTreeSet<_> { names.iter().map(|name| (*name).into()).collect() };
    assert_eq!(fs::metadata(volume.path("a")).expect_err("is not there yet").kind(), ErrorKind::NotFound);
    assert_eq!(list(), names(&[]));
    fs::write(volume.path("a"), "1").expect("writes");
    assert_eq!(list(), names(&["a"]));
    fs::create_dir(volume.path("b")).expect("makes a folder");
    assert_eq!(list(), names(&["a", "b"]));
    fs::rename(volume.path("a"), volume.path("c")).expect("renames");
    assert_eq!(list(), names(&["b", "c"]));
    fs::rename(volume.path("c"), volume.path("b/c")).expect("renames");
    assert_eq!(list(), names(&["b"]));
    fs::hard_link(volume.path("b/c"), volume.path("d")).expect("links");
    assert_eq!(list(), names(&["b", "d"]));
    fs::remove_file(volume.path("d")).expect("unlinks");
    fs::remove_dir_all(volume.path("b")).expect("removes");
    assert_eq!(list(), names(&[]));
}

#[test]
fn attributes_change_as_posix_says() {
    let volume = Volume::mounted();
    let stat = |name: &str| fs::metadata(volume.path(name)).expect("stats");
    let times = |meta: &fs::Metadata| ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    fs::create_dir(volume.path("dir")).expect("makes a folder");
    fs::write(volume.path("dir/f"), "1").expect("writes");
    let (dir, file) = (times(&stat("dir")), times(&stat("dir/f")));
    fs::write(volume.path("dir/f"), "22").expect("writes");
    assert_eq!(times(&stat("dir")), dir, "a write does not change the folder");
    assert!(times(&stat("dir/f")).0 > file.0 && times(&stat("dir/f")).1 > file.1, "a write changes mtime and ctime");
    let file = times(&stat("dir/f"));
    fs::set_permissions(volume.path("dir/f"), PermissionsExt::from_mode(0o600)).expect("chmods");
    assert_eq!(times(&stat("dir/f")).0, file.0, "chmod keeps mtime");
    assert!(times(&stat("dir/f")).1 > file.1, "chmod changes ctime");
    for change in ["create", "unlink"] {
        let dir = times(&stat("dir"));
        match change {
            "create" => drop(File::create(volume.path("dir/g")).expect("creates")),
            _ => fs::remove_file(volume.path("dir/g")).expect("unlinks"),
        }
        assert!(times(&stat("dir")).0 > dir.0 && times(&stat("dir")).1 > dir.1, "{change} changes the folder");
    }
    let file = times(&stat("dir/f"));
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let set = |last_access, last_modification| {
        let times = Timestamps { last_access, last_modification };
        rustix::fs::utimensat(CWD, volume.path("dir/f"), &times, AtFlags::empty()).expect("sets times");
    };
    set(Timespec { tv_sec: 5, tv_nsec: 6 }, omit);
    let meta = stat("dir/f");
    assert_eq!(((meta.atime(), meta.atime_nsec()), times(&meta).0), ((5, 6), file.0));
    set(omit, now);
    let meta = stat("dir/f");
    assert_eq!((meta.atime(), meta.atime_nsec()), (5, 6));
    assert!(times(&meta).0 > file.0, "now is later than then");
}

#[test]
fn extended_attributes_follow_their_manual() {
    let volume = Volume::mounted();
    let path = volume.path("f");
    fs::write(&path, "").expect("writes");
    let set = |name: &str, value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    let get = |name: &str| {
        let mut value = vec![0; 100_000];
        rustix::fs::getxattr(&path, name, value.as_mut_slice()).map(|len| {
            value.truncate(len);
            value
        })
    };
    let large = vec![7; 60_000];
    // posix_acl_xattr.h: version 2, then tag, permissions and id of the owner, the group and others.
    let acl: Vec<u8> = [2_u32, 0x6_0001, u32::MAX, 0x4_0004, u32::MAX, 0x4_0020, u32::MAX]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    for (name, value, flags, expected) in [
        ("user.a", &b"one"[..], XattrFlags::CREATE, Ok(())),
        ("user.a", b"two", XattrFlags::CREATE, Err(Errno::EXIST)),
        ("user.b", b"two", XattrFlags::REPLACE, Err(Errno::NODATA)),
        ("user.a", b"three", XattrFlags::REPLACE, Ok(())),
        ("user.empty", b"", XattrFlags::empty(), Ok(())),
        ("user.large", &large, XattrFlags::empty(), Ok(())),
        ("trusted.t", b"\0\xff", XattrFlags::empty(), Ok(())),
        ("system.posix_acl_access", &acl, XattrFlags::empty(), Err(Errno::OPNOTSUPP)),
    ] {
        assert_eq!(set(name, value, flags), expected, "{name} {flags:?}");
    }
    let check = || {
        assert_eq!(get("user.a").as_deref(), Ok(&b"three"[..]));
        assert_eq!(get("user.empty").as_deref(), Ok(&b""[..]));
        assert_eq!(get("user.large").as_deref(), Ok(&large[..]));
        assert_eq!(get("trusted.t").as_deref(), Ok(&b"\0\xff"[..]));
        assert_eq!(get("user.none"), Err(Errno::NODATA));
        let mut short = [0; 2];
        assert_eq!(rustix::fs::getxattr(&path, "user.a", short.as_mut_slice()), Err(Errno::RANGE));
        let mut list = vec![0; 1000];
        let len = rustix::fs::listxattr(&path, list.as_mut_slice()).expect("lists");
        let names: BTreeSet<_> = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
        assert_eq!(names, [&b"trusted.t"[..], b"user.a", b"user.empty", b"user.large"].into());
    };
    check();
    volume.remount();
    check();
    assert_eq!(rustix::fs::removexattr(&path, "user.a"), Ok(()));
    assert_eq!(rustix::fs::removexattr(&path, "user.a"), Err(Errno::NODATA));
    assert_eq!(get("user.a"), Err(Errno::NODATA));
    volume.unmount();
    volume.check();
}

#[test]
fn names_that_are_too_long_or_taken_are_refused() {
    let volume = Volume::mounted();
    let long = "n".repeat(256);
    let errno = |result: std::io::Result<()>| result.map_err(|error| Errno::from_io_error(&error).expect("an errno"));
    fs::create_dir(volume.path("dir")).expect("makes a folder");
    fs::write(volume.path("dir/f"), "").expect("writes");
    let (dir, file) = (volume.path("dir"), volume.path("dir/f"));
    for (what, result, expected) in [
        ("create long", errno(File::create(volume.path(&long)).map(drop)), Errno::NAMETOOLONG),
        ("mkdir long", errno(fs::create_dir(volume.path(&long))), Errno::NAMETOOLONG),
        ("mkdir taken", errno(fs::create_dir(&dir)), Errno::EXIST),
        ("create new taken", errno(File::create_new(&file).map(drop)), Errno::EXIST),
        ("link taken", errno(fs::hard_link(&file, &dir)), Errno::EXIST),
        ("link of a folder", errno(fs::hard_link(&dir, volume.path("x"))), Errno::PERM),
        ("rmdir full", errno(fs::remove_dir(&dir)), Errno::NOTEMPTY),
        ("rmdir file", errno(fs::remove_dir(&file)), Errno::NOTDIR),
        ("unlink folder", errno(fs::remove_file(&dir)), Errno::ISDIR),
        ("below a file", errno(File::create(file.join("x")).map(drop)), Errno::NOTDIR),
        ("readlink of a file", errno(fs::read_link(&file).map(drop)), Errno::INVAL),
        ("open folder to write", errno(fs::OpenOptions::new().write(true).open(&dir).map(drop)), Errno::ISDIR),
    ] {
        assert_eq!(result, Err(expected), "{what}");
    }
}
