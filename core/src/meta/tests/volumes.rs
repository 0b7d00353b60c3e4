//! The volume itself, sessions and leases, extended attributes, and which operations conflict.

use super::*;
use crate::testkit::attempt;

#[test]
fn a_volume_is_made_once() {
    let mut world = World::new();
    let volume = volume();
    assert_eq!(world.read(volume::load).unwrap(), volume);
    assert_eq!(world.read(volume::version).unwrap(), VOLUME_VERSION);
    let again = world.run(|txn, ctx| volume::format(txn, ctx, &volume, 0, 0)).map_err(errno);
    assert_eq!(again, Err(Errno::EEXIST));
    assert_eq!(world.usage(), Usage { bytes: 0, inodes: 1 });
    world.check();

    let mut newer = volume;
    newer.version += 1;
    world.put(crate::format::keys::volume(), &newer);
    assert_eq!(world.read(volume::version).unwrap(), VOLUME_VERSION + 1);
    assert!(matches!(world.read(volume::load), Err(OpError::Damaged(_))));

    world.kv = MemKv::new();
    assert_eq!(world.read(volume::load).map_err(errno), Err(Errno::ENOENT));
    assert_eq!(world.read(volume::version).map_err(errno), Err(Errno::ENOENT));
}

#[test]
fn leases_outlive_a_fenced_session_and_end_with_a_clean_one() {
    let mut world = World::new();
    let first = world.session;
    let second = world.run(session::begin).unwrap();
    assert_eq!(world.read(session::list).unwrap(), [first, second]);
    let a = world.run(|txn, _| volume::lease_slices(txn, first)).unwrap();
    let b = world.run(|txn, _| volume::lease_slices(txn, second)).unwrap();
    assert_eq!((a.start, b.start, b.end), (LEASE_SLICES, 2 * LEASE_SLICES, 3 * LEASE_SLICES));
    assert_eq!(world.read(session::leases).unwrap(), [(a.clone(), first), (b.clone(), second)]);

    world.run(|txn, _| session::fence(txn, first)).unwrap();
    let refused = world.run(|txn, _| volume::lease_slices(txn, first)).map_err(errno);
    assert_eq!(refused, Err(Errno::ESTALE));
    world.run(|txn, _| session::end(txn, second)).unwrap();
    assert_eq!(world.read(session::list).unwrap(), []);
    assert_eq!(world.read(session::leases).unwrap(), [(a.clone(), first)]);
    world.run(|txn, _| session::drop_lease(txn, a.start)).unwrap();
    assert_eq!(world.read(session::leases).unwrap(), []);

    let (x, y) = (world.run(|txn, _| volume::lease_inodes(txn, 10)), world.run(|txn, _| volume::lease_inodes(txn, 5)));
    assert_eq!((x.unwrap(), y.unwrap()), (2..12, 12..17));
    world.check();
}

#[test]
fn xattr_modes_and_limits() {
    use XattrMode::{Create, Either, Neither, Replace};
    let mut world = World::new();
    let file = world.file(Ino::ROOT, b"file");
    let mut set = |name: &[u8], len: usize, mode| {
        let value = Bytes::from(alloc::vec![b'v'; len]);
        world.run(|txn, ctx| xattr::set(txn, ctx, file, name, &value, mode)).map_err(errno)
    };
    assert_eq!(set(b"user.a", 3, Replace), Err(Errno::ENODATA));
    assert_eq!(set(b"user.a", 3, Neither), Err(Errno::ENODATA));
    assert_eq!(set(b"user.a", 3, Create), Ok(()));
    assert_eq!(set(b"user.a", 3, Neither), Err(Errno::EEXIST));
    assert_eq!(set(b"user.a", 4, Create), Err(Errno::EEXIST));
    assert_eq!(set(b"user.a", 0, Replace), Ok(()));
    assert_eq!(set(b"user.b", XATTR_VALUE_MAX, Either), Ok(()));
    assert_eq!(set(b"user.b", XATTR_VALUE_MAX + 1, Either), Err(Errno::E2BIG));
    assert_eq!(set(&[b'n'; 256], 1, Either), Err(Errno::ERANGE));
    assert_eq!(world.attr(file).ctime, Timestamp { secs: world.ticks - 3, nanos: 0 });

    assert_eq!(world.read(|read| xattr::list(read, file)).unwrap(), ["user.a", "user.b"]);
    assert_eq!(world.read(|read| xattr::get(read, file, b"user.a")).unwrap(), "");
    assert_eq!(world.read(|read| xattr::get(read, file, b"user.c")).map_err(errno), Err(Errno::ENODATA));
    world.run(|txn, ctx| xattr::remove(txn, ctx, file, b"user.a")).unwrap();
    let again = world.run(|txn, ctx| xattr::remove(txn, ctx, file, b"user.a")).map_err(errno);
    assert_eq!(again, Err(Errno::ENODATA));
    world.check();
    let value = Bytes::new();
    let gone = world.run(|txn, ctx| xattr::set(txn, ctx, Ino(999), b"user.a", &value, Either)).map_err(errno);
    assert_eq!(gone, Err(Errno::ENOENT));
}

