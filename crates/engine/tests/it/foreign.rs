//! Tables that plain Lance made: opened, read, written and adopted.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use fencepost::{Error, ShardId, ShardValue, Sharding, Store, Table};
use lance::Dataset;
use lance::dataset::InsertBuilder;
use lance::dataset::mem_wal::{DatasetMemWalExt, ShardManifestStore, ShardWriter, ShardWriterConfig};
use uuid::Uuid;

use crate::merge::merge;
use crate::support::*;

/// A table in a folder, made by Lance.
struct Foreign {
    _dir: tempfile::TempDir,
    path: String,
    dataset: Dataset,
}

impl Foreign {
    async fn create(keyed: bool, sharding: &Sharding) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t").to_str().unwrap().to_owned();
        let plain = schema();
        let fields = plain.fields().iter().map(|field| {
            let is_key = keyed && field.name() == "id";
            let key = [("lance-schema:unenforced-primary-key".to_owned(), "true".to_owned())];
            let metadata = if is_key { HashMap::from(key) } else { HashMap::new() };
            field.as_ref().clone().with_metadata(metadata)
        });
        let empty = RecordBatch::new_empty(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
        let mut dataset = InsertBuilder::new(path.as_str()).execute(vec![empty]).await.unwrap();
        let builder = dataset.initialize_mem_wal();
        let builder = match sharding {
            Sharding::Manual => builder,
            Sharding::Unsharded => builder.unsharded(),
            Sharding::Bucket { column, buckets } => builder.bucket_sharding(column, *buckets),
            Sharding::Identity { column } => builder.identity_sharding(column),
        };
        builder.execute().await.unwrap();
        Self { _dir: dir, path, dataset }
    }

    /// Lance's writer of a shard, which it makes if it is not there, without a word about what it holds.
    async fn lance(&self, shard: Uuid) -> ShardWriter {
        self.dataset.mem_wal_writer(shard, ShardWriterConfig::default()).await.unwrap()
    }

    /// A shard that Lance makes, with rows that it wrote and did not flush.
    async fn shard_with(&self, pairs: &[(i64, i64)]) -> ShardId {
        let shard = Uuid::new_v4();
        self.write(shard, pairs).await;
        ShardId::from_uuid(shard)
    }

    async fn write(&self, shard: Uuid, pairs: &[(i64, i64)]) {
        let writer = self.lance(shard).await;
        writer.put(vec![rows(pairs)]).await.unwrap();
        // Its process dies.
        drop(writer);
    }

    /// A shard that says what it holds, as Lance's callers make them.
    async fn shard_of(&self, bytes: &[u8]) -> ShardId {
        let shard = Uuid::new_v4();
        let store = self.dataset.object_store(None).await.unwrap();
        let manifests = ShardManifestStore::new(store, &self.dataset.branch_location().path, shard, 2);
        let told = HashMap::from([("bucket".to_owned(), bytes.to_vec())]);
        manifests.initialize_shard(1, told).await.unwrap();
        ShardId::from_uuid(shard)
    }

    async fn table(&self) -> Table {
        Table::open(Store::open(&self.path, &HashMap::new()).unwrap()).await.unwrap()
    }

    async fn seen(&self) -> Vec<(i64, Option<i64>)> {
        pairs(self.table().await.provider().await.unwrap()).await
    }
}

