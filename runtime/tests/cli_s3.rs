//! The command line on a store behind S3: what works, what is told when it does not, and that keys are seen nowhere.

mod s3server;
mod volume;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiseki::objects::{Access, Credentials, Objects, Place};
use kiseki_core::env::ObjectStore;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use s3server::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};
use serde_json::Value as Json;
use volume::{NAME, Ran, World, files_below, noise};

/// Longest wait for something that happens in the background.
const PATIENCE: Duration = Duration::from_secs(60);
/// All variables that hold keys.
const KEY_VARIABLES: [&str; 6] = [
    "KISEKI_ACCESS_KEY",
    "KISEKI_SECRET_KEY",
    "KISEKI_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
];

/// Who runs the command: what its environment holds.
#[derive(Clone)]
struct User(Vec<(&'static str, String)>);

impl User {
    fn without_keys() -> Self {
        Self(Vec::new())
    }

    fn with_keys(access: &str, secret: &str) -> Self {
        Self(vec![("KISEKI_ACCESS_KEY", access.into()), ("KISEKI_SECRET_KEY", secret.into())])
    }

    fn and(mut self, name: &'static str, value: &str) -> Self {
        self.0.push((name, value.into()));
        self
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiseki"));
        for name in KEY_VARIABLES {
            command.env_remove(name);
        }
        command.args(args).envs(self.0.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
        command
    }

    fn runs(&self, args: &[&str]) -> Ran {
        self.command(args).output().expect("kiseki runs").into()
    }
}

/// A bucket, who may use it, and a folder for the rest.
struct Bucket {
    world: World,
    /// Text of `--bucket`.
    url: String,
    user: User,
    server: S3Server,
}

impl Bucket {
    fn new() -> Self {
        let server = S3Server::start();
        Self { world: World::new(), url: server.bucket_url(), user: User::with_keys(ACCESS_KEY, SECRET_KEY), server }
    }

    fn format_as(&self, user: &User, bucket: &str, more: &[&str]) -> Ran {
        let meta = self.world.meta();
        let args = ["format", &meta, NAME, "--storage", "minio", "--bucket", bucket, "--block-size", "64K"];
        user.runs(&[&args, more].concat())
    }

    fn formatted() -> Self {
        let bucket = Self::new();
        bucket.format_as(&bucket.user, &bucket.url, &[]).ends(0);
        bucket
    }

    /// The same bucket at another address.
    fn other_url(&self) -> String {
        format!("http://localhost:{}/{BUCKET}", self.server.port())
    }

    /// Requests are taken, and not answered.
    fn hang(&self, hang: bool) {
        self.server.fault(|faults| faults.hang = hang);
    }

    fn deny_writes(&self, deny: bool) {
        self.server.fault(|faults| faults.deny_writes = deny);
    }
}

/// A volume mounted in the background; unmounted at the end of the test also if that fails.
struct Mounted<'a> {
    world: &'a World,
    point: PathBuf,
}

impl<'a> Mounted<'a> {
    #[track_caller]
    fn new(world: &'a World, user: &User, more: &[&str]) -> Self {
        let point = world.path("mnt");
        fs::create_dir_all(&point).unwrap();
        let (meta, log) = (world.meta(), world.text("log"));
        user.runs(&[&["mount", "-d", "--log", &log, &meta, point.to_str().unwrap()], more].concat()).ends(0);
        Self { world, point }
    }

    fn text(&self) -> &str {
        self.point.to_str().unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.path("log")).unwrap_or_default()
    }

    fn status(&self) -> Json {
        User::without_keys().runs(&["status", self.text(), "--json"]).ends(0).json()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.status()["mount"]["pid"].as_i64().unwrap() as i32).unwrap()
    }

    fn umount(&self, more: &[&str]) -> Ran {
        User::without_keys().runs(&[&["umount", self.text()], more].concat())
    }

    #[track_caller]
    fn unmount(self) {
        self.umount(&[]).ends(0);
        std::mem::forget(self);
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let ran = self.umount(&["--force"]);
        eprintln!("{ran:?}\n{}", self.log());
    }
}

