use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use super::*;

/// One key of each table, fields ascending within a table, in the order of their bytes.
fn samples() -> Vec<Key<'static>> {
    let (i, j) = (Ino(1), Ino(0x0102_0304_0506_0708));
    let (s, t) = (SliceId(255), SliceId(256));
    vec![
        Key::Attr(i),
        Key::Attr(Ino(255)),
        Key::Attr(Ino(256)),
        Key::Attr(j),
        Key::Attr(Ino(u64::MAX)),
        Key::Counter(Counter::Bytes, 0),
        Key::Counter(Counter::Bytes, 3),
        Key::Counter(Counter::Inodes, 0),
        Key::Dentry(i, b"any"),
        Key::Dentry(j, b"any"),
        Key::DirStat(i, 0),
        Key::DirStat(i, 3),
        Key::DirStat(j, 0),
        Key::Home(s),
        Key::Home(t),
        Key::Packed(s, 0),
        Key::Packed(s, 1),
        Key::Packed(t, 0),
        Key::Pack(PackId(1)),
        Key::Pack(PackId(256)),
        Key::Link(i, i, b"a"),
        Key::Link(i, i, b"aa"),
        Key::Link(i, i, b"b"),
        Key::Link(i, j, b"a"),
        Key::Link(j, i, b"a"),
        Key::NextIno,
        Key::NextSlice,
        Key::NextSession,
        Key::Session(SessionId(1)),
        Key::Session(SessionId(256)),
        Key::Lease(4096),
        Key::Lease(8192),
        Key::Slice(i, 0, 0),
        Key::Slice(i, 0, 255),
        Key::Slice(i, 0, 256),
        Key::Slice(i, 1, 0),
        Key::Slice(i, u32::MAX, u64::MAX),
        Key::Slice(Ino(2), 0, 0),
        Key::Cut(i, 1),
        Key::Cut(i, 256),
        Key::Cut(j, 0),
        Key::Volume,
        Key::Xattr(i, b"user.a"),
        Key::Xattr(i, b"user.a\0"),
        Key::Xattr(i, b"user.b"),
        Key::Xattr(j, b"user.a"),
        Key::Symlink(i),
        Key::Symlink(j),
        Key::Orphan(i),
        Key::Orphan(j),
        Key::DelFile(i),
        Key::CutFile(i),
        Key::DelSlice(s),
        Key::DelSlice(t),
    ]
}

#[test]
fn keys_sort_by_their_fields() {
    for pair in samples().windows(2) {
        assert!(pair[0].encode() < pair[1].encode(), "{:?} does not sort below {:?}", pair[0], pair[1]);
    }
}

#[test]
fn keys_come_back() {
    for key in samples() {
        let bytes = key.encode();
        assert_eq!(decode(&bytes), Ok(key));
        let (start, end) = everything();
        assert!(start < bytes && bytes < end);
    }
}

#[test]
fn damaged_keys_are_refused() {
    for key in samples() {
        let bytes = key.encode();
        for len in 0..bytes.len() {
            // A name cut short is another name, except where a hash says otherwise.
            assert_ne!(decode(&bytes[..len]), Ok(key));
        }
        let longer = [&bytes[..], &[0; 256]].concat();
        assert!(decode(&longer).is_err(), "{key:?} with trailing bytes");
    }
    let mut swapped = dentry(Ino(7), b"name");
    *swapped.last_mut().unwrap() = b'f';
    assert_eq!(decode(&swapped), Err(DecodeError::Invalid("hash of a name")));
    assert_eq!(decode(&[SYMLINK, 0, 0, 0, 0, 0, 0, 0, 0]), Err(DecodeError::Invalid("inode 0")));
    assert_eq!(decode(&[DIRSTAT, 0, 0, 0, 0, 0, 0, 0, 1, STRIPES]), Err(DecodeError::Invalid("stripe")));
    assert_eq!(decode(b"?"), Err(DecodeError::Invalid("tag of a key")));
}

