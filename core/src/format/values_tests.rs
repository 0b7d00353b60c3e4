use alloc::string::ToString;
use alloc::vec;
use core::fmt::Debug;

use super::*;

const TIME: Timestamp = Timestamp { secs: -5, nanos: 999_999_999 };

/// Round trip; every prefix, a trailing byte and another version are errors.
fn check<V: Value + PartialEq + Debug>(value: &V) {
    let bytes = value.encode();
    assert_eq!(V::decode(&bytes).as_ref(), Ok(value));
    assert_eq!(bytes[0], 1);
    for len in 0..bytes.len() {
        assert!(V::decode(&bytes[..len]).is_err(), "{value:?} cut to {len} bytes");
    }
    assert_eq!(V::decode(&[&bytes[..], &[0]].concat()).err(), Some(DecodeError::Trailing), "{value:?}");
    check_version(&bytes, V::decode);
}

fn check_version<V: Debug>(bytes: &[u8], decode: fn(&[u8]) -> Result<V, DecodeError>) {
    for version in [0, 2, 255] {
        let mut other = bytes.to_vec();
        other[0] = version;
        assert_eq!(decode(&other).err(), Some(DecodeError::Version(u32::from(version))));
    }
}

fn volume() -> Volume {
    Volume {
        version: VOLUME_VERSION,
        id: VolumeId([7; 16]),
        name: "photos".to_string(),
        storage: "file".to_string(),
        bucket: "/srv/ünïcode".to_string(),
        geometry: Geometry::DEFAULT,
        capacity: 1 << 40,
        inodes: 0,
        created: TIME,
        acl: false,
        log: None,
        packs: false,
    }
}

fn attr() -> Attr {
    Attr {
        kind: FileType::Regular,
        mode: 0o6755,
        uid: 1,
        gid: u32::MAX,
        rdev: 2,
        nlink: 3,
        length: FILE_SIZE_MAX,
        stored: 5,
        atime: TIME,
        mtime: Timestamp { secs: i64::MAX, nanos: 0 },
        ctime: Timestamp { secs: i64::MIN, nanos: 1 },
        btime: Timestamp { secs: 0, nanos: 0 },
        commit: 6,
        next_seq: 0,
        reach: FILE_SIZE_MAX,
        exact: true,
        bare: false,
        parent: Ino(8),
        flags: InodeFlags::default(),
    }
}

fn record(place: Place) -> SliceRecord {
    SliceRecord { slice: SliceId(9), stored_len: 100, off: 10, pos: 1 << 25, len: 90, place }
}

fn record_without_blocks(place: Place) -> SliceRecord {
    SliceRecord { slice: SliceId(0), stored_len: 100, off: 0, pos: 7, len: 90, place }
}

fn inline(bytes: &'static [u8]) -> SliceRecord {
    let len = bytes.len() as u32;
    SliceRecord {
        slice: SliceId(0),
        stored_len: len,
        off: 0,
        pos: 0,
        len,
        place: Place::Inline(Bytes::from_static(bytes)),
    }
}

#[test]
fn values_come_back() {
    check(&volume());
    check(&Volume { acl: true, ..volume() });
    let home = LogHome { epoch: 9, place: "host:/var/cache/kiseki".into() };
    check(&Volume { log: Some(home.clone()), ..volume() });
    check(&Volume { acl: true, log: Some(home), packs: true, ..volume() });
    check(&Volume { packs: true, ..volume() });
    check(&Volume { version: VOLUME_VERSION_PLAIN, ..volume() });
    check(&attr());
    for kind in [
        FileType::Regular,
        FileType::Directory,
        FileType::Symlink,
        FileType::Fifo,
        FileType::CharDevice,
        FileType::BlockDevice,
        FileType::Socket,
    ] {
        check(&Attr { kind, ..attr() });
        check(&Dentry { ino: Ino(1), kind });
    }
    check(&DirStat { entries: -3, subdirs: i64::MAX, mtime: TIME, ctime: TIME });
    check(&record(Place::Blocks));
    check(&record(Place::Home));
    check(&Session { started: TIME });
    check(&Lease { end: 8192, session: SessionId(1) });
    check(&record_without_blocks(Place::Hole));
    check(&record_without_blocks(Place::Reserved));
    check(&Home { references: 2 });
    check(&Packed { pack: PackId::new(1, 2), at: 0, len: u32::MAX });
    check(&Packed { pack: PackId(u64::MAX), at: 3, len: 4 });
    check(&Pack { len: 9, live: 9, condemned: false });
    check(&Pack { len: 9, live: 0, condemned: true });
    check(&DelSlice { stored_len: 1 });
    check(&-1i64);
    check(&u64::MAX);
    check(&());
}

