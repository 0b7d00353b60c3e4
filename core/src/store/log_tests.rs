use alloc::format;
use alloc::vec;

use super::*;

const NOW: Duration = Duration::from_secs(1);

fn body(len: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![1; len])]
}

fn log() -> Log {
    let mut log = Log::new(VolumeId([1; 16]), 1, 1 << 20, 1 << 30);
    make_segment(&mut log);
    log
}

/// The segment that takes records is full.
fn fill(log: &mut Log) {
    log.segments.values_mut().for_each(|segment| segment.closed = true);
}

fn make_segment(log: &mut Log) {
    fill(log);
    let head = log.begin_segment().expect("no other is made");
    log.handle_segment(head, true);
}

fn slot(log: &mut Log, key: &str) -> Slot {
    let Place::At(slot) = log.reserve(Kind::Put, key, &body(100)) else { panic!("there is no place") };
    slot
}

fn stage(log: &mut Log, key: &str) {
    let slot = slot(log, key);
    assert!(log.handle_written(NOW, &slot, Kind::Put, key, &body(100)));
    log.check();
}

fn uploads(log: &mut Log, now: Duration, max: usize) -> Vec<String> {
    log.set_pace(Pace::steady(max));
    core::iter::from_fn(|| log.next_upload(now)).map(|upload| upload.key).collect()
}

#[test]
fn objects_are_put_in_the_order_in_which_they_were_staged() {
    let mut log = log();
    for key in ["c", "a", "b", "d"] {
        stage(&mut log, key);
    }
    assert_eq!(uploads(&mut log, NOW, 2), ["c", "a"]);
    log.handle_upload(NOW, "c", false);
    log.handle_upload(NOW, "a", true);
    assert_eq!(uploads(&mut log, NOW, 2), ["b", "d"], "what has failed waits for its turn");
    log.handle_upload(NOW, "b", true);
    let due = log.retry_at(NOW).expect("it is tried again");
    assert_eq!(uploads(&mut log, due, 2), ["c"]);
    log.check();
}

#[test]
fn few_are_put_while_others_come_and_there_is_room() {
    let quiet_after = Duration::from_millis(200);
    let pace = Pace { uploads: 3, beside: 1, quiet_after, burst: Duration::ZERO };
    let started = |log: &mut Log, now| core::iter::from_fn(|| log.next_upload(now)).count();
    let mut log = log();
    log.set_pace(pace);
    for key in ["a", "b", "c", "d"] {
        stage(&mut log, key);
    }
    assert_eq!(started(&mut log, NOW), 1);
    log.note_use(NOW + quiet_after);
    assert_eq!(started(&mut log, NOW + quiet_after), 0, "somebody reads");
    log.handle_upload(NOW, "a", true);
    assert_eq!(started(&mut log, NOW + 2 * quiet_after), 2, "nobody uses the log");
    let mut log = Log::new(VolumeId([1; 16]), 1, 1 << 20, 9_000);
    make_segment(&mut log);
    log.set_pace(pace);
    for number in 0..5 {
        stage(&mut log, &format!("{number}"));
    }
    assert_eq!(started(&mut log, NOW), 3, "more than half of the log is in use");
}

#[test]
fn none_is_put_in_a_burst_until_it_has_lasted() {
    let quiet_after = Duration::from_millis(200);
    let mut log = log();
    log.set_pace(Pace { uploads: 3, beside: 1, quiet_after, burst: 2 * quiet_after });
    for key in ["a", "b", "c", "d"] {
        stage(&mut log, key);
    }
    assert_eq!(log.next_upload(NOW), None);
    assert_eq!(log.retry_at(NOW), Some(NOW + quiet_after), "then there was a pause");
    for tenths in 1..4 {
        let now = NOW + tenths * quiet_after / 2;
        log.note_use(now);
        assert_eq!(
            (log.next_upload(now), log.retry_at(now)),
            (None, Some((now + quiet_after).min(NOW + 2 * quiet_after)))
        );
    }
    let now = NOW + 2 * quiet_after;
    assert!(log.next_upload(now).is_some() && log.next_upload(now).is_none(), "the burst has lasted");
    assert_eq!(log.retry_at(now), None);
    log.handle_upload(now, "a", true);
    let now = now + quiet_after;
    assert!(log.next_upload(now).is_some() && log.next_upload(now).is_some(), "the burst is over");
    log.note_use(now);
    assert_eq!(log.next_upload(now), None, "another has begun");
}

