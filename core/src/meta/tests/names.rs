//! Names: errors in the order that Linux reports them, times, link counts, cookies.

use alloc::format;
use alloc::vec;

use super::*;

/// A tree to fail in: `/d` holds `f`, `s` (symlink), `e` (empty directory), `full/x`; `/g` is a second file,
/// `/gone` a removed directory.
struct Tree {
    world: World,
    d: Ino,
    f: Ino,
    e: Ino,
    full: Ino,
    gone: Ino,
}

fn tree() -> Tree {
    let mut world = World::new();
    let d = world.dir(Ino::ROOT, b"d");
    let f = world.file(d, b"f");
    world.create(d, b"s", FileType::Symlink).unwrap();
    let e = world.dir(d, b"e");
    let full = world.dir(d, b"full");
    world.file(full, b"x");
    world.file(Ino::ROOT, b"g");
    let gone = world.dir(Ino::ROOT, b"gone");
    world.run(|txn, ctx| remove::rmdir(txn, ctx, Ino::ROOT, b"gone")).unwrap();
    Tree { world, d, f, e, full, gone }
}

const LONG: &[u8] = &[b'x'; 256];

#[test]
fn create_and_link_errors() {
    let Tree { mut world, d, f, e, gone, .. } = tree();
    let cases: &[(Ino, &[u8], Errno)] = &[
        (d, LONG, Errno::ENAMETOOLONG),
        (f, LONG, Errno::ENAMETOOLONG),
        (d, b"f", Errno::EEXIST),
        (d, b"full", Errno::EEXIST),
        (f, b"new", Errno::ENOTDIR),
        (gone, b"new", Errno::ENOENT),
        (Ino(999), b"new", Errno::ENOENT),
        (d, b"", Errno::ENOENT),
        (d, b"a/b", Errno::EINVAL),
        (d, b"..", Errno::EINVAL),
    ];
    for &(dir, name, expected) in cases {
        assert_eq!(world.create(dir, name, FileType::Regular), Err(expected), "{dir:?} {name:?}");
        assert_eq!(world.create(dir, name, FileType::Directory), Err(expected), "{dir:?} {name:?}");
        let linked = world.run(|txn, ctx| create::link(txn, ctx, f, dir, name)).map_err(errno);
        assert_eq!(linked.unwrap_err(), expected, "{dir:?} {name:?}");
    }
    for (ino, expected) in [(e, Errno::EPERM), (gone, Errno::EPERM), (Ino(999), Errno::ENOENT)] {
        let linked = world.run(|txn, ctx| create::link(txn, ctx, ino, d, b"new")).map_err(errno);
        assert_eq!(linked.unwrap_err(), expected);
    }
    for (len, expected) in [(0, Err(Errno::ENOENT)), (4095, Ok(4095)), (4096, Err(Errno::ENAMETOOLONG))] {
        let target = Some(Bytes::from(alloc::vec![b't'; len]));
        let new = New {
            ino: world.ino(),
            kind: FileType::Symlink,
            mode: 0o777,
            uid: 0,
            gid: 0,
            rdev: 0,
            target,
            umask: None,
            inodes_max: None,
        };
        let made = world.run(|txn, ctx| create::create(txn, ctx, d, b"link", &new)).map_err(errno);
        assert_eq!(made.map(|attr| attr.length), expected);
    }
    world.check();
}

