//! Settings that a table keeps for its writers are those of the command, too.

use std::collections::HashMap;

use fencepost::{Store, Table};
use serde_json::json;

use crate::support::{Place, fencepost};

#[tokio::test(flavor = "multi_thread")]
async fn commands_write_with_the_tables_own_settings_and_durably() {
    let place = Place::new();
    let (table, file) = (place.table(), place.file("a.csv", "id\n1\n2\n3\n4\n5\n"));
    fencepost(["create", &table, "--columns", "id:int64", "--primary-key", "id"]).ok();
    let opened = Table::open(Store::open(&table, &HashMap::new()).unwrap()).await.unwrap();
    let mut config = opened.writer_config().await.unwrap();
    config.memtable.as_mut().unwrap().max_rows = 2;
    config.durable = false;
    opened.set_writer_defaults(&config).await.unwrap();
    fencepost(["ingest", &table, &file, "--batch-rows", "1"]).ok();
    let sstables = &fencepost(["inspect", &table]).json()["shards"][0]["sstables"];
    assert!(sstables.as_array().unwrap().len() >= 2, "{sstables}");
    assert_eq!(place.query("select count(*) as n from t"), json!([{ "n": 5 }]));

    // One without a MemTable can be flushed and split all the same.
    config.memtable = None;
    opened.set_writer_defaults(&config).await.unwrap();
    fencepost(["ingest", &table, &file]).ok();
    fencepost(["flush", &table]).ok();
    assert_eq!(place.query("select count(*) as n from t"), json!([{ "n": 5 }]));
}
