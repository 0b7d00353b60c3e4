//! The deterministic core of Kiseki.
//!
//! Everything here is `no_std`: the compiler itself proves that formats, metadata operations and state machines do
//! no I/O, read no clock and start no thread. `client` alone names `std` (for its mutexes and maps) and `async`.
//!
//! Functions below (`format`, `meta`), machines in the middle (`file`, `store`), thin async above (`client`).
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod client;
pub mod env;
pub mod errno;
pub mod file;
pub mod format;
pub mod kv;
pub mod marks;
pub mod meta;
pub mod planted;
pub mod store;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod types;