/// Round trip of a value with a tail; without it the value of before the tail is read.
fn check_tail<V: Value + PartialEq + Debug>(value: &V, without: &V) {
    let (bytes, short) = (value.encode(), without.encode());
    assert_eq!(V::decode(&bytes).as_ref(), Ok(value));
    assert_eq!(bytes[..short.len()], short[..]);
    for len in short.len() + 1..bytes.len() {
        assert!(V::decode(&bytes[..len]).is_err(), "{value:?} cut to {len} bytes");
    }
    assert_eq!(V::decode(&[&bytes[..], &[0]].concat()).err(), Some(DecodeError::Trailing), "{value:?}");
}

#[test]
fn tails_come_back() {
    let plain = Attr { length: 70, reach: 70, next_seq: 7, exact: false, ..attr() };
    check(&plain);
    check_tail(&Attr { reach: 71, ..plain }, &plain);
    check_tail(&Attr { exact: true, ..plain }, &plain);
    let far = Attr { reach: 71, ..plain };
    check_tail(&Attr { exact: true, ..far }, &far);
    check_tail(&Attr { bare: true, ..far }, &far);
    check_tail(&Cut { offset: 5, end: 6 }, &Cut { offset: 5, end: u64::MAX });
    assert!(Cut::decode(&Cut { offset: 5, end: 5 }.encode()).is_err());
}

#[test]
fn values_that_end_in_raw_bytes_come_back() {
    for bytes in [&b""[..], b"x", &[0xff; 70_000]] {
        let value = Bytes::copy_from_slice(bytes);
        assert_eq!(Bytes::decode(&value.encode()), Ok(value.clone()));
        check_version(&value.encode(), Bytes::decode);
    }
    let value = inline(b"tiny");
    let bytes = value.encode();
    assert_eq!(SliceRecord::decode(&bytes), Ok(value));
    for len in 0..bytes.len() {
        assert!(SliceRecord::decode(&bytes[..len]).is_err());
    }
    assert!(SliceRecord::decode(&[&bytes[..], &[0]].concat()).is_err());
    check_version(&bytes, SliceRecord::decode);
}

#[test]
fn flags_are_a_tail_of_attributes() {
    let flags = InodeFlags::IMMUTABLE.with(InodeFlags::NOATIME);
    let flagged = Attr { flags, ..attr() };
    let bytes = flagged.encode();
    assert_eq!(Attr::decode(&bytes), Ok(flagged));
    let (plain, tail) = bytes.split_at(bytes.len() - 2);
    assert_eq!(Attr::decode(plain), Ok(attr()));
    for (tail, error) in [
        (&tail[..1], DecodeError::Short),
        (&[2, 0], DecodeError::Invalid("flags of an inode")),
        (&[2, 16], DecodeError::Invalid("flags of an inode")),
        (&[255, 1], DecodeError::Trailing),
        (&[2, 1, 0], DecodeError::Trailing),
    ] {
        assert_eq!(Attr::decode(&[plain, tail].concat()), Err(error));
    }
}

#[test]
fn volume_from_the_future_says_its_version() {
    let bytes = Volume { version: VOLUME_VERSION + 1, ..volume() }.encode();
    assert_eq!(Volume::decode(&bytes), Err(DecodeError::Version(VOLUME_VERSION + 1)));
    assert_eq!(Volume::decode(&[1, 0, 0, 1, 0, 0xff]), Err(DecodeError::Version(256)));
    assert_eq!(Volume::decode(&[3, 0xff]), Err(DecodeError::Version(3)));
}

