//! What every `Disk` of a write-back log must do, real or simulated; and what a power cut may leave of one.
//!
//! Owns: the checks, which panic with what was broken. They want an empty folder on a disk that does not fail on
//! purpose.
//! Leaves to others: making disks, executors, and the cut between `write_before_cut` and `check_after_cut`. It is async
//! because the disk that it drives is; it waits for nothing but the disk.
//!
//! - Bytes that a sync has covered are left, whatever else was written to the segment; and so is its name.
//! - Of other writes any byte is left or not, on its own; what is not left reads as zeros. The length may be any that
//!   holds what is left; behind what was written there are zeros.
//! - A segment that was removed is not left. One that was made and never synced is left or not.
//! - The owner's file is the old or the new one, whole; the new one once `set_owner` has returned.
//!
//! A call that fails ends the course: the power is gone. Whether it had its effect, the verdict leaves open; and that of
//! a call that returned when the cut had begun.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use bytes::Bytes;

use super::power_cut::{Dice, Power};
use crate::client::wait::join_all;
use crate::env::{Disk, DiskError};

const PAGE: u64 = 4096;
/// Longest write of a course: several pages, so that a part of it could be left.
const WRITE_MAX: u64 = 20_000;

/// All checks that hold for every disk. Async, as everything here: the disk that it drives is.
pub async fn run<D: Disk>(disk: &D) {
    an_empty_folder(disk).await;
    what_was_written_is_read(disk).await;
    bodies_of_any_shape(disk).await;
    writes_anywhere(disk).await;
    segments_are_listed_in_order(disk).await;
    what_is_made_again_is_empty(disk).await;
    what_was_removed_is_gone(disk).await;
    what_was_detached_is_read_until_its_release(disk).await;
    what_was_set_aside_is_not_shown(disk).await;
    owners_take_each_others_place(disk).await;
    many_at_once(disk).await;
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 251 + seed) as u8).collect()
}

async fn create<D: Disk>(disk: &D, segment: u64) {
    disk.create(segment).await.unwrap_or_else(|error| panic!("create {segment}: {error:?}"));
}

async fn write<D: Disk>(disk: &D, segment: u64, at: u64, body: Vec<Bytes>) {
    disk.write(segment, at, body).await.unwrap_or_else(|error| panic!("write to {segment} at {at}: {error:?}"));
}

async fn sync<D: Disk>(disk: &D, segment: u64) {
    disk.sync(segment).await.unwrap_or_else(|error| panic!("sync {segment}: {error:?}"));
}

async fn remove<D: Disk>(disk: &D, segment: u64) {
    disk.remove(segment).await.unwrap_or_else(|error| panic!("remove {segment}: {error:?}"));
}

async fn expect<D: Disk>(disk: &D, segment: u64, at: u64, wanted: &[u8]) {
    match disk.read(segment, at..at + wanted.len() as u64).await {
        Ok(found) => assert!(found == wanted, "segment {segment} at {at}: other bytes than were written"),
        Err(error) => panic!("read {segment} at {at}: {error:?}"),
    }
}

async fn listed<D: Disk>(disk: &D) -> Vec<(u64, u64)> {
    disk.segments().await.unwrap_or_else(|error| panic!("segments: {error:?}"))
}

async fn an_empty_folder<D: Disk>(disk: &D) {
    assert_eq!(listed(disk).await, [], "segments of an empty folder");
    assert_eq!(disk.owner().await, Ok(None), "owner of an empty folder");
    assert_eq!(disk.read(1, 0..1).await, Err(DiskError::Missing), "a read of no segment");
    assert_eq!(disk.write(1, 0, vec![Bytes::from_static(b"x")]).await, Err(DiskError::Missing), "a write to none");
    remove(disk, 1).await;
}

