#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use arrow_array::{Array, ArrayRef, BooleanArray, Int64Array, StringArray};
use arrow_schema::{DataType, Field, Schema};
use datafusion::prelude::{col, lit};
use fencepost_wal::Store;
use futures::TryStreamExt;
use lance::dataset::NewColumnTransform;
use lance_core::datatypes::LANCE_FIELD_ID_KEY;

use super::*;
use crate::base::BaseTable;
use crate::sharding::Sharding;

fn key() -> Vec<String> {
    vec!["id".to_owned()]
}

async fn base_table(store: &LanceStore, key: &[String]) -> BaseTable {
    let pair = vec![Field::new("a", DataType::Int64, true), Field::new("b", DataType::Int64, true)];
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("pair", DataType::Struct(pair.into()), true),
        Field::new("note", DataType::Utf8, false),
    ]));
    BaseTable::create(store, &schema, key, &Sharding::Unsharded, None).await.unwrap()
}

fn memory() -> LanceStore {
    let url = format!("memory://sstable-{}/t", Uuid::new_v4());
    LanceStore::new(&Store::open(&url, &HashMap::new()).unwrap())
}

fn fresh_dir(base: &BaseTable, generation: u64) -> String {
    relative_dir(base.fixed_shards()[0].0, &directory_name(Uuid::new_v4(), Generation::new(generation)))
}

/// Rows of the storage schema: the ids given, every other column null, a tombstone where the id is negative.
fn rows(schema: &SchemaRef, ids: &[i64]) -> RecordBatch {
    let column = |field: &Arc<Field>| -> ArrayRef {
        match field.name().as_str() {
            "id" => Arc::new(Int64Array::from(ids.to_vec())),
            "note" => Arc::new(StringArray::from(vec![Some("note"); ids.len()])),
            "_tombstone" => Arc::new(ids.iter().map(|id| Some(*id < 0)).collect::<BooleanArray>()),
            _ => arrow_array::new_null_array(field.data_type(), ids.len()),
        }
    };
    RecordBatch::try_new(Arc::clone(schema), schema.fields().iter().map(column).collect()).unwrap()
}

fn field_ids(dataset: &Dataset) -> Vec<(String, i32)> {
    dataset.schema().fields_pre_order().map(|field| (field.name.clone(), field.id)).collect()
}

async fn ids(dataset: &Dataset, filter: Option<Expr>) -> Vec<i64> {
    let stream = scan(dataset, Some(&key()), filter).await.unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    let column = |batch: &RecordBatch| batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().clone();
    batches.iter().flat_map(|batch| column(batch).values().to_vec()).collect()
}

#[tokio::test]
async fn rows_come_back_in_insert_order_under_the_storage_schema() {
    let store = memory();
    let base = base_table(&store, &key()).await;
    let schema = storage_schema(base.dataset());
    let nullable: Vec<bool> = schema.fields().iter().map(|f| f.is_nullable()).collect();
    assert_eq!(nullable, [false, true, true, false]);
    assert_eq!(schema.fields().last().unwrap().name(), "_tombstone");
    assert_eq!(schema.field(0).metadata()[LANCE_FIELD_ID_KEY], "0");

    let dir = fresh_dir(&base, 7);
    let batches = vec![rows(&schema, &[3, 1]), rows(&schema, &[-2, 9]).slice(0, 1)];
    let meta = write(&store, base.dataset(), &dir, batches, &key()).await.unwrap();
    assert_eq!((meta.physical_rows, meta.primary_key_bytes), (3, Some(24)));
    assert!(meta.in_memory_bytes > 24);

    let dataset = open(&store, &dir).await.unwrap();
    assert_eq!(ids(&dataset, None).await, [3, 1, -2]);
    assert_eq!(ids(&dataset, Some(col("_tombstone").eq(lit(false)))).await, [3, 1]);
    assert_eq!(dataset.get_fragments().len(), 1);
    assert_eq!(dataset.version().version, 1);
    let (table, sstable) = (base.dataset().manifest(), dataset.manifest());
    assert_eq!(sstable.data_storage_format, table.data_storage_format);
}

#[tokio::test]
async fn columns_keep_the_base_tables_field_ids_also_when_these_have_gaps() {
    let store = memory();
    let base = base_table(&store, &key()).await;
    let mut dataset = base.dataset().clone();
    dataset.drop_columns(&["note"]).await.unwrap();
    let added = Arc::new(Schema::new(vec![Field::new("extra", DataType::Utf8, true)]));
    dataset.add_columns(NewColumnTransform::AllNulls(added), None, None).await.unwrap();
    dataset.drop_columns(&["pair.a"]).await.unwrap();
    let of_base = field_ids(&dataset);
    assert!(of_base.iter().enumerate().any(|(place, (_, id))| place != *id as usize), "gaps: {of_base:?}");

    let schema = storage_schema(&dataset);
    let dir = fresh_dir(&base, 1);
    write(&store, &dataset, &dir, vec![rows(&schema, &[1, 2])], &key()).await.unwrap();
    let sstable = open(&store, &dir).await.unwrap();
    let of_sstable = field_ids(&sstable);
    assert_eq!(of_sstable[..of_base.len()], of_base);
    assert_eq!(of_sstable.last().unwrap().0, "_tombstone");
    assert_eq!(ids(&sstable, None).await, [1, 2]);
    // The data file itself names the columns by these ids.
    let files = &sstable.manifest().fragments[0].files;
    assert!(of_sstable.iter().all(|(name, id)| name == "pair" || files[0].fields.contains(id)), "{files:?}");
}

