//! `fencepost gc`: deletes what no reader, writer or checkpoint needs any more. It takes nothing over.

use std::time::Instant;

use fencepost::wal::gc::{Freed, GcKind, GcOptions, GcReport, Kept, Plan};
use fencepost::{ShardGcPlan, ShardGcReport, ShardId, ShardValue, Table};
use serde_json::{Map, Value, json};

use crate::args::GcArgs;
use crate::error::Result;
use crate::output::{bytes, plural};
use crate::progress::Progress;
use crate::{output, table};

/// Collects, or with `--dry-run` says what would be deleted.
pub(crate) async fn run(args: GcArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let options = GcOptions { min_age: args.min_age, ..GcOptions::default() };
    match args.dry_run {
        true => plan(&table, &options, &args).await,
        false => collect(&table, &options, &args).await,
    }
}

async fn collect(table: &Table, options: &GcOptions, args: &GcArgs) -> Result<()> {
    let started = Instant::now();
    let progress = Progress::objects("deleted");
    let done = table.gc(options, |p| progress.at(p.objects, p.of_objects)).await?;
    drop(progress);
    let seconds = started.elapsed().as_secs_f64();
    let total = sum(done.shards.iter().map(|shard| shard.report.total()));
    let mut lines: Vec<String> = done.shards.iter().map(report_text).collect();
    lines.push(format!("deleted {} ({}) in {seconds:.2} s", plural(total.objects, "object"), bytes(total.bytes)));
    let shards: Vec<Value> = done.shards.iter().map(report_json).collect();
    let mut value = head(options, false, total);
    value.insert("base_version".into(), json!(done.base_version));
    value.insert("released_base_versions".into(), json!(done.released_base_versions));
    value.insert("shards".into(), json!(shards));
    value.insert("seconds".into(), json!(seconds));
    output::result(args.output.output, &lines.join("\n"), &Value::Object(value))
}

async fn plan(table: &Table, options: &GcOptions, args: &GcArgs) -> Result<()> {
    let shards = table.gc_dry_run(options).await?;
    let total = sum(shards.iter().map(|shard| total_of(&shard.plan)));
    let mut lines: Vec<String> = shards.iter().map(plan_text).collect();
    let (objects, bytes) = (plural(total.objects, "object"), bytes(total.bytes));
    lines.push(format!("would delete {objects} ({bytes}); nothing was written"));
    let mut value = head(options, true, total);
    value.insert("shards".into(), json!(shards.iter().map(plan_json).collect::<Vec<_>>()));
    output::result(args.output.output, &lines.join("\n"), &Value::Object(value))
}

fn head(options: &GcOptions, dry_run: bool, total: Freed) -> Map<String, Value> {
    let mut value = Map::new();
    value.insert("dry_run".into(), json!(dry_run));
    value.insert("min_age_seconds".into(), json!(options.min_age.as_secs_f64()));
    value.insert("objects".into(), json!(total.objects));
    value.insert("bytes".into(), json!(total.bytes));
    value
}

fn sum(all: impl Iterator<Item = Freed>) -> Freed {
    all.fold(Freed::default(), |a, b| Freed { objects: a.objects + b.objects, bytes: a.bytes + b.bytes })
}

fn total_of(plan: &Plan) -> Freed {
    sum(plan.deletions.iter().map(|d| Freed { objects: d.objects, bytes: d.bytes }))
}

fn shard_text(id: ShardId, value: &ShardValue) -> String {
    format!("shard {id} ({value})")
}

fn report_text(shard: &ShardGcReport) -> String {
    let ShardGcReport { shard_id, value, report } = shard;
    let name = shard_text(*shard_id, value);
    if let Some(reason) = report.refused {
        return format!("{name}: not collected: {reason}");
    }
    let mut done = dropped(report.dropped_sstables.len(), report.expired_checkpoints, report.dropped_fences);
    for (kind, freed) in &report.freed {
        done.push(format!("{} ({}) of {}", plural(freed.objects, "object"), bytes(freed.bytes), words(*kind)));
    }
    if done.is_empty() {
        done.push("nothing to delete".to_owned());
    }
    format!("{name}: {}{}", done.join(", "), kept_text(&report.kept))
}

