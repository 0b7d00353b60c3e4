use kiseki_core::types::VolumeId;

use super::*;

/// A segment with a record at `PAGE`, and perhaps with its header.
fn file(number: u64, record: &Bytes, with_head: bool) -> File {
    let at = PAGE as usize;
    let head = Head { volume: VolumeId([7; 16]), epoch: 1, number, before: 0 };
    let encoded = head.encode();
    let mut bytes = vec![0; at + record.len()];
    if with_head {
        bytes[..encoded.len()].copy_from_slice(&encoded);
    }
    bytes[at..].copy_from_slice(record);
    File { bytes, head: Some((head, encoded)), ..File::default() }
}

#[test]
fn a_record_in_a_segment_without_its_header_is_not_found() {
    let whole = Bytes::from_static(b"a record");
    let place = |segment| Place { segment, at: PAGE, whole: whole.clone(), body_len: 1 };
    let mut state = State::default();
    state.files.insert(1, file(1, &whole, true));
    state.files.insert(2, file(2, &whole, false));
    state.places.insert("key".to_string(), vec![place(1), place(2)]);
    state.forget(Place::is_found_in);
    assert_eq!(state.found(), BTreeSet::from(["key".to_string()]));
    // The one that is found was the last.
    assert_eq!(state.forget(|place, _| place.segment != 1), ["key"]);
}
