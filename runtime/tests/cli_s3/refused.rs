//! What a store does not allow: nothing is made, and the text says why.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{Bucket, Mounted, User, nobody};
use crate::s3server::{ACCESS_KEY, SECRET_KEY};
use crate::volume::{NAME, Ran, World};

#[test]
fn format_that_cannot_use_the_bucket_makes_nothing() {
    let bucket = Bucket::new();
    let keys = &bucket.user;
    let no_bucket = format!("{}/no-such-bucket", bucket.server.endpoint());
    let nobody = nobody();
    let wrong_access = User::with_keys("somebody", SECRET_KEY);
    let wrong_secret = User::with_keys(ACCESS_KEY, "not-the-secret");
    let half = User::without_keys().and("KISEKI_ACCESS_KEY", ACCESS_KEY);
    let ca = bucket.world.text("no-such-ca.pem");
    let cases: &[(&User, &str, &[&str], &[&str])] = &[
        (keys, &no_bucket, &[], &["no-such-bucket", "there is no bucket"]),
        (&wrong_access, &bucket.url, &[], &["refuses the keys"]),
        (&wrong_secret, &bucket.url, &[], &["refuses the keys"]),
        (&User::without_keys(), &bucket.url, &[], &["KISEKI_ACCESS_KEY", "--access-key"]),
        (&half, &bucket.url, &[], &["KISEKI_SECRET_KEY"]),
        (keys, &nobody, &[], &["cannot reach", "onnection refused"]),
        (keys, &bucket.url, &["--ca-cert", &ca], &["no-such-ca.pem", "No such file"]),
    ];
    for (user, url, more, texts) in cases {
        let ran = bucket.format_as(user, url, more).fails_with(texts);
        assert!(!ran.stderr.contains(SECRET_KEY) && !ran.stderr.contains("not-the-secret"), "{ran:?}");
        assert!(!bucket.world.path("meta").exists(), "{ran:?}");
        assert_eq!(bucket.server.keys(), [""; 0]);
    }
    // And the same command does it once all is right.
    bucket.format_as(keys, &bucket.url, &[]).ends(0);
}

#[test]
fn senseless_buckets_are_usage_errors() {
    let world = World::new();
    let (meta, user) = (world.meta(), User::with_keys("a", "s"));
    let cases: &[(&[&str], &str)] = &[
        (&["--bucket", "http://host/bucket"], "--storage"),
        (&["--bucket", "/folder", "--region", "eu-1"], "--storage"),
        (&["--storage", "minio", "--bucket", "/folder"], "http(s)://HOST"),
        (&["--storage", "minio", "--bucket", "http://host"], "names no bucket"),
        (&["--storage", "s3", "--bucket", "http://user:hush@host/bucket"], "KISEKI_SECRET_KEY"),
        (&["--storage", "s3", "--bucket", "http://localhost/bucket", "--style", "host"], "style=host"),
        (&["--storage", "s3", "--bucket", "s3://bucket", "--style", "dns"], "--style"),
    ];
    for (args, text) in cases {
        let ran = user.runs(&[&["format", &meta, NAME], *args].concat()).ends(2);
        assert!(ran.stderr.contains(text) && !ran.stderr.contains("hush"), "{text}: {ran:?}");
    }
    for count in ["0", "257", "many"] {
        user.runs(&["mount", &meta, "/nowhere", "--max-uploads", count]).ends(2);
    }
    assert!(!world.path("meta").exists());
}

#[test]
fn format_needs_permission_to_write_and_leaves_no_object() {
    let bucket = Bucket::new();
    bucket.deny_writes(true);
    bucket.format_as(&bucket.user, &bucket.url, &[]).fails_with(&["denies access"]);
    assert!(!bucket.world.path("meta").exists());
    assert_eq!(bucket.server.keys(), [""; 0]);
    bucket.deny_writes(false);
    bucket.format_as(&bucket.user, &bucket.url, &[]).ends(0);

    // A mount notices before it takes a write; one that takes none does not mind.
    bucket.deny_writes(true);
    fs::create_dir(bucket.world.path("mnt")).unwrap();
    let (meta, point, log) = (bucket.world.meta(), bucket.world.text("mnt"), bucket.world.text("log"));
    for flag in [&[][..], &["-d"]] {
        let args = [&["mount", "--log", &log, &meta, &point][..], flag].concat();
        bucket.user.runs(&args).fails_with(&["denies access"]);
    }
    Mounted::new(&bucket.world, &bucket.user, &["--read-only"]).unmount();
}

