//! Flags, ACLs, access times, whiteouts, limits.

use alloc::vec;

use super::acl::{self, Acl, AclKind};
use super::*;
use crate::types::{AtimeMode, InodeFlags};

const NONE: InodeFlags = InodeFlags::from_bits(0).unwrap();
const IMMUTABLE: InodeFlags = InodeFlags::IMMUTABLE;
const APPEND: InodeFlags = InodeFlags::APPEND;

fn flag(world: &mut World, ino: Ino, flags: InodeFlags) {
    world.run(|txn, ctx| attr::set_flags(txn, ctx, ino, flags)).unwrap();
}

#[test]
fn flags_forbid_what_chattr_1_says() {
    let mut world = World::new();
    let dir = world.dir(Ino::ROOT, b"d");
    let (file, other) = (world.file(dir, b"f"), world.file(dir, b"g"));
    let sub = world.dir(dir, b"s");
    type Attempt = fn(&mut World, [Ino; 4]) -> OpResult<()>;
    let attempts: [(&str, Attempt); 12] = [
        ("create", |w, [d, ..]| {
            let new = fifo(w.ino());
            w.run(|txn, ctx| create::create(txn, ctx, d, b"new", &new)).map(drop)
        }),
        ("link", |w, [d, f, ..]| w.run(|txn, ctx| create::link(txn, ctx, f, d, b"l")).map(drop)),
        ("unlink", |w, [d, ..]| w.run(|txn, ctx| remove::unlink(txn, ctx, d, b"f")).map(drop)),
        ("rmdir", |w, [d, ..]| w.run(|txn, ctx| remove::rmdir(txn, ctx, d, b"s")).map(drop)),
        ("rename", |w, [d, ..]| {
            w.run(|txn, ctx| rename::rename(txn, ctx, d, b"f", d, b"n", RenameMode::Replace)).map(drop)
        }),
        ("rename over", |w, [d, ..]| {
            w.run(|txn, ctx| rename::rename(txn, ctx, d, b"g", d, b"f", RenameMode::Replace)).map(drop)
        }),
        ("exchange", |w, [d, ..]| {
            w.run(|txn, ctx| rename::rename(txn, ctx, d, b"g", d, b"f", RenameMode::Exchange)).map(drop)
        }),
        ("chmod", |w, [_, f, ..]| set(w, f, SetAttr { mode: Some(0o600), ..SetAttr::default() })),
        ("utimes", |w, [_, f, ..]| set(w, f, SetAttr { mtime: Some(Timestamp::default()), ..SetAttr::default() })),
        ("touch", |w, [_, f, ..]| {
            set(w, f, SetAttr { mtime: Some(Timestamp::default()), touch: true, ..SetAttr::default() })
        }),
        ("setxattr", |w, [_, f, ..]| {
            w.run(|txn, ctx| xattr::set(txn, ctx, f, b"user.a", &Bytes::new(), XattrMode::Either))
        }),
        ("setfacl", |w, [_, f, ..]| {
            let acl = Acl::decode(&named(4)).unwrap();
            w.run(|txn, ctx| acl::set(txn, ctx, f, AclKind::Access, acl.as_ref(), false, None)).map(drop)
        }),
    ];
    // What is flagged how, and the attempts that fail then.
    let of_names = ["unlink", "rename", "rename over", "exchange"];
    let of_file = ["link", "chmod", "utimes", "setxattr", "setfacl"];
    let cases = [
        ("nothing", dir, NONE, vec![]),
        ("file", file, IMMUTABLE, [&of_names[..], &of_file, &["touch"]].concat()),
        ("file", file, APPEND, [&of_names[..], &of_file].concat()),
        ("other file", other, APPEND, vec!["rename over", "exchange"]),
        ("directory", dir, IMMUTABLE, [&of_names[..], &["create", "link", "rmdir"]].concat()),
        ("directory", dir, APPEND, [&of_names[..], &["rmdir"]].concat()),
        ("subdirectory", sub, IMMUTABLE, vec!["rmdir"]),
        ("file", file, InodeFlags::NODUMP.with(InodeFlags::NOATIME), vec![]),
    ];
    for (what, ino, flags, forbidden) in cases {
        for (name, attempt) in attempts {
            // Each attempt on a world of its own.
            let mut world = World { kv: world.kv.clone(), inos: world.inos.clone(), slices: 0..0, ..world };
            flag(&mut world, ino, flags);
            let done = attempt(&mut world, [dir, file, other, sub]).map_err(errno);
            let expected = if forbidden.contains(&name) { Err(Errno::EPERM) } else { Ok(()) };
            assert_eq!(done, expected, "{name} with {flags:?} of the {what}");
            world.check();
        }
    }
    for (flags, write, append, truncate, expected) in [
        (IMMUTABLE, false, false, false, Ok(())),
        (IMMUTABLE, true, true, false, Err(Errno::EPERM)),
        (IMMUTABLE, false, false, true, Err(Errno::EPERM)),
        (APPEND, true, true, false, Ok(())),
        (APPEND, true, false, false, Err(Errno::EPERM)),
        (APPEND, true, true, true, Err(Errno::EPERM)),
        (NONE, true, false, true, Ok(())),
    ] {
        assert_eq!(attr::check_open(flags, write, append, truncate), expected, "{flags:?} {write} {append} {truncate}");
    }
}

