//! `kiseki fsck`: checks a volume, mounted or not, and names what is wrong by path.

use std::ffi::OsString;
use std::sync::Mutex;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::access::{Address, KEYS_HELP, Keys};
use super::output::{Context, Done, Failure, Meter, Outcome, say, say_aside, say_json};
use super::values::show_size;
use super::writeback::CacheDir;
use super::{Show, open, place};
use crate::control::Connection;
use crate::control::protocol::{Checked, Finding, Progress, Reply, Request};
use crate::rocks::OpenMode;

const EXAMPLES: &str = "\
Examples:
  kiseki fsck /srv/kiseki/meta
  kiseki fsck /mnt/kiseki --data

Nothing is changed. A mounted volume is checked by its mount while it is in use; what is written meanwhile and not
stored yet is not looked at. What is in the write-back log of a volume is looked at there; if that cannot be opened, a
message says so, and what is only there counts as missing.

Every finding names a path: of the file as it is in the volume, or of an entry that leads nowhere.

Exit codes: 0 no findings; 1 the check could not be done; 3 findings.

Keys of --json:
  findings              kind, ino (or null), path, text
  checked               findings, keys, inodes, slices, blocks, bytes (read of the blocks)";

/// Check a volume: its metadata, that every block exists, and with --data every byte
#[derive(Debug, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{KEYS_HELP} A mounted volume needs none here."))]
pub(super) struct FsckArgs {
    /// The metadata store, or the mount point of the volume
    #[arg(value_name = "META|MOUNTPOINT")]
    place: OsString,
    /// Read every block whole and verify its checksums
    #[arg(long)]
    data: bool,
    #[command(flatten)]
    cache_dir: CacheDir,
    #[command(flatten)]
    address: Address,
    #[command(flatten)]
    keys: Keys,
    #[command(flatten)]
    show: Show,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document {
    findings: Vec<Finding>,
    checked: Checked,
}

pub(super) fn run(args: &FsckArgs) -> Outcome {
    let place = place::place(&args.place)?;
    let meter = Meter::new();
    meter.spin("opening");
    let began = Instant::now();
    let findings = Mutex::new(Vec::new());
    let found = |finding: Finding| {
        if args.show.json {
            findings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(finding);
        } else {
            meter.say(finding_text(&finding));
        }
    };
    let progress = |progress: Progress| show_progress(&meter, &progress);
    let connection =
        Connection::open(&place.meta).context(|| format!("reach the mount of {}", place.meta.display()))?;
    let checked = match connection {
        Some(connection) => check_mounted(connection, args.data, &progress, &found),
        None => {
            place.warn_if_dead();
            let store = open::Store::open(&place.meta, OpenMode::Existing)?;
            store.check(args.data, &args.keys, &args.address, &args.cache_dir, &progress, &found)
        }
    };
    meter.clear();
    let checked = checked?;
    let clean = checked.findings == 0;
    if args.show.json {
        let findings = findings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        say_json(&Document { findings, checked });
    } else {
        say(summary(&checked, args.data, began.elapsed().as_secs_f64()));
    }
    Ok(if clean { Done::Clean } else { Done::Findings })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "any other reply breaks the protocol")]
fn check_mounted(
    mut connection: Connection,
    data: bool,
    progress: &dyn Fn(Progress),
    found: &dyn Fn(Finding),
) -> Outcome<Checked> {
    let doing = || "check the mounted volume";
    connection.ask(&Request::Sync).context(doing)?;
    if let Reply::Failed { text, .. } = connection.next_reply().context(doing)? {
        say_aside(format!("kiseki: what was written a moment ago cannot be stored, and is not checked: {text}"));
    }
    connection.ask(&Request::Fsck { data }).context(doing)?;
    loop {
        match connection.next_reply().context(doing)? {
            Reply::Progress(p) => progress(p),
            Reply::Finding(f) => found(f),
            Reply::Checked(checked) => return Ok(checked),
            Reply::Failed { text, .. } => return Err(Failure::new(format!("cannot check the mounted volume: {text}"))),
            reply => return Err(open::unexpected(&reply)),
        }
    }
}

fn show_progress(meter: &Meter, progress: &Progress) {
    let Progress { keys, slices, slices_total, blocks, bytes } = *progress;
    if slices_total == 0 {
        meter.spin(format!("checking metadata: {keys} keys"));
    } else {
        let text = format!("checking {blocks} blocks, {} read; slices", show_size(bytes));
        meter.advance(text, slices, slices_total);
    }
}

fn finding_text(finding: &Finding) -> String {
    let path = if finding.path.is_empty() { "(volume)" } else { &finding.path };
    format!("{path}: {}: {}", finding.kind, finding.text)
}

fn summary(checked: &Checked, data: bool, secs: f64) -> String {
    let verdict = match checked.findings {
        0 => "no findings".into(),
        1 => "1 finding".into(),
        n => format!("{n} findings"),
    };
    let read = if data { format!(", {} verified", show_size(checked.bytes)) } else { String::new() };
    format!(
        "{verdict}: {} inodes, {} slices, {} blocks{read} in {secs:.1} s",
        checked.inodes, checked.slices, checked.blocks
    )
}
