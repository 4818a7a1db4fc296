//! Rows go in through every format and come out of every verb.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use serde_json::json;

use crate::support::{Place, fencepost, query, with_stdin};

const CSV: &str = "id,name\n1,a\n2,\n3,\"\"\n";

fn batch() -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("")]));
    RecordBatch::try_from_iter_with_nullable([("id", ids, true), ("name", names, true)]).unwrap()
}

fn parquet() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch().schema(), None).unwrap();
    writer.write(&batch()).unwrap();
    writer.close().unwrap();
    bytes
}

fn arrow_stream() -> Vec<u8> {
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &batch().schema()).unwrap();
    writer.write(&batch()).unwrap();
    writer.into_inner().unwrap()
}

fn formats() -> Vec<(&'static str, Vec<u8>)> {
    let ndjson = "{\"id\":1,\"name\":\"a\"}\n{\"id\":2}\n{\"id\":3,\"name\":\"\"}\n";
    vec![
        ("csv", CSV.into()),
        ("tsv", CSV.replace(',', "\t").into()),
        ("ndjson", ndjson.into()),
        ("parquet", parquet()),
        ("arrow", arrow_stream()),
    ]
}

#[test]
fn every_format_goes_in_from_files_and_from_stdin() {
    let expected = json!([{"id": 1, "name": "a"}, {"id": 2, "name": null}, {"id": 3, "name": ""}]);
    for (format, bytes) in formats() {
        let place = Place::new();
        let table = place.table();
        let file = place.file(&format!("rows.{format}"), &bytes);
        fencepost(["ingest", &table, &file, "--like", &file, "--primary-key", "id"]).ok();
        assert_eq!(place.query("select id, name from t order by id"), expected, "{format} file");

        let place = Place::new();
        place.create("id:int64,name:string", "id");
        with_stdin(["ingest", &place.table(), "-", "--format", format], &bytes).ok();
        assert_eq!(place.query("select id, name from t order by id"), expected, "{format} stdin");
    }
}

#[test]
fn a_table_lives_through_all_verbs() {
    let place = Place::new();
    let table = place.table();
    let created = fencepost([
        "create",
        &table,
        "--columns",
        "id:int64,name:string,v:float32[2]",
        "--primary-key",
        "id",
        "--shard-by",
        "bucket(id,3)",
        "--output",
        "json",
    ])
    .json();
    assert_eq!(created["sharding"], "bucket(id,3)");
    assert_eq!(created["shards"].as_array().unwrap().len(), 3);
    assert_eq!(created["columns"][2], "v:float32[2]");

    let first = place.file("1.csv", "id,name,v\n1,a,\"[1,2]\"\n2,b,\n3,c,\"[5,6]\"\n");
    let second = place.file("2.ndjson", "{\"id\":2,\"name\":\"B\",\"v\":[3,4]}\n{\"id\":4,\"name\":\"d\"}\n");
    let report = fencepost(["ingest", &table, &first, &second, "--output", "json"]).json();
    assert_eq!(report["rows"], 5);

    let expected = json!([
        {"id": 1, "name": "a", "v": [1.0, 2.0]}, {"id": 2, "name": "B", "v": [3.0, 4.0]},
        {"id": 3, "name": "c", "v": [5.0, 6.0]}, {"id": 4, "name": "d", "v": null}
    ]);
    let all = "select * from t order by id";
    assert_eq!(place.query(all), expected);
    // A filter must not bring back the overwritten row.
    assert_eq!(place.query("select * from t where name = 'b'"), json!([]));

    let before = fencepost(["inspect", &table]).json();
    assert_eq!(before["shards"].as_array().unwrap().len(), 3);
    for shard in before["shards"].as_array().unwrap() {
        assert!(shard["value"]["bucket"].is_u64(), "{shard}");
        for field in [
            "shard_id",
            "unadopted",
            "writer_epoch",
            "replay_after",
            "tail",
            "current_generation",
            "sstables",
            "fences",
        ] {
            assert!(!shard[field].is_null(), "{field}");
        }
    }
    for field in ["version", "rows", "merged"] {
        assert!(!before["base"][field].is_null(), "{field}");
    }
    assert!(fencepost(["inspect", &table, "--output", "table"]).ok().contains("base table"));

    fencepost(["flush", &table]).ok();
    assert_eq!(place.query(all), expected);
    let after = fencepost(["inspect", &table]).json();
    for (before, after) in before["shards"].as_array().unwrap().iter().zip(after["shards"].as_array().unwrap()) {
        assert_eq!(after["replay_after"], after["tail"], "everything is in SSTables");
        assert!(after["writer_epoch"].as_u64() > before["writer_epoch"].as_u64(), "a flush takes the shard over");
    }
}

#[test]
fn an_append_only_table_keeps_every_row() {
    let place = Place::new();
    place.create("id:int64,name:string", "");
    let file = place.file("rows.csv", CSV);
    fencepost(["ingest", &place.table(), &file, &file]).ok();
    assert_eq!(place.query("select count(*) as n, count(name) as names from t"), json!([{"n": 6, "names": 4}]));
}

#[test]
fn ingesting_again_overwrites_rows_of_the_same_key() {
    let place = Place::new();
    let table = place.table();
    let file = place.file("rows.csv", CSV);
    let like = ["--like", &file, "--primary-key", "id"];
    for _ in 0..2 {
        fencepost(["ingest", &table, &file].into_iter().chain(like)).ok();
    }
    assert_eq!(place.query("select count(*) as n from t"), json!([{"n": 3}]));
}

