//! One source of rows (a MemTable, an SSTable, the base table) and the newer sources that hide its rows.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow_buffer::BooleanBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::{Expr, Operator};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;

use super::hiding::{Hiding, Newer};
use super::ranges::rows_by_index;
use super::skip::Skip;
use super::{ShardPruning, Snapshot};
use crate::error::{Error, Result};
use crate::evolution;
use crate::key::KeyEncoder;
use crate::memtable::MemTableSnapshot;
use crate::rows::TOMBSTONE;
use crate::sharding::PartOfRows;
use crate::sstable::{self, SsTablePlace};

/// Where rows are.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    MemTable(MemTableSnapshot),
    SsTable { place: SsTablePlace, rows: Option<u64> },
    Base,
}

/// A place, and the newer ones whose rows hide those of the same key here.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    place: Place,
    newer: Newer,
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
    /// If shards are left out: no row of theirs is passed on. What they hide comes to light, and a row that nobody can see
    /// must not fail a query.
    pruning: Option<ShardPruning>,
}

impl Request {
    pub(crate) fn all_columns(snapshot: &Snapshot) -> Self {
        let schema = Arc::clone(&snapshot.format.user);
        let columns = schema.fields().iter().map(|f| f.name().clone()).collect();
        Self { columns, schema, filter: None, pruning: None }
    }

    /// The columns of `schema`, the filters of a query on the columns of `table`, and the shards that these allow.
    pub(crate) fn new(
        schema: SchemaRef,
        filters: &[Expr],
        table: &Schema,
        pruning: Option<ShardPruning>,
    ) -> Result<Self> {
        let columns = schema.fields().iter().map(|f| f.name().clone()).collect();
        let filters = filters.iter().filter(|f| pushes_down(f, table)).cloned().map(unqualified);
        let filters = filters.collect::<Result<Vec<_>, DataFusionError>>()?;
        Ok(Self { columns, schema, filter: filters.into_iter().reduce(Expr::and), pruning })
    }

