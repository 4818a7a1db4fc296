//! `fencepost bench`: what appends cost on a store of yours, in time and in dollars. The table that it writes to is deleted
//! again. Comparisons with other systems are made by the crate `fencepost-bench`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use comfy_table::{CellAlignment, Table as TextTable, presets};
use fencepost::wal::WalStats;
use fencepost::{DeleteOptions, Store, Table, TableOptions, TableWriter, WriterConfig};
use futures::future::{join_all, try_join_all};
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::error::{CliError, Exit, Result};
use crate::{output, table};

/// Bytes of a row's values: an `int64` and a text of 100 letters.
const ROW_BYTES: f64 = 108.0;
/// PUTs that are timed before: the floor of an append.
const BARE_PUTS: usize = 20;
/// Clients of the closed loop.
const CLIENTS: usize = 64;
/// Rows of a batch of bulk writing, and batches that are under way at once.
const BATCH_ROWS: usize = 1_000;
const BATCHES_AT_ONCE: usize = 64;
/// Rates of arriving rows, per second, at which costs are measured.
const RATES: [u64; 2] = [100, 10_000];
/// How long rows wait for company where money matters more.
const LINGER: Duration = Duration::from_millis(100);

/// One line of the answer.
struct Line {
    what: String,
    rows: u64,
    seconds: f64,
    /// Of single appends.
    times: Vec<Duration>,
    puts: u64,
    bytes: u64,
}

impl Line {
    fn quantile(&self, quantile: f64) -> Option<f64> {
        let place = ((self.times.len() as f64 * quantile) as usize).min(self.times.len().checked_sub(1)?);
        self.times.get(place).map(|time| time.as_secs_f64() * 1e3)
    }

    fn per_second(&self) -> f64 {
        self.rows as f64 / self.seconds
    }

    fn dollars_per_billion(&self, put_price: f64) -> f64 {
        self.puts as f64 * put_price / 1000.0 / (self.rows.max(1) as f64) * 1e9
    }
}

/// Measures, says what was found, and deletes the table.
pub(crate) async fn run(args: BenchArgs) -> Result<()> {
    let url = format!("{}/fencepost-bench-{}", args.url.trim_end_matches('/'), uuid::Uuid::new_v4());
    let store = table::open_store(&url, &args.storage)?;
    let time = Duration::from_secs(u64::from(args.seconds));
    let floor = bare_put(&store).await?;
    let measured = tokio::select! {
        measured = measure(&store, time) => measured,
        _ = tokio::signal::ctrl_c() => Err(CliError::new(Exit::Interrupted, "stopped by Ctrl-C")),
    };
    let purge = DeleteOptions { purge: true, ..DeleteOptions::default() };
    let deleted = match Table::delete(store.clone(), &purge).await {
        // Stopped before there was one.
        Err(fencepost::Error::TableNotFound { .. }) => Ok(()),
        deleted => deleted.map(|_| ()),
    };
    let lines = match (measured, deleted) {
        (Ok(lines), Ok(())) => lines,
        (Ok(_), Err(left)) => return Err(CliError::from(left).context(format!("{url} could not be deleted"))),
        (Err(error), Ok(())) => return Err(error),
        (Err(error), Err(left)) => return Err(error.note(format_args!("{url} could not be deleted: {left}"))),
    };
    output::result(args.output.output, &text(&args, floor, &lines), &value(&args, floor, &lines))
}

