//! The sweep: a fixed set of seeds, and fresh ones that the commit's hash decides. Not a test of the usual harness,
//! which keeps what a passing test prints to itself.
//!
//! ```text
//! cargo test -p sim --test sim                            the sweep, and what it must have reached
//! cargo test -p sim --test sim -- seeds COUNT [FIRST]     those seeds
//! cargo test -p sim --test sim -- sweep SECONDS           fresh seeds until the time is up
//! cargo test -p sim --test sim -- first SECONDS            seeds from 0 on until one fails, or for so long of processor time
//! cargo test -p sim --test sim -- replay SEED[:PARTS]     one run, with all that happened
//! ```

#[cfg(madsim)]
fn main() -> std::process::ExitCode {
    simulator::main()
}

/// Without `--cfg madsim` there is no simulator, and the other tests of this package are empty. That happens where
/// `RUSTFLAGS` is set, which hides `.cargo/config.toml`: runs them all again with the flag.
#[cfg(not(madsim))]
fn main() -> std::process::ExitCode {
    use std::process::{Command, ExitCode};

    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // What was asked of this target is not for the others.
    let targets: &[&str] = if arguments.is_empty() { &["--lib", "--tests"] } else { &["--test", "sim", "--"] };
    let status = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["test", "-p", "sim"])
        .args(targets)
        .args(arguments)
        .current_dir(root)
        // The flag changes what is compiled; the caller's folder is locked and holds the other kind.
        .env("CARGO_TARGET_DIR", root.join("target/madsim"))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", format!("{flags} --cfg madsim"))
        .status()
        .expect("cargo can be started");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(madsim)]
mod simulator {
    use std::ops::Range;
    use std::process::{Command, ExitCode};
    use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

    use sim::plan::Plan;
    use sim::report::{fault_line, judge_of, last_lines, missing, replay, tables};
    use sim::shrink::shrink;
    use sim::sweep::{Summary, simulate, sweep, sweep_until};
    use sim::trace::Trace;
    use sim::world::Switches;

    /// Seeds that are the same at every commit.
    const FIXED: Range<u64> = 0..1000;
    /// Seeds that only this commit has.
    const FRESH: u64 = 1200;
    /// Where these begin if there is no commit.
    const FALLBACK: u64 = 1_000_000;
    /// Runs that may be spent on making one failure shorter, and failures for which they are.
    const SHRINK_RUNS: u32 = 60;
    const SHRUNK_MAX: usize = 2;
    /// Seeds between two looks whether one has failed: few at first, since what fails at once may fail slowly.
    const BATCH: u64 = 2;
    const BATCH_MAX: u64 = 32;
    /// Last lines of a failure's trace.
    const TAIL: usize = 40;

    pub(super) fn main() -> ExitCode {
        let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match words[..] {
            [] => full(),
            ["replay", plan] => show(&plan.parse().unwrap_or_else(usage)),
            ["sweep", seconds] => {
                let end = Instant::now() + Duration::from_secs(number(seconds));
                let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
                // Microseconds are enough to tell sweeps apart, and leave short numbers.
                let first = since_1970.as_micros() as u64;
                let summary = sweep_until(first..u64::MAX, Some(end), Switches::default());
                println!("{}\n{}", tables(&summary), fault_line(&summary));
                conclude(&summary, &[])
            }
            ["first", seconds] => first(Duration::from_secs(number(seconds))),
            ["seeds", count] => some(0..number(count)),
            ["seeds", count, first] => some(number(first)..number(first) + number(count)),
            // A filter of `cargo test` that means other targets.
            _ => {
                println!("sim: nothing here is called {words:?}");
                ExitCode::SUCCESS
            }
        }
    }

    fn number(text: &str) -> u64 {
        text.parse().unwrap_or_else(|_| usage(format!("not a number: {text}")))
    }

    fn usage<T>(error: String) -> T {
        eprintln!("sim: {error}; the head of sim/tests/sim.rs says what there is");
        std::process::exit(2)
    }