    /// The same request for rows that bring more columns along, which no source has.
    pub(crate) fn with_more(self, fields: &[Field]) -> Self {
        let all = self.schema.fields().iter().map(|field| field.as_ref().clone()).chain(fields.iter().cloned());
        Self { schema: Arc::new(Schema::new(all.collect::<Vec<_>>())), ..self }
    }

    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What a source may filter by.
    pub(crate) fn filter(&self) -> Option<&Expr> {
        self.filter.as_ref()
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
pub(super) fn is_plain_column(name: &str, table: &Schema) -> bool {
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
    pub(super) fn memtable(memtable: MemTableSnapshot, newer: Newer) -> Self {
        Self { place: Place::MemTable(memtable), newer }
    }

    pub(super) fn sstable(place: SsTablePlace, rows: Option<u64>, newer: Newer) -> Self {
        Self { place: Place::SsTable { place, rows }, newer }
    }

    pub(super) fn base(newer: Newer) -> Self {
        Self { place: Place::Base, newer }
    }

    pub(super) fn is_base(&self) -> bool {
        matches!(self.place, Place::Base)
    }

    /// Where its rows are.
    pub(crate) fn place(&self) -> &Place {
        &self.place
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

    /// What hides its rows; nothing without a primary key. The keys of the newer SSTables of its shard are read, as far as
    /// nobody has read them yet.
    pub(crate) async fn hiding(&self, snapshot: &Snapshot) -> Result<Hiding> {
        match &snapshot.format.keys {
            Some(encoder) => Hiding::load(&self.newer, snapshot, encoder).await,
            None => Ok(Hiding::default()),
        }
    }

    /// What decides which of the source's rows are in the answer to a request.
    pub(crate) async fn visibility(&self, snapshot: &Snapshot, request: &Arc<Request>) -> Result<Visibility> {
        let keys = snapshot.format.keys.clone();
        let hiding = self.hiding(snapshot).await?;
        // Only the base table has rows of several shards.
        let pruned = self.is_base() && keys.is_some() && request.pruning.is_some();
        let mut columns = request.columns.clone();
        let mut also = |name: &str| {
            if !columns.iter().any(|column| column == name) {
                columns.push(name.to_owned());
            }
        };
        if !hiding.is_empty() || pruned {
            snapshot.format.primary_key.iter().for_each(|key| also(key));
        }
        let part = match &self.place {
            Place::SsTable { place, .. } => snapshot.part_of(place)?,
            _ => None,
        };
        part.iter().for_each(|part| also(part.column()));
        if !self.is_base() {
            also(TOMBSTONE);
        }
        Ok(Visibility { request: Arc::clone(request), keys, hiding, pruned, part, columns })
    }

    /// The rows that no newer source hides, without tombstones, in the request's columns.
    pub(crate) async fn read(
        self,
        snapshot: Arc<Snapshot>,
        request: Arc<Request>,
    ) -> Result<SendableRecordBatchStream> {
        let schema = Arc::clone(request.schema());
        if !self.may_match(&snapshot, &request).await? {
            return Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::empty())));
        }
        let visibility = self.visibility(&snapshot, &request).await?;
        let batches = self.raw(&snapshot, &request, visibility.columns()).await?;
        let visible = batches.map(move |batch| Ok(visibility.apply(&batch?)?));
        let visible = visible.try_filter(|batch| std::future::ready(batch.num_rows() > 0));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, visible)))
    }

    /// Whether it can have a row of the answer.
    pub(crate) async fn may_match(&self, snapshot: &Snapshot, request: &Request) -> Result<bool> {
        match (&self.place, &request.filter) {
            (Place::SsTable { place, .. }, Some(filter)) => {
                let card = snapshot.cache.card(place).await?;
                let Some(statistics) = card.statistics() else {
                    return Ok(true);
                };
                let (schema, base) = (&snapshot.format.user, &snapshot.base);
                Ok(Skip { statistics, schema, base }.may_match(filter))
            }
            // Nothing to wait for.
            (Place::Base, _) => Ok(!snapshot.base.dataset().manifest().fragments.is_empty()),
            _ => Ok(true),
        }
    }

    /// Those of these columns that its rows have, in a dataset that they are in. The others were added to the table later.
    ///
    /// # Errors
    /// [`Error::SchemaChanged`](crate::Error::SchemaChanged) if one of them was not added, but changed.
    pub(crate) fn columns_there(
        &self,
        snapshot: &Snapshot,
        dataset: &Dataset,
        columns: &[String],
    ) -> Result<Vec<String>> {
        match &self.place {
            Place::SsTable { place, .. } => {
                let described = || place.describe(snapshot.base.lance_store());
                evolution::columns_of(dataset, &snapshot.base, columns, described)
            }
            Place::MemTable(_) | Place::Base => Ok(columns.to_vec()),
        }
    }

    /// The source's own rows with these columns.
    async fn raw(
        &self,
        snapshot: &Snapshot,
        request: &Request,
        columns: &[String],
    ) -> Result<SendableRecordBatchStream> {
        let filter = request.filter.clone();
        match &self.place {
            Place::Base => snapshot.base.scan(Some(columns), filter, None).await,
            Place::SsTable { place, .. } => {
                let dataset = snapshot.cache.dataset(place).await?;
                // Columns that were added later are left to `conform`, and so are filters on them to whoever is above.
                let columns = self.columns_there(snapshot, &dataset, columns)?;
                let is_there = |name: &str| dataset.schema().fields.iter().any(|field| field.name == name);
                let filter = filter.filter(|filter| filter.column_refs().iter().all(|column| is_there(&column.name)));
                sstable::scan(&dataset, Some(&columns), filter).await
            }
            Place::MemTable(memtable) => {
                let indices = memtable.columns_named(columns);
                let projected = memtable.schema().project(&indices);
                let projected = projected.map_err(Error::arrow("choosing a MemTable's columns"))?;
                let by_index = filter.map(|filter| rows_by_index(memtable, &filter)).transpose()?.flatten();
                let rows = match by_index {
                    Some(rows) => vec![memtable.take_numbered(&memtable.only_live(rows), &indices)?],
                    None => memtable.live_columns(&indices)?,
                };
                let rows = stream::iter(rows.into_iter().map(Ok));
                Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::new(projected), rows)))
            }
        }
    }
}

/// Which rows of a source are in the answer to a request: loaded once, asked of any of the source's rows.
pub(crate) struct Visibility {
    request: Arc<Request>,
    keys: Option<KeyEncoder>,
    hiding: Hiding,
    pruned: bool,
    part: Option<PartOfRows>,
    columns: Vec<String>,
}

impl Visibility {
    /// The columns that it needs of a row: those of the request first.
    pub(crate) fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The rows of a batch that no newer source hides, without tombstones, in the request's columns.
    pub(crate) fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut batch = batch.clone();
        if let Some(pruning) = self.request.pruning.as_ref().filter(|_| self.pruned) {
            let wanted = BooleanArray::new(pruning.rows(&batch)?, None);
            batch = filter_record_batch(&batch, &wanted).map_err(Error::arrow("leaving out rows"))?;
        }
        if let Some(part) = &self.part {
            batch = part.choose(&batch)?;
        }
        let shown = visible(&batch, self.keys.as_ref(), &self.hiding)?;
        conform(&shown, &self.request.schema)
    }
}

/// The rows of a source that are in the answer as far as keys and tombstones decide it.
fn visible(batch: &RecordBatch, keys: Option<&KeyEncoder>, hiding: &Hiding) -> Result<RecordBatch> {
    let mut shown: Option<BooleanBuffer> = None;
    let mut only = |rows: BooleanBuffer| {
        shown = Some(match &shown {
            Some(shown) => shown & &rows,
            None => rows,
        });
    };
    if let Some(encoder) = keys.filter(|_| !hiding.is_empty()) {
        only(!&hiding.hidden(&encoder.encode(batch)?));
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
pub(super) fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
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
