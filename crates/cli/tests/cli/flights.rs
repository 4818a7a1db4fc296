//! Real rows through the command: all flights of 2013 out of New York, with a crash in the middle, compared with the
//! Parquet file at every stage from the log to the base table, there also by plain Lance in Rust and Python. A sample is
//! in the repository; the whole file is found through `FENCEPOST_TEST_DATA`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use lance::datafusion::LanceTableProvider;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::python;
use crate::support::{Place, command, fencepost, query};

pub(crate) const KEY: &str = "time_hour,carrier,flight,origin";

/// The rows of the Parquet file, as DataFusion sees them.
pub(crate) struct Truth {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) context: SessionContext,
    columns: Vec<String>,
}

impl Truth {
    pub(crate) fn read(file: &Path) -> Self {
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap();
        let schema = reader.schema().clone();
        let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
        let columns = schema.fields().iter().map(|f| f.name().clone()).collect();
        let context = SessionContext::new();
        let table = MemTable::try_new(schema, vec![batches]).unwrap();
        context.register_table("t", Arc::new(table)).unwrap();
        Self { runtime: tokio::runtime::Runtime::new().unwrap(), context, columns }
    }

    pub(crate) fn query(&self, sql: &str) -> Value {
        ask(&self.runtime, &self.context, sql)
    }

    /// Totals per carrier and the nulls of every column.
    pub(crate) fn questions(&self) -> Vec<String> {
        let nulls: Vec<String> = self.columns.iter().map(|c| format!("count(*) - count({c}) as {c}_nulls")).collect();
        vec![
            "select count(*) as n from t".to_string(),
            "select carrier, count(*) as n, sum(distance) as distance, sum(air_time) as air_time, \
             sum(dep_delay) as dep_delay, sum(arr_delay) as arr_delay, min(time_hour) as first, \
             max(time_hour) as last, count(distinct tailnum) as planes from t group by carrier order by carrier"
                .to_string(),
            format!("select {} from t", nulls.join(", ")),
            // A filter on a column outside of the key.
            "select origin, count(*) as n from t where arr_delay > 60 or tailnum is null group by origin order by origin"
                .to_string(),
        ]
    }
}

fn ask(runtime: &tokio::runtime::Runtime, context: &SessionContext, sql: &str) -> Value {
    let frame = runtime.block_on(context.sql(sql)).unwrap();
    let batches = runtime.block_on(frame.collect()).unwrap();
    let options = arrow_json::WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = options.build::<_, arrow_json::writer::JsonArray>(Vec::new());
    writer.write_batches(&batches.iter().collect::<Vec<_>>()).unwrap();
    writer.finish().unwrap();
    serde_json::from_slice(&writer.into_inner()).unwrap()
}

pub(crate) fn sample() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/flights-10k.parquet")
}

/// Starts the ingest and kills it when `rows` rows are acknowledged. Returns how many were when it was dead. Killed
/// at the last row it may have come to flush some of them, so then it may also have ended.
fn ingest_and_kill(ingest: &[&str], log: &Path, rows: u64) -> u64 {
    let log_arg = log.display().to_string();
    let mut child = command(ingest).args(["--ack-log", &log_arg]).spawn().unwrap();
    let acknowledged = || -> u64 {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().last().and_then(|l| l.split(' ').nth(1)).map_or(0, |n| n.parse().unwrap())
    };
    let started = Instant::now();
    while acknowledged() < rows {
        assert!(started.elapsed() < Duration::from_secs(300), "no progress");
        let ended = child.try_wait().unwrap().is_some();
        assert!(!ended || acknowledged() >= rows, "the ingest ended before it was killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    acknowledged()
}

fn crash_and_compare(file: &Path, batch_rows: &str, kill_after: u64) {
    let truth = Truth::read(file);
    let place = Place::new();
    let table = place.table();
    let path = file.display().to_string();
    let ingest = [
        "ingest",
        &table,
        &path,
        "--like",
        &path,
        "--primary-key",
        KEY,
        "--shard-by",
        "bucket(flight,4)",
        "--batch-rows",
        batch_rows,
    ];
    let acknowledged = ingest_and_kill(&ingest, &place.path("ack.log"), kill_after);
    let there = query(&table, "select count(*) as n from t")[0]["n"].as_u64().unwrap();
    assert!(there >= acknowledged, "{acknowledged} rows were acknowledged, {there} are there");
    let total = truth.query("select count(*) as n from t")[0]["n"].as_u64().unwrap();
    assert!(there < total, "the first ingest was killed too late to leave work");

    // The same rows again: the key makes it harmless. Killed at the last one, so that the log still holds most.
    let started = Instant::now();
    ingest_and_kill(&ingest, &place.path("again.log"), total);
    println!("{acknowledged} rows before the crash, {there} found after it; the whole file in {:?}", started.elapsed());

    let compare = |when: &str| {
        for sql in truth.questions() {
            assert_eq!(query(&table, &sql), truth.query(&sql), "{when}: {sql}");
        }
    };
    compare("before flush");
    fencepost(["flush", &table]).ok();
    compare("after flush");
    let merged = fencepost(["merge", &table, "--output", "json"]).json();
    assert_eq!(merged["base"]["rows"], total, "{merged}");
    compare("after merge");
    compare_with_lance(&truth, &table, total);
    compare_in_python(&table, file, total);

    // Once more over the merged rows: from the log, from SSTables, merged.
    fencepost(ingest).ok();
    compare("ingested over the merged rows");
    fencepost(["flush", &table]).ok();
    compare("flushed over the merged rows");
    let merged = fencepost(["merge", &table, "--output", "json"]).json();
    assert_eq!((&merged["base"]["rows"], &merged["rows"]), (&total.into(), &total.into()), "{merged}");
    compare("merged over the merged rows");
    compare_with_lance(&truth, &table, total);
    compare_in_python(&table, file, total);
}

/// The same questions to the base table, opened by Lance alone.
fn compare_with_lance(truth: &Truth, table: &str, total: u64) {
    let context = SessionContext::new();
    truth.runtime.block_on(async {
        let dataset = lance::Dataset::open(table).await.unwrap();
        assert_eq!(dataset.count_rows(None).await.unwrap() as u64, total);
        context.register_table("t", Arc::new(LanceTableProvider::new(Arc::new(dataset), false, false))).unwrap();
    });
    for sql in truth.questions() {
        assert_eq!(ask(&truth.runtime, &context, &sql), truth.query(&sql), "plain Lance: {sql}");
    }
}

/// The base table, opened by Lance's Python package, equals the file in every value.
fn compare_in_python(table: &str, file: &Path, total: u64) {
    if let Some(said) = python::run("same_rows.py", &[table, &file.display().to_string(), KEY]) {
        assert_eq!(said["rows"], total, "{said}");
    }
}

#[test]
fn a_sample_of_flights_survives_a_crash() {
    crash_and_compare(&sample(), "100", 3_000);
}

#[test]
fn all_flights_survive_a_crash() {
    let Some(folder) = std::env::var_os("FENCEPOST_TEST_DATA") else {
        python::note(
            "all_flights_survive_a_crash was skipped: FENCEPOST_TEST_DATA names no folder with flights.parquet",
        );
        return;
    };
    let file = PathBuf::from(folder).join("flights.parquet");
    assert!(file.is_file(), "FENCEPOST_TEST_DATA is set, but {} is not there", file.display());
    crash_and_compare(&file, "4096", 100_000);
}
