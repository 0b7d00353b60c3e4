use alloc::format;
use alloc::string::ToString;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use super::fake::{FakeDisk, Rates};
use super::*;
use crate::client::upkeep::fake::World;
use crate::client::{Client, Options};
use crate::format::values::VOLUME_VERSION_PLAIN;
use crate::meta;
use crate::testkit::power_cut::{ObjectsPast, Power, write_objects};
use crate::testkit::rng::Rng;
use crate::testkit::store_conformance;
use crate::types::{Ino, PackId, SliceId};

type Log = Logged<World, FakeDisk>;

fn small() -> LogOptions {
    LogOptions { segment_size: 64 << 10, place: "here".to_string(), ..LogOptions::default() }
}

/// Small objects travel together.
fn packing() -> LogOptions {
    LogOptions { pack_below: 3000, pack_size: 20_000, pack_delay: Duration::from_millis(20), ..small() }
}

async fn open(world: &World, disk: &FakeDisk, options: LogOptions) -> Log {
    Logged::open(world.clone(), disk.clone(), options).await.map(|opened| opened.env).unwrap_or_else(|e| panic!("{e}"))
}

fn check(log: &Log) {
    lock(&log.objects.0.staging().state).log.check();
}

/// What the process held is gone; on the disk some of what was not synced is.
fn cut(world: &World, disk: &FakeDisk) {
    world.power_cut();
    disk.power_cut();
}

#[test]
fn a_store_with_a_log_is_like_any_other() {
    let shapes = [
        small(),
        LogOptions { direct_from: 10_000, ..small() },
        LogOptions { size_max: 200_000, pace: Pace::steady(1), ..small() },
        LogOptions { upload_delay: Duration::from_secs(3600), ..small() },
        LogOptions { mode: LogMode::Drain, ..small() },
        packing(),
    ];
    for (options, seed) in shapes.into_iter().zip(1..) {
        let world = World::mountable();
        let disk = FakeDisk::new(&world, seed);
        world.block_on(async {
            let log = open(&world, &disk, options).await;
            store_conformance::run(log.objects(), 40).await;
            check(&log);
            log.drain().await;
            assert!(log.close().await.expect("no fault"));
        });
        assert!(disk.numbers().is_empty(), "segments stay: {:?}", disk.numbers());
        assert_eq!(world.read(|read| meta::volume::load(read)).log, None);
        assert_eq!(world.read(|read| meta::volume::load(read)).version, VOLUME_VERSION_PLAIN);
    }
}

/// One life of a log whose disk fails now and then: a course of puts, deletes and barriers that a power cut ends, then
/// what is left. What happens after the cut, to the end of the call that it hits, has no effect.
fn life(seed: u64, rates: Rates) -> (ObjectsPast, u64) {
    let mut dice = Rng::new(seed);
    let world = World::mountable();
    let disk = FakeDisk::new(&world, seed);
    let options = LogOptions {
        size_max: [1 << 20, 100_000][dice.below(2) as usize],
        direct_from: [u64::MAX, 20_000][dice.below(2) as usize],
        pace: Pace::steady(1 + dice.below(4) as usize),
        upload_delay: Duration::from_millis([0, 1, 50][dice.below(3) as usize]),
        pack_below: [0, 3000, u64::MAX][dice.below(3) as usize],
        ..packing()
    };
    let power = Power::default();
    let at = dice.below(3000);
    let past = world.block_on(async {
        disk.state().rates = rates;
        let mut frozen = None;
        let log = open(&world, &disk, options.clone()).await;
        let mut course = pin!(write_objects(log.objects(), seed, 60, &power));
        let mut steps = 0;
        let past = loop {
            match poll_fn(|cx| Poll::Ready(course.as_mut().poll(cx))).await {
                Poll::Ready(past) => break past,
                Poll::Pending if steps == at => {
                    power.off();
                    let state = world.state();
                    frozen = Some((disk.files(), state.objects.clone(), state.synced));
                }
                Poll::Pending => {}
            }
            check(&log);
            steps += 1;
            world.step_aside().await;
        };
        if let Some((files, objects, synced)) = frozen {
            disk.restore(files);
            (world.state().objects, world.state().synced) = (objects, synced);
        }
        past
    });
    cut(&world, &disk);
    let replayed = world.block_on(async {
        disk.state().rates = Rates::default();
        let log = open(&world, &disk, options.clone()).await;
        let replayed = log.log_status().expect("there is a log").backlog.objects;
        check(&log);
        let left = past.left(log.objects()).await;
        log.drain().await;
        assert_eq!(past.left(log.objects()).await, left, "seed {seed}: an upload has changed what is there");
        assert!(log.close().await.expect("no fault"));
        // What the log had is in the store.
        let store = Log::through(world.clone());
        assert_eq!(past.left(store.objects()).await, left, "seed {seed}: the store has other objects than the log had");
        replayed
    });
    (past, replayed)
}