fn set(world: &mut World, ino: Ino, set: SetAttr) -> OpResult<()> {
    world.run(|txn, ctx| attr::set(txn, ctx, ino, &set)).map(drop)
}

fn fifo(ino: Ino) -> New {
    New { ino, kind: FileType::Fifo, mode: 0o666, uid: 7, gid: 8, rdev: 0, target: None, umask: None, inodes_max: None }
}

#[test]
fn new_inodes_inherit_nodump_and_noatime() {
    let mut world = World::new();
    let dir = world.dir(Ino::ROOT, b"d");
    let inherited = InodeFlags::NODUMP.with(InodeFlags::NOATIME);
    flag(&mut world, dir, inherited.with(APPEND));
    for kind in [FileType::Regular, FileType::Directory, FileType::Symlink] {
        let ino = world.create(dir, alloc::format!("{kind:?}").as_bytes(), kind).unwrap();
        assert_eq!(world.attr(ino).flags, inherited);
    }
}

/// An entry as linux/posix_acl_xattr.h lays it out.
fn entry(tag: u16, perm: u16, id: u32) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat()
}

const ANY: u32 = u32::MAX;

fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entries = entries.iter().flat_map(|&(tag, perm, id)| entry(tag, perm, id));
    2_u32.to_le_bytes().into_iter().chain(entries).collect()
}

/// rw for the owner, `mask` for user 5 and the group, nothing for others.
fn named(mask: u16) -> Vec<u8> {
    value(&[(1, 6, ANY), (2, 7, 5), (4, 5, ANY), (16, mask, ANY), (32, 0, ANY)])
}

#[test]
fn acls_that_break_the_rules_are_refused() {
    let good = [(1, 6, ANY), (4, 4, ANY), (32, 4, ANY)];
    for (entries, expected) in [
        (vec![], Ok(None)),
        (good.to_vec(), Ok(Some(0o644))),
        (vec![(1, 7, ANY), (2, 7, 5), (2, 1, 5), (4, 7, ANY), (8, 6, 9), (16, 2, ANY), (32, 1, ANY)], Ok(Some(0o721))),
        (vec![(1, 7, ANY), (4, 7, ANY), (16, 0, ANY), (32, 1, ANY)], Ok(Some(0o701))),
        // A named entry wants a mask, each class is there once, in order, known, with permissions and an id.
        (vec![(1, 7, ANY), (2, 7, 5), (4, 7, ANY), (32, 1, ANY)], Err(Errno::EINVAL)),
        (vec![(1, 7, ANY), (32, 1, ANY)], Err(Errno::EINVAL)),
        ([&good[..], &good[2..]].concat(), Err(Errno::EINVAL)),
        (vec![(4, 4, ANY), (1, 6, ANY), (32, 4, ANY)], Err(Errno::EINVAL)),
        (vec![(1, 8, ANY), (4, 4, ANY), (32, 4, ANY)], Err(Errno::EINVAL)),
        (vec![(3, 6, ANY), (4, 4, ANY), (32, 4, ANY)], Err(Errno::EINVAL)),
        (vec![(1, 7, ANY), (2, 7, ANY), (4, 7, ANY), (16, 7, ANY), (32, 1, ANY)], Err(Errno::EINVAL)),
    ] {
        let bytes = value(&entries);
        let decoded = Acl::decode(&bytes);
        assert_eq!(decoded.clone().map(|acl| acl.map(|acl| acl.mode())), expected, "{entries:?}");
        if let Ok(Some(acl)) = decoded {
            assert_eq!(acl.encode(), bytes);
        }
    }
    let acl = named(4);
    assert_eq!(Acl::decode(&acl[..acl.len() - 1]), Err(Errno::EINVAL));
    assert_eq!(Acl::decode(&acl[..3]), Err(Errno::EINVAL));
    assert_eq!(Acl::decode(&[&[3], &acl[1..]].concat()), Err(Errno::EOPNOTSUPP));
}