#[test]
fn more_and_more_are_put_when_the_machine_is_left_alone() {
    let quiet_after = Duration::from_millis(200);
    let mut log = log();
    log.set_pace(Pace { uploads: 3, beside: 1, quiet_after, burst: Duration::ZERO });
    for number in 0..9 {
        stage(&mut log, &format!("{number}"));
    }
    let started = |log: &mut Log, now| -> Vec<String> {
        core::iter::from_fn(|| log.next_upload(now)).map(|upload| upload.key).collect()
    };
    let quiet = NOW + quiet_after;
    assert_eq!(started(&mut log, quiet), ["0"]);
    log.handle_upload(quiet, "0", true);
    assert_eq!(started(&mut log, quiet), ["1", "2"]);
    log.handle_upload(quiet, "1", false);
    log.handle_upload(quiet, "2", true);
    assert_eq!(started(&mut log, quiet), ["3", "4", "5"], "never more than there may be");
    log.note_use(quiet);
    for key in ["3", "4", "5"] {
        log.handle_upload(quiet, key, true);
    }
    assert_eq!(started(&mut log, quiet), ["6"], "somebody uses the machine");
    log.set_pace(Pace::steady(3));
    assert_eq!(started(&mut log, quiet), ["7", "8"], "and is in a hurry");
}

#[test]
fn what_fails_is_passed_by_a_few_others_at_most() {
    let mut log = log();
    for number in 0..200 {
        stage(&mut log, &format!("{number:03}"));
    }
    let mut tried = 0;
    while let Some(upload) = log.next_upload(NOW) {
        tried += 1;
        log.handle_upload(NOW, &upload.key, false);
    }
    assert_eq!(tried, AHEAD);
}

#[test]
fn what_is_deleted_before_its_time_is_never_put() {
    let mut log = log();
    log.set_delays(Duration::from_secs(2), Duration::ZERO);
    stage(&mut log, "a");
    assert_eq!(uploads(&mut log, NOW, 4), [""; 0]);
    assert_eq!(log.retry_at(NOW), Some(NOW + Duration::from_secs(2)));
    assert!(log.begin_delete("a"), "its record is there");
    assert_eq!(uploads(&mut log, 4 * NOW, 4), [""; 0]);
    log.end_delete("a");
    assert_eq!(log.find("a"), None);
    assert!(log.is_drained());
    log.check();
}

#[test]
fn a_body_leaves_memory_with_the_sync_that_covers_it() {
    let mut log = log();
    stage(&mut log, "a");
    let plan = log.plan_sync().expect("there is something");
    stage(&mut log, "b");
    log.handle_synced(&plan);
    assert!(matches!(log.find("a"), Some((BytesAt::Disk { .. }, 100))));
    assert!(matches!(log.find("b"), Some((BytesAt::Memory(_), 100))));
    assert_eq!(log.plan_sync().expect("b is not covered").segments, [1]);
}

#[test]
fn records_do_not_claim_what_a_write_under_way_leaves_open() {
    let mut log = log();
    let late = slot(&mut log, "late");
    stage(&mut log, "a");
    let plan = log.plan_sync().expect("there is something");
    log.handle_synced(&plan);
    assert_eq!(log.frontier, Frontier { segment: 1, at: late.at });
    assert!(log.handle_written(NOW, &late, Kind::Put, "late", &body(100)));
    let plan = log.plan_sync().expect("there is something");
    let end = log.segments[&1].end;
    log.handle_synced(&plan);
    assert_eq!(log.frontier, Frontier { segment: 1, at: end });
    // A write that fails leaves a hole for good, and the segment takes no more.
    let failed = slot(&mut log, "failed");
    log.handle_write_failed(&failed);
    assert_eq!(log.reserve(Kind::Put, "b", &body(100)), Place::NeedSegment);
    assert_eq!(log.begin_segment().expect("no other is made").before, end);
}

#[test]
fn a_failed_sync_gives_back_all_that_none_has_covered() {
    let mut log = log();
    stage(&mut log, "kept");
    let plan = log.plan_sync().expect("there is something");
    log.handle_synced(&plan);
    stage(&mut log, "a");
    let late = slot(&mut log, "late");
    let plan = log.plan_sync().expect("there is something");
    stage(&mut log, "b");
    let lost = log.handle_sync_failed(&plan);
    log.check();
    assert_eq!(lost, [Lost::Put("a".to_owned(), body(100)), Lost::Put("b".to_owned(), body(100))]);
    assert!(!log.handle_written(NOW, &late, Kind::Put, "late", &body(100)), "it went into the failed segment");
    make_segment(&mut log);
    for key in ["a", "b", "late"] {
        assert!(log.find(key).is_some() != (key == "late"));
        stage(&mut log, key);
    }
    assert_eq!(uploads(&mut log, NOW, 9), ["kept", "a", "b", "late"]);
}

