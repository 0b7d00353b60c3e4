//! The S3 store against a server: what every store must do, and what a server can do to it.
//!
//! The server is one in this process (`s3server`). With `KISEKI_TEST_S3` set to the URL of a bucket, and keys in the
//! environment, what needs no faults runs against that one as well, under a prefix of its own.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use kiseki::objects::{Access, Credentials, Objects, ObjectsError, Place};
use kiseki_core::env::{ObjectStore, StoreError};
use kiseki_core::testkit::store_conformance;
use tokio::runtime::Runtime;

use self::s3server::{ACCESS_KEY, CA, Cut, S3Server, SECRET_KEY};

mod s3server;

const VOLUME: &str = "vol";
const MINUTE: Duration = Duration::from_secs(60);

struct Bench {
    runtime: Runtime,
}

impl Bench {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { runtime: runtime.expect("an executor") }
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    fn try_open(&self, place: &Place, keys: Option<&Credentials>, access: Access) -> Result<Objects, ObjectsError> {
        Objects::open(place, keys, access, MINUTE, self.runtime.handle().clone())
    }

    fn open(&self, place: &Place, keys: &Credentials, access: Access) -> Objects {
        self.try_open(place, Some(keys), access).expect("the object store")
    }

    fn objects(&self, server: &S3Server) -> Objects {
        self.open(&server.place(VOLUME), &S3Server::credentials(), Access::Write)
    }

    fn impatient(&self, server: &S3Server, timeout: Duration) -> Objects {
        let handle = self.runtime.handle().clone();
        let keys = S3Server::credentials();
        Objects::open(&server.place(VOLUME), Some(&keys), Access::Write, timeout, handle).expect("the object store")
    }

    /// What the probe finds wrong.
    fn probe(&self, place: &Place, keys: &Credentials, access: Access) -> ObjectsError {
        self.wait(self.open(place, keys, access).probe()).expect_err("something is wrong")
    }
}

/// Runs `check` on an empty prefix of each server there is.
fn on_each_server(check: impl Fn(&Bench, &Place, &Credentials)) {
    let bench = Bench::new();
    let server = S3Server::start();
    check(&bench, &server.place(VOLUME), &S3Server::credentials());
    drop(server);
    let Ok(bucket) = std::env::var("KISEKI_TEST_S3") else { return };
    let keys = Credentials::from_env().expect("a pair of keys").expect("keys for the server of KISEKI_TEST_S3");
    let place = Place::parse("s3", &bucket, &format!("test-{}", uuid::Uuid::new_v4())).expect("a bucket");
    check(&bench, &place, &keys);
    // Leave nothing behind.
    let objects = bench.open(&place, &keys, Access::Write);
    bench.wait(async {
        loop {
            let page = objects.list("", None).await.expect("a list");
            if page.keys.is_empty() && page.next.is_none() {
                break;
            }
            let deleted = join_all(page.keys.iter().map(|key| objects.delete(key))).await;
            assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
        }
    });
}

fn body(len: usize) -> Vec<Bytes> {
    vec![Bytes::from(pattern(len))]
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 251) as u8).collect()
}

async fn put_patiently(objects: &Objects, key: &str, body: Vec<Bytes>) {
    while let Err(error) = objects.put(key, body.clone()).await {
        assert_eq!(error, StoreError::Retry, "{key}");
    }
}

async fn get_patiently(objects: &Objects, key: &str, len: usize) -> Bytes {
    loop {
        match objects.get(key, 0..len as u64).await {
            Ok(bytes) => return bytes,
            Err(error) => assert_eq!(error, StoreError::Retry, "{key}"),
        }
    }
}

#[test]
fn s3_passes_the_conformance_suite() {
    on_each_server(|bench, place, keys| {
        let objects = bench.open(place, keys, Access::Write);
        bench.wait(store_conformance::run(&objects, 1100));
        assert_eq!(objects.trouble(), None);
        assert_eq!(objects.counts().throttled, 0);
    });
}

