//! A volume in a bucket from its format to its end: what works.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kiseki::objects::{Access, Credentials, Objects, Place};
use kiseki_core::env::ObjectStore;
use rustix::process::Pid;
use serde_json::Value as Json;

use crate::harness::{Bucket, Foreground, Mounted, User};
use crate::s3server::{self, ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use crate::volume::{NAME, PATIENCE, Ran, World, eventually, files_below, noise};

/// Format, mount, write, read, status, umount, fsck: as on any store.
fn a_day_in_the_life(world: &World, storage: &str, bucket: &str, user: &User) {
    let meta = world.meta();
    let args = ["format", &meta, NAME, "--storage", storage, "--bucket", bucket, "--block-size", "64K", "--json"];
    let made = user.runs(&args).ends(0).json();
    assert_eq!(made["volume"]["storage"], storage);
    assert!(made["volume"]["objects"].as_str().unwrap().ends_with(&format!("/{NAME}")), "{made}");
    // Settings are read without keys.
    assert_eq!(User::without_keys().runs(&["status", &meta, "--json"]).ends(0).json(), made);
    user.runs(&args).fails_with(&["already holds the volume"]);

    let mounted = Mounted::new(world, user, &["--max-uploads", "4"]);
    let contents = noise(1, 1 << 20);
    fs::create_dir(mounted.file("dir")).unwrap();
    fs::write(mounted.file("dir/large"), &contents).unwrap();
    fs::File::open(mounted.file("dir/large")).and_then(|file| file.sync_all()).unwrap();
    fs::write(mounted.file("small"), "some words").unwrap();
    eventually("it is in the bucket", || mounted.status()["mount"]["store"]["put_bytes"].as_u64().unwrap() >= 1 << 20);
    let store = &mounted.status()["mount"]["store"];
    assert_eq!(store["place"], made["volume"]["objects"]);
    assert_eq!((&store["ok"], &store["error"], &store["failing_secs"]), (&true.into(), &Json::Null, &Json::Null));
    assert_eq!((&store["max_uploads"], &store["failures"]), (&4.into(), &0.into()), "{store}");
    assert!(store["put_bytes"].as_u64().unwrap() >= 1 << 20, "{store}");
    let text = user.runs(&["status", mounted.text()]).ends(0).stdout;
    for expected in ["Object store:", "answers", "Requests:", "at most 4 at once"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // Through the mount, which has the keys.
    User::without_keys().runs(&["fsck", mounted.text(), "--data"]).ends(0);
    mounted.unmount();

    let checked = user.runs(&["fsck", &meta, "--data", "--json"]).ends(0).json();
    assert_eq!(checked["checked"]["blocks"], 16);
    let mounted = Mounted::new(world, user, &["--read-only"]);
    assert_eq!(fs::read(mounted.file("dir/large")).unwrap(), contents);
    assert_eq!(fs::read(mounted.file("small")).unwrap(), b"some words");
    mounted.unmount();
    let mounted = Mounted::new(world, user, &[]);
    fs::remove_file(mounted.file("dir/large")).unwrap();
    mounted.unmount();
    user.runs(&["fsck", &meta, "--data"]).ends(0);
}

#[test]
fn a_volume_lives_in_a_bucket() {
    let bucket = Bucket::new();
    a_day_in_the_life(&bucket.world, "minio", &bucket.url, &bucket.user);
    let bucket = Bucket::new();
    a_day_in_the_life(&bucket.world, "s3", &format!("{}/some/folder", bucket.url), &bucket.user);
    assert!(bucket.server.bucket().join("some/folder").join(NAME).join("kiseki.volume").exists());
}

#[test]
fn a_certificate_of_an_own_authority_is_trusted_if_told() {
    let (world, server) = (World::new(), S3Server::start_tls());
    let (meta, user, url) = (world.meta(), User::with_keys(ACCESS_KEY, SECRET_KEY), server.bucket_url());
    let format = ["format", &meta, NAME, "--storage", "minio", "--bucket", &url];
    user.runs(&format).fails_with(&["cannot reach", "ertificate"]);
    assert!(!world.path("meta").exists());
    // Relative to where the command runs; kept for later, wherever that runs.
    let folder = Path::new(s3server::CA).parent().unwrap();
    let ran: Ran =
        user.command(&[&format[..], &["--ca-cert", "ca.pem"]].concat()).current_dir(folder).output().unwrap().into();
    assert!(ran.ends(0).stdout.contains(&url));
    let mounted = Mounted::new(&world, &user, &[]);
    fs::write(mounted.file("file"), "some words").unwrap();
    mounted.unmount();
    user.runs(&["fsck", &meta, "--data"]).ends(0);
    let other = format!("https://localhost:{}/{BUCKET}", server.port());
    Mounted::new(&world, &user, &["--bucket", &other, "--ca-cert", s3server::CA]).unmount();
}

/// With `KISEKI_TEST_S3` set to the URL of a bucket, and keys in the environment.
#[test]
fn a_volume_lives_in_a_bucket_of_another_server() {
    let Ok(url) = std::env::var("KISEKI_TEST_S3") else { return };
    let keys = Credentials::from_env().expect("whole pairs of keys").expect("keys for the server of KISEKI_TEST_S3");
    let mut user = User::with_keys(&keys.access_key, &keys.secret_key);
    if let Some(token) = &keys.session_token {
        user = user.and("KISEKI_SESSION_TOKEN", token);
    }
    let (base, query) = url.split_once('?').map_or((&*url, String::new()), |(base, query)| (base, format!("?{query}")));
    let bucket = format!("{}/test-{}{query}", base.trim_end_matches('/'), uuid::Uuid::new_v4());
    a_day_in_the_life(&World::new(), "s3", &bucket, &user);
    // Leave nothing behind.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("an executor");
    let place = Place::parse("s3", &bucket, NAME).expect("a place");
    let objects = Objects::open(&place, Some(&keys), Access::Write, PATIENCE, runtime.handle().clone()).expect("opens");
    runtime.block_on(async {
        while let Some(key) = objects.any_key().await.expect("a list") {
            objects.delete(&key).await.expect("a delete");
        }
    });
}

#[test]
fn a_mount_may_reach_the_bucket_by_another_address() {
    let bucket = Bucket::formatted();
    let other = bucket.other_url();
    let hosts =
        |since: usize| bucket.server.asked()[since..].iter().map(|asked| asked.host.clone()).collect::<BTreeSet<_>>();
    let since = bucket.server.asked().len();
    let mounted = Mounted::new(&bucket.world, &bucket.user, &["--bucket", &other]);
    fs::write(mounted.file("file"), noise(1, 300_000)).unwrap();
    let status = mounted.status();
    assert_eq!(status["mount"]["store"]["place"], format!("{other}/{NAME}"));
    assert_eq!(status["volume"]["bucket"], bucket.url);
    mounted.unmount();
    assert_eq!(hosts(since), [format!("localhost:{}", bucket.server.port())].into());
    // Without it the volume is where it was formatted.
    let since = bucket.server.asked().len();
    let mounted = Mounted::new(&bucket.world, &bucket.user, &[]);
    assert_eq!(fs::read(mounted.file("file")).unwrap(), noise(1, 300_000));
    mounted.unmount();
    assert_eq!(hosts(since), [format!("127.0.0.1:{}", bucket.server.port())].into());
    bucket.user.runs(&["fsck", &bucket.world.meta(), "--data", "--bucket", &other]).ends(0);
}

#[test]
fn keys_are_seen_nowhere() {
    let bucket = Bucket::new();
    let secrets = [ACCESS_KEY, SECRET_KEY];
    let quiet = |text: &str| secrets.iter().all(|secret| !text.contains(secret));
    let keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY];
    let nosy = User::without_keys().and("KISEKI_LOG", "debug");
    let made = bucket.format_as(&nosy, &bucket.url, &[&keys[..], &["--json"]].concat()).ends(0);
    assert!(quiet(&made.stdout) && quiet(&made.stderr), "{made:?}");

    let mounted = Mounted::new(&bucket.world, &nosy, &keys);
    fs::write(mounted.file("file"), noise(1, 300_000)).unwrap();
    fs::File::open(mounted.file("file")).and_then(|file| file.sync_all()).unwrap();
    let arguments = |pid: Pid| fs::read_to_string(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap();
    let daemon = arguments(mounted.pid());
    assert!(daemon.contains("mount") && quiet(&daemon), "{daemon}");
    for args in [&["status", mounted.text()][..], &["status", mounted.text(), "--json"], &["fsck", mounted.text()]] {
        let ran = nosy.runs(args).ends(0);
        assert!(quiet(&ran.stdout) && quiet(&ran.stderr), "{ran:?}");
    }
    mounted.unmount();

    // A mount in the foreground is there as long.
    let (meta, point, log) = (bucket.world.meta(), bucket.world.text("mnt"), bucket.world.text("log"));
    let secret_key = format!("--secret-key={SECRET_KEY}");
    let args = ["mount", "--log", &log, &secret_key, &meta, &point, "--access-key", ACCESS_KEY];
    let child = Foreground::start(&bucket.world, &nosy, &args);
    let foreground = arguments(child.pid());
    assert!(foreground.contains("mount") && quiet(&foreground), "{foreground}");
    child.unmount();

    let ran = nosy.runs(&[&["fsck", &meta], &keys[..]].concat()).ends(0);
    assert!(quiet(&ran.stdout) && quiet(&ran.stderr), "{ran:?}");
    let files = files_below(&bucket.world.path(""));
    assert!(
        files.iter().any(|(path, _)| path.starts_with("meta")) && files.iter().any(|(path, _)| path.ends_with("log"))
    );
    for (path, _) in files {
        let bytes = fs::read(bucket.world.path("").join(&path)).unwrap();
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{} holds {secret}", path.display());
        }
    }
}
