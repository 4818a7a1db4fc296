//! What the log takes from the world beside the object store: clocks and fresh random ids. Everything else that depends
//! on time uses tokio's clock, so that a simulation with paused time and a seed repeats a run exactly.

use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use uuid::Uuid;

use crate::store::Store;

/// The clocks and the dice of a process. Production code uses [`RealSurroundings`]; a simulation brings its own.
pub trait Surroundings: fmt::Debug + Send + Sync {
    /// The time of day, to compare with the times that the store gives its objects. No safety rests on it.
    fn now(&self) -> SystemTime;

    /// A random UUID that nobody else ever gets: the id of a claim, a commit, a checkpoint.
    fn fresh_id(&self) -> Uuid;

    /// How long ago `since` was, by a clock that never goes back. It need not count the time for which the machine was
    /// suspended. No promise rests on it: how fresh a plain reader's look is, and when a commit reads first.
    fn elapsed(&self, since: Instant) -> Duration {
        since.elapsed()
    }

    /// How this process opens the store at a URL that a manifest records; `None`: as [`Store::open`] does. Never asked for the
    /// store that a caller gave.
    fn open_store(&self, url: &str) -> Option<Store> {
        let _ = url;
        None
    }
}

/// The system's clock and random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealSurroundings;

impl Surroundings for RealSurroundings {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn fresh_id(&self) -> Uuid {
        Uuid::new_v4()
    }
}
