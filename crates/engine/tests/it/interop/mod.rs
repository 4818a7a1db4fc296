//! Two implementations on the same bytes: Fencepost, and the `lance` crate as it is published, each with its own store,
//! registry and session on one folder. What one of them wrote the other must read, replay, take over and go on with.
//!
//! The tables are Fencepost's; Lance writes to their shards. [`place::Place`] is the folder and Fencepost's view of it,
//! [`lance::Lance`] and [`lance::LanceWriter`] are Lance's; [`model::Model`] says what the rows must be.

mod lance;
pub(crate) mod model;
pub(crate) mod place;

mod collecting;
mod lance_reads;
mod merging;
mod schedules;
mod takeover;
mod turns;
