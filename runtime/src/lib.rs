//! Kiseki on a real machine: FUSE by fuser, metadata in RocksDB, objects through OpenDAL, tokio, and the command line.
//!
//! Owns: everything that touches the outside world. Leaves to others: what a file system *is* (`kiseki_core`).

pub mod bench;
mod brief;
pub mod cli;
pub mod control;
mod direct;
pub mod env;
mod folders;
pub mod fuse;
mod load;
pub mod log_folder;
pub mod memory;
pub mod mount;
pub mod objects;
pub mod rocks;
mod rounds;
mod waiting;
