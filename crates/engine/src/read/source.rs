//! One source of rows (a MemTable, an SSTable, the base table) and the newer sources that hide its rows.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow_buffer::BooleanBuffer;
use arrow_row::Rows;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, Operator};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt, stream};

use super::{ShardPruning, Snapshot, WantedKeys};
use crate::error::{Error, Result};
use crate::evolution;
use crate::key::{KeyEncoder, KeySet};
use crate::memtable::MemTableSnapshot;
use crate::rows::TOMBSTONE;
use crate::sstable::{self, SsTablePlace};

/// Where rows are.
#[derive(Debug, Clone)]
enum Place {
    MemTable(MemTableSnapshot),
    SsTable { place: SsTablePlace, rows: Option<u64> },
    Base,
}

/// A place, and the places whose rows hide those of the same key here.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    place: Place,
    newer: Vec<Place>,
}

/// What a scan wants of every source.
#[derive(Debug)]
pub(crate) struct Request {
    /// The columns, in order.
    columns: Vec<String>,
    schema: SchemaRef,
    /// A row that does not match may be left out; one that matches must not. Applied to the rows of a source, never
    /// to those that hide them.
    filter: Option<Expr>,
    /// If the filters allow only these keys: no row of another one is passed on. Sources without these keys are left
    /// out, so a row of another key may be one that they hide, and a row that nobody can see must not fail a query.
    wanted: Option<WantedKeys>,
    /// If shards are left out: no row of theirs is passed on, for the same reason.
    pruning: Option<ShardPruning>,
}

impl Request {
    pub(crate) fn all_columns(snapshot: &Snapshot) -> Self {
        let schema = Arc::clone(&snapshot.format.user);
        let columns = schema.fields().iter().map(|f| f.name().clone()).collect();
        Self { columns, schema, filter: None, wanted: None, pruning: None }
    }

    /// The columns of `schema`, the filters of a query on the columns of `table`, and the keys and shards that these
    /// allow.
    pub(crate) fn new(
        schema: SchemaRef,
        filters: &[Expr],
        table: &Schema,
        wanted: Option<WantedKeys>,
        pruning: Option<ShardPruning>,
    ) -> Result<Self> {
        let columns = schema.fields().iter().map(|f| f.name().clone()).collect();
        let filters = filters.iter().filter(|f| pushes_down(f, table)).cloned().map(unqualified);
        let filters = filters.collect::<Result<Vec<_>, DataFusionError>>()?;
        Ok(Self { columns, schema, filter: filters.into_iter().reduce(Expr::and), wanted, pruning })
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }
}

