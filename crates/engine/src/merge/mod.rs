//! Merging: SSTables become rows of the base table (protocol section 7), one generation of one shard per commit, in
//! order, each recording its own progress. It needs no tenure and fences nobody; several mergers may run at once, and
//! one may stop or stall anywhere. It drops nothing: what was merged is hidden from readers by the base's record.

mod apply;
mod commit;
mod plan;

use std::time::Duration;

use fencepost_wal::{Generation, ShardId};

use self::apply::Applied;
use self::plan::{Pending, Plan};
use crate::base::BaseTable;
use crate::error::{Error, Result};

/// Longest pause between two attempts.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(10);

/// How [`Table::merge`](crate::Table::merge) works.
#[derive(Debug, Clone)]
pub struct MergeOptions {
    /// Bring the base table's indexes up to date afterwards, so that they cover the rows that were merged. Default
    /// false.
    pub optimize_indexes: bool,
    /// How often one generation is tried before its error is returned. An attempt that loses against another commit
    /// to the base table counts. Default 10.
    pub attempts: usize,
    /// Pause after a failed attempt; doubles with each further one up to 10 s. Default 100 ms.
    pub retry_delay: Duration,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { optimize_indexes: false, attempts: 10, retry_delay: Duration::from_millis(100) }
    }
}

impl MergeOptions {
    fn validate(&self) -> Result<()> {
        match self.attempts {
            0 => Err(Error::InvalidOptions("`attempts` of a merge is 0; use 1 or more".into())),
            _ => Ok(()),
        }
    }
}

/// How far a merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeProgress {
    /// SSTables that are in the base table by now, of those that the merge found waiting.
    pub sstables: u64,
    /// SSTables that it found waiting.
    pub of_sstables: u64,
    /// Rows and deletions in the former.
    pub rows: u64,
}

/// What a merge did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MergeReport {
    /// SSTables that this call merged.
    pub sstables: u64,
    /// SSTables that somebody else merged while this call was about to.
    pub merged_by_others: u64,
    /// Rows of this call that were inserted, or replaced the row of the same key.
    pub rows: u64,
    /// Rows of the base table that this call's deletions removed.
    pub deleted: u64,
    /// The base table's version at the end.
    pub base_version: u64,
    /// Indexes of the base table that cover all of it at the end; only with
    /// [`optimize_indexes`](MergeOptions::optimize_indexes).
    pub optimized: Vec<String>,
}

/// Merges every SSTable that the shards' manifests list now. What is flushed meanwhile waits for the next call.
pub(crate) async fn merge(
    base: &BaseTable,
    options: &MergeOptions,
    mut progress: impl FnMut(MergeProgress),
) -> Result<MergeReport> {
    options.validate()?;
    let plan = Plan::make(base).await?;
    let mut report = MergeReport::default();
    let mut at = MergeProgress { sstables: 0, of_sstables: plan.pending.len() as u64, rows: 0 };
    progress(at);
    for pending in &plan.pending {
        match merge_one(base, pending, options).await? {
            Applied::Merged { rows, deleted } => {
                report.sstables += 1;
                report.rows += rows;
                report.deleted += deleted;
            }
            Applied::ByOthers => report.merged_by_others += 1,
        }
        at.sstables += 1;
        at.rows += pending.sstable.physical_rows.unwrap_or(0);
        progress(at);
    }
    let mut base = base.refreshed().await?;
    if options.optimize_indexes {
        report.optimized = optimize(&base, options).await?;
        base = base.refreshed().await?;
    }
    report.base_version = base.version();
    Ok(report)
}

/// One generation. Every attempt starts from the newest base version, whatever the attempt before was told: a commit
/// whose answer was lost shows there as done.
async fn merge_one(base: &BaseTable, pending: &Pending, options: &MergeOptions) -> Result<Applied> {
    let mut pauses = Pauses::new(options);
    let mut was_missing = false;
    loop {
        let error = match attempt(base, pending).await {
            Ok(applied) => return Ok(applied),
            Err(error) => error,
        };
        tracing::debug!(shard = %pending.shard, generation = %pending.sstable.generation, %error, "a merge attempt failed");
        // Merged and collected meanwhile, or lost: the next look at the base tells.
        let missing = is_missing(&error);
        if !matches!(error, Error::Lance { .. } | Error::Wal(_)) || (missing && was_missing) || !pauses.again().await {
            return Err(error);
        }
        was_missing = missing;
    }
}

fn is_missing(error: &Error) -> bool {
    use lance::Error::{DatasetNotFound, NotFound};
    matches!(error, Error::Lance { source, .. } if matches!(**source, DatasetNotFound { .. } | NotFound { .. }))
}

async fn attempt(base: &BaseTable, pending: &Pending) -> Result<Applied> {
    let base = base.refreshed().await?;
    let generation = pending.sstable.generation;
    let merged = merged(&base, pending.shard);
    // The table was split or joined: other shards list it now.
    if merged >= generation || base.spec_id() != pending.spec_id {
        return Ok(Applied::ByOthers);
    }
    // In order: a generation that was left out would be taken for merged, and its rows be lost.
    if merged.next()? != generation {
        return Err(Error::Corrupt {
            url: base.lance_store().describe(None),
            reason: format!(
                "its version {} has merged generation {merged} of shard {}, an earlier one had merged the generation \
                 before {generation}: the table was restored to an older version while it was merged; merge again",
                base.version(),
                pending.shard
            ),
        });
    }
    apply::apply(&base, pending).await
}

/// The highest generation of the shard that this base version has.
fn merged(base: &BaseTable, shard: ShardId) -> Generation {
    base.merged().get(&shard).copied().unwrap_or(Generation::ZERO)
}

/// Brings the base table's indexes up to date. Lance records in the same commit which generations they cover now.
async fn optimize(base: &BaseTable, options: &MergeOptions) -> Result<Vec<String>> {
    let mut pauses = Pauses::new(options);
    loop {
        let base = base.refreshed().await?;
        match base.optimize_indexes().await {
            Ok(names) => return Ok(names),
            // Rebuilt from the newest version: nothing is committed twice.
            Err(error) => {
                tracing::debug!(%error, "optimizing the base table's indexes failed");
                if !pauses.again().await {
                    return Err(error);
                }
            }
        }
    }
}

/// The pauses between the attempts at one thing.
struct Pauses {
    left: usize,
    delay: Duration,
}

impl Pauses {
    fn new(options: &MergeOptions) -> Self {
        Self { left: options.attempts.saturating_sub(1), delay: options.retry_delay }
    }

    /// Waits; false if there were enough attempts.
    async fn again(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        tokio::time::sleep(self.delay).await;
        self.delay = self.delay.saturating_mul(2).min(MAX_RETRY_DELAY);
        true
    }
}