#[tokio::test]
async fn an_append_only_table_has_no_key_bytes() {
    let store = memory();
    let base = base_table(&store, &[]).await;
    let schema = storage_schema(base.dataset());
    let dir = fresh_dir(&base, 1);
    let meta = write(&store, base.dataset(), &dir, vec![rows(&schema, &[1, 1])], &[]).await.unwrap();
    assert_eq!(meta.primary_key_bytes, None);
    assert_eq!(ids(&open(&store, &dir).await.unwrap(), None).await, [1, 1]);
}

#[tokio::test]
async fn more_rows_than_lances_file_limit_stay_one_fragment() {
    let store = memory();
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let base = BaseTable::create(&store, &schema, &[], &Sharding::Unsharded, None).await.unwrap();
    let schema = storage_schema(base.dataset());
    let all: Vec<i64> = (0..1_100_000).collect();
    let batches = all.chunks(100_000).map(|chunk| rows(&schema, chunk)).collect();
    let dir = fresh_dir(&base, 1);
    write(&store, base.dataset(), &dir, batches, &[]).await.unwrap();
    let dataset = open(&store, &dir).await.unwrap();
    assert_eq!(dataset.get_fragments().len(), 1);
    assert_eq!(ids(&dataset, None).await, all);
}

#[tokio::test]
async fn plain_lance_reads_an_sstable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let store = LanceStore::new(&Store::open(path.to_str().unwrap(), &HashMap::new()).unwrap());
    let base = base_table(&store, &key()).await;
    let schema = storage_schema(base.dataset());
    let rel_dir = fresh_dir(&base, 1);
    write(&store, base.dataset(), &rel_dir, vec![rows(&schema, &[1, -2])], &key()).await.unwrap();
    let mut plain = Dataset::open(path.join(&rel_dir).to_str().unwrap()).await.unwrap();
    plain.validate().await.unwrap();
    assert_eq!(plain.schema().unenforced_primary_key()[0].name, "id");
    assert_eq!(plain.count_rows(Some("_tombstone".to_owned())).await.unwrap(), 1);
    plain.delete("id = 1").await.unwrap();
    assert_eq!(plain.count_rows(None).await.unwrap(), 1, "a dataset like any other");
}

#[tokio::test]
async fn what_is_no_storage_batch_is_refused() {
    let store = memory();
    let base = base_table(&store, &key()).await;
    let dir = fresh_dir(&base, 1);
    for batches in [vec![], vec![RecordBatch::new_empty(Arc::clone(base.schema()))]] {
        let refused = write(&store, base.dataset(), &dir, batches, &key()).await;
        assert!(matches!(refused, Err(Error::InvalidBatch(_))), "{refused:?}");
    }
}

#[test]
fn directories_are_named_as_lance_names_them_and_differ() {
    let name = directory_name(Uuid::new_v4(), Generation::new(12));
    let (random, rest) = name.split_at(8);
    assert!(random.chars().all(|c| c.is_ascii_hexdigit()) && rest == "_gen_12", "{name}");
    assert_ne!(name, directory_name(Uuid::new_v4(), Generation::new(12)));
}

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_recognised_and_anothers_is_not() {
    let store = memory();
    let base = base_table(&store, &[]).await;
    let schema = storage_schema(base.dataset());
    let lance_schema = LanceSchema::try_from(schema.as_ref()).unwrap();
    let format = base.dataset().manifest().data_storage_format.clone();
    let dir = fresh_dir(&base, 1);
    let mut fragments = Vec::new();
    for id in [1, 2] {
        let batches = vec![rows(&schema, &[id])];
        let schema = Arc::clone(&schema);
        fragments.push(write_fragment(&store, &dir, &lance_schema, &format, schema, batches).await.unwrap());
    }
    let attempt = |fragment: &Fragment| {
        commit(&store, &dir, lance_schema.clone(), format.clone(), fragment.clone(), HashMap::new())
    };
    attempt(&fragments[0]).await.unwrap();
    attempt(&fragments[0]).await.unwrap();
    assert!(matches!(attempt(&fragments[1]).await, Err(Error::Lance { .. })));
    assert_eq!(ids(&open(&store, &dir).await.unwrap(), None).await, [1]);
}

#[test]
fn the_size_of_rows_does_not_count_the_buffers_that_they_are_slices_of() {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
    let item = Arc::new(Field::new("item", DataType::Int64, true));
    let offsets = arrow_buffer::OffsetBuffer::from_lengths(vec![4; 1000]);
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(0..4000));
    let lists = arrow_array::ListArray::new(Arc::clone(&item), offsets.clone(), Arc::clone(&values), None);
    let vectors = arrow_array::FixedSizeListArray::new(item, 4, Arc::clone(&values), None);
    let fields = vec![Field::new("key", DataType::Int64, false), Field::new("value", DataType::Int64, true)];
    let entries = arrow_array::StructArray::new(fields.into(), vec![Arc::clone(&values), values], None);
    let entry = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let maps = arrow_array::MapArray::new(entry, offsets, entries, None, false);
    let columns: [(&str, ArrayRef); 4] =
        [("id", ids), ("lists", Arc::new(lists)), ("vectors", Arc::new(vectors)), ("maps", Arc::new(maps))];
    let whole = RecordBatch::try_from_iter(columns).unwrap();
    let slices: Vec<RecordBatch> = (0..10).map(|n| whole.slice(n * 100, 100)).collect();
    let (whole, slices) = (measure(&[whole], &key()), measure(&slices, &key()));
    // Every further batch has one more offset for each column that has offsets.
    let offsets = 9 * 2 * 4;
    assert_eq!(whole.in_memory_bytes, 8_000 + (32_000 + 4_004) + 32_000 + (64_000 + 4_004));
    assert_eq!(slices, SsTableMeta { in_memory_bytes: whole.in_memory_bytes + offsets, ..whole });
    assert_eq!(whole.primary_key_bytes, Some(8_000));
}
