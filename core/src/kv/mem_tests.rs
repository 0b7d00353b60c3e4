use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use super::*;

fn set(kv: &mut MemKv, pairs: &[(&str, Option<&str>)]) -> TxnSeq {
    let mut txn = kv.begin();
    for (key, value) in pairs {
        match value {
            Some(value) => txn.put(key.as_bytes(), value.as_bytes()),
            None => txn.delete(key.as_bytes()),
        }
    }
    let seq = kv.commit(txn.finish()).unwrap();
    kv.check();
    seq
}

fn show(mut txn: MemTxn<'_>) -> String {
    let pairs = txn.scan(b"", b"\xff", usize::MAX).unwrap();
    let text = pairs.iter().map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii()));
    text.collect::<Vec<_>>().join(" ")
}

#[test]
fn snapshot_does_not_see_later_commits() {
    let mut kv = MemKv::new();
    let first = set(&mut kv, &[("a", Some("1")), ("b", Some("1"))]);
    let second = set(&mut kv, &[("a", Some("2")), ("b", None), ("c", Some("2"))]);
    assert_eq!(show(kv.begin_at(TxnSeq(0))), "");
    assert_eq!(show(kv.begin_at(first)), "a=1 b=1");
    assert_eq!(show(kv.begin_at(second)), "a=2 c=2");
    assert_eq!(kv.last(), second);
}

#[test]
fn conflicts() {
    type Step = fn(&mut MemTxn<'_>);
    let get: Step = |txn| drop(txn.get(b"a"));
    let put: Step = |txn| txn.put(b"a", b"x");
    let delete: Step = |txn| txn.delete(b"a");
    let scan: Step = |txn| drop(txn.scan(b"a", b"b", 9));
    let other: Step = |txn| txn.put(b"b", b"x");
    let reread: Step = |txn| {
        txn.put(b"z", b"");
        drop(txn.get(b"z"));
    };
    for (name, step, wanted) in [
        ("get", get, true),
        ("put", put, true),
        ("delete", delete, true),
        ("scan", scan, false),
        ("other", other, false),
        ("reread", reread, false),
    ] {
        for later in [Some("2"), None] {
            for before in [Some("1"), None] {
                let mut kv = MemKv::new();
                set(&mut kv, &[("a", before)]);
                let mut txn = kv.begin();
                step(&mut txn);
                let writes = txn.finish();
                assert_eq!(kv.clone().commit(writes.clone()).err(), None, "{name} alone");
                set(&mut kv, &[("a", later)]);
                assert_eq!(kv.commit(writes).is_err(), wanted, "{name} against {later:?} over {before:?}");
            }
        }
    }
}

#[test]
fn rollback_gives_the_earlier_state() {
    let mut kv = MemKv::new();
    let mut shown = vec![show(kv.begin())];
    for round in 0..6 {
        let value = format!("{round}");
        let deleted = format!("k{}", round / 2);
        set(&mut kv, &[("a", Some(&value)), (&value, Some("x")), (&deleted, None)]);
        shown.push(show(kv.begin()));
    }
    for seq in (0..=6).rev() {
        let mut crashed = kv.clone();
        crashed.rollback_to(TxnSeq(seq));
        crashed.check();
        assert_eq!(show(crashed.begin()), shown[seq as usize]);
        assert_eq!(crashed.last(), TxnSeq(seq));
        kv.rollback_to(TxnSeq(seq));
        assert_eq!(show(kv.begin()), shown[seq as usize]);
    }
}

#[test]
fn transaction_does_not_outlive_a_rollback() {
    let mut kv = MemKv::new();
    set(&mut kv, &[("a", Some("1"))]);
    let mut txn = kv.begin();
    txn.put(b"b", b"");
    let writes = txn.finish();
    kv.rollback_to(TxnSeq(1));
    assert_eq!(kv.commit(writes), Err(Conflict));
}

#[test]
fn forgetting_changes_nothing_that_can_be_read() {
    let mut kv = MemKv::new();
    set(&mut kv, &[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))]);
    set(&mut kv, &[("a", Some("2")), ("b", None)]);
    let old = kv.begin().finish();
    set(&mut kv, &[("a", None), ("b", Some("3"))]);
    set(&mut kv, &[("d", Some("4"))]);
    let shown = [3, 4].map(|seq| show(kv.begin_at(TxnSeq(seq))));
    kv.forget_before(TxnSeq(3));
    kv.check();
    assert_eq!([3, 4].map(|seq| show(kv.begin_at(TxnSeq(seq)))), shown);
    assert!(!kv.entries.contains_key(&b"a"[..]), "a deleted key is freed");
    assert!(kv.entries.values().all(|versions| versions.len() == 1));
    assert_eq!(kv.commit(old), Err(Conflict), "a snapshot that was forgotten");
    kv.rollback_to(TxnSeq(3));
    assert_eq!(show(kv.begin()), shown[0]);
    kv.forget_before(TxnSeq(3));
    assert_eq!(show(kv.begin()), shown[0]);
}

#[test]
fn scan_merges_own_writes() {
    let mut kv = MemKv::new();
    set(&mut kv, &[("a", Some("1")), ("c", Some("1")), ("e", Some("1")), ("f", Some("1"))]);
    let mut txn = kv.begin();
    txn.put(b"b", b"2");
    txn.put(b"c", b"2");
    txn.delete(b"e");
    txn.put(b"g", b"2");
    txn.delete(b"h");
    for (limit, wanted) in [(0, ""), (2, "ab"), (3, "abc"), (4, "abcf"), (5, "abcfg"), (9, "abcfg")] {
        let keys = txn.scan(b"a", b"z", limit).unwrap().iter().map(|(key, _)| char::from(key[0])).collect::<String>();
        assert_eq!(keys, wanted, "limit {limit}");
    }
    assert_eq!(txn.scan(b"b", b"b", 9).unwrap(), []);
    assert_eq!(txn.scan(b"c", b"b", 9).unwrap(), []);
    assert_eq!(show(txn), "a=1 b=2 c=2 f=1 g=2");
}
