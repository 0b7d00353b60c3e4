//! Listings: pages of the client's directory stream, laid straight into a reply until it is full.
//!
//! The kernel's offset is the client's cookie of the last entry that it got. Cookies of entries are 256 and above; below,
//! 1 stands for `.` and 2 for `..`, which the client does not list.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use kiseki_core::client::Client;
use kiseki_core::env::Env;
use kiseki_core::errno::Errno;
use kiseki_core::types::{Attr, Ino};

use super::kernel::TTL;
use super::{attributes, convert};

/// Offset after `.`.
const AFTER_DOT: u64 = 1;
/// Offset after `..`.
const AFTER_DOTS: u64 = 2;

/// Entries fetched at a time. A reply of 32 KiB (the buffer of glibc's readdir) holds about 200 with attributes and 800
/// without: a few pages, and few entries fetched in vain for a kernel that asks for 4 KiB.
const PAGE: usize = 64;
/// Entries fetched for what is left of a reply.
const FEW: usize = 16;
/// Most entries that are fetched at once because a reply took as many.
const PAGE_MAX: usize = 512;
/// So many more are read ahead: a reply may take a few more than the last.
const MORE: usize = 8;

/// How many entries with attributes the last full reply took, and the one that did not fit: as many are fetched for the
/// next, at once and few in vain.
#[derive(Debug, Default)]
pub(super) struct Fitted(AtomicUsize);

impl Fitted {
    fn page(&self) -> usize {
        match self.0.load(Ordering::Relaxed) {
            0 => PAGE,
            fitted => fitted.min(PAGE_MAX),
        }
    }
}

/// A reply that takes entries.
pub(super) trait Listing: Send + 'static {
    /// Adds an entry; false if it did not fit.
    fn add(&mut self, ino: Ino, attr: &Attr, cookie: u64, name: &OsStr) -> bool;
}

impl Listing for ReplyDirectory {
    fn add(&mut self, ino: Ino, attr: &Attr, cookie: u64, name: &OsStr) -> bool {
        !Self::add(self, INodeNo(ino.0), cookie, convert::kind(attr.kind), name)
    }
}

impl Listing for ReplyDirectoryPlus {
    fn add(&mut self, ino: Ino, attr: &Attr, cookie: u64, name: &OsStr) -> bool {
        !Self::add(self, INodeNo(ino.0), cookie, name, &TTL, &attributes::shown(ino, attr), Generation(0))
    }
}

/// Fills `reply` with names and types of `dir`, in a mount of `root`, after `offset`. An error after the first entry
/// only ends the reply: the kernel asks again from there, and gets it then.
pub(super) async fn list<E: Env>(
    client: &Client<E>,
    (dir, root): (Ino, Ino),
    offset: u64,
    reply: &mut ReplyDirectory,
) -> Result<(), Errno> {
    let Dots::Fit { mut empty } = add_dots(client, (dir, root), offset, reply).await? else { return Ok(()) };
    let mut cookie = after_dots(offset);
    loop {
        let page = match client.readdir(dir, cookie, PAGE).await {
            Ok(page) => page,
            Err(errno) if empty => return Err(errno),
            Err(_) => return Ok(()),
        };
        for entry in &page {
            let kind = convert::kind(entry.kind);
            if reply.add(INodeNo(entry.ino.0), entry.cookie, kind, OsStr::from_bytes(&entry.name)) {
                return Ok(());
            }
            empty = false;
            cookie = entry.cookie;
        }
        if page.len() < PAGE {
            return Ok(());
        }
    }
}

/// Reads what follows on a full reply, which ended at `cookie`, while the kernel's caller works on that.
pub(super) async fn read_ahead<E: Env>(client: &Client<E>, dir: Ino, cookie: u64, fitted: &Fitted) {
    client.readdirplus_ahead(dir, cookie, fitted.page() + MORE).await;
}

/// As `list`, with attributes. Each entry that fits is a lookup for the kernel. Returns the offset to go on from, if the reply
/// is full.
pub(super) async fn list_plus<E: Env>(
    client: &Client<E>,
    (dir, root): (Ino, Ino),
    offset: u64,
    fitted: &Fitted,
    reply: &mut ReplyDirectoryPlus,
) -> Result<Option<u64>, Errno> {
    let Dots::Fit { mut empty } = add_dots(client, (dir, root), offset, reply).await? else { return Ok(None) };
    let mut cookie = after_dots(offset);
    let (mut limit, mut taken) = (fitted.page(), 0);
    loop {
        let page = match client.readdirplus(dir, cookie, limit).await {
            Ok(page) => page,
            Err(errno) if empty => return Err(errno),
            Err(_) => return Ok(None),
        };
        for (entry, attr) in &page {
            // Counted before the reply goes out: the kernel may forget as soon as it has it.
            if !Listing::add(reply, entry.ino, attr, entry.cookie, OsStr::from_bytes(&entry.name)) {
                fitted.0.store(taken + 1, Ordering::Relaxed);
                return Ok(Some(cookie));
            }
            client.remember(entry.ino);
            empty = false;
            cookie = entry.cookie;
            taken += 1;
        }
        if page.len() < limit {
            return Ok(None);
        }
        limit = FEW;
    }
}

/// What became of `.` and `..`.
enum Dots {
    /// The reply has room for more; `empty` if it holds nothing.
    Fit { empty: bool },
    /// The reply is full.
    Full,
}

/// Adds what of `.` and `..` comes after `offset`.
async fn add_dots<E: Env>(
    client: &Client<E>,
    (dir, root): (Ino, Ino),
    offset: u64,
    reply: &mut impl Listing,
) -> Result<Dots, Errno> {
    if offset >= AFTER_DOTS {
        return Ok(Dots::Fit { empty: true });
    }
    let attr = client.getattr(dir).await?;
    if offset < AFTER_DOT && !reply.add(dir, &attr, AFTER_DOT, OsStr::new(".")) {
        return Ok(Dots::Full);
    }
    // A removed directory may have no parent to name, and what is mounted is its own.
    let parent = if attr.parent == Ino(0) || dir == root { dir } else { attr.parent };
    if !reply.add(parent, &attr, AFTER_DOTS, OsStr::new("..")) {
        return Ok(Dots::Full);
    }
    Ok(Dots::Fit { empty: false })
}

fn after_dots(offset: u64) -> u64 {
    if offset <= AFTER_DOTS { 0 } else { offset }
}
