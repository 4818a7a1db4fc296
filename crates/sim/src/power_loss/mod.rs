//! A disk that forgets, at a power loss, what was not fsynced: bytes of files, and names in folders.
//!
//! [`PowerLossDisk`] owns the model: what each call makes volatile and what each fsync makes durable, as POSIX promises
//! it and no better. [`PowerLossStore`] owns the order of the calls, which is that of `object_store`'s
//! `LocalFileSystem`; a test runs both and compares (with `strace`, where there is one).

mod disk;
mod store;
#[cfg(test)]
mod tests;

pub use disk::{Call, PowerLossDisk, Survival};
pub use store::{PowerLossStore, Syncs};
