//! The two benchmarks that came with Lance's `mem_wal`, with their workloads and metrics: `mem_wal_write` and
//! `mem_wal_replay` (lance 14.0.2, `benches/mem_wal/write`).

use std::time::{Duration, Instant};

use fencepost::WriterConfig;
use lance::dataset::mem_wal::ShardWriterConfig;

use super::Plan;
use super::replay::{measure as measure_replay, write_log};
use crate::Result;
use crate::contender::{Fencepost, Lance, Setting, System, Writer};
use crate::place::{Place, StoreKind};
use crate::report::{Figures, Table};
use crate::rows::{Rows, Shape, payload};

/// `mem_wal_write`: 1,000 batches of 20 rows of id, text and a vector of 512 floats; not durable row by row, WAL flushes every
/// second or MiB, MemTables of 64 MiB.
const BATCHES: usize = 1000;
const BATCH_ROWS: usize = 20;
const WRITE: Shape = Shape::Document { dimensions: 512 };
const DURABLE_BATCHES: usize = 5;
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(plan: &Plan) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for target in plan.targets_or(&[StoreKind::Memory, StoreKind::S3]) {
        let batches = plan.size(BATCHES);
        let rows: Result<Vec<Rows>> =
            (0..batches).map(|n| WRITE.rows((n * BATCH_ROWS) as i64..((n + 1) * BATCH_ROWS) as i64)).collect();
        let rows = rows?;
        let title = format!(
            "`mem_wal_write`: {batches} batches of {BATCH_ROWS} rows (id, text, 512 floats), store `{}`",
            target.name()
        );
        let mut write = Table::new("seed", title, &["MemTable", "durable", "system"]);
        write.main = Some("rows/s");
        write.note(format!(
            "durable: {DURABLE_BATCHES} batches, because Lance takes the seed's flush interval of a second for each"
        ));
        write.note("one client; as the seed does, time runs until close() has returned");
        for round in 0..plan.rounds {
            for memtable in [true, false] {
                for durable in [false, true] {
                    for system in in_turns(round) {
                        if !plan.wants(system) {
                            continue;
                        }
                        // Lance takes a flush interval, here a second, for each of them.
                        let rows = if durable { rows.get(..DURABLE_BATCHES.min(batches)) } else { rows.get(..) };
                        let rows = rows.unwrap_or_default();
                        let place = target.place()?;
                        let figures = measure(&place, system, memtable, durable, rows).await?;
                        let name = if system == System::Lance { "Lance MemWAL" } else { "Fencepost" };
                        let yes = |yes: bool| if yes { "yes" } else { "no" };
                        write.add(&[yes(memtable), yes(durable), name], figures);
                    }
                }
            }
        }
        for memtable in ["yes", "no"] {
            for durable in ["no", "yes"] {
                let of = |system: &str| write.median(&[memtable, durable, system], "rows/s");
                let ratio = of("Fencepost").and_then(|ours| Some(ours / of("Lance MemWAL")?));
                write.at_least(format!("rows/s, MemTable {memtable}, durable {durable}, times Lance"), ratio, 1.0);
            }
        }
        tables.push(write);

        let entries = plan.size(1000);
        let title = format!("`mem_wal_replay`: {entries} entries of 20 rows (id, text), store `{}`", target.name());
        let mut replay = Table::new("seed", title, &["system", "arm"]);
        replay.main = Some("seconds");
        for round in 0..plan.rounds {
            for system in in_turns(round) {
                if !plan.wants(system) {
                    continue;
                }
                let place = target.place()?;
                write_log(&place, system, entries, Shape::Text).await?;
                for (arm, figures) in measure_replay(&place, system, entries, Shape::Text).await? {
                    replay.add(&[Setting::defaults(system).system_name(), arm], figures);
                }
            }
        }
        for arm in ["tailer", "open"] {
            let of = |system: System| replay.median(&[Setting::defaults(system).system_name(), arm], "seconds");
            let ratio = of(System::Lance).and_then(|theirs| Some(theirs / of(System::Fencepost)?));
            replay.at_least(format!("{arm}: Lance's seconds, times ours"), ratio, 1.0);
        }
        tables.push(replay);
    }
    Ok(tables)
}

/// Whoever comes after the other's idle seconds pays for a machine that has gone to sleep, so they change places.
fn in_turns(round: usize) -> [System; 2] {
    match round % 2 {
        0 => [System::Fencepost, System::Lance],
        _ => [System::Lance, System::Fencepost],
    }
}

async fn measure(place: &Place, system: System, memtable: bool, durable: bool, rows: &[Rows]) -> Result<Figures> {
    let store = place.store();
    let writer: Box<dyn Writer> = match system {
        System::Lance => {
            let config = ShardWriterConfig::default()
                .with_enable_memtable(memtable)
                .with_durable_write(durable)
                .with_max_wal_buffer_size(1 << 20)
                .with_max_wal_flush_interval(FLUSH_INTERVAL)
                .with_max_memtable_size(64 << 20);
            Box::new(Lance::open_with(&store, WRITE, config).await?)
        }
        _ => {
            let mut config = if memtable { WriterConfig::default() } else { WriterConfig::wal_only() };
            config.durable = durable;
            config.wal.flush_interval = FLUSH_INTERVAL;
            // Lance's buffer size begins a flush; ours bounds an object, and stays as it is.
            if let Some(memtable) = &mut config.memtable {
                memtable.max_bytes = 64 << 20;
            }
            Box::new(Fencepost::open_with(&store, WRITE, config).await?)
        }
    };
    let before = place.requests();
    let (mut all, started) = (crate::clients::latencies()?, Instant::now());
    for rows in rows {
        let asked = Instant::now();
        writer.put(rows).await?;
        all.record(asked.elapsed().as_nanos() as u64)?;
    }
    let accepted = started.elapsed();
    writer.close().await?;
    let closed = started.elapsed();
    let spent = place.requests() - before;
    let count: usize = rows.iter().map(Rows::len).sum();
    let bytes = payload(rows) as f64;
    Ok(vec![
        ("rows/s", count as f64 / closed.as_secs_f64()),
        ("MB/s", bytes / 1e6 / closed.as_secs_f64()),
        ("put rows/s", count as f64 / accepted.as_secs_f64()),
        ("put p50 µs", crate::clients::at(&all, 0.5)),
        ("put p99 µs", crate::clients::at(&all, 0.99)),
        ("PUT", spent.put as f64),
        ("stored / payload", spent.bytes_put as f64 / bytes),
    ])
}
