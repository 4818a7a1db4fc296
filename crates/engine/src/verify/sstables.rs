//! Proves one SSTable: that it opens, that every row can be read, and that its sidecars and its statistics say the same as
//! its rows.

use std::panic::AssertUnwindSafe;

use arrow_schema::{DataType, Schema};
use fencepost_wal::{Finding, ShardId, SsTable};
use futures::{FutureExt, TryStreamExt};
use lance::Dataset;

use super::kinds::*;
use crate::base::BaseTable;
use crate::error::{Error, without_location};
use crate::rows::TOMBSTONE;
use crate::sstable::{self, SidecarCheck, SidecarFault, SsTablePlace, StatisticsCheck};

/// What was found of an SSTable, and how many rows it has, if they could be read.
pub(super) struct Proved {
    pub(super) findings: Vec<Finding>,
    pub(super) rows: u64,
}

/// Reads a listed SSTable. Its folder is there; that it is missing is found with the shard's manifest.
pub(super) async fn prove(base: &BaseTable, shard: ShardId, listed: &SsTable) -> Proved {
    let mut proof = Proof { base, place: SsTablePlace::of(shard, listed), findings: Vec::new() };
    // Lance panics at some files, an empty manifest among them.
    let read = AssertUnwindSafe(proof.read(listed)).catch_unwind().await;
    let rows = match read {
        Ok(rows) => rows.unwrap_or_default(),
        Err(_) => {
            let folder = proof.place.rel_dir.clone();
            proof.add(SSTABLE_DAMAGED, &folder, "Lance cannot read it");
            0
        }
    };
    Proved { findings: proof.findings, rows }
}

struct Proof<'a> {
    base: &'a BaseTable,
    place: SsTablePlace,
    findings: Vec<Finding>,
}

impl Proof<'_> {
    fn add(&mut self, kind: fencepost_wal::FindingKind, rel_path: &str, detail: impl Into<String>) {
        // In its own words, if another table has it.
        let own = self.base.lance_store();
        let object = match self.place.store(own) {
            Ok(store) if store.store().url() == own.store().url() => own.path(Some(rel_path)).to_string(),
            Ok(store) => store.describe(Some(rel_path)),
            Err(_) => self.place.describe(own),
        };
        self.findings.push(Finding::new(kind, object, detail));
    }

    /// The rows, if all of them could be read.
    async fn read(&mut self, listed: &SsTable) -> Option<u64> {
        let folder = self.place.rel_dir.clone();
        let opened = match self.place.store(self.base.lance_store()) {
            Ok(store) => sstable::open(&store, &folder).await.map(|dataset| (store, dataset)),
            Err(error) => Err(error),
        };
        let (store, dataset) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.add(SSTABLE_DAMAGED, &folder, brief(&error));
                return None;
            }
        };
        if let Err(reason) = self.check_columns(&dataset) {
            self.add(SSTABLE_COLUMNS_WRONG, &folder, reason);
            return None;
        }
        let (rows, keys, statistics) = match self.read_rows(&dataset).await {
            Ok(read) => read,
            Err(error) => {
                self.add(SSTABLE_DAMAGED, &data_file(&folder, &dataset), brief(&error));
                return None;
            }
        };
        if let Some(expected) = listed.physical_rows.filter(|expected| *expected != rows) {
            self.add(SSTABLE_ROWS_WRONG, &folder, format!("it has {rows} rows, the manifest says {expected}"));
        }
        if let Some(reason) = statistics {
            self.add(SSTABLE_STATISTICS_WRONG, &folder, reason);
        }
        for SidecarFault { is_bloom, rel_path, reason } in match keys {
            Some(keys) => keys.faults(&store, &folder, &dataset).await,
            None => Vec::new(),
        } {
            let kind = if is_bloom { BLOOM_FILTER_DAMAGED } else { KEY_INDEX_DAMAGED };
            self.add(kind, &rel_path, reason);
        }
        Some(rows)
    }

    fn check_columns(&self, dataset: &Dataset) -> Result<(), String> {
        let schema = Schema::from(dataset.schema());
        match schema.fields().last() {
            Some(last) if last.name() == TOMBSTONE && *last.data_type() == DataType::Boolean => {}
            _ => return Err(format!("its last column is not the Boolean `{TOMBSTONE}`")),
        }
        match self.base.primary_key().iter().find(|name| schema.field_with_name(name).is_err()) {
            Some(missing) => Err(format!("it has no key column `{missing}`")),
            None => Ok(()),
        }
    }

    /// How many rows there are, their keys, and what the statistics say that they do not.
    async fn read_rows(&self, dataset: &Dataset) -> Result<(u64, Option<SidecarCheck>, Option<String>), Error> {
        let mut keys = SidecarCheck::of(self.base.schema(), self.base.primary_key())?;
        let mut statistics = StatisticsCheck::of(dataset)?;
        let mut rows = 0;
        let mut batches = sstable::scan(dataset, None, None).await?;
        while let Some(batch) = batches.try_next().await? {
            rows += batch.num_rows() as u64;
            if let Some(keys) = &mut keys {
                keys.add(&batch)?;
            }
            if let Some(statistics) = &mut statistics {
                statistics.add(&batch)?;
            }
        }
        let fault = statistics.map(StatisticsCheck::fault).transpose()?.flatten();
        Ok((rows, keys, fault))
    }
}

/// The only data file of an SSTable, or its folder.
fn data_file(rel_dir: &str, dataset: &Dataset) -> String {
    let mut files = dataset.manifest().fragments.iter().flat_map(|fragment| &fragment.files);
    match (files.next(), files.next()) {
        (Some(file), None) => format!("{rel_dir}/data/{}", file.path),
        _ => rel_dir.to_owned(),
    }
}

/// The error without what the finding says already.
fn brief(error: &Error) -> String {
    match error {
        Error::Lance { source, .. } => without_location(source),
        other => other.to_string(),
    }
}