/// Sets an ACL from its bytes.
fn set_acl(world: &mut World, ino: Ino, kind: AclKind, bytes: &[u8], drop_sgid: bool) -> OpResult<Option<u16>> {
    let acl = Acl::decode(bytes).unwrap();
    world.run(|txn, ctx| acl::set(txn, ctx, ino, kind, acl.as_ref(), drop_sgid, None))
}

/// The ACL as it is shown.
fn get_acl(world: &mut World, ino: Ino, kind: AclKind) -> Option<Bytes> {
    let mode = world.attr(ino).mode;
    match world.read(|read| acl::shown(&xattr::get(read, ino, kind.name())?, kind, mode)) {
        Ok(value) => Some(value),
        Err(OpError::Errno(Errno::ENODATA)) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn mode_and_access_acl_follow_each_other() {
    let mut world = World::new();
    let file = world.file(Ino::ROOT, b"f");
    set(&mut world, file, SetAttr { mode: Some(0o2755), ..SetAttr::default() }).unwrap();
    // The mask stands where the group does.
    assert_eq!(set_acl(&mut world, file, AclKind::Access, &named(4), false).unwrap(), Some(0o2640));
    assert_eq!(world.attr(file).mode, 0o2640);
    assert_eq!(get_acl(&mut world, file, AclKind::Access).unwrap(), named(4));
    set(&mut world, file, SetAttr { mode: Some(0o4471), ..SetAttr::default() }).unwrap();
    let expected = value(&[(1, 4, ANY), (2, 7, 5), (4, 5, ANY), (16, 7, ANY), (32, 1, ANY)]);
    assert_eq!(get_acl(&mut world, file, AclKind::Access).unwrap(), expected);
    world.check();
    // What a mode can say is not stored.
    let plain = value(&[(1, 6, ANY), (4, 4, ANY), (32, 4, ANY)]);
    set(&mut world, file, SetAttr { mode: Some(0o6755), ..SetAttr::default() }).unwrap();
    assert_eq!(set_acl(&mut world, file, AclKind::Access, &plain, true).unwrap(), Some(0o4644));
    assert_eq!(get_acl(&mut world, file, AclKind::Access), None);
    // Without an ACL the mode stays.
    set_acl(&mut world, file, AclKind::Access, &named(7), false).unwrap();
    set_acl(&mut world, file, AclKind::Access, &value(&[]), false).unwrap();
    assert_eq!((world.attr(file).mode, get_acl(&mut world, file, AclKind::Access)), (0o4670, None));

    let link = world.create(Ino::ROOT, b"l", FileType::Symlink).unwrap();
    let set = |world: &mut World, ino, kind, bytes: &[u8]| set_acl(world, ino, kind, bytes, false).map_err(errno);
    assert_eq!(set(&mut world, link, AclKind::Access, &named(1)), Err(Errno::EOPNOTSUPP));
    assert_eq!(set(&mut world, file, AclKind::Default, &named(1)), Err(Errno::EACCES));
    assert_eq!(set(&mut world, file, AclKind::Default, &value(&[])), Ok(None));
    assert_eq!(set(&mut world, Ino(999), AclKind::Access, &named(1)), Err(Errno::ENOENT));
    world.check();
}

#[test]
fn what_is_set_to_what_it_is_keeps_its_ctime() {
    let mut world = World::new();
    let dir = world.dir(Ino::ROOT, b"d");
    let plain = value(&[(1, 6, ANY), (4, 4, ANY), (32, 4, ANY)]);
    set(&mut world, dir, SetAttr { mode: Some(0o2644), ..SetAttr::default() }).unwrap();
    let mut changes = |kind, bytes: &[u8], drop_sgid| {
        let before = world.attr(dir);
        let mode = set_acl(&mut world, dir, kind, bytes, drop_sgid).unwrap();
        let after = world.attr(dir);
        assert_eq!(mode.unwrap_or(before.mode), after.mode);
        assert_eq!(mode.is_some(), before.ctime < after.ctime);
        mode.is_some()
    };
    for (kind, bytes, drop_sgid, expected) in [
        // The mode says it already.
        (AclKind::Access, &plain, false, false),
        (AclKind::Access, &named(4), false, true),
        (AclKind::Access, &named(4), false, false),
        (AclKind::Access, &named(4), true, true),
        (AclKind::Access, &named(6), false, true),
        // Without an ACL the mode stays.
        (AclKind::Access, &value(&[]), false, true),
        (AclKind::Access, &value(&[]), false, false),
        (AclKind::Default, &value(&[]), false, false),
        (AclKind::Default, &named(4), false, true),
        (AclKind::Default, &named(4), false, false),
        (AclKind::Default, &value(&[]), false, true),
    ] {
        assert_eq!(changes(kind, bytes, drop_sgid), expected, "{kind:?} {bytes:?}");
    }
    // A chmod has changed what is kept of the ACL, and it is what it was.
    set_acl(&mut world, dir, AclKind::Access, &named(4), false).unwrap();
    set(&mut world, dir, SetAttr { mode: Some(0o660), ..SetAttr::default() }).unwrap();
    assert_eq!(set_acl(&mut world, dir, AclKind::Access, &named(6), false).unwrap(), None);
    for (value, expected) in [("a", true), ("a", false), ("", true), ("", false)] {
        let before = world.attr(dir).ctime;
        let value = Bytes::from_static(value.as_bytes());
        world.run(|txn, ctx| xattr::set(txn, ctx, dir, b"user.a", &value, XattrMode::Either)).unwrap();
        assert_eq!(before < world.attr(dir).ctime, expected, "{value:?}");
    }
    world.check();
}

#[test]
fn new_inodes_inherit_the_default_acl_instead_of_the_umask() {
    let mut world = World::new();
    let dir = world.dir(Ino::ROOT, b"d");
    let make = |world: &mut World, name: &[u8], kind, mode| {
        let target = (kind == FileType::Symlink).then(|| Bytes::from_static(b"target"));
        let new = New { kind, mode, target, umask: Some(0o027), ..fifo(world.ino()) };
        let attr = world.run(|txn, ctx| create::create(txn, ctx, dir, name, &new)).unwrap();
        (new.ino, attr.mode)
    };
    assert_eq!(make(&mut world, b"by-umask", FileType::Regular, 0o666).1, 0o640);
    set_acl(&mut world, dir, AclKind::Default, &named(6), false).unwrap();
    assert_eq!(world.attr(dir).mode, 0o644, "a default ACL does not touch the mode");

    let (file, mode) = make(&mut world, b"file", FileType::Regular, 0o4646);
    assert_eq!(mode, 0o4640);
    let expected = value(&[(1, 6, ANY), (2, 7, 5), (4, 5, ANY), (16, 4, ANY), (32, 0, ANY)]);
    assert_eq!(get_acl(&mut world, file, AclKind::Access).unwrap(), expected);
    assert_eq!(get_acl(&mut world, file, AclKind::Default), None);

    let (sub, mode) = make(&mut world, b"sub", FileType::Directory, 0o777);
    assert_eq!(mode, 0o660);
    assert_eq!(get_acl(&mut world, sub, AclKind::Access).unwrap(), named(6));
    assert_eq!(get_acl(&mut world, sub, AclKind::Default).unwrap(), named(6));

    let (link, mode) = make(&mut world, b"link", FileType::Symlink, 0o777);
    assert_eq!((mode, get_acl(&mut world, link, AclKind::Access)), (0o777, None));

    // One that says no more than a mode leaves no access ACL behind.
    let plain = value(&[(1, 7, ANY), (4, 5, ANY), (32, 5, ANY)]);
    set_acl(&mut world, dir, AclKind::Default, &plain, false).unwrap();
    let (sub, mode) = make(&mut world, b"sub2", FileType::Directory, 0o777);
    assert_eq!((mode, get_acl(&mut world, sub, AclKind::Access)), (0o755, None));
    assert_eq!(get_acl(&mut world, sub, AclKind::Default).unwrap(), plain);
    world.check();
    for name in [&b"file"[..], b"by-umask"] {
        let removed = world.run(|txn, ctx| remove::unlink(txn, ctx, dir, name)).unwrap();
        world.run(|txn, ctx| remove::reap(txn, ctx, removed.ino, &[])).unwrap();
    }
    world.check();
}

#[test]
fn acls_that_contradict_their_inode_are_found() {
    let mut world = World::new();
    let file = world.file(Ino::ROOT, b"f");
    world.run(|txn, ctx| xattr::set(txn, ctx, file, b"user.a", &Bytes::new(), XattrMode::Either)).unwrap();
    let plain = value(&[(1, 6, ANY), (4, 4, ANY), (32, 4, ANY)]);
    for (name, bytes) in [(acl::ACCESS, plain), (acl::DEFAULT, named(1)), (acl::ACCESS, vec![2, 0])] {
        let key = crate::format::keys::xattr(file, name);
        world.put(key.clone(), &Bytes::from(bytes));
        let found: Vec<_> = world.findings().into_iter().map(|finding| finding.kind).collect();
        assert_eq!(found, [FindingKind::WrongKind]);
        world
            .run(|txn, _| {
                txn.delete(&key);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn access_times_follow_the_mode_of_the_mount() {
    use AtimeMode::{Noatime, Relatime, Strictatime};
    let at = |secs| Timestamp { secs, nanos: 0 };
    let mut world = World::new();
    let ino = world.file(Ino::ROOT, b"f");
    let file = world.attr(ino);
    let day = 24 * 60 * 60;
    // (atime, last change, first read, last read, after relatime, after strictatime)
    for (atime, changed, first, last, relative, strict) in [
        (10, 20, 30, 40, 30, 40),
        // Changed again between the reads.
        (10, 35, 30, 40, 40, 40),
        (10, 50, 30, 40, 40, 40),
        (25, 20, 30, 40, 25, 40),
        (20, 20, 30, 30, 30, 30),
        (25, 20, 25 + day, 26 + day, 25 + day, 26 + day),
        (25, 20, 24 + day, 24 + day, 25, 24 + day),
        // A time in the future stays until something changes.
        (90, 20, 30, 40, 90, 40),
    ] {
        let attr = Attr { atime: at(atime), mtime: at(changed), ctime: at(20.min(changed)), ..file };
        let accesses = Accesses { first: at(first), last: at(last) };
        let after = |mode| attr::atime_after(&attr, &accesses, mode).unwrap_or(attr.atime).secs;
        assert_eq!((after(Relatime), after(Strictatime), after(Noatime)), (relative, strict, atime));
        let silent = Attr { flags: InodeFlags::NOATIME, ..attr };
        assert_eq!(attr::atime_after(&silent, &accesses, Strictatime), None);
    }
    // Recorded, once; a time that is set meanwhile is not overwritten.
    for kind in [FileType::Regular, FileType::Directory] {
        let ino = world.create(Ino::ROOT, alloc::format!("{kind:?}").as_bytes(), kind).unwrap();
        let before = world.attr(ino);
        let accesses = Accesses { first: at(world.ticks + 5), last: at(world.ticks + 9) };
        world.run(|txn, _| attr::record_accesses(txn, ino, || None, Relatime)).unwrap();
        assert_eq!(world.attr(ino), before);
        for _ in 0..2 {
            world.run(|txn, _| attr::record_accesses(txn, ino, || Some(accesses), Relatime)).unwrap();
            assert_eq!(world.attr(ino), Attr { atime: accesses.first, ..before });
        }
    }
    world.run(|txn, _| attr::record_accesses(txn, Ino(999), || None, Relatime)).unwrap();
    world.check();
}

#[test]
fn a_whiteout_takes_the_old_name() {
    let mut world = World::new();
    let (a, b) = (world.dir(Ino::ROOT, b"a"), world.dir(Ino::ROOT, b"b"));
    let (x, y, sub) = (world.file(a, b"x"), world.file(b, b"y"), world.dir(a, b"sub"));
    let leave = |world: &mut World, from: (Ino, &[u8]), to: (Ino, &[u8]), mode, max| {
        let ino = world.ino();
        let new = New { kind: FileType::CharDevice, mode: 0, inodes_max: max, ..fifo(ino) };
        world.run(|txn, ctx| rename::rename_leaving(txn, ctx, [from, to], mode, Some(&new))).map_err(errno).map(|_| ino)
    };
    let at = |world: &mut World, dir, name: &[u8]| world.read(|read| lookup::lookup(read, dir, name)).unwrap();
    let inodes = world.usage().inodes;
    for (from, to, mode, moved) in [
        ((a, &b"x"[..]), (b, &b"x"[..]), RenameMode::Replace, x),
        ((b, b"x"), (b, b"y"), RenameMode::Replace, x),
        ((a, b"sub"), (b, b"sub"), RenameMode::NoReplace, sub),
        ((b, b"sub"), (b, b"sub2"), RenameMode::Replace, sub),
    ] {
        let whiteout = leave(&mut world, from, to, mode, None).unwrap();
        assert_eq!(at(&mut world, to.0, to.1).0, moved);
        let (found, attr) = at(&mut world, from.0, from.1);
        assert_eq!((found, attr.kind, attr.mode, attr.rdev, attr.nlink), (whiteout, FileType::CharDevice, 0, 0, 1));
        world.check();
    }
    assert_eq!(world.usage().inodes, inodes + 4);
    assert_eq!(world.attr(y).nlink, 0);
    assert_eq!(leave(&mut world, (b, b"y"), (b, b"x"), RenameMode::NoReplace, None), Err(Errno::EEXIST));
    let full = Some(world.usage().inodes);
    assert_eq!(leave(&mut world, (b, b"y"), (b, b"n"), RenameMode::Replace, full), Err(Errno::ENOSPC));
    // Two names of one inode: nothing happens, and nothing is made.
    world.run(|txn, ctx| create::link(txn, ctx, x, b, b"x2")).unwrap();
    leave(&mut world, (b, b"y"), (b, b"x2"), RenameMode::Replace, None).unwrap();
    assert_eq!(at(&mut world, b, b"y").0, x);
    world.check();
}

#[test]
fn a_full_volume_takes_no_inode_but_names() {
    let mut world = World::new();
    let file = world.file(Ino::ROOT, b"f");
    let max = world.usage().inodes + 1;
    let make = |world: &mut World, name: &[u8]| {
        let new = New { inodes_max: Some(max), ..fifo(world.ino()) };
        world.run(|txn, ctx| create::create(txn, ctx, Ino::ROOT, name, &new)).map(drop).map_err(errno)
    };
    assert_eq!(make(&mut world, b"last"), Ok(()));
    assert_eq!(make(&mut world, b"more"), Err(Errno::ENOSPC));
    assert_eq!(make(&mut world, b"f"), Err(Errno::EEXIST));
    world.run(|txn, ctx| create::link(txn, ctx, file, Ino::ROOT, b"g")).unwrap();
    let removed = world.run(|txn, ctx| remove::unlink(txn, ctx, Ino::ROOT, b"last")).unwrap();
    world.run(|txn, ctx| remove::reap(txn, ctx, removed.ino, &[])).unwrap();
    assert_eq!(make(&mut world, b"again"), Ok(()));
    world.check();
}
