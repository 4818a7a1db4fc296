//! Followers: a process that reads a table for long, and keeps up with it. SSTables, and the tail of each shard's log in a
//! MemTable of its own, brought up to date by asking again. It never writes and fences nobody.
//!
//! This module owns when is asked, what is handed out meanwhile, and who waits for what. What a round reads, and that its
//! parts belong together, is `table`'s; one shard is `shard`'s, its rows in memory `tail`'s.

mod budget;
mod collected;
mod config;
mod shard;
mod state;
mod table;
mod tail;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub(crate) use self::budget::Budget;
pub use self::collected::is_collected;
pub use self::config::FollowerConfig;
pub(crate) use self::shard::{Found, ShardFollower};
pub use self::state::{FollowerState, ShardLag};
use self::state::{Published, Watched};
pub(crate) use self::table::TableFollower;
use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::read::{MAX_ROUNDS, SsTableCache, TableSnapshot};
use crate::written::Written;

/// Entries of each log that one round reads at most, so that what was read is seen before all is.
const ENTRIES_PER_ROUND: usize = 1024;

/// Keeps up with a table that other processes write to; see [`Table::follow`](crate::Table::follow). Dropping it ends it.
///
/// Each state that it hands out is one moment of each shard: a prefix of what was acknowledged. It never goes back behind
/// one that it has handed out, whatever takeovers, flushes, merges and collections do meanwhile.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    polling: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    url: String,
    config: FollowerConfig,
    budget: Arc<Budget>,
    made: Instant,
    /// One round at a time.
    rounds: Mutex<Rounds>,
    watched: watch::Sender<Watched>,
    waiting: Semaphore,
}

#[derive(Debug)]
struct Rounds {
    table: TableFollower,
    /// When the last one ended.
    last: Instant,
}

impl Follower {
    /// Reads the table once, and goes on from there.
    pub(crate) async fn start(base: &BaseTable, config: FollowerConfig) -> Result<Self> {
        config.validate()?;
        let made = Instant::now();
        let budget = Budget::of(config.max_bytes);
        // Its own: it needs the SSTables of its newest snapshot, others of the same handle those of theirs.
        let cache = Arc::new(SsTableCache::new(base.lance_store().clone()));
        let mut table = TableFollower::new(base, &cache, &budget)?;
        let moment = Box::pin(table.round(ENTRIES_PER_ROUND)).await?;
        let is_more = moment.is_more;
        let published = Published {
            number: 1,
            snapshot: TableSnapshot::new(table.snapshot()),
            superseded: table.superseded().clone(),
            moment,
        };
        let watched = Watched { published: Arc::new(published), last_error: None, ended: None };
        let shared = Arc::new(Shared {
            url: base.lance_store().describe(None),
            budget,
            made,
            rounds: Mutex::new(Rounds { table, last: Instant::now() }),
            watched: watch::Sender::new(watched),
            waiting: Semaphore::new(config.max_waiting.min(Semaphore::MAX_PERMITS)),
            config,
        });
        if is_more {
            shared.refresh().await?;
        }
        let polling = shared.config.polling.then(|| tokio::spawn(Arc::clone(&shared).poll()));
        Ok(Self { shared, polling })
    }

    /// The table as of the last round, without a request. It holds still; keep it only for as long as it is used: garbage
    /// collection does not know of it, and a query fails when an SSTable that it needs is gone ([`is_collected`]). Then take a newer one.
    ///
    /// # Errors
    /// [`Error::FollowerEnded`] if the table was deleted.
    pub fn snapshot(&self) -> Result<TableSnapshot> {
        let watched = self.shared.watched.borrow();
        self.shared.check_goes_on(&watched)?;
        Ok(watched.published.snapshot.clone())
    }