/// An address that nobody listens at.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/bucket", listener.local_addr().unwrap())
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for the end of a process.
#[track_caller]
fn ends(process: &impl std::os::fd::AsFd) {
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)), Ok(1), "the process goes on");
}

fn errno<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).expect("an errno"))
}

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
    let store = &mounted.status()["mount"]["store"];
    assert_eq!(store["place"], made["volume"]["objects"]);
    assert_eq!((&store["ok"], &store["error"], &store["failing_secs"]), (&true.into(), &Json::Null, &Json::Null));
    assert_eq!((&store["max_uploads"], &store["failures"]), (&4.into(), &0.into()), "{store}");
    assert!(store["puts"].as_u64().unwrap() >= 16 && store["put_bytes"].as_u64().unwrap() >= 1 << 20, "{store}");
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
    let args = ["mount", "--log", &log, "--secret-key=".into(), &meta, &point].map(str::to_owned);
    let mut args: Vec<_> = args
        .iter()
        .map(|arg| if arg == "--secret-key=" { format!("{arg}{}", secrets[1]) } else { arg.clone() })
        .collect();
    args.extend(["--access-key".into(), secrets[0].into()]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
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

/// A mount in the foreground; killed at the end of the test if it fails.
struct Foreground<'a> {
    world: &'a World,
    child: Child,
}

impl<'a> Foreground<'a> {
    /// Starts it, with a log, at `mnt`.
    fn start(world: &'a World, user: &User, args: &[&str]) -> Self {
        fs::create_dir_all(world.path("mnt")).unwrap();
        let mounts = fs::read_to_string(world.path("log")).unwrap_or_default().matches(" mounted ").count();
        let child = user.command(args).stdout(Stdio::null()).spawn().expect("kiseki runs");
        let started = Self { world, child };
        eventually("it is mounted", || started.log().matches(" mounted ").count() > mounts);
        started
    }

    fn log(&self) -> String {
        fs::read_to_string(self.world.path("log")).unwrap_or_default()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self) {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
    }

