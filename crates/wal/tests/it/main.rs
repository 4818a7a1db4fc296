//! The log against stores with the habits of real ones. One binary; a module is one topic.
//!
//! "Process" in these tests means one [`support::Process`]: a view of a shared bucket with faults of its own. Time is
//! paused wherever a test runs in memory, so that backoffs and intervals cost nothing and order is the same each run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod adopt;
mod answers;
mod checkpoints;
mod clones;
mod cost;
mod damage;
mod docs;
mod fencing;
mod gc;
mod gc_crash;
mod gc_plan;
mod gc_schedules;
mod lance;
mod manifest;
mod peers_probes;
mod pipelining;
mod power_loss;
mod random;
mod schedules;
mod simulated;
mod support;
mod survey;
mod tailer;
mod takeover;
mod verify;
mod wal_store;
mod writer;
