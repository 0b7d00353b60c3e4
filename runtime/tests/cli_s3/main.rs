//! The command line on a store behind S3: what works, what is told when it does not, and that keys are seen nowhere.
//!
//! The store is a server in this process. Mounts need root, /dev/fuse and fuse3.

mod back;
mod damage;
mod hanging;
mod harness;
mod life;
mod refused;
#[path = "../s3server/mod.rs"]
mod s3server;
#[path = "../volume/mod.rs"]
mod volume;
