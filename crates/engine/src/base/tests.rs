#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::collections::{HashMap, HashSet};

use arrow_array::{Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field};
use datafusion::prelude::{col, lit};
use datafusion::scalar::ScalarValue;
use fencepost_wal::{ShardFieldEntry, Store};
use futures::TryStreamExt;
use lance::dataset::{InsertBuilder, WriteMode, WriteParams};
use lance_index::mem_wal::{ShardingField, ShardingSpec};
use lance_io::object_store::WrappingObjectStore;
use lance_io::utils::tracking_store::IOTracker;
use tempfile::TempDir;

use super::*;

fn memory() -> LanceStore {
    let url = format!("memory://base-{}/some%20tables/t", Uuid::new_v4());
    LanceStore::new(&Store::open(&url, &HashMap::new()).unwrap())
}

fn folder() -> (TempDir, String, LanceStore) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t").to_str().unwrap().to_owned();
    let store = LanceStore::new(&Store::open(&path, &HashMap::new()).unwrap());
    (dir, path, store)
}

fn schema() -> SchemaRef {
    let fields = vec![
        Field::new("note", DataType::Utf8, true),
        Field::new("id", DataType::Int64, true),
        Field::new("region", DataType::Utf8, true),
    ];
    Arc::new(Schema::new(fields))
}

