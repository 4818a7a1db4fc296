//! `--wal-store`: logs in a folder of their own, on files.

use serde_json::json;

use crate::support::{Place, fencepost};

#[test]
fn logs_are_where_they_were_sent_and_a_lost_store_is_named() {
    let place = Place::new();
    let (table, logs) = (place.table(), place.path("logs").display().to_string());
    let first = place.file("a.csv", "id,v\n1,a\n2,b\n");
    let second = place.file("b.csv", "id,v\n3,c\n");
    let create = ["create", &table, "--columns", "id:int64,v:string", "--primary-key", "id", "--wal-store", &logs];
    fencepost(create).ok();
    fencepost(["ingest", &table, &first]).ok();
    let shard = fencepost(["inspect", &table]).json()["shards"][0].clone();
    assert_eq!(shard["wal_store"], json!(format!("file://{logs}")));
    assert_eq!(shard["wal_store_may_be_wiped"], json!(true));
    let entries = place.path("logs").join("_mem_wal").join(shard["shard_id"].as_str().unwrap()).join("wal");
    assert!(std::fs::read_dir(&entries).unwrap().count() > 0);
    assert!(place.path("logs").join("_fencepost_wal_store").is_file());

    // `ingest` closes cleanly, and its rows are flushed: nothing in the store is needed.
    std::fs::remove_dir_all(place.path("logs")).unwrap();
    assert_eq!(place.query("select count(*) as n from t"), json!([{ "n": 2 }]));
    fencepost(["ingest", &table, &second]).ok();
    assert_eq!(place.query("select count(*) as n from t"), json!([{ "n": 3 }]));
    fencepost(["verify", &table]).ok();

    // Another place: the identity counts, not the name.
    let moved = place.path("moved").display().to_string();
    std::fs::rename(place.path("logs"), place.path("moved")).unwrap();
    fencepost(["ingest", &table, &first, "--wal-store", &moved]).ok();
    assert_eq!(place.query("select count(*) as n from t"), json!([{ "n": 3 }]));
}

#[test]
fn a_lost_store_is_given_up_on_demand_only() {
    let place = Place::new();
    let (table, logs) = (place.table(), place.path("logs").display().to_string());
    let rows = place.file("a.csv", "id,v\n1,a\n");
    fencepost(["create", &table, "--columns", "id:int64,v:string", "--primary-key", "id"]).ok();
    // The first sentinel is in the table's own store: a fence.
    fencepost(["ingest", &table, &rows]).ok();
    fencepost(["ingest", &table, &rows, "--wal-store", &logs]).ok();
    let shard = fencepost(["inspect", &table]).json()["shards"][0].clone();
    assert_eq!(shard["wal_store"], json!(format!("file://{logs}")));
    assert_eq!(shard["wal_store_may_be_wiped"], json!(false));
    std::fs::remove_dir_all(place.path("logs")).unwrap();
    let stderr = fencepost(["ingest", &table, &rows]).fails(6);
    assert!(stderr.contains("--abandon-wal-store") && stderr.contains(&logs), "{stderr}");
    fencepost(["ingest", &table, &rows, "--abandon-wal-store"]).ok();
    assert_eq!(place.query("select count(*) as n from t"), json!([{ "n": 1 }]));
    let stderr = fencepost(["inspect", &table, "--wal-storage-option", "a=b"]).fails(2);
    assert!(stderr.contains("--wal-store"), "{stderr}");
}