async fn what_was_written_is_read<D: Disk>(disk: &D) {
    create(disk, 1).await;
    assert_eq!(listed(disk).await, [(1, 0)], "a new segment is empty");
    let body = pattern(100_000, 1);
    write(disk, 1, 0, vec![Bytes::copy_from_slice(&body)]).await;
    for round in 0..2 {
        assert_eq!(listed(disk).await, [(1, 100_000)], "length of a segment");
        for range in [0..1, 0..100_000, 1..2, 4095..4097, 65_536..65_600, 99_999..100_000] {
            expect(disk, 1, range.start as u64, &body[range.clone()]).await;
        }
        for range in [99_999..100_001, 100_000..100_001, 200_000..200_010] {
            let found = disk.read(1, range.clone()).await;
            assert_eq!(found, Err(DiskError::Missing), "range {range:?} of a segment of 100000 bytes");
        }
        if round == 0 {
            sync(disk, 1).await;
        }
    }
    sync(disk, 1).await;
    remove(disk, 1).await;
}

async fn bodies_of_any_shape<D: Disk>(disk: &D) {
    let empty = Bytes::new();
    let pieces: Vec<Bytes> = (0..3000).map(|index| Bytes::from(pattern(index % 7, index))).collect();
    let shapes = [
        vec![empty.clone(), Bytes::from_static(b"x"), empty.clone(), Bytes::from_static(b"yz"), empty],
        pieces,
        vec![pattern(3 << 20, 2).into(), pattern(1 << 20, 3).into()],
    ];
    create(disk, 2).await;
    let mut at = 0;
    for body in shapes {
        let whole = body.concat();
        write(disk, 2, at, body).await;
        expect(disk, 2, at, &whole).await;
        at += whole.len() as u64;
    }
    sync(disk, 2).await;
    remove(disk, 2).await;
}

async fn writes_anywhere<D: Disk>(disk: &D) {
    create(disk, 3).await;
    write(disk, 3, 10_000, vec![Bytes::from_static(b"behind")]).await;
    expect(disk, 3, 0, &[0; 10_000]).await;
    write(disk, 3, 4090, vec![pattern(20, 5).into()]).await;
    expect(disk, 3, 4080, &[&[0; 10][..], &pattern(20, 5), &[0; 10]].concat()).await;
    sync(disk, 3).await;
    // In front of what is there, and behind.
    write(disk, 3, 0, vec![Bytes::from_static(b"head")]).await;
    write(disk, 3, 300_000, vec![Bytes::from_static(b"far")]).await;
    expect(disk, 3, 0, b"head\0").await;
    expect(disk, 3, 10_000, b"behind\0").await;
    expect(disk, 3, 299_999, b"\0far").await;
    assert_eq!(listed(disk).await, [(3, 300_003)]);
    sync(disk, 3).await;
    remove(disk, 3).await;
}

async fn segments_are_listed_in_order<D: Disk>(disk: &D) {
    for (segment, len) in [(9, 1), (100, 2), (10, 3), (u64::from(u32::MAX) + 5, 4)] {
        create(disk, segment).await;
        write(disk, segment, 0, vec![pattern(len, 6).into()]).await;
    }
    let all = [(9, 1), (10, 3), (100, 2), (u64::from(u32::MAX) + 5, 4)];
    assert_eq!(listed(disk).await, all, "segments are not in the order of their numbers");
    for (segment, _) in all {
        remove(disk, segment).await;
    }
    assert_eq!(listed(disk).await, []);
}

async fn what_is_made_again_is_empty<D: Disk>(disk: &D) {
    create(disk, 4).await;
    write(disk, 4, 0, vec![pattern(10_000, 7).into()]).await;
    sync(disk, 4).await;
    create(disk, 4).await;
    assert_eq!(listed(disk).await, [(4, 0)], "a segment that was made again");
    write(disk, 4, 100, vec![Bytes::from_static(b"new")]).await;
    sync(disk, 4).await;
    expect(disk, 4, 90, b"\0\0\0\0\0\0\0\0\0\0new").await;
    remove(disk, 4).await;
}

async fn what_was_removed_is_gone<D: Disk>(disk: &D) {
    create(disk, 5).await;
    write(disk, 5, 0, vec![Bytes::from_static(b"gone")]).await;
    remove(disk, 5).await;
    remove(disk, 5).await;
    assert_eq!(listed(disk).await, []);
    assert_eq!(disk.read(5, 0..1).await, Err(DiskError::Missing));
}

