//! What every `ObjectStore` must do, real or simulated.
//!
//! Owns: the checks, which panic with what was broken. They want a prefix of their own in a store that does not fail
//! on purpose.
//! Leaves to others: making stores, executors, and the crash between `put_before_crash` and `check_after_crash`.
//! It is async because the store that it drives is; it waits for nothing but the store.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use bytes::Bytes;

use crate::client::wait::join_all;
use crate::env::{ObjectStore, StoreError};

/// All checks that hold for every store; `many` objects make up the long list. (>= 1)
pub async fn run<S: ObjectStore>(store: &S, many: usize) {
    what_was_put_is_got(store).await;
    bodies_of_any_shape(store).await;
    ranges_are_exact(store).await;
    absent_objects(store).await;
    puts_and_deletes_again(store).await;
    lists_are_ordered_and_recursive(store).await;
    long_lists_go_on(store, many).await;
    many_at_once(store).await;
    store.barrier().await.expect("a barrier");
    store.barrier().await.expect("a barrier with nothing to do");
}

async fn put<S: ObjectStore>(store: &S, key: &str, body: Vec<Bytes>) {
    if let Err(error) = store.put(key, body).await {
        panic!("put {key}: {error:?}");
    }
}

async fn expect<S: ObjectStore>(store: &S, key: &str, wanted: &[u8]) {
    match store.get(key, 0..wanted.len() as u64).await {
        Ok(found) => assert!(found == wanted, "{key}: other bytes than were put"),
        Err(error) => panic!("get {key}: {error:?}"),
    }
    // Not longer either.
    let past = store.get(key, 0..wanted.len() as u64 + 1).await;
    assert_eq!(past, Err(StoreError::Short), "{key}: a range that ends past the object");
}

async fn list<S: ObjectStore>(store: &S, prefix: &str, mut after: Option<String>) -> Vec<String> {
    let mut keys = Vec::new();
    loop {
        let page = match store.list(prefix, after.as_deref()).await {
            Ok(page) => page,
            Err(error) => panic!("list {prefix} after {after:?}: {error:?}"),
        };
        keys.extend(page.keys);
        match page.next {
            Some(next) => {
                assert!(after.as_ref().is_none_or(|after| *after < next), "list {prefix} does not advance");
                after = Some(next);
            }
            None => return keys,
        }
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 251 + seed) as u8).collect()
}

async fn what_was_put_is_got<S: ObjectStore>(store: &S) {
    for (name, len) in [("a", 1), ("b.c", 4096), ("deep/er/d", 70_000), ("large", 5 << 20)] {
        let (key, body) = (format!("put/{name}"), pattern(len, 1));
        put(store, &key, vec![body.clone().into()]).await;
        expect(store, &key, &body).await;
    }
}

async fn bodies_of_any_shape<S: ObjectStore>(store: &S) {
    let empty = Bytes::new();
    let pieces: Vec<Bytes> = (0..300).map(|index| Bytes::from(pattern(index % 7, index))).collect();
    let shapes = [
        (
            "empty segments",
            vec![empty.clone(), Bytes::from_static(b"x"), empty.clone(), Bytes::from_static(b"yz"), empty],
        ),
        ("many segments", pieces),
        ("large segments", vec![pattern(3 << 20, 2).into(), pattern(1 << 20, 3).into()]),
    ];
    for (name, body) in shapes {
        let (key, whole) = (format!("shape/{}", name.replace(' ', "-")), body.concat());
        put(store, &key, body).await;
        expect(store, &key, &whole).await;
    }
}

async fn ranges_are_exact<S: ObjectStore>(store: &S) {
    let body = pattern(100_000, 4);
    put(store, "range/o", vec![Bytes::copy_from_slice(&body)]).await;
    for range in [0..1, 0..100_000, 1..2, 65_536..65_600, 99_999..100_000, 12_345..77_777] {
        let found = store.get("range/o", range.start as u64..range.end as u64).await.expect("a range");
        assert!(found == body[range.clone()], "range {range:?}: other bytes");
    }
    for range in [99_999..100_001, 100_000..100_001, 200_000..200_010, 0..1_000_000] {
        let found = store.get("range/o", range.clone()).await;
        assert_eq!(found, Err(StoreError::Short), "range {range:?} of an object of 100000 bytes");
    }
}

async fn absent_objects<S: ObjectStore>(store: &S) {
    put(store, "absent/here", vec![Bytes::from_static(b"here")]).await;
    for key in ["absent/gone", "absent/folder/gone", "absent-folder/gone"] {
        assert_eq!(store.get(key, 0..1).await, Err(StoreError::NotFound), "get {key}");
        assert_eq!(store.delete(key).await, Ok(()), "delete {key}");
    }
    assert!(list(store, "absent-folder/", None).await.is_empty(), "list of a prefix without objects");
}

