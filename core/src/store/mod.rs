//! Where blocks are, on this side of the object store.
//!
//! Owns: the machine of a block-cache shard (`cache`).
//! Leaves to others: fetching and verifying blocks (`client`), their bytes (`format::block`).

pub mod cache;
