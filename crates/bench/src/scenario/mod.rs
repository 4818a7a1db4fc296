//! The scenarios: each measures one thing of every system, in turn and several times.

mod clone;
mod cost;
mod durable;
mod flush;
mod growth;
mod ingest;
mod lookup;
mod replay;
mod scan;
mod seed;
mod takeover;

use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::Result;
use crate::contender::{Setting, System};
use crate::place::{StoreKind, Target};
use crate::report::{Figures, Table};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// A durable append of one row, by one client.
    #[value(name = "durable-1row")]
    DurableOne,
    /// The same by 16, 256 and 4,096 clients.
    DurableMany,
    /// Rows per second of batches of 1,000 rows.
    Ingest,
    /// Bytes on the store per row, 256 clients of one row each.
    WalBytes,
    /// Dollars per billion rows at 1, 100 and 10,000 rows a second.
    Cost,
    /// Opening a shard after a crash: log entries to replay.
    Replay,
    /// Sequential round trips from open to the first acknowledged row.
    Takeover,
    /// One row by its key, at random.
    Lookup,
    /// An aggregate over base table, SSTables and MemTable.
    Scan,
    /// MemTable to SSTable, and SSTables to the base table.
    Flush,
    /// A clone of a table, by its size.
    Clone,
    /// The two benchmarks of Lance's `mem_wal`: `mem_wal_write` and `mem_wal_replay`.
    Seed,
    /// What grows with shards and SSTables.
    Growth,
}

/// How much is measured, and where.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// `None`: where the scenario is meant to run.
    pub(crate) target: Option<Target>,
    pub(crate) rounds: usize,
    /// How long a closed loop of clients is measured, each time.
    pub(crate) time: Duration,
    /// Divides the amount of data: 1 for all of it.
    pub(crate) divisor: usize,
    /// Without the peers.
    pub(crate) alone: bool,
}

impl Plan {
    fn target_or(&self, kind: StoreKind) -> Target {
        self.target.clone().unwrap_or(Target::Kind(kind))
    }

    /// The targets of a scenario that has several.
    fn targets_or(&self, kinds: &[StoreKind]) -> Vec<Target> {
        match &self.target {
            Some(target) => vec![target.clone()],
            None => kinds.iter().map(|kind| Target::Kind(*kind)).collect(),
        }
    }

    fn wants(&self, system: System) -> bool {
        !self.alone || matches!(system, System::Fencepost | System::FencepostLog)
    }

    /// Of these those that are to be run.
    fn settings(&self, settings: impl IntoIterator<Item = Setting>) -> Vec<Setting> {
        settings.into_iter().filter(|setting| self.wants(setting.system)).collect()
    }

    fn size(&self, full: usize) -> usize {
        (full / self.divisor).max(1)
    }
}

impl Scenario {
    pub(crate) async fn run(self, plan: &Plan) -> Result<Vec<Table>> {
        match self {
            Self::DurableOne => Ok(vec![durable::run(plan, "durable-1row", &[1]).await?]),
            Self::DurableMany => Ok(vec![durable::run(plan, "durable-many", &[16, 256, 4096]).await?]),
            Self::WalBytes => Ok(vec![durable::wal_bytes(plan).await?]),
            Self::Ingest => ingest::run(plan).await,
            Self::Cost => Ok(vec![cost::run(plan).await?]),
            Self::Replay => Ok(vec![replay::run(plan).await?]),
            Self::Takeover => Ok(vec![takeover::run(plan).await?]),
            Self::Lookup => lookup::run(plan).await,
            Self::Scan => Ok(vec![scan::run(plan).await?]),
            Self::Flush => flush::run(plan).await,
            Self::Clone => Ok(vec![clone::run(plan).await?]),
            Self::Seed => seed::run(plan).await,
            Self::Growth => growth::run(plan).await,
        }
    }
}

/// Waits for a measurement, and how long that took in seconds.
async fn timed<T>(what: impl Future<Output = Result<T>>) -> Result<(f64, T)> {
    let started = Instant::now();
    let done = what.await?;
    Ok((started.elapsed().as_secs_f64(), done))
}

/// The figures of a request counter.
fn requests(counts: fencepost_sim::RequestCounts) -> Figures {
    vec![
        ("PUT", counts.put as f64),
        ("GET", counts.get as f64),
        ("HEAD", counts.head as f64),
        ("LIST", counts.list as f64),
        ("DELETE", counts.delete as f64),
    ]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
