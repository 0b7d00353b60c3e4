use alloc::vec;

use super::*;

const VOLUME: VolumeId = VolumeId(*b"0123456789abcdef");
const FRAME: u32 = 16;

fn id(len: u32) -> BlockId {
    BlockId { slice: SliceId(0x1234_5678), index: 3, len }
}

fn payload(len: u32) -> Vec<u8> {
    (0..len).map(|index| (index * 7) as u8).collect()
}

fn object(volume: VolumeId, id: BlockId, frame_size: u32) -> Bytes {
    let payload = payload(id.len);
    let head = encode_head(volume, id, frame_size, &payload);
    assert_eq!(head.len() as u32, head_len(frame_size, id.len));
    let object = Bytes::from([&head[..], &payload].concat());
    assert_eq!(object.len() as u64, object_len(frame_size, id.len));
    object
}

#[test]
fn blocks_come_back() {
    for len in [1, 15, 16, 17, 32, 100] {
        let object = object(VOLUME, id(len), FRAME);
        let found = verify_object(VOLUME, id(len), FRAME, &object).unwrap();
        assert_eq!(found, payload(len));
        let inside = object.as_ptr_range();
        assert!(inside.contains(&found.as_ptr()), "the payload was copied");
    }
}

#[test]
fn any_flipped_bit_is_found() {
    let good = object(VOLUME, id(40), FRAME);
    for at in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[at / 8] ^= 1 << (at % 8);
        let result = verify_object(VOLUME, id(40), FRAME, &bad.into());
        assert!(result.is_err(), "bit {at} was flipped: {result:?}");
    }
}

#[test]
fn damage_is_named() {
    let good = object(VOLUME, id(40), FRAME);
    let head = head_len(FRAME, 40) as usize;
    for (at, wanted) in [
        (0, BlockError::NotABlock),
        (8, BlockError::Version(VERSION ^ 0x80)),
        (12, BlockError::Identity),
        (48, BlockError::Head),
        (56, BlockError::Head),
        (head, BlockError::Frame(0)),
        (head + 16, BlockError::Frame(1)),
        (head + 39, BlockError::Frame(2)),
    ] {
        let mut bad = good.to_vec();
        bad[at] ^= 0x80;
        assert_eq!(verify_object(VOLUME, id(40), FRAME, &bad.into()), Err(wanted), "byte {at}");
    }
}

#[test]
fn another_codec_is_named() {
    let mut object = object(VOLUME, id(40), FRAME).to_vec();
    object[9] = 1;
    let head = head_len(FRAME, 40) as usize;
    let sum = head_sum(&object[..head]);
    object[CHECKSUM_AT..HEADER_LEN].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(verify_object(VOLUME, id(40), FRAME, &object.into()), Err(BlockError::Codec(1)));
}

#[test]
fn length_must_match() {
    let good = object(VOLUME, id(40), FRAME);
    for len in 0..good.len() {
        let result = verify_object(VOLUME, id(40), FRAME, &good.slice(..len));
        assert_eq!(result, Err(BlockError::Length), "cut to {len} bytes");
    }
    let longer = Bytes::from([&good[..], &[0]].concat());
    assert_eq!(verify_object(VOLUME, id(40), FRAME, &longer), Err(BlockError::Length));
}

/// Frames are bound to their block: the same payload under another identity does not verify, head or no head.
#[test]
fn swapped_blocks_are_found() {
    let good = id(40);
    let others = [
        (VolumeId([0; 16]), good),
        (VOLUME, BlockId { slice: SliceId(1), ..good }),
        (VOLUME, BlockId { index: 4, ..good }),
        (VOLUME, BlockId { len: 41, ..good }),
        (VOLUME, BlockId { len: 4000, ..good }),
    ];
    let wanted = decode_head(VOLUME, good, FRAME, &object(VOLUME, good, FRAME)).unwrap();
    for (volume, other) in others {
        let swapped = object(volume, other, FRAME);
        assert_eq!(verify_object(VOLUME, good, FRAME, &swapped), Err(BlockError::Identity), "{other:?}");
        let back = verify_object(volume, other, FRAME, &object(VOLUME, good, FRAME));
        assert_eq!(back, Err(BlockError::Identity), "{other:?}");
        let head = decode_head(volume, other, FRAME, &swapped).unwrap();
        for (sum, other) in wanted.sums.iter().zip(&head.sums) {
            assert_ne!(sum, other, "equal bytes have equal checksums in two blocks");
        }
    }
    assert_eq!(verify_object(VOLUME, good, 2 * FRAME, &object(VOLUME, good, FRAME)), Err(BlockError::Identity));
}

