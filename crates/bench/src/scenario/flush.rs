//! From the MemTable to an SSTable, and from SSTables into the base table.

use fencepost::MergeOptions;

use super::{Plan, timed};
use crate::Result;
use crate::contender::{Layers, Setting, System, merge_insert};
use crate::place::StoreKind;
use crate::report::{Figures, Table};

const FLUSHED: usize = 100_000;
const BASE: usize = 400_000;
const SSTABLES: usize = 4;
const SSTABLE_ROWS: usize = 50_000;
const ROW_BYTES: f64 = 108.0;
const THEIR_MERGE: &str = "Lance, a merge_insert of the same rows each";

pub(super) async fn run(plan: &Plan) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for target in plan.targets_or(&[StoreKind::Memory, StoreKind::S3]) {
        let flushed = plan.size(FLUSHED);
        let title = format!("a MemTable of {flushed} rows of 108 bytes to an SSTable, store `{}`", target.name());
        let mut flush = Table::new("flush", title, &["system"]);
        flush.main = Some("MB/s");
        let base = plan.size(BASE);
        let (sstables, rows) = (SSTABLES, plan.size(SSTABLE_ROWS));
        let title = format!(
            "{sstables} SSTables of {rows} rows, half of them new, into a base table of {base} rows, store `{}`",
            target.name()
        );
        let mut merge = Table::new("merge", title, &["system"]);
        merge.main = Some("MB/s");
        merge.note("both commit once per SSTable; Lance's merge_insert is given the rows in memory, ours reads the SSTables and records the progress in the same commit");
        let memtable = Layers { base: vec![], sstables: vec![], memtable: (0..flushed as i64).collect() };
        // Odd numbers are new.
        let part = |n: usize| {
            (0..rows).map(move |i| {
                let row = (n * rows + i) as i64;
                if row % 2 == 0 { row % base as i64 } else { base as i64 + row }
            })
        };
        let layers = Layers {
            base: (0..base as i64).collect(),
            sstables: (0..sstables).map(|n| part(n).collect()).collect(),
            memtable: vec![],
        };
        let all: Vec<i64> = layers.sstables.concat();
        for _ in 0..plan.rounds {
            {
                // Filled without delay, flushed with it.
                let place = target.place()?;
                memtable.fencepost(&place.unmeasured()).await?.writer.abort().await;
                let made =
                    crate::contender::Fencepost::open_unlimited(&place.store(), crate::rows::Shape::Text).await?;
                let before = place.requests();
                let (seconds, ()) = timed(async { Ok(made.writer.flush().await?) }).await?;
                flush.add(
                    &[Setting::defaults(System::Fencepost).system_name()],
                    figures(flushed, seconds, place.requests() - before),
                );
                made.writer.abort().await;
            }
            {
                let place = target.place()?;
                layers.fencepost(&place.unmeasured()).await?.writer.close().await?;
                let table = fencepost::Table::open(place.store()).await?;
                let before = place.requests();
                let (seconds, _) = timed(async { Ok(table.merge(&MergeOptions::default(), |_| {}).await?) }).await?;
                merge.add(
                    &[Setting::defaults(System::Fencepost).system_name()],
                    figures(all.len(), seconds, place.requests() - before),
                );
            }
            if plan.wants(System::Lance) {
                let place = target.place()?;
                memtable.lance(&place.unmeasured()).await?.writer.abort().await?;
                let config =
                    lance::dataset::mem_wal::ShardWriterConfig::default().with_max_memtable_rows(flushed + 1000);
                let made = crate::contender::Lance::open_with(&place.store(), crate::rows::Shape::Text, config).await?;
                let before = place.requests();
                let (seconds, ()) = timed(async { Ok(made.writer.force_freeze_active().await?.wait().await?) }).await?;
                flush.add(
                    &[Setting::defaults(System::Lance).system_name()],
                    figures(flushed, seconds, place.requests() - before),
                );
                made.writer.abort().await?;

                let place = target.place()?;
                let only_base = Layers { sstables: vec![], ..layers.clone() };
                only_base.lance(&place.unmeasured()).await?.writer.abort().await?;
                let mut dataset = crate::contender::dataset(&place.store(), crate::rows::Shape::Text).await?;
                let before = place.requests();
                let (seconds, ()) = timed(async {
                    for ids in &layers.sstables {
                        dataset = merge_insert(dataset.clone(), ids).await?;
                    }
                    Ok(())
                })
                .await?;
                merge.add(&[THEIR_MERGE], figures(all.len(), seconds, place.requests() - before));
            }
        }
        let ratio = |table: &Table, theirs: &str| {
            let ours = table.median(&[Setting::defaults(System::Fencepost).system_name()], "MB/s")?;
            Some(ours / table.median(&[theirs], "MB/s")?)
        };
        let found = ratio(&flush, Setting::defaults(System::Lance).system_name());
        flush.at_least("flush, MB/s, times Lance's", found, 1.0);
        let found = ratio(&merge, THEIR_MERGE);
        merge.at_least("merge, MB/s, times Lance's merge_insert", found, 0.9);
        tables.extend([flush, merge]);
    }
    Ok(tables)
}

fn figures(rows: usize, seconds: f64, spent: fencepost_sim::RequestCounts) -> Figures {
    let mut figures = vec![
        ("MB/s", rows as f64 * ROW_BYTES / 1e6 / seconds),
        ("seconds", seconds),
        ("stored MB", spent.bytes_put as f64 / 1e6),
    ];
    figures.extend(super::requests(spent));
    figures
}
