//! The engine against stores with the habits of real ones. One binary, because linking Lance takes long; a module is
//! one topic.
//!
//! "Process" in these tests means one [`support::Process`]: a view of a shared bucket with faults of its own. Nothing
//! sleeps and hopes: what has to happen at a moment waits at a gate.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod airports;
mod at_once;
mod checkpoints;
mod clone_cost;
mod clones;
mod clones_wal_store;
mod create;
mod defaults;
mod every_type;
mod evolve;
mod follower;
mod foreign;
mod gc;
mod golden;
mod histories;
mod identity;
mod interop;
mod lance_reads;
mod lookup;
mod merge;
mod merge_lance;
mod merge_schedules;
mod model;
mod parity;
mod peers_probes;
mod points;
mod prune;
mod reads;
mod reshard;
mod scale;
mod schedules;
mod search;
mod support;
mod tantivy;
mod types;
mod verify;
mod wal_store;
mod writer;
