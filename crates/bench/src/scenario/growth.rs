//! What grows with shards and with SSTables: the time of an append, of an open, and memory.

use fencepost::{Table as FencepostTable, WriterConfig};

use super::{Plan, timed};
use crate::Result;
use crate::allocated;
use crate::clients::{at, latencies};
use crate::place::{Place, StoreKind};
use crate::report::Table;
use crate::rows::Shape;

const SHARDS: [u32; 5] = [1, 4, 16, 64, 256];
const SSTABLES: [usize; 4] = [1, 10, 100, 1000];
/// Batches that are appended, and rows of each.
const APPENDS: usize = 30;
const ROWS: usize = 256;

pub(super) async fn run(plan: &Plan) -> Result<Vec<Table>> {
    let target = plan.target_or(StoreKind::S3);
    let title = format!("one table by shards: batches of {ROWS} rows over all of them, store `{}`", target.name());
    let mut by_shards = Table::new("growth", title, &["shards"]);
    by_shards.main = Some("open ms");
    for shards in SHARDS.into_iter().filter(|shards| *shards as usize <= plan.size(256)) {
        for _ in 0..plan.rounds {
            let place = target.place()?;
            crate::contender::create_sharded(&place.unmeasured(), Shape::Text, shards).await?;
            let table = FencepostTable::open(place.store()).await?;
            let held = allocated::now();
            let before = place.requests();
            let (open, writer) = timed(async { Ok(table.writer(WriterConfig::default()).await?) }).await?;
            let spent = place.requests() - before;
            let memory = allocated::now().saturating_sub(held);
            let mut all = latencies()?;
            for n in 0..APPENDS {
                let rows = Shape::Text.rows((n * ROWS) as i64..((n + 1) * ROWS) as i64)?;
                let (seconds, _) = timed(async { Ok(writer.put(rows.batch).await?) }).await?;
                all.record((seconds * 1e6) as u64)?;
            }
            by_shards.add(
                &[&shards.to_string()],
                vec![
                    ("open ms", open * 1e3),
                    ("requests of open", spent.requests() as f64),
                    ("append p50 ms", at(&all, 0.5)),
                    ("append p99 ms", at(&all, 0.99)),
                    ("MB held after open", memory as f64 / 1e6),
                ],
            );
            writer.close().await?;
        }
    }
    let title = format!("one shard by SSTables of 100 rows, store `{}`", target.name());
    let mut by_sstables = Table::new("growth", title, &["SSTables"]);
    by_sstables.main = Some("open ms");
    for sstables in SSTABLES.into_iter().filter(|count| *count <= plan.size(1000)) {
        let place = target.place()?;
        fill(&place, sstables).await?;
        for _ in 0..plan.rounds {
            let held = allocated::now();
            let before = place.requests();
            let (open, (table, writer)) = timed(async {
                let table = FencepostTable::open(place.store()).await?;
                let writer = table.writer(WriterConfig::default()).await?;
                Ok((table, writer))
            })
            .await?;
            let spent = place.requests() - before;
            let memory = allocated::now().saturating_sub(held);
            let mut all = latencies()?;
            for n in 0..APPENDS as i64 {
                let rows = Shape::Text.rows([n])?;
                let (seconds, _) = timed(async { Ok(writer.put(rows.batch).await?) }).await?;
                all.record((seconds * 1e6) as u64)?;
            }
            let (snapshot, found) = timed(async { Ok(table.snapshot().await?) }).await?;
            drop(found);
            by_sstables.add(
                &[&sstables.to_string()],
                vec![
                    ("open ms", open * 1e3),
                    ("requests of open", spent.requests() as f64),
                    ("append p50 ms", at(&all, 0.5)),
                    ("append p99 ms", at(&all, 0.99)),
                    ("snapshot ms", snapshot * 1e3),
                    ("MB held after open", memory as f64 / 1e6),
                ],
            );
            writer.abort().await;
        }
    }
    for table in [&mut by_shards, &mut by_sstables] {
        let of = |line: Option<&crate::report::Line>| line.and_then(|line| line.median("append p50 ms"));
        let ratio = of(table.lines.last()).and_then(|most| Some(most / of(table.lines.first())?));
        table.at_most("append p50, most against one", ratio, 1.3);
    }
    Ok(vec![by_shards, by_sstables])
}

async fn fill(place: &Place, sstables: usize) -> Result<()> {
    let made = crate::contender::Fencepost::open_unlimited(&place.unmeasured(), Shape::Text).await?;
    for n in 0..sstables as i64 {
        made.writer.put(Shape::Text.rows(n * 100..n * 100 + 100)?.batch).await?;
        made.writer.flush().await?;
    }
    Ok(made.writer.close().await?)
}
