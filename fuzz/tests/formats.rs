//! Every decoder against hostile bytes: none panics, and what one accepts encodes to the same bytes again.

use std::ops::Range;
use std::time::Duration;

use bolero::check;
use bolero::generator::*;
use bytes::Bytes;
use kiseki_core::format::block::{
    BlockError, Head, decode_head, decode_marker, encode_head, encode_marker, object_key, object_len, parse_key,
    verify_object,
};
use kiseki_core::format::keys::{self, Counter, Key};
use kiseki_core::format::log;
use kiseki_core::format::pack;
use kiseki_core::format::values::{
    Cut, DelSlice, Dentry, DirStat, Home, Lease, Pack, Packed, Session, VOLUME_VERSION, Value, Volume,
};
use kiseki_core::store::log::{Found, Log, claims};
use kiseki_core::types::{
    Attr, BlockId, FileType, Geometry, Ino, InodeFlags, PackId, Place, STRIPES, SessionId, SliceId, SliceRecord,
    Timestamp, VolumeId,
};

mod kept;

use kept::Kept;

const ITERATIONS: usize = 100_000;

/// Damage to bytes that were right.
#[derive(Clone, Debug, TypeGenerator)]
struct Damage {
    which: u8,
    flips: Vec<(u16, u8)>,
    cut: Option<u16>,
    tail: Vec<u8>,
}

impl Damage {
    fn apply(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        for (at, mask) in self.flips.iter().take(3) {
            let len = bytes.len();
            if let Some(byte) = bytes.get_mut(usize::from(*at) % len.max(1)) {
                *byte ^= mask;
            }
        }
        if let Some(cut) = self.cut {
            bytes.truncate(usize::from(cut) % (bytes.len() + 1));
        }
        bytes.extend(self.tail.iter().take(8));
        bytes
    }

    fn pick<T: Clone>(&self, samples: &[T]) -> T {
        samples[usize::from(self.which) % samples.len()].clone()
    }
}

fn check_key(bytes: &[u8]) {
    if let Ok(key) = keys::decode(bytes) {
        assert_eq!(key.encode(), bytes, "{key:?}");
    }
}

#[test]
fn keys_of_any_bytes() {
    let kept = Kept::of("keys_of_any_bytes");
    check!().with_iterations(ITERATIONS).for_each(|bytes: &[u8]| {
        kept.seen();
        check_key(bytes);
    });
}

#[test]
fn keys_with_damage() {
    let kept = Kept::of("keys_with_damage");
    let (ino, slice) = (Ino(0x1234), SliceId(0x5678));
    let samples = [
        Key::Volume,
        Key::Counter(Counter::Inodes, STRIPES - 1),
        Key::NextIno,
        Key::NextSlice,
        Key::NextSession,
        Key::Attr(ino),
        Key::Dentry(ino, b"name"),
        Key::DirStat(ino, 0),
        Key::Link(ino, Ino(2), b"name"),
        Key::Symlink(ino),
        Key::Xattr(ino, b"user.name"),
        Key::Slice(ino, 1, 2),
        Key::Cut(ino, 3),
        Key::Home(slice),
        Key::Packed(slice, 3),
        Key::Pack(PackId::new(1, 2)),
        Key::Session(SessionId(1)),
        Key::Lease(4096),
        Key::Orphan(ino),
        Key::DelFile(ino),
        Key::CutFile(ino),
        Key::DelSlice(slice),
    ];
    check!().with_iterations(ITERATIONS).with_type::<Damage>().for_each(|damage| {
        kept.seen();
        check_key(&damage.apply(damage.pick(&samples).encode()));
    });
}

fn check_value<V: Value>(bytes: &[u8]) {
    if let Ok(value) = V::decode(bytes) {
        assert_eq!(value.encode(), bytes);
    }
}

fn check_values(bytes: &[u8]) {
    check_value::<Volume>(bytes);
    check_value::<Attr>(bytes);
    check_value::<Dentry>(bytes);
    check_value::<DirStat>(bytes);
    check_value::<SliceRecord>(bytes);
    check_value::<Session>(bytes);
    check_value::<Lease>(bytes);
    check_value::<Cut>(bytes);
    check_value::<Home>(bytes);
    check_value::<DelSlice>(bytes);
    check_value::<i64>(bytes);
    check_value::<u64>(bytes);
    check_value::<()>(bytes);
    check_value::<Bytes>(bytes);
    if let Ok(record) = SliceRecord::decode(bytes) {
        assert_eq!(record.check(), Ok(()), "a decoder let a bad record pass");
    }
}

#[test]
fn values_of_any_bytes() {
    let kept = Kept::of("values_of_any_bytes");
    check!().with_iterations(ITERATIONS).for_each(|bytes: &[u8]| {
        kept.seen();
        check_values(bytes);
        check_values(&[&[1], bytes].concat());
    });
}