#[test]
fn a_power_cut_leaves_what_a_barrier_has_covered() {
    let mut replayed = 0;
    for seed in 1..=300 {
        replayed += life(seed, Rates::default()).1;
    }
    assert!(replayed > 300, "almost nothing was left in the log at the cuts: {replayed}");
}

#[test]
fn so_it_does_where_the_disk_fails() {
    for seed in 1..=300 {
        life(seed, Rates { write: 3, full: 3, sync: 20, read: 5, torn: 2 });
        life(seed, Rates { sync: 100, ..Rates::default() });
    }
}

/// Found by the simulator: the delete did not wait for that, and the object was in the store afterwards, for good.
#[test]
fn what_is_deleted_while_it_is_stored_again_stays_deleted() {
    const KEY: &str = "blocks/again";
    for steps in 1..60 {
        let world = World::mountable();
        world.state().faults.puts_take = Duration::from_millis(50);
        let disk = FakeDisk::new(&world, steps);
        world.block_on(async {
            let log = open(&world, &disk, small()).await;
            log.objects().put(KEY, vec![Bytes::from_static(b"body")]).await.expect("a put");
            disk.state().rates.sync = 100;
            let both = [false, true].map(|deletes| {
                let (world, log) = (world.clone(), log.clone());
                async move {
                    if !deletes {
                        return log.objects().barrier().await;
                    }
                    for _ in 0..steps {
                        world.step_aside().await;
                    }
                    log.objects().delete(KEY).await
                }
            });
            let answers = crate::client::wait::join_all(both).await;
            assert_eq!(answers[1], Ok(()), "a delete waits for no sync");
            disk.state().rates = Rates::default();
            log.objects().barrier().await.expect("the disk works");
            log.drain().await;
            check(&log);
            assert!(!world.state().objects.contains_key(KEY), "it was deleted after {steps} steps");
        });
    }
}

#[test]
fn a_barrier_is_one_sync_for_all_who_wait() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    world.block_on(async {
        let log = open(&world, &disk, LogOptions { upload_delay: Duration::from_secs(60), ..small() }).await;
        let before = disk.state().syncs;
        let body = || vec![Bytes::from_static(b"body")];
        let each = (0..20).map(|number| {
            let (log, key) = (log.clone(), format!("key/{number}"));
            async move {
                log.objects().put(&key, body()).await.expect("a put");
                log.objects().barrier().await.expect("a barrier");
            }
        });
        crate::client::wait::join_all(each).await;
        let syncs = disk.state().syncs - before;
        assert!(syncs <= 4, "{syncs} syncs for 20 barriers at once");
        log.objects().barrier().await.expect("nothing to do");
        assert_eq!(disk.state().syncs - before, syncs, "a barrier with nothing to cover syncs");
    });
}

/// That something is not there may be the work of a delete whose answer was lost.
#[test]
fn a_barrier_after_a_listing_reaches_the_store() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    world.block_on(async {
        let log = open(&world, &disk, small()).await;
        let before = world.state().barriers;
        log.objects().barrier().await.expect("nothing to do");
        assert_eq!(world.state().barriers, before);
        let page = log.objects().list("blocks/", None).await.expect("a listing");
        assert!(page.keys.is_empty());
        log.objects().barrier().await.expect("a barrier");
        assert_eq!(world.state().barriers, before + 1, "a power cut may bring back what the listing did not show");
    });
}

