//! The machine of one inode's contents: accepted writes on their way to the store, and what readers see meanwhile.
//!
//! `machine` owns the order (commands, completions, outputs), `slice` the bytes of one run of writes, `buffer` those of a
//! block of it, `view` what is committed, `overlay` which of them shows where, `readahead` what a sequential reader will
//! want next.

pub mod buffer;
pub mod machine;
#[cfg(test)]
mod machine_tests;
pub mod overlay;
pub mod readahead;
pub mod slice;
pub mod view;

pub use machine::{Action, File, PutOutcome};
pub use view::Segment;