#[test]
fn values_with_damage() {
    let kept = Kept::of("values_with_damage");
    let time = Timestamp { secs: 1, nanos: 2 };
    let record = |slice, stored_len, place| {
        SliceRecord { slice: SliceId(slice), stored_len, off: 0, pos: 9, len: stored_len, place }.encode()
    };
    let volume = Volume {
        version: VOLUME_VERSION,
        id: VolumeId([1; 16]),
        name: "name".into(),
        storage: "file".into(),
        bucket: "/bucket".into(),
        geometry: Geometry::DEFAULT,
        capacity: 0,
        inodes: 0,
        created: time,
        acl: false,
        log: None,
        packs: false,
    };
    let attr = Attr {
        kind: FileType::Regular,
        mode: 0o644,
        uid: 1,
        gid: 2,
        rdev: 0,
        nlink: 1,
        length: 4,
        stored: 5,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        commit: 6,
        next_seq: 7,
        reach: 1 << 40,
        exact: true,
        bare: true,
        parent: Ino::ROOT,
        flags: InodeFlags::NODUMP,
    };
    let samples = [
        volume.encode(),
        attr.encode(),
        Dentry { ino: Ino(2), kind: FileType::Socket }.encode(),
        DirStat { entries: 1, subdirs: -1, mtime: time, ctime: time }.encode(),
        record(1, 70_000, Place::Blocks),
        record(1, 70_000, Place::Home),
        record(0, 4, Place::Inline(Bytes::from_static(b"tiny"))),
        Session { started: time }.encode(),
        Lease { end: 8192, session: SessionId(1) }.encode(),
        Cut { offset: 4096, end: u64::MAX }.encode(),
        Cut { offset: 4096, end: 8192 }.encode(),
        Home { references: 2 }.encode(),
        Packed { pack: PackId::new(1, 2), at: 3, len: 4 }.encode(),
        Pack { len: 9, live: 4, condemned: false }.encode(),
        DelSlice { stored_len: 1 }.encode(),
    ];
    check!().with_iterations(ITERATIONS).with_type::<Damage>().for_each(|damage| {
        kept.seen();
        check_values(&damage.apply(damage.pick(&samples)));
    });
}

const VOLUME: VolumeId = VolumeId(*b"volume for tests");
const FRAME: u32 = 16;

fn sample_block(len: u32) -> (BlockId, Vec<u8>) {
    let id = BlockId { slice: SliceId(77), index: 1, len };
    let payload: Vec<u8> = (0..len).map(|index| index as u8).collect();
    let head = encode_head(VOLUME, id, FRAME, &payload);
    (id, [&head[..], &payload].concat())
}

#[test]
fn blocks_of_any_bytes() {
    let kept = Kept::of("blocks_of_any_bytes");
    check!().with_iterations(ITERATIONS).for_each(|bytes: &[u8]| {
        kept.seen();
        let (id, good) = sample_block(40);
        let head: Result<Head, BlockError> = decode_head(VOLUME, id, FRAME, bytes);
        assert!(head.is_err() || bytes.starts_with(&good[..good.len() - 40]));
        let object = Bytes::copy_from_slice(bytes);
        assert!(verify_object(VOLUME, id, FRAME, &object).is_err() || object == good);
    });
}

#[test]
fn blocks_with_damage() {
    let kept = Kept::of("blocks_with_damage");
    let (id, good) = sample_block(40);
    assert_eq!(good.len() as u64, object_len(FRAME, 40));
    check!().with_iterations(ITERATIONS).with_type::<Damage>().for_each(|damage| {
        kept.seen();
        let object = Bytes::from(damage.apply(good.clone()));
        let whole = verify_object(VOLUME, id, FRAME, &object);
        assert_eq!(whole.is_ok(), object == good, "{whole:?}");
        if let Ok(head) = decode_head(VOLUME, id, FRAME, &object) {
            let payload = &object[head.head_len() as usize..];
            let first = u32::from(damage.which);
            for part in [payload, &payload[..payload.len().min(16)], &payload[payload.len().min(32)..]] {
                let at = first as usize * FRAME as usize;
                if head.verify(first, part).is_ok() {
                    let right = &good[good.len() - 40..];
                    assert_eq!(right.get(at..at + part.len()), Some(part), "other bytes were verified");
                }
            }
        }
    });
}

#[test]
fn markers_and_object_keys() {
    let kept = Kept::of("markers_and_object_keys");
    let marker = encode_marker(VOLUME);
    let key = object_key(BlockId { slice: SliceId(0x1_2345), index: 6, len: 1 });
    check!().with_iterations(ITERATIONS).with_type::<Damage>().for_each(|damage| {
        kept.seen();
        let bytes = damage.apply(marker.to_vec());
        if let Ok(volume) = decode_marker(&bytes) {
            assert_eq!(encode_marker(volume), bytes);
        }
        if let Ok(text) = String::from_utf8(damage.apply(key.clone().into_bytes()))
            && let Some((slice, index)) = parse_key(&text)
        {
            assert_eq!(object_key(BlockId { slice, index, len: 1 }), text);
        }
    });
}