#[test]
fn ranges_hold_what_they_say() {
    let (one, two) = (Ino(0xff), Ino(0x100));
    let ids = (SliceId(0xffff), SliceId(0x1_0000));
    let within = |(start, end): (Vec<u8>, Vec<u8>), key: Vec<u8>| start <= key && key < end;
    // A range, keys inside, keys outside.
    let cases = [
        (attr_range(), vec![attr(one), attr(Ino(u64::MAX))], vec![volume(), dentry(one, b"n")]),
        (
            dentry_range(one),
            vec![dentry(one, b"a"), dentry(one, &[0xff; 255])],
            vec![dentry(two, b"a"), dirstat(one, 0)],
        ),
        (all_dentries(), vec![dentry(one, b"a"), dentry(two, b"a")], vec![dirstat(one, 0), counter(Counter::Bytes, 0)]),
        (dirstat_range(one), vec![dirstat(one, 0), dirstat(one, 3)], vec![dirstat(two, 0)]),
        (link_range(one), vec![link(one, two, b"a")], vec![link(two, one, b"a")]),
        (xattr_range(one), vec![xattr(one, b"a"), xattr(one, &[0xff; 255])], vec![xattr(two, b"a")]),
        (slice_range(one, None), vec![slice(one, 0, 0), slice(one, u32::MAX, u64::MAX)], vec![slice(two, 0, 0)]),
        (slice_range(one, Some(1)), vec![slice(one, 1, 0)], vec![slice(one, 0, u64::MAX), slice(one, 2, 0)]),
        (slice_range(one, Some(u32::MAX)), vec![slice(one, u32::MAX, 9)], vec![slice(two, 0, 0)]),
        (all_slices(), vec![slice(one, 0, 0), slice(two, 0, 0)], vec![cut(one, 0), attr(one)]),
        (cut_range(one), vec![cut(one, 0), cut(one, u64::MAX)], vec![cut(two, 0)]),
        (packed_range(), vec![packed(ids.0, 0), packed(ids.1, 9)], vec![pack(PackId(1))]),
        (pack_range(), vec![pack(PackId(1)), pack(PackId(u64::MAX))], vec![packed(ids.0, 0), link(one, two, b"a")]),
        (session_range(), vec![session(SessionId(1))], vec![lease(0)]),
        (lease_range(), vec![lease(0), lease(u64::MAX)], vec![session(SessionId(u64::MAX))]),
        (orphan_range(), vec![orphan(one)], vec![delfile(one)]),
        (delfile_range(), vec![delfile(one)], vec![cutfile(one), orphan(one)]),
        (cutfile_range(), vec![cutfile(one)], vec![delfile(one), delslice(ids.0)]),
        (delslice_range(), vec![delslice(ids.0), delslice(ids.1)], vec![cutfile(one)]),
    ];
    for (range, inside, outside) in cases {
        for key in inside {
            assert!(within(range.clone(), key.clone()), "{:?} is not in its range", decode(&key));
        }
        for key in outside {
            assert!(!within(range.clone(), key.clone()), "{:?} is in another range", decode(&key));
        }
    }
}

#[test]
fn names_of_a_directory_are_entered_by_hash() {
    let dir = Ino(9);
    let mut names: Vec<Vec<u8>> = (0..200u32).map(|index| index.to_string().into_bytes()).collect();
    names.sort_by_key(|name| dentry(dir, name));
    assert!(names.is_sorted_by_key(|name| name_hash(dir, name)));
    for name in &names {
        let (key, hash) = (dentry(dir, name), name_hash(dir, name));
        assert_eq!((DentryPlace::of(&key).map(|place| place.hash), attr_ino(&key)), (Some(hash), None));
        assert!((1..1 << 55).contains(&hash));
        assert!(dentry_from(dir, hash) < key);
        assert!(key < dentry_after(dir, hash));
        assert!(dentry_after(dir, hash - 1) < key);
    }
    let (start, end) = dentry_range(dir);
    assert!(DentryPlace::of_range(&start, &end).is_some_and(|from| from.dir == dir && from.is_first()));
    assert!(DentryPlace::of_range(&dentry(dir, b"name"), &end).is_some_and(|from| from.name == b"name"));
    assert_eq!((DentryPlace::of(&start), DentryPlace::of_range(&start, &dentry_range(Ino(10)).1)), (None, None));
    assert!(start <= dentry_after(dir, 0) && dentry_after(dir, (1 << 55) - 1) < end);
    assert_ne!(name_hash(dir, b"name"), name_hash(Ino(10), b"name"), "the directory seeds the hash");
}

#[test]
fn layout_does_not_change() {
    // What these show is on people's disks.
    assert_eq!(slice(Ino(0x0102), 3, 4), b"S\0\0\0\0\0\0\x01\x02\0\0\0\x03\0\0\0\0\0\0\0\x04");
    assert_eq!(attr(Ino::ROOT), b"A\0\0\0\0\0\0\0\x01");
    assert_eq!(attr_ino(&attr(Ino::ROOT)), Some(Ino::ROOT));
    assert_eq!(counter(Counter::Inodes, 2), b"C\x02\x02");
    assert_eq!(name_hash(Ino::ROOT, b"hello"), 16422578030367823);
}
