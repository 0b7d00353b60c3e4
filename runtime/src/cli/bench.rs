//! `kiseki bench`: how fast a folder is, measured as `juicefs bench` measures it.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::output::{Context, Done, Failure, Meter, Outcome, say, say_aside, say_json};
use super::values::{show_size, size};
use super::{Show, place};
use crate::bench::{self, Account, BenchError, Caches, Item, Plan, Row, Step, Stop, Store};
use crate::objects::Counts;

const EXAMPLES: &str = "\
Examples:
  kiseki bench /mnt/kiseki
  kiseki bench /mnt/kiseki --threads 4 --json
  kiseki bench /tmp --big-file-size 256M --small-file-count 1000 --verify

The procedure of `juicefs bench`: each thread writes a big file, reads it, writes small files, reads them, and looks at
them with stat(2). The kernel's caches are dropped before each phase, which needs root; a mount's own cache stays.
A size or count of 0 leaves that kind of files out.

Writes have three accounts:
  visible   close(2) of the last file has returned (what juicefs bench shows)
  durable   the same with fsync(2) before each close, in a pass of its own: on a Kiseki mount in --mode back that is the
            disk of its write-back log
  drained   from the start of the visible pass until nothing is left to be stored: on a Kiseki mount in its object
            store and metadata, elsewhere by syncfs(2)
What is read was written by the visible pass, and is drained before.

VALUE is that of all threads together, COST the time for one file in one thread. The bytes are unique and do not
compress; making them is not in the measured time. PATH needs room for twice what is written in one pass. Everything
happens in a folder __kiseki_bench_PID__ inside PATH, which is removed at the end, also when interrupted.

Keys of --json:
  path, file_system (type), kiseki (whether PATH is on a Kiseki mount), version, caches_dropped
  plan   threads, block_size, big_file_size, small_file_size, small_file_count, verify
  rows   item (write_big, read_big, write_small, read_small, stat), account (visible, durable, drained; null for
         reads), value, unit (MiB/s or files/s), cost, cost_unit (s/file or ms/file), secs, and on a Kiseki mount
         requests (to its object store: puts, put_bytes, gets, got_bytes, deletes, lists, failures, throttled)";

/// Larger ones are no reads and writes that programs make.
const BLOCK_SIZE_MAX: u64 = 64 << 20;

/// Measure a folder: big and small files, written, read and looked at
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchArgs {
    /// A folder on a mounted volume, or any other
    path: PathBuf,
    /// Threads, each with files of its own
    #[arg(short = 'p', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    threads: u64,
    /// Bytes of each read and write
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1M")]
    block_size: u64,
    /// Size of the big file of each thread
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1G")]
    big_file_size: u64,
    /// Size of each small file
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "128K")]
    small_file_size: u64,
    /// Number of small files of each thread
    #[arg(long, value_name = "N", default_value_t = 100)]
    small_file_count: u64,
    /// Compare what is read with what was written (not in the measured time)
    #[arg(long)]
    verify: bool,
    #[command(flatten)]
    show: Show,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    path: String,
    file_system: String,
    kiseki: bool,
    version: &'static str,
    caches_dropped: bool,
    plan: &'a Plan,
    rows: Vec<Row>,
}

pub(super) fn run(args: &BenchArgs) -> Outcome {
    let plan = Plan {
        threads: args.threads,
        block_size: args.block_size,
        big_file_size: args.big_file_size,
        small_file_size: args.small_file_size,
        small_file_count: args.small_file_count,
        verify: args.verify,
    };
    plan.check().map_err(Failure::Usage)?;
    if plan.block_size > BLOCK_SIZE_MAX {
        return Err(Failure::Usage(format!("--block-size is at most {}", show_size(BLOCK_SIZE_MAX))));
    }
    let shown = args.path.display();
    let path = args.path.canonicalize().context(|| format!("look at {shown}"))?;
    if !path.metadata().context(|| format!("look at {shown}"))?.is_dir() {
        return Err(Failure::new(format!("{shown} is not a folder")));
    }
    let file_system = bench::file_system(&path).context(|| format!("find the file system of {shown}"))?;
    let kiseki = file_system == "fuse.kiseki";
    let store = if kiseki { Store::Mount(place::mount_of(&path)?.meta) } else { disk(&path)? };
    let stop = Stop::default();
    stop_on_signals(&stop, &path)?;
    let (caches, trouble) = Caches::open();
    if let Some(e) = trouble {
        say_aside(format!(
            "kiseki: the kernel's caches cannot be dropped ({e}): what is read may come from them. Run it as root."
        ));
    }
    let meter = Meter::new();
    let rows = bench::run(&plan, &path, store, &caches, &stop, &|step| show_step(&meter, step));
    meter.clear();
    let rows = rows.map_err(explain)?;
    if args.show.json {
        say_json(&Document {
            path: path.display().to_string(),
            file_system,
            kiseki,
            version: env!("CARGO_PKG_VERSION"),
            caches_dropped: caches.dropped(),
            plan: &plan,
            rows,
        });
    } else {
        say(heading(&plan));
        say(table(&rows));
    }
    Ok(Done::Clean)
}

