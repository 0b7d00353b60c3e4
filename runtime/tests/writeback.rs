//! The write-back log on a real disk passes the suites that any object store passes, and its folder those of a disk.

use std::time::Duration;

use kiseki::rocks::OpenMode;
use kiseki_core::env::{Env, ObjectStore};
use kiseki_core::testkit::{disk_conformance, store_conformance};

mod logged;
mod volume;

use logged::{executor, open_folder, stores, wait, with_log};

#[test]
fn a_folder_passes_the_conformance_suite_of_disks() {
    let (dir, runtime) = (tempfile::tempdir().expect("a folder"), executor());
    wait(disk_conformance::run(&open_folder(&dir.path().join("log"), &runtime)));
}

#[test]
fn objects_with_a_log_pass_the_conformance_suite() {
    let (dir, runtime) = (tempfile::tempdir().expect("a folder"), executor());
    let env = stores(dir.path(), OpenMode::Create, &runtime);
    let logged = with_log(env.clone(), dir.path(), &runtime);
    wait(store_conformance::run(logged.objects(), 300));
    let numbers = wait(store_conformance::put_before_crash(logged.objects(), 30));
    // What is under way ends, and the rest stays where it is.
    wait(logged.close()).expect("it ends");
    drop(logged);
    let logged = with_log(env.clone(), dir.path(), &runtime);
    let absent = wait(store_conformance::check_after_crash(logged.objects(), numbers));
    assert_eq!(absent, 0, "the next finds all that was put");
    wait(logged.drain());
    assert!(wait(logged.close()).expect("it ends"), "nothing is left");
    drop(logged);
    env.meta().close().expect("a clean close");
}

#[test]
fn an_object_is_in_the_store_soon_after_it_was_put() {
    let (dir, runtime) = (tempfile::tempdir().expect("a folder"), executor());
    let env = stores(dir.path(), OpenMode::Create, &runtime);
    let logged = with_log(env.clone(), dir.path(), &runtime);
    wait(logged.objects().put("a/b", vec![vec![1; 1000].into(), vec![2; 500].into()])).expect("a put");
    wait(logged.objects().barrier()).expect("a barrier");
    let end = logged.now() + Duration::from_secs(60);
    while wait(env.objects().get("a/b", 999..1001)).ok().as_deref() != Some(&[1, 2]) {
        assert!(logged.now() < end, "it is not put");
        wait(logged.sleep_until(logged.now() + Duration::from_millis(5)));
    }
    wait(logged.drain());
    assert!(wait(logged.close()).expect("it ends"));
    drop(logged);
    env.meta().close().expect("a clean close");
}
