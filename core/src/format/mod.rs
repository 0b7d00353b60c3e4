//! Bytes on disk: metadata keys and values, blocks in the object store.
//!
//! Owns: every layout that outlives a process, its version and its limits.
//! Leaves to others: what the data means (`meta`, `file`), where it is kept (`kv`, `store`).
//!
//! Invariants
//! - Every value and object starts with its format version; a version from the future is an error of its own.
//! - No input makes a decoder panic, and what a decoder accepts encodes to the same bytes again.
//! - Integers are big-endian.

pub mod block;
pub mod codec;
pub mod keys;
pub mod log;
pub mod pack;
pub mod values;

pub use codec::DecodeError;
pub use values::{Value, Volume};
