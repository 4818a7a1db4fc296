//! Bulk writing: batches of 1,000 rows as fast as they are taken.

use std::sync::Arc;
use std::time::Instant;

use arrow_ipc::writer::StreamWriter;
use fencepost::{MemTableConfig, WriterConfig};
use futures::future::try_join_all;
use lance::dataset::mem_wal::ShardWriterConfig;

use super::Plan;
use crate::Result;
use crate::contender::{Fencepost, Lance, Setting, System, Tuning, Writer, close};
use crate::place::{Place, StoreKind};
use crate::report::{Figures, Table};
use crate::rows::{Rows, Shape, payload};

const ENCODE: &str = "bare Arrow IPC encode";
const BATCH_ROWS: usize = 1000;
/// Rows of one run.
const ROWS: usize = 1_000_000;
/// Batches that one producer has under way, unacknowledged by the store, at most.
const PRODUCERS: usize = 4;

/// What is set other than by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Defaults,
    /// A MemTable that takes all rows, so that no flush competes.
    OneMemTable,
    /// Sixteen PUTs in flight instead of four.
    MorePuts,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Defaults => "defaults",
            Self::OneMemTable => "one MemTable for all rows",
            Self::MorePuts => "16 PUTs in flight",
        }
    }
}

const CONTENDERS: [(System, Variant); 9] = [
    (System::Fencepost, Variant::Defaults),
    (System::Fencepost, Variant::OneMemTable),
    (System::Fencepost, Variant::MorePuts),
    (System::FencepostLog, Variant::Defaults),
    (System::FencepostLog, Variant::MorePuts),
    (System::Lance, Variant::Defaults),
    (System::Lance, Variant::OneMemTable),
    (System::LanceLog, Variant::Defaults),
    (System::Slate, Variant::Defaults),
];

pub(super) async fn run(plan: &Plan) -> Result<Vec<Table>> {
    let rows = plan.size(ROWS);
    let batches: Result<Vec<Rows>> = (0..rows / BATCH_ROWS)
        .map(|n| Shape::Text.rows((n * BATCH_ROWS) as i64..((n + 1) * BATCH_ROWS) as i64))
        .collect();
    let batches = Arc::new(batches?);
    let mut tables = Vec::new();
    for target in plan.targets_or(&[StoreKind::Memory, StoreKind::S3]) {
        let title = format!(
            "{rows} rows of 108 bytes in batches of {BATCH_ROWS}, {PRODUCERS} producers, store `{}`",
            target.name()
        );
        let mut table = Table::new("ingest", title, &["system", "setting"]);
        table.main = Some("durable rows/s");
        table.note("durable: until the last row is; where a system does not tell, until it is closed. closed: until close() has returned, with what it flushes");
        for _ in 0..plan.rounds {
            table.add(&[ENCODE, "—"], encode(&batches, false)?);
            table.add(&[ENCODE, "what it made is kept"], encode(&batches, true)?);
            for (system, variant) in CONTENDERS.into_iter().filter(|(system, _)| plan.wants(*system)) {
                let figures = measure(&target.place()?, system, variant, &batches).await?;
                table.add(&[Setting::defaults(system).system_name(), variant.name()], figures);
            }
        }
        goals(&mut table, &target.name());
        tables.push(table);
    }
    Ok(tables)
}

fn goals(table: &mut Table, store: &str) {
    let of = |system: System, variant: Variant| {
        table.median(&[Setting::defaults(system).system_name(), variant.name()], "durable rows/s")
    };
    let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
    let (ours, theirs) = (of(System::FencepostLog, Variant::Defaults), of(System::LanceLog, Variant::Defaults));
    let mut goals = Vec::new();
    if store == "memory" {
        let keyed = |variant| ratio(of(System::Fencepost, variant), of(System::Lance, variant));
        goals.push(("keyed, defaults, durable rows/s, times Lance", keyed(Variant::Defaults), 1.5));
        goals.push(("keyed, one MemTable for all rows, durable rows/s, times Lance", keyed(Variant::OneMemTable), 1.5));
        goals.push(("WAL-only, durable rows/s, times Lance", ratio(ours, theirs), 1.0));
        let encode = table.median(&[ENCODE, "—"], "durable rows/s");
        goals.push(("WAL-only, as a part of a bare IPC encode's rows/s", ratio(ours, encode), 1.0 / 1.3));
    } else {
        let more = of(System::FencepostLog, Variant::MorePuts);
        goals.push(("WAL-only, durable rows/s, times Lance, defaults", ratio(ours, theirs), 4.0));
        goals.push(("WAL-only, durable rows/s, times Lance, 16 PUTs in flight", ratio(more, theirs), 4.0));
    }
    for (what, found, limit) in goals {
        table.at_least(what, found, limit);
    }
}