    fn unmount(mut self) {
        User::without_keys().runs(&["umount", &self.world.text("mnt")]).ends(0);
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Foreground<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        // Both fail if it ended as it should.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = rustix::mount::unmount(self.world.path("mnt"), rustix::mount::UnmountFlags::DETACH);
    }
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
fn umount_with_a_store_that_hangs_tells_what_is_not_stored_and_works_after() {
    let bucket = Bucket::formatted();
    let url = &bucket.url;
    let args = ["--store-timeout", "2s", "--commit-interval", "1h"];
    let mounted = Mounted::new(&bucket.world, &bucket.user, &args);
    let contents = [noise(1, 40 << 10), noise(2, 40 << 10)];
    bucket.hang(true);
    // Less than a block: nothing of it is stored before something asks for that.
    fs::write(mounted.file("first"), &contents[0]).unwrap();
    fs::write(mounted.file("second"), &contents[1]).unwrap();
    let ran = mounted.umount(&[]);
    ran.fails_with(&["stays mounted", "80.0 KiB in 2 files", "cannot be stored", url, "and repeat", "--force"]);
    for (name, contents) in ["first", "second"].into_iter().zip(&contents) {
        assert_eq!(&fs::read(mounted.file(name)).unwrap(), contents);
    }
    eventually("the failure is known", || mounted.status()["mount"]["store"]["ok"] == false);
    let status = mounted.status();
    assert_eq!((&status["mount"]["dirty_files"], &status["mount"]["dirty_bytes"]), (&2.into(), &(80 << 10).into()));
    let store = &status["mount"]["store"];
    assert!(store["error"].is_string() && store["failing_secs"].is_u64(), "{store}");
    assert!(store["failures"].as_u64().unwrap() > 0, "{store}");
    let text = bucket.user.runs(&["status", mounted.text()]).ends(0).stdout;
    assert!(text.contains("fails since"), "{text}");
    bucket.hang(false);
    mounted.unmount();
    let checked = bucket.user.runs(&["fsck", &bucket.world.meta(), "--data", "--json"]).ends(0).json();
    assert_eq!(checked["checked"]["blocks"], 2);
    let mounted = Mounted::new(&bucket.world, &bucket.user, &["--read-only"]);
    for (name, contents) in ["first", "second"].into_iter().zip(&contents) {
        assert_eq!(&fs::read(mounted.file(name)).unwrap(), contents);
    }
    mounted.unmount();
}

#[test]
fn a_forced_umount_loses_nothing_if_the_store_comes_back() {
    let bucket = Bucket::formatted();
    let args = ["--store-timeout", "1s", "--commit-interval", "1h"];
    let mounted = Mounted::new(&bucket.world, &bucket.user, &args);
    bucket.hang(true);
    fs::write(mounted.file("precious"), noise(1, 40 << 10)).unwrap();
    mounted.umount(&[]).fails_with(&["stays mounted"]);
    let pid = mounted.pid();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let ran = mounted.umount(&["--force"]).ends(0);
    for text in ["detached", "40.0 KiB in 1 files", "not stored", &format!("kill {}", pid.as_raw_nonzero())] {
        assert!(ran.stdout.contains(text), "{text}: {ran:?}");
    }
    assert!(!mounted.file("precious").exists());
    eventually("the log tells", || mounted.log().contains("store_error="));
    bucket.hang(false);
    ends(&process);
    std::mem::forget(mounted);
    let mounted = Mounted::new(&bucket.world, &bucket.user, &[]);
    assert_eq!(fs::read(mounted.file("precious")).unwrap(), noise(1, 40 << 10));
    mounted.unmount();
}

#[test]
fn a_signal_with_a_store_that_hangs_tells_what_is_not_stored() {
    let bucket = Bucket::formatted();
    let (meta, point, log) = (bucket.world.meta(), bucket.world.text("mnt"), bucket.world.text("log"));
    let args = ["mount", &meta, &point, "--log", &log, "--store-timeout", "1s", "--commit-interval", "1h"];
    let tells = |child: &Foreground<'_>, text: &str| {
        eventually(text, || {
            let log = child.log();
            let mut lines = log.lines().filter(|line| line.contains(text) && line.contains("store_error="));
            lines.any(|line| line.contains("40960"))
        });
    };
    for give_up in [false, true] {
        let child = Foreground::start(&bucket.world, &bucket.user, &args);
        let name = format!("file-{give_up}");
        fs::write(bucket.world.path("mnt").join(&name), noise(1, 40 << 10)).unwrap();
        fs::write(bucket.world.path("log"), "").unwrap();
        bucket.hang(true);
        child.signal();
        tells(&child, "trying again until that succeeds");
        child.signal();
        tells(&child, "another signal gives up");
        let process = pidfd_open(child.pid(), PidfdFlags::empty()).unwrap();
        if give_up {
            child.signal();
            ends(&process);
            tells(&child, "bytes that were not fsynced are lost");
            bucket.hang(false);
        } else {
            bucket.hang(false);
            ends(&process);
            assert!(child.log().contains("everything is stored"));
        }
        drop(child);
        fs::write(bucket.world.path("log"), "").unwrap();
        let mounted = Mounted::new(&bucket.world, &bucket.user, &[]);
        let found = errno(fs::read(mounted.file(&name)));
        // A file whose bytes were given up is there or not, with a prefix of them.
        match (give_up, found) {
            (false, found) => assert_eq!(found, Ok(noise(1, 40 << 10))),
            (true, Ok(found)) => assert!(found.is_empty(), "{} bytes", found.len()),
            (true, Err(errno)) => assert_eq!(errno, Errno::NOENT),
        }
        mounted.unmount();
        bucket.user.runs(&["fsck", &meta, "--data"]).ends(0);
    }
}

#[test]
fn a_mount_that_waits_for_its_store_ends_by_a_signal() {
    let bucket = Bucket::formatted();
    bucket.hang(true);
    fs::create_dir(bucket.world.path("mnt")).unwrap();
    let (meta, point, log) = (bucket.world.meta(), bucket.world.text("mnt"), bucket.world.text("log"));
    let args = ["mount", &meta, &point, "--log", &log];
    let child = bucket.user.command(&args).stderr(Stdio::piped()).spawn().expect("kiseki runs");
    // It handles signals before it opens the metadata, which it does before it asks the store.
    eventually("it has the metadata open", || {
        let ran = bucket.user.runs(&["status", &meta]);
        ran.code == 1 && ran.stderr.contains("in use")
    });
    kill_process(Pid::from_child(&child), Signal::TERM).expect("it runs");
    let ran: Ran = child.wait_with_output().expect("it ends").into();
    ran.fails_with(&["SIGTERM"]);
    bucket.hang(false);
    bucket.user.runs(&["fsck", &meta]).ends(0);
}

