//! Types of columns: keys of every type that can be one, and the other columns on their way through log, replay and
//! SSTables.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::*;
use arrow_row::{RowConverter, SortField};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_select::concat::concat_batches;
use arrow_select::interleave::interleave_record_batch;
use arrow_select::take::{take, take_record_batch};
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::prelude::{Expr, SessionContext, col, lit};
use fencepost::{Error, Sharding, Table, TableOptions};
use fencepost_sim::{Op, Record, Rng};
use lance::dataset::mem_wal::index::encode_pk_tuple;
use lance::dataset::mem_wal::scanner::exec::compute_pk_hash_from_scalars;
use lance_core::cache::LanceCache;
use lance_core::utils::bloomfilter::sbbf::Sbbf;
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::registry::IndexPluginRegistry;
use lance_index::scalar::btree::BTREE_INDEX_VERSION;
use lance_index::scalar::lance_format::LanceIndexStore;
use lance_index::scalar::{SargableQuery, ScalarIndex, SearchResult};
use lance_io::object_store::ObjectStore as LanceObjectStore;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use url::Url;

use crate::every_type::{self, dictionary};
use crate::merge::merge;
use crate::support::*;

async fn create(bucket: &Bucket, schema: &SchemaRef, key: &[&str]) -> Table {
    let primary_key = key.iter().map(|name| (*name).to_owned()).collect();
    let options = TableOptions { primary_key, sharding: Sharding::Unsharded };
    Table::create(bucket.process().store, Arc::clone(schema), options).await.unwrap()
}

/// The table's rows by `id`, under the table's schema.
async fn rows_of(provider: Arc<dyn TableProvider>) -> RecordBatch {
    let schema = provider.schema();
    let session = SessionContext::new();
    session.register_table("t", provider).unwrap();
    let batches = session.sql("select * from t order by id").await.unwrap().collect().await.unwrap();
    concat_batches(&schema, &batches).unwrap()
}

/// The rows as the table stores them: without views.
fn as_stored(batch: &RecordBatch, schema: &SchemaRef) -> RecordBatch {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| arrow_cast::cast(column, field.data_type()).unwrap());
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

fn assert_same(found: &RecordBatch, expected: &RecordBatch, what: &str) {
    assert_eq!(found.num_rows(), expected.num_rows(), "{what}");
    for (n, field) in expected.schema().fields().iter().enumerate() {
        assert_eq!(found.column(n).data_type(), field.data_type(), "{what}: {field}");
        assert_eq!(found.column(n), expected.column(n), "{what}: {field}");
    }
}

/// Random rows with a column of every type, in several batches, some overwritten and some deleted.
#[tokio::test]
async fn columns_of_every_type_come_back_unchanged_from_everywhere() {
    for (seed, key) in [(1, &["id"][..]), (2, &[])] {
        let mut rng = Rng::new(seed);
        let schema = every_type::schema();
        let bucket = Bucket::new();
        let table = create(&bucket, &schema, key).await;
        let mut batches: Vec<RecordBatch> = Vec::new();
        let mut newest: BTreeMap<i64, (usize, usize)> = BTreeMap::new();
        let mut writer = table.writer(config()).await.unwrap();
        let seen = |batches: &[RecordBatch], newest: &BTreeMap<i64, (usize, usize)>| {
            let stored: Vec<RecordBatch> = batches.iter().map(|batch| as_stored(batch, &table.schema())).collect();
            let rows: Vec<_> = newest.values().copied().collect();
            interleave_record_batch(&stored.iter().collect::<Vec<_>>(), &rows).unwrap()
        };
        for round in 0..3 {
            for _ in 0..2 {
                // Keyless rows have their ids only to be told apart.
                let first = if key.is_empty() { 30 * batches.len() as i64 } else { rng.below(20) as i64 };
                let ids: Vec<i64> = (first..first + 5 + rng.below(15) as i64).collect();
                let batch = every_type::batch(&schema, &ids, &mut rng);
                // Also a slice, whose arrays have offsets.
                let batch = batch.slice(2, ids.len() - 2);
                newest.extend(ids.into_iter().skip(2).enumerate().map(|(row, id)| (id, (batches.len(), row))));
                writer.put(batch.clone()).await.unwrap();
                batches.push(batch);
            }
            if !key.is_empty() {
                let deleted: Vec<i64> = (0..4).map(|_| rng.below(40) as i64).collect();
                writer.delete(keys(&deleted)).await.unwrap();
                newest.retain(|id, _| !deleted.contains(id));
            }
            let expected = seen(&batches, &newest);
            assert_same(&rows_of(writer.provider().await.unwrap()).await, &expected, "MemTable");
            assert_same(&rows_of(bucket.table().await.provider().await.unwrap()).await, &expected, "log");
            if round == 1 {
                drop(writer);
                writer = table.writer(config()).await.unwrap();
                assert_same(&rows_of(writer.provider().await.unwrap()).await, &expected, "replay");
            }
            writer.flush().await.unwrap();
            assert_same(&rows_of(writer.provider().await.unwrap()).await, &expected, "SSTable");
            assert_same(&rows_of(bucket.table().await.provider().await.unwrap()).await, &expected, "SSTable elsewhere");
            // The second round's SSTable waits, so that a merge also replaces rows that an earlier one brought.
            if round != 1 {
                merge(&bucket.table().await).await;
                assert_same(&rows_of(writer.provider().await.unwrap()).await, &expected, "base table");
                let inspection = bucket.table().await.inspect().await.unwrap();
                assert_eq!(inspection.base.rows, newest.len() as u64);
            }
        }
    }
}

