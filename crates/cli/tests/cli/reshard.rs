//! `fencepost split` and `fencepost join`.

use serde_json::json;

use crate::support::{Place, fencepost};

#[test]
fn a_table_gets_more_buckets_and_fewer_again() {
    let place = Place::new();
    let table = place.table();
    let rows: String = (0..200).map(|id| format!("{id},r{id}\n")).collect();
    let file = place.file("a.csv", format!("id,v\n{rows}"));
    let create =
        ["create", &table, "--columns", "id:int64,v:string", "--primary-key", "id", "--shard-by", "bucket(id,2)"];
    fencepost(create).ok();
    fencepost(["ingest", &table, &file]).ok();
    let all = json!([{ "n": 200, "first": "r0", "last": "r99" }]);
    let sql = "select count(*) as n, min(v) as first, max(v) as last from t";
    let split = fencepost(["split", &table, "--by", "4", "--output", "json"]).json();
    assert_eq!((&split["from"], &split["to"], &split["shared_sstables"]), (&json!(2), &json!(8), &json!(8)));
    assert_eq!(place.query(sql), all);
    assert_eq!(fencepost(["inspect", &table]).json()["shards"].as_array().unwrap().len(), 8);
    fencepost(["ingest", &table, &file]).ok();
    assert_eq!(place.query(sql), all);
    let text = fencepost(["join", &table]).ok();
    assert!(text.starts_with("4 buckets instead of 8"), "{text}");
    fencepost(["merge", &table]).ok();
    fencepost(["gc", &table, "--min-age", "0"]).ok();
    assert_eq!(place.query(sql), all);
    fencepost(["verify", &table]).ok();

    assert!(fencepost(["join", &table, "--by", "8"]).fails(2).contains("4 buckets cannot be joined 8 at a time"));
    assert!(fencepost(["split", &table, "--by", "3"]).fails(2).contains("power of two"));
    let aborted = fencepost(["split", &table, "--abort", "--output", "json"]).json();
    assert_eq!(aborted, json!({ "given_up": false }));
    let other = place.path("u").display().to_string();
    fencepost(["create", &other, "--columns", "id:int64"]).ok();
    assert!(fencepost(["split", &other]).fails(2).contains("sharded `unsharded`"));
}