#[test]
fn a_mount_goes_on_with_what_another_one_left() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    let options = || LogOptions { upload_delay: Duration::from_secs(3600), ..small() };
    world.block_on(async {
        let log = open(&world, &disk, options()).await;
        let client = Client::mount(log.clone(), Options::default()).await.expect("a mount");
        let caller = crate::client::Caller { uid: 0, gid: 0, umask: None };
        let flags = crate::client::OpenFlags { read: true, write: true, ..crate::client::OpenFlags::default() };
        let root = Ino::ROOT;
        let (_, handle) = client.create(caller, root, b"file", 0o644, flags).await.expect("a file");
        client.write(handle, 0, Bytes::from(vec![7; 9000]), false).await.expect("a write");
        client.fsync(handle).await.expect("an fsync");
        assert_eq!(world.state().objects.len(), 1, "fsync waits for the object store");
    });
    cut(&world, &disk);
    world.block_on(async {
        let log = open(&world, &disk, options()).await;
        assert_eq!(log.log_status().expect("a log").backlog.objects, 3);
        let client = Client::mount(log.clone(), Options::default()).await.expect("a mount");
        let entry = client.lookup(Ino::ROOT, b"file").await.expect("the file");
        let flags = crate::client::OpenFlags { read: true, ..crate::client::OpenFlags::default() };
        let handle = client.open(entry.ino, flags).await.expect("it opens");
        let read = client.read(handle, 0, 10_000).await.expect("it can be read");
        assert_eq!(read.into_contiguous(), vec![7; 9000]);
        client.release(handle).await.expect("no error");
        client.unmount().await.expect("an unmount");
        log.drain().await;
        assert!(log.close().await.expect("no fault"));
    });
    assert_eq!(world.state().objects.len(), 4);
    assert!(disk.numbers().is_empty());
}

/// A sweep of what an ended session left was over before an object of it was put again: that stayed for good.
#[test]
fn what_an_earlier_mount_has_left_arrives_until_it_is_stored() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    let options = || LogOptions { upload_delay: Duration::from_secs(3600), ..small() };
    world.block_on(async {
        let log = open(&world, &disk, options()).await;
        log.objects().put("left", vec![Bytes::from_static(b"body")]).await.expect("a put");
        log.objects().barrier().await.expect("a barrier");
        assert!(!log.objects().is_arriving(), "it is this mount's own");
    });
    cut(&world, &disk);
    world.block_on(async {
        let log = open(&world, &disk, options()).await;
        assert!(log.objects().is_arriving());
        log.objects().put("own", vec![Bytes::from_static(b"body")]).await.expect("a put");
        log.objects().barrier().await.expect("a barrier");
        log.objects().delete("left").await.expect("a delete");
        assert!(!log.objects().is_arriving());
    });
    cut(&world, &disk);
    world.block_on(async {
        let log = open(&world, &disk, options()).await;
        assert!(log.objects().is_arriving());
        log.drain().await;
        assert!(!log.objects().is_arriving());
    });
}

/// What a later mount would find in the log it would put again, when nobody knows any more whose it was.
#[test]
fn an_unmount_leaves_no_record_of_what_the_store_has() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    world.block_on(async {
        let log = open(&world, &disk, small()).await;
        let client = Client::mount(log.clone(), Options::default()).await.expect("a mount");
        log.objects().put("key", vec![Bytes::from_static(b"body")]).await.expect("a put");
        log.drain().await;
        assert!(!disk.numbers().is_empty() && log.objects().is_unsure());
        client.unmount().await.expect("an unmount");
        assert!(disk.numbers().is_empty() && !log.objects().is_unsure());
        assert!(world.read(meta::session::leases).is_empty(), "a clean unmount leaves leases");
    });
}

#[test]
fn what_was_put_is_read_from_the_log_until_it_is_found_wrong() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    world.block_on(async {
        let log = open(&world, &disk, LogOptions { keep: true, segment_size: 20_000, ..small() }).await;
        let body = |byte: u8| Bytes::from(vec![byte; 12_000]);
        for (byte, key) in (0..).zip(["a", "b", "c", "d"]) {
            log.objects().put(key, vec![body(byte)]).await.expect("a put");
        }
        log.objects().barrier().await.expect("a barrier");
        log.drain().await;
        check(&log);
        assert!(disk.state().detached.len() >= 2, "no segment is kept");
        // The store is not asked.
        let stored = core::mem::take(&mut world.state().objects);
        for (byte, key) in (0..).zip(["a", "b", "c", "d"]) {
            assert_eq!(log.objects().get(key, 5..11_000).await, Ok(body(byte).slice(5..11_000)), "{key}");
        }
        assert_eq!(log.objects().get_stored("a", 0..1).await, Err(StoreError::NotFound));
        assert_eq!(log.objects().get("a", 0..12_001).await, Err(StoreError::NotFound));
        log.objects().distrust("a");
        assert_eq!(log.objects().get("a", 0..1).await, Err(StoreError::NotFound));
        disk.state().detached.clear();
        assert_eq!(log.objects().get("b", 0..1).await, Err(StoreError::NotFound));
        world.state().objects = stored;
        assert_eq!(log.objects().get("b", 0..1).await, Ok(body(1).slice(0..1)));
        log.objects().delete("c").await.expect("a delete");
        assert_eq!(log.objects().get("c", 0..1).await, Err(StoreError::NotFound));
        check(&log);
    });
}

