//! An aggregate over all layers.

use std::sync::Arc;
use std::time::Instant;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use datafusion::prelude::SessionContext;
use fencepost::MergeOptions;
use futures::TryStreamExt;
use lance::dataset::mem_wal::LsmScanner;

use super::{Plan, timed};
use crate::Result;
use crate::contender::{Layers, Setting, System};
use crate::place::{Place, StoreKind};
use crate::report::Table;

const BASE: usize = 1_000_000;
const SSTABLES: usize = 10;
const REPEATS: usize = 5;
const SQL: &str = "select count(*), sum(id), max(text) from t";

pub(super) async fn run(plan: &Plan) -> Result<Table> {
    let base = plan.size(BASE);
    // A tenth of the rows is overwritten: nine parts of ten in SSTables, one in the MemTable.
    let step = (base / 100) as i64;
    let part = |n: usize| (0..step).map(move |i| (i * 100 + n as i64 * 7) % base as i64).collect::<Vec<i64>>();
    let layers = Layers {
        base: (0..base as i64).collect(),
        sstables: (0..SSTABLES - 1).map(part).collect(),
        memtable: part(SSTABLES - 1),
    };
    let title = format!(
        "`{SQL}`: {base} rows in the base table, {} SSTables and a MemTable that overwrite a tenth, store `memory`",
        SSTABLES - 1
    );
    let mut table = Table::new("scan", title, &["system", "query"]);
    table.main = Some("ms");
    for _ in 0..plan.rounds {
        let place = Place::on(StoreKind::Memory)?;
        let made = layers.fencepost(&place.unmeasured()).await?;
        let ours = Setting::defaults(System::Fencepost).system_name();
        let snapshot = made.writer.snapshot().await?;
        let context = SessionContext::new();
        context.register_table("t", snapshot.provider())?;
        let (first, (rows, _)) = timed(aggregate(&context)).await?;
        if rows != base as i64 {
            return Err(format!("{rows} rows were counted, not {base}").into());
        }
        table.add(&[ours, "first"], vec![("ms", first * 1e3)]);
        table.add(&[ours, "again, same snapshot"], vec![("ms", repeated(|| aggregate(&context)).await?)]);
        let newer = made.writer.snapshot().await?;
        let context = SessionContext::new();
        context.register_table("t", newer.provider())?;
        let (next, _) = timed(aggregate(&context)).await?;
        table.add(&[ours, "first of the next snapshot"], vec![("ms", next * 1e3)]);
        made.writer.flush().await?;
        made.table.merge(&MergeOptions::default(), |_| {}).await?;
        made.writer.abort().await;
        let merged = fencepost::Table::open(place.unmeasured()).await?;
        let context = SessionContext::new();
        context.register_table("t", merged.provider().await?)?;
        aggregate(&context).await?;
        table.add(
            &["Lance table", "after the merge, by Fencepost"],
            vec![("ms", repeated(|| aggregate(&context)).await?)],
        );
        if plan.wants(System::Lance) {
            let place = Place::on(StoreKind::Memory)?;
            let made = layers.lance(&place.unmeasured()).await?;
            let dataset = Arc::new(made.dataset.clone());
            let memtables = made.writer.in_memory_memtable_refs().await?;
            let snapshot = made.shard_snapshot().await?;
            let scan = || {
                LsmScanner::new(Arc::clone(&dataset), vec![snapshot.clone()], vec!["id".into()])
                    .with_in_memory_memtables(crate::contender::LANCE_SHARD, memtables.clone())
            };
            let lance = Setting::defaults(System::Lance).system_name();
            let query = || aggregate_of(scan());
            let (first, (rows, _)) = timed(query()).await?;
            if rows != base as i64 {
                return Err(format!("Lance counted {rows} rows, not {base}").into());
            }
            table.add(&[lance, "LsmScanner, first"], vec![("ms", first * 1e3)]);
            table.add(&[lance, "LsmScanner, again"], vec![("ms", repeated(query).await?)]);
            made.writer.abort().await?;
        }
    }
    let ours = table.median(&[Setting::defaults(System::Fencepost).system_name(), "again, same snapshot"], "ms");
    let first = table.median(&[Setting::defaults(System::Fencepost).system_name(), "first of the next snapshot"], "ms");
    let lance = table.median(&[Setting::defaults(System::Lance).system_name(), "LsmScanner, again"], "ms");
    let merged = table.median(&["Lance table", "after the merge, by Fencepost"], "ms");
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    table.at_least("Lance's LsmScanner, times ours", ratio(lance, ours), 1.5);
    table.at_least("Lance's LsmScanner, times ours when the snapshot is new", ratio(lance, first), 1.5);
    table.at_most("ours, times the same over the merged table", ratio(ours, merged), 1.2);
    Ok(table)
}

/// Count and sum, so that an answer can be checked.
async fn aggregate(context: &SessionContext) -> Result<(i64, i64)> {
    let found = context.sql(SQL).await?.collect().await?;
    let batch = found.first().ok_or("no answer")?;
    let number = |column: usize| batch.column(column).as_primitive::<Int64Type>().value(0);
    Ok((number(0), number(1)))
}

/// The same of Lance's scanner, which has no aggregates but hands out rows.
async fn aggregate_of(scanner: LsmScanner) -> Result<(i64, i64)> {
    let mut stream = scanner.project(&["id", "text"])?.try_into_stream().await?;
    let (mut count, mut sum) = (0, 0);
    let mut longest = String::new();
    while let Some(batch) = stream.try_next().await? {
        let column = |name: &str| batch.column_by_name(name).ok_or("a column is missing");
        let ids = column("id")?.as_primitive::<Int64Type>();
        let texts = column("text")?.as_string::<i32>();
        count += batch.num_rows() as i64;
        sum += ids.values().iter().sum::<i64>();
        if let Some(most) = texts.iter().flatten().max()
            && most > longest.as_str()
        {
            longest = most.to_owned();
        }
    }
    std::hint::black_box(longest);
    Ok((count, sum))
}

/// Median milliseconds.
async fn repeated<T, F: Future<Output = Result<T>>>(query: impl Fn() -> F) -> Result<f64> {
    let mut times = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        let started = Instant::now();
        query().await?;
        times.push(super::millis(started.elapsed()));
    }
    times.sort_by(f64::total_cmp);
    times.get(REPEATS / 2).copied().ok_or_else(|| "nothing was measured".into())
}
