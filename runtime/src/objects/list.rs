//! Listing in key order over a store that lists one folder at a time, in no order.
//!
//! Owns: the walk. Leaves to others: deadlines and errors (`objects`).
//!
//! Invariants
//! - Keys come in ascending byte order; a folder sorts as its name with a slash, as its keys do.
//! - A page ends only where a folder ends, so that no folder is listed once per page.

use kiseki_core::env::ObjectPage;
use opendal::{EntryMode, Operator};

/// A page grows to at least this many keys, and then to the end of the folder it is in.
const PAGE_MIN: usize = 1000;

/// Keys under `prefix` ("" or ending with '/') and after `after`, leaving out what lies under `hidden`.
pub(super) async fn page(
    operator: &Operator,
    prefix: &str,
    after: Option<&str>,
    hidden: &str,
) -> opendal::Result<ObjectPage> {
    let after = after.unwrap_or("");
    let mut keys = Vec::new();
    // Folders and keys still to be visited, the next one on top.
    let mut pending = vec![prefix.to_owned()];
    while let Some(path) = pending.pop() {
        if !path.is_empty() && !path.ends_with('/') {
            keys.push(path);
            continue;
        }
        if keys.len() >= PAGE_MIN {
            let next = keys.last().cloned();
            return Ok(ObjectPage { keys, next });
        }
        let mut entries: Vec<String> = operator
            .list(if path.is_empty() { "/" } else { &path })
            .await?
            .into_iter()
            .filter(|entry| matches!(entry.metadata().mode(), EntryMode::FILE | EntryMode::DIR))
            .map(|entry| entry.path().to_owned())
            // The folder itself is among its entries.
            .filter(|entry| *entry != path && entry != "/" && entry != hidden)
            .filter(|entry| entry.as_str() > after || (entry.ends_with('/') && after.starts_with(entry)))
            .collect();
        entries.sort_unstable();
        pending.extend(entries.into_iter().rev());
    }
    Ok(ObjectPage { keys, next: None })
}