#[tokio::test]
async fn a_type_that_lance_cannot_store_is_refused_when_the_table_is_made() {
    for (data_type, word) in every_type::refused() {
        let id = Field::new("id", DataType::Int64, false);
        let schema = Arc::new(Schema::new(vec![id, Field::new("c", data_type.clone(), true)]));
        let bucket = Bucket::new();
        let error = Table::create(bucket.process().store, schema, TableOptions::default()).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::InvalidOptions(_)), "{data_type}: {text}");
        assert!(text.contains("`c") && text.contains(word) && !text.contains(".rs:"), "{data_type}: {text}");
        assert!(matches!(Table::open(bucket.process().store).await, Err(Error::TableNotFound { .. })), "{data_type}");
    }
}

/// More values over time than one dictionary with 8-bit keys can number.
#[tokio::test]
async fn small_dictionaries_of_many_batches_make_one_sstable() {
    let color = dictionary(DataType::Int8, DataType::Utf8);
    let fields = vec![Field::new("id", DataType::Int64, false), Field::new("color", color.clone(), true)];
    let schema = Arc::new(Schema::new(fields));
    let bucket = Bucket::new();
    let table = create(&bucket, &schema, &["id"]).await;
    let writer = table.writer(config()).await.unwrap();
    for round in 0..10 {
        let ids: ArrayRef = Arc::new((round * 100..round * 100 + 100).collect::<Int64Array>());
        let colors = arrow_cast::cast(&arrow_cast::cast(&ids, &DataType::Utf8).unwrap(), &color).unwrap();
        writer.put(RecordBatch::try_new(Arc::clone(&schema), vec![ids, colors]).unwrap()).await.unwrap();
    }
    let wrong = "select count(*) from t where cast(id as varchar) <> color or color is null";
    for flushed in [false, true] {
        if flushed {
            writer.flush().await.unwrap();
        }
        for provider in [writer.provider().await.unwrap(), bucket.table().await.provider().await.unwrap()] {
            assert_eq!(number(&provider, "select count(*) from t where color is not null").await, 1000, "{flushed}");
            assert_eq!(number(&provider, wrong).await, 0, "{flushed}");
            assert_eq!(sql(&provider, "select id from t where color = '777'").await, [["777"]], "{flushed}");
        }
    }
}

/// Every type that Lance's encoding of keys lists, and those that only Fencepost allows.
fn key_types() -> Vec<DataType> {
    use DataType::*;
    vec![
        Int8,
        Int16,
        Int32,
        Int64,
        UInt8,
        UInt16,
        UInt32,
        UInt64,
        Date32,
        Date64,
        Boolean,
        Utf8,
        LargeUtf8,
        Binary,
        LargeBinary,
        FixedSizeBinary(5),
        Time32(TimeUnit::Millisecond),
        Time64(TimeUnit::Nanosecond),
        Timestamp(TimeUnit::Second, None),
        Timestamp(TimeUnit::Microsecond, Some("Europe/Zurich".into())),
        Duration(TimeUnit::Nanosecond),
        Decimal128(38, 5),
        Decimal256(76, 10),
        Utf8View,
        dictionary(Int16, Utf8),
    ]
}

/// Different random values of a type: up to 25, or as many as there are.
fn different(data_type: &DataType, rng: &mut Rng) -> ArrayRef {
    let values = every_type::array(data_type, false, 25, rng);
    let converter = RowConverter::new(vec![SortField::new(data_type.clone())]).unwrap();
    let rows = converter.convert_columns(&[Arc::clone(&values)]).unwrap();
    let mut seen = std::collections::HashSet::new();
    let first: Vec<u64> = (0..values.len()).filter(|n| seen.insert(rows.row(*n).owned())).map(|n| n as u64).collect();
    take(&values, &UInt64Array::from(first), None).unwrap()
}