#[test]
fn objects_of_all_sizes_come_back() {
    on_each_server(|bench, place, keys| {
        let objects = bench.open(place, keys, Access::Write);
        // The largest block with its head, in as many segments as a block has pages.
        for len in [0, 1, 65_536, (4 << 20) + 3, (16 << 20) + 2077] {
            let whole = pattern(len);
            let segments = whole.chunks(4096).map(Bytes::copy_from_slice).collect();
            bench.wait(objects.put("blocks/o", segments)).expect("a put");
            let got = bench.wait(objects.get("blocks/o", 0..len as u64)).expect("a get");
            assert!(got == whole, "{len} bytes");
            let past = bench.wait(objects.get("blocks/o", 0..len as u64 + 1));
            assert_eq!(past, Err(StoreError::Short), "{len} bytes");
        }
    });
}

#[test]
fn place_that_can_be_used_passes_the_probe() {
    on_each_server(|bench, place, keys| {
        let writer = bench.open(place, keys, Access::Write);
        bench.wait(writer.probe()).expect("a place that can be written");
        assert_eq!(bench.wait(writer.any_key()).expect("a list"), None, "the probe left something");
        bench.wait(writer.put("deep/er/o", body(1))).expect("a put");
        assert_eq!(bench.wait(writer.any_key()).expect("a list"), Some("deep/er/o".to_owned()));
        let reader = bench.open(place, keys, Access::Read);
        bench.wait(reader.probe()).expect("a place that can be read");
        assert_eq!(bench.wait(reader.put("o", body(1))), Err(StoreError::Denied));
        assert_eq!(bench.wait(reader.delete("deep/er/o")), Err(StoreError::Denied));
        assert_eq!(bench.wait(reader.get("deep/er/o", 0..1)), Ok(Bytes::from(pattern(1))));
    });
}

#[test]
fn each_call_is_one_request() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let objects = bench.objects(&server);
    bench.wait(objects.put("blocks/o", body(9 << 20))).expect("a put");
    bench.wait(objects.barrier()).expect("a barrier");
    bench.wait(objects.get("blocks/o", 100..5 << 20)).expect("a get");
    bench.wait(objects.list("blocks/", None)).expect("a list");
    bench.wait(objects.delete("blocks/o")).expect("a delete");
    let verbs: Vec<&str> = server.asked().iter().map(|asked| asked.verb).collect();
    assert_eq!(verbs, ["put", "get", "list", "delete"]);
    assert_eq!(server.asked()[0].path, "/kiseki/vol/blocks/o");
    let counts = objects.counts();
    assert_eq!((counts.puts, counts.gets, counts.lists, counts.deletes), (1, 1, 1, 1));
    assert_eq!((counts.put_bytes, counts.got_bytes), (9 << 20, (5 << 20) - 100));
    assert_eq!((counts.failures, counts.throttled), (0, 0));
}

#[test]
fn pages_of_a_list_are_those_of_the_server() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let objects = bench.objects(&server);
    std::fs::create_dir_all(server.object("vol/many")).expect("a folder");
    for index in 0..2500 {
        std::fs::write(server.object(&format!("vol/many/{index:04}")), "o").expect("an object");
    }
    std::fs::write(server.object("vol/many-more"), "o").expect("an object");
    std::fs::write(server.object("vol/.probe-left"), "o").expect("what a probe may leave");
    let (mut after, mut sizes) = (None, Vec::new());
    loop {
        let page = bench.wait(objects.list("", after.as_deref())).expect("a list");
        sizes.push(page.keys.len());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(sizes, [999, 1000, 502]);
    assert_eq!(server.count("list"), 3);
}

