//! `kiseki bench`: every row is there, nothing is left behind, and errors name what failed.

mod volume;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value as Json, json};
use volume::{Ran, World, kiseki};

/// Sizes that take milliseconds; none is a multiple of another.
const TINY: &[&str] =
    &["--block-size", "5000", "--big-file-size", "1000K", "--small-file-size", "3001", "--small-file-count", "7"];

/// Items and accounts, in the order in which they are shown.
const ROWS: &[(&str, Option<&str>)] = &[
    ("write_big", Some("visible")),
    ("write_big", Some("durable")),
    ("write_big", Some("drained")),
    ("read_big", None),
    ("write_small", Some("visible")),
    ("write_small", Some("durable")),
    ("write_small", Some("drained")),
    ("read_small", None),
    ("stat", None),
];

fn bench(folder: &Path, more: &[&str]) -> Ran {
    kiseki(&[&["bench", folder.to_str().unwrap()], TINY, more].concat())
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Names and accounts of the rows; all figures are above 0.
fn rows(document: &Json) -> Vec<(String, Option<String>)> {
    let text = |value: &Json| value.as_str().map(str::to_owned);
    let row = |row: &Json| {
        for key in ["value", "cost", "secs"] {
            assert!(row[key].as_f64().unwrap() > 0.0, "{key}: {row}");
        }
        let big = row["item"].as_str().unwrap().ends_with("_big");
        let units = if big { ("MiB/s", "s/file") } else { ("files/s", "ms/file") };
        assert_eq!((row["unit"].as_str().unwrap(), row["cost_unit"].as_str().unwrap()), units);
        (text(&row["item"]).unwrap(), text(&row["account"]))
    };
    document["rows"].as_array().unwrap().iter().map(row).collect()
}

fn expected_rows(wanted: impl Fn(&str) -> bool) -> Vec<(String, Option<String>)> {
    let rows = ROWS.iter().filter(|(item, _)| wanted(item));
    rows.map(|(item, account)| ((*item).into(), account.map(Into::into))).collect()
}

#[test]
fn every_row_is_measured_and_nothing_is_left() {
    let world = World::new();
    let folder = world.path("");
    for threads in ["1", "3"] {
        let document = bench(&folder, &["-p", threads, "--verify", "--json"]).ends(0).json();
        assert_eq!(rows(&document), expected_rows(|_| true));
        assert_eq!(document["path"], folder.canonicalize().unwrap().to_str().unwrap());
        assert_eq!(document["kiseki"], false);
        assert!(document["file_system"].as_str().unwrap().len() > 1 && document["caches_dropped"].is_boolean());
        let plan = json!({
            "threads": threads.parse::<u64>().unwrap(), "block_size": 5000, "big_file_size": 1000 << 10,
            "small_file_size": 3001, "small_file_count": 7, "verify": true,
        });
        assert_eq!(document["plan"], plan);
        assert!(document["rows"].as_array().unwrap().iter().all(|row| row["requests"].is_null()));
        assert!(is_empty(&folder));
    }
}

#[test]
fn the_drained_account_takes_no_less_than_the_visible_one() {
    let world = World::new();
    let document = bench(&world.path(""), &["--json"]).ends(0).json();
    for item in ["write_big", "write_small"] {
        let secs = |account: &str| {
            let of = |row: &&Json| row["item"] == item && row["account"] == account;
            document["rows"].as_array().unwrap().iter().find(of).unwrap()["secs"].as_f64().unwrap()
        };
        assert!(secs("drained") >= secs("visible"), "{document}");
    }
}

#[test]
fn a_size_of_0_leaves_rows_out() {
    let world = World::new();
    let folder = world.path("");
    for (more, big) in [(["--small-file-count", "0"], true), (["--big-file-size", "0"], false)] {
        let args: Vec<&str> = [&["bench", folder.to_str().unwrap()], &more[..], &["--json"]].concat();
        let sizes = if big { ["--big-file-size", "64K"] } else { ["--small-file-count", "2"] };
        let document = kiseki(&[&args[..], &sizes[..]].concat()).ends(0).json();
        assert_eq!(rows(&document), expected_rows(|item| item.ends_with("_big") == big));
        assert!(is_empty(&folder));
    }
}

#[test]
fn a_table_is_for_people() {
    let world = World::new();
    let ran = bench(&world.path(""), &[]).ends(0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!(lines.len(), 2 + ROWS.len(), "{ran:?}");
    assert!(lines[0].contains("7 small files of 2.9 KiB in each of 1 thread"), "{ran:?}");
    assert!(lines[1].starts_with("ITEM ") && lines[1].contains(" VALUE ") && lines[1].ends_with(" COST"), "{ran:?}");
    // Both numbers of a row end where those of the other rows do.
    let ends = |line: &&str| -> Vec<usize> {
        let unit = |at: usize| line[..at].rfind(' ').unwrap();
        line.match_indices("/s").chain(line.match_indices("/file")).map(|(at, _)| unit(at)).collect()
    };
    let ends: BTreeSet<Vec<usize>> = lines[2..].iter().map(ends).collect();
    assert_eq!(ends.len(), 1, "{ran:?}");
    for (line, item) in lines[2..].iter().zip(["Write big file  ", "Write big file", "Write big file", "Read big file"])
    {
        assert!(line.starts_with(item), "{ran:?}");
    }
}

#[test]
fn errors_name_what_failed() {
    let world = World::new();
    let folder = world.path("");
    let file = world.path("file");
    fs::write(&file, "x").unwrap();
    bench(&file, &[]).fails_with(&[file.to_str().unwrap(), "is not a folder"]);
    bench(&world.path("absent"), &[]).fails_with(&["cannot look at", "absent", "No such file"]);
    // No one makes folders there: sysfs.
    bench(Path::new("/sys"), &[]).fails_with(&["cannot make the folder /sys/__kiseki_bench_"]);
    fs::remove_file(&file).unwrap();
    let args = ["bench", folder.to_str().unwrap(), "--big-file-size", "1000T"];
    kiseki(&args).fails_with(&[
        &format!("{} has", world.text("").trim_end_matches('/')),
        "GiB free",
        "needs 2048",
        "--big-file-size",
    ]);
    assert!(is_empty(&folder));
}

#[test]
fn a_senseless_command_line_is_a_usage_error() {
    let world = World::new();
    let folder = world.text("");
    let cases: &[&[&str]] = &[
        &["bench"],
        &["bench", &folder, "--threads", "0"],
        &["bench", &folder, "--threads", "100000"],
        &["bench", &folder, "--block-size", "0"],
        &["bench", &folder, "--block-size", "1G"],
        &["bench", &folder, "--big-file-size", "much"],
        &["bench", &folder, "--big-file-size", "0", "--small-file-count", "0"],
        &["bench", &folder, "--big-file-size", "1000T", "--block-size", "1"],
    ];
    for case in cases {
        let ran = kiseki(case).ends(2);
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "{case:?}: {ran:?}");
    }
    let help = kiseki(&["bench", "--help"]).ends(0);
    assert!(help.stdout.contains("Examples:") && help.stdout.contains("durable"), "{help:?}");
}

/// Unmounts also when the test fails, and shows the mount's log then.
struct Unmount {
    point: String,
    log: String,
}

impl Drop for Unmount {
    fn drop(&mut self) {
        kiseki(&["umount", "--force", &self.point]);
        eprintln!("{}:\n{}", self.log, fs::read_to_string(&self.log).unwrap_or_default());
    }
}

#[test]
fn a_mount_is_asked_when_all_is_stored_and_what_that_took() {
    let world = World::new();
    world.format(&["--block-size", "64K"]).ends(0);
    let (point, meta, log) = (world.path("mnt"), world.meta(), world.text("log"));
    fs::create_dir(&point).unwrap();
    // Nothing is committed by itself before the test has ended.
    kiseki(&["mount", "-d", "--commit-interval", "1h", "--log", &log, &meta, &world.text("mnt")]).ends(0);
    let mounted = Unmount { point: world.text("mnt"), log };
    let document = bench(&point, &["-p", "2", "--verify", "--json"]).ends(0).json();
    assert_eq!(rows(&document), expected_rows(|_| true));
    assert_eq!((&document["kiseki"], &document["file_system"]), (&json!(true), &json!("fuse.kiseki")));
    for row in document["rows"].as_array().unwrap() {
        let count = |key: &str| row["requests"][key].as_u64().unwrap_or_else(|| panic!("{key}: {row}"));
        // Two files of 1000 KiB are 32 blocks, in packs; they are stored in the drained and in the durable account.
        match (row["item"].as_str().unwrap(), row["account"].as_str()) {
            ("write_big", Some("drained" | "durable")) => {
                assert!((1..32).contains(&count("puts")) && count("put_bytes") >= 2000 << 10, "{row}");
            }
            ("read_big" | "read_small" | "stat", None) => {
                assert_eq!((count("puts"), count("failures")), (0, 0), "{row}")
            }
            _ => assert_eq!(count("failures"), 0, "{row}"),
        }
    }
    assert!(is_empty(&point));
    kiseki(&["umount", &mounted.point]).ends(0);
    std::mem::forget(mounted);
    kiseki(&["fsck", &meta, "--data"]).ends(0);
}

/// Waits until something is made in `folder`.
fn wait_for_entry(folder: &Path, watch: impl FnOnce()) {
    let events = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&events, folder, inotify::WatchFlags::CREATE).unwrap();
    watch();
    let limit = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&limit)).unwrap(), 1, "nothing was made");
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let world = World::new();
        let folder = world.path("");
        let mut child = None;
        // So many files that it cannot end before the signal comes.
        let args = ["--big-file-size", "0", "--small-file-size", "1", "--small-file-count", "200000", "--json"];
        wait_for_entry(&folder, || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_kiseki"));
            command.arg("bench").arg(&folder).args(args).stdin(Stdio::null());
            child = Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        });
        let child = child.unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.signal(), None, "{output:?}");
        Ran::from(output).fails_with(&["interrupted"]);
        assert!(is_empty(&folder));
    }
}
