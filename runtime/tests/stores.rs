//! The real stores: RocksDB and OpenDAL on a local folder pass the suites that their fakes pass too, and what only
//! real stores have: folders, locks, threads, full disks.
//!
//! All futures here are polled outside tokio, as a FUSE thread does.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;
use kiseki::env::{TokioEnv, timestamp};
use kiseki::objects::{Access, Counts, Objects, ObjectsError, Place};
use kiseki::rocks::{OpenError, OpenMode, RocksMeta};
use kiseki_core::env::{Env, MetaError, MetaStore, ObjectStore, StoreError, TxnSeq};
use kiseki_core::kv::{OpResult, Read, Txn};
use kiseki_core::testkit::{kv_conformance, store_conformance};
use kiseki_core::types::{STRIPES, Timestamp};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A folder and an executor. The stores opened on them must be dropped first.
struct Bench {
    runtime: Runtime,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { runtime: runtime.expect("an executor"), folder: TempDir::new().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open_meta(&self, mode: OpenMode) -> Result<RocksMeta, OpenError> {
        RocksMeta::open(&self.path("meta"), mode, self.runtime.handle().clone())
    }

    fn meta(&self, mode: OpenMode) -> RocksMeta {
        self.open_meta(mode).expect("the metadata store")
    }

    fn open_objects(&self, access: Access, timeout: Duration) -> Result<Objects, ObjectsError> {
        Objects::open(&Place::Folder(self.path("bucket/vol")), None, access, timeout, self.runtime.handle().clone())
    }

    fn objects(&self, access: Access) -> Objects {
        self.open_objects(access, Duration::from_secs(60)).expect("the object store")
    }

    /// Where an object lies.
    fn object(&self, key: &str) -> PathBuf {
        self.path("bucket/vol").join(key)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}

/// Polls all futures once, in order, then waits for each.
fn wait_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let early: Vec<_> =
        running.iter_mut().map(|future| future.as_mut().poll(&mut Context::from_waker(Waker::noop()))).collect();
    let finished = early.into_iter().zip(running);
    finished
        .map(|(early, late)| match early {
            Poll::Ready(value) => value,
            Poll::Pending => wait(late),
        })
        .collect()
}

fn number(read: &mut dyn Read, key: &[u8]) -> OpResult<u64> {
    Ok(read.get(key)?.map_or(0, |value| u64::from_be_bytes((&value[..]).try_into().expect("eight bytes"))))
}

fn increment(txn: &mut dyn Txn, key: &[u8]) -> OpResult<()> {
    let next = number(txn.as_read(), key)? + 1;
    txn.put(key, &next.to_be_bytes());
    Ok(())
}

/// Every name under `folder`.
fn tree(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.expect("an entry").path();
        found.extend(tree(&path));
        found.insert(path);
    }
    found
}

#[test]
fn rocks_passes_the_conformance_suite() {
    let bench = Bench::new();
    let meta = bench.meta(OpenMode::Create);
    wait(kv_conformance::run(&meta));
    wait(kv_conformance::nested_conflicts(&meta));
    meta.close().expect("a clean close");
}

#[test]
fn committed_data_is_there_after_reopening() {
    let bench = Bench::new();
    let mut mode = OpenMode::Create;
    for close in [false, true, false] {
        let meta = bench.meta(mode);
        let numbers = wait(kv_conformance::write_before_crash(&meta, 30));
        if close {
            meta.close().expect("a clean close");
        }
        drop(meta);
        mode = OpenMode::Existing;
        assert_eq!(wait(kv_conformance::check_after_crash(&bench.meta(mode), numbers)), numbers.written);
    }
}

#[test]
fn what_a_torn_log_leaves_is_a_prefix() {
    let bench = Bench::new();
    let meta = bench.meta(OpenMode::Create);
    let numbers = wait(kv_conformance::write_before_crash(&meta, 30));
    drop(meta);
    let logs = tree(&bench.path("meta")).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "log"));
    let log = logs.max().expect("a log");
    let file = fs::File::options().write(true).open(log).expect("the log");
    file.set_len(file.metadata().expect("its length").len() - 3).expect("a shorter log");
    let meta = bench.meta(OpenMode::Existing);
    // The last are torn, which reached it together.
    let left = wait(kv_conformance::check_after_crash(&meta, numbers));
    assert!((numbers.synced..numbers.written).contains(&left), "{left} of {numbers:?}");
    // What was recovered is durable before anything is accepted.
    assert_eq!(meta.synced(), meta.last());
}