/// Its header said that all of the one before it was written, and that took for damage what a failed sync had lost.
#[test]
fn a_segment_made_during_a_failed_sync_is_not_used() {
    let mut log = log();
    stage(&mut log, "a");
    let plan = log.plan_sync().expect("there is something");
    fill(&mut log);
    let head = log.begin_segment().expect("no other is made");
    assert!(RECORDS_AT < head.before);
    log.handle_sync_failed(&plan);
    log.handle_segment(head, true);
    assert_eq!(log.reserve(Kind::Put, "b", &body(100)), Place::NeedSegment);
    assert_eq!(log.begin_segment().expect("no other is made").before, 0);
}

#[test]
fn what_is_stored_again_is_not_deleted_meanwhile() {
    let mut log = log();
    stage(&mut log, "a");
    assert!(!log.begin_restore("a"), "it is not lost");
    let plan = log.plan_sync().expect("there is something");
    log.handle_sync_failed(&plan);
    assert!(log.begin_restore("a"));
    log.begin_delete("a");
    assert!(log.is_uploading("a"), "whoever deletes it waits");
    assert!(!log.is_lost("a"), "whoever stores it again stops");
    log.end_restore();
    assert!(!log.is_uploading("a"));
    log.end_delete("a");
    assert!(!log.begin_restore("a"));
    log.check();
}

/// No segment holds a record of it, and still it is in the log: such a delete has left it there for good.
#[test]
fn what_a_failed_sync_has_lost_can_be_deleted() {
    let mut log = log();
    stage(&mut log, "a");
    let plan = log.plan_sync().expect("there is something");
    assert_eq!(log.handle_sync_failed(&plan).len(), 1);
    let (number, _) = log.removable(false).expect("nothing is left in the segment");
    log.handle_removed(number, false);
    assert!(!log.begin_delete("a"), "a record to be taken back");
    assert!(!log.is_drained());
    log.end_delete("a");
    assert!(log.is_drained());
    log.check();
}

#[test]
fn segments_go_in_order_and_only_without_objects() {
    let mut log = log();
    stage(&mut log, "a");
    let failed = slot(&mut log, "x");
    log.handle_write_failed(&failed);
    make_segment(&mut log);
    stage(&mut log, "b");
    assert_eq!(uploads(&mut log, NOW, 9), ["a", "b"]);
    log.handle_upload(NOW, "b", true);
    log.handle_settled(&log.plan_settle());
    assert_eq!(log.removable(true), None, "a is in the first segment only");
    log.handle_upload(NOW, "a", true);
    assert_eq!(log.removable(true), None, "no barrier has covered a");
    log.handle_settled(&log.plan_settle());
    assert_eq!(log.removable(false), Some((1, false)));
    // Its record is there as long as the segment is.
    assert!(log.begin_delete("a"));
    log.end_delete("a");
    log.handle_removed(1, false);
    assert!(!log.begin_delete("a"));
    assert_eq!(log.removable(false), None, "the second takes records");
    assert_eq!(log.removable(true), Some((2, false)));
    log.check();
}

#[test]
fn a_full_log_takes_deletes_alone() {
    let mut log = Log::new(VolumeId([1; 16]), 1, 1 << 20, RECORDS_AT + 500);
    make_segment(&mut log);
    stage(&mut log, "a");
    stage(&mut log, "b");
    stage(&mut log, "c");
    assert_eq!(log.reserve(Kind::Put, "d", &body(100)), Place::Full);
    assert!(matches!(log.reserve(Kind::Delete, "a", &[]), Place::At(_)));
}

/// Has what was staged in the store for good.
fn settle(log: &mut Log, key: &str) {
    assert_eq!(uploads(log, NOW, 9), [key]);
    log.handle_upload(NOW, key, true);
    log.handle_settled(&log.plan_settle());
    log.check();
}

