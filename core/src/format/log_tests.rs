use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use super::*;
use crate::types::{BlockId, SliceId};

const SEGMENT: Segment = Segment { volume: VolumeId([7; 16]), epoch: 3, number: 9, before: 4711 };
const FRONTIER: Frontier = Frontier { segment: 9, at: 5000 };

fn record(segment: &Segment, at: u64, key: &str, body: &[u8]) -> Vec<u8> {
    let sum = Sum::of(&[Bytes::copy_from_slice(body)]);
    let content = Content { kind: Kind::Put, key, len: body.len() as u64, sum, paged: false };
    let mut bytes = encode_record(segment, at, FRONTIER, &content).to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// A segment with records of these bodies, and where each begins; before each `true` there was a sync.
fn segment(bodies: &[(&[u8], bool)]) -> (Vec<u8>, Vec<u64>) {
    let mut bytes = SEGMENT.encode().to_vec();
    let (mut end, mut starts) = (RECORDS_AT, Vec::new());
    for (index, (body, synced)) in bodies.iter().enumerate() {
        let at = next_at(end, *synced);
        bytes.resize(at as usize, 0);
        bytes.extend(record(&SEGMENT, at, &format!("key/{index}"), body));
        end = bytes.len() as u64;
        starts.push(at);
    }
    (bytes, starts)
}

fn whole(scan: &Scan) -> Vec<&str> {
    scan.records.iter().filter(|record| record.whole).map(|record| record.key.as_str()).collect()
}

#[test]
fn owner_and_header_come_back() {
    let owner = Owner { volume: VolumeId([1; 16]), epoch: 77 };
    assert_eq!(Owner::decode(&owner.encode()), Ok(owner));
    assert_eq!(Segment::decode(&SEGMENT.encode(), 9), Ok(SEGMENT));
    assert!(Segment::decode(&SEGMENT.encode(), 10).is_err(), "a segment under another number");
    assert!((SEGMENT.encode().len() as u64) < RECORDS_AT);
    for cut in 0..owner.encode().len() {
        assert!(Owner::decode(&owner.encode()[..cut]).is_err());
    }
}

#[test]
fn segments_of_the_version_before_are_read_and_others_refused() {
    let of_version = |version: u32| {
        let now = SEGMENT.encode();
        let body = [&now[..8], &version.to_be_bytes(), &now[12..now.len() - 8]].concat();
        Segment::decode(&sealed(body, SEGMENT.number), SEGMENT.number)
    };
    assert_eq!(of_version(VERSION), Ok(SEGMENT));
    assert_eq!(of_version(1), Ok(SEGMENT));
    assert_eq!(of_version(2), Ok(SEGMENT));
    assert_eq!(of_version(0), Err(DecodeError::Version(0)));
    assert_eq!(of_version(VERSION + 1), Err(DecodeError::Version(VERSION + 1)));
}

#[test]
fn records_are_found_after_padding_and_syncs() {
    let (bytes, starts) = segment(&[(b"first", false), (b"", false), (&[5; 5000], true), (b"last", true)]);
    let found = scan(&SEGMENT, &bytes);
    assert_eq!(whole(&found), ["key/0", "key/1", "key/2", "key/3"]);
    assert_eq!(found.records.iter().map(|record| record.at).collect::<Vec<_>>(), starts);
    assert!(found.gaps.is_empty(), "{:?}", found.gaps);
    let body = found.records[2].body.clone();
    assert_eq!(bytes[body.start as usize..body.end as usize], [5; 5000]);
    assert_eq!(found.records[0].frontier, FRONTIER);
    // A preallocated tail is none.
    let longer = [bytes, vec![0; 100_000]].concat();
    assert_eq!(scan(&SEGMENT, &longer), found);
}

#[test]
fn paged_records_have_their_pages_to_themselves() {
    let (mut bytes, mut end) = (SEGMENT.encode().to_vec(), RECORDS_AT);
    let records = [(100, false), (5000, true), (0, true), (4096, true), (7, false), (1, true)];
    for (len, paged) in records {
        let at = next_at(end, paged);
        bytes.resize(at as usize, 0);
        let (key, body) = (format!("key/{len}"), vec![5; len]);
        let sum = Sum::of(&[Bytes::from(body.clone())]);
        let content = Content { kind: Kind::Put, key: &key, len: len as u64, sum, paged };
        bytes.extend_from_slice(&encode_record(&SEGMENT, at, FRONTIER, &content));
        assert_eq!(bytes.len() as u64, body_at(at, key.len() as u64, paged));
        assert!(!paged || (bytes.len() as u64).is_multiple_of(PAGE));
        bytes.extend_from_slice(&body);
        end = next_at(bytes.len() as u64, paged);
    }
    let found = scan(&SEGMENT, &bytes);
    assert_eq!(whole(&found), ["key/100", "key/5000", "key/0", "key/4096", "key/7", "key/1"]);
    assert!(found.gaps.is_empty(), "{:?}", found.gaps);
}

#[test]
fn a_record_counts_in_its_place_alone() {
    let (bytes, _) = segment(&[(b"first", false)]);
    for other in [
        Segment { epoch: 4, ..SEGMENT },
        Segment { number: 8, ..SEGMENT },
        Segment { volume: VolumeId([8; 16]), ..SEGMENT },
    ] {
        assert!(scan(&other, &bytes).records.is_empty(), "{other:?}");
    }
    let mut moved = vec![0; bytes.len() + 8];
    moved[8..].copy_from_slice(&bytes);
    assert!(scan(&SEGMENT, &moved).records.is_empty());
}

#[test]
fn what_is_unreadable_does_not_hide_the_rest() {
    let (bytes, starts) = segment(&[(&[1; 100], false), (&[2; 100], false), (&[3; 100], false)]);
    for at in starts[1]..starts[2] {
        let mut torn = bytes.clone();
        torn[at as usize] ^= 0x10;
        let found = scan(&SEGMENT, &torn);
        let kept = whole(&found);
        let padding = kept.len() == 3;
        assert!(padding || kept == ["key/0", "key/2"], "byte {at}: {kept:?}");
        assert!(
            padding || found.gaps.iter().any(|gap| gap.start == starts[1] || gap.start < starts[1] + 8),
            "byte {at}"
        );
    }
}

#[test]
fn damage_is_what_was_synced_and_cannot_be_read() {
    let (bytes, starts) = segment(&[(&[1; 100], false), (&[2; 100], false), (&[3; 100], false)]);
    let end = bytes.len() as u64;
    let check = |bytes: &[u8], claimed: u64| damage(&scan(&SEGMENT, bytes), bytes.len() as u64, claimed).len();
    assert_eq!(check(&bytes, end), 0);
    let mut torn = bytes.clone();
    torn[starts[1] as usize + 150] ^= 1;
    assert_eq!(check(&torn, 0), 0, "nothing was known to be synced: a torn tail");
    assert_eq!(check(&torn, starts[1]), 0, "synced up to the record: a torn tail");
    assert_eq!(check(&torn, starts[2]), 1);
    assert_eq!(check(&bytes[..starts[2] as usize], end), 1, "cut short below what was synced");
    let empty: Vec<u8> = SEGMENT.encode().to_vec();
    assert_eq!(check(&empty, 3 * PAGE), 1);
}

#[test]
fn pieces_have_the_sum_of_the_whole() {
    let whole: Vec<u8> = (0..10_000).map(|n| n as u8).collect();
    let pieces: Vec<Bytes> = whole.chunks(77).map(Bytes::copy_from_slice).collect();
    assert_eq!(Sum::of(&pieces), Sum::of(&[whole.into()]));
    assert_eq!(Sum::of(&[]), Sum::of(&[Bytes::new()]));
}

/// The head and the payload of a block, and the object.
fn block(payload: &[u8]) -> ([Bytes; 2], Bytes) {
    let id = BlockId { slice: SliceId(77), index: 2, len: payload.len() as u32 };
    let head = block::encode_head(SEGMENT.volume, id, 100, payload);
    let object = [&head[..], payload].concat().into();
    ([head, Bytes::copy_from_slice(payload)], object)
}

#[test]
fn a_block_is_verified_by_its_own_checksums() {
    let (pieces, object) = block(&[9; 250]);
    let sum = Sum::of(&pieces);
    assert!(matches!(sum, Sum::Head(_)));
    assert_eq!(Sum::of(core::slice::from_ref(&object)), sum);
    assert!(sum.holds(&object));
    for at in 0..object.len() {
        let mut damaged = object.to_vec();
        damaged[at] ^= 0x10;
        assert!(!sum.holds(&damaged), "byte {at}");
        assert!(!sum.holds(&object.slice(..at)), "{at} bytes of it");
    }
    let (_, other) = block(&[8; 250]);
    assert!(!sum.holds(&other), "a block of the same name with other bytes");
    // What only begins as a block does, or does not say how long it is.
    let longer: Bytes = [&object[..], b"more"].concat().into();
    assert!(!sum.holds(&longer));
    assert!(matches!(Sum::of(&[longer]), Sum::Body(_)));
    assert!(matches!(Sum::of(&[object.slice(..40), object.slice(40..)]), Sum::Body(_)));
}

#[test]
fn blocks_are_found_whole_or_in_a_gap() {
    let ((pieces, object), mut bytes) = (block(&[9; 5000]), SEGMENT.encode().to_vec());
    bytes.resize(RECORDS_AT as usize, 0);
    for paged in [true, false] {
        let at = next_at(bytes.len() as u64, true);
        bytes.resize(at as usize, 0);
        let content = Content { kind: Kind::Put, key: "key", len: object.len() as u64, sum: Sum::of(&pieces), paged };
        bytes.extend_from_slice(&encode_record(&SEGMENT, at, FRONTIER, &content));
        bytes.extend_from_slice(&object);
    }
    let found = scan(&SEGMENT, &bytes);
    assert_eq!((whole(&found), found.gaps.len()), (vec!["key", "key"], 0));
    assert!(found.records.iter().all(|record| bytes[record.body.start as usize..record.body.end as usize] == object));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let found = scan(&SEGMENT, &bytes);
    assert_eq!((whole(&found), found.gaps.len()), (vec!["key"], 1));
}
