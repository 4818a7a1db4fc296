//! `fencepost inspect`: shards and base table as they are on storage. Reads only; fences nobody.

use fencepost::Inspection;
use serde_json::{Value, json};

use crate::args::{InspectArgs, Output};
use crate::error::Result;
use crate::output::plural;
use crate::{output, table};

/// Prints the state.
pub(crate) async fn run(args: InspectArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let inspection = table.inspect().await?;
    match args.output {
        Output::Json => output::json(&to_json(&inspection)),
        Output::Table => output::line(&to_text(&inspection)),
    }
}

fn to_json(inspection: &Inspection) -> Value {
    let shards: Vec<Value> = inspection
        .shards
        .iter()
        .map(|shard| {
            let sstables: Vec<Value> = shard
                .sstables
                .iter()
                .map(|s| {
                    json!({
                        "generation": s.generation,
                        "path": s.path,
                        "rows": s.rows,
                        "merged": s.merged,
                        "awaited_by": s.awaited_by,
                    })
                })
                .collect();
            let fences: Vec<Value> =
                shard.fences.iter().map(|f| json!({ "position": f.position, "epoch": f.epoch })).collect();
            json!({
                "shard_id": shard.shard_id.to_string(),
                "value": output::shard_value(&shard.value),
                "unadopted": shard.unadopted,
                "writer_epoch": shard.writer_epoch,
                "replay_after": shard.replay_after,
                "tail": shard.tail,
                "wal_store": shard.wal_store,
                "wal_store_may_be_wiped": shard.wal_store_may_be_wiped,
                "checkpoints": shard.checkpoints,
                "pinned_by": shard.pinned_by,
                "rows_in_log": shard.rows_in_log,
                "current_generation": shard.current_generation,
                "sstables": sstables,
                "fences": fences,
            })
        })
        .collect();
    let base = &inspection.base;
    let merged: Vec<Value> =
        base.merged.iter().map(|m| json!({ "shard_id": m.shard_id.to_string(), "generation": m.generation })).collect();
    json!({
        "cloned_from": inspection.cloned_from,
        "shards": shards,
        "base": { "version": base.version, "rows": base.rows, "merged": merged },
    })
}

fn to_text(inspection: &Inspection) -> String {
    let mut lines = Vec::new();
    for shard in &inspection.shards {
        let unadopted = if shard.unadopted { ", unadopted: see `fencepost adopt`" } else { "" };
        lines.push(format!("shard {} ({}){unadopted}", shard.shard_id, shard.value));
        lines.push(format!(
            "  writer epoch {}, log {}..{} with {}, generation {}, {}",
            shard.writer_epoch,
            shard.replay_after,
            shard.tail,
            plural(shard.rows_in_log, "row"),
            shard.current_generation,
            plural(shard.fences.len() as u64, "fence"),
        ));
        if let Some(wal_store) = &shard.wal_store {
            let wipe = if shard.wal_store_may_be_wiped { ", which may be wiped" } else { "" };
            lines.push(format!("  its log is in {wal_store}{wipe}"));
        }
        if shard.checkpoints > 0 {
            lines.push(format!("  {}", plural(shard.checkpoints, "checkpoint")));
        }
        lines.extend(shard.pinned_by.iter().map(|url| format!("  its SSTables are shared by the clone at {url}")));
        for sstable in &shard.sstables {
            let rows = sstable.rows.map_or_else(|| "rows not counted".to_string(), |n| plural(n, "row"));
            let state = match (sstable.merged, sstable.awaited_by.as_slice()) {
                (false, _) => String::new(),
                (true, []) => ", merged".to_string(),
                (true, indexes) => format!(", merged, not yet in the index {}", indexes.join(", ")),
            };
            lines.push(format!("  SSTable {} ({rows}{state}): {}", sstable.generation, sstable.path));
        }
    }
    let base = &inspection.base;
    lines.extend(inspection.cloned_from.iter().map(|url| format!("a clone of {url}")));
    lines.push(format!("base table: version {}, {}", base.version, plural(base.rows, "row")));
    lines.join("\n")
}