#[test]
fn removal_errors() {
    let Tree { mut world, d, f, gone, .. } = tree();
    // (directory, name, unlink, rmdir)
    let cases: &[(Ino, &[u8], Errno, Errno)] = &[
        (d, LONG, Errno::ENAMETOOLONG, Errno::ENAMETOOLONG),
        (d, b"none", Errno::ENOENT, Errno::ENOENT),
        (f, b"none", Errno::ENOTDIR, Errno::ENOTDIR),
        (gone, b"none", Errno::ENOENT, Errno::ENOENT),
        (d, b"full", Errno::EISDIR, Errno::ENOTEMPTY),
    ];
    for &(dir, name, unlink, rmdir) in cases {
        let result = world.run(|txn, ctx| remove::unlink(txn, ctx, dir, name)).map_err(errno);
        assert_eq!(result, Err(unlink), "{name:?}");
        let result = world.run(|txn, ctx| remove::rmdir(txn, ctx, dir, name)).map_err(errno);
        assert_eq!(result, Err(rmdir), "{name:?}");
    }
    assert_eq!(world.run(|txn, ctx| remove::unlink(txn, ctx, d, b"e")).map_err(errno), Err(Errno::EISDIR));
    for name in [&b"f"[..], b"s"] {
        assert_eq!(world.run(|txn, ctx| remove::rmdir(txn, ctx, d, name)).map_err(errno), Err(Errno::ENOTDIR));
    }
    world.check();
}

#[test]
fn rename_errors_and_replacements() {
    use RenameMode::{Exchange, NoReplace, Replace};
    // Ok: links left to the replaced inode, if there was one.
    type Case = (&'static str, &'static [u8], &'static str, &'static [u8], RenameMode, Result<Option<u32>, Errno>);
    let cases: &[Case] = &[
        ("d", b"f", "d", LONG, Replace, Err(Errno::ENAMETOOLONG)),
        ("d", b"none", "d", b"f", Replace, Err(Errno::ENOENT)),
        ("d", b"f", "gone", b"f", Replace, Err(Errno::ENOENT)),
        ("d", b"f", "f", b"f", Replace, Err(Errno::ENOTDIR)),
        ("d", b"f", "d", b"s", NoReplace, Err(Errno::EEXIST)),
        ("d", b"f", "d", b"f", NoReplace, Err(Errno::EEXIST)),
        ("d", b"f", "d", b"none", Exchange, Err(Errno::ENOENT)),
        ("d", b"f", "d", b"e", Replace, Err(Errno::EISDIR)),
        ("d", b"e", "d", b"f", Replace, Err(Errno::ENOTDIR)),
        ("d", b"e", "d", b"full", Replace, Err(Errno::ENOTEMPTY)),
        ("root", b"d", "d", b"new", Replace, Err(Errno::EINVAL)),
        ("root", b"d", "full", b"x", Replace, Err(Errno::EINVAL)),
        ("d", b"full", "full", b"new", NoReplace, Err(Errno::EINVAL)),
        ("full", b"x", "root", b"d", Exchange, Err(Errno::EINVAL)),
        ("full", b"x", "root", b"d", Replace, Err(Errno::EISDIR)),
        ("d", b"e", "root", b"d", Replace, Err(Errno::ENOTEMPTY)),
        ("d", b"f", "d", b"f", Replace, Ok(None)),
        ("d", b"f", "d", b"new", NoReplace, Ok(None)),
        ("d", b"f", "root", b"g", Replace, Ok(Some(0))),
        ("d", b"full", "d", b"e", Replace, Ok(Some(0))),
        ("d", b"e", "root", b"e2", Replace, Ok(None)),
        ("d", b"e", "full", b"x", Exchange, Ok(None)),
        ("d", b"s", "full", b"x", Replace, Ok(Some(0))),
    ];
    for (index, (src, src_name, dst, dst_name, mode, expected)) in cases.iter().enumerate() {
        let Tree { mut world, d, f, full, gone, .. } = tree();
        let dir = |name: &str| match name {
            "root" => Ino::ROOT,
            "d" => d,
            "f" => f,
            "full" => full,
            _ => gone,
        };
        let (src, dst) = (dir(src), dir(dst));
        let result = world
            .run(|txn, ctx| rename::rename(txn, ctx, src, src_name, dst, dst_name, *mode))
            .map(|renamed| renamed.replaced.map(|removed| removed.nlink))
            .map_err(errno);
        assert_eq!(result, *expected, "case {index}");
        world.check();
    }
}