/// Whether a source may evaluate a filter itself: comparisons of columns and literals, nothing that can fail or that
/// has another answer each time. A source evaluates it also for rows that newer ones hide, and a row that nobody can
/// see must not fail a query: no arithmetic (`10 / v`), no casts, no functions. Other filters are evaluated above.
fn pushes_down(filter: &Expr, table: &Schema) -> bool {
    let plain = |expr: &Expr| match expr {
        Expr::Column(column) => is_plain_column(&column.name, table),
        Expr::BinaryExpr(binary) => {
            matches!(
                binary.op,
                Operator::Eq
                    | Operator::NotEq
                    | Operator::Lt
                    | Operator::LtEq
                    | Operator::Gt
                    | Operator::GtEq
                    | Operator::IsDistinctFrom
                    | Operator::IsNotDistinctFrom
                    | Operator::And
                    | Operator::Or
            )
        }
        Expr::Literal(..)
        | Expr::Not(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::Between(_)
        | Expr::InList(_) => true,
        _ => false,
    };
    !filter.exists(|expr| Ok(!plain(expr))).unwrap_or(true)
}

/// A column of single values, under a name that Lance does not take for a path into a struct. No floats: 0.0 and -0.0
/// are one value to Lance and two to DataFusion, so a row would match in one source and not in another.
fn is_plain_column(name: &str, table: &Schema) -> bool {
    let single = |field: &Field| {
        let data_type = field.data_type();
        (data_type.is_primitive() && !data_type.is_floating())
            || matches!(data_type, DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8)
            || matches!(data_type, DataType::Binary | DataType::LargeBinary)
    };
    !name.contains(['.', '`']) && table.field_with_name(name).is_ok_and(single)
}

/// Lance knows columns by name only.
pub(super) fn unqualified(filter: Expr) -> Result<Expr, DataFusionError> {
    let stripped = filter.transform(|expr| match expr {
        Expr::Column(column) if column.relation.is_some() => {
            Ok(Transformed::yes(Expr::Column(Column::new_unqualified(column.name))))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(stripped.data)
}

impl Source {
    pub(crate) fn memtable(memtable: MemTableSnapshot) -> Self {
        Self { place: Place::MemTable(memtable), newer: Vec::new() }
    }

    pub(crate) fn sstable(place: SsTablePlace, rows: Option<u64>) -> Self {
        Self { place: Place::SsTable { place, rows }, newer: Vec::new() }
    }

    pub(crate) fn base() -> Self {
        Self { place: Place::Base, newer: Vec::new() }
    }

    pub(crate) fn hidden_by(mut self, newer: &[Source]) -> Self {
        self.newer = newer.iter().map(|source| source.place.clone()).collect();
        self
    }

    /// For plans: what this is.
    pub(crate) fn describe(&self) -> String {
        match &self.place {
            Place::MemTable(memtable) => format!("MemTable {} ({} rows)", memtable.generation(), memtable.rows()),
            Place::SsTable { place, rows: Some(rows) } => format!("SSTable {} ({rows} rows)", place.rel_dir),
            Place::SsTable { place, rows: None } => format!("SSTable {}", place.rel_dir),
            Place::Base => "base table".into(),
        }
    }

    /// The rows that no newer source hides, without tombstones, in the request's columns.
    pub(crate) async fn read(
        self,
        snapshot: Arc<Snapshot>,
        request: Arc<Request>,
    ) -> Result<SendableRecordBatchStream> {
        let keys = snapshot.format.keys.clone();
        let hiding = match &keys {
            Some(encoder) => Hiding::load(&self.newer, &snapshot, encoder).await?,
            None => Hiding::default(),
        };
        // Only the base table has rows of several shards.
        let is_base = matches!(self.place, Place::Base);
        let pruned = is_base && keys.is_some() && request.pruning.is_some();
        let with_keys = !hiding.is_empty() || request.wanted.is_some() || pruned;
        let part = match &self.place {
            Place::SsTable { place, .. } => snapshot.part_of(place)?,
            _ => None,
        };
        let batches = self.raw(&snapshot, &request, with_keys).await?;
        let schema = Arc::clone(request.schema());
        let visible = batches.map(move |batch| {
            let mut batch = batch?;
            if let Some(pruning) = request.pruning.as_ref().filter(|_| pruned) {
                let wanted = BooleanArray::new(pruning.rows(&batch)?, None);
                batch = filter_record_batch(&batch, &wanted).map_err(Error::arrow("leaving out rows"))?;
            }
            if let Some(part) = &part {
                batch = part.choose(&batch)?;
            }
            let shown = visible(&batch, keys.as_ref(), &hiding, request.wanted.as_ref())?;
            Ok(conform(&shown, &request.schema)?)
        });
        let visible = visible.try_filter(|batch| std::future::ready(batch.num_rows() > 0));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, visible)))
    }

    /// The source's own rows with the columns of the request, the key columns if rows are chosen by key, and the
    /// tombstone column if the source has one.
    async fn raw(&self, snapshot: &Snapshot, request: &Request, with_keys: bool) -> Result<SendableRecordBatchStream> {
        let mut columns = request.columns.clone();
        if with_keys {
            let keys = snapshot.format.primary_key.iter();
            columns.extend(keys.filter(|key| !request.columns.contains(key)).cloned());
        }
        let filter = request.filter.clone();
        match &self.place {
            Place::Base => snapshot.base.scan(Some(&columns), filter, None).await,
            Place::SsTable { place, .. } => {
                if let Some(part) = snapshot.part_of(place)?.filter(|part| !columns.iter().any(|c| c == part.column()))
                {
                    columns.push(part.column().to_owned());
                }
                columns.push(TOMBSTONE.to_owned());
                let dataset = snapshot.cache.dataset(place).await?;
                let described = || place.describe(snapshot.base.lance_store());
                // Columns that were added later are left to `conform`, and so are filters on them to whoever is above.
                let columns = evolution::columns_of(&dataset, &snapshot.base, &columns, described)?;
                let is_there = |name: &str| dataset.schema().fields.iter().any(|field| field.name == name);
                let filter = filter.filter(|filter| filter.column_refs().iter().all(|column| is_there(&column.name)));
                sstable::scan(&dataset, Some(&columns), filter).await
            }
            Place::MemTable(memtable) => {
                columns.push(TOMBSTONE.to_owned());
                let schema = memtable.schema();
                // One of an earlier time has fewer.
                columns.retain(|name| schema.index_of(name).is_ok());
                let index =
                    |name: &String| schema.index_of(name).map_err(Error::arrow("choosing a MemTable's columns"));
                let indices = columns.iter().map(index).collect::<Result<Vec<_>>>()?;
                let projected = schema.project(&indices).map_err(Error::arrow("choosing a MemTable's columns"))?;
                let rows = memtable.live_columns(&indices)?;
                let rows = stream::iter(rows.into_iter().map(Ok));
                Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::new(projected), rows)))
            }
        }
    }
}