    /// [`state`](Self::state) and [`snapshot`](Self::snapshot) of one moment.
    ///
    /// # Errors
    /// [`Error::FollowerEnded`] if the table was deleted.
    pub fn latest(&self) -> Result<(FollowerState, TableSnapshot)> {
        let watched = self.shared.watched.borrow();
        self.shared.check_goes_on(&watched)?;
        Ok((self.shared.state_of(&watched), watched.published.snapshot.clone()))
    }

    /// Where it stands, and how far it is behind; without a request.
    pub fn state(&self) -> FollowerState {
        self.shared.state()
    }

    /// Asks now. Afterwards a [`snapshot`](Self::snapshot) has all that was acknowledged before the call, unless it has
    /// reached its [`max_bytes`](FollowerConfig::max_bytes): the state says so.
    ///
    /// # Errors
    /// [`Error::FollowerEnded`] if the table was deleted. Errors of reading: the last state stays, and it goes on asking.
    pub async fn refresh(&self) -> Result<FollowerState> {
        self.shared.refresh().await?;
        Ok(self.state())
    }

    /// Read your writes: waits until it has the rows of a call that [`put`](crate::TableWriter::put) or
    /// [`delete`](crate::TableWriter::delete) acknowledged in any process, and gives a snapshot that has them. While
    /// somebody waits it asks every [`min_poll`](FollowerConfig::min_poll).
    ///
    /// # Errors
    /// [`Error::NotReached`] after the timeout; it says how far it has come, and why no further. [`Error::FollowerEnded`] if
    /// the table was deleted. [`Error::InvalidOptions`] for a timeout longer than [`max_wait`](FollowerConfig::max_wait),
    /// [`Error::NotSupported`] if [`max_waiting`](FollowerConfig::max_waiting) calls wait already.
    pub async fn wait_for(&self, written: &Written, timeout: Duration) -> Result<TableSnapshot> {
        self.shared.wait_for(written, timeout).await
    }

    /// Waits until there is a state of a higher number; at once if there is one already.
    ///
    /// # Errors
    /// [`Error::FollowerEnded`] if the table was deleted.
    pub async fn changed_since(&self, number: u64) -> Result<FollowerState> {
        let mut watching = self.shared.watched.subscribe();
        let changed = watching.wait_for(|now| now.ended.is_some() || now.published.number > number).await;
        if let Ok(now) = changed {
            self.shared.check_goes_on(&now)?;
        }
        Ok(self.state())
    }

    /// Ends it. Snapshots that were taken stay.
    pub async fn close(mut self) {
        if let Some(polling) = self.polling.take() {
            polling.abort();
            // Cancelled, which is what was asked for.
            let _ = polling.await;
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(polling) = &self.polling {
            polling.abort();
        }
    }
}

impl Shared {
    fn state(&self) -> FollowerState {
        self.state_of(&self.watched.borrow())
    }

    fn state_of(&self, watched: &Watched) -> FollowerState {
        watched.state(self.made, self.budget.held(), self.budget.room() == 0)
    }

    fn check_goes_on(&self, watched: &Watched) -> Result<()> {
        match &watched.ended {
            None => Ok(()),
            Some(why) => Err(Error::FollowerEnded { url: self.url.clone(), source: Arc::clone(why) }),
        }
    }

    /// One round, and what follows from it for who watches.
    async fn round(&self, rounds: &mut Rounds) -> Result<Round> {
        let ended = self.watched.borrow().clone();
        self.check_goes_on(&ended)?;
        let answer = Box::pin(rounds.table.round(ENTRIES_PER_ROUND)).await;
        rounds.last = Instant::now();
        match answer {
            Ok(moment) => Ok(self.publish(&rounds.table, moment)),
            Err(error) => {
                let is_gone = matches!(error, Error::TableNotReady { .. } | Error::TableNotFound { .. });
                let error = Arc::new(error);
                self.watched.send_modify(|watched| {
                    watched.last_error = Some(Arc::clone(&error));
                    watched.ended = watched.ended.take().or(is_gone.then(|| Arc::clone(&error)));
                });
                let url = self.url.clone();
                Err(match is_gone {
                    true => Error::FollowerEnded { url, source: error },
                    false => Error::NotRefreshed { url, source: error },
                })
            }
        }
    }