/// A key and a body.
type Written = (String, Vec<u8>);

/// A segment of the write-back log, its bytes, and what was written to it.
fn log_segment() -> (log::Segment, Vec<u8>, Vec<Written>) {
    let segment = log::Segment { volume: VolumeId([3; 16]), epoch: 5, number: 2, before: 4096 };
    let mut bytes = segment.encode().to_vec();
    let mut records = Vec::new();
    let mut end = log::RECORDS_AT;
    for (index, len) in [10_u64, 0, 5000, 77].into_iter().enumerate() {
        let paged = index == 2;
        let at = log::next_at(end, index % 2 == 0);
        let (key, mut body) = (format!("blocks/{index}"), vec![index as u8 + 1; len as usize]);
        // Two are blocks, which are verified by their own checksums.
        if index >= 2 {
            let id = BlockId { slice: SliceId(index as u64), index: 1, len: len as u32 };
            body = [&encode_head(segment.volume, id, 1000, &body)[..], &body].concat();
        }
        let len = body.len() as u64;
        let sum = log::Sum::of(&[Bytes::copy_from_slice(&body)]);
        assert_eq!(matches!(sum, log::Sum::Head(_)), index >= 2);
        let content = log::Content { kind: log::Kind::Put, key: &key, len, sum, paged };
        bytes.resize(at as usize, 0);
        bytes.extend_from_slice(&log::encode_record(&segment, at, log::Frontier { segment: 2, at }, &content));
        bytes.extend_from_slice(&body);
        end = log::next_at(bytes.len() as u64, paged);
        records.push((key, body));
    }
    (segment, bytes, records)
}

/// Whatever happens to the bytes of a segment: a record that is found whole is one that was written, whatever is
/// unreadable lies in a gap or is cut off, and a log that takes the segment in has nothing else.
/// What a pack is taken for after damage: an error, or blocks that are whole.
#[test]
fn packs_with_damage() {
    let volume = VolumeId([3; 16]);
    let object = |slice: u64, len: u32| {
        let id = BlockId { slice: SliceId(slice), index: 1, len };
        let payload = vec![slice as u8; len as usize];
        [&encode_head(volume, id, 16, &payload)[..], &payload].concat()
    };
    let whole: Vec<u8> = [object(5, 40), object(6, 1), object(7, 16)].concat();
    let known = pack::blocks(volume, 16, &whole.clone().into()).expect("it is whole");
    check!().with_iterations(ITERATIONS).with_type::<Damage>().for_each(|damage| {
        let damaged = damage.apply(whole.clone());
        if let Ok(found) = pack::blocks(volume, 16, &damaged.clone().into()) {
            let same = |(id, range): &(BlockId, Range<usize>)| {
                known.iter().any(|(other, at)| id == other && whole[at.clone()] == damaged[range.clone()])
            };
            assert!(found.iter().all(same), "a damaged pack shows {found:?}");
        }
    });
}

#[test]
fn segments_of_the_log_with_damage() {
    let kept = Kept::of("segments_of_the_log_with_damage");
    let (segment, good, records) = log_segment();
    let check = |damage: &[Damage]| {
        kept.seen();
        let bytes = damage.iter().take(4).fold(good.clone(), |bytes, damage| damage.apply(bytes));
        let scan = log::scan(&segment, &bytes);
        for record in scan.records.iter().filter(|record| record.whole) {
            let body = &bytes[record.body.start as usize..record.body.end as usize];
            let written = records.iter().find(|(key, _)| *key == record.key).expect("a key that was written");
            assert_eq!(body, written.1, "{}", record.key);
        }
        let whole = scan.records.iter().filter(|record| record.whole).count();
        assert!(whole == records.len() || !scan.gaps.is_empty() || bytes.len() < good.len(), "a record is gone");
        let len = bytes.len() as u64;
        let lost = log::damage(&scan, len, good.len() as u64);
        assert!(
            whole == records.len() || !lost.is_empty() || good.len() as u64 - len < log::PAGE,
            "damage is not told"
        );
        let mut recovered = Log::new(segment.volume, 6, 1 << 20, 1 << 30);
        let found = Found { head: segment, len, scan };
        let claimed = claims(core::slice::from_ref(&found))[0];
        recovered.recover(Duration::ZERO, &found, claimed, false);
        recovered.check();
        assert_eq!(recovered.backlog().objects as usize, whole);
    };
    check!().with_iterations(ITERATIONS / 10).with_type::<Vec<Damage>>().for_each(|damage| check(damage));
}