fn refused(world: &World, disk: &FakeDisk) -> LogError {
    let opened = world.block_on(async { Logged::open(world.clone(), disk.clone(), small()).await });
    match opened {
        Ok(_) => panic!("the log was opened"),
        Err(error) => error,
    }
}

#[test]
fn a_wrong_missing_or_older_folder_is_refused() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    let older = world.block_on(async {
        let log = open(&world, &disk, small()).await;
        let older = disk.state().owner.clone();
        assert!(log.close().await.expect("no fault"), "an empty log is drained");
        let log = open(&world, &disk, small()).await;
        log.objects().put("a", vec![Bytes::from_static(b"a")]).await.expect("a put");
        older
    });
    cut(&world, &disk);
    let missing = refused(&world, &FakeDisk::new(&world, 2));
    assert!(matches!(&missing, LogError::Missing(home) if home.place == "here"), "{missing}");
    let foreign = FakeDisk::new(&world, 3);
    let owner = crate::format::log::Owner { volume: crate::types::VolumeId([9; 16]), epoch: 1 };
    foreign.state().owner = Some(owner.encode());
    assert!(matches!(refused(&world, &foreign), LogError::Foreign));
    foreign.state().owner = older;
    let older = refused(&world, &foreign);
    assert!(matches!(&older, LogError::Older { found, home } if *found < home.epoch), "{older}");
    foreign.state().owner = Some(Bytes::from_static(b"something else"));
    assert!(matches!(refused(&world, &foreign), LogError::Unreadable));
    world.block_on(async {
        open(&world, &disk, small()).await;
    });
}

/// The volume forgets a log that was drained: another folder began with the epochs from the start, and the first one
/// passed for it, being ahead.
#[test]
fn a_folder_of_the_past_does_not_pass_for_another_one() {
    let world = World::mountable();
    let (first, second) = (FakeDisk::new(&world, 1), FakeDisk::new(&world, 2));
    world.block_on(async {
        for _ in 0..3 {
            assert!(open(&world, &first, small()).await.close().await.expect("no fault"));
        }
        let log = open(&world, &second, LogOptions { upload_delay: Duration::from_secs(3600), ..small() }).await;
        log.objects().put("a", vec![Bytes::from_static(b"body")]).await.expect("a put");
        log.objects().barrier().await.expect("a barrier");
    });
    cut(&world, &second);
    assert!(matches!(refused(&world, &first), LogError::Older { .. }));
    world.block_on(async {
        let log = open(&world, &second, small()).await;
        assert_eq!(log.objects().get("a", 0..4).await.expect("it is there"), "body");
    });
}

#[test]
fn damage_is_told_and_the_rest_is_there() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    let options = || LogOptions { upload_delay: Duration::from_secs(3600), ..small() };
    world.block_on(async {
        let log = open(&world, &disk, options()).await;
        for key in ["a", "b", "c"] {
            log.objects().put(key, vec![Bytes::from(vec![1; 6000])]).await.expect("a put");
            log.objects().barrier().await.expect("a barrier");
        }
    });
    cut(&world, &disk);
    // In the body of "b": the third record begins at the fourth page after it.
    disk.rot(1, 4096 + 8192 + 1000);
    world.block_on(async {
        let opened = Logged::open(world.clone(), disk.clone(), LogOptions::default()).await;
        let opened = opened.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(opened.damage.len(), 1, "{:?}", opened.damage);
        assert_eq!(opened.damage[0].key.as_deref(), Some("b"));
        opened.env.drain().await;
        assert!(opened.env.close().await.expect("no fault"));
    });
    let found: Vec<String> = world.state().objects.keys().cloned().collect();
    assert_eq!(found, ["a", "c", crate::format::block::VOLUME_OBJECT]);
    assert_eq!(disk.state().aside, [1], "what is damaged is kept");
}

