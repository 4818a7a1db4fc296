//! Opening a shard whose writer crashed.

use std::sync::Arc;

use fencepost::WriterConfig;
use futures::future::try_join_all;
use lance::dataset::mem_wal::WalTailer;

use super::{Plan, timed};
use crate::Result;
use crate::contender::{Lance, Setting, System, Writer, create_table, dataset};
use crate::place::{Place, StoreKind};
use crate::report::Table;
use crate::rows::Shape;

/// Entries, and rows of each.
const ENTRIES: [usize; 2] = [1_000, 10_000];
const ROWS: usize = 20;
const SHAPE: Shape = Shape::Document { dimensions: 128 };

pub(super) async fn run(plan: &Plan) -> Result<Table> {
    let target = plan.target_or(StoreKind::S3);
    let title = format!("after a crash: entries of {ROWS} documents (id, text, 128 floats), store `{}`", target.name());
    let mut table = Table::new("replay", title, &["entries", "system", "what"]);
    table.main = Some("seconds");
    for entries in ENTRIES {
        let entries = plan.size(entries);
        for _ in 0..plan.rounds {
            for system in [System::Fencepost, System::Lance, System::Slate] {
                // Lance takes three minutes for 10,000 entries.
                let is_long = system == System::Lance && entries > 1_000;
                if !plan.wants(system) || is_long {
                    continue;
                }
                let place = target.place()?;
                write_log(&place, system, entries, SHAPE).await?;
                let name = Setting::defaults(system).system_name();
                for (what, figures) in measure(&place, system, entries, SHAPE).await? {
                    table.add(&[&entries.to_string(), name, what], figures);
                }
            }
        }
    }
    if plan.divisor == 1 {
        let found = table.median(&["1000", Setting::defaults(System::Fencepost).system_name(), "open"], "seconds");
        table.at_most("seconds to open with 1,000 entries to replay", found, 0.4);
    }
    Ok(table)
}

/// A log of so many entries, whose writer is gone.
pub(super) async fn write_log(place: &Place, system: System, entries: usize, shape: Shape) -> Result<()> {
    let rows: Result<Vec<_>> = (0..entries).map(|n| shape.rows((n * ROWS) as i64..((n + 1) * ROWS) as i64)).collect();
    let writer: Box<dyn Writer> = match system {
        System::Lance => {
            // Nothing is flushed before all is written.
            let config = lance::dataset::mem_wal::ShardWriterConfig::default()
                .with_max_wal_flush_interval(std::time::Duration::from_millis(1))
                .with_max_memtable_rows(1 << 20)
                .with_max_memtable_batches(1 << 17);
            Box::new(Lance::open_with(&place.unmeasured(), shape, config).await?)
        }
        System::Slate => Setting::gather(system, 1).open(&place.unmeasured(), shape).await?,
        _ => Box::new(crate::contender::Fencepost::open_unlimited(&place.unmeasured(), shape).await?),
    };
    for rows in rows? {
        writer.put(&rows).await?;
    }
    writer.crash().await
}

type Measured = Vec<(&'static str, crate::report::Figures)>;

/// Both arms of the seed's benchmark: reading the log, and opening a writer.
pub(super) async fn measure(place: &Place, system: System, entries: usize, shape: Shape) -> Result<Measured> {
    let figures = |seconds: f64, before: fencepost_sim::RequestCounts| {
        let mut figures = vec![
            ("seconds", seconds),
            ("entries/s", entries as f64 / seconds),
            ("rows/s", (entries * ROWS) as f64 / seconds),
        ];
        figures.extend(super::requests(place.requests() - before));
        figures
    };
    let mut measured = Vec::new();
    match system {
        System::Lance => {
            let dataset = dataset(&place.store(), shape).await?;
            let before = place.requests();
            let (seconds, read) = timed(lance_tail(&dataset)).await?;
            expect(read, entries)?;
            measured.push(("tailer", figures(seconds, before)));
            let before = place.requests();
            let config = lance::dataset::mem_wal::ShardWriterConfig::default();
            let (seconds, lance) = timed(Lance::open_with(&place.store(), shape, config)).await?;
            measured.push(("open", figures(seconds, before)));
            lance.writer.abort().await?;
        }
        System::Slate => {
            let before = place.requests();
            let (seconds, writer) = timed(Setting::defaults(system).open(&place.store(), shape)).await?;
            measured.push(("open", figures(seconds, before)));
            writer.close().await?;
        }
        _ => {
            let table = create_table(&place.store(), shape).await?;
            let shards = table.shard_ids().await?;
            let before = place.requests();
            let (seconds, read) = timed(async {
                let tail = |shard| {
                    let mut tailer = table.tailer(shard);
                    async move {
                        let mut read = 0;
                        while tailer.next().await?.is_some() {
                            read += 1;
                        }
                        Ok::<usize, crate::Failure>(read)
                    }
                };
                Ok(try_join_all(shards.iter().copied().map(tail)).await?.into_iter().sum::<usize>())
            })
            .await?;
            expect(read, entries)?;
            measured.push(("tailer", figures(seconds, before)));
            let before = place.requests();
            let (seconds, writer) = timed(async { Ok(table.writer(WriterConfig::default()).await?) }).await?;
            measured.push(("open", figures(seconds, before)));
            writer.abort().await;
        }
    }
    Ok(measured)
}

fn expect(found: usize, entries: usize) -> Result<()> {
    match found {
        found if found == entries => Ok(()),
        found => Err(format!("{found} entries were read, not {entries}").into()),
    }
}

async fn lance_tail(dataset: &lance::Dataset) -> Result<usize> {
    let store = dataset.object_store(None).await?;
    let tailer = WalTailer::new(Arc::clone(&store), dataset.branch_location().path, crate::contender::LANCE_SHARD);
    let mut read = 0;
    // The first one is the fence entry, which has no rows.
    for position in tailer.first_position().await?.. {
        match tailer.read_entry(position).await? {
            Some(entry) => read += usize::from(!entry.batches.is_empty()),
            None => break,
        }
    }
    Ok(read)
}