#[test]
fn format_refuses_what_is_not_its_own_and_takes_back_what_it_put() {
    let bucket = Bucket::formatted();
    let before = bucket.server.keys();
    let (other, user) = (bucket.world.text("other-meta"), &bucket.user);
    let format =
        |meta: &str, name: &str| user.runs(&["format", meta, name, "--storage", "minio", "--bucket", &bucket.url]);
    format(&other, NAME).fails_with(&["the objects of another volume", "Choose another bucket"]);
    fs::create_dir_all(bucket.server.bucket().join("used/deep")).unwrap();
    fs::write(bucket.server.bucket().join("used/deep/thesis.txt"), "years of work").unwrap();
    format(&other, "used").fails_with(&["is not empty", "deep/thesis.txt"]);
    assert!(!Path::new(&other).exists());
    // The metadata cannot be made: the marker that may have been put is taken back.
    fs::write(bucket.world.path("file"), "").unwrap();
    format(&bucket.world.text("file/meta"), "fresh").fails_with(&["file"]);
    fs::remove_dir_all(bucket.server.bucket().join("used")).unwrap();
    assert_eq!(bucket.server.keys(), before);

    // On a disk that is full: the marker is put before the metadata is written.
    let small = bucket.world.path("small");
    fs::create_dir(&small).unwrap();
    let script = "mount -t tmpfs -o size=64k,nr_inodes=40 none \"$1\" && head -c 48k /dev/zero >\"$1/ballast\" || true
        shift; \"$@\"; code=$?; find \"$0\" >&2; exit $code";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).args([&small, &small]);
    command.args([env!("CARGO_BIN_EXE_kiseki"), "format", &bucket.world.text("small/meta"), "fresh"]);
    command.args(["--storage", "minio", "--bucket", &bucket.url]);
    command.envs(user.0.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    let ran = Ran::from(command.output().expect("unshare runs")).fails_with(&["No space left"]);
    let left: Vec<_> = ran.stderr.lines().filter(|line| line.starts_with(small.to_str().unwrap())).collect();
    assert_eq!(left, [bucket.world.text("small"), bucket.world.text("small/ballast")], "{ran:?}");
    assert_eq!(bucket.server.keys(), before);
}

#[test]
fn force_follows_the_objects() {
    let bucket = Bucket::formatted();
    let (meta, user) = (bucket.world.meta(), &bucket.user);
    let force = |url: &str, more: &[&str]| {
        user.runs(&[&["format", &meta, NAME, "--storage", "minio", "--bucket", url, "--force"], more].concat())
    };
    let before = user.runs(&["status", &meta, "--json"]).json();
    // Limits are a matter of the metadata: no keys, no server.
    let args = ["format", &meta, NAME, "--storage", "minio", "--bucket", &bucket.url, "--force", "--inodes", "7"];
    assert_eq!(User::without_keys().runs(&[&args[..], &["--json"]].concat()).ends(0).json()["volume"]["inodes"], 7);

    force(&format!("{}/empty", bucket.url), &[]).fails_with(&["already holds", "Nothing was changed"]);
    force(&format!("{}/no-such-bucket", bucket.server.endpoint()), &[]).fails_with(&["there is no bucket"]);
    force(&nobody(), &[]).fails_with(&["cannot reach"]);
    assert_eq!(user.runs(&["status", &meta, "--json"]).json()["volume"]["bucket"], before["volume"]["bucket"]);

    let moved = bucket.server.bucket().join("moved");
    fs::create_dir(&moved).unwrap();
    fs::rename(bucket.server.bucket().join(NAME), moved.join(NAME)).unwrap();
    user.runs(&["fsck", &meta]).fails_with(&["does not hold the volume's marker"]);
    let after = force(&format!("{}/moved", bucket.url), &["--json"]).ends(0).json();
    assert!(after["volume"]["bucket"].as_str().unwrap().ends_with("/moved"), "{after}");
    user.runs(&["fsck", &meta]).ends(0);
    // The same server by another name, and another kind of store.
    force(&format!("{}/moved", bucket.other_url()), &["--style", "path"]).ends(0);
    Mounted::new(&bucket.world, user, &[]).unmount();
}

#[test]
fn a_mount_whose_store_cannot_be_used_is_not_made() {
    let bucket = Bucket::formatted();
    fs::create_dir(bucket.world.path("mnt")).unwrap();
    let (meta, point, log) = (bucket.world.meta(), bucket.world.text("mnt"), bucket.world.text("log"));
    let nobody = nobody();
    let no_bucket = format!("{}/no-such-bucket", bucket.server.endpoint());
    let elsewhere = format!("{}/elsewhere", bucket.url);
    let wrong = User::with_keys(ACCESS_KEY, "not-the-secret");
    let cases: &[(&User, &[&str], &[&str])] = &[
        (&User::without_keys(), &[], &["KISEKI_ACCESS_KEY"]),
        (&wrong, &[], &["refuses the keys"]),
        (&bucket.user, &["--bucket", &nobody], &["cannot reach", "onnection refused"]),
        (&bucket.user, &["--bucket", &no_bucket], &["there is no bucket"]),
        (&bucket.user, &["--bucket", &elsewhere], &["does not hold", "elsewhere"]),
    ];
    let before = bucket.server.keys();
    for (user, more, texts) in cases {
        for flag in [&[][..], &["-d"]] {
            user.runs(&[&["mount", "--log", &log, &meta, &point][..], more, flag].concat()).fails_with(texts);
            assert_eq!(bucket.server.keys(), before);
        }
    }
    wrong.runs(&["fsck", &meta]).fails_with(&["refuses the keys"]);
    User::without_keys().runs(&["fsck", &meta]).fails_with(&["KISEKI_ACCESS_KEY"]);
    bucket.user.runs(&["fsck", &meta]).ends(0);
}
