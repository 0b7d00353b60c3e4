//! Listings, page by page, and the page that a listing will want next.
//!
//! Owns: pages that were read ahead, and that none is older than what a read would show.
//! Leaves to others: cookies (`meta::lookup`), what is kept in memory (`meta_cache`, `listings`).
//!
//! While a program works on a page of a listing nobody asks for anything. What it will want next can be read meanwhile: it
//! counts if no transaction has begun to write since. What files have accepted and not committed is looked at when the page
//! is asked for.

use alloc::vec::Vec;

use super::std::sync::Mutex;
use super::wait::lock;
use super::{Client, Shared};
use crate::env::Env;
use crate::errno::Errno;
use crate::format::keys;
use crate::format::values::Value as _;
use crate::kv::OpResult;
use crate::marks::{Mark, reached, reached_if};
use crate::meta::{self, DirEntry};
use crate::planted::{self, Bug};
use crate::types::{Attr, FileType, Ino};

#[cfg(test)]
#[path = "pages_tests.rs"]
mod tests;

/// Pages that are kept at once, one of each directory: for listings that go on at the same time.
const SLOTS: usize = 16;

impl<E: Env> Client<E> {
    /// Up to `limit` entries after `cookie` (0: from the start), without `.` and `..`.
    pub async fn readdir(&self, dir: Ino, cookie: u64, limit: usize) -> Result<Vec<DirEntry>, Errno> {
        let entries = self.0.read(|read| meta::lookup::readdir(read, dir, cookie, limit)).await?;
        self.0.accessed(dir);
        Ok(entries)
    }

    /// The same with attributes. Counts no lookup: `remember` does, for each entry that reaches the kernel.
    pub async fn readdirplus(&self, dir: Ino, cookie: u64, limit: usize) -> Result<Vec<(DirEntry, Attr)>, Errno> {
        let shared = &self.0;
        let Page { mut entries, retired } = match shared.ahead.take((dir, cookie), limit, shared.meta.begun()) {
            Some(page) => page,
            None => shared.page(dir, cookie, limit).await?,
        };
        shared.accessed(dir);
        for (entry, attr) in &mut entries {
            shared.accesses.show(entry.ino, attr);
            if entry.kind == FileType::Regular && shared.may_be_dirty(entry.ino, retired) {
                match shared.getattr(entry.ino).await {
                    // Removed since the listing: it shows what was there.
                    Err(Errno::ENOENT) => {}
                    result => *attr = result?,
                }
            }
        }
        Ok(entries)
    }

    /// Reads what `readdirplus` is to return next, or more. Nothing while a transaction writes.
    pub async fn readdirplus_ahead(&self, dir: Ino, cookie: u64, limit: usize) {
        let shared = &self.0;
        let Some(begun) = shared.meta.quiet() else { return };
        // Whoever asks for it is told of errors.
        if let Ok(page) = shared.page(dir, cookie, limit).await {
            shared.ahead.put(Ahead { place: (dir, cookie), limit, begun, page });
        }
    }
}

impl<E: Env> Shared<E> {
    async fn page(&self, dir: Ino, cookie: u64, limit: usize) -> Result<Page, Errno> {
        let retired = self.files.retired();
        let entries = self.read(|read| {
            let entries = meta::lookup::readdir(read, dir, cookie, limit)?;
            let mut with_attr = Vec::with_capacity(entries.len());
            for entry in entries {
                let attr = match self.kept_attr(&entry)? {
                    Some(attr) => attr,
                    None => meta::attr::load(read, entry.ino)?,
                };
                with_attr.push((entry, attr));
            }
            Ok(with_attr)
        });
        Ok(Page { entries: entries.await?, retired })
    }

    /// Attributes that are in memory; those of a directory are in several records, which only a snapshot shows together.
    fn kept_attr(&self, entry: &DirEntry) -> OpResult<Option<Attr>> {
        if entry.kind == FileType::Directory {
            return Ok(None);
        }
        let kept = self.meta.kept(&keys::attr(entry.ino), Attr::decode).transpose()?;
        reached_if(Mark::ListedFromMemory, || kept.is_some());
        Ok(kept)
    }
}

/// What the metadata says of entries.
struct Page {
    entries: Vec<(DirEntry, Attr)>,
    /// `Files::retired` before it was read.
    retired: u64,
}

/// A page that nobody has asked for.
struct Ahead {
    /// The directory, and after which cookie.
    place: (Ino, u64),
    limit: usize,
    /// The transactions that had begun before it was read, when all had ended.
    begun: u64,
    page: Page,
}

/// The pages that were read ahead.
#[derive(Default)]
pub(super) struct Pages([Mutex<Option<Ahead>>; SLOTS]);

impl Pages {
    fn slot(&self, dir: Ino) -> &Mutex<Option<Ahead>> {
        &self.0[dir.0 as usize % SLOTS]
    }

    fn put(&self, ahead: Ahead) {
        let old = lock(self.slot(ahead.place.0)).replace(ahead);
        drop(old);
    }

    /// The page at `place`, if so many entries were wanted of it and it is as it would be read where `begun`
    /// transactions have begun.
    fn take(&self, place: (Ino, u64), limit: usize, begun: u64) -> Option<Page> {
        let ahead = lock(self.slot(place.0)).take_if(|ahead| ahead.place == place)?;
        let newest = ahead.begun == begun || planted::is(Bug::OldPageShown);
        reached_if(Mark::OldPageNotShown, || !newest);
        if !newest || ahead.limit < limit {
            return None;
        }
        reached(Mark::PageReadAhead);
        let mut page = ahead.page;
        page.entries.truncate(limit);
        Some(page)
    }
}
