//! `fencepost clone` and `fencepost delete`, and the flights cloned while they come in.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use arrow_array::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use datafusion::prelude::SessionContext;
use lance::datafusion::LanceTableProvider;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;

use crate::flights::{KEY, Truth, sample};
use crate::python;
use crate::support::{Place, command, fencepost, query};

#[test]
fn a_table_is_forked_and_both_go_on() {
    let place = Place::new();
    let (table, clone) = (place.table(), place.path("c").display().to_string());
    let (logs, its_logs) = (place.path("logs").display().to_string(), place.path("its logs").display().to_string());
    let first = place.file("a.csv", "id,v\n1,a\n2,b\n");
    let second = place.file("b.csv", "id,v\n2,c\n3,d\n");
    let create = ["create", &table, "--columns", "id:int64,v:string", "--primary-key", "id", "--wal-store", &logs];
    fencepost(create).ok();
    fencepost(["ingest", &table, &first]).ok();
    let made =
        fencepost(["checkpoint", "create", &table, "--scope", "all", "--name", "then", "--output", "json"]).json();
    fencepost(["ingest", &table, &second]).ok();
    std::fs::remove_dir_all(place.path("logs")).unwrap();

    let args = ["clone", &table, &clone, "--checkpoint", "then", "--wal-store", &its_logs, "--output", "json"];
    let cloned = fencepost(args).json();
    assert_eq!((&cloned["checkpoint"], &cloned["shards"], &cloned["log_entries"]), (&made["id"], &json!(1), &json!(0)));
    let all = "select id, v from t order by id";
    let then = json!([{ "id": 1, "v": "a" }, { "id": 2, "v": "b" }]);
    assert_eq!(query(&clone, all), then);
    fencepost(["ingest", &clone, &place.file("c.csv", "id,v\n7,g\n")]).ok();
    fencepost(["merge", &clone]).ok();
    assert_eq!(query(&clone, "select count(*) as n from t"), json!([{ "n": 3 }]));
    assert_eq!(query(&table, "select count(*) as n from t"), json!([{ "n": 3 }]));
    assert!(place.path("its logs").join("_fencepost_wal_store").is_file());
    for table in [&table, &clone] {
        fencepost(["verify", table]).ok();
    }

    let inspected = [&table, &clone].map(|table| fencepost(["inspect", table]).json());
    assert_eq!(inspected[0]["shards"][0]["pinned_by"], json!([format!("file://{clone}")]));
    assert_eq!((&inspected[0]["shards"][0]["checkpoints"], &inspected[0]["cloned_from"]), (&json!(1), &json!(null)));
    assert_eq!(inspected[1]["cloned_from"], json!(format!("file://{table}")));
    let text = fencepost(["inspect", &clone, "--output", "table"]).ok();
    assert!(text.contains(&format!("a clone of file://{table}")), "{text}");

    assert!(fencepost(args).fails(3).contains("exists already"));
    assert!(fencepost(["clone", &table, &table]).fails(2).contains("another place"));
    fencepost(["checkpoint", "delete", &table, "then"]).ok();
    let said = fencepost(["clone", &table, &place.path("d").display().to_string(), "--checkpoint", "then"]).fails(3);
    assert!(said.contains("`then`"), "{said}");
    let said = fencepost(["delete", &table]).fails(1);
    assert!(said.contains(&format!("the clone at file://{clone}")), "{said}");
    let deleted = fencepost(["delete", &clone, "--output", "json"]).json();
    assert!(deleted["objects"].as_u64().unwrap() > 5, "{deleted}");
    assert!(fencepost(["query", &clone, "select 1"]).fails(3).contains("it was deleted"));
    fencepost(["delete", &table]).ok();
    assert!(place.path("t").exists(), "its fences");
    fencepost(["delete", &table, "--purge"]).ok();
    assert!(!place.path("t").exists());
    assert!(fencepost(["delete", &table]).fails(3).contains("no Fencepost table"));
}