/// A table with a key of one type, alone or with a second column, whose rows are put, overwritten and deleted over two
/// SSTables and a MemTable.
struct KeyedTable {
    bucket: Bucket,
    key: Vec<&'static str>,
    /// Key columns and `v`, as they were put first: `v` counts from 0.
    rows: RecordBatch,
    /// The rows of each SSTable, by their number in `rows`, in the order in which they were written.
    sstables: [Vec<usize>; 2],
    /// `v` by number in `rows`; `None` if deleted.
    model: Vec<Option<i64>>,
}

impl KeyedTable {
    async fn new(data_type: &DataType, composite: bool, rng: &mut Rng) -> Self {
        let keys = different(data_type, rng);
        let len = keys.len();
        let part: ArrayRef = Arc::new((0..len).map(|n| Some(["a", "a\0", ""][n % 3])).collect::<StringArray>());
        let v: ArrayRef = Arc::new((0..len as i64).collect::<Int64Array>());
        let (key, columns) = match composite {
            false => (vec!["k"], vec![("k", keys), ("v", v)]),
            true => (vec!["part", "k"], vec![("k", keys), ("v", v), ("part", part)]),
        };
        let rows = RecordBatch::try_from_iter(columns).unwrap();
        let bucket = Bucket::new();
        let table = create(&bucket, &rows.schema(), &key).await;
        let mut this = Self {
            bucket,
            key,
            rows,
            sstables: [(0..len).collect(), Vec::new()],
            model: (0..len as i64).map(Some).collect(),
        };
        let writer = table.writer(config()).await.unwrap();
        writer.put(this.rows.clone()).await.unwrap();
        writer.flush().await.unwrap();
        let overwritten: Vec<usize> = (0..len).filter(|n| n % 3 == 1).collect();
        let deleted: Vec<usize> = (0..len).filter(|n| n % 4 == 3).collect();
        writer.put(this.version(&overwritten, 1000)).await.unwrap();
        writer.delete(this.keys_of(&deleted)).await.unwrap();
        writer.flush().await.unwrap();
        // The newest row of a key is where it was written last.
        let remain = overwritten.iter().filter(|n| !deleted.contains(n));
        this.sstables[1] = remain.chain(&deleted).copied().collect();
        overwritten.iter().for_each(|n| this.model[*n] = Some(1000 + *n as i64));
        deleted.iter().for_each(|n| this.model[*n] = None);
        // Some come back, in the log only.
        let back: Vec<usize> = (0..len).filter(|n| n % 8 == 7).collect();
        if !back.is_empty() {
            writer.put(this.version(&back, 2000)).await.unwrap();
            back.iter().for_each(|n| this.model[*n] = Some(2000 + *n as i64));
        }
        this.check(writer.provider().await.unwrap()).await;
        let process = this.bucket.process();
        this.check(process.table().await.provider().await.unwrap()).await;
        let probed = |record: &Record| record.op == Op::Get && record.path.ends_with("bloom_filter.bin");
        // Of each SSTable once, or not at all if the statistics say enough.
        let filters = process.faults.log().into_iter().filter(probed).count();
        assert!((1..=2).contains(&filters), "{filters} filters, of {}", this.rows.schema());
        this
    }

    fn version(&self, rows: &[usize], add: i64) -> RecordBatch {
        let indices: UInt64Array = rows.iter().map(|n| *n as u64).collect::<Vec<_>>().into();
        let taken = take_record_batch(&self.rows, &indices).unwrap();
        let v: Int64Array = rows.iter().map(|n| *n as i64 + add).collect();
        let columns = taken.schema_ref().fields().iter().zip(taken.columns()).map(|(field, column)| {
            let v = || Arc::new(v.clone()) as ArrayRef;
            (field.name().clone(), if field.name() == "v" { v() } else { Arc::clone(column) })
        });
        RecordBatch::try_from_iter(columns.collect::<Vec<_>>()).unwrap()
    }

    fn keys_of(&self, rows: &[usize]) -> RecordBatch {
        let batch = self.version(rows, 0);
        let columns: Vec<usize> = self.key.iter().map(|name| batch.schema().index_of(name).unwrap()).collect();
        batch.project(&columns).unwrap()
    }

    /// A row's key, in the types that the table has them in.
    fn key(&self, row: usize) -> Vec<ScalarValue> {
        let value = |name| match ScalarValue::try_from_array(self.rows.column_by_name(name).unwrap(), row).unwrap() {
            ScalarValue::Dictionary(_, value) => *value,
            ScalarValue::Utf8View(text) => ScalarValue::Utf8(text),
            other => other,
        };
        self.key.iter().map(|name| value(name)).collect()
    }

