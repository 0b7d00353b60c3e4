//! Every kind of damage to metadata is found, and its path named.
//!
//! Inodes of the tree in order of creation: 2 `/dir`, 3 `/dir/sub`, 4 and 5 its files, 6 `/dir/link`, 7 `/hard`.

use super::*;
use crate::format::keys::{self, Counter};
use crate::format::values::{DelSlice, Dentry, DirStat, Pack, Packed, Value};
use crate::types::{PackId, Place};

/// `/dir/sub/file` with two slices and an inline one, `/dir/sub/other`, `/dir/link` (symlink), `/hard` and
/// `/dir/hard` (one file).
struct Tree {
    world: World,
    dir: Ino,
    sub: Ino,
    file: Ino,
    link: Ino,
    hard: Ino,
    slice: SliceId,
}

fn tree() -> Tree {
    let mut world = World::new();
    let dir = world.dir(Ino::ROOT, b"dir");
    let sub = world.dir(dir, b"sub");
    let file = world.file(sub, b"file");
    world.file(sub, b"other");
    let link = world.create(dir, b"link", FileType::Symlink).unwrap();
    let hard = world.file(Ino::ROOT, b"hard");
    world.run(|txn, ctx| create::link(txn, ctx, hard, dir, b"hard")).unwrap();
    let (one, two) = (world.blocks(0, 0, 20), world.blocks(1, 4, 30));
    let Change::Slice { record: SliceRecord { slice, .. }, .. } = one else { unreachable!() };
    let place = Place::Inline(Bytes::from_static(b"abc"));
    let record = SliceRecord { slice: SliceId(0), stored_len: 3, off: 0, pos: 40, len: 3, place };
    world.commit(file, 3, [one, two, Change::Slice { chunk: 1, record }].into()).unwrap();
    world.check();
    Tree { world, dir, sub, file, link, hard, slice }
}

/// Damages the tree with `damage` and expects exactly the findings `(kind, path)`, in order of kind.
#[track_caller]
fn check(damage: impl Fn(&Tree, &mut dyn Txn), expected: &[(FindingKind, &str)]) {
    let mut tree = tree();
    let mut kv = core::mem::take(&mut tree.world.kv);
    crate::testkit::run(&mut kv, |txn| {
        damage(&tree, txn);
        Ok(())
    })
    .unwrap();
    tree.world.kv = kv;
    let mut findings = tree.world.findings();
    findings.sort_by_key(|finding| (finding.kind, finding.path.clone()));
    let found: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.path.as_str())).collect();
    assert_eq!(found, expected, "{findings:#?}");
}

fn edit<V: Value>(txn: &mut dyn Txn, key: Vec<u8>, change: impl FnOnce(&mut V)) {
    let mut value = V::decode(&txn.get(&key).unwrap().unwrap()).unwrap();
    change(&mut value);
    txn.put(&key, &value.encode());
}

fn edit_attr(txn: &mut dyn Txn, ino: Ino, change: impl FnOnce(&mut Attr)) {
    edit(txn, keys::attr(ino), change);
}

