//! How often a follower asks, what it may hold, and how long others may wait for it.

use std::time::Duration;

use crate::error::{Error, Result};

/// How a [`Follower`](crate::Follower) works.
#[derive(Debug, Clone)]
pub struct FollowerConfig {
    /// Whether it asks by itself. If not, it moves only by [`refresh`](crate::Follower::refresh) and
    /// [`wait_for`](crate::Follower::wait_for). Default true.
    pub polling: bool,
    /// The pause after a round that found something new, and between two rounds while somebody waits. Default 100 ms.
    pub min_poll: Duration,
    /// The longest pause: each round that finds nothing, or fails, doubles it up to this. Default 2 s.
    pub max_poll: Duration,
    /// Bytes of the rows above R, and of their key indexes, that it holds for all shards together. At the limit it goes on
    /// with SSTables and base table, and leaves the rest of the logs for later. An entry is never split, so each shard
    /// that is read at once (eight at most) may exceed it by one entry. Default 1 GiB.
    pub max_bytes: usize,
    /// The longest timeout that [`wait_for`](crate::Follower::wait_for) takes. Default 10 minutes.
    pub max_wait: Duration,
    /// How many may wait at once. Default 1024.
    pub max_waiting: usize,
}

impl Default for FollowerConfig {
    fn default() -> Self {
        Self {
            polling: true,
            min_poll: Duration::from_millis(100),
            max_poll: Duration::from_secs(2),
            max_bytes: 1 << 30,
            max_wait: Duration::from_secs(600),
            max_waiting: 1024,
        }
    }
}

impl FollowerConfig {
    pub(super) fn validate(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::InvalidOptions(format!("the follower's {what}")));
        if self.min_poll.is_zero() {
            return refuse("`min_poll` is 0; use a millisecond or more".to_owned());
        }
        if self.min_poll > self.max_poll {
            return refuse(format!(
                "`min_poll` is {:?} and its `max_poll` {:?}; use one that is not shorter",
                self.min_poll, self.max_poll
            ));
        }
        match (self.max_bytes, self.max_waiting) {
            (0, _) => refuse("`max_bytes` is 0; use 1 or more".to_owned()),
            (_, 0) => refuse("`max_waiting` is 0; use 1 or more".to_owned()),
            _ => Ok(()),
        }
    }
}