#[test]
fn exchange_across_directories_swaps_parents_and_subdirectories() {
    let Tree { mut world, d, f, e, .. } = tree();
    let before = (world.attr(Ino::ROOT).nlink, world.attr(d).nlink);
    world.run(|txn, ctx| rename::rename(txn, ctx, d, b"e", Ino::ROOT, b"g", RenameMode::Exchange)).unwrap();
    assert_eq!((world.attr(Ino::ROOT).nlink, world.attr(d).nlink), (before.0 + 1, before.1 - 1));
    assert_eq!(world.attr(e).parent, Ino::ROOT);
    assert_eq!(world.read(|read| lookup::lookup(read, d, b"e")).unwrap().1.kind, FileType::Regular);
    assert_eq!(world.attr(f).parent, d);
    world.check();
}

#[test]
fn link_counts_and_parents_follow_every_name() {
    let mut world = World::new();
    let (a, b) = (world.dir(Ino::ROOT, b"a"), world.dir(Ino::ROOT, b"b"));
    let file = world.file(a, b"one");
    for (dir, name) in [(a, &b"two"[..]), (b, b"three"), (b, b"four")] {
        world.run(|txn, ctx| create::link(txn, ctx, file, dir, name)).unwrap();
        world.check();
    }
    assert_eq!(world.attr(file).nlink, 4);
    for (from, name, to, new_name) in [(a, &b"one"[..], b, &b"five"[..]), (b, b"three", a, b"six")] {
        world.run(|txn, ctx| rename::rename(txn, ctx, from, name, to, new_name, RenameMode::Replace)).unwrap();
        world.check();
    }
    let names = [(a, &b"two"[..]), (b, b"five"), (b, b"four"), (a, b"six")];
    for (left, (dir, name)) in (0..4).rev().zip(names) {
        let path = world.read(|read| lookup::path_of(read, file)).unwrap();
        assert!([&b"/a/"[..], b"/b/"].contains(&&path[..3]), "{path:?}");
        let removed = world.run(|txn, ctx| remove::unlink(txn, ctx, dir, name)).unwrap();
        assert_eq!(removed, Removed { ino: file, kind: FileType::Regular, nlink: left });
        world.check();
    }
    assert_eq!(world.read(|read| lookup::path_of(read, file)), Err(OpError::Errno(Errno::ENOENT)));
    assert_eq!(world.read(|read| sweep::orphans(read, None, 9)).unwrap(), [file]);
    assert_eq!(world.read(|read| sweep::orphans(read, Some(file), 9)).unwrap(), []);
    // Not an orphan: left alone.
    world.run(|txn, ctx| remove::reap(txn, ctx, a, &[])).unwrap();
    world.run(|txn, ctx| remove::reap(txn, ctx, file, &[])).unwrap();
    assert_eq!(world.usage(), Usage { bytes: 0, inodes: 3 });
    world.check();
}

#[test]
fn link_stops_at_its_limit() {
    let mut world = World::new();
    let file = world.file(Ino::ROOT, b"file");
    let full = Attr { nlink: LINK_MAX, ..world.attr(file) };
    world.put(crate::format::keys::attr(file), &full);
    let linked = world.run(|txn, ctx| create::link(txn, ctx, file, Ino::ROOT, b"more")).map_err(errno);
    assert_eq!(linked.unwrap_err(), Errno::EMLINK);
}

#[test]
fn names_change_the_times_of_their_directories_and_inodes() {
    let mut world = World::new();
    let (a, b) = (world.dir(Ino::ROOT, b"a"), world.dir(Ino::ROOT, b"b"));
    let file = world.file(a, b"one");
    let now = world.now();
    assert_eq!((world.attr(a).mtime, world.attr(a).ctime, world.attr(file).btime), (now, now, now));

    world.run(|txn, ctx| create::link(txn, ctx, file, b, b"two")).unwrap();
    let now = world.now();
    assert_eq!((world.attr(b).mtime, world.attr(b).ctime, world.attr(file).ctime), (now, now, now));
    assert!(world.attr(file).mtime < now && world.attr(a).mtime < now);

    world.run(|txn, ctx| rename::rename(txn, ctx, a, b"one", b, b"one", RenameMode::Replace)).unwrap();
    let now = world.now();
    assert_eq!((world.attr(a).mtime, world.attr(b).mtime, world.attr(file).ctime), (now, now, now));

    world.run(|txn, ctx| remove::unlink(txn, ctx, b, b"one")).unwrap();
    let now = world.now();
    assert_eq!((world.attr(b).mtime, world.attr(b).ctime, world.attr(file).ctime), (now, now, now));
}