async fn measure(store: &Store, time: Duration) -> Result<Vec<Line>> {
    let options = TableOptions { primary_key: vec!["id".into()], ..TableOptions::default() };
    let table = Table::create(store.clone(), schema(), options).await?;
    let mut lines = Vec::new();
    let writer = Arc::new(table.writer(WriterConfig::default()).await?);
    for clients in [1, CLIENTS] {
        let what = output::plural(clients as u64, "client");
        lines.push(closed_loop(&writer, format!("one row each, {what}"), clients, time).await?);
    }
    lines.push(bulk(&writer, time).await?);
    close(writer).await?;
    for linger in [Duration::ZERO, LINGER] {
        let mut config = WriterConfig::default();
        config.wal.linger = linger;
        let writer = Arc::new(table.writer(config).await?);
        for rate in RATES {
            let waits =
                if linger.is_zero() { "at once".to_owned() } else { format!("linger {} ms", linger.as_millis()) };
            let what = format!("{} rows/s arrive, {waits}", output::count(rate));
            lines.push(at_rate(&writer, what, rate, time).await?);
        }
        close(writer).await?;
    }
    Ok(lines)
}

async fn close(writer: Arc<TableWriter>) -> Result<()> {
    match Arc::into_inner(writer) {
        Some(writer) => Ok(writer.close().await?),
        None => Err(CliError::failure("a client has not given its writer back")),
    }
}

fn schema() -> SchemaRef {
    let fields = vec![Field::new("id", DataType::Int64, false), Field::new("text", DataType::Utf8, true)];
    Arc::new(Schema::new(fields))
}