async fn what_was_detached_is_read_until_its_release<D: Disk>(disk: &D) {
    create(disk, 7).await;
    let body = pattern(300_000, 7);
    write(disk, 7, 0, vec![Bytes::copy_from_slice(&body)]).await;
    sync(disk, 7).await;
    for again in 0..2 {
        disk.detach(7).await.unwrap_or_else(|error| panic!("detach, {again}: {error:?}"));
        assert_eq!(listed(disk).await, []);
        // Where the disk has no room it may be gone at once.
        match disk.read(7, 5000..250_000).await {
            Ok(found) => assert!(found == body[5000..250_000], "other bytes than were written"),
            Err(error) => assert_eq!(error, DiskError::Missing),
        }
    }
    disk.release(7).await;
    assert_eq!(disk.read(7, 0..1).await, Err(DiskError::Missing));
    disk.detach(7).await.unwrap_or_else(|error| panic!("detach of none: {error:?}"));
}

async fn what_was_set_aside_is_not_shown<D: Disk>(disk: &D) {
    create(disk, 6).await;
    write(disk, 6, 0, vec![Bytes::from_static(b"damaged")]).await;
    disk.set_aside(6).await.expect("set aside");
    assert_eq!(listed(disk).await, [], "what was set aside is shown");
    assert_eq!(disk.read(6, 0..1).await, Err(DiskError::Missing));
}

async fn owners_take_each_others_place<D: Disk>(disk: &D) {
    for owner in [b"first".as_slice(), b"the second", b"3"] {
        disk.set_owner(Bytes::copy_from_slice(owner)).await.expect("set the owner");
        assert_eq!(disk.owner().await, Ok(Some(Bytes::copy_from_slice(owner))));
    }
    assert_eq!(listed(disk).await, [], "the owner's file is not a segment");
}

async fn many_at_once<D: Disk>(disk: &D) {
    create(disk, 7).await;
    create(disk, 8).await;
    let tasks = (0..40).map(|task: usize| async move {
        let (segment, at) = (7 + task as u64 % 2, task as u64 * 10_000);
        let body = pattern(9_000 + task, task);
        write(disk, segment, at, vec![body.clone().into()]).await;
        if task.is_multiple_of(3) {
            sync(disk, segment).await;
        }
        expect(disk, segment, at, &body).await;
    });
    join_all(tasks).await;
    for task in 0..40 {
        expect(disk, 7 + task as u64 % 2, task as u64 * 10_000, &pattern(9_000 + task, task)).await;
    }
    remove(disk, 7).await;
    remove(disk, 8).await;
}

/// What is known of a segment.
#[derive(Clone, Debug, Default)]
struct Past {
    /// As the last sync left it, if there was one.
    synced: Option<Vec<u8>>,
    /// Writes since, which do not overlap.
    writes: Vec<(u64, Vec<u8>)>,
    /// Where the last write ends.
    end: u64,
    /// Its removal was begun.
    going: bool,
}

/// What was done to a disk before the cut.
#[derive(Clone, Debug, Default)]
pub struct DiskPast {
    segments: BTreeMap<u64, Past>,
    /// What the owner's file may be.
    owners: Vec<Option<Bytes>>,
}

/// What a cut has left of what was open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Left {
    /// Writes that are left whole, in part, and not at all, in segments that are left.
    pub whole: u64,
    /// See `whole`.
    pub torn: u64,
    /// See `whole`.
    pub none: u64,
    /// Segments that were never synced, or that were being removed, and are left.
    pub kept: u64,
    /// Those of them that are not.
    pub gone: u64,
}

