//! A process that collects garbage, and merges SSTables into a base table that is one number and a list of rows.

use std::sync::Arc;

use fencepost_wal::gc::{BaseProgress, GcOptions, collect};
use fencepost_wal::{Generation, ManifestStore, Result, Shard};

use super::process::Process;

/// Collects once.
pub(crate) async fn collect_once(process: &Arc<Process>, shard: &Shard) -> Result<()> {
    if process.chance(process.world.habits.merge)
        && let Some(manifest) = ManifestStore::new(shard.clone()).latest_certain().await?
    {
        let verdict = process.world.state().oracle.merge(&manifest);
        process.world.judge(&process.name, verdict);
    }
    if process.chance(process.world.habits.wipes) {
        process.world.wipe_if_allowed(&process.name);
    }
    let merged = process.world.state().oracle.merged();
    let base = BaseProgress { merged: Generation::new(merged), ..BaseProgress::default() };
    let options = GcOptions { min_age: process.world.habits.min_age, fence_retention: None };
    let report = collect(shard, &base, &options, |_| ()).await?;
    let mut state = process.world.state();
    state.coverage.count("collections");
    state.coverage.add("SSTables dropped", report.dropped_sstables.len() as u64);
    state.coverage.add("fences kept by a collection", report.kept.fences);
    Ok(())
}