async fn puts_and_deletes_again<S: ObjectStore>(store: &S) {
    for _ in 0..2 {
        // A put whose answer was lost is repeated with the same bytes.
        put(store, "again/o", vec![Bytes::from_static(b"same"), Bytes::from_static(b" bytes")]).await;
        put(store, "again/o", vec![Bytes::from_static(b"same bytes")]).await;
        expect(store, "again/o", b"same bytes").await;
        store.delete("again/o").await.expect("delete");
        store.delete("again/o").await.expect("delete of a deleted object");
        assert_eq!(store.get("again/o", 0..1).await, Err(StoreError::NotFound));
        assert!(list(store, "again/", None).await.is_empty(), "a deleted object is listed");
    }
}

async fn lists_are_ordered_and_recursive<S: ObjectStore>(store: &S) {
    // In byte order `-` < `/` < `0`, which no walk through folders gives by itself.
    let keys = ["list/a-b", "list/a/x", "list/a/y/z", "list/a0", "list/b"];
    for key in [3, 1, 4, 0, 2].map(|index| keys[index]) {
        put(store, key, vec![Bytes::from_static(b"1")]).await;
    }
    put(store, "list2/other", vec![Bytes::from_static(b"1")]).await;
    assert_eq!(list(store, "list/", None).await, keys, "order of a list");
    assert_eq!(list(store, "list/a/", None).await, ["list/a/x", "list/a/y/z"], "a folder of a list");
    for (index, key) in keys.iter().enumerate() {
        let rest = list(store, "list/", Some((*key).to_owned())).await;
        assert_eq!(rest, keys[index + 1..], "a list after {key}");
    }
    assert_eq!(
        list(store, "list/", Some("list/a/xx".to_owned())).await,
        keys[2..],
        "a list after a key that is not there"
    );
}

async fn long_lists_go_on<S: ObjectStore>(store: &S, many: usize) {
    let keys: Vec<String> = (0..many).map(|index| format!("long/{index:06}")).collect();
    for some in keys.chunks(16) {
        join_all(some.iter().map(|key| put(store, key, vec![Bytes::from_static(b"1")]))).await;
    }
    assert_eq!(list(store, "long/", None).await, keys, "a long list");
    let middle = many / 2;
    assert_eq!(list(store, "long/", Some(keys[middle].clone())).await, keys[middle + 1..], "half of a long list");
}

async fn many_at_once<S: ObjectStore>(store: &S) {
    let tasks = (0..24).map(|task| async move {
        let (key, body) = (format!("once/{}/{task}", task % 3), pattern(10_000 + task, task));
        put(store, &key, vec![body.clone().into()]).await;
        expect(store, &key, &body).await;
        if task % 2 == 0 {
            store.delete(&key).await.expect("delete");
        }
    });
    join_all(tasks).await;
    assert_eq!(list(store, "once/", None).await.len(), 12, "objects that were not deleted");
}

/// Numbers of objects known before a crash.
#[derive(Clone, Copy, Debug)]
pub struct Numbered {
    /// Objects `0..durable` were put before a barrier.
    pub durable: usize,
    /// Objects `0..put` were put.
    pub put: usize,
}

/// Puts `count` numbered objects, with a barrier after two thirds of them. Crash the store now, open it again, and
/// call `check_after_crash`.
pub async fn put_before_crash<S: ObjectStore>(store: &S, count: usize) -> Numbered {
    let numbers = Numbered { durable: count * 2 / 3, put: count };
    for number in 0..count {
        if number == numbers.durable {
            store.barrier().await.expect("a barrier");
        }
        put(store, &numbered_key(number), vec![pattern(1000, number).into()]).await;
    }
    numbers
}

/// Checks that the objects put before the barrier are there, and that those put after it are whole or absent.
/// Returns how many are absent.
pub async fn check_after_crash<S: ObjectStore>(store: &S, numbers: Numbered) -> usize {
    let mut absent = 0;
    for number in 0..numbers.put {
        let key = numbered_key(number);
        match store.get(&key, 0..1).await {
            Err(StoreError::NotFound) if number >= numbers.durable => absent += 1,
            Ok(_) | Err(_) => expect(store, &key, &pattern(1000, number)).await,
        }
    }
    absent
}

/// In folders of three, so that new folders must be made durable too.
fn numbered_key(number: usize) -> String {
    format!("crash/{}/{number}", number / 3)
}
