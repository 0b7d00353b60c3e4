//! Where blocks are, on this side of the object store.
//!
//! Owns: the machines of a block-cache shard (`cache`), of the write-back log (`log`), and what is fetched ahead of
//! packs (`window`).
//! Leaves to others: fetching and verifying blocks (`client`), their bytes (`format::block`), those of the log
//! (`format::log`), the disk.

pub mod cache;
pub mod log;
pub mod window;
