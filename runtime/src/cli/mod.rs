//! The command line: `kiseki format | mount | umount | status | info | fsck | bench`.
//!
//! Owns: arguments, texts, exit codes (0 done, 1 failed, 2 usage, 3 findings).
//! Leaves to others: the work itself (one file a command), the mount (`crate::mount`), the core.
//!
//! A result goes to standard output, as text or (`--json`) as one JSON document; errors and progress go to standard
//! error. A command that fails leaves everything as it was.

mod access;
mod bench;
mod format;
mod fsck;
mod helper;
mod info;
mod mount;
mod open;
mod output;
mod place;
mod status;
mod umount;
mod values;
mod writeback;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use output::{Done, Outcome};

/// What `--help` says after the commands.
const OVERVIEW: &str = "\
A volume is one metadata store (META) and one folder or bucket of objects. Make one, mount it, use it:

  kiseki format /srv/kiseki/meta my-volume --storage file --bucket /srv/kiseki/objects
  kiseki mount -d /srv/kiseki/meta /mnt/kiseki
  cp -r some-folder /mnt/kiseki
  kiseki umount /mnt/kiseki

With the objects in MinIO, or another store that speaks S3 (see `kiseki format --help`):

  export KISEKI_ACCESS_KEY=minioadmin KISEKI_SECRET_KEY=minioadmin
  kiseki format /srv/kiseki/meta my-volume --storage minio --bucket http://127.0.0.1:9000/my-bucket
  kiseki mount -d /srv/kiseki/meta /mnt/kiseki

META is the path of a RocksDB folder, /srv/kiseki/meta or rocksdb:///srv/kiseki/meta; `format` makes it.

Sizes are whole numbers of bytes, or with a suffix K, M, G, T, P (powers of 1024). Durations are whole seconds, or
with a suffix ms, s, m, h.

Exit codes: 0 done; 1 failed (nothing was changed); 2 the command line makes no sense; 3 `fsck` found something.";

/// A POSIX file system on object storage.
///
/// Files are stored as blocks in an object store, names and attributes in a transactional key-value store on this
/// machine. What fsync(2) has acknowledged survives crashes and power cuts.
#[derive(Debug, Parser)]
#[command(name = "kiseki", version, after_help = OVERVIEW, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Format(format::FormatArgs),
    Mount(mount::MountArgs),
    Umount(umount::UmountArgs),
    Status(status::StatusArgs),
    Info(info::InfoArgs),
    Fsck(fsck::FsckArgs),
    Bench(bench::BenchArgs),
}

/// How to show the result.
#[derive(Clone, Copy, Debug, Args)]
struct Show {
    /// Print the result as one JSON document (its keys: see below)
    #[arg(long)]
    json: bool,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if let Err(failure) = helper::go_on_as_kiseki() {
        return ExitCode::from(failure.report());
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version arrive here too, with exit code 0; usage errors have 2.
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    match access::hide_keys().and_then(|()| run(cli.command)) {
        Ok(Done::Clean) => ExitCode::SUCCESS,
        Ok(Done::Findings) => ExitCode::from(3),
        Err(failure) => ExitCode::from(failure.report()),
    }
}

fn run(command: Command) -> Outcome {
    match command {
        Command::Format(args) => format::run(&args),
        Command::Mount(args) => mount::run(args),
        Command::Umount(args) => umount::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Fsck(args) => fsck::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
