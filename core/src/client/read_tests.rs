//! The pieces that a read answers with.

use alloc::vec::Vec;

use bytes::Bytes;

use super::ReadData;

#[test]
fn pieces_are_counted_and_joined() {
    let cases: [(&[&'static [u8]], &[u8]); 3] =
        [(&[], b""), (&[b"one"], b"one"), (&[b"one", b"and", b"another"], b"oneandanother")];
    for (segments, all) in cases {
        let data =
            ReadData { segments: segments.iter().map(|segment| Bytes::from_static(segment)).collect::<Vec<_>>() };
        assert_eq!((data.len(), data.is_empty()), (all.len(), all.is_empty()));
        assert_eq!(data.into_contiguous(), all);
    }
}
