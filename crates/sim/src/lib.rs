//! Tools for tests that want to see storage misbehave. Dev only: nothing here runs in production.
//!
//! | when a test needs | use |
//! |---|---|
//! | a lost answer, a 409, a timeout, a late landing, a stalled process at one exact request | [`FaultStore`] with a script |
//! | the same at random, repeatable from a seed | [`FaultStore::random`] |
//! | requests that take their time, by a distribution | [`LatencyStore`] |
//! | to know how many requests something costs | [`CountingStore`] |
//! | a store that accepts conditional writes and ignores the condition | [`IgnoreConditionStore`] |
//! | a real S3 server on loopback, with an atomic `If-None-Match: *` | [`S3Server`] |
//! | another process, to be suspended or killed between two acknowledgements | [`Process`] |
//! | a disk that loses its power, and with it what was not fsynced | [`PowerLossDisk`], [`PowerLossStore`] |
//! | random numbers that come back with the seed | [`Rng`] |
//! | every interleaving of the protocol, within bounds | [`model`] |
//!
//! Every store is an ordinary [`object_store::ObjectStore`], so they nest: a counter around a script of faults around
//! a real S3 client is three lines.
//!
//! ```
//! use std::sync::Arc;
//!
//! use fencepost_sim::{Fault, FaultStore, Op};
//! use object_store::{ObjectStoreExt, PutMode, PutOptions, memory::InMemory, path::Path};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let faults = FaultStore::new(Arc::new(InMemory::new()));
//! let rule = faults
//!     .on(Op::Create)
//!     .path_contains("/wal/")
//!     .nth(2)
//!     .then(Fault::LostAckAsExists);
//!
//! let store = faults.store(); // Arc<dyn ObjectStore>, for the code under test
//! let create = || PutOptions::from(PutMode::Create);
//! let (first, second) = (Path::from("t/wal/1"), Path::from("t/wal/2"));
//! assert!(store.put_opts(&first, "a".into(), create()).await.is_ok());
//! assert!(store.put_opts(&second, "b".into(), create()).await.is_err());
//! assert!(store.get(&second).await.is_ok()); // it landed all the same
//! assert_eq!(rule.fired(), 1);
//! # });
//! ```

mod child;
mod count;
mod faults;
mod ignore_condition;
mod latency;
pub mod model;
mod power_loss;
mod rng;
pub mod run;
mod s3;

pub use child::{ChildError, Process};
pub use count::{CountingStore, Counts, RequestCounts};
pub use faults::{
    Fault, FaultStore, Gate, InjectedFault, Landed, Op, Outcome, RandomFaults, Record, Rule, RuleBuilder, is_injected,
};
pub use ignore_condition::IgnoreConditionStore;
pub use latency::{Latency, LatencyStore, Pace};
pub use power_loss::{Call, PowerLossDisk, PowerLossStore, Survival, Syncs};
pub use rng::Rng;
pub use s3::{S3Habits, S3Server};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex` also after a panic elsewhere: the test that panicked is the one to report, not every other holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
