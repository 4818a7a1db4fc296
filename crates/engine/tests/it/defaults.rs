//! Settings that a table keeps for its writers.

use std::time::Duration;

use fencepost::{CloneOptions, Error, MemTableConfig, Table, WriterConfig};
use fencepost_sim::Op;
use lance::dataset::InsertBuilder;
use lance::dataset::mem_wal::{DatasetMemWalExt, ShardWriterConfig};

use crate::merge::merge;
use crate::support::*;

/// Every setting that can be stored, as something else than the default.
fn unusual() -> WriterConfig {
    let mut config = WriterConfig {
        durable: false,
        max_shards: 7,
        memtable: Some(MemTableConfig {
            max_bytes: 1 << 20,
            max_rows: 12,
            max_batches: 9,
            ..MemTableConfig::default()
        }),
        ..WriterConfig::default()
    };
    config.wal.max_buffer_bytes = 1 << 20;
    config.wal.flush_interval = Duration::from_millis(20);
    config.wal.linger = Duration::from_micros(1_500);
    config.wal.max_unflushed_bytes = 5 << 20;
    config.wal.max_in_flight = 3;
    config.wal.max_puts_per_second = Some(12.5);
    config.wal.backpressure_log_interval = Duration::from_secs(7);
    config
}

fn same(a: &WriterConfig, b: &WriterConfig) {
    assert_eq!(format!("{a:?}"), format!("{b:?}"));
}

#[tokio::test]
async fn what_is_stored_for_writers_comes_back_and_can_be_taken_back() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 1).await;
    same(&table.writer_config().await.unwrap(), &WriterConfig::default());
    table.set_writer_defaults(&unusual()).await.unwrap();
    same(&table.writer_config().await.unwrap(), &unusual());
    same(&bucket.table().await.writer_config().await.unwrap(), &unusual());
    // What the caller sets stays; what it does not set is the table's.
    let mut config = table.writer_config().await.unwrap();
    config.durable = true;
    let writer = table.writer(config).await.unwrap();
    writer.put(ids(0..12)).await.unwrap();
    soon("a flush of twelve rows", writer.wait_for_flush_drain()).await.unwrap();
    assert_eq!(bucket.manifest().await.sstables.len(), 1);
    // A clone has them too.
    let other = bucket.process().store.sibling("memory://it/u").unwrap();
    let (clone, _) = table.clone_to(other, &CloneOptions::default()).await.unwrap();
    same(&clone.writer_config().await.unwrap(), &unusual());

    table.set_writer_defaults(&WriterConfig::wal_only()).await.unwrap();
    same(&table.writer_config().await.unwrap(), &WriterConfig::wal_only());
    table.set_writer_defaults(&WriterConfig::default()).await.unwrap();
    same(&table.writer_config().await.unwrap(), &WriterConfig::default());
    let out_of_range = WriterConfig { max_shards: 0, ..WriterConfig::default() };
    assert!(matches!(table.set_writer_defaults(&out_of_range).await, Err(Error::InvalidOptions(_))));
}

/// I5: the settings lie beside the record of merges, which a commit of them must not set back.
#[tokio::test]
async fn a_merge_in_between_keeps_its_record_and_the_settings_come_in() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    writer.put(ids(0..5)).await.unwrap();
    writer.flush().await.unwrap();
    let process = bucket.process();
    let table = process.table().await;
    let gate = process.faults.on(Op::Create).path_contains("/_versions/").stall();
    let storing = tokio::spawn(async move { table.set_writer_defaults(&unusual()).await });
    soon("the commit", gate.reached()).await;
    assert_eq!(merge(&bucket.table().await).await.sstables, 1);
    gate.release();
    soon("the settings", storing).await.unwrap().unwrap();
    let table = bucket.table().await;
    same(&table.writer_config().await.unwrap(), &unusual());
    assert_eq!(table.inspect().await.unwrap().base.merged.len(), 1);
    assert_eq!(merge(&table).await.sstables, 0, "nothing is merged twice");
    assert_eq!(bucket.seen().await, id_pairs(0..5));
}

/// A table that Lance made, with these settings.
async fn by_lance(dir: &tempfile::TempDir, settings: &[(&str, &str)]) -> Table {
    let path = dir.path().join("t").to_str().unwrap().to_owned();
    let mut dataset = InsertBuilder::new(path.as_str()).execute(vec![ids(0..0)]).await.unwrap();
    let lances = ShardWriterConfig { durable_write: false, max_memtable_rows: 77, ..ShardWriterConfig::default() };
    let mut builder = dataset.initialize_mem_wal().unsharded().writer_config_defaults(lances);
    for (key, value) in settings {
        builder = builder.add_writer_config_default(*key, *value);
    }
    builder.execute().await.unwrap();
    let store = fencepost::Store::open(&path, &Default::default()).unwrap();
    let table = Table::open(store).await.unwrap();
    table.adopt().await.unwrap();
    table
}

#[tokio::test]
async fn lances_settings_are_applied_and_those_of_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let stranger = [("hnsw.v.num_edges", "12"), ("somebody.else", "is here")];
    let table = by_lance(&dir, &stranger).await;
    let config = table.writer_config().await.unwrap();
    assert!(!config.durable);
    assert_eq!(config.memtable.as_ref().unwrap().max_rows, 77);
    assert_eq!(config.memtable.as_ref().unwrap().max_bytes, ShardWriterConfig::default().max_memtable_size);
    table.set_writer_defaults(&unusual()).await.unwrap();
    same(&table.writer_config().await.unwrap(), &unusual());
    let dataset = lance::Dataset::open(dir.path().join("t").to_str().unwrap()).await.unwrap();
    let kept = dataset.mem_wal_index_details().await.unwrap().unwrap().writer_config_defaults;
    for (key, value) in stranger {
        assert_eq!(kept.get(key).map(String::as_str), Some(value));
    }
    assert!(kept.contains_key("max_wal_persist_retries"), "Lance's own: {kept:?}");
    assert_eq!(kept.get("max_memtable_rows").map(String::as_str), Some("12"));
}

#[tokio::test]
async fn what_lance_allows_and_we_do_not_is_taken_to_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let table = by_lance(
        &dir,
        &[
            ("max_wal_buffer_size", "1"),
            ("max_unflushed_memtable_bytes", "8589934592"),
            ("max_wal_flush_interval_ms", "0"),
            ("enable_memtable", "false"),
        ],
    )
    .await;
    let config = table.writer_config().await.unwrap();
    assert_eq!((config.wal.max_buffer_bytes, config.wal.max_unflushed_bytes), (4096, u32::MAX as usize));
    assert_eq!(config.wal.flush_interval, Duration::from_millis(1));
    assert!(config.memtable.is_none());
    table.writer(config).await.unwrap();
}

#[tokio::test]
async fn a_value_that_cannot_be_read_is_named_and_stops_nobody_who_does_not_ask() {
    for (key, value) in [
        ("durable_write", "perhaps"),
        ("max_memtable_rows", "many"),
        ("max_wal_flush_interval_ms", "-1"),
        ("fencepost.max_puts_per_second", "fast"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let table = by_lance(&dir, &[(key, value)]).await;
        let error = table.writer_config().await.unwrap_err();
        assert!(matches!(error, Error::InvalidOptions(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("`{key}` = `{value}`")) && text.contains("set_writer_defaults"), "{text}");
        table.writer(config()).await.unwrap();
        table.set_writer_defaults(&unusual()).await.unwrap();
        same(&table.writer_config().await.unwrap(), &unusual());
    }
}
