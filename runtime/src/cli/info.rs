//! `kiseki info`: how one file is stored.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use clap::Args;

use super::output::{Context, Done, Failure, Outcome, say, say_json, table};
use super::values::show_size;
use super::{Show, open, place};
use crate::control::protocol::{Info, Reply, Request, SliceView};

const EXAMPLES: &str = "\
Examples:
  kiseki info /mnt/kiseki/some-file
  kiseki info /mnt/kiseki/some-file --json

A file is a row of chunks; a chunk is covered by slices, newer ones over older ones; a slice is stored as blocks, one
object each, or (when tiny) inline in the metadata. What was written a moment ago may not be in a slice yet.

Keys of --json:
  path, ino, kind, length, stored, nlink, mode, uid, gid, dirty_bytes (written, not stored yet)
  slices                chunk, seq, offset (in the file), len (shown), slice (identity), off (first byte shown),
                        stored_len, place (blocks, home or inline), blocks (the object that
                        each is in: its own, or a pack; keys below the volume's folder)";

/// Show how a file on a mounted volume is stored: inode, slices, blocks
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct InfoArgs {
    /// A file or folder on a mounted volume; a symbolic link stands for itself
    path: PathBuf,
    #[command(flatten)]
    show: Show,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "any other reply breaks the protocol")]
pub(super) fn run(args: &InfoArgs) -> Outcome {
    let mount = place::mount_of(&args.path)?;
    let ino = args.path.symlink_metadata().context(|| format!("look at {}", args.path.display()))?.ino();
    let doing = || format!("ask the mount at {}", mount.mountpoint.display());
    let mut connection = open::connect(&mount)?;
    connection.ask(&Request::Info { ino }).context(doing)?;
    let info = match connection.next_reply().context(doing)? {
        Reply::Info(info) => info,
        Reply::Failed { text, .. } => return Err(Failure::new(format!("{}: {text}", args.path.display()))),
        reply => return Err(open::unexpected(&reply)),
    };
    if args.show.json {
        let mut document = serde_json::to_value(&info).context(|| "write JSON")?;
        document["path"] = args.path.to_string_lossy().into();
        say_json(&document);
    } else {
        say(text(&args.path.display().to_string(), &info));
    }
    Ok(Done::Clean)
}

fn text(path: &str, info: &Info) -> String {
    let mut rows = vec![
        ("Path", path.into()),
        ("Inode", format!("{} ({})", info.ino, info.kind)),
        ("Length", format!("{} ({} bytes)", show_size(info.length), info.length)),
        ("Stored", show_size(info.stored)),
        ("Mode", format!("{:04o}, owner {}, group {}, {} names", info.mode, info.uid, info.gid, info.nlink)),
    ];
    if info.dirty_bytes > 0 {
        rows.push(("Not stored yet", show_size(info.dirty_bytes)));
    }
    let mut text = table(&rows);
    for slice in &info.slices {
        text.push('\n');
        text.push_str(&slice_text(slice));
    }
    text
}

fn slice_text(slice: &SliceView) -> String {
    let SliceView { chunk, seq, offset, len, slice: id, off, stored_len, place, blocks } = slice;
    let end = offset + u64::from(*len);
    let shown = if len == stored_len { String::new() } else { format!(" (from {off} of {stored_len})") };
    let mut text = match id {
        0 => format!("chunk {chunk} seq {seq}: {offset}..{end} {place}{shown}"),
        _ => format!("chunk {chunk} seq {seq}: {offset}..{end} slice {id} in {place}{shown}"),
    };
    for key in blocks {
        text.push_str("\n  ");
        text.push_str(key);
    }
    text
}