#[test]
fn what_the_store_has_is_found_where_it_was_as_long_as_that_can_be_read() {
    let mut log = log();
    for key in ["a", "b", "gone", "wrong"] {
        stage(&mut log, key);
        settle(&mut log, key);
        make_segment(&mut log);
    }
    assert_eq!(log.find("a"), None);
    let (segment, at) = log.find_kept("a", &(10..20)).expect("its segment is there");
    assert_eq!((segment, at.end - at.start), (1, 10));
    assert_eq!(log.find_kept("a", &(10..101)), None, "it is not so long");
    log.give_up_kept("wrong");
    assert_eq!(log.find_kept("wrong", &(0..1)), None);
    log.begin_delete("gone");
    assert_eq!(log.find_kept("gone", &(0..1)), None);
    log.end_delete("gone");
    while let Some((number, _)) = log.removable(true) {
        log.handle_removed(number, true);
        log.check();
    }
    assert_eq!(log.find_kept("a", &(10..20)), Some((1, at)));
    assert_eq!(log.find_kept("wrong", &(0..1)), None);
    assert!(log.kept_bytes() > 0);
    // Nothing is read from the segments of the others, and from the last.
    assert!(log.has_release());
    let released: Vec<u64> = core::iter::from_fn(|| log.next_release()).collect();
    assert_eq!(released, [5, 4, 3]);
    log.begin_delete("b");
    log.check();
    assert_eq!((log.next_release(), log.next_release()), (Some(2), None));
    assert!(log.give_up_segment(1) && !log.give_up_segment(1));
    assert_eq!((log.find_kept("a", &(0..1)), log.kept_bytes()), (None, 0));
    log.check();
}

#[test]
fn segments_without_a_name_make_room_for_records() {
    let mut log = Log::new(VolumeId([1; 16]), 1, 10_000, 40_000);
    let mut released = 0;
    for number in 0..1000 {
        let key = format!("{number}");
        let slot = loop {
            if let Place::At(slot) = log.reserve(Kind::Put, &key, &body(100)) {
                break slot;
            }
            while let Some(segment) = log.next_release() {
                released += 1;
                assert_eq!(segment, released, "the oldest goes first");
            }
            assert!(log.kept_bytes() + log.backlog().log_bytes + 10_000 <= 40_000);
            make_segment(&mut log);
        };
        assert!(log.handle_written(NOW, &slot, Kind::Put, &key, &body(100)));
        settle(&mut log, &key);
        while let Some((segment, _)) = log.removable(false) {
            log.handle_removed(segment, true);
        }
    }
    assert!(released > 5 && log.kept_bytes() > 0);
}

#[test]
fn a_long_body_stays_in_memory_until_it_is_put_while_others_hold_it() {
    let mut log = log();
    log.set_held(1000);
    let payloads = [990, 1000, 1000].map(|len| Bytes::from(vec![7; len]));
    for (key, payload) in ["short", "kept", "evicted"].into_iter().zip(&payloads) {
        let body = [Bytes::from_static(b"head"), payload.clone()];
        let Place::At(slot) = log.reserve(Kind::Put, key, &body) else { panic!("there is no place") };
        assert!(log.handle_written(NOW, &slot, Kind::Put, key, &body));
    }
    let in_memory = |log: &Log| {
        let all = ["short", "kept", "evicted"];
        all.map(|key| matches!(log.find(key), Some((BytesAt::Memory(_), _))))
    };
    let [_short, kept, evicted] = payloads;
    log.trim();
    assert_eq!(in_memory(&log), [true; 3], "no sync covers them");
    let sync = log.plan_sync().expect("there is something to sync");
    log.handle_synced(&sync);
    assert_eq!(in_memory(&log), [false, true, true]);
    drop(evicted);
    log.trim();
    assert_eq!(in_memory(&log), [false, true, false]);
    assert_eq!(uploads(&mut log, NOW, 3), ["short", "kept", "evicted"]);
    for key in ["short", "kept", "evicted"] {
        log.handle_upload(NOW, key, true);
    }
    let put = log.plan_settle();
    log.handle_settled(&put);
    assert!(kept.is_unique(), "it is put");
    log.trim();
    assert!(log.held.is_empty());
    log.check();
}

#[test]
fn who_comes_late_makes_no_segment_beside_the_one_that_takes_records() {
    let mut log = Log::new(VolumeId([1; 16]), 1, 1 << 20, 1 << 30);
    for _ in 0..2 {
        assert_eq!(log.reserve(Kind::Put, "a", &body(100)), Place::NeedSegment);
    }
    make_segment(&mut log);
    assert_eq!(log.begin_segment(), None);
    stage(&mut log, "a");
}