#[test]
fn a_read_only_mount_sees_the_log_and_changes_nothing() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    world.block_on(async {
        let log = open(&world, &disk, LogOptions { upload_delay: Duration::from_secs(3600), ..small() }).await;
        log.objects().put("a", vec![Bytes::from_static(b"body")]).await.expect("a put");
        log.objects().barrier().await.expect("a barrier");
    });
    cut(&world, &disk);
    let (before, owner) = (world.read(|read| meta::volume::load(read)), disk.state().owner.clone());
    world.block_on(async {
        let log = open(&world, &disk, LogOptions { mode: LogMode::ReadOnly, ..small() }).await;
        assert_eq!(log.objects().get("a", 1..3).await.expect("it is there"), "od");
        assert!(!log.close().await.expect("no fault"));
    });
    assert_eq!(world.read(|read| meta::volume::load(read)), before);
    assert_eq!(disk.state().owner, owner);
    assert_eq!(world.state().objects.len(), 1);
}

/// A mounted client that makes files of one small block each.
struct Writer {
    log: Log,
    client: Client<Log>,
}

impl Writer {
    const LEN: usize = 1000;

    async fn mount(world: &World, disk: &FakeDisk, options: LogOptions) -> Self {
        let log = open(world, disk, options).await;
        let client = Client::mount(log.clone(), Options::default()).await.expect("a mount");
        Self { log, client }
    }

    fn bytes(number: u64) -> Vec<u8> {
        (0..Self::LEN as u64).map(|at| (number * 31 + at * 7) as u8).collect()
    }

    async fn write(&self, numbers: Range<u64>) {
        for number in numbers {
            let caller = crate::client::Caller { uid: 0, gid: 0, umask: None };
            let flags = crate::client::OpenFlags { write: true, ..crate::client::OpenFlags::default() };
            let name = format!("{number}");
            let made = self.client.create(caller, Ino::ROOT, name.as_bytes(), 0o644, flags).await;
            let (entry, handle) = made.expect("a file");
            self.client.write(handle, 0, Self::bytes(number).into(), false).await.expect("a write");
            self.client.fsync(handle).await.expect("an fsync");
            self.client.release(handle).await.expect("a release");
            self.client.forget(entry.ino, 1);
        }
        self.log.drain().await;
    }

    async fn remove(&self, number: u64) {
        self.client.unlink(Ino::ROOT, format!("{number}").as_bytes()).await.expect("it is there");
    }

    async fn read(&self, number: u64) {
        let entry = self.client.lookup(Ino::ROOT, format!("{number}").as_bytes()).await.expect("it is there");
        let flags = crate::client::OpenFlags { read: true, ..crate::client::OpenFlags::default() };
        let handle = self.client.open(entry.ino, flags).await.expect("it opens");
        let found = self.client.read(handle, 0, 2 * Self::LEN as u32).await.expect("it can be read");
        assert_eq!(found.into_contiguous(), Self::bytes(number), "file {number}");
        self.client.release(handle).await.expect("a release");
        self.client.forget(entry.ino, 1);
    }

    async fn unmount(self) {
        self.client.unmount().await.expect("an unmount");
        self.log.drain().await;
        assert!(self.log.close().await.expect("no fault"));
    }
}

/// Objects in the store: packs, and blocks by themselves.
fn stored(world: &World) -> (usize, usize) {
    let state = world.state();
    let of = |prefix: &str| state.objects.keys().filter(|key| key.starts_with(prefix)).count();
    (of("packs/"), of("blocks/"))
}

fn sound(world: &World) {
    let findings = core::cell::RefCell::new(Vec::new());
    world.read(|read| {
        findings.borrow_mut().clear();
        meta::invariant::check(read, &mut |_| {}, &mut |finding| findings.borrow_mut().push(finding))
    });
    assert!(findings.borrow().is_empty(), "{findings:?}");
}

async fn until(world: &World, holds: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        world.sleep_until(world.now() + Duration::from_millis(100)).await;
    }
    panic!("it never holds");
}

/// The first of two who waited for the log had his end, and the other's uploads went on at leisure.
#[test]
fn uploads_hurry_while_anybody_waits() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    world.block_on(async {
        let log = open(&world, &disk, LogOptions { upload_delay: Duration::from_secs(3600), ..small() }).await;
        let put = async |key| log.objects().put(key, vec![Bytes::from_static(b"body")]).await.expect("a put");
        let is_stored = |key| world.state().objects.contains_key(key);
        log.hurry(true);
        log.hurry(true);
        log.hurry(false);
        put("first").await;
        until(&world, || is_stored("first")).await;
        log.hurry(false);
        put("second").await;
        world.sleep_until(world.now() + Duration::from_secs(600)).await;
        assert!(!is_stored("second"), "nobody waits");
        log.hurry(true);
        until(&world, || is_stored("second")).await;
        log.hurry(false);
    });
}