#[test]
fn set_times_of_a_directory_hold_until_its_entries_change() {
    let mut world = World::new();
    let dir = world.dir(Ino::ROOT, b"dir");
    for i in 0..9 {
        world.file(dir, format!("{i}").as_bytes());
    }
    for secs in [-5, 3, 1 << 40] {
        let mtime = Timestamp { secs, nanos: 3 };
        let set = SetAttr { mtime: Some(mtime), ..SetAttr::default() };
        let attr = world.run(|txn, ctx| attr::set(txn, ctx, dir, &set)).unwrap();
        assert_eq!((attr.mtime, attr.ctime), (mtime, world.now()));
        assert_eq!(world.attr(dir), attr);
        let chmod = SetAttr { mode: Some(0o700), ..SetAttr::default() };
        let attr = world.run(|txn, ctx| attr::set(txn, ctx, dir, &chmod)).unwrap();
        assert_eq!((attr.mtime, attr.mode), (mtime, 0o700));
        world.file(dir, format!("after {secs}").as_bytes());
        let now = world.now();
        assert_eq!((world.attr(dir).mtime, world.attr(dir).ctime), (now, now));
        world.check();
    }
}

#[test]
fn setattr_drops_privileges_only_of_files_and_only_when_asked() {
    // (kind is a directory, mode before, set mode, drop, drop of an outsider, mode after)
    let cases = [
        (false, 0o6755, None, true, false, 0o0755),
        (false, 0o6745, None, true, false, 0o2745),
        (false, 0o6745, None, true, true, 0o0745),
        (false, 0o6745, None, false, true, 0o4745),
        (false, 0o6755, None, false, false, 0o6755),
        (false, 0o6755, Some(0o4711), true, false, 0o4711),
        (true, 0o6755, None, true, true, 0o6755),
    ];
    for (directory, before, mode, drop_suid_sgid, drop_sgid, after) in cases {
        let mut world = World::new();
        let kind = if directory { FileType::Directory } else { FileType::Regular };
        let ino = world.create(Ino::ROOT, b"x", kind).unwrap();
        let chmod = SetAttr { mode: Some(before), ..SetAttr::default() };
        world.run(|txn, ctx| attr::set(txn, ctx, ino, &chmod)).unwrap();
        let chown = SetAttr { uid: Some(5), mode, drop_suid_sgid, drop_sgid, ..SetAttr::default() };
        let attr = world.run(|txn, ctx| attr::set(txn, ctx, ino, &chown)).unwrap();
        assert_eq!((attr.mode, attr.uid, attr.ctime), (after, 5, world.now()));
        let same = world.run(|txn, ctx| attr::set(txn, ctx, ino, &SetAttr::default())).unwrap();
        assert_eq!(same, attr);
    }
}

#[test]
fn sgid_directories_pass_on_their_group() {
    let mut world = World::new();
    let dir = world.dir(Ino::ROOT, b"dir");
    let set = SetAttr { mode: Some(0o2775), gid: Some(42), ..SetAttr::default() };
    world.run(|txn, ctx| attr::set(txn, ctx, dir, &set)).unwrap();
    let (file, sub) = (world.file(dir, b"file"), world.dir(dir, b"sub"));
    assert_eq!((world.attr(file).gid, world.attr(file).mode), (42, 0o644));
    assert_eq!((world.attr(sub).gid, world.attr(sub).mode), (42, 0o2644));
}