#[test]
fn refusals_slow_the_client_down_and_fail_nothing() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let objects = bench.objects(&server);
    assert_eq!(objects.windows(), (64, 64));
    server.fault(|faults| faults.every_nth_503 = 2);
    bench.wait(async {
        let tasks = (0..40).map(|index| {
            let objects = &objects;
            async move {
                let (key, len) = (format!("o/{index}"), 1000 + index);
                put_patiently(objects, &key, body(len)).await;
                assert!(get_patiently(objects, &key, len).await == pattern(len), "{key}");
            }
        });
        join_all(tasks).await;
    });
    let (counts, (puts, gets)) = (objects.counts(), objects.windows());
    assert!(counts.throttled >= 20 && counts.failures == counts.throttled, "{counts:?}");
    assert_eq!(counts.puts + counts.gets, 80 + counts.throttled);
    assert!(puts < 64 && gets < 64, "{puts} puts, {gets} gets");
    // And it gets faster again.
    server.heal();
    let start = Instant::now();
    while objects.windows() != (64, 64) {
        assert!(start.elapsed() < MINUTE, "{:?}", objects.windows());
        bench.wait(async {
            join_all((0..64).map(|_| objects.put("o/0", body(10)))).await;
            join_all((0..64).map(|_| objects.get("o/1", 0..10))).await;
        });
    }
    assert_eq!(objects.trouble(), None);
}

#[test]
fn nothing_starts_before_the_server_wants_to_be_asked() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let objects = bench.objects(&server);
    server.fault(|faults| (faults.every_nth_503, faults.retry_after) = (1, Some(1)));
    assert_eq!(bench.wait(objects.put("o", body(10))), Err(StoreError::Retry));
    server.heal();
    let start = Instant::now();
    bench.wait(objects.get("nothing", 0..1)).expect_err("no such object");
    assert!(start.elapsed() < Duration::from_millis(900), "reads have a window of their own");
    bench.wait(objects.put("o", body(10))).expect("a put");
    assert!(start.elapsed() > Duration::from_millis(900), "{:?}", start.elapsed());
}

#[test]
fn server_that_hangs_is_given_up_at_the_deadline_and_asked_again_later() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let objects = bench.impatient(&server, Duration::from_millis(300));
    bench.wait(objects.put("o", body(10))).expect("a put");
    server.fault(|faults| faults.hang = true);
    let start = Instant::now();
    bench.wait(async {
        // More than there is room for.
        let gets = join_all((0..80).map(|_| objects.get("o", 0..10))).await;
        assert!(gets.iter().all(|got| *got == Err(StoreError::Retry)), "{gets:?}");
        assert_eq!(objects.put("p", body(3 << 20)).await, Err(StoreError::Retry));
        assert_eq!(objects.delete("o").await, Err(StoreError::Retry));
        assert_eq!(objects.list("", None).await.err(), Some(StoreError::Retry));
    });
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let trouble = objects.trouble().expect("trouble");
    assert!(trouble.text.contains("does not answer") && trouble.since > Duration::from_millis(500), "{trouble:?}");
    server.heal();
    bench.wait(async {
        put_patiently(&objects, "p", body(10)).await;
        assert_eq!(get_patiently(&objects, "p", 10).await, pattern(10));
    });
    assert_eq!(objects.trouble(), None);
}

#[test]
fn reads_go_on_while_writes_hang() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let objects = bench.objects(&server);
    bench.wait(objects.put("o", body(10))).expect("a put");
    server.fault(|faults| faults.hang_writes = true);
    bench.wait(async {
        for index in 0..100 {
            drop(objects.put(&format!("p/{index}"), body(10)));
        }
        while server.count("put") < 65 {
            tokio::task::yield_now().await;
        }
        assert_eq!(objects.get("o", 0..10).await, Ok(Bytes::from(pattern(10))));
        // A put that nobody waits for is carried out.
        server.heal();
        while objects.get("p/99", 0..10).await.is_err() {}
    });
}