/// Objects damaged behind our back: EIO for the files they belong to, named in the log; never wrong bytes.
fn damage_is_told(world: &World, user: &User, objects: &Path) {
    const LEN: usize = 160 << 10;
    let names = ["flipped", "swapped-1", "swapped-2", "truncated", "deleted", "whole"];
    let mounted = Mounted::new(world, user, &[]);
    fs::create_dir(mounted.file("dir")).unwrap();
    let mut keys = Vec::new();
    for (seed, name) in names.iter().enumerate() {
        let path = mounted.file("dir").join(name);
        fs::write(&path, noise(seed as u64, LEN)).unwrap();
        fs::File::open(&path).and_then(|file| file.sync_all()).unwrap();
        let info = user.runs(&["info", path.to_str().unwrap(), "--json"]).ends(0).json();
        let key = info["slices"][0]["blocks"][1].as_str().unwrap_or_else(|| panic!("{info}"));
        keys.push(key.to_owned());
    }
    mounted.unmount();
    let object = |index: usize| objects.join(&keys[index]);
    let mut bytes = fs::read(object(0)).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(object(0), bytes).unwrap();
    let aside = objects.join("aside");
    fs::rename(object(1), &aside).unwrap();
    fs::rename(object(2), object(1)).unwrap();
    fs::rename(&aside, object(2)).unwrap();
    let cut = fs::File::options().write(true).open(object(3)).unwrap();
    cut.set_len(cut.metadata().unwrap().len() / 2).unwrap();
    fs::remove_file(object(4)).unwrap();

    let mounted = Mounted::new(world, user, &[]);
    for (index, name) in names.iter().enumerate() {
        let path = mounted.file("dir").join(name);
        let contents = noise(index as u64, LEN);
        if *name == "whole" {
            assert_eq!(fs::read(&path).unwrap(), contents);
            continue;
        }
        assert_eq!(errno(fs::read(&path)), Err(Errno::IO), "{name}");
        // Page by page: what can be read is right, and the damaged block cannot.
        let file = fs::File::open(&path).unwrap();
        let mut failed = Vec::new();
        for offset in (0..LEN).step_by(16 << 10) {
            let mut page = vec![0; 4 << 10];
            match errno(file.read_exact_at(&mut page, offset as u64)) {
                Ok(()) => assert!(page == contents[offset..offset + page.len()], "{name}: wrong bytes at {offset}"),
                Err(errno) => {
                    assert_eq!(errno, Errno::IO, "{name}");
                    failed.push(offset);
                }
            }
        }
        assert!((64 << 10..128 << 10).step_by(16 << 10).all(|offset| failed.contains(&offset)), "{name}: {failed:?}");
        let log = mounted.log();
        let told = log.lines().any(|line| line.contains("ERROR") && line.contains(name) && line.contains(&keys[index]));
        assert!(told, "{name}, {}: {log}", keys[index]);
    }
    let ran = user.runs(&["fsck", mounted.text(), "--data"]).ends(3);
    for name in &names[..5] {
        assert!(ran.stdout.contains(&format!("/dir/{name}: ")), "{name}: {ran:?}");
    }
    assert!(!ran.stdout.contains("whole"), "{ran:?}");
    fs::write(mounted.file("dir/still-works"), "yes").unwrap();
    mounted.unmount();
}

#[test]
fn damage_in_a_bucket_is_told_and_never_read() {
    let bucket = Bucket::formatted();
    damage_is_told(&bucket.world, &bucket.user, &bucket.server.bucket().join(NAME));
}

#[test]
fn damage_in_a_folder_is_told_and_never_read() {
    let world = World::new();
    world.format(&["--block-size", "64K"]).ends(0);
    damage_is_told(&world, &User::without_keys(), &world.prefix());
}