#[test]
fn increments_of_many_threads_are_not_lost() {
    const THREADS: u64 = 8;
    const EACH: u64 = 1000;
    let bench = Bench::new();
    let meta = bench.meta(OpenMode::Create);
    for stripes in [1, 4] {
        let key = |stripe: u64| format!("{stripes} stripes: {stripe}").into_bytes();
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (meta, key) = (&meta, key(thread % stripes));
                scope.spawn(move || {
                    let mut before = TxnSeq(0);
                    for _ in 0..EACH {
                        let committed = wait(meta.write(|txn| increment(txn, &key))).expect("an increment");
                        assert!(committed.seq > before, "positions of one thread grow");
                        before = committed.seq;
                    }
                });
            }
        });
        let total = wait(meta.read(|read| (0..stripes).map(|stripe| number(read, &key(stripe))).sum()));
        assert_eq!(total, Ok(THREADS * EACH), "{stripes} stripes");
    }
}

/// Whatever of the commits RocksDB has: gets, scans and what is found later show all of a transaction or nothing.
#[test]
fn readers_beside_many_writers_see_one_moment() {
    const ACCOUNTS: u64 = 6;
    const EACH: u64 = 3000;
    let bench = Bench::new();
    let meta = bench.meta(OpenMode::Create);
    let key = |account: u64| format!("account {account}").into_bytes();
    let value = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
    let open = |txn: &mut dyn Txn| {
        (0..ACCOUNTS).for_each(|account| txn.put(&key(account), &(1_u64 << 32).to_be_bytes()));
        Ok(())
    };
    wait(meta.write(open)).expect("writes");
    let by_gets = |meta: &RocksMeta| {
        wait(meta.read(|read| (0..ACCOUNTS).map(|account| number(read, &key(account))).sum::<OpResult<u64>>()))
    };
    let by_scan = |meta: &RocksMeta| {
        let pairs = wait(meta.read(|read| Ok(read.scan(b"account", b"accounu", usize::MAX)?))).expect("scans");
        pairs.iter().map(|(_, bytes)| value(bytes)).sum::<u64>()
    };
    let total = ACCOUNTS << 32;
    let writers = AtomicU64::new(3);
    let reading = |check: &(dyn Fn() + Sync)| {
        while writers.load(Ordering::Acquire) > 0 {
            check();
        }
    };
    thread::scope(|scope| {
        for writer in 0..3 {
            let (meta, key, writers) = (&meta, &key, &writers);
            scope.spawn(move || {
                for round in 0..EACH {
                    let (from, to) = (round % ACCOUNTS, (round + writer + 1) % ACCOUNTS);
                    let transfer = |txn: &mut dyn Txn| {
                        let (a, b) = (number(txn.as_read(), &key(from))?, number(txn.as_read(), &key(to))?);
                        txn.put(&key(from), &(a - 1).to_be_bytes());
                        txn.put(&key(to), &(b + 1).to_be_bytes());
                        Ok(())
                    };
                    wait(meta.write(transfer)).expect("a transfer");
                }
                writers.fetch_sub(1, Ordering::AcqRel);
            });
        }
        scope.spawn(|| reading(&|| assert_eq!(by_gets(&meta), Ok(total))));
        scope.spawn(|| reading(&|| assert_eq!(by_scan(&meta), total)));
        scope.spawn(|| reading(&|| wait(meta.sync(meta.last())).expect("syncs")));
    });
    assert_eq!((by_gets(&meta), by_scan(&meta)), (Ok(total), total));
    let accounts = |meta: &RocksMeta| -> Vec<_> {
        (0..ACCOUNTS).map(|account| wait(meta.read(|read| number(read, &key(account))))).collect()
    };
    let left = accounts(&meta);
    drop(meta);
    assert_eq!(accounts(&bench.meta(OpenMode::Existing)), left);
}

#[test]
fn one_sync_serves_all_who_committed_before_it() {
    let bench = Bench::new();
    let meta = bench.meta(OpenMode::Create);
    let seqs: Vec<TxnSeq> =
        (0..32).map(|_| wait(meta.write(|txn| increment(txn, b"count"))).expect("a commit").seq).collect();
    assert!(meta.synced() < seqs[0], "a commit is not synced by itself");
    for result in wait_all(seqs.iter().map(|seq| meta.sync(*seq))) {
        result.expect("a sync");
    }
    assert_eq!(meta.sync_rounds(), 1);
    assert!(meta.synced() >= seqs[31]);
    wait(meta.sync(seqs[31])).expect("a sync of what is durable");
    assert_eq!(meta.sync_rounds(), 1, "what is durable needs no sync");
}