#[test]
fn what_is_missing_is_told_from_what_cannot_be_had() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let objects = bench.objects(&server);
    let get = |key: &str| bench.wait(objects.get(key, 0..100_000));
    bench.wait(objects.put("o", body(100_000))).expect("a put");
    assert_eq!(get("gone"), Err(StoreError::NotFound));
    // The server has less than it should.
    server.fault(|faults| faults.cut_bodies = Cut::Short);
    assert_eq!(get("o"), Err(StoreError::Short));
    // The connection ends; the object may be whole.
    server.fault(|faults| faults.cut_bodies = Cut::Broken);
    assert_eq!(get("o"), Err(StoreError::Retry));
    server.heal();
    assert_eq!(get("o"), Ok(Bytes::from(pattern(100_000))));
    // Whether the bytes are the right ones is not known here.
    server.fault(|faults| faults.flip = true);
    assert!(get("o").expect("a get") != pattern(100_000));
    server.heal();
    server.truncate("vol/o", 99_999);
    assert_eq!(get("o"), Err(StoreError::Short));
    server.truncate("vol/o", 0);
    assert_eq!(get("o"), Err(StoreError::Short));
    server.delete("vol/o");
    assert_eq!(get("o"), Err(StoreError::NotFound));
    server.hide_bucket(true);
    assert_eq!(get("o"), Err(StoreError::Retry));
    assert_eq!(bench.wait(objects.put("o", body(10))), Err(StoreError::Retry));
    assert_eq!(bench.wait(objects.delete("o")), Err(StoreError::Retry));
    assert_eq!(bench.wait(objects.list("", None)).err(), Some(StoreError::Retry));
    assert!(objects.trouble().expect("trouble").text.contains("NoSuchBucket"));
    server.hide_bucket(false);
    assert_eq!(get("o"), Err(StoreError::NotFound));
    assert_eq!(objects.trouble(), None);
    // A page that is not from S3 says nothing about an object.
    server.fault(|faults| faults.refuse = Some((404, "")));
    assert_eq!(get("o"), Err(StoreError::Retry));
    server.fault(|faults| faults.refuse = Some((507, "XMinioStorageFull")));
    assert_eq!(bench.wait(objects.put("o", body(10))), Err(StoreError::Full));
    server.fault(|faults| faults.refuse = Some((403, "RequestTimeTooSkewed")));
    assert_eq!(bench.wait(objects.put("o", body(10))), Err(StoreError::Retry));
    server.heal();
    server.fault(|faults| faults.deny_writes = true);
    assert_eq!(bench.wait(objects.put("o", body(10))), Err(StoreError::Denied));
}

#[test]
fn body_that_is_damaged_on_its_way_is_not_taken() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let objects = bench.objects(&server);
    server.fault(|faults| faults.flip_puts = true);
    assert_eq!(bench.wait(objects.put("o", body(100_000))), Err(StoreError::Retry));
    server.heal();
    bench.wait(objects.put("o", body(100_000))).expect("a put");
}

