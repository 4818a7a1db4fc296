//! Proves a table: every object of every shard, its SSTables against its manifests and sidecars, and the base table's
//! record of what it has merged. The log's part is [`fencepost_wal::verify()`]'s. Writes nothing and fences nobody.

pub mod kinds;
mod sstables;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use fencepost_wal::verify::confirmed;
use fencepost_wal::{
    Error as WalError, Finding, FindingKind, Generation, MEM_WAL_FOLDER, ManifestStore, Severity, Shard, ShardId,
    ShardManifest, SsTable, VerifyCounts, VerifyOptions, VerifyReport, WalEntry,
};
use futures::{StreamExt, TryStreamExt, stream};

use self::kinds::*;
use crate::base::BaseTable;
use crate::clone;
use crate::error::{Error, Result, without_location};
use crate::rows::RowFormat;
use crate::sharding::{ShardValue, Sharding};
use crate::shards;

/// Bytes of log entries of one shard that are in memory at once.
const LOG_BUDGET_BYTES: usize = 64 << 20;
/// SSTables that are read at once, over all shards.
const SSTABLES_AT_ONCE: usize = 4;
/// How many missing generations of one shard are named.
const MAX_NAMED: usize = 16;

/// What a table is and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// What was found, the worst first, then by object.
    pub findings: Vec<Finding>,
    /// The shards, by id.
    pub shards: Vec<ShardVerification>,
    /// Rows in the SSTables that the shards list, tombstones and replaced rows included.
    pub sstable_rows: u64,
    /// The base table's version.
    pub base_version: u64,
    /// Its rows.
    pub base_rows: u64,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardVerification {
    /// The shard.
    pub shard_id: ShardId,
    /// Which rows it holds.
    pub value: ShardValue,
    /// What was looked at; all zero if the shard does not exist.
    pub counts: VerifyCounts,
}

/// How far [`Table::verify`](crate::Table::verify) has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Objects that were read; an SSTable counts as one.
    pub objects: u64,
    /// Objects that were found so far. Grows.
    pub of_objects: u64,
}

impl Verification {
    /// Whether something is lost or damaged.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity() == Severity::Damage)
    }
}

/// Reads everything.
pub(crate) async fn verify(
    base: &BaseTable,
    progress: &(dyn Fn(VerifyProgress) + Send + Sync),
) -> Result<Verification> {
    let (objects, of_objects) = (AtomicU64::new(0), AtomicU64::new(0));
    let say = |found: u64, read: u64| {
        let of_objects = of_objects.fetch_add(found, Ordering::Relaxed) + found;
        let objects = objects.fetch_add(read, Ordering::Relaxed) + read;
        progress(VerifyProgress { objects, of_objects });
    };
    let base = base.refreshed().await?;
    let format = RowFormat::of(&base)?;
    let check_rows = |entry: &WalEntry| fits(&format, entry);
    let options = VerifyOptions {
        budget_bytes: LOG_BUDGET_BYTES,
        check_rows: Some(&check_rows),
        progress: Some(&say),
        ..VerifyOptions::default()
    };
    let mut findings = Vec::new();
    let mut counts = BTreeMap::new();
    for id in known_shards(&base).await? {
        match fencepost_wal::verify(&shard(&base, id), &options).await {
            Ok(report) => {
                findings.extend(report.findings);
                counts.insert(id, report.counts);
            }
            // What that means the table's own look says.
            Err(WalError::ShardNotFound { .. }) => drop(counts.insert(id, VerifyCounts::default())),
            Err(error) => return Err(error.into()),
        }
    }
    let mut last = TableLook::default();
    let report = {
        let last = std::sync::Mutex::new(&mut last);
        confirmed(|| async {
            let look = TableLook::take(&base, &say).await?;
            let found = VerifyReport::new(look.findings.clone(), VerifyCounts::default());
            **last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = look;
            Ok::<_, Error>(found)
        })
        .await?
    };
    findings.extend(report.findings);
    let shards = last.shards.into_iter().map(|(shard_id, value)| {
        let counts = counts.get(&shard_id).copied().unwrap_or_default();
        ShardVerification { shard_id, value, counts }
    });
    Ok(Verification {
        findings: VerifyReport::new(findings, VerifyCounts::default()).findings,
        shards: shards.collect(),
        sstable_rows: last.sstable_rows,
        base_version: last.base_version,
        base_rows: last.base_rows,
    })
}