#[test]
fn the_last_of_many_versions_of_a_row_wins() {
    let place = Place::new();
    place.create("id:int64,v:int64", "id");
    let rows: String = (0..2_000).map(|n| format!("{},{n}\n", n % 7)).collect();
    let file = place.file("rows.csv", format!("id,v\n{rows}"));
    // Many small appends in flight at once must still keep the order of the file.
    fencepost(["ingest", &place.table(), &file, "--batch-rows", "13"]).ok();
    let last = place.query("select min(v) as low, max(v) as high, count(*) as n from t");
    assert_eq!(last, json!([{"low": 1993, "high": 1999, "n": 7}]));
}

#[test]
fn the_log_is_told_entry_by_entry() {
    let place = Place::new();
    let table = place.table();
    place.create("id:int64,name:string", "id");
    assert!(fencepost(["tail", &table]).ok().contains("position"));
    // A writer that is fenced, not closed, leaves its rows in the log.
    #[cfg(unix)]
    {
        let crashed = crate::crash::Crashed::new(1_000);
        let said = fencepost(["tail", &crashed.table, "--output", "json"]).ok();
        let entries: Vec<serde_json::Value> = said.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let rows: u64 = entries.iter().map(|e| e["rows"].as_u64().unwrap()).sum();
        assert!(rows >= 1_000, "{said}");
        assert!(entries.iter().any(|e| e["kind"] == "sentinel"), "{said}");
        for field in ["shard", "position", "epoch", "rows", "bytes"] {
            assert!(entries.iter().all(|e| !e[field].is_null()), "{field}");
        }
    }
}

#[test]
fn nothing_to_ingest_is_no_failure_and_claims_nothing() {
    let place = Place::new();
    place.create("id:int64", "id");
    let before = place.objects();
    let file = place.file("rows.csv", "id\n");
    assert!(fencepost(["ingest", &place.table(), &file]).ok().contains("0 rows"));
    assert_eq!(place.objects(), before);
}

#[test]
fn acknowledgements_are_logged_in_order() {
    let place = Place::new();
    place.create("id:int64", "id");
    let rows: String = (0..100).map(|n| format!("{n}\n")).collect();
    let file = place.file("rows.csv", format!("id\n{rows}"));
    let log = place.path("ack.log").display().to_string();
    fencepost(["ingest", &place.table(), &file, "--batch-rows", "40", "--ack-log", &log]).ok();
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "1 40\n2 80\n3 100\n");
}

#[test]
fn queries_print_tables_for_people() {
    let place = Place::new();
    let file = place.file("rows.csv", CSV);
    fencepost(["ingest", &place.table(), &file, "--like", &file]).ok();
    let text = fencepost(["query", &place.table(), "select id, name from t order by id"]).ok();
    assert!(text.contains("NULL") && text.ends_with("(3 rows)\n"), "{text}");
    assert_eq!(query(&place.table(), "select id from t where id > 3"), json!([]));
}

#[test]
fn each_region_gets_a_shard() {
    let place = Place::new();
    let table = place.table();
    let create = ["create", &table, "--columns", "region:string,id:int64,v:int64", "--shard-by", "identity(region)"];
    let created = fencepost(create.into_iter().chain(["--primary-key", "region,id", "--output", "json"])).json();
    assert_eq!((&created["sharding"], &created["shards"]), (&json!("identity(region)"), &json!([])));
    let file = place.file("rows.csv", "region,id,v\neu,1,1\nus,1,1\neu,2,2\neu,1,3\n");
    fencepost(["ingest", &table, &file]).ok();
    let asia = place.file("more.csv", "region,id,v\nasia,1,1\n");
    fencepost(["ingest", &table, &asia, "--like", &asia, "--shard-by", "identity(region)"]).ok();
    let inspected = fencepost(["inspect", &table]).json();
    let shards = inspected["shards"].as_array().unwrap();
    let values: Vec<_> = shards.iter().map(|shard| &shard["value"]["value"]).collect();
    assert_eq!(values, ["asia", "eu", "us"]);
    assert!(shards.iter().all(|shard| shard["unadopted"] == false));
    assert!(fencepost(["inspect", &table, "--output", "table"]).ok().contains("(value `eu`)"));
    assert!(fencepost(["tail", &table]).ok().contains("position"));
    fencepost(["flush", &table]).ok();
    let expected = json!([{"region": "eu", "id": 1, "v": 3}, {"region": "eu", "id": 2, "v": 2}]);
    assert_eq!(place.query("select * from t where region = 'eu' order by id"), expected);
    assert_eq!(place.query("select count(*) as n from t"), json!([{"n": 4}]));
}

#[test]
fn adopting_a_table_of_ones_own_changes_nothing() {
    let place = Place::new();
    place.create("id:int64,name:string", "id");
    let before = place.objects();
    let adopted = fencepost(["adopt", &place.table(), "--output", "json"]).json();
    assert_eq!(adopted["table_id_given"], false);
    let shards = adopted["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 1);
    assert_eq!((&shards[0]["adopted"], &shards[0]["fences_added"]), (&json!(false), &json!(0)));
    assert_eq!(shards[0]["value"], "all");
    assert!(fencepost(["adopt", &place.table()]).ok().contains("nothing to adopt"));
    assert_eq!(place.objects(), before);
}