#[test]
fn damaged_names_are_found() {
    use FindingKind::*;
    check(
        |t, txn| txn.delete(&keys::attr(t.link)),
        &[(DentryWithoutInode, "/dir/link"), (WrongUsage, ""), (DanglingKey, "(inode 6)")],
    );
    check(
        |t, txn| txn.delete(&keys::dentry(t.sub, b"file")),
        &[(InodeWithoutDentry, "(inode 4)"), (WrongDirStat, "/dir/sub")],
    );
    check(
        |t, txn| put(txn, keys::dentry(t.dir, b"ghost"), &Dentry { ino: Ino(77), kind: FileType::Regular }),
        &[(DentryWithoutInode, "/dir/ghost"), (WrongDirStat, "/dir")],
    );
    check(
        |t, txn| put(txn, keys::dentry(t.dir, b"link"), &Dentry { ino: t.link, kind: FileType::Fifo }),
        &[(WrongKind, "/dir/link")],
    );
    check(|t, txn| edit_attr(txn, t.file, |attr| attr.nlink = 2), &[(WrongLinkCount, "/dir/sub/file")]);
    check(|t, txn| edit_attr(txn, t.hard, |attr| attr.nlink = 3), &[(WrongLinkCount, "/dir/hard")]);
    check(|t, txn| edit_attr(txn, t.sub, |attr| attr.nlink = 3), &[(WrongLinkCount, "/dir/sub")]);
    check(
        |t, txn| txn.delete(&keys::link(t.hard, t.dir, b"hard")),
        &[(WrongLinkCount, "/hard"), (WrongParent, "/dir/hard")],
    );
    check(|t, txn| put(txn, keys::link(t.file, t.dir, b"nothing"), &()), &[(WrongLinkCount, "(inode 4)")]);
    check(|t, txn| edit_attr(txn, t.sub, |attr| attr.parent = Ino::ROOT), &[(WrongParent, "/dir/sub")]);
    check(|t, txn| edit_attr(txn, t.file, |attr| attr.parent = t.dir), &[(WrongParent, "/dir/sub/file")]);
    check(
        |t, txn| put(txn, keys::dirstat(t.sub, 2), &DirStat { entries: 9, ..DirStat::default() }),
        &[(WrongDirStat, "/dir/sub")],
    );
    check(
        |t, txn| put(txn, keys::dentry(t.sub, b"loop"), &Dentry { ino: t.dir, kind: FileType::Directory }),
        &[(WrongLinkCount, "/dir/sub/loop"), (WrongDirStat, "/dir/sub")],
    );
}

#[test]
fn damaged_packs_are_found() {
    let (pack, block) = (PackId::new(1, 1), (SliceId(4096), 0));
    let packed = Packed { pack, at: 0, len: 10 };
    let of = |live| Pack { len: 10, live, condemned: false };
    let whole = |txn: &mut dyn Txn| {
        put(txn, keys::packed(block.0, block.1), &packed);
        put(txn, keys::pack(pack), &of(10));
    };
    let damaged = [(FindingKind::DanglingKey, "")];
    check(|_, txn| whole(txn), &[]);
    check(|_, txn| put(txn, keys::packed(block.0, block.1), &packed), &damaged);
    check(|_, txn| put(txn, keys::pack(pack), &of(10)), &damaged);
    check(
        |_, txn| {
            whole(txn);
            put(txn, keys::packed(block.0, 1), &Packed { at: 5, ..packed });
            put(txn, keys::pack(pack), &of(10));
        },
        // A block past the end of its pack, and a pack that counts too little.
        &[damaged[0], damaged[0]],
    );
}