/// Four shards are cloned while the ingest runs: the clone equals the checkpoint's moment, the parent everything.
fn clone_while_flights_come(file: &Path, batch_rows: usize) {
    let truth = Truth::read(file);
    let place = Place::new();
    let (table, clone) = (place.table(), place.path("c").display().to_string());
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap();
    let (schema, reader) = (reader.schema().clone(), reader.with_batch_size(batch_rows).build().unwrap());
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let total: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    let (log, rows) = (place.path("ack.log").display().to_string(), batch_rows.to_string());
    let like = file.display().to_string();
    fencepost(["create", &table, "--like", &like, "--primary-key", KEY, "--shard-by", "bucket(flight,4)"]).ok();
    let args = ["ingest", &table, "-", "--format", "arrow", "--batch-rows", &rows, "--ack-log", &log];
    let mut ingest = command(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();

    // All but the last batch come as fast as they are taken; the last one when the clone is done.
    let mut stdin = ingest.stdin.take().unwrap();
    let (done, is_done) = mpsc::channel();
    let feeder = std::thread::spawn(move || {
        let mut writer = StreamWriter::try_new(&mut stdin, &schema).unwrap();
        let (last, others) = batches.split_last().unwrap();
        others.iter().for_each(|batch| writer.write(batch).unwrap());
        writer.get_mut().flush().unwrap();
        is_done.recv().unwrap();
        writer.write(last).unwrap();
        writer.finish().unwrap();
    });
    let acknowledged = || -> u64 {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().last().and_then(|l| l.split(' ').nth(1)).map_or(0, |n| n.parse().unwrap())
    };
    let started = Instant::now();
    while acknowledged() < total / 3 {
        assert!(started.elapsed() < Duration::from_secs(300), "no progress");
        assert!(ingest.try_wait().unwrap().is_none(), "the ingest ended");
        std::thread::sleep(Duration::from_millis(2));
    }
    let before = acknowledged();
    let made = fencepost(["checkpoint", "create", &table, "--output", "json"]).json();
    let id = made["id"].as_str().unwrap().to_owned();
    let cloned = fencepost(["clone", &table, &clone, "--checkpoint", &id, "--output", "json"]).json();
    assert_eq!((&cloned["shards"], ingest.try_wait().unwrap().is_none()), (&json!(4), true), "{cloned}");
    done.send(()).unwrap();
    feeder.join().unwrap();
    assert!(ingest.wait().unwrap().success());
    fencepost(["merge", &table]).ok();
    fencepost(["gc", &table, "--min-age", "0"]).ok();

    let n = query(&clone, "select count(*) as n from t")[0]["n"].as_u64().unwrap();
    println!("{before} rows were acknowledged, {n} are in the clone, of {total}; {cloned}");
    assert!(before <= n && n < total, "{before} were acknowledged before, {n} are there, of {total}");
    for sql in truth.questions() {
        let then = fencepost(["query", &table, &sql, "--at", &id, "--output", "json"]).json();
        assert_eq!(query(&clone, &sql), then, "{sql}");
        assert_eq!(query(&table, &sql), truth.query(&sql), "{sql}");
    }
    // And in the clone's own files, once it is flushed and merged: every row is one of the file's, in every value.
    fencepost(["flush", &clone]).ok();
    fencepost(["merge", &clone]).ok();
    fencepost(["checkpoint", "delete", &table, &id]).ok();
    fencepost(["gc", &table, "--min-age", "0"]).ok();
    truth.runtime.block_on(async {
        let dataset = lance::Dataset::open(&clone).await.unwrap();
        assert_eq!(dataset.count_rows(None).await.unwrap() as u64, n);
        let context: &SessionContext = &truth.context;
        context.register_table("c", Arc::new(LanceTableProvider::new(Arc::new(dataset), false, false))).unwrap();
    });
    let others = truth.query("select count(*) as n from (select * from c except select * from t) as others");
    assert_eq!(others, json!([{ "n": 0 }]));
    for table in [&table, &clone] {
        fencepost(["verify", table]).ok();
    }
}

#[test]
fn a_sample_of_flights_is_cloned_while_it_comes() {
    clone_while_flights_come(&sample(), 50);
}

#[test]
fn all_flights_are_cloned_while_they_come() {
    let Some(folder) = std::env::var_os("FENCEPOST_TEST_DATA") else {
        python::note(
            "all_flights_are_cloned_while_they_come was skipped: FENCEPOST_TEST_DATA names no folder with flights.parquet",
        );
        return;
    };
    clone_while_flights_come(&PathBuf::from(folder).join("flights.parquet"), 2048);
}