    fn full() -> ExitCode {
        let first = of_commit();
        let started = Instant::now();
        let mut summary = sweep(FIXED, Switches::default());
        summary.merge(sweep(first..first + FRESH, Switches::default()));
        println!("{}", tables(&summary));
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "seeds {FIXED:?} and {:?}: {:.1} a second",
            first..first + FRESH,
            summary.seeds.len() as f64 / seconds
        );
        conclude(&summary, &missing(&summary))
    }

    fn some(seeds: Range<u64>) -> ExitCode {
        let summary = sweep(seeds, Switches::default());
        println!("{}", tables(&summary));
        conclude(&summary, &[])
    }

    /// For who wants to know only whether a seed fails: nothing is made shorter.
    fn first(limit: Duration) -> ExitCode {
        let limit = limit * std::thread::available_parallelism().map_or(2, |count| count.get() as u32);
        let (mut summary, mut batch) = (Summary::default(), 0..BATCH);
        while processor_time() < limit {
            summary.merge(sweep(batch.clone(), Switches::default()));
            batch = batch.end..(2 * batch.end).min(batch.end + BATCH_MAX);
            if let Some((seed, violation)) = summary.failures.first() {
                println!("seed {seed} failed; {}\n  {violation}\n  {}", judge_of(violation), replay(&Plan::of(*seed)));
                return ExitCode::FAILURE;
            }
        }
        println!("{}", last_lines(&summary));
        ExitCode::SUCCESS
    }

    /// What this process has used of all processors: on a busy machine a second holds less work. (proc_pid_stat(5))
    fn processor_time() -> Duration {
        let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is mounted");
        // User and system time, in hundredths of a second. The program's name before them may contain blanks.
        let fields = stat.rsplit(')').next().expect("never empty").split_whitespace().skip(11).take(2);
        Duration::from_millis(fields.map(|ticks| 10 * number(ticks)).sum())
    }

    /// The first fresh seed: the beginning of the commit's hash.
    fn of_commit() -> u64 {
        let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(env!("CARGO_MANIFEST_DIR")).output();
        let hash = git.ok().filter(|output| output.status.success()).map(|output| output.stdout);
        let number = hash.and_then(|hash| u64::from_str_radix(std::str::from_utf8(hash.get(..12)?).ok()?, 16).ok());
        number.unwrap_or_else(|| {
            println!("sim: git tells no commit; the fresh seeds are those from {FALLBACK} on");
            FALLBACK
        })
    }

    /// Explains the failures, says what is missing, ends with the summary.
    fn conclude(summary: &Summary, missing: &[String]) -> ExitCode {
        for (index, (seed, violation)) in summary.failures.iter().enumerate() {
            println!("seed {seed} failed; {}\n  {violation}\n  {}", judge_of(violation), replay(&Plan::of(*seed)));
            if index < SHRUNK_MAX {
                explain(&Plan::of(*seed));
            }
        }
        for what in missing {
            println!("missing: {what}");
        }
        println!("{}", last_lines(summary));
        if summary.failures.is_empty() && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn explain(plan: &Plan) {
        let Some(shrunk) = shrink(plan, Switches::default(), SHRINK_RUNS) else {
            println!("  it does not fail again: the simulator is not deterministic");
            return;
        };
        let (shorter, lines) = shrunk.lines;
        println!("shrunk from {lines} to {shorter} lines in {} runs; {}", shrunk.runs, judge_of(&shrunk.violation));
        let trace = Trace::default();
        simulate(&shrunk.plan, Switches::default(), trace.clone());
        trace.tail(TAIL).iter().for_each(|line| println!("    {line}"));
        println!("  {}\n  {}", shrunk.violation, replay(&shrunk.plan));
    }

    fn show(plan: &Plan) -> ExitCode {
        let trace = Trace::new(true);
        let outcome = simulate(plan, Switches::default(), trace.clone());
        let lines = std::env::var("KISEKI_SIM_LINES").map_or(usize::MAX, |lines| number(&lines) as usize);
        trace.tail(lines).iter().for_each(|line| println!("{line}"));
        let (hash, count) = trace.hash();
        println!("sim: plan={plan} operations={} lines={count} hash={hash:016x}", outcome.completed);
        match outcome.violation {
            None => ExitCode::SUCCESS,
            Some(violation) => {
                println!("{}\n  {violation}", judge_of(&violation));
                ExitCode::FAILURE
            }
        }
    }
}