#[test]
fn probe_says_what_is_wrong_and_what_to_do() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let (place, good) = (server.place(VOLUME), S3Server::credentials());
    let expect = |found: ObjectsError, texts: &[&str]| {
        let shown = found.to_string();
        for text in texts {
            assert!(shown.contains(text), "\"{text}\" in: {shown}");
        }
        assert!(!format!("{found:?} {shown}").contains("test-secret"), "{found:?}");
        found
    };
    let at = place.to_string();
    let start = Instant::now();

    let found = bench.try_open(&place, None, Access::Read).err().expect("no keys");
    assert!(matches!(expect(found, &[&at, "--access-key", "KISEKI_SECRET_KEY"]), ObjectsError::NoKeys { .. }));
    let wrong = [
        Credentials { access_key: "nobody".into(), ..good.clone() },
        Credentials { secret_key: "test-secret-kez".into(), ..good.clone() },
    ];
    for keys in wrong {
        let found = bench.probe(&place, &keys, Access::Read);
        assert!(matches!(expect(found, &[&at, "check the access key"]), ObjectsError::Keys { .. }));
    }
    let elsewhere = Place::parse("s3", &format!("{}/missing", server.endpoint()), VOLUME).expect("a place");
    let found = bench.probe(&elsewhere, &good, Access::Write);
    assert!(matches!(expect(found, &["/missing/vol", "make the bucket first"]), ObjectsError::NoBucket { .. }));

    server.fault(|faults| faults.deny_writes = true);
    bench.wait(bench.open(&place, &good, Access::Read).probe()).expect("reading is allowed");
    let found = bench.probe(&place, &good, Access::Write);
    assert!(matches!(expect(found, &[&at, "not put", "AccessDenied"]), ObjectsError::Denied { verb: "put", .. }));
    let refusals: [(u16, &'static str, &[&str]); 5] = [
        (403, "RequestTimeTooSkewed", &["set the clocks right", "its clock says"]),
        (507, "XMinioStorageFull", &["is full"]),
        (400, "AuthorizationHeaderMalformed", &["fails to list", "its region"]),
        (500, "InternalError", &["fails to list: HTTP status 500, InternalError: No, says the test."]),
        (503, "SlowDown", &["HTTP status 503"]),
    ];
    for (status, code, texts) in refusals {
        server.fault(|faults| faults.refuse = Some((status, code)));
        expect(bench.probe(&place, &good, Access::Write), &[&[at.as_str()], texts].concat());
    }
    server.heal();
    server.fault(|faults| faults.every_nth_503 = 2);
    bench.wait(bench.open(&place, &good, Access::Write).probe()).expect("a store that works now and then");
    server.heal();

    let unreachable = "http://nowhere.invalid:9000/kiseki";
    let unknown = Place::parse("s3", unreachable, VOLUME).expect("a place");
    let found = bench.probe(&unknown, &good, Access::Write);
    assert!(matches!(expect(found, &[unreachable, "is the address right"]), ObjectsError::Unreachable { .. }));
    drop(server);
    let found = bench.probe(&place, &good, Access::Write);
    assert!(matches!(expect(found, &[&at, "Connection refused"]), ObjectsError::Unreachable { .. }));
    // A dozen probes, most of which try a few times.
    assert!(start.elapsed() < MINUTE, "{:?}", start.elapsed());
}