#[test]
fn readdir_returns_what_stays_exactly_once_while_others_come_and_go() {
    for limit in [1, 2, 7, 300, 1000] {
        let mut world = World::new();
        let dir = world.dir(Ino::ROOT, b"dir");
        for i in 0..600 {
            world.file(dir, format!("stays {i}").as_bytes());
        }
        for i in 0..60 {
            world.file(dir, format!("goes {i}").as_bytes());
        }
        let (mut seen, mut cookie, mut round) = (Vec::new(), 0, 0);
        loop {
            let page = world.read(|read| lookup::readdir(read, dir, cookie, limit)).unwrap();
            assert!(page.len() <= limit);
            assert!(page.iter().map(|entry| entry.cookie).is_sorted_by(|a, b| a < b));
            let Some(last) = page.last() else { break };
            assert!(cookie < last.cookie && 256 <= page[0].cookie);
            cookie = last.cookie;
            seen.extend(page.into_iter().filter(|entry| entry.name.starts_with(b"stays")));
            let name = format!("goes {round}");
            if round < 60 {
                world.run(|txn, ctx| remove::unlink(txn, ctx, dir, name.as_bytes())).unwrap();
                world.file(dir, format!("comes {round}").as_bytes());
            }
            round += 1;
        }
        let mut names: Vec<_> = seen.iter().map(|entry| entry.name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), seen.len()), (600, 600));
    }
}

#[test]
fn lookup_and_readlink() {
    let Tree { mut world, d, f, e, .. } = tree();
    assert_eq!(world.read(|read| lookup::lookup(read, d, b"f")).unwrap().0, f);
    let child = world.read(|read| lookup::child(read, d, b"e")).unwrap();
    assert_eq!((child.ino, child.kind), (e, FileType::Directory));
    for (name, expected) in [(&b"none"[..], Errno::ENOENT), (LONG, Errno::ENAMETOOLONG)] {
        assert_eq!(world.read(|read| lookup::lookup(read, d, name)).map_err(errno), Err(expected));
    }
    let link = world.read(|read| lookup::child(read, d, b"s")).unwrap().ino;
    assert_eq!(world.read(|read| lookup::readlink(read, link)).unwrap(), "target");
    assert_eq!(world.read(|read| lookup::readlink(read, f)), Err(OpError::Errno(Errno::EINVAL)));
    assert_eq!(world.read(|read| lookup::readlink(read, Ino(999))), Err(OpError::Errno(Errno::ENOENT)));
    assert_eq!(world.read(|read| lookup::path_of(read, link)).unwrap(), b"/d/s");
    assert_eq!(world.read(|read| lookup::path_of(read, Ino::ROOT)).unwrap(), b"/");
    assert_eq!(world.attr(d).nlink, 4);
}

/// In a simulated world a clock was set back between a truncate and a link: ctime was shown with the truncate's time while
/// its commit was under way, and with the link's after.
#[test]
fn ctime_never_goes_back() {
    let mut world = World::new();
    let file = world.file(Ino::ROOT, b"file");
    let changed = Timestamp { secs: 9000, nanos: 0 };
    world
        .commit(
            file,
            1,
            vec![Change::Truncate { length: 0 }, Change::Written { mtime: changed, drop_privileges: false }],
        )
        .unwrap();
    let ctime = |world: &mut World| world.attr(file).ctime;
    world.run(|txn, ctx| create::link(txn, ctx, file, Ino::ROOT, b"link")).unwrap();
    assert_eq!(ctime(&mut world), changed);
    world.run(|txn, ctx| xattr::set(txn, ctx, file, b"user.a", &Bytes::new(), XattrMode::Either)).unwrap();
    assert_eq!(ctime(&mut world), changed);
    world
        .run(|txn, ctx| rename::rename(txn, ctx, Ino::ROOT, b"link", Ino::ROOT, b"other", RenameMode::Replace))
        .unwrap();
    assert_eq!(ctime(&mut world), changed);
    world.run(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, b"other")).unwrap();
    assert_eq!(ctime(&mut world), changed);
}