#[test]
fn damaged_contents_are_found() {
    use FindingKind::*;
    check(
        |t, txn| edit_attr(txn, t.file, |attr| attr.stored += 5),
        &[(WrongUsage, ""), (WrongStored, "/dir/sub/file")],
    );
    check(|_, txn| edit(txn, keys::counter(Counter::Inodes, 3), |count: &mut i64| *count += 1), &[(WrongUsage, "")]);
    check(|_, txn| put(txn, keys::counter(Counter::Bytes, 0), &-1_i64), &[(WrongUsage, "")]);
    check(|t, txn| txn.delete(&keys::slice(t.file, 0, 0)), &[(WrongStored, "/dir/sub/file")]);
    check(
        |t, txn| {
            let value = txn.get(&keys::slice(t.file, 1, 2)).unwrap().unwrap();
            txn.put(&keys::slice(Ino(66), 1, 2), &value);
        },
        &[(DanglingSlice, "(inode 66)")],
    );
    check(
        |t, txn| put(txn, keys::delslice(t.slice), &DelSlice { stored_len: 20 }),
        &[(QueuedButLive, "/dir/sub/file")],
    );
    check(|t, txn| edit_attr(txn, t.file, |attr| attr.length = 70), &[(BadSlice, "/dir/sub/file"); 2]);
    check(|t, txn| edit_attr(txn, t.file, |attr| attr.next_seq = 2), &[(BadSlice, "/dir/sub/file")]);
    check(
        |t, txn| edit(txn, keys::slice(t.file, 1, 1), |record: &mut SliceRecord| record.slice = t.slice),
        &[(BadSlice, "/dir/sub/file")],
    );
    check(
        |t, txn| edit(txn, keys::slice(t.file, 1, 1), |record: &mut SliceRecord| record.pos = 40),
        &[(WrongStored, "/dir/sub/file"), (BadSlice, "/dir/sub/file"), (BadSlice, "/dir/sub/file")],
    );
    check(|t, txn| txn.delete(&keys::symlink(t.link)), &[(MissingTarget, "/dir/link")]);
    check(|t, txn| put(txn, keys::symlink(t.link), &Bytes::from_static(b"long")), &[(MissingTarget, "/dir/link")]);
    check(
        |t, txn| put(txn, keys::cut(t.file, 1), &crate::format::values::Cut { offset: 50, end: u64::MAX }),
        &[(DanglingKey, "/dir/sub/file")],
    );
    check(|t, txn| put(txn, keys::orphan(t.file), &()), &[(WrongOrphan, "/dir/sub/file")]);
    check(|t, txn| put(txn, keys::delfile(t.file), &()), &[(WrongOrphan, "/dir/sub/file")]);
    check(|_, txn| put(txn, keys::xattr(Ino(66), b"a"), &Bytes::new()), &[(DanglingKey, "(inode 66)")]);
    check(|t, txn| put(txn, keys::xattr(t.file, b"a"), &Bytes::new()), &[(DanglingKey, "/dir/sub/file")]);
    check(
        |_, txn| put(txn, keys::next_slice(), &7_u64),
        &[(BadSlice, "/dir/sub/file"), (BadSlice, "/dir/sub/file"), (WrongAllocator, "")],
    );
}

#[test]
fn undecodable_keys_and_values_are_found() {
    use FindingKind::*;
    let bad = b"\xff what";
    check(|t, txn| txn.put(&keys::attr(t.file), bad), &[(Undecodable, "/dir/sub/file"), (WrongUsage, "")]);
    check(
        |t, txn| txn.put(&keys::dentry(t.sub, b"file"), bad),
        &[(Undecodable, "/dir/sub/file"), (InodeWithoutDentry, "(inode 4)")],
    );
    check(|t, txn| txn.put(&keys::slice(t.file, 0, 0), bad), &[(Undecodable, "/dir/sub/file")]);
    check(|t, txn| txn.put(&keys::dirstat(t.sub, 0), bad), &[(Undecodable, "/dir/sub")]);
    check(|t, txn| txn.put(&keys::symlink(t.link), bad), &[(Undecodable, "/dir/link")]);
    check(|_, txn| txn.put(b"Zebra", b"?"), &[(Undecodable, "")]);
    check(|_, txn| txn.put(&keys::volume(), bad), &[(Undecodable, "")]);
    check(|_, txn| txn.put(&keys::lease(LEASE_SLICES), bad), &[(Undecodable, "")]);
}

#[test]
fn cut_off_directories_are_found_with_all_below_them() {
    use FindingKind::*;
    check(
        |t, txn| {
            txn.delete(&keys::dentry(t.dir, b"sub"));
            put(txn, keys::dirstat(t.dir, 0), &DirStat::default());
            for stripe in 1..4 {
                txn.delete(&keys::dirstat(t.dir, stripe));
            }
            put(txn, keys::dirstat(t.dir, 0), &DirStat { entries: 2, ..DirStat::default() });
        },
        &[
            (InodeWithoutDentry, "(inode 3)"),
            (InodeWithoutDentry, "(inode 3)/file"),
            (InodeWithoutDentry, "(inode 3)/other"),
        ],
    );
}

#[test]
fn a_walk_goes_deeper_than_any_call_stack_would() {
    let mut world = World::new();
    let mut dir = Ino::ROOT;
    for _ in 0..1000 {
        dir = world.dir(dir, b"d");
    }
    world.check();
    let path = crate::testkit::peek(&world.kv, |read| lookup::path_of(read, dir)).unwrap();
    assert_eq!(path.len(), 2000);
}