#[test]
fn probe_of_a_server_that_hangs_ends() {
    let (bench, server) = (Bench::new(), S3Server::start());
    server.fault(|faults| faults.hang = true);
    let start = Instant::now();
    let found = bench.probe(&server.place(VOLUME), &S3Server::credentials(), Access::Write);
    assert!(found.to_string().contains("no answer within"), "{found}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn bucket_may_be_in_the_host_name() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let port = server.port();
    let place = Place::parse("s3", &format!("http://kiseki.localhost:{port}/folder?style=host"), VOLUME);
    let objects = bench.open(&place.expect("a place"), &S3Server::credentials(), Access::Write);
    bench.wait(async {
        objects.put("a/o", body(100)).await.expect("a put");
        assert_eq!(objects.get("a/o", 50..60).await, Ok(Bytes::copy_from_slice(&pattern(100)[50..60])));
        assert_eq!(objects.list("a/", None).await.expect("a list").keys, ["a/o"]);
        objects.probe().await.expect("a place that can be used");
    });
    assert_eq!(server.keys(), ["folder/vol/a/o"]);
    let asked = server.asked();
    assert!(asked.iter().all(|asked| asked.host == format!("kiseki.localhost:{port}")), "{asked:?}");
    assert_eq!(asked[0].path, "/folder/vol/a/o");
}

#[test]
fn host_that_begins_with_the_name_of_the_bucket_is_left_alone() {
    let (bench, server) = (Bench::new(), S3Server::start());
    let port = server.port();
    let place = Place::parse("minio", &format!("http://kiseki.localhost:{port}/kiseki"), VOLUME).expect("a place");
    let objects = bench.open(&place, &S3Server::credentials(), Access::Write);
    bench.wait(objects.put("o", body(100))).expect("a put");
    let asked = server.asked();
    assert_eq!((&*asked[0].host, &*asked[0].path), (&*format!("kiseki.localhost:{port}"), "/kiseki/vol/o"));
}

#[test]
fn tls_with_a_certificate_of_ones_own() {
    let (bench, server) = (Bench::new(), S3Server::start_tls());
    let (port, keys) = (server.port(), S3Server::credentials());
    let place = |options: &str| {
        Place::parse("minio", &format!("https://localhost:{port}/kiseki{options}"), VOLUME).expect("a place")
    };
    let objects = bench.open(&place(&format!("?ca={CA}")), &keys, Access::Write);
    bench.wait(async {
        objects.probe().await.expect("a place that can be used");
        objects.put("o", body(5 << 20)).await.expect("a put");
        assert!(objects.get("o", 0..5 << 20).await.expect("a get") == pattern(5 << 20));
    });
    let found = bench.probe(&place(""), &keys, Access::Write);
    assert!(matches!(found, ObjectsError::Unreachable { .. }), "{found:?}");
    assert!(found.to_string().contains("ertificate"), "{found}");
    for (options, text) in [("?ca=/nowhere/ca.pem", "No such file"), ("?ca=/proc/version", "there is none in it")] {
        let found = bench.try_open(&place(options), Some(&keys), Access::Write).err().expect("no such CA");
        assert!(matches!(found, ObjectsError::Ca { .. }) && found.to_string().contains(text), "{found}");
    }
}

/// What is logged in this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("the log").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn keys_are_logged_nowhere_and_failures_not_each() {
    const FAILURES: usize = 300;
    let log = Log::default();
    let writer = log.clone();
    // All that our side can log, the server's not: it runs on other threads.
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("trace,s3s=off,s3s_fs=off")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let server = S3Server::start();
    let place = server.place(VOLUME);
    let start = Instant::now();
    let seconds = tracing::subscriber::with_default(subscriber, || {
        // One thread, which has the subscriber.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
        let wrong = Credentials { secret_key: "test-secret-kez".into(), ..S3Server::credentials() };
        let open = |keys: &Credentials| {
            Objects::open(&place, Some(keys), Access::Write, MINUTE, runtime.handle().clone()).expect("the store")
        };
        let (objects, refused) = (open(&S3Server::credentials()), open(&wrong));
        runtime.block_on(async {
            objects.put("o", body(1000)).await.expect("a put");
            assert_eq!(refused.get("o", 0..1).await, Err(StoreError::Denied));
            refused.probe().await.expect_err("wrong keys");
            let refusals = [
                (403, "SignatureDoesNotMatch"),
                (403, "AccessDenied"),
                (500, "InternalError"),
                (403, "RequestTimeTooSkewed"),
            ];
            for refusal in refusals {
                server.fault(|faults| faults.refuse = Some(refusal));
                objects.put("o", body(10)).await.expect_err("a refusal");
            }
            server.fault(|faults| faults.refuse = Some((500, "InternalError")));
            for _ in 0..FAILURES {
                objects.get("o", 0..10).await.expect_err("a refusal");
            }
            let trouble = objects.trouble().expect("trouble");
            assert!(trouble.text.contains("InternalError"), "{trouble:?}");
            server.heal();
            objects.get("o", 0..10).await.expect("a get");
        });
        start.elapsed().as_secs() as usize
    });
    let text = String::from_utf8(log.0.lock().expect("the log").clone()).expect("UTF-8");
    for secret in [ACCESS_KEY, SECRET_KEY, "test-secret-kez", "Signature=", "StringToSign"] {
        assert!(!text.contains(secret), "{secret} is in the log: {text}");
    }
    assert!(text.contains("SignatureDoesNotMatch: No, says the test."), "{text}");
    assert!(text.contains("set them right"), "{text}");
    let warned = text.lines().filter(|line| line.contains(" WARN ") && line.contains("InternalError")).count();
    assert!((1..=seconds + 2).contains(&warned), "{warned} lines in {seconds} s");
}