    /// The whole table, and queries for some keys.
    async fn check(&self, provider: Arc<dyn TableProvider>) {
        let what = self.rows.schema();
        let mut expected: Vec<i64> = self.model.iter().flatten().copied().collect();
        expected.sort_unstable();
        let found = sql(&provider, "select v from t order by v").await.concat();
        assert_eq!(found, expected.iter().map(i64::to_string).collect::<Vec<_>>(), "{what}");
        let session = SessionContext::new();
        let table = session.read_table(provider).unwrap();
        let is = |row: &usize| {
            let parts = self.key.iter().zip(self.key(*row)).map(|(name, value)| col(*name).eq(lit(value)));
            parts.reduce(Expr::and).unwrap()
        };
        let some: Vec<usize> = (0..self.rows.num_rows()).step_by(3).collect();
        // One key, several keys.
        for wanted in [&some[..1], &some[some.len() - 1..], &some] {
            let filter = wanted.iter().map(is).reduce(Expr::or).unwrap();
            let query = table.clone().filter(filter).unwrap().select_columns(&["v"]).unwrap();
            let batches = query.collect().await.unwrap();
            let found = batches.iter().flat_map(|b| b.column(0).as_primitive::<types::Int64Type>().values().to_vec());
            let found: BTreeSet<i64> = found.collect();
            let expected: BTreeSet<i64> = wanted.iter().filter_map(|row| self.model[*row]).collect();
            assert_eq!(found, expected, "rows {wanted:?} of {what}");
        }
    }

    /// The folders of the SSTables in the bucket.
    async fn folders(&self) -> Vec<Path> {
        let shard = self.bucket.table().await.shard_ids().await.unwrap()[0];
        let manifest = self.bucket.manifest().await;
        manifest.sstables.iter().map(|s| Path::from(format!("t/{}{}", folder(shard), s.path))).collect()
    }

    /// Opens an SSTable's index the way that Lance's MemWAL reader does.
    async fn lances_index(&self, folder: &Path) -> Arc<dyn ScalarIndex> {
        let url = Url::parse("file-object-store:///").unwrap();
        let objects = LanceObjectStore::new(self.bucket.inner(), url, None, None, false, false, 4, 1, None);
        let store =
            LanceIndexStore::new(Arc::new(objects), folder.clone().join("_pk_index"), Arc::new(LanceCache::no_cache()));
        let registry = IndexPluginRegistry::with_default_plugins();
        let plugin = registry.get_plugin_by_name("BTree").unwrap();
        let cache = LanceCache::with_capacity(1 << 20);
        plugin.load_index(Arc::new(store), &Default::default(), BTREE_INDEX_VERSION, None, &cache).await.unwrap()
    }
}

async fn positions(index: &dyn ScalarIndex, key: ScalarValue) -> Vec<u64> {
    match index.search(&SargableQuery::Equals(key), &NoOpMetricsCollector).await.unwrap() {
        SearchResult::Exact(set) => set.true_rows().row_addrs().unwrap().map(u64::from).collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn keys_of_every_type_identify_rows_and_lance_finds_them_in_the_sidecars() {
    for (n, data_type) in key_types().into_iter().enumerate() {
        for composite in [false, true] {
            let table = KeyedTable::new(&data_type, composite, &mut Rng::new(n as u64)).await;
            let folders = table.folders().await;
            assert_eq!(folders.len(), 2);
            for (folder, rows) in folders.iter().zip(&table.sstables) {
                let bytes = table.bucket.inner().get(&folder.clone().join("bloom_filter.bin")).await.unwrap();
                let bloom = Sbbf::new(&bytes.bytes().await.unwrap()).unwrap();
                let index = table.lances_index(folder).await;
                for row in 0..table.rows.num_rows() {
                    let key = table.key(row);
                    let position = rows.iter().position(|n| *n == row);
                    let hash = compute_pk_hash_from_scalars(&key);
                    assert!(position.is_none() || bloom.check_hash(hash), "{data_type}: the filter denies {key:?}");
                    let known = match &key[..] {
                        [single] => single.clone(),
                        // Lance does not encode tuples of the others.
                        _ => match encode_pk_tuple(&key) {
                            Ok(tuple) => ScalarValue::Binary(Some(tuple)),
                            Err(_) => continue,
                        },
                    };
                    let expected = Vec::from_iter(position.map(|n| n as u64));
                    assert_eq!(positions(index.as_ref(), known).await, expected, "{data_type}: {key:?}");
                }
            }
            // Two SSTables in the base, then what the log had over it.
            merge(&table.bucket.table().await).await;
            table.check(table.bucket.table().await.provider().await.unwrap()).await;
            table.bucket.table().await.flush(config()).await.unwrap();
            merge(&table.bucket.table().await).await;
            table.check(table.bucket.table().await.provider().await.unwrap()).await;
            let inspection = table.bucket.table().await.inspect().await.unwrap();
            assert_eq!(inspection.base.rows, table.model.iter().flatten().count() as u64, "{data_type}");
        }
    }
}
