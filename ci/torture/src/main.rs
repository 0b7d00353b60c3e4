//! Tortures a mount and judges it by the crash contract.
//!
//!   torture crash    --kiseki BINARY --work DIR [--minio BINARY] [--kills N] [OPTIONS] [-- MOUNT-ARGUMENT...]
//!   torture powercut --kiseki BINARY --work DIR [--minio BINARY] [--cuts N]  [OPTIONS] [--no-fsync] [-- ...]
//!   OPTIONS: [--mode back|through] [--seed S] [--writers W]
//!   torture probe    --dir DIR --stop FILE
//!
//! `crash` kills the mount process (kill -9) in the middle of the writers' work, aiming in turn at a put, a commit,
//! a commit that holds a truncate, and a rename over an existing name. `powercut` keeps metadata and store on ext4 on
//! a loop device, and shuts that down without flushing (root only). After each, the volume is mounted again, compared
//! with what was promised, and checked with `fsck --data`.
//!
//! The store is a local folder, or with `--minio` a MinIO of the run's own: `crash` leaves that running, `powercut`
//! gives it a loop device of its own and ends it together with the disks.
//!
//! The mount has a write-back log (`--mode back`, the default), in the folder of the metadata store and so on the disk
//! whose power is cut; it is small, for its segments to come and go. Or it has none (`--mode through`).
//!
//! `--no-fsync` makes every fsync of the mount a no-op, or with `--minio` lets MinIO answer before an object is on disk
//! (its default): then something must be lost, or this test sees nothing. The latter needs `--mode through`: a log has
//! what MinIO forgets.
//!
//! `probe` lists DIR and asks for the attributes of its entries, again and again, until FILE is there, and says how
//! long the slowest call took.

mod content;
mod judge;
mod names;
mod probe;
mod process;
mod run;
mod stamp;
mod store;
mod sys;
mod world;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;

use run::{Plan, Sums, run};
use store::{Minio, Store};
use world::{Disk, PHASES, Setup};

/// Promises that a run must hold on average per round, or it has tested too little.
const ACKED_PER_ROUND: u64 = 50;
/// Size of the write-back log: a segment is an eighth of it.
const LOG_SIZE: &str = "32M";
/// Sparse; the writers keep some ten MiB each.
const DISK_BYTES: u64 = 4 << 30;

struct Args {
    powercut: bool,
    kiseki: PathBuf,
    work: PathBuf,
    minio: Option<PathBuf>,
    rounds: u64,
    seed: u64,
    writers: u64,
    back: bool,
    no_fsync: bool,
    mount_args: Vec<String>,
}

fn parse(powercut: bool, mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let (kiseki, work, mount_args) = (PathBuf::new(), PathBuf::new(), vec![]);
    let rounds = if powercut { 20 } else { 100 };
    let mut args = Args {
        powercut,
        kiseki,
        work,
        minio: None,
        rounds,
        seed: 1,
        writers: 6,
        back: true,
        no_fsync: false,
        mount_args,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text} is not a number"));
        match word.as_str() {
            "--kiseki" => args.kiseki = value()?.into(),
            "--work" => args.work = value()?.into(),
            "--minio" => args.minio = Some(value()?.into()),
            "--kills" | "--cuts" => args.rounds = number(value()?)?,
            "--seed" => args.seed = number(value()?)?,
            "--writers" => args.writers = number(value()?)?,
            "--mode" => match value()?.as_str() {
                "back" => args.back = true,
                "through" => args.back = false,
                other => return Err(format!("the mode is back or through, not {other}")),
            },
            "--no-fsync" if powercut => args.no_fsync = true,
            "--" => args.mount_args = words.by_ref().collect(),
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    if args.kiseki.as_os_str().is_empty() || !args.work.is_absolute() {
        return Err("--kiseki and an absolute --work are needed".into());
    }
    if args.no_fsync && args.minio.is_some() && args.back {
        return Err("--no-fsync with MinIO needs --mode through".into());
    }
    Ok(args)
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let done = match words.next().as_deref() {
        Some("crash") => parse(false, words).and_then(torture),
        Some("powercut") => parse(true, words).and_then(torture),
        Some("probe") => probe::run(words),
        other => Err(format!("crash, powercut or probe, not {other:?}")),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(text) => {
            eprintln!("torture: {text}");
            ExitCode::from(2)
        }
    }
}

fn torture(args: Args) -> Result<bool, String> {
    let work = args.work;
    let data = if args.powercut { work.join("disk") } else { work.clone() };
    let drive = if args.powercut { work.join("drive") } else { work.join("minio") };
    let mut disks = vec![];
    if args.powercut {
        disks.push(Disk::create(work.join("disk.img"), data.clone(), DISK_BYTES)?);
        // One of MinIO's own: the journal of a common disk would make its renames durable with each sync of metadata.
        if args.minio.is_some() {
            disks.push(Disk::create(work.join("drive.img"), drive.clone(), DISK_BYTES)?);
        }
    }
    let store = match &args.minio {
        None => Store::Folder(data.join("bucket")),
        Some(binary) => {
            let minio = Minio::new(binary.clone(), drive, work.join("minio.log"), !args.no_fsync);
            Store::Minio(minio.map_err(|error| format!("cannot prepare MinIO: {error}"))?)
        }
    };
    let mut mount_args = args.mount_args;
    let mode: &[&str] = if args.back { &["--mode=back", "--writeback-size", LOG_SIZE] } else { &["--mode=through"] };
    mount_args.splice(..0, mode.iter().copied().map(String::from));
    let setup = Setup {
        kiseki: args.kiseki,
        meta: data.join("meta"),
        store,
        mnt: work.join("mnt"),
        log: work.join("mount.log"),
        phases: work.join("phases"),
        mount_args,
        no_fsync: args.no_fsync && args.minio.is_none(),
    };
    let plan = Plan { setup, disks, rounds: args.rounds, seed: args.seed, writers: args.writers };
    let sums = run(&plan);
    if let Some(text) = &sums.failure {
        eprintln!("torture: {text}");
    }
    let right = if args.no_fsync { sums.lost > 0 } else { verdict(&sums, &plan) };
    let (name, count) = if args.powercut { ("powercut", "cuts") } else { ("crash", "kills") };
    println!("{name}: {count}={} acked={} lost={} invented={}", sums.rounds, sums.acked, sums.lost, sums.invented);
    Ok(right)
}

fn verdict(sums: &Sums, plan: &Plan) -> bool {
    let mut right = sums.lost == 0 && sums.invented == 0 && sums.failure.is_none();
    let mut fail = |text: String| {
        eprintln!("torture: {text}");
        right = false;
    };
    if sums.acked < ACKED_PER_ROUND * plan.rounds {
        fail(format!("{} promises in {} rounds: too few to tell", sums.acked, plan.rounds));
    }
    if plan.disks.is_empty() {
        let least = (plan.rounds / 8).min(5);
        let counts: Vec<String> =
            PHASES.iter().zip(sums.phases).map(|(name, count)| format!("{name}={count}")).collect();
        println!("kills inside: {} (at least {least} each)", counts.join(" "));
        if sums.phases.iter().any(|count| *count < least) {
            fail("too few kills inside a phase".into());
        }
    }
    right
}