#[test]
fn syncs_of_many_threads_all_return() {
    let bench = Bench::new();
    let meta = bench.meta(OpenMode::Create);
    thread::scope(|scope| {
        for thread in 0..16u8 {
            let meta = &meta;
            scope.spawn(move || {
                for _ in 0..20 {
                    let seq = wait(meta.write(|txn| increment(txn, &[thread]))).expect("a commit").seq;
                    wait(meta.sync(seq)).expect("a sync");
                    assert!(meta.synced() >= seq);
                }
            });
        }
    });
    // The last of the threads finds its commit covered or runs a round itself, never more than one each.
    assert!(meta.sync_rounds() <= 16 * 20);
}

#[test]
fn dropped_sync_is_carried_out() {
    let bench = Bench::new();
    let meta = bench.meta(OpenMode::Create);
    let seq = wait(meta.write(|txn| increment(txn, b"count"))).expect("a commit").seq;
    {
        let dropped = pin!(meta.sync(seq));
        let polled = dropped.poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending | Poll::Ready(Ok(()))));
    }
    meta.close().expect("a clean close, after the round");
    assert_eq!((meta.sync_rounds(), meta.synced() >= seq), (1, true));
}

#[test]
fn opening_explains_itself_and_changes_nothing() {
    let bench = Bench::new();
    assert!(matches!(bench.open_meta(OpenMode::Existing), Err(OpenError::Missing(_))));
    assert!(tree(bench.folder.path()).is_empty());

    fs::create_dir(bench.path("meta")).expect("an empty folder");
    assert!(matches!(bench.open_meta(OpenMode::Existing), Err(OpenError::NotAStore(_))));
    fs::write(bench.path("meta/letter.txt"), "mine").expect("a file");
    for mode in [OpenMode::Existing, OpenMode::Create, OpenMode::CreateOrExisting] {
        assert!(matches!(bench.open_meta(mode), Err(OpenError::NotAStore(_))), "{mode:?}");
    }
    assert_eq!(tree(bench.folder.path()).len(), 2);
    fs::remove_file(bench.path("meta/letter.txt")).expect("no file");

    let meta = bench.meta(OpenMode::Create);
    let before = tree(bench.folder.path());
    for mode in [OpenMode::Existing, OpenMode::CreateOrExisting] {
        let error = bench.open_meta(mode).err().expect("a store that is open");
        assert!(matches!(error, OpenError::Locked(_)), "{mode:?}: {error}");
        assert!(error.to_string().ends_with("is in use by another process"), "{error}");
    }
    assert_eq!(tree(bench.folder.path()), before, "opening has touched a store in use");
    drop(meta);
    assert!(matches!(bench.open_meta(OpenMode::Create), Err(OpenError::Exists(_))));
    drop(bench.meta(OpenMode::CreateOrExisting));

    let manifest = tree(&bench.path("meta")).into_iter().find(|path| path.to_string_lossy().contains("MANIFEST"));
    fs::write(manifest.expect("a manifest"), [0xa5; 100]).expect("damage");
    assert!(matches!(bench.open_meta(OpenMode::Existing), Err(OpenError::Corrupt { .. })));
}

#[test]
fn closed_store_takes_no_writes() {
    let bench = Bench::new();
    let meta = bench.meta(OpenMode::Create);
    wait(meta.write(|txn| increment(txn, b"count"))).expect("a commit");
    meta.close().expect("a clean close");
    meta.close().expect("a second close");
    assert!(matches!(wait(meta.write(|txn| increment(txn, b"count"))), Err(MetaError::Failed)));
    assert_eq!(wait(meta.sync(meta.last())), Err(MetaError::Failed));
    assert_eq!(wait(meta.read(|read| number(read, b"count"))), Ok(1));
}

#[test]
fn objects_pass_the_conformance_suite() {
    let bench = Bench::new();
    let objects = bench.objects(Access::Create);
    wait(store_conformance::run(&objects, 300));
    let numbers = wait(store_conformance::put_before_crash(&objects, 30));
    drop(objects);
    let absent = wait(store_conformance::check_after_crash(&bench.objects(Access::Write), numbers));
    assert_eq!(absent, 0, "a new process finds all that was put");
}