/// Exact membership in the newer sources.
#[derive(Default)]
struct Hiding {
    memtables: Vec<MemTableSnapshot>,
    sstables: Vec<Arc<KeySet>>,
}

impl Hiding {
    async fn load(newer: &[Place], snapshot: &Snapshot, encoder: &KeyEncoder) -> Result<Self> {
        let mut hiding = Self::default();
        for place in newer {
            match place {
                Place::MemTable(memtable) => hiding.memtables.push(memtable.clone()),
                Place::SsTable { place, .. } => {
                    let part = snapshot.part_of(place)?;
                    hiding.sstables.push(snapshot.cache.keys(place, part.as_ref(), encoder).await?);
                }
                Place::Base => {}
            }
        }
        Ok(hiding)
    }

    fn is_empty(&self) -> bool {
        self.memtables.is_empty() && self.sstables.is_empty()
    }

    /// I8: a newer version of the key, a tombstone too, hides the row whatever the newer version looks like.
    fn hidden(&self, keys: &Rows) -> BooleanBuffer {
        let mut hidden = BooleanBuffer::new_unset(keys.num_rows());
        for memtable in &self.memtables {
            hidden = &hidden | &memtable.contains_keys(keys);
        }
        for sstable in &self.sstables {
            hidden = &hidden | &keys.iter().map(|key| sstable.contains(key.data())).collect();
        }
        hidden
    }
}

/// The rows of a source that are in the answer as far as keys and tombstones decide it.
fn visible(
    batch: &RecordBatch,
    keys: Option<&KeyEncoder>,
    hiding: &Hiding,
    wanted: Option<&WantedKeys>,
) -> Result<RecordBatch> {
    let mut shown: Option<BooleanBuffer> = None;
    let mut only = |rows: BooleanBuffer| {
        shown = Some(match &shown {
            Some(shown) => shown & &rows,
            None => rows,
        });
    };
    if let Some(encoder) = keys.filter(|_| wanted.is_some() || !hiding.is_empty()) {
        let keys = encoder.encode(batch)?;
        if let Some(wanted) = wanted {
            only(wanted.among(&keys));
        }
        only(!&hiding.hidden(&keys));
    }
    if let Some(tombstones) = batch.column_by_name(TOMBSTONE) {
        let Some(tombstones) = tombstones.as_boolean_opt() else {
            return Err(Error::InvalidBatch(format!("`{TOMBSTONE}` is {} in an SSTable", tombstones.data_type())));
        };
        only(!tombstones.values());
    }
    match shown {
        Some(mask) if mask.count_set_bits() < mask.len() => {
            filter_record_batch(batch, &BooleanArray::new(mask, None)).map_err(Error::arrow("hiding old rows"))
        }
        _ => Ok(batch.clone()),
    }
}

/// The request's columns in its order and types. Those that were added to the table after the rows were written are null.
fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let batch = &match schema.fields().iter().all(|field| batch.column_by_name(field.name()).is_some()) {
        true => batch.clone(),
        false => evolution::with_nulls(batch, schema)?,
    };
    let column = |name: &str| -> Result<ArrayRef> {
        batch.column_by_name(name).cloned().ok_or_else(|| Error::InvalidBatch(format!("column `{name}` is missing")))
    };
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let array = column(field.name())?;
        columns.push(match array.data_type().equals_datatype(field.data_type()) {
            true => array,
            false => arrow_cast::cast(&array, field.data_type()).map_err(Error::arrow("reading a column"))?,
        });
    }
    let found = schema.fields().iter().zip(&columns);
    let found = found.map(|(f, c)| f.as_ref().clone().with_data_type(c.data_type().clone()));
    let found = Arc::new(Schema::new(found.collect::<Vec<_>>()));
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let named = RecordBatch::try_new_with_options(found, columns, &options).map_err(Error::arrow("reading rows"))?;
    sstable::relabel(&named, schema)
}
