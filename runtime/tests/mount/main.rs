//! A mounted volume, through the kernel: what programs see, before and after a remount.
//!
//! Needs root, /dev/fuse and fuse3. Each test has a volume of its own and leaves no mount behind.

mod attributes;
mod back;
mod contents;
mod differs;
mod fstab;
mod garbage;
mod harness;
mod life;
mod names;
mod privileges;
mod ranges;
mod semantics;
#[path = "../volume/mod.rs"]
mod volume;