#[test]
fn long_lists_come_in_pages_of_whole_folders() {
    let bench = Bench::new();
    let objects = bench.objects(Access::Create);
    for folder in 0..4 {
        fs::create_dir_all(bench.object(&format!("blocks/{folder}"))).expect("a folder");
        for index in 0..600 {
            fs::write(bench.object(&format!("blocks/{folder}/{index:03}")), "").expect("an object");
        }
    }
    let (mut after, mut sizes, mut keys) = (None, Vec::new(), Vec::new());
    loop {
        let page = wait(objects.list("blocks/", after.as_deref())).expect("a page");
        sizes.push(page.keys.len());
        keys.extend(page.keys);
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [1200, 1200]);
    assert!(keys.is_sorted() && keys.len() == 2400);
}

#[test]
fn one_barrier_serves_all_whose_puts_returned_before_it() {
    let bench = Bench::new();
    let objects = bench.objects(Access::Create);
    wait(objects.barrier()).expect("a barrier");
    assert_eq!(objects.barrier_rounds(), 0, "nothing put is nothing to sync");
    let put = |index: u32| wait(objects.put(&format!("blocks/{index}/o"), vec![Bytes::from_static(b"body")]));
    for index in 0..4 {
        put(index).expect("a put");
    }
    let barriers: Vec<_> = (0..16).map(|_| objects.barrier()).collect();
    for result in wait_all(barriers) {
        result.expect("a barrier");
    }
    // All of them were called after the puts, so whichever round comes first covers them.
    assert_eq!(objects.barrier_rounds(), 1);
    put(4).expect("a put");
    wait(objects.barrier()).expect("a barrier");
    assert_eq!(objects.barrier_rounds(), 2);
}

#[test]
fn opening_objects_explains_itself_and_changes_nothing() {
    let bench = Bench::new();
    let open = |storage: &str, prefix: &str, access| {
        let handle = bench.runtime.handle().clone();
        let bucket = bench.path("bucket");
        let place = match Place::parse(storage, bucket.to_str().expect("UTF-8"), prefix) {
            Ok(place) => place,
            Err(error) => return Some(error),
        };
        Objects::open(&place, None, access, Duration::from_secs(1), handle).err()
    };
    assert!(matches!(open("tape", "vol", Access::Create), Some(ObjectsError::Storage(_))));
    for prefix in ["", ".", "..", "a/b"] {
        assert!(matches!(open("file", prefix, Access::Create), Some(ObjectsError::Prefix(_))), "{prefix:?}");
    }
    for access in [Access::Write, Access::Read] {
        assert!(matches!(open("file", "vol", access), Some(ObjectsError::Missing(_))));
    }
    assert!(tree(bench.folder.path()).is_empty());
    fs::write(bench.path("bucket"), "a file").expect("a file");
    for access in [Access::Create, Access::Write, Access::Read] {
        assert!(matches!(open("file", "vol", access), Some(ObjectsError::NotAFolder(_))), "{access:?}");
    }
}

#[test]
fn reader_changes_nothing() {
    let bench = Bench::new();
    fs::create_dir_all(bench.object("blocks")).expect("a folder");
    fs::write(bench.object("blocks/o"), "body").expect("an object");
    let before = tree(bench.folder.path());
    let objects = bench.objects(Access::Read);
    assert_eq!(wait(objects.get("blocks/o", 0..4)), Ok(Bytes::from_static(b"body")));
    assert_eq!(wait(objects.put("blocks/p", vec![])), Err(StoreError::Denied));
    assert_eq!(wait(objects.delete("blocks/o")), Err(StoreError::Denied));
    assert_eq!(tree(bench.folder.path()), before);
}

#[test]
fn half_written_objects_are_swept_and_never_listed() {
    let bench = Bench::new();
    let objects = bench.objects(Access::Create);
    wait(objects.put("whole", vec![Bytes::from_static(b"body")])).expect("a put");
    fs::write(bench.object(".tmp/half.123"), "bo").expect("a half-written object");
    assert_eq!(wait(objects.list("", None)).expect("a list").keys, ["whole"]);
    drop(bench.objects(Access::Read));
    assert!(bench.object(".tmp/half.123").exists());
    drop(bench.objects(Access::Write));
    assert!(!bench.object(".tmp/half.123").exists());
    assert!(bench.object("whole").exists());
}