fn plan_text(shard: &ShardGcPlan) -> String {
    let ShardGcPlan { shard_id, value, plan } = shard;
    let name = shard_text(*shard_id, value);
    if let Some(reason) = plan.refused {
        return format!("{name}: not collected: {reason}");
    }
    let first = dropped(plan.drop_sstables.len(), plan.drop_checkpoints.len() as u64, plan.drop_fences.len() as u64);
    let first = if first.is_empty() { "the manifest stays as it is".to_owned() } else { first.join(", ") };
    let mut lines = vec![format!("{name}: {first}{}", kept_text(&plan.kept))];
    lines.extend(plan.deletions.iter().map(|d| format!("  {} ({})", d.path, bytes(d.bytes))));
    lines.join("\n")
}

/// What the manifest no longer lists.
fn dropped(sstables: usize, checkpoints: u64, fences: u64) -> Vec<String> {
    let mut dropped = Vec::new();
    for (n, what) in [(sstables as u64, "merged SSTable"), (checkpoints, "expired checkpoint"), (fences, "fence")] {
        if n > 0 {
            dropped.push(format!("the manifest drops {}", plural(n, what)));
        }
    }
    dropped
}

fn words(kind: GcKind) -> &'static str {
    match kind {
        GcKind::WalEntry => "the log",
        GcKind::SsTable => "SSTables",
        GcKind::Checkpoint => "checkpoints",
        GcKind::Manifest => "old manifests",
        GcKind::Leftover => "half-made files",
    }
}

fn kept_text(kept: &Kept) -> String {
    let mut why = Vec::new();
    for (n, noun, reason) in [
        (kept.fences, "log entry", "as fences"),
        (kept.entries_in_checkpoints, "log entry", "for checkpoints"),
        (kept.young_entries, "log entry", "as too young"),
        (kept.sstables_in_checkpoints, "SSTable", "for checkpoints"),
        (kept.young_sstables, "SSTable", "as too young"),
        (kept.damaged_checkpoints, "checkpoint object", "as damaged"),
    ] {
        if n > 0 {
            let noun = if n > 1 && noun == "log entry" { "log entrie" } else { noun };
            why.push(format!("{} {reason}", plural(n, noun)));
        }
    }
    for (index, n) in &kept.lagging_indexes {
        why.push(format!("{} until the index {index} covers it", plural(*n, "SSTable")));
    }
    if why.is_empty() { String::new() } else { format!("; kept {}", why.join(", ")) }
}

fn report_json(shard: &ShardGcReport) -> Value {
    let GcReport { refused, version, dropped_sstables, expired_checkpoints, dropped_fences, kept, .. } = &shard.report;
    let freed = GcKind::ALL.map(|kind| (kind.name().to_owned(), freed_json(shard.report.of(kind))));
    json!({
        "shard_id": shard.shard_id.to_string(),
        "value": output::shard_value(&shard.value),
        "refused": refused.map(|reason| reason.to_string()),
        "manifest_version": version.map(|v| v.get()),
        "dropped_sstables": dropped_sstables.iter().map(|g| g.get()).collect::<Vec<_>>(),
        "expired_checkpoints": expired_checkpoints,
        "dropped_fences": dropped_fences,
        "freed": Value::Object(freed.into_iter().collect()),
        "kept": kept_json(kept),
    })
}

fn freed_json(freed: Freed) -> Value {
    json!({ "objects": freed.objects, "bytes": freed.bytes })
}

fn plan_json(shard: &ShardGcPlan) -> Value {
    let plan = &shard.plan;
    let deletions = plan
        .deletions
        .iter()
        .map(|d| json!({ "kind": d.kind.name(), "path": d.path, "objects": d.objects, "bytes": d.bytes }));
    json!({
        "shard_id": shard.shard_id.to_string(),
        "value": output::shard_value(&shard.value),
        "refused": plan.refused.map(|reason| reason.to_string()),
        "drop_sstables": plan.drop_sstables.iter().map(|g| g.get()).collect::<Vec<_>>(),
        "drop_checkpoints": plan.drop_checkpoints.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "deletions": deletions.collect::<Vec<_>>(),
        "kept": kept_json(&plan.kept),
    })
}

fn kept_json(kept: &Kept) -> Value {
    json!({
        "fences": kept.fences,
        "entries_in_checkpoints": kept.entries_in_checkpoints,
        "young_entries": kept.young_entries,
        "sstables_in_checkpoints": kept.sstables_in_checkpoints,
        "young_sstables": kept.young_sstables,
        "lagging_indexes": kept.lagging_indexes,
        "live_checkpoints": kept.live_checkpoints,
        "damaged_checkpoints": kept.damaged_checkpoints,
        "manifests": kept.manifests,
    })
}
