//! One row by its key, at random.

use std::sync::Arc;
use std::time::Instant;

use arrow_array::{Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use datafusion::common::ScalarValue;
use fencepost_sim::Rng;
use lance::dataset::mem_wal::DatasetMemWalExt;
use lance::dataset::mem_wal::scanner::{DatasetCache, LsmPointLookupPlanner, SsTableCache};

use super::Plan;
use crate::Result;
use crate::clients::{Latencies, at, latencies};
use crate::contender::{Layers, Setting, Slate, System};
use crate::place::StoreKind;
use crate::report::{Figures, Table};
use crate::rows::{Shape, key};

/// Rows of the MemTable alone, and of each layer.
const MEMTABLE_ROWS: usize = 100_000;
const BASE_ROWS: usize = 100_000;
const SSTABLES: usize = 100;
const SSTABLE_ROWS: usize = 1_000;

pub(super) async fn run(plan: &Plan) -> Result<Vec<Table>> {
    let rows = |from: usize, count: usize| (from as i64..(from + count) as i64).collect::<Vec<i64>>();
    let memtable = plan.size(MEMTABLE_ROWS);
    let alone = Layers { base: vec![], sstables: vec![], memtable: rows(0, memtable) };
    let (base, sstables) = (plan.size(BASE_ROWS), plan.size(SSTABLES));
    let of_sstable = |n: usize| rows(base + n * SSTABLE_ROWS, SSTABLE_ROWS);
    let layered = Layers {
        base: rows(0, base),
        sstables: (0..sstables).map(of_sstable).collect(),
        memtable: rows(base + sstables * SSTABLE_ROWS, plan.size(10_000)),
    };
    let total = layered.base.len() + sstables * SSTABLE_ROWS + layered.memtable.len();
    let title = |what: String| format!("random keys, one after the other, one client, {what}, store `memory`");
    let mut in_memory = Table::new("lookup", title(format!("a MemTable of {memtable} rows")), &["system", "call"]);
    let what = format!("MemTable, {sstables} SSTables of {SSTABLE_ROWS} rows and {base} rows in the base table");
    let mut in_layers = Table::new("lookup", title(what), &["system", "call"]);
    for (table, layers, count, rows) in
        [(&mut in_memory, &alone, plan.size(200_000), memtable), (&mut in_layers, &layered, plan.size(5_000), total)]
    {
        table.main = Some("lookups/s");
        for _ in 0..plan.rounds {
            measure(plan, table, layers, count, rows).await?;
        }
    }
    let ratio = |table: &Table, ours: &str, theirs: &str| {
        let ours = table.median(&[Setting::defaults(System::Fencepost).system_name(), ours], "lookups/s");
        let theirs = table.median(&[Setting::defaults(System::Lance).system_name(), theirs], "lookups/s");
        Some(ours? / theirs?)
    };
    let found = ratio(&in_memory, OURS, THEIRS);
    in_memory.at_least("lookups/s in a MemTable, times Lance", found, 1.0);
    let found = ratio(&in_layers, OURS, THEIRS);
    in_layers.at_least("lookups/s with SSTables, times Lance", found, 10.0);
    Ok(vec![in_memory, in_layers])
}

const OURS: &str = "TableSnapshot::get";
const THEIRS: &str = "LsmPointLookupPlanner::lookup";

async fn measure(plan: &Plan, table: &mut Table, layers: &Layers, count: usize, rows: usize) -> Result<()> {
    let mut dice = Rng::new(7);
    let ids: Vec<i64> = (0..count).map(|_| (dice.unit() * rows as f64) as i64).collect();
    {
        let place = crate::place::Place::on(StoreKind::Memory)?;
        let made = layers.fencepost(&place.unmeasured()).await?;
        let snapshot = made.writer.snapshot().await?;
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
        let key = |id: i64| RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(vec![id]))]);
        let keys: std::result::Result<Vec<_>, _> = ids.iter().map(|id| key(*id)).collect();
        let keys = keys?;
        snapshot.get(keys.first().ok_or("no keys")?, None).await?;
        let (mut all, started) = (latencies()?, Instant::now());
        for key in &keys {
            let asked = Instant::now();
            expect(snapshot.get(key, None).await?.num_rows())?;
            all.record(asked.elapsed().as_nanos() as u64)?;
        }
        table.add(&[Setting::defaults(System::Fencepost).system_name(), OURS], figures(count, started, &all));
        // A hundred keys a call.
        let hundreds = ids
            .chunks(100)
            .map(|ids| RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(ids.to_vec()))]));
        let hundreds: std::result::Result<Vec<_>, _> = hundreds.collect();
        let hundreds = hundreds?;
        let (mut all, started) = (latencies()?, Instant::now());
        for keys in &hundreds {
            let asked = Instant::now();
            snapshot.get(keys, None).await?;
            all.record((asked.elapsed().as_nanos() / keys.num_rows() as u128) as u64)?;
        }
        table.add(
            &[Setting::defaults(System::Fencepost).system_name(), "the same, 100 keys a call"],
            figures(count, started, &all),
        );
        made.writer.abort().await;
    }
    if plan.wants(System::Lance) {
        let place = crate::place::Place::on(StoreKind::Memory)?;
        let made = layers.lance(&place.unmeasured()).await?;
        // As its own benchmark does: every SSTable open, its indexes warm.
        let cache: Arc<dyn DatasetCache> = Arc::new(SsTableCache::new(layers.sstables.len().max(1) as u64));
        made.dataset.prewarm_mem_wal(&[made.shard_snapshot().await?], Some(&cache)).await?;
        let planner = LsmPointLookupPlanner::new(made.sources().await?, vec!["id".into()], Shape::Text.lance_schema())?
            .with_session(made.dataset.session())
            .with_sstable_cache(cache);
        // With many SSTables one lookup takes milliseconds.
        let ids = if layers.sstables.is_empty() { ids.as_slice() } else { ids.get(..count / 10).unwrap_or_default() };
        planner.lookup(&[ScalarValue::Int64(Some(0))], None).await?;
        let (mut all, started) = (latencies()?, Instant::now());
        for id in ids {
            let asked = Instant::now();
            expect(planner.lookup(&[ScalarValue::Int64(Some(*id))], None).await?.map_or(0, |row| row.num_rows()))?;
            all.record(asked.elapsed().as_nanos() as u64)?;
        }
        table.add(&[Setting::defaults(System::Lance).system_name(), THEIRS], figures(ids.len(), started, &all));
        made.writer.abort().await?;
    }
    if plan.wants(System::Slate) && layers.sstables.is_empty() {
        let place = crate::place::Place::on(StoreKind::Memory)?;
        let slate = Slate::open_with(&place.unmeasured(), slatedb::Settings::default()).await?;
        for ids in layers.memtable.chunks(1000) {
            let mut batch = slatedb::WriteBatch::new();
            for (key, value) in Shape::Text.rows(ids.iter().copied())?.pairs {
                batch.put_bytes(key, value);
            }
            slate.db.write(batch).await?;
        }
        let (mut all, started) = (latencies()?, Instant::now());
        for id in &ids {
            let asked = Instant::now();
            expect(usize::from(slate.db.get(key(*id)).await?.is_some()))?;
            all.record(asked.elapsed().as_nanos() as u64)?;
        }
        table.add(&[Setting::defaults(System::Slate).system_name(), "Db::get"], figures(count, started, &all));
        slate.db.close().await?;
    }
    Ok(())
}

fn expect(rows: usize) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(format!("{rows} rows were found, not 1").into()) }
}

/// Of latencies in nanoseconds.
fn figures(count: usize, started: Instant, all: &Latencies) -> Figures {
    let seconds = started.elapsed().as_secs_f64();
    vec![("lookups/s", count as f64 / seconds), ("p50 µs", at(all, 0.5)), ("p99 µs", at(all, 0.99))]
}
