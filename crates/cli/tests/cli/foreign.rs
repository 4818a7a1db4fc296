//! A table that plain Lance made, through the command.

use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use fencepost::ShardId;
use lance::dataset::InsertBuilder;
use lance::dataset::mem_wal::{DatasetMemWalExt, ShardWriterConfig};
use serde_json::json;

use crate::support::{Place, fencepost};

/// One shard, which its writer chose, with three rows in its log.
async fn made_by_lance(table: &str) -> ShardId {
    let rows = RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as _)]).unwrap();
    let empty = RecordBatch::new_empty(rows.schema());
    let mut dataset = InsertBuilder::new(table).execute(vec![empty]).await.unwrap();
    dataset.initialize_mem_wal().execute().await.unwrap();
    let shard = ShardId::new_random();
    let writer = dataset.mem_wal_writer(*shard.as_uuid(), ShardWriterConfig::default()).await.unwrap();
    writer.put(vec![rows]).await.unwrap();
    shard
}

#[test]
fn a_table_that_lance_made_is_read_adopted_and_flushed() {
    let place = Place::new();
    let table = place.table();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let shard = runtime.block_on(made_by_lance(&table)).to_string();
    // Its process is gone.
    drop(runtime);
    assert_eq!(place.query("select sum(id) as n from t"), json!([{"n": 6}]));
    let shards = || fencepost(["inspect", &table]).json()["shards"].clone();
    let before = shards();
    assert_eq!((&before[0]["shard_id"], &before[0]["value"]), (&json!(shard), &json!(null)));
    assert_eq!(before[0]["unadopted"], true);
    assert!(fencepost(["inspect", &table, "--output", "table"]).ok().contains("fencepost adopt"));

    let file = place.file("rows.csv", "id\n4\n");
    let said = fencepost(["ingest", &table, &file]).fails(1);
    assert!(said.contains("shard_writer"), "{said}");

    let adopted = fencepost(["adopt", &table, "--output", "json"]).json();
    assert_eq!(adopted["table_id_given"], true);
    assert_eq!((&adopted["shards"][0]["shard_id"], &adopted["shards"][0]["adopted"]), (&json!(shard), &json!(true)));
    assert_eq!(shards()[0]["unadopted"], false);
    assert_eq!(fencepost(["adopt", &table, "--output", "json"]).json()["table_id_given"], false);
    fencepost(["flush", &table]).ok();
    assert_eq!((&shards()[0]["rows_in_log"], &shards()[0]["sstables"][0]["rows"]), (&json!(0), &json!(3)));
    assert_eq!(place.query("select sum(id) as n from t"), json!([{"n": 6}]));
}