fn rows(first: i64, count: usize) -> Result<RecordBatch> {
    let ids = first..first + count as i64;
    // Texts that differ, so that no store could keep them once.
    let text = |id: i64| format!("{:0>100}", (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(StringArray::from_iter_values(ids.map(text))),
    ];
    RecordBatch::try_new(schema(), columns).map_err(|e| CliError::failure(e.to_string()))
}

/// The median time of a conditional PUT of a kilobyte, in milliseconds.
async fn bare_put(store: &Store) -> Result<f64> {
    let failed = |e: object_store::Error| CliError::failure(format!("a PUT failed: {e}"));
    let mut times = Vec::with_capacity(BARE_PUTS);
    for n in 0..BARE_PUTS {
        let path = store.root().clone().join(format!("bare-{n}"));
        let started = Instant::now();
        let create = PutOptions::from(PutMode::Create);
        store.object_store().put_opts(&path, vec![0; 1024].into(), create).await.map_err(failed)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        store.object_store().delete(&path).await.map_err(failed)?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times.get(BARE_PUTS / 2).copied().unwrap_or_default())
}

fn log_of(writer: &TableWriter) -> (u64, u64) {
    let stats = writer.stats();
    let logs: Vec<&WalStats> = stats.values().map(|stats| &stats.wal).collect();
    (logs.iter().map(|wal| wal.io.count).sum(), logs.iter().map(|wal| wal.entry_bytes).sum())
}

/// Measures what `appends` does: how many rows it appended, and the time of each append.
async fn counted(
    writer: &TableWriter,
    what: String,
    appends: impl Future<Output = Result<(u64, Vec<Duration>)>>,
) -> Result<Line> {
    let (before, started) = (log_of(writer), Instant::now());
    let (rows, mut times) = appends.await?;
    let seconds = started.elapsed().as_secs_f64();
    let after = log_of(writer);
    times.sort_unstable();
    Ok(Line { what, rows, seconds, times, puts: after.0 - before.0, bytes: after.1 - before.1 })
}

/// Clients that append a row, wait until it is durable, and append the next.
async fn closed_loop(writer: &Arc<TableWriter>, what: String, clients: usize, time: Duration) -> Result<Line> {
    let end = Instant::now() + time;
    let client = |number: usize| async move {
        let mut times = Vec::new();
        while Instant::now() < end {
            let started = Instant::now();
            writer.put(rows((times.len() * clients + number) as i64, 1)?).await?;
            times.push(started.elapsed());
        }
        Ok::<_, CliError>(times)
    };
    counted(writer, what, async {
        let times = try_join_all((0..clients).map(client)).await?.concat();
        Ok((times.len() as u64, times))
    })
    .await
}

/// Large batches, many under way.
async fn bulk(writer: &Arc<TableWriter>, time: Duration) -> Result<Line> {
    let what = format!("batches of {} rows, {BATCHES_AT_ONCE} under way", output::count(BATCH_ROWS as u64));
    let batches =
        (0..BATCHES_AT_ONCE).map(|n| rows((n * BATCH_ROWS) as i64, BATCH_ROWS)).collect::<Result<Vec<_>>>()?;
    let end = Instant::now() + time;
    let producer = |batch: RecordBatch| async move {
        let mut put = 0;
        while Instant::now() < end {
            writer.put(batch.clone()).await?;
            put += BATCH_ROWS as u64;
        }
        Ok::<_, CliError>(put)
    };
    counted(writer, what, async {
        Ok((try_join_all(batches.into_iter().map(producer)).await?.into_iter().sum(), Vec::new()))
    })
    .await
}

/// Rows that come one by one, whether or not earlier ones are durable.
async fn at_rate(writer: &Arc<TableWriter>, what: String, rate: u64, time: Duration) -> Result<Line> {
    let count = (time.as_secs_f64() * rate as f64) as u64;
    let arrive = async {
        let started = Instant::now();
        let mut running = Vec::with_capacity(count as usize);
        for n in 0..count {
            let due = started + Duration::from_secs_f64(n as f64 / rate as f64);
            if due > Instant::now() {
                tokio::time::sleep_until(due.into()).await;
            }
            let (writer, row) = (Arc::clone(writer), rows(n as i64, 1)?);
            running.push(tokio::spawn(async move {
                let started = Instant::now();
                writer.put(row).await.map(|_| started.elapsed())
            }));
        }
        let ended = |e: tokio::task::JoinError| CliError::failure(format!("a client ended: {e}"));
        let times = join_all(running).await.into_iter().map(|done| Ok(done.map_err(ended)??));
        Ok((count, times.collect::<Result<Vec<_>>>()?))
    };
    counted(writer, what, arrive).await
}

fn text(args: &BenchArgs, floor: f64, lines: &[Line]) -> String {
    let mut table = TextTable::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header([
        "appends",
        "p50 ms",
        "p99 ms",
        "p50 / PUT",
        "rows/s",
        "MB/s",
        "rows/PUT",
        "bytes/row",
        "$ per billion rows",
    ]);
    for line in lines {
        let p50 = line.quantile(0.5);
        let time = |time: Option<f64>| time.map_or_else(|| "—".to_owned(), |ms| format!("{ms:.1}"));
        table.add_row([
            line.what.clone(),
            time(p50),
            time(line.quantile(0.99)),
            p50.map_or_else(|| "—".to_owned(), |p50| format!("{:.2}", p50 / floor)),
            output::count(line.per_second().round() as u64),
            format!("{:.1}", line.per_second() * ROW_BYTES / 1e6),
            format!("{:.1}", line.rows as f64 / (line.puts.max(1)) as f64),
            format!("{:.0}", line.bytes as f64 / (line.rows.max(1)) as f64),
            output::count(line.dollars_per_billion(args.put_price).round() as u64),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "a conditional PUT of 1 KiB takes {floor:.1} ms there (median); rows of {ROW_BYTES} bytes, {} s each:\n\n{}\n\n\
         dollars are those of the log's PUTs, at {} per 1,000; what flushes and merges send comes on top",
        args.seconds,
        table.trim_fmt(),
        args.put_price,
    )
}

fn value(args: &BenchArgs, floor: f64, lines: &[Line]) -> Value {
    let line = |line: &Line| {
        json!({
            "appends": line.what,
            "p50_ms": line.quantile(0.5),
            "p99_ms": line.quantile(0.99),
            "rows": line.rows,
            "rows_per_second": line.per_second(),
            "puts": line.puts,
            "log_bytes": line.bytes,
            "dollars_per_billion_rows": line.dollars_per_billion(args.put_price),
        })
    };
    json!({
        "url": args.url,
        "put_p50_ms": floor,
        "put_price_per_1000": args.put_price,
        "measured": lines.iter().map(line).collect::<Vec<_>>(),
    })
}