fn keys(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn by_id(buckets: u32) -> Sharding {
    Sharding::Bucket { column: "id".to_owned(), buckets }
}

/// A dataset that Lance makes.
async fn plain(store: &LanceStore) -> Dataset {
    let (uri, params) = (store.uri(None), store.write_params());
    let empty = RecordBatch::new_empty(schema());
    InsertBuilder::new(uri.as_str()).with_params(&params).execute(vec![empty]).await.unwrap()
}

fn first(base: &BaseTable, value: &ShardValue) -> ShardManifest {
    base.first_manifest(base.derived_id(value).unwrap(), value)
}

async fn append(store: &LanceStore, base: &BaseTable, ids: &[i64]) {
    let batch = RecordBatch::try_new(
        Arc::clone(base.schema()),
        vec![
            Arc::new(StringArray::from(vec![Some("n"); ids.len()])),
            Arc::new(Int64Array::from(ids.to_vec())),
            Arc::new(StringArray::from(vec!["eu"; ids.len()])),
        ],
    )
    .unwrap();
    let params = WriteParams { mode: WriteMode::Append, ..store.write_params() };
    InsertBuilder::new(Arc::new(base.dataset().clone())).with_params(&params).execute(vec![batch]).await.unwrap();
}

async fn ids(base: &BaseTable, filter: Option<Expr>, limit: Option<usize>) -> Vec<i64> {
    let stream = base.scan(Some(&keys(&["id"])), filter, limit).await.unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    let column = |batch: &RecordBatch| batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().clone();
    batches.iter().flat_map(|batch| column(batch).values().to_vec()).collect()
}

#[tokio::test]
async fn a_keyed_table_opens_as_it_was_created() {
    let (_dir, _, on_disk) = folder();
    for store in [memory(), on_disk] {
        let key = keys(&["region", "id"]);
        let created = BaseTable::create(&store, &schema(), &key, &by_id(4), None).await.unwrap();
        let opened = BaseTable::open(&LanceStore::new(store.store()), None).await.unwrap();
        assert_eq!(opened.primary_key(), key, "the order of the key is kept");
        assert_eq!(opened.sharding(), &by_id(4));
        assert_eq!(opened.table_id, created.table_id);
        assert_eq!(opened.fixed_shards().len(), 4);
        assert_eq!(first(&opened, &ShardValue::Bucket(3)).shard_spec_id, 1);
        assert!(opened.merged().is_empty());
        let nullable: Vec<bool> = opened.schema().fields().iter().map(|f| f.is_nullable()).collect();
        assert_eq!(nullable, [true, false, false], "key columns become non-nullable");
        assert!(opened.schema().fields().iter().all(|f| f.metadata().is_empty()));
        assert_eq!(opened.version_and_rows().await.unwrap(), (2, 0));
    }
}

#[tokio::test]
async fn a_table_without_key_and_shards_opens_as_it_was_created() {
    let store = memory();
    BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await.unwrap();
    let opened = BaseTable::open(&store, None).await.unwrap();
    assert!(opened.primary_key().is_empty());
    assert_eq!(opened.schema(), &schema());
    assert_eq!(opened.sharding(), &Sharding::Unsharded);
    let id = shard_id_for(opened.table_id.unwrap(), 0, &ShardValue::All).unwrap();
    assert_eq!(opened.fixed_shards(), [(id, ShardValue::All)]);
}

#[tokio::test]
async fn a_table_that_exists_is_left_alone() {
    let store = memory();
    let first = BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await.unwrap();
    let again = BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await;
    assert!(matches!(again, Err(Error::TableExists { .. })), "{again:?}");
    assert_eq!(BaseTable::open(&store, None).await.unwrap().table_id, first.table_id);
}

#[tokio::test]
async fn a_creation_that_died_halfway_is_finished_by_a_repeated_one() {
    let store = memory();
    let key = keys(&["id"]);
    let begun = create::begin(&store, create::table_schema(&schema(), &key).unwrap(), None).await.unwrap();
    let open = BaseTable::open(&store, None).await;
    assert!(matches!(open, Err(Error::TableNotFound { ref reason, .. }) if reason.contains("did not finish")));

    let other = BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await;
    assert!(matches!(other, Err(Error::TableExists { .. })), "another key is another table: {other:?}");

    let finished = BaseTable::create(&store, &schema(), &key, &by_id(2), None).await.unwrap();
    assert_eq!(Some(&finished.table_id.unwrap().to_string()), begun.config().get(TABLE_ID_KEY));
}

#[tokio::test]
async fn a_creator_that_lost_the_race_does_not_overwrite_the_table() {
    let store = memory();
    let base = BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await.unwrap();
    append(&store, &base, &[1]).await;
    // As if it had looked before the other one created the table.
    let late = create::begin(&store, create::table_schema(&schema(), &[]).unwrap(), None).await;
    assert!(matches!(late, Err(Error::TableExists { .. })), "{late:?}");
    assert_eq!(ids(&base.refreshed().await.unwrap(), None, None).await, [1]);
}

#[tokio::test]
async fn of_two_creators_at_once_one_wins_and_the_other_is_told() {
    let store = memory();
    let (schema, sharding) = (schema(), Sharding::Unsharded);
    let twin = LanceStore::new(store.store());
    let (a, b) = tokio::join!(
        BaseTable::create(&store, &schema, &[], &sharding, None),
        BaseTable::create(&twin, &schema, &[], &sharding, None)
    );
    let exists = |r: &Result<BaseTable>| matches!(r, Err(Error::TableExists { .. }));
    assert!(a.is_ok() != b.is_ok() && (exists(&a) || exists(&b)), "{a:?} {b:?}");
    BaseTable::open(&store, None).await.unwrap();
}

#[tokio::test]
async fn plain_lance_reads_the_table() {
    let (_dir, path, store) = folder();
    let base = BaseTable::create(&store, &schema(), &keys(&["id"]), &by_id(2), None).await.unwrap();
    append(&store, &base, &[1, 2, 3]).await;
    let plain = Dataset::open(&path).await.unwrap();
    assert_eq!(plain.count_rows(None).await.unwrap(), 3);
    assert_eq!(plain.schema().unenforced_primary_key()[0].name, "id");
    let details = plain.mem_wal_index_details().await.unwrap().unwrap();
    assert_eq!(details.num_shards, 2);
}

#[tokio::test]
async fn what_is_no_table_is_not_opened() {
    let (dir, path, store) = folder();
    let nothing = BaseTable::open(&store, None).await;
    assert!(matches!(nothing, Err(Error::TableNotFound { ref reason, .. }) if reason.contains("no Lance dataset")));

    InsertBuilder::new(path.as_str()).execute(vec![RecordBatch::new_empty(schema())]).await.unwrap();
    let plain = BaseTable::open(&store, None).await;
    assert!(matches!(plain, Err(Error::TableNotFound { ref reason, .. }) if reason.contains("MemWAL")), "{plain:?}");
    let create = BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await;
    assert!(matches!(create, Err(Error::TableExists { .. })), "{create:?}");

    // The folder was there when the store was opened; now there is a file.
    let place = dir.path().join("file");
    let store = LanceStore::new(&Store::open(place.to_str().unwrap(), &HashMap::new()).unwrap());
    std::fs::write(&place, "text").unwrap();
    let file = BaseTable::open(&store, None).await;
    assert!(matches!(file, Err(Error::TableNotFound { ref reason, .. }) if reason.contains("is a file")), "{file:?}");
    let create = BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await;
    assert!(matches!(create, Err(Error::InvalidOptions(_))), "{create:?}");
}

/// What Lance's builder writes is what ours does, whoever began the table.
#[tokio::test]
async fn tables_of_lances_builder_open_with_their_sharding() {
    for (name, expected) in [
        ("manual", Sharding::Manual),
        ("unsharded", Sharding::Unsharded),
        ("bucket", by_id(3)),
        ("identity", Sharding::Identity { column: "region".to_owned() }),
    ] {
        let store = memory();
        let mut dataset = plain(&store).await;
        let builder = dataset.initialize_mem_wal();
        let builder = match name {
            "manual" => builder,
            "unsharded" => builder.unsharded(),
            "bucket" => builder.bucket_sharding("id", 3),
            _ => builder.identity_sharding("region"),
        };
        builder.execute().await.unwrap();
        let opened = BaseTable::open(&store, None).await.unwrap();
        assert_eq!(opened.sharding(), &expected);
        assert_eq!((opened.table_id, opened.fixed_shards().len()), (None, 0));
        let refused = opened.derived_id(&ShardValue::All).unwrap_err().to_string();
        assert!(refused.contains("fencepost adopt"), "{refused}");
        // The same spec as that of a table of ours.
        if expected != Sharding::Manual {
            let ours = BaseTable::create(&memory(), &schema(), &[], &expected, None).await.unwrap();
            let details = [&opened, &ours].map(|base| mem_wal_details(base.lance_store(), base.dataset()));
            let [lances, ours] = futures::future::join_all(details).await.try_into().unwrap();
            assert_eq!(lances.unwrap(), ours.unwrap());
        }
    }
}

#[tokio::test]
async fn shardings_that_nobody_here_knows_are_refused_by_name() {
    let spec = |id, fields| ShardingSpec { spec_id: id, fields };
    let field = |transform: &str, result_type: &str, parameters: &[(&str, &str)]| ShardingField {
        field_id: "bucket".to_owned(),
        source_ids: vec![1],
        transform: Some(transform.to_owned()),
        expression: None,
        result_type: result_type.to_owned(),
        parameters: parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    };
    let plain = || field("identity", "int64", &[]);
    for (specs, words) in [
        (vec![spec(1, vec![plain()]), spec(2, vec![plain()])], "2 specs"),
        (vec![spec(1, vec![plain(), plain()])], "2 fields"),
        (vec![spec(1, vec![field("year", "int32", &[])])], "transform `year`"),
        (vec![spec(1, vec![field("identity", "int32", &[])])], "`id` as int32, but that column is Int64"),
        (vec![spec(1, vec![field("identity", "int64", &[("column", "nosuch")])])], "without a column"),
        (vec![spec(1, vec![field("bucket", "int32", &[("num_buckets", "1025")])])], "a count of 1 to 1024"),
        (vec![spec(1, vec![field("bucket", "int32", &[])])], "a count of 1 to 1024"),
    ] {
        let store = memory();
        let dataset = create::begin(&store, create::table_schema(&schema(), &[]).unwrap(), None).await.unwrap();
        create::initialize(&store, dataset, 0, specs).await.unwrap();
        let open = BaseTable::open(&store, None).await;
        assert!(matches!(open, Err(Error::NotSupported(ref what)) if what.contains(words)), "{words}: {open:?}");
    }
}

#[tokio::test]
async fn of_two_who_give_a_table_an_id_at_once_both_get_the_same() {
    let store = memory();
    let mut dataset = plain(&store).await;
    dataset.initialize_mem_wal().unsharded().execute().await.unwrap();
    let handles = futures::future::join_all((0..4).map(|_| async {
        let store = LanceStore::new(store.store());
        BaseTable::open(&store, None).await.unwrap()
    }));
    let handles = handles.await;
    let given = futures::future::join_all(handles.iter().map(BaseTable::with_table_id)).await;
    let ids: HashSet<Uuid> = given.into_iter().map(|base| base.unwrap().table_id.unwrap()).collect();
    assert_eq!(ids.len(), 1);
    let again = BaseTable::open(&store, None).await.unwrap().with_table_id().await.unwrap();
    assert!(ids.contains(&again.table_id.unwrap()));
    assert_eq!(again.version(), handles[0].version() + 1, "nothing is committed twice");
}

#[tokio::test]
async fn options_that_do_not_fit_create_nothing() {
    let store = memory();
    let float = Arc::new(Schema::new(vec![Field::new("x", DataType::Float64, false)]));
    let twice = Arc::new(Schema::new(vec![Field::new("x", DataType::Int8, false); 2]));
    let reserved = Arc::new(Schema::new(vec![Field::new("_tombstone", DataType::Boolean, false)]));
    let unsharded = Sharding::Unsharded;
    let by_region = Sharding::Bucket { column: "region".to_owned(), buckets: 2 };
    for (schema, key, sharding) in [
        (schema(), keys(&["missing"]), &unsharded),
        (schema(), keys(&["id", "id"]), &unsharded),
        (schema(), keys(&["id"]), &by_region),
        (schema(), keys(&[]), &by_id(0)),
        (schema(), keys(&[]), &by_id(1025)),
        (float, keys(&["x"]), &unsharded),
        (twice, keys(&[]), &unsharded),
        (reserved, keys(&[]), &unsharded),
        (Arc::new(Schema::empty()), keys(&[]), &unsharded),
    ] {
        let refused = BaseTable::create(&store, &schema, &key, sharding, None).await;
        assert!(matches!(refused, Err(Error::InvalidOptions(_))), "{schema:?} {key:?}: {refused:?}");
    }
    assert!(store.try_open_dataset(None).await.unwrap().is_none());
}

#[tokio::test]
async fn a_scan_projects_filters_limits_and_counts() {
    let store = memory();
    let base = BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await.unwrap();
    assert_eq!(ids(&base, None, None).await, [0_i64; 0]);
    append(&store, &base, &[5, 4, 3, 2, 1]).await;
    assert_eq!(base.version_and_rows().await.unwrap(), (2, 0), "an opened table is one version");
    let base = base.refreshed().await.unwrap();
    assert_eq!(base.version_and_rows().await.unwrap(), (3, 5));
    assert_eq!(ids(&base, None, None).await, [5, 4, 3, 2, 1]);
    assert_eq!(ids(&base, Some(col("id").gt(lit(2_i64))), Some(2)).await, [5, 4]);

    let count = base.scan(Some(&[]), Some(col("id").lt(lit(3_i64))), None).await.unwrap();
    let batches: Vec<RecordBatch> = count.try_collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    assert!(batches.iter().all(|batch| batch.num_columns() == 0));
}

#[tokio::test]
async fn every_request_of_lance_goes_through_the_given_store() {
    let (_dir, path, _) = folder();
    for url in [format!("memory://counted-{}/t", Uuid::new_v4()), path] {
        let tracker = IOTracker::default();
        let store = Store::open(&url, &HashMap::new()).unwrap().wrapped(|inner| tracker.wrap("", inner));
        let store = LanceStore::new(&store);
        let base = BaseTable::create(&store, &schema(), &[], &Sharding::Unsharded, None).await.unwrap();
        append(&store, &base, &[1]).await;
        let written = tracker.stats().write_iops;
        assert!(written >= 4, "two commits of the creation, a data file and its commit, but {written} writes");
        let before = tracker.stats().read_iops;
        let again = LanceStore::new(store.store());
        assert_eq!(ids(&BaseTable::open(&again, None).await.unwrap(), None, None).await, [1]);
        assert!(tracker.stats().read_iops > before);
        assert_eq!(tracker.stats().write_iops, written, "reading writes nothing");
    }
}

#[test]
fn shard_ids_are_stable_and_distinct() {
    let table = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    let id = |value: ShardValue| shard_id_for(table, 0, &value).unwrap();
    let identity = |value| id(ShardValue::Identity(value));
    let text = |text: &str| ScalarValue::from(text);
    // Written down: tables on storage depend on them.
    assert_eq!(id(ShardValue::All).to_string(), "fdf36edc-fa46-5e2b-a5af-a6316ec5cd4f");
    assert_eq!(id(ShardValue::Bucket(0)).to_string(), "f7bf5fdf-173e-56f7-b36f-78f3c5811039");
    assert_eq!(identity(text("eu")).to_string(), "6151e36c-d1a8-507a-8d21-73142aa2d80e");
    assert_eq!(identity(ScalarValue::from(-7_i64)).to_string(), "94e6b55c-63be-53aa-b15d-60c9ba0609cd");
    assert_eq!(identity(ScalarValue::Utf8(None)).to_string(), "73bc139c-22bf-5bd0-a4e4-6e15117509ae");
    let values = (0..64)
        .map(ShardValue::Bucket)
        .chain([ShardValue::All])
        .chain([text(""), text("null"), text("is null"), text("3"), ScalarValue::Utf8(None)].map(ShardValue::Identity));
    let ids: HashSet<ShardId> = values.map(id).collect();
    assert_eq!(ids.len(), 70);
    assert_ne!(
        shard_id_for(Uuid::from_u128(1), 0, &ShardValue::All),
        shard_id_for(Uuid::from_u128(2), 0, &ShardValue::All)
    );
    assert_eq!(shard_id_for(table, 0, &ShardValue::Unknown), None);
}

/// Manifests on storage hold these bytes; null is told by an entry of its own, because no entry is what the shards have
/// that Lance's writers make.
#[tokio::test]
async fn a_shard_manifest_tells_what_the_shard_holds() {
    let by_region = Sharding::Identity { column: "region".to_owned() };
    let entries = |manifest: &ShardManifest| {
        let entries = manifest.shard_field_entries.iter();
        entries.map(|entry| (entry.field_id.clone(), entry.value.clone())).collect::<Vec<_>>()
    };
    let told = |id: &str, value: &[u8]| vec![(id.to_owned(), value.to_vec())];
    for (sharding, value, expected) in [
        (Sharding::Unsharded, ShardValue::All, vec![]),
        (by_id(300), ShardValue::Bucket(258), told("bucket", &[2, 1, 0, 0])),
        (by_region.clone(), ShardValue::Identity(ScalarValue::from("eu")), told("bucket", b"eu")),
        (by_region.clone(), ShardValue::Identity(ScalarValue::from("")), told("bucket", b"")),
        (by_region.clone(), ShardValue::Identity(ScalarValue::Utf8(None)), told("fencepost.null", b"bucket")),
    ] {
        let store = memory();
        let base = BaseTable::create(&store, &schema(), &[], &sharding, None).await.unwrap();
        let manifest = first(&base, &value);
        assert_eq!((entries(&manifest), manifest.shard_spec_id), (expected, 1), "{value}");
        // Under another id, only the manifest tells.
        let other = ShardId::new_random();
        assert_eq!(base.shard_value(other, Some(&manifest)), value);
        let mut of_another_spec = manifest.clone();
        of_another_spec.shard_spec_id = 7;
        let expected = if sharding == Sharding::Unsharded { ShardValue::All } else { ShardValue::Unknown };
        assert_eq!(base.shard_value(other, Some(&of_another_spec)), expected);
        if sharding != Sharding::Unsharded {
            assert_eq!(base.shard_value(other, Some(&ShardManifest::first(other, 1, vec![]))), ShardValue::Unknown);
        }
    }
}

#[tokio::test]
async fn entries_that_are_no_value_leave_the_rows_unknown() {
    let field = |field_id: &str, value: &[u8]| ShardFieldEntry { field_id: field_id.to_owned(), value: value.to_vec() };
    for (sharding, entry) in [
        (by_id(4), field("bucket", &4_u32.to_le_bytes())),
        (by_id(4), field("bucket", &[1])),
        (by_id(4), field("other", &1_u32.to_le_bytes())),
        (Sharding::Identity { column: "region".to_owned() }, field("bucket", &[0xff])),
        (Sharding::Identity { column: "region".to_owned() }, field("fencepost.null", b"other")),
        (Sharding::Identity { column: "id".to_owned() }, field("bucket", b"eu")),
    ] {
        let base = BaseTable::create(&memory(), &schema(), &[], &sharding, None).await.unwrap();
        let id = ShardId::new_random();
        let manifest = ShardManifest::first(id, 1, vec![entry.clone()]);
        assert_eq!(base.shard_value(id, Some(&manifest)), ShardValue::Unknown, "{sharding} {entry:?}");
    }
}

#[tokio::test]
async fn a_key_that_lance_does_not_hash_gets_the_same_index_as_others() {
    let fields = |time| vec![Field::new("at", time, false), Field::new("id", DataType::Int32, false)];
    let sharding = Sharding::Bucket { column: "id".into(), buckets: 3 };
    let key = ["at".to_owned(), "id".to_owned()];
    let mut details = Vec::new();
    for (place, time) in
        [("by-lance", DataType::Int64), ("by-us", DataType::Timestamp(arrow_schema::TimeUnit::Millisecond, None))]
    {
        let store = Store::open(&format!("memory://key-types/{place}"), &HashMap::new()).unwrap();
        let store = LanceStore::new(&store);
        let schema: SchemaRef = Arc::new(Schema::new(fields(time)));
        let base = BaseTable::create(&store, &schema, &key, &sharding, None).await.unwrap();
        assert_eq!((base.primary_key(), base.sharding()), (&key[..], &sharding));
        details.push(mem_wal_details(&store, base.dataset()).await.unwrap().unwrap());
    }
    assert_eq!(details[0], details[1]);
}