    /// The SSTables and the rows in memory of all shards change in one step.
    fn publish(&self, table: &TableFollower, moment: table::Moment) -> Round {
        let before = Arc::clone(&self.watched.borrow().published);
        let round = Round { is_more: moment.is_more, is_new: !before.moment.is_same(&moment) };
        let (number, snapshot) = match round.is_new {
            true => (before.number + 1, TableSnapshot::new(table.snapshot())),
            false => (before.number, before.snapshot.clone()),
        };
        let published = Published { number, snapshot, superseded: table.superseded().clone(), moment };
        self.watched.send_modify(|watched| {
            watched.published = Arc::new(published);
            watched.last_error = None;
        });
        round
    }

    async fn refresh(&self) -> Result<()> {
        let mut rounds = self.rounds.lock().await;
        for _ in 0..MAX_ROUNDS {
            if !self.round(&mut rounds).await?.is_more {
                break;
            }
        }
        Ok(())
    }

    async fn wait_for(&self, written: &Written, timeout: Duration) -> Result<TableSnapshot> {
        let FollowerConfig { max_wait, max_waiting, min_poll, .. } = self.config;
        if timeout > max_wait {
            return Err(Error::InvalidOptions(format!(
                "a timeout of {timeout:?} is longer than the follower's `max_wait`, {max_wait:?}"
            )));
        }
        let Ok(_waiting) = self.waiting.try_acquire() else {
            return Err(Error::NotSupported(format!(
                "{max_waiting} calls wait for the follower of {} already, its `max_waiting`; wait with fewer at once",
                self.url
            )));
        };
        let began = Instant::now();
        loop {
            let now = self.watched.borrow().clone();
            self.check_goes_on(&now)?;
            let Some((shard, position, reached)) = now.published.missing(written) else {
                return Ok(now.published.snapshot.clone());
            };
            let asked = tokio::time::timeout(timeout.saturating_sub(began.elapsed()), self.round_after(min_poll)).await;
            if asked.is_err() {
                let why = match (&now.last_error, self.budget.room()) {
                    (Some(error), _) => format!("; its last round failed: {error}"),
                    (None, 0) => "; it has reached its `max_bytes`, and waits for a flush".to_owned(),
                    (None, _) => String::new(),
                };
                let url = self.url.clone();
                return Err(Error::NotReached { url, shard, position, reached, waited: timeout, why });
            }
        }
    }

    /// Waits until the last round, whoever asked for it, is this long ago, and asks if nobody else has. Its failure is
    /// in what is watched.
    async fn round_after(&self, pause: Duration) {
        let next = self.rounds.lock().await.last + pause;
        tokio::time::sleep_until(next).await;
        let mut rounds = self.rounds.lock().await;
        if rounds.last + pause <= Instant::now() {
            let _ = self.round(&mut rounds).await;
        }
    }

    /// Asks for as long as the table is there.
    async fn poll(self: Arc<Self>) {
        let FollowerConfig { min_poll, max_poll, .. } = self.config;
        let mut pause = min_poll;
        loop {
            tokio::time::sleep(pause).await;
            let asked = self.round(&mut *self.rounds.lock().await).await;
            pause = match &asked {
                Ok(Round { is_more: true, .. }) => Duration::ZERO,
                Ok(Round { is_new: true, .. }) => min_poll,
                Err(Error::FollowerEnded { .. }) => return,
                Ok(_) | Err(_) => pause.saturating_mul(2).clamp(min_poll, max_poll),
            };
            if let Err(error) = asked {
                tracing::warn!(%error, "a follower's round failed");
            }
        }
    }
}

/// What a round was like.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// More can be read at once.
    is_more: bool,
    /// The table is not as it was.
    is_new: bool,
}
