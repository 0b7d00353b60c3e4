//! The S3 store against a server: what every store must do, and what a server can do to it.
//!
//! Without further ado the server is one in this process (`s3server`). With `KISEKI_TEST_S3` set to the URL of a bucket,
//! and keys in the environment, what needs no faults runs against that one as well, under a prefix of its own.

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kiseki::objects::{Access, Credentials, Objects, ObjectsError, Place};
use kiseki_core::env::{ObjectStore, StoreError};
use kiseki_core::testkit::store_conformance;
use tokio::runtime::Runtime;

use self::s3server::{Cut, S3Server};

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

    fn open(&self, place: &Place, keys: &Credentials, access: Access, timeout: Duration) -> Objects {
        Objects::open(place, Some(keys), access, timeout, self.runtime.handle().clone()).expect("the object store")
    }

    fn objects(&self, server: &S3Server) -> Objects {
        self.open(&server.place(VOLUME), &S3Server::credentials(), Access::Write, MINUTE)
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
    let objects = bench.open(&place, &keys, Access::Write, MINUTE);
    bench.wait(async {
        while let Some(key) = objects.any_key().await.expect("a list") {
            objects.delete(&key).await.expect("a delete");
        }
    });
}

#[test]
fn s3_passes_the_conformance_suite() {
    on_each_server(|bench, place, keys| {
        let objects = bench.open(place, keys, Access::Write, MINUTE);
        bench.wait(store_conformance::run(&objects, 2100));
        assert_eq!(objects.trouble(), None);
    });
}
