//! The ordered transactional key-value seam: what metadata operations see of a store.
//!
//! Owns: the traits and their errors, an in-memory implementation (`mem`).
//! Leaves to others: running, re-running and syncing transactions (`env::MetaStore`).
//!
//! Invariants
//! - Keys are ordered bytewise. All reads of one transaction see one snapshot plus the transaction's own writes.
//! - Every `get` of a write transaction is tracked: the transaction conflicts if another one that committed after
//!   its snapshot wrote that key. A `scan` is not tracked. A `put` or `delete` conflicts as a get does.
//! - A read may answer `Miss`: the operation passes it up with `?` and is run again once the store has fetched it.

use alloc::vec::Vec;

use bytes::Bytes;

use crate::errno::Errno;

pub mod mem;

/// Why a read of the store gave no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// Not in this attempt's snapshot yet; the store fetches it and runs the operation again.
    #[error("not fetched yet")]
    Miss,
    /// The store failed; it has logged why.
    #[error("the metadata store failed")]
    Failed,
}

/// A page of key-value pairs in key order.
pub type Pairs = Vec<(Bytes, Bytes)>;

/// Who is shown keys and their values.
pub type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]);

/// Who is shown the value of a key, or that there is none.
pub type See<'a> = &'a mut dyn FnMut(Option<&[u8]>);

/// Pairs that `visit` scans at once where the store does not do better.
const PAGE: usize = 256;

/// Reads at one snapshot.
pub trait Read {
    /// The value of `key`, if there is one.
    fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, KvError>;
    /// Shows to `see` what a get gives: it need not copy it. If `see` is called several times, the last one counts; on an
    /// error none does.
    fn see(&mut self, key: &[u8], see: See<'_>) -> Result<(), KvError> {
        see(self.get(key)?.as_deref());
        Ok(())
    }
    /// Up to `limit` pairs with `start <= key < end`, in key order; fewer only at the end of the range.
    fn scan(&mut self, start: &[u8], end: &[u8], limit: usize) -> Result<Pairs, KvError>;
    /// Shows to `each` what a scan gives, in key order: it need not copy it.
    fn visit(&mut self, start: &[u8], end: &[u8], limit: usize, each: Each<'_>) -> Result<(), KvError> {
        let (mut start, mut left) = (start.to_vec(), limit);
        loop {
            let wanted = left.min(PAGE);
            let page = self.scan(&start, end, wanted)?;
            page.iter().for_each(|(key, value)| each(key, value));
            left -= page.len();
            match page.last() {
                Some((key, _)) if page.len() == wanted && left > 0 => {
                    // The smallest key above it.
                    start.clear();
                    start.extend_from_slice(key);
                    start.push(0);
                }
                Some(_) | None => return Ok(()),
            }
        }
    }
}

/// Reads and writes of one transaction.
pub trait Txn: Read {
    /// `known` is what the newest commit had left of `key` when somebody looked, after this transaction began. True: it is what
    /// a get would give, and the key counts as read. A store that cannot tell says false.
    fn take_known(&mut self, key: &[u8], known: Option<&[u8]>) -> bool {
        _ = (key, known);
        false
    }
    /// Sets `key`.
    fn put(&mut self, key: &[u8], value: &[u8]);
    /// Sets `key`, which is not there: the store may rely on that.
    fn put_new(&mut self, key: &[u8], value: &[u8]) {
        self.put(key, value);
    }
    /// Removes `key`; nothing happens if it is absent.
    fn delete(&mut self, key: &[u8]);
    /// The snapshot view as a plain reader.
    fn as_read(&mut self) -> &mut dyn Read;
}

/// A copy of what `see` is shown.
pub fn copied(see: impl FnOnce(See<'_>) -> Result<(), KvError>) -> Result<Option<Bytes>, KvError> {
    let mut copy = None;
    see(&mut |value| copy = value.map(Bytes::copy_from_slice))?;
    Ok(copy)
}

/// Why a metadata operation ended without a result. Nothing that it wrote takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// The answer to the caller.
    #[error("{0:?}")]
    Errno(Errno),
    /// The store could not read.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A stored value does not decode or contradicts another one; the text says which.
    #[error("damaged metadata: {0}")]
    Damaged(&'static str),
}

impl From<Errno> for OpError {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// What a metadata operation returns.
pub type OpResult<T> = Result<T, OpError>;