/// Makes `calls` calls, drawn from `seed`, on an empty folder; the first write is synced. `power` goes off before the
/// cut begins.
pub async fn write_before_cut<D: Disk>(disk: &D, seed: u64, calls: u64, power: &Power) -> DiskPast {
    let mut past = DiskPast { owners: vec![None], ..DiskPast::default() };
    let mut dice = Dice(seed);
    let mut next = 1;
    for call in 0..calls {
        let choice = if call < 3 { call } else { dice.below(10) };
        let count = past.segments.len().max(1) as u64;
        let some = past.segments.keys().copied().nth(dice.below(count) as usize);
        let done = match (choice, some) {
            (2 | 3, Some(number)) => {
                let done = disk.sync(number).await.is_ok();
                if !done || !power.returned() {
                    return past;
                }
                past.segments.get_mut(&number).expect("it was chosen").cover();
                continue;
            }
            (4, _) => {
                let owner = Bytes::from(format!("owner {seed} {call}"));
                past.owners.push(Some(owner.clone()));
                let done = disk.set_owner(owner).await.is_ok();
                if !done || !power.returned() {
                    return past;
                }
                past.owners.drain(..past.owners.len() - 1);
                continue;
            }
            (5, Some(number)) if past.segments.len() > 1 => {
                past.segments.get_mut(&number).expect("it was chosen").going = true;
                let done = disk.remove(number).await.is_ok();
                if !done || !power.returned() {
                    return past;
                }
                past.segments.remove(&number);
                continue;
            }
            (1 | 6.., Some(number)) => {
                let segment = past.segments.get_mut(&number).expect("it was chosen");
                // As records are: side by side, but what was synced is in pages of its own.
                let at = segment.end.next_multiple_of(if segment.writes.is_empty() { PAGE } else { 8 });
                let len = 1 + dice.below(WRITE_MAX);
                // No zeros, which are what is not left.
                let bytes: Vec<u8> = (0..len).map(|_| 1 + dice.below(255) as u8).collect();
                let middle = bytes.len() / 2;
                let body = vec![Bytes::copy_from_slice(&bytes[..middle]), Bytes::copy_from_slice(&bytes[middle..])];
                segment.end = at + len;
                segment.writes.push((at, bytes));
                disk.write(number, at, body).await.is_ok()
            }
            (_, _) => {
                past.segments.insert(next, Past::default());
                next += 1;
                disk.create(next - 1).await.is_ok()
            }
        };
        if !done || !power.returned() {
            return past;
        }
    }
    past
}

impl Past {
    fn cover(&mut self) {
        let synced = self.synced.get_or_insert_with(Vec::new);
        for (at, bytes) in self.writes.drain(..) {
            synced.resize(at as usize, 0);
            synced.extend(bytes);
        }
    }

    /// What is left of a write.
    fn judge(number: u64, found: &[u8], at: u64, bytes: &[u8], left: &mut Left) {
        let start = (at as usize).min(found.len());
        let found = &found[start..(start + bytes.len()).min(found.len())];
        let mut there = 0;
        for (index, byte) in found.iter().enumerate() {
            let old = *byte == 0;
            assert!(
                old || *byte == bytes[index],
                "segment {number}, byte {}: neither old nor new",
                at as usize + index
            );
            there += usize::from(!old);
        }
        match there {
            0 => left.none += 1,
            there if there == bytes.len() => left.whole += 1,
            _ => left.torn += 1,
        }
    }
}

/// Checks what the cut has left; the disk was opened again. Panics if it is nothing that a power cut may leave.
pub async fn check_after_cut<D: Disk>(disk: &D, past: &DiskPast) -> Left {
    let mut left = Left::default();
    let owner = disk.owner().await.expect("the owner can be read");
    assert!(past.owners.contains(&owner), "owner {owner:?} is left, it may be: {:?}", past.owners);
    let mut found: BTreeMap<u64, u64> = listed(disk).await.into_iter().collect();
    for (number, past) in &past.segments {
        let open = past.synced.is_none() || past.going;
        let Some(len) = found.remove(number) else {
            assert!(open, "segment {number} was synced and is not left");
            left.gone += 1;
            continue;
        };
        left.kept += u64::from(open);
        let synced = past.synced.as_deref().unwrap_or_default();
        assert!(synced.len() as u64 <= len, "segment {number} is left with {len} bytes, {} were synced", synced.len());
        let bytes = disk.read(*number, 0..len).await.expect("what is left can be read");
        assert!(bytes.starts_with(synced), "segment {number}: other bytes than were synced");
        let mut at = synced.len();
        for (start, written) in &past.writes {
            let between = at.min(bytes.len())..(*start as usize).min(bytes.len());
            assert!(bytes[between].iter().all(|byte| *byte == 0), "segment {number}: bytes that nobody wrote");
            Past::judge(*number, &bytes, *start, written, &mut left);
            at = *start as usize + written.len();
        }
        let behind = &bytes[at.min(bytes.len())..];
        assert!(behind.iter().all(|byte| *byte == 0), "segment {number}: bytes behind all that was written");
    }
    assert!(found.is_empty(), "segments are left that were removed or never made: {found:?}");
    left
}