fn expected(pairs: &[(i64, i64)]) -> Vec<(i64, Option<i64>)> {
    pairs.iter().map(|(id, v)| (*id, Some(*v))).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, words: &[&str]) {
    let error = result.expect_err("it must be refused");
    assert!(matches!(error, Error::NotSupported(_)), "{error:?}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[tokio::test]
async fn a_table_whose_writers_choose_the_shard_is_read_and_written_shard_by_shard() {
    let foreign = Foreign::create(true, &Sharding::Manual).await;
    let table = foreign.table().await;
    assert_eq!(table.sharding(), &Sharding::Manual);
    assert_eq!(foreign.seen().await, []);
    let one = foreign.shard_with(&[(1, 10), (2, 20)]).await;
    let two = foreign.shard_with(&[(3, 30)]).await;
    assert_eq!(foreign.seen().await, expected(&[(1, 10), (2, 20), (3, 30)]));
    let inspected = table.inspect().await.unwrap().shards;
    let mut ids = vec![one, two];
    ids.sort();
    assert_eq!(inspected.iter().map(|shard| shard.shard_id).collect::<Vec<_>>(), ids);
    assert!(inspected.iter().all(|shard| shard.value == ShardValue::Unknown && shard.unadopted));
    refused(table.writer(config()).await, &["no sharding spec", "shard_writer"]);

    let writer = table.shard_writer(one, config()).await.unwrap();
    assert_eq!(scanned(&writer).await, expected(&[(1, 10), (2, 20)]));
    writer.put(rows(&[(2, 21), (4, 40)])).await.unwrap();
    writer.delete(keys(&[1])).await.unwrap();
    assert_eq!(foreign.seen().await, expected(&[(2, 21), (3, 30), (4, 40)]));
    writer.close().await.unwrap();
    let nobody = table.shard_writer(ShardId::new_random(), config()).await;
    assert!(matches!(nobody, Err(Error::InvalidOptions(_))), "{nobody:?}");
    table.flush(config()).await.unwrap();
    let inspected = table.inspect().await.unwrap().shards;
    assert!(inspected.iter().all(|shard| shard.rows_in_log == 0 && !shard.sstables.is_empty()), "{inspected:?}");
    assert_eq!(foreign.seen().await, expected(&[(2, 21), (3, 30), (4, 40)]));

    // And Lance goes on where Fencepost stopped.
    foreign.write(*one.as_uuid(), &[(5, 50)]).await;
    assert_eq!(foreign.seen().await, expected(&[(2, 21), (3, 30), (4, 40), (5, 50)]));
}

#[tokio::test]
async fn the_only_shard_of_an_unsharded_table_is_taken_over_whatever_its_id() {
    for keyed in [true, false] {
        let foreign = Foreign::create(keyed, &Sharding::Unsharded).await;
        let table = foreign.table().await;
        refused(table.writer(config()).await, &["no shard for all rows", "fencepost adopt"]);
        let shard = foreign.shard_with(&[(1, 10), (2, 20)]).await;
        assert_eq!(table.shard_ids().await.unwrap(), [shard]);
        let writer = table.writer(config()).await.unwrap();
        writer.put(rows(&[(2, 21), (3, 30)])).await.unwrap();
        let all = match keyed {
            true => expected(&[(1, 10), (2, 21), (3, 30)]),
            false => expected(&[(1, 10), (2, 20), (2, 21), (3, 30)]),
        };
        assert_eq!(pairs(writer.provider().await.unwrap()).await, all);
        writer.close().await.unwrap();
        assert_eq!(foreign.seen().await, all);
        // It stays the only one when the table has an id.
        table.adopt().await.unwrap();
        assert_eq!(table.shard_ids().await.unwrap(), [shard]);
        table.writer(config()).await.unwrap().close().await.unwrap();
        assert_eq!(table.shard_ids().await.unwrap(), [shard]);

        let other = foreign.shard_with(&[(4, 40)]).await;
        assert_eq!(foreign.seen().await.len(), all.len() + 1, "reading goes on");
        refused(table.writer(config()).await, &["2 shards", &shard.to_string(), &other.to_string(), "shard_writer"]);
        table.shard_writer(other, config()).await.unwrap().close().await.unwrap();
    }
}

#[tokio::test]
async fn buckets_and_values_are_found_by_what_manifests_say() {
    let bucket = |n: i32| (n.to_le_bytes().to_vec(), ShardValue::Bucket(n as u32));
    let value = |n: i64| (n.to_le_bytes().to_vec(), ShardValue::Identity(n.into()));
    let buckets = Sharding::Bucket { column: "id".into(), buckets: 3 };
    let values = Sharding::Identity { column: "id".into() };
    for (sharding, (bytes, value)) in [(buckets, bucket(1)), (values, value(7))] {
        let foreign = Foreign::create(true, &sharding).await;
        let table = foreign.table().await;
        let shard = foreign.shard_of(&bytes).await;
        assert_eq!(table.shard_ids().await.unwrap(), [shard]);
        assert_eq!(table.inspect().await.unwrap().shards[0].value, value);
        let id = match sharding {
            Sharding::Identity { .. } => {
                let writer = table.writer(config()).await.unwrap();
                writer.put(rows(&[(7, 70)])).await.unwrap();
                refused(writer.put(rows(&[(7, 71), (8, 80)])).await, &["no shard for value `8`", "fencepost adopt"]);
                assert_eq!(foreign.seen().await, expected(&[(7, 70)]));
                7
            }
            _ => {
                refused(table.writer(config()).await, &["no shard for bucket 0", "fencepost adopt"]);
                // Which id goes there is the hash's to say.
                let writer = table.shard_writer(shard, config()).await.unwrap();
                let mut there = Vec::new();
                for id in 0..20 {
                    if writer.put(rows(&[(id, 70)])).await.is_ok() {
                        there.push(id);
                    }
                }
                writer.delete(keys(&there[1..])).await.unwrap();
                there[0]
            }
        };
        assert!(table.adopt().await.unwrap().table_id_given);
        let writer = table.writer(config()).await.unwrap();
        writer.put(rows(&(0..20).map(|id| (id, 1)).collect::<Vec<_>>())).await.unwrap();
        writer.put(rows(&[(id, 72)])).await.unwrap();
        writer.close().await.unwrap();
        let mut all: Vec<(i64, i64)> = (0..20).map(|id| (id, 1)).collect();
        all[id as usize].1 = 72;
        assert_eq!(foreign.seen().await, expected(&all));
        let shards = table.inspect().await.unwrap().shards;
        assert_eq!(shards.iter().filter(|other| other.value == value).count(), 1);
        assert_eq!(shards.iter().find(|other| other.value == value).unwrap().shard_id, shard);
        assert_eq!(shards.len(), if value == ShardValue::Bucket(1) { 3 } else { 20 });

        // A second shard for the same rows, or for rows that nobody tells: reading goes on, writing is refused.
        let twin = foreign.shard_of(&bytes).await;
        refused(table.writer(config()).await, &["2 shards", &shard.to_string(), &twin.to_string()]);
        let stranger = foreign.shard_with(&[(100, 5)]).await;
        refused(table.writer(config()).await, &["3 shards", &stranger.to_string(), "unknown rows"]);
        all.push((100, 5));
        assert_eq!(foreign.seen().await, expected(&all));
        let one = pairs(table.provider().await.unwrap()).await;
        assert_eq!(one.len(), 21);
        assert_eq!(number(&table.provider().await.unwrap(), "select count(*) from t where id = 100").await, 1);
    }
}

/// Lance's builder does not ask for it, and then nobody could say which version of a row is the newest.
#[tokio::test]
async fn a_table_sharded_by_a_column_outside_of_the_key_is_written_shard_by_shard() {
    let foreign = Foreign::create(true, &Sharding::Identity { column: "v".into() }).await;
    let shard = foreign.shard_of(&7_i64.to_le_bytes()).await;
    let table = foreign.table().await;
    table.adopt().await.unwrap();
    refused(table.writer(config()).await, &["not part of its primary key (id)", "shard_writer"]);
    let writer = table.shard_writer(shard, config()).await.unwrap();
    writer.put(rows(&[(1, 7)])).await.unwrap();
    writer.flush().await.unwrap();
    table.merge(&fencepost::MergeOptions::default(), |_| {}).await.unwrap();
    // Another shard holds the row's newer version; a filter must not leave it out and bring the older one back.
    let other = foreign.shard_of(&8_i64.to_le_bytes()).await;
    table.shard_writer(other, config()).await.unwrap().put(rows(&[(1, 8)])).await.unwrap();
    let provider = table.provider().await.unwrap();
    assert_eq!(number(&provider, "select count(*) from t where v = 7").await, 0);
    assert_eq!(number(&provider, "select count(*) from t where v = 8").await, 1);
}

#[tokio::test]
async fn adopting_may_be_repeated_and_done_by_two_at_once() {
    let foreign = Foreign::create(true, &Sharding::Manual).await;
    let one = foreign.shard_with(&[(1, 10)]).await;
    // A second writer of Lance's leaves a sentinel.
    foreign.write(*one.as_uuid(), &[(2, 20)]).await;
    let two = foreign.shard_with(&[(3, 30)]).await;
    let before = foreign.table().await;
    let (a, b) = (foreign.table().await, foreign.table().await);
    let (a, b) = futures::future::join(a.adopt(), b.adopt()).await;
    let (a, b) = (a.unwrap(), b.unwrap());
    let adopted = |id| [&a, &b].map(|done| done.shards.iter().any(|shard| shard.shard_id == id && shard.adopted));
    for id in [one, two] {
        assert!(adopted(id).contains(&true), "{id}: {a:?} {b:?}");
    }
    let fences = |id| [&a, &b].map(|done| done.shards.iter().find(|s| s.shard_id == id).unwrap().fences_added);
    assert_eq!(fences(one).iter().max(), Some(&1), "{a:?} {b:?}");
    let again = before.adopt().await.unwrap();
    assert!(!again.table_id_given && again.shards.iter().all(|shard| !shard.adopted && shard.fences_added == 0));
    assert_eq!(again.shards.len(), 2);
    let inspected = before.inspect().await.unwrap().shards;
    assert!(inspected.iter().all(|shard| !shard.unadopted));
    assert_eq!(foreign.seen().await, expected(&[(1, 10), (2, 20), (3, 30)]));
    // One of Fencepost's own has nothing to adopt.
    let bucket = Bucket::new();
    let own = keyed(&bucket, 2).await.adopt().await.unwrap();
    assert!(!own.table_id_given && own.shards.iter().all(|shard| !shard.adopted));
}

/// On a file system a process may die between making a folder and writing what belongs into it.
#[tokio::test]
async fn a_folder_without_a_manifest_is_no_shard() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let store = Store::open(path.to_str().unwrap(), &HashMap::new()).unwrap();
    let options = fencepost::TableOptions { primary_key: vec!["id".into()], sharding: "bucket(id,2)".parse().unwrap() };
    let table = Table::create(store, schema(), options).await.unwrap();
    let ids = table.shard_ids().await.unwrap();
    let shard = path.join("_mem_wal").join(ids[1].to_string());
    std::fs::remove_dir_all(&shard).unwrap();
    std::fs::create_dir(&shard).unwrap();
    for stranger in [ShardId::new_random().to_string(), "notes".to_owned(), ids[0].to_string().to_uppercase()] {
        std::fs::create_dir(path.join("_mem_wal").join(stranger)).unwrap();
    }
    assert_eq!(table.shard_ids().await.unwrap(), ids);
    assert_eq!(pairs(table.provider().await.unwrap()).await, []);
    assert_eq!(table.inspect().await.unwrap().shards.len(), 2);
    table.flush(config()).await.unwrap();
    assert_eq!(table.adopt().await.unwrap().shards.len(), 1);
    let writer = table.writer(config()).await.unwrap();
    writer.put(crate::support::ids(0..20)).await.unwrap();
    writer.close().await.unwrap();
    assert_eq!(pairs(table.provider().await.unwrap()).await, id_pairs(0..20));
}

/// Section 9: what the base table has merged from a shard is not all that the shard had.
#[tokio::test]
async fn a_shard_that_was_merged_from_and_is_gone_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let store = Store::open(path.to_str().unwrap(), &HashMap::new()).unwrap();
    let options = fencepost::TableOptions { primary_key: vec!["id".into()], sharding: "bucket(id,2)".parse().unwrap() };
    let table = Table::create(store, schema(), options).await.unwrap();
    let gone = table.shard_ids().await.unwrap()[1];
    let shard = path.join("_mem_wal").join(gone.to_string());
    let (aside, backup) = (dir.path().join("aside"), dir.path().join("backup"));
    std::fs::create_dir_all(backup.join("manifest")).unwrap();
    for file in std::fs::read_dir(shard.join("manifest")).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), backup.join("manifest").join(file.file_name())).unwrap();
    }
    let writer = table.writer(config()).await.unwrap();
    writer.put(crate::support::ids(0..20)).await.unwrap();
    writer.close().await.unwrap();
    table.merge(&fencepost::MergeOptions::default(), |_| {}).await.unwrap();
    std::fs::rename(&shard, &aside).unwrap();
    let refused = |error: Error| {
        assert!(matches!(&error, Error::Corrupt { .. }) && error.to_string().contains(&gone.to_string()), "{error}");
    };
    for emptied in [false, true] {
        refused(table.provider().await.unwrap_err());
        // A writer would number its SSTables as the merged ones.
        refused(table.writer(config()).await.unwrap_err());
        refused(table.shard_writer(gone, config()).await.unwrap_err());
        if !emptied {
            std::fs::create_dir(&shard).unwrap();
        }
    }
    std::fs::remove_dir(&shard).unwrap();
    // A copy from before it was merged from is no better.
    std::fs::rename(&backup, &shard).unwrap();
    refused(table.provider().await.unwrap_err());
    refused(table.writer(config()).await.unwrap_err());
    refused(table.merge(&fencepost::MergeOptions::default(), |_| {}).await.unwrap_err());
    std::fs::rename(&shard, &backup).unwrap();
    std::fs::rename(&aside, &shard).unwrap();
    assert_eq!(pairs(table.provider().await.unwrap()).await, id_pairs(0..20));
}

