//! Proves a shard: reads every object that it has and checks names, bytes, the history of its manifests, the log, and
//! how they go together. Writes nothing and fences nobody.
//!
//! It accepts whatever the protocol's own actors leave behind, wherever they stop: in-flight and dead entries, holes
//! below R, sentinels that nobody recorded, pruned manifests and forgotten ones that came back. It may run beside
//! them: what looks damaged is looked at a second time, from the start, and only what is found both times is damage.

pub mod kinds;
mod log;
mod look;
mod manifests;

use std::collections::BTreeSet;
use std::fmt;

pub use self::kinds::{Finding, FindingKind, Severity};
use self::look::Look;
use crate::entry::WalEntry;
use crate::error::Result;
use crate::ids::{Epoch, ManifestVersion, Position};
use crate::shard::Shard;

/// How often a shard is looked at until two looks agree on what is damaged.
const MAX_LOOKS: usize = 4;
/// How many objects of one gap are named.
const MAX_NAMED: usize = 1_000;

/// Says why the rows of an entry are not what a log is for.
pub type CheckRows<'a> = dyn Fn(&WalEntry) -> Result<(), String> + Send + Sync + 'a;

/// What to check besides, and at what cost.
#[derive(Clone, Copy)]
pub struct VerifyOptions<'a> {
    /// GETs that run at once. Default 16.
    pub reads_at_once: usize,
    /// Bytes of objects that are in memory at once, of which one entry may take all. Default 256 MiB, the largest that
    /// has an effect.
    pub budget_bytes: usize,
    /// Says why the rows of an entry are not what this log is for; asked for every entry with rows, and believed for
    /// those that a replay would return.
    pub check_rows: Option<&'a CheckRows<'a>>,
    /// Told how many more objects were found, and how many more were read.
    pub progress: Option<&'a (dyn Fn(u64, u64) + Send + Sync)>,
}

impl Default for VerifyOptions<'_> {
    fn default() -> Self {
        Self { reads_at_once: 16, budget_bytes: 256 << 20, check_rows: None, progress: None }
    }
}

impl fmt::Debug for VerifyOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyOptions")
            .field("reads_at_once", &self.reads_at_once)
            .field("budget_bytes", &self.budget_bytes)
            .finish_non_exhaustive()
    }
}

/// What a shard is and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// What was found, the worst first, then by object.
    pub findings: Vec<Finding>,
    /// What was looked at.
    pub counts: VerifyCounts,
}

impl VerifyReport {
    /// Whether something is lost or damaged.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity() == Severity::Damage)
    }
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyCounts {
    /// Versions of the manifest.
    pub manifests: u64,
    /// The newest one.
    pub manifest_version: ManifestVersion,
    /// The shard's epoch.
    pub writer_epoch: Epoch,
    /// R.
    pub replay_after: Position,
    /// The last entry of the log; R if nothing is behind it.
    pub tail: Position,
    /// Entries on storage, wherever they stand.
    pub entries: u64,
    /// Sentinels among them.
    pub sentinels: u64,
    /// Dead entries above R.
    pub dead: u64,
    /// Rows that a replay returns.
    pub rows: u64,
    /// SSTables that the newest manifest lists.
    pub sstables: u64,
    /// Bytes read.
    pub bytes: u64,
}

/// Reads every object of a shard and says what is wrong. Objects of SSTables are not read here: of those, only the
/// folders are looked for.
///
/// # Errors
/// [`Error::ShardNotFound`](crate::Error::ShardNotFound) if there is nothing at all, and
/// [`Error::Store`](crate::Error::Store) if the store does not answer. Damage is no error, but in the report.
pub async fn verify(shard: &Shard, options: &VerifyOptions<'_>) -> Result<VerifyReport> {
    confirmed(|| look_once(shard, options)).await
}

/// Looks until everything that is damaged was damaged the time before, or the looks are used up. What stays in doubt is
/// reported as such.
///
/// # Errors
/// The look's.
pub async fn confirmed<F, E>(mut look: impl FnMut() -> F) -> Result<VerifyReport, E>
where
    F: Future<Output = Result<VerifyReport, E>>,
{
    let mut report = look().await?;
    let mut before = report.damage();
    if before.is_empty() {
        return Ok(report);
    }
    for round in 2..=MAX_LOOKS {
        report = look().await?;
        let now = report.damage();
        if now.is_subset(&before) {
            break;
        }
        if round == MAX_LOOKS {
            let is_new = |f: &Finding| f.severity() == Severity::Damage && !before.contains(&f.identity());
            for finding in report.findings.iter_mut().filter(|finding| is_new(finding)) {
                finding.detail = format!("{}: {}", finding.kind.name, finding.detail);
                finding.kind = kinds::IN_DOUBT;
            }
        }
        before = now;
    }
    report.sort();
    Ok(report)
}

impl Finding {
    fn identity(&self) -> (&'static str, String) {
        (self.kind.name, self.object.clone())
    }
}

impl VerifyReport {
    /// A report of these findings.
    pub fn new(findings: Vec<Finding>, counts: VerifyCounts) -> Self {
        let mut report = Self { findings, counts };
        report.sort();
        report
    }

    fn damage(&self) -> BTreeSet<(&'static str, String)> {
        let damage = self.findings.iter().filter(|finding| finding.severity() == Severity::Damage);
        damage.map(Finding::identity).collect()
    }

    fn sort(&mut self) {
        self.findings.sort_by(|a, b| b.severity().cmp(&a.severity()).then_with(|| a.object.cmp(&b.object)));
    }
}

/// What a judgement has found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, kind: FindingKind, object: impl fmt::Display, detail: impl Into<String>) {
        self.0.push(Finding::new(kind, object, detail));
    }
}

async fn look_once(shard: &Shard, options: &VerifyOptions<'_>) -> Result<VerifyReport> {
    let look = Look::take(shard, options).await?;
    if !look::is_there(&look) {
        return Err(look::not_found(shard));
    }
    let mut found = Findings::default();
    for object in &look.foreign {
        found.add(kinds::FOREIGN_OBJECT, object, "its name is no number in reversed bits with the right suffix");
    }
    for name in &look.half_made {
        let object = format!("{}/{name}", shard.root());
        found.add(kinds::HALF_MADE_FILE, object, "a process died while it was writing it");
    }
    for object in &look.loose {
        found.add(kinds::UNKNOWN_OBJECT, object, "an object directly in the shard's folder");
    }
    let history = manifests::judge(shard, &look, &mut found);
    let mut counts = VerifyCounts {
        manifests: look.manifests.len() as u64,
        entries: look.entries.len() as u64,
        bytes: look.bytes,
        ..VerifyCounts::default()
    };
    if let Some(newest) = look.newest() {
        counts.manifest_version = newest.version;
        counts.writer_epoch = newest.writer_epoch;
        counts.replay_after = newest.replay_after;
        counts.sstables = newest.sstables.len() as u64;
    }
    log::judge(shard, &look, &history, &mut found, &mut counts);
    Ok(VerifyReport::new(found.0, counts))
}