#[test]
fn cut_object_is_short_and_a_lost_store_is_not_an_absent_object() {
    let bench = Bench::new();
    let objects = bench.objects(Access::Create);
    wait(objects.put("blocks/o", vec![Bytes::from(vec![7; 3 << 20])])).expect("a put");
    let file = fs::File::options().write(true).open(bench.object("blocks/o")).expect("the object");
    file.set_len((2 << 20) + 1).expect("a shorter object");
    assert_eq!(wait(objects.get("blocks/o", 0..3 << 20)), Err(StoreError::Short));
    assert_eq!(wait(objects.get("blocks/o", 2 << 20..(2 << 20) + 1)), Ok(Bytes::from_static(&[7])));

    fs::rename(bench.path("bucket"), bench.path("elsewhere")).expect("a store that goes away");
    assert_eq!(wait(objects.get("blocks/o", 0..1)), Err(StoreError::Retry));
    assert_eq!(wait(objects.put("blocks/p", vec![])), Err(StoreError::Retry));
    assert_eq!(wait(objects.delete("blocks/o")), Err(StoreError::Retry));
    assert_eq!(wait(objects.list("blocks/", None)).err(), Some(StoreError::Retry));
    assert!(!bench.path("bucket").exists(), "a put has made the folder of a store that is away");
    fs::rename(bench.path("elsewhere"), bench.path("bucket")).expect("a store that comes back");
    wait(objects.put("blocks/p", vec![])).expect("a put");
}

#[test]
fn folder_is_probed_and_its_requests_are_counted() {
    let bench = Bench::new();
    let objects = bench.objects(Access::Create);
    wait(objects.probe()).expect("a folder that can be written");
    assert_eq!(wait(objects.any_key()).expect("a folder"), None);
    wait(objects.put("blocks/o", vec![Bytes::from_static(b"body")])).expect("a put");
    assert_eq!(wait(objects.any_key()).expect("a folder"), Some("blocks".to_owned()));
    wait(objects.get("blocks/o", 1..4)).expect("a get");
    assert_eq!(wait(objects.get("blocks/p", 0..1)), Err(StoreError::NotFound));
    wait(objects.list("", None)).expect("a list");
    assert_eq!(objects.trouble(), None);
    let healthy = Counts { puts: 1, put_bytes: 4, gets: 2, got_bytes: 3, lists: 1, ..Counts::default() };
    assert_eq!(objects.counts(), healthy);
    wait(bench.objects(Access::Read).probe()).expect("a folder that can be read");

    fs::rename(bench.path("bucket"), bench.path("elsewhere")).expect("a store that goes away");
    let gone = wait(objects.probe()).expect_err("no folder").to_string();
    assert!(gone.contains("bucket/vol") && gone.contains("No such file"), "{gone}");
    wait(objects.any_key()).expect_err("no folder");
    assert_eq!(wait(objects.delete("blocks/o")), Err(StoreError::Retry));
    assert!(objects.trouble().expect("trouble").text.contains("is gone"), "{:?}", objects.trouble());
    assert_eq!(objects.counts(), Counts { deletes: 1, failures: 1, ..healthy });
    fs::rename(bench.path("elsewhere"), bench.path("bucket")).expect("a store that comes back");
    wait(objects.get("blocks/o", 0..4)).expect("a get");
    assert_eq!(objects.trouble(), None);
}

#[test]
fn dropped_put_is_carried_out() {
    let bench = Bench::new();
    let objects = bench.objects(Access::Create);
    drop(objects.put("blocks/o", vec![Bytes::from_static(b"body")]));
    let start = Instant::now();
    while wait(objects.get("blocks/o", 0..4)) != Ok(Bytes::from_static(b"body")) {
        assert!(start.elapsed() < Duration::from_secs(30), "the put never came");
        thread::yield_now();
    }
}

#[test]
fn store_that_hangs_is_given_up_at_the_deadline() {
    let bench = Bench::new();
    let objects = bench.open_objects(Access::Create, Duration::from_millis(50)).expect("the object store");
    // To open a pipe for reading waits for a writer.
    mkfifoat(CWD, bench.object("pipe"), Mode::RUSR | Mode::WUSR).expect("a pipe");
    assert_eq!(wait(objects.get("pipe", 0..1)), Err(StoreError::Retry));
    drop(fs::File::options().write(true).open(bench.object("pipe")).expect("the writer"));
}