/// The shards that have a folder, that the table has from the start, or that the base table has merged from.
async fn known_shards(base: &BaseTable) -> Result<BTreeSet<ShardId>> {
    let mut listed = shards::list(base).await?;
    let deleted = stream::iter(listed.clone()).map(|id| async move {
        match ManifestStore::new(shard(base, id)).latest().await {
            Ok(manifest) => Ok(manifest.filter(|manifest| is_nobodys(base, manifest)).map(|_| id)),
            Err(WalError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(Error::from(error)),
        }
    });
    let deleted: Vec<Option<ShardId>> = deleted.buffered(shards::SHARDS_AT_ONCE).try_collect().await?;
    listed.retain(|id| !deleted.contains(&Some(*id)));
    let fixed = base.fixed_shards().iter().map(|(id, _)| *id);
    Ok(listed.into_iter().chain(fixed).chain(base.merged().keys().copied()).collect())
}

/// Whether a shard was left by a table that was at this place before, or by a split that never came to its switch: what it lists may be gone.
fn is_nobodys(base: &BaseTable, manifest: &ShardManifest) -> bool {
    let never_came_to_be = manifest.shard_spec_id > base.spec_id() && !base.is_of_layout(manifest);
    never_came_to_be || shards::is_of_another_table(base, manifest)
}

fn shard(base: &BaseTable, id: ShardId) -> Shard {
    base.shard(id)
}

/// Whether a replay could take the entry's rows.
fn fits(format: &RowFormat, entry: &WalEntry) -> Result<(), String> {
    let fits = |batch| {
        let rows = format.log_rows(batch)?;
        format.keys.as_ref().map(|keys| keys.encode(&rows)).transpose().map(|_| ())
    };
    entry.batches.iter().try_for_each(fits).map_err(|error| match error {
        Error::InvalidBatch(reason) | Error::SchemaChanged { reason, .. } => reason,
        other => other.to_string(),
    })
}

/// One look at what is above the logs.
#[derive(Debug, Default)]
struct TableLook {
    findings: Vec<Finding>,
    shards: BTreeMap<ShardId, ShardValue>,
    sstable_rows: u64,
    base_version: u64,
    base_rows: u64,
}

impl TableLook {
    /// In section 9's order: the base version first, then the shards. What the base has merged by then, a shard's
    /// manifest that is read later knows of.
    async fn take(base: &BaseTable, say: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<Self> {
        let base = base.refreshed().await?;
        let mut look = Self { base_version: base.version(), ..Self::default() };
        look.read_base(&base).await;
        let mut sstables = Vec::new();
        for id in known_shards(&base).await? {
            let manifest = match ManifestStore::new(shard(&base, id)).latest_certain().await {
                Ok(manifest) => manifest,
                // Found with the log.
                Err(WalError::Corrupt { .. }) => {
                    look.shards.insert(id, base.shard_value(id, None));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            look.judge_shard(&base, id, manifest.as_ref());
            // A shard of a layout that never came to be, or is no more, needs nothing.
            let needs_pins = |manifest: &&ShardManifest| !manifest.is_deleted() && base.is_of_layout(manifest);
            if let Some(manifest) = manifest.as_ref().filter(needs_pins) {
                look.judge_pins(&base, manifest).await?;
            }
            sstables.extend(manifest.into_iter().flat_map(|manifest| manifest.sstables).map(|sstable| (id, sstable)));
        }
        look.judge_values(&base);
        for (url, tag) in clone::missing_tags(&base).await? {
            look.findings.push(Finding::new(CLONE_TAG_MISSING, url, format!("the tag `{tag}` is not there")));
        }
        say(sstables.len() as u64, 0);
        look.read_sstables(&base, sstables, say).await?;
        Ok(look)
    }

    fn add(&mut self, kind: FindingKind, base: &BaseTable, rel_path: Option<&str>, detail: impl Into<String>) {
        self.findings.push(Finding::new(kind, base.lance_store().path(rel_path), detail));
    }

    async fn read_base(&mut self, base: &BaseTable) {
        if let Err(error) = base.dataset().validate().await {
            self.add(BASE_DAMAGED, base, None, without_location(&error));
        }
        match base.version_and_rows().await {
            Ok((_, rows)) => self.base_rows = rows,
            Err(error) => self.add(BASE_DAMAGED, base, None, error.to_string()),
        }
    }

    fn judge_shard(&mut self, base: &BaseTable, id: ShardId, manifest: Option<&ShardManifest>) {
        let folder = format!("{MEM_WAL_FOLDER}/{id}");
        if shards::is_behind_its_merges(base, id, manifest) {
            let merged = base.merged().get(&id).copied().unwrap_or_default();
            let is = manifest.map_or("does not exist".to_owned(), |m| format!("is at {}", m.current_generation));
            self.add(SHARD_LOST, base, Some(&folder), format!("generation {merged} was merged, the shard {is}"));
        }
        let Some(manifest) = manifest else {
            if base.fixed_value(id).is_some() && !base.merged().contains_key(&id) {
                self.add(SHARD_NOT_MADE, base, Some(&folder), "the table has it from the start");
                self.shards.insert(id, base.shard_value(id, None));
            }
            return;
        };
        if manifest.is_deleted() {
            self.add(
                SHARD_DELETED,
                base,
                Some(&format!("{MEM_WAL_FOLDER}/{id}")),
                "it is marked as deleted, and the table is not",
            );
            return;
        }
        if !base.is_of_layout(manifest) {
            // Of a layout that the table had, or was about to have.
            return;
        }
        self.shards.insert(id, base.shard_value(id, Some(manifest)));
        let merged = base.merged().get(&id).copied().unwrap_or(Generation::ZERO);
        let listed: BTreeSet<u64> = manifest.sstables.iter().map(|sstable| sstable.generation.get()).collect();
        let missing = (merged.get()..manifest.current_generation.get().saturating_sub(1)).map(|g| g + 1);
        for generation in missing.filter(|g| !listed.contains(g)).take(MAX_NAMED) {
            let object = shard(base, id).manifest_path(manifest.version);
            let detail = format!("it lists no generation {generation}, and the base table has merged up to {merged}");
            self.findings.push(Finding::new(GENERATION_MISSING, object, detail));
        }
    }

    /// Whether a shard has a pin on every shard whose SSTables it lists.
    async fn judge_pins(&mut self, base: &BaseTable, manifest: &ShardManifest) -> Result<()> {
        let places = manifest.sstables.iter().filter_map(|sstable| sstable.base.as_ref()).map(|base| &base.place);
        let name = manifest.shard_id.to_string();
        for place in places.collect::<BTreeSet<_>>() {
            let there = place.open(base.lance_store().store())?;
            let pins = match fencepost_wal::checkpoint::list(&there, Some(&name)).await {
                Ok(pins) => pins,
                Err(WalError::ShardNotFound { .. }) => Vec::new(),
                Err(error) => return Err(error.into()),
            };
            if !pins.iter().any(|checkpoint| checkpoint.is_pin) {
                let detail = format!("shard {name} has no pin on shard {} of {}", place.shard_id, place.url);
                self.add(PIN_MISSING, base, Some(&format!("{MEM_WAL_FOLDER}/{name}")), detail);
            }
        }
        Ok(())
    }

    /// Which rows the shards hold (format.md, "What a shard holds").
    fn judge_values(&mut self, base: &BaseTable) {
        if *base.sharding() == Sharding::Manual {
            return;
        }
        let mut by_value: BTreeMap<String, ShardId> = BTreeMap::new();
        for (id, value) in self.shards.clone() {
            let folder = format!("{MEM_WAL_FOLDER}/{id}");
            if value == ShardValue::Unknown {
                self.add(SHARD_UNKNOWN, base, Some(&folder), "its manifest names no value of the table's sharding");
            } else if let Some(other) = by_value.insert(value.to_string(), id) {
                self.add(SHARDS_OVERLAP, base, Some(&folder), format!("it holds {value}, as shard {other} does"));
            }
        }
    }

    async fn read_sstables(
        &mut self,
        base: &BaseTable,
        listed: Vec<(ShardId, SsTable)>,
        say: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<()> {
        let proofs = stream::iter(listed).map(|(id, sstable)| async move {
            let proved = sstables::prove(base, id, &sstable).await;
            say(0, 1);
            Ok::<_, Error>(proved)
        });
        let mut proofs = proofs.buffer_unordered(SSTABLES_AT_ONCE);
        while let Some(proved) = proofs.try_next().await? {
            self.sstable_rows += proved.rows;
            self.findings.extend(proved.findings);
        }
        Ok(())
    }
}