#[test]
fn geometry_that_cannot_work_is_refused() {
    let good = Geometry::DEFAULT;
    let tiny = Geometry { chunk_size: 64, block_size: 16, frame_size: 4, inline_max: 0 };
    assert_eq!((check_geometry(&good), check_geometry(&tiny)), (Ok(()), Ok(())));
    for bad in [
        Geometry { chunk_size: 0, ..good },
        Geometry { chunk_size: (64 << 20) + 1, ..good },
        Geometry { chunk_size: 1 << 32, ..good },
        Geometry { block_size: 0, ..good },
        Geometry { block_size: (4 << 20) + 1, ..good },
        Geometry { frame_size: 0, ..good },
        Geometry { frame_size: 3, ..good },
        Geometry { frame_size: 1, inline_max: 0, ..good },
        Geometry { inline_max: (64 << 10) + 1, ..good },
    ] {
        assert!(check_geometry(&bad).is_err(), "{bad:?}");
        assert!(Volume::decode(&Volume { geometry: bad, ..volume() }.encode()).is_err(), "{bad:?}");
    }
}

/// Bytes of a value with some of them replaced.
fn patched(value: &impl Value, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut out = value.encode();
    out[at..at + bytes.len()].copy_from_slice(bytes);
    out
}

#[test]
fn values_out_of_range_are_refused() {
    let invalid = |what| Some(DecodeError::Invalid(what));
    assert_eq!(Attr::decode(&patched(&attr(), 1, &[9])).err(), invalid("file type"));
    assert_eq!(Attr::decode(&patched(&attr(), 2, &[0x10])).err(), invalid("mode"));
    assert_eq!(Attr::decode(&patched(&attr(), 20, &[0xff])).err(), invalid("length of a file"));
    assert_eq!(Attr::decode(&patched(&attr(), 44, &[0xff])).err(), invalid("nanoseconds"));
    let dentry = Dentry { ino: Ino(1), kind: FileType::Regular };
    assert_eq!(Dentry::decode(&patched(&dentry, 8, &[0])).err(), invalid("inode 0"));
    assert_eq!(Cut::decode(&patched(&Cut { offset: 0, end: u64::MAX }, 1, &[0xff])).err(), invalid("range of a cut"));
    assert_eq!(DelSlice::decode(&patched(&DelSlice { stored_len: 1 }, 4, &[0])).err(), invalid("length of a slice"));
    let home = Home { references: 1 };
    assert_eq!(Home::decode(&patched(&home, 8, &[0])).err(), invalid("references of a slice"));
    assert_eq!(Home::decode(&patched(&home, 9, &[7])).err(), invalid("location of a slice"));
    let packed = Packed { pack: PackId(1), at: 2, len: 3 };
    assert_eq!(Packed::decode(&patched(&packed, 9, &[0xff; 4])).err(), invalid("range of an object in a pack"));
    assert_eq!(Packed::decode(&patched(&packed, 13, &[0; 4])).err(), invalid("range of an object in a pack"));
    let pack = Pack { len: 1, live: 1, condemned: false };
    assert_eq!(Pack::decode(&patched(&pack, 4, &[0])).err(), invalid("bytes of a pack that are in use"));
    assert_eq!(Pack::decode(&patched(&pack, 9, &[1])).err(), invalid("end of a pack"));
    assert_eq!(Volume::decode(&patched(&volume(), 23, &[0xff])).err(), invalid("text"));
}

#[test]
fn slice_records_out_of_range_are_refused() {
    let good = record(Place::Blocks);
    assert_eq!(good.check(), Ok(()));
    for bad in [
        SliceRecord { len: 0, ..good.clone() },
        SliceRecord { len: 91, ..good.clone() },
        SliceRecord { off: u32::MAX, ..good.clone() },
        SliceRecord { pos: u32::MAX - 10, ..good.clone() },
        SliceRecord { slice: SliceId(0), ..good.clone() },
        SliceRecord { slice: SliceId(1), ..inline(b"abc") },
        SliceRecord { stored_len: 4, ..inline(b"abc") },
        SliceRecord { stored_len: 2, len: 2, ..inline(b"abc") },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
    // The fields of a record lie at 9, 13, 17 and 21, its place at 25.
    for (at, bytes) in
        [(24, vec![0]), (24, vec![91]), (13, vec![0xff]), (17, vec![0xff; 4]), (8, vec![0]), (25, vec![3])]
    {
        assert!(SliceRecord::decode(&patched(&good, at, &bytes)).is_err(), "byte {at}");
    }
    // Trimmed at both ends, as an overwritten record may be.
    assert_eq!(SliceRecord { off: 99, len: 1, ..good }.check(), Ok(()));
}