/// Nothing of ours was ever in the table: its shards' ids, their manifests, its config are Lance's.
#[tokio::test]
async fn what_lance_flushed_into_its_own_table_is_merged() {
    for keyed in [true, false] {
        for sharding in [Sharding::Manual, Sharding::Unsharded] {
            let foreign = Foreign::create(keyed, &sharding).await;
            let written = [(1, 10), (2, 20), (3, 30)];
            let writer = foreign.lance(Uuid::new_v4()).await;
            writer.put(vec![rows(&written)]).await.unwrap();
            writer.close().await.unwrap();
            let report = merge(&foreign.table().await).await;
            assert_eq!((report.sstables, report.rows), (1, 3));
            assert_eq!(foreign.seen().await, expected(&written));
            let mut base = foreign.dataset.clone();
            base.checkout_latest().await.unwrap();
            assert_eq!(base.count_rows(None).await.unwrap(), 3);

            // Our SSTable follows Lance's in the same shard.
            let table = foreign.table().await;
            let shard = table.shard_ids().await.unwrap()[0];
            let ours = table.shard_writer(shard, config()).await.unwrap();
            ours.put(rows(&[(4, 40)])).await.unwrap();
            if keyed {
                ours.delete(keys(&[1])).await.unwrap();
            }
            ours.close().await.unwrap();
            assert_eq!(merge(&foreign.table().await).await.sstables, 1);
            let all = [(1, 10), (2, 20), (3, 30), (4, 40)];
            assert_eq!(foreign.seen().await, expected(if keyed { &all[1..] } else { &all }));
        }
    }
}