fn disk(path: &Path) -> Outcome<Store> {
    Store::disk(path).context(|| format!("open {}", path.display()))
}

/// The first signal asks the run to end and clean up; the second does not wait for that, since a file system may not
/// answer.
fn stop_on_signals(stop: &Stop, path: &Path) -> Outcome<()> {
    let doing = || "wait for signals";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(doing)?;
    let guard = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context(doing)?;
    let mut terminate = signal(SignalKind::terminate()).context(doing)?;
    let mut hangup = signal(SignalKind::hangup()).context(doing)?;
    drop(guard);
    let (stop, path) = (stop.clone(), path.to_owned());
    let wait = async move {
        for count in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            stop.set();
            if count > 0 {
                let pid = std::process::id();
                say_aside(format!("kiseki: {}/__kiseki_bench_{pid}__ is left behind", path.display()));
                std::process::exit(1);
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(wait)).context(doing)?;
    Ok(())
}

fn show_step(meter: &Meter, step: Step) {
    let Step { what, done, total } = step;
    if total == 0 {
        meter.spin(what);
    } else {
        meter.advance(what, done, total);
    }
}

fn explain(error: BenchError) -> Failure {
    let text = error.to_string();
    match error {
        BenchError::NoSpace { .. } => Failure::with_hint(
            text,
            "Choose smaller files or fewer: --big-file-size, --small-file-size, --small-file-count, --threads.",
        ),
        BenchError::Left { .. } => Failure::with_hint(text, "Remove that folder by hand."),
        BenchError::Call { .. } | BenchError::Wrong { .. } | BenchError::Interrupted => Failure::new(text),
    }
}

/// The sizes, in the words of `juicefs bench`.
fn heading(plan: &Plan) -> String {
    let Plan { threads, block_size, big_file_size, small_file_size, small_file_count, verify: _ } = *plan;
    format!(
        "block size {}, big file {}, {small_file_count} small files of {} in each of {threads} {}",
        show_size(block_size),
        show_size(big_file_size),
        show_size(small_file_size),
        if threads == 1 { "thread" } else { "threads" }
    )
}

/// The rows, aligned.
fn table(rows: &[Row]) -> String {
    let counted = rows.iter().any(|row| row.requests.is_some());
    let mut cells = vec![
        ["ITEM", "ACCOUNT", "VALUE", "COST", if counted { "PUTS" } else { "" }, if counted { "GETS" } else { "" }]
            .map(String::from),
    ];
    for row in rows {
        let count = |of: fn(&Counts) -> u64| row.requests.as_ref().map_or_else(String::new, |r| of(r).to_string());
        cells.push([
            item(row.item).into(),
            row.account.map_or("", account).into(),
            format!("{:.2} {:7}", row.value, row.unit),
            format!("{:.2} {:7}", row.cost, row.cost_unit),
            count(|requests| requests.puts),
            count(|requests| requests.gets),
        ]);
    }
    let mut widths = [0; 6];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.len().max(*width);
        }
    }
    let line = |row: &[String; 6]| {
        let cell = |(index, text): (usize, &String)| {
            let width = widths[index];
            if index < 2 { format!("{text:width$}") } else { format!("{text:>width$}") }
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    cells.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn item(item: Item) -> &'static str {
    match item {
        Item::WriteBig => "Write big file",
        Item::ReadBig => "Read big file",
        Item::WriteSmall => "Write small file",
        Item::ReadSmall => "Read small file",
        Item::Stat => "Stat file",
    }
}

fn account(account: Account) -> &'static str {
    match account {
        Account::Visible => "visible",
        Account::Durable => "durable",
        Account::Drained => "drained",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let write = Row {
            item: Item::WriteBig,
            account: Some(Account::Visible),
            value: 1234.567,
            unit: "MiB/s",
            cost: 0.83,
            cost_unit: "s/file",
            secs: 0.83,
            requests: None,
        };
        let stat = Row {
            item: Item::Stat,
            account: None,
            value: 99.0,
            unit: "files/s",
            cost: 10.1,
            cost_unit: "ms/file",
            secs: 1.01,
            requests: None,
        };
        let expected = "\
ITEM            ACCOUNT            VALUE           COST
Write big file  visible  1234.57 MiB/s     0.83 s/file
Stat file                  99.00 files/s  10.10 ms/file";
        assert_eq!(table(&[write.clone(), stat.clone()]), expected);
        let requests = Some(Counts { puts: 256, gets: 3, ..Counts::default() });
        let expected = "\
ITEM            ACCOUNT            VALUE           COST  PUTS  GETS
Write big file  visible  1234.57 MiB/s     0.83 s/file    256     3
Stat file                  99.00 files/s  10.10 ms/file";
        assert_eq!(table(&[Row { requests, ..write }, stat]), expected);
    }
}