/// An operation to run beside another one, on its own stripe.
type Op<'a> = &'a dyn Fn(&mut dyn Txn, &OpCtx) -> OpResult<()>;

/// Whether the second of two operations on one snapshot is refused.
fn conflicts(world: &World, first: Op<'_>, second: Op<'_>) -> bool {
    let mut kv = world.kv.clone();
    let ctx = |stripe| OpCtx { now: world.now(), stripe, geometry: TINY };
    let (_, a) = attempt(&kv, Reads::Direct, |txn| first(txn, &ctx(0))).unwrap();
    let (_, b) = attempt(&kv, Reads::Direct, |txn| second(txn, &ctx(1))).unwrap();
    kv.commit(a).unwrap();
    kv.commit(b).is_err()
}

#[test]
fn operations_conflict_exactly_where_they_must() {
    let mut world = World::new();
    let (a, b) = (world.dir(Ino::ROOT, b"a"), world.dir(Ino::ROOT, b"b"));
    let (empty, sub) = (world.dir(a, b"empty"), world.dir(b, b"sub"));
    let (x, y) = (world.file(a, b"x"), world.file(a, b"y"));
    let (new_1, new_2) = (world.ino(), world.ino());
    let make = |dir: Ino, name: &'static [u8], ino: Ino| {
        move |txn: &mut dyn Txn, ctx: &OpCtx| {
            let kind = FileType::Regular;
            let new =
                New { ino, kind, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: None, umask: None, inodes_max: None };
            create::create(txn, ctx, dir, name, &new).map(drop)
        }
    };
    let mv = |from: Ino, name: &'static [u8], to: Ino, new_name: &'static [u8]| {
        move |txn: &mut dyn Txn, ctx: &OpCtx| {
            rename::rename(txn, ctx, from, name, to, new_name, RenameMode::Replace).map(drop)
        }
    };
    let unlink =
        |name: &'static [u8]| move |txn: &mut dyn Txn, ctx: &OpCtx| remove::unlink(txn, ctx, a, name).map(drop);
    let rmdir = |txn: &mut dyn Txn, ctx: &OpCtx| remove::rmdir(txn, ctx, a, b"empty").map(drop);
    let slice_1 = world.blocks(0, 0, 8);
    let slice_2 = world.blocks(0, 8, 8);
    let write = |ino: Ino, change: Change| {
        move |txn: &mut dyn Txn, ctx: &OpCtx| {
            let commit = Commit { ino, number: 1, changes: [change.clone()].into() };
            data::commit(txn, ctx, &commit).map(drop)
        }
    };
    let cases: &[(&str, Op<'_>, Op<'_>, bool)] = &[
        ("creations in one directory", &make(a, b"1", new_1), &make(a, b"2", new_2), false),
        ("creations of one name", &make(a, b"1", new_1), &make(a, b"1", new_2), true),
        ("creation and removal of the directory", &make(empty, b"1", new_1), &rmdir, true),
        ("removal of the directory and creation", &rmdir, &make(empty, b"1", new_1), true),
        ("removals in one directory", &unlink(b"x"), &unlink(b"y"), false),
        ("removals of one name", &unlink(b"x"), &unlink(b"x"), true),
        ("removal and rename of one file", &unlink(b"x"), &mv(a, b"x", b, b"x"), true),
        ("moves that would make a loop", &mv(Ino::ROOT, b"a", sub, b"a"), &mv(Ino::ROOT, b"b", empty, b"b"), true),
        ("a move below a directory that moves", &mv(Ino::ROOT, b"b", a, b"b"), &mv(a, b"empty", sub, b"e"), true),
        ("commits of one file", &write(x, slice_1.clone()), &write(x, slice_2.clone()), true),
        ("commits of two files", &write(x, slice_1), &write(y, slice_2), false),
    ];
    for (what, first, second, expected) in cases {
        assert_eq!(conflicts(&world, first, second), *expected, "{what}");
    }
}
