//! Merging: SSTables become rows of the base table (protocol section 7), one generation of one shard per commit, in
//! order, each recording its own progress. It needs no tenure and fences nobody; several mergers may run at once, and
//! one may stop or stall anywhere. While one SSTable is written the next one is read, so that the rows of two are in memory. It drops nothing: what was merged is hidden from readers by the base's record.

mod apply;
mod commit;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use fencepost_wal::{Generation, ShardId};
use futures::FutureExt;
use futures::future::join;
use lance_table::io::commit::CommitHandler;

use self::apply::{Applied, Changes, Onto};
use self::commit::Unbroken;
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
    table: &BaseTable,
    options: &MergeOptions,
    mut progress: impl FnMut(MergeProgress),
) -> Result<MergeReport> {
    options.validate()?;
    let unbroken = Arc::new(Unbroken::default());
    // Lance's look for conflicts goes through the handler of the dataset.
    let base = table.committing_by(Arc::clone(&unbroken) as Arc<dyn CommitHandler>).await?;
    let plan = Plan::make(&base).await?;
    let mut merger = Merger { base: &base, unbroken: &unbroken, answered: None };
    let mut ahead = None;
    let mut report = MergeReport::default();
    let mut at = MergeProgress { sstables: 0, of_sstables: plan.pending.len() as u64, rows: 0 };
    progress(at);
    for (n, pending) in plan.pending.iter().enumerate() {
        // The next one is read while this one is written.
        let now = merger.answered.clone().unwrap_or_else(|| base.clone());
        let next = read_ahead(&now, plan.pending.get(n + 1)).boxed();
        let (applied, next) = join(merger.merge(pending, ahead.take(), options).boxed(), next).await;
        ahead = next;
        match applied? {
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
        report.optimized = optimize(table, options).await?;
        base = base.refreshed().await?;
    }
    report.base_version = base.version();
    Ok(report)
}

/// What is in the SSTable that comes next, if it can be read: whoever merges it reads it otherwise.
async fn read_ahead(base: &BaseTable, next: Option<&Pending>) -> Option<Changes> {
    Changes::read(base, next?).await.ok()
}

struct Merger<'a> {
    /// Opened to commit by `unbroken`.
    base: &'a BaseTable,
    unbroken: &'a Unbroken,
    /// The base table as the last commit answered it.
    answered: Option<BaseTable>,
}

impl Merger<'_> {
    /// One generation. Every attempt after a failed one starts from the newest base version, whatever the attempt before was
    /// told: a commit whose answer was lost shows there as done.
    async fn merge(
        &mut self,
        pending: &Pending,
        mut changes: Option<Changes>,
        options: &MergeOptions,
    ) -> Result<Applied> {
        let mut pauses = Pauses::new(options);
        let mut was_missing = false;
        loop {
            let error = match self.attempt(pending, &mut changes).await {
                Ok(applied) => return Ok(applied),
                Err(error) => error,
            };
            tracing::debug!(shard = %pending.shard, generation = %pending.sstable.generation, %error, "a merge attempt failed");
            // Merged and collected meanwhile, or lost: the next look at the base tells.
            let missing = is_missing(&error);
            if !matches!(error, Error::Lance { .. } | Error::Wal(_))
                || (missing && was_missing)
                || !pauses.again().await
            {
                return Err(error);
            }
            was_missing = missing;
        }
    }

    async fn attempt(&mut self, pending: &Pending, changes: &mut Option<Changes>) -> Result<Applied> {
        // What the last commit answered needs no reading; whether it is the newest version is asked by `apply`.
        if let Some(answered) = self.answered.take()
            && is_next(&answered, pending)?
            && let Some(applied) = self.apply(&answered, true, pending, changes).await?
        {
            return Ok(applied);
        }
        let base = self.base.refreshed().await?;
        let generation = pending.sstable.generation;
        let merged = merged(&base, pending.shard);
        // The table was split or joined: other shards list it now.
        if merged >= generation || base.spec_id() != pending.spec_id {
            return Ok(Applied::ByOthers);
        }
        // In order: a generation that was left out would be taken for merged, and its rows be lost.
        if !is_next(&base, pending)? {
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
        let applied = self.apply(&base, false, pending, changes).await?;
        applied.ok_or_else(|| Error::NotSupported("a version that was the newest is not".into()))
    }

    async fn apply(
        &mut self,
        base: &BaseTable,
        is_answered: bool,
        pending: &Pending,
        changes: &mut Option<Changes>,
    ) -> Result<Option<Applied>> {
        let read = match changes.take().filter(|read| read.fit(base)) {
            Some(read) => read,
            None => Changes::read(base, pending).await?,
        };
        let onto = Onto { base, unbroken: self.unbroken, is_answered };
        let applied = apply::apply(&onto, pending, changes.insert(read)).await?;
        Ok(applied.map(|(applied, answered)| {
            self.answered = Some(answered);
            applied
        }))
    }
}

/// Whether what this base version has merged of the shard ends in front of this generation.
fn is_next(base: &BaseTable, pending: &Pending) -> Result<bool> {
    let next = merged(base, pending.shard).next()?;
    Ok(next == pending.sstable.generation && base.spec_id() == pending.spec_id)
}

fn is_missing(error: &Error) -> bool {
    use lance::Error::{DatasetNotFound, NotFound};
    matches!(error, Error::Lance { source, .. } if matches!(**source, DatasetNotFound { .. } | NotFound { .. }))
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