/// A file system that is soon full. Only root may mount one: its tests fail for others.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, options: &std::ffi::CStr) -> Self {
        fs::create_dir(&path).expect("a mount point");
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), options).expect("mount a small disk (as root)");
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmount the small disk");
    }
}

#[test]
fn full_store_says_so_and_takes_puts_again_later() {
    let bench = Bench::new();
    let _disk = SmallDisk::mount(bench.path("bucket"), c"size=1m");
    let objects = bench.objects(Access::Create);
    let body = |len| vec![Bytes::from(vec![1; len])];
    wait(objects.put("o/small", body(100))).expect("a put");
    assert_eq!(wait(objects.put("o/large", body(2 << 20))), Err(StoreError::Full));
    assert_eq!(wait(objects.get("o/large", 0..1)), Err(StoreError::NotFound), "a part of an object");
    // What the failed attempt left is in the way until it is swept.
    drop(objects);
    let objects = bench.objects(Access::Write);
    wait(objects.put("o/other", body(500 << 10))).expect("a put");
}

#[test]
fn failed_write_stops_all_later_ones() {
    let bench = Bench::new();
    let _disk = SmallDisk::mount(bench.path("meta"), c"size=4m");
    let meta = bench.meta(OpenMode::Create);
    let mut acked = 0u32;
    let write = |index: u32| {
        wait(meta.write(|txn| {
            txn.put(&index.to_be_bytes(), &[index as u8; 64 << 10]);
            Ok(())
        }))
    };
    let failure = loop {
        match write(acked) {
            Ok(_) => acked += 1,
            Err(error) => break error,
        }
    };
    assert!(acked > 0);
    assert_eq!(failure, MetaError::Failed);
    assert!(matches!(write(acked), Err(MetaError::Failed)));
    assert_eq!(wait(meta.sync(meta.last())), Err(MetaError::Failed));
    assert_eq!(meta.close(), Err(MetaError::Failed));
    // Reads go on, and show all that was accepted.
    let found = wait(meta.read(|read| Ok(read.scan(&[0], &[0xff], usize::MAX)?))).expect("scans");
    assert_eq!(found.len(), acked as usize);
    for index in 0..acked {
        let found = wait(meta.read(|read| Ok(read.get(&index.to_be_bytes())?))).expect("gets");
        assert!(found.is_some_and(|value| value[0] == index as u8));
    }
    drop(meta);
}

#[test]
fn timers_and_tasks_work_outside_the_executor() {
    let bench = Bench::new();
    let env = TokioEnv::new(
        Arc::new(bench.meta(OpenMode::Create)),
        Arc::new(bench.objects(Access::Create)),
        bench.runtime.handle().clone(),
    );
    let at = env.now() + Duration::from_millis(5);
    wait(env.sleep_until(at));
    assert!(env.now() >= at);
    wait(env.sleep_until(Duration::ZERO));
    let (sender, receiver) = tokio::sync::oneshot::channel();
    env.spawn(async move { sender.send(7).expect("a receiver") });
    assert_eq!(wait(receiver), Ok(7));
    wait(env.pause());
    env.meta().close().expect("a clean close");
}

#[test]
fn threads_that_run_at_once_use_all_stripes() {
    let bench = Bench::new();
    let env = TokioEnv::new(
        Arc::new(bench.meta(OpenMode::Create)),
        Arc::new(bench.objects(Access::Create)),
        bench.runtime.handle().clone(),
    );
    assert_eq!(env.stripe(), env.stripe(), "a thread keeps its stripe");
    let threads: Vec<_> = (0..64)
        .map(|_| {
            thread::spawn({
                let env = env.clone();
                move || env.stripe()
            })
        })
        .collect();
    let stripes: BTreeSet<u8> = threads.into_iter().map(|thread| thread.join().expect("a stripe")).collect();
    assert!(stripes.iter().all(|stripe| *stripe < STRIPES));
    // Other tests run beside this one and take numbers too, but not every second one.
    assert!(stripes.len() > 1);
}

#[test]
fn times_before_1970_are_floored() {
    let cases = [
        (UNIX_EPOCH, (0, 0)),
        (UNIX_EPOCH + Duration::new(3, 4), (3, 4)),
        (UNIX_EPOCH - Duration::from_secs(2), (-2, 0)),
        (UNIX_EPOCH - Duration::new(2, 1), (-3, 999_999_999)),
    ];
    for (time, (secs, nanos)) in cases {
        assert_eq!(timestamp(time), Timestamp { secs, nanos });
    }
}