/// The same rows through Arrow's own writer, an object of 10 MiB at a time: each in the memory of the one before, or all kept, as a
/// store in memory keeps them.
fn encode(batches: &[Rows], keeps: bool) -> Result<Figures> {
    let mut kept = Vec::new();
    let started = Instant::now();
    let mut bytes = 0;
    let mut rows = 0;
    for group in batches.chunks(90) {
        let Some(first) = group.first() else { continue };
        let mut writer = StreamWriter::try_new(Vec::with_capacity(11 << 20), &first.batch.schema())?;
        for batch in group {
            writer.write(&batch.batch)?;
            rows += batch.len();
        }
        let object = std::hint::black_box(writer.into_inner()?);
        bytes += object.len();
        if keeps {
            kept.push(object);
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(vec![("durable rows/s", rows as f64 / seconds), ("stored MB", bytes as f64 / 1e6)])
}

async fn open(place: &Place, system: System, variant: Variant) -> Result<Box<dyn Writer>> {
    let store = place.store();
    Ok(match (system, variant) {
        (_, Variant::MorePuts) => Setting { system, tuning: Tuning::InFlight(16) }.open(&store, Shape::Text).await?,
        (System::Fencepost, Variant::OneMemTable) => {
            let limits = MemTableConfig {
                max_bytes: 4 << 30,
                max_rows: 1 << 30,
                max_batches: 1 << 20,
                ..MemTableConfig::default()
            };
            let config = WriterConfig { memtable: Some(limits), ..WriterConfig::default() };
            Box::new(Fencepost::open_with(&store, Shape::Text, config).await?)
        }
        (System::Lance, Variant::OneMemTable) => {
            // It makes room for all of that when it opens.
            let config = ShardWriterConfig::default()
                .with_max_memtable_size(4 << 30)
                .with_max_memtable_rows(1_100_000)
                .with_max_memtable_batches(20_000)
                .with_max_unflushed_memtable_bytes(12 << 30);
            Box::new(Lance::open_with(&store, Shape::Text, config).await?)
        }
        // Rows are in memory when `put` returns, and one PUT takes all that gathered.
        (System::LanceLog, _) => {
            let config = ShardWriterConfig::default().with_enable_memtable(false).with_durable_write(false);
            Box::new(Lance::open_with(&store, Shape::Text, config).await?)
        }
        _ => Setting::defaults(system).open(&store, Shape::Text).await?,
    })
}

async fn measure(place: &Place, system: System, variant: Variant, batches: &Arc<Vec<Rows>>) -> Result<Figures> {
    let writer = Arc::new(open(place, system, variant).await?);
    let before = place.requests();
    let started = Instant::now();
    let producer = |number: usize| {
        let (writer, batches) = (Arc::clone(&writer), Arc::clone(batches));
        tokio::spawn(async move {
            let mut durable = Vec::new();
            for batch in batches.iter().skip(number).step_by(PRODUCERS) {
                durable.push(writer.put_no_wait(batch).await?);
            }
            Ok::<_, crate::Failure>((Instant::now(), durable))
        })
    };
    let mut accepted = started;
    let mut durable = Vec::new();
    for producer in try_join_all((0..PRODUCERS).map(producer)).await? {
        let (at, of_producer) = producer?;
        accepted = accepted.max(at);
        durable.extend(of_producer);
    }
    try_join_all(durable).await?;
    let all_durable = started.elapsed();
    close(writer).await?;
    let closed = started.elapsed();
    let spent = place.requests() - before;
    let rows: usize = batches.iter().map(Rows::len).sum();
    let per_second = |time: std::time::Duration| rows as f64 / time.as_secs_f64();
    // Lance does not tell when rows of a log without a MemTable are durable.
    let all_durable = if system == System::LanceLog { closed } else { all_durable };
    Ok(vec![
        ("durable rows/s", per_second(all_durable)),
        ("accepted rows/s", per_second(accepted - started)),
        ("closed rows/s", per_second(closed)),
        ("PUT", spent.put as f64),
        ("stored MB", spent.bytes_put as f64 / 1e6),
        ("stored / payload", spent.bytes_put as f64 / payload(batches) as f64),
    ])
}
