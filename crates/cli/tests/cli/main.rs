//! The command from outside: what it prints, what it leaves on storage, and how it ends. One binary, because linking
//! Lance takes longer than running the tests.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod bad_input;
mod bench;
mod checkpoints;
mod clones;
#[cfg(unix)]
mod crash;
mod defaults;
#[cfg(unix)]
mod demo;
mod exit_codes;
mod flights;
mod follow;
mod foreign;
mod gc;
mod get;
mod pipes;
mod probe;
mod python;
mod reshard;
mod round_trip;
#[cfg(unix)]
mod s3;
mod search;
mod support;
mod verify;
mod wal_store;