#[test]
fn equal_frames_of_one_block_have_their_own_checksums() {
    let zeros = vec![0; 64];
    let head = encode_head(VOLUME, id(64), FRAME, &zeros);
    let mut sums = decode_head(VOLUME, id(64), FRAME, &head).unwrap().sums;
    sums.sort_unstable();
    sums.dedup();
    assert_eq!(sums.len(), 4);
}

#[test]
fn parts_are_verified_without_the_rest() {
    let payload = payload(40);
    let head = decode_head(VOLUME, id(40), FRAME, &encode_head(VOLUME, id(40), FRAME, &payload)).unwrap();
    assert_eq!((head.head_len(), head.id()), (head_len(FRAME, 40), id(40)));
    for (first, range) in [(0, 0..40), (0, 0..16), (0, 0..32), (1, 16..32), (1, 16..40), (2, 32..40)] {
        assert_eq!(head.verify(first, &payload[range.clone()]), Ok(()), "{range:?}");
        for at in range.clone() {
            let mut bad = payload.clone();
            bad[at] ^= 1;
            let result = head.verify(first, &bad[range.clone()]);
            assert_eq!(result, Err(BlockError::Frame(at as u32 / FRAME)), "byte {at} of {range:?}");
        }
    }
    // A frame at another place, and runs that are no whole frames.
    assert_eq!(head.verify(1, &payload[..16]), Err(BlockError::Frame(1)));
    for (first, range) in [(0, 0..0), (0, 0..15), (0, 0..33), (2, 32..39), (3, 0..16), (3, 0..0), (u32::MAX, 0..16)] {
        assert_eq!(head.verify(first, &payload[range.clone()]), Err(BlockError::Range), "{first}, {range:?}");
    }
    assert_eq!(head.verify(2, &payload[16..32]), Err(BlockError::Range));
}

#[test]
fn segments_make_no_difference() {
    let payload = Bytes::from(payload(100));
    let whole = encode_head(VOLUME, id(100), FRAME, &payload);
    for step in [1, 3, 15, 16, 17, 50, 100] {
        let mut rest = payload.clone();
        let mut segments = vec![Bytes::new()];
        while !rest.is_empty() {
            segments.push(rest.split_to(step.min(rest.len())));
        }
        assert_eq!(encode_head_segments(VOLUME, id(100), FRAME, &segments), whole, "segments of {step} bytes");
    }
}

#[test]
fn checksums_do_not_change() {
    // What these show is in people's buckets.
    let head = encode_head(VOLUME, id(40), FRAME, &payload(40));
    let sums = decode_head(VOLUME, id(40), FRAME, &head).unwrap().sums;
    assert_eq!(sums, [13641862041903943002, 13643439630455816522, 13933460542269411738]);
    assert_eq!(u64::from_be_bytes(head[CHECKSUM_AT..HEADER_LEN].try_into().unwrap()), 12954145349857528968);
}

#[test]
fn object_keys() {
    let name = |slice, index| object_key(BlockId { slice: SliceId(slice), index, len: 1 });
    assert_eq!(name(0x12345, 6), "blocks/00000012/0000000000012345-00006");
    assert_eq!(lease_prefix(0x12000), "blocks/00000012/");
    for (slice, index) in [(0, 0), (4095, 1), (4096, 0xfffff), (u64::MAX, u32::MAX)] {
        let key = name(slice, index);
        assert_eq!(parse_key(&key), Some((SliceId(slice), index)));
        assert!(key.starts_with(&lease_prefix(slice / LEASE_SLICES * LEASE_SLICES)));
    }
    for key in [
        "",
        "blocks/",
        "blocks/00000012/",
        "blocks/00000012/0000000000012345",
        "blocks/00000012/0000000000012345-6",
        "blocks/00000012/+000000000012345-00006",
        "blocks/00000013/0000000000012345-00006",
        "blocks/00000012/000000000001234A-00006",
        "blocks/00000012/0000000000012345-00006.tmp",
        "/blocks/00000012/0000000000012345-00006",
        VOLUME_OBJECT,
    ] {
        assert_eq!(parse_key(key), None, "{key}");
    }
}

#[test]
fn marker_comes_back_and_damage_is_found() {
    let marker = encode_marker(VOLUME);
    assert_eq!(uuid(VOLUME), "30313233-3435-3637-3839-616263646566");
    assert!(marker.starts_with(b"kiseki volume 1 30313233-3435-3637-3839-616263646566 "));
    assert_eq!(decode_marker(&marker), Ok(VOLUME));
    for at in 0..marker.len() {
        assert!(decode_marker(&marker[..at]).is_err(), "cut to {at} bytes");
        let mut bad = marker.to_vec();
        bad[at] ^= 1;
        assert!(decode_marker(&bad).is_err(), "byte {at} was changed");
    }
    assert_eq!(decode_marker(b"kiseki volume 2 whatever"), Err(DecodeError::Version(2)));
    assert!(decode_marker(&[&marker[..], b"x"].concat()).is_err());
}
