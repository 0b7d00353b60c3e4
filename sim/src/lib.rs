//! The simulated world: the client of `kiseki_core` under seeded latency, faults, crashes and power cuts.
//!
//! Owns: the fakes of the outside world (`world`), the faults (`faults`), the applications (`apps`), what they are
//! judged by (`judge`), the course of one seed and of many (`run`).
//! Leaves to others: the model and the operations (`kiseki_core::testkit`), the client (`kiseki_core::client`).
//!
//! Invariants
//! - A seed determines everything: one thread per seed, one executor, every choice from the seed.
//! - Faults go exactly as far as the design promises to bear; so every failure is a defect.
#![cfg(madsim)]
#![forbid(unsafe_code)]

pub mod apps;
pub mod crew;
pub mod crowd;
pub mod dice;
pub mod faults;
pub mod judge;
pub mod kernel;
pub mod linear;
pub mod observe;
pub mod plan;
pub mod recovery;
pub mod report;
pub mod rest;
pub mod rivals;
pub mod run;
pub mod shrink;
pub mod spy;
pub mod sweep;
pub mod trace;
pub mod world;