#[test]
fn small_files_travel_together_and_leave_no_trace() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    world.block_on(async {
        let options = || LogOptions { pack_delay: Duration::from_secs(3600), ..packing() };
        let writer = Writer::mount(&world, &disk, options()).await;
        writer.write(0..60).await;
        let (packs, alone) = stored(&world);
        assert!(
            (3..=6).contains(&packs) && alone <= 1,
            "60 files of {} are {packs} packs and {alone} objects",
            Writer::LEN
        );
        for number in 0..60 {
            writer.read(number).await;
        }
        sound(&world);
        // Half of each is no reason to write the rest again; most of it is.
        for number in (0..60).filter(|number| number % 6 != 0) {
            writer.remove(number).await;
        }
        until(&world, || stored(&world).0 == 1).await;
        for number in (0..60).step_by(6) {
            writer.read(number).await;
        }
        sound(&world);
        writer.unmount().await;
        let writer = Writer::mount(&world, &disk, options()).await;
        for number in (0..60).step_by(6) {
            writer.read(number).await;
            writer.remove(number).await;
        }
        until(&world, || stored(&world) == (0, 0)).await;
        until(&world, || world.read(|read| meta::packs::all(read, None, usize::MAX)).is_empty()).await;
        writer.unmount().await;
        sound(&world);
    });
}

/// Its blocks were moved by a transaction of which nobody knew that it took effect.
#[test]
fn a_pack_that_was_emptied_unknown_to_its_mount_goes() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    world.block_on(async {
        let options = LogOptions { pack_delay: Duration::from_secs(3600), ..packing() };
        let writer = Writer::mount(&world, &disk, options).await;
        writer.write(0..10).await;
        for number in 1..10 {
            writer.remove(number).await;
        }
        let all = || world.read(|read| meta::packs::all(read, None, usize::MAX));
        until(&world, || all().iter().any(|(_, pack)| pack.live < 2000)).await;
        let (old, known) = all()[0];
        let (slice, index) = world.read(|read| meta::packs::list(read, None, SliceId(u64::MAX), 1))[0];
        let packed = world.read(|read| meta::packs::find(read, slice, index)).expect("it is in the pack");
        assert_eq!(known.live, packed.len);
        let new = PackId::new(old.mount(), 1 << 30);
        let [old_key, new_key] = [old, new].map(crate::format::pack::pack_key);
        let bytes = world.state().objects[&old_key].slice(packed.at as usize..(packed.at + packed.len) as usize);
        world.state().objects.insert(new_key, bytes);
        let member = meta::packs::Member { slice, index, at: 0, len: packed.len };
        world.txn(|txn, _| meta::packs::begin(txn, new));
        world.txn(|txn, _| meta::packs::move_to(txn, new, packed.len, &[(member, meta::packs::Origin::Pack(old))]));
        until(&world, || !world.state().objects.contains_key(&old_key)).await;
        writer.read(0).await;
        writer.unmount().await;
        sound(&world);
    });
}

#[test]
fn a_pack_that_a_mount_left_half_way_goes() {
    let world = World::mountable();
    let disk = FakeDisk::new(&world, 1);
    let pack = PackId::new(7, 3);
    world.txn(|txn, _| meta::session::take_id(txn, 8));
    world.txn(|txn, _| meta::packs::begin(txn, pack));
    world.sync_all();
    let key = crate::format::pack::pack_key(pack);
    world.state().objects.insert(key.clone(), Bytes::from_static(b"half"));
    world.block_on(async {
        let log = open(&world, &disk, packing()).await;
        until(&world, || !world.state().objects.contains_key(&key)).await;
        // It comes late.
        world.state().objects.insert(key.clone(), Bytes::from_static(b"half"));
        until(&world, || world.read(|read| meta::packs::all(read, None, usize::MAX)).is_empty()).await;
        assert!(!world.state().objects.contains_key(&key), "what came late is left");
        log.drain().await;
        assert!(log.close().await.expect("no fault"));
    });
}
