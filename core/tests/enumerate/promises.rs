//! The sentences of the crash contract (`runtime/SEMANTICS.md`), each on the sequences that it is about: every crash of
//! them is explained, and a mistake that breaks the sentence is noticed on them.

use super::explore::Explorer;
use super::mistakes::Mistake;
use super::sequence;
use super::world::Form;

/// With whatever is in front of the store, every crash of each sequence is explained; each of the mistakes makes one of
/// them fail.
#[track_caller]
fn check(sequences: &[&str], broken_by: &[Mistake]) {
    for form in Form::ALL {
        check_in(form, sequences, broken_by);
    }
}

#[track_caller]
fn check_in(form: Form, sequences: &[&str], broken_by: &[Mistake]) {
    let run = |mistake, text: &str| Explorer::new(mistake).run_one(form, &sequence(text).1);
    for text in sequences {
        run(None, text).unwrap_or_else(|failure| panic!("{failure}"));
    }
    for mistake in broken_by {
        let noticed = sequences.iter().any(|text| run(Some(*mistake), text).is_err());
        assert!(noticed, "{mistake:?} was not noticed ({})", form.name());
    }
}

#[test]
fn fsync_keeps_contents_attributes_and_the_names_that_lead_to_them() {
    check(
        &[
            "create-write(/A/z)+fsync",
            "create-write-inline(/A/z)+fsync",
            "write-and-chmod(/A/x)+fsync",
            "mkdir(/B/y); rename-noreplace-from-/A/x(/B/z)+fsync",
            "link-from-/A/x(/B/z)+fsync; write-head(/A/x)+fsync",
        ],
        &[Mistake::SkipBarrier, Mistake::CommitBeforePut, Mistake::SkipSync, Mistake::SyncBeforeCommit],
    );
}

#[test]
fn fsync_of_a_directory_keeps_what_was_done_in_it() {
    check(
        &[
            "create(/A/z)+fsyncdir",
            "mkdir(/A/z)+fsyncdir",
            "unlink(/A/x)+fsyncdir",
            "rename-noreplace-from-/A/x(/B/z)+fsyncdir",
            "exchange-from-/A/x(/A/y)+fsyncdir",
        ],
        &[Mistake::SkipSync],
    );
}

#[test]
fn a_write_with_o_sync_is_kept_when_it_returns() {
    check(&["write-osync(/A/x)", "write-head(/A/x); write-osync(/A/x)"], &[Mistake::SkipSync, Mistake::SkipBarrier]);
}

#[test]
fn names_after_a_crash_are_those_of_some_moment() {
    check(
        &[
            "create(/A/z); mkdir(/B/y); unlink(/A/y)",
            "rename-noreplace-from-/A/x(/B/z); create(/A/z); rename-from-/A/z(/B/z)",
            "rename-whiteout-from-/A/x(/B/x)",
        ],
        &[Mistake::WhiteoutApart],
    );
}

#[test]
fn contents_after_a_crash_are_a_prefix_of_the_writes() {
    check(
        &[
            "write-head(/A/x); append(/A/x)",
            "write-twice(/A/x)+writeback; write-over-chunk-border(/A/x)",
            "write-and-chmod(/A/x)+writeback",
            "write-head(/A/x)+fsync; truncate-to-20(/A/x); append(/A/x)+writeback",
        ],
        &[Mistake::ChmodOvertakes, Mistake::LengthWithoutSlice],
    );
}

#[test]
fn a_truncate_and_a_longer_length_bring_no_old_byte_back_after_a_crash() {
    check(
        &[
            "truncate-to-20(/A/x)",
            "truncate-to-20(/A/x)+writeback; truncate-to-130(/A/x)+writeback",
            "truncate-to-0(/A/x); write-past-end(/A/x)+writeback",
            "punch(/A/x)+writeback; append(/A/x)",
            "open-truncate(/A/x); write-middle(/A/x)+fsync",
        ],
        &[Mistake::LengthWithoutSlice],
    );
}

#[test]
fn a_rename_over_a_name_leaves_the_old_or_the_new_contents_whole() {
    check(
        &["write-and-rename(/A/x)", "create-write(/A/z); rename-from-/A/z(/A/x)", "write-and-rename(/A/x)+writeback"],
        &[Mistake::RenameDoesNotWait],
    );
}

#[test]
fn an_exchange_leaves_both_files_whole() {
    check(
        &["write-and-exchange(/B/x)", "write-head(/A/x); write-and-exchange(/B/x)"],
        &[Mistake::RenameDoesNotWait, Mistake::ExchangeWaitsForOne],
    );
}

#[test]
fn no_crash_parts_an_acl_from_its_mode() {
    check(
        &[
            "write-and-setfacl(/A/x)+writeback",
            "setfacl-write-chmod(/A/x)+writeback",
            "setfacl-default-and-create(/B/z)",
        ],
        &[Mistake::ChmodOvertakes],
    );
}

#[test]
fn no_crash_takes_what_something_refers_to_and_none_leaves_what_nothing_does() {
    check(
        &[
            "unlink(/A/x)+background",
            "copy-to-/A/y-from(/A/x)+fsync; unlink(/A/x)+background",
            "hold-and-unlink(/A/x)",
            "write-all(/A/x)+writeback; unlink(/A/x)+background",
        ],
        &[Mistake::DeleteBeforeSync, Mistake::ForgetBeforeDelete, Mistake::KeepOrphans, Mistake::KeepUncommitted],
    );
}

#[test]
fn what_was_synced_in_the_log_is_kept_until_the_store_has_it() {
    let sequences = [
        "mkdir(/B/y); create-write(/A/z)+fsync",
        "write-all(/A/x)+fsync; append(/A/x)+writeback",
        // So many syncs that there is another segment, and one that goes.
        "write-middle(/A/x)+fsync; write-head(/B/x)+fsync; write-all(/A/x)+fsync; mkdir(/B/y)+background",
    ];
    check_in(Form::Logged, &sequences, &[Mistake::BarrierLeavesLog, Mistake::DirectUncovered, Mistake::TornAccepted]);
    check_in(Form::Logged, &sequences, &[Mistake::SegmentBeforeBarrier]);
    check_in(Form::Packed, &sequences, &[Mistake::BarrierLeavesLog, Mistake::PackUnsynced, Mistake::PackUnannounced]);
}

#[test]
fn what_was_deleted_stays_away_and_takes_nothing_else_along() {
    let sequences = [
        "create-write(/A/z)+fsync; unlink(/A/z)+background",
        "create-write(/A/z)+writeback; unlink(/A/z)+background",
        "unlink-and-use(/A/x)+background",
        "write-all(/A/x)+background; unlink(/B/x)+background",
    ];
    check_in(Form::Logged, &sequences, &[Mistake::DeleteUnrecorded, Mistake::DeleteWithoutBarrier]);
    check_in(Form::Packed, &sequences, &[Mistake::DeleteUnrecorded, Mistake::DeleteWithoutBarrier]);
    check_in(Form::Packed, &sequences, &[Mistake::PackDeletedInUse, Mistake::PackForgottenFirst]);
}

#[test]
fn a_pack_is_mostly_in_use() {
    let sequences = [
        "create-write(/A/z); write-head(/A/x)+writeback; create-write(/A/z)+background",
        "write-all(/A/x)+background; unlink(/A/x)+background",
    ];
    check_in(Form::Packed, &sequences, &[Mistake::ThinUnweighed]);
}
