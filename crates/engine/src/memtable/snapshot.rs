//! One moment of a MemTable, for readers. It holds the batches of its moment and asks the MemTable's index, which
//! answers for that moment however much it has grown since.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{BooleanArray, Float32Array, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow_buffer::BooleanBuffer;
use arrow_schema::SchemaRef;
use arrow_select::concat::concat_batches;
use arrow_select::filter::{filter, filter_record_batch};
use arrow_select::interleave::interleave_record_batch;
use parking_lot::RwLock;

use super::State;
use super::batch_store::{BatchView, batch_bytes};
use super::index::{Indexes, Nearby, TextMatches, ValueRange};
use crate::Generation;
use crate::error::{Error, Result};
use crate::index::{FullTextConfig, Metric};
use crate::key::Keys;
use crate::rows::TOMBSTONE;

/// The most rows in a batch made for a flush.
pub(super) const FLUSH_BATCH_ROWS: usize = 8192;

/// Small batches are put together for a flush up to this size, because Lance takes some time for each. Larger ones are not copied.
const FLUSH_BATCH_BYTES: usize = 8 << 20;

/// An immutable view of a MemTable. It keeps the MemTable's rows in memory until it is dropped. Clone is cheap.
#[derive(Clone)]
pub(crate) struct MemTableSnapshot {
    pub(super) schema: SchemaRef,
    pub(super) generation: Generation,
    /// The rows of the moment; their number is the watermark for all questions to the index.
    pub(super) view: BatchView,
    pub(super) state: Arc<RwLock<State>>,
    pub(super) indexes: Arc<Indexes>,
}

impl MemTableSnapshot {
    /// The storage schema.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The generation of the MemTable.
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// How many rows it has; older rows of a key count too.
    pub(crate) fn rows(&self) -> usize {
        self.view.rows()
    }

    /// The newest row of each key, in insert order. Tombstones are rows here: the caller hides the older sources'
    /// rows by them before it drops them. Without a primary key all rows.
    ///
    /// # Errors
    /// [`Error::Arrow`] if a batch cannot be filtered.
    pub(crate) fn live_batches(&self) -> Result<Vec<RecordBatch>> {
        self.live(|batch| Ok(batch.clone()))
    }

    /// [`live_batches`](Self::live_batches) with only these columns, which spares filtering the others.
    ///
    /// # Errors
    /// [`Error::Arrow`] if there is no such column or a batch cannot be filtered.
    pub(crate) fn live_columns(&self, columns: &[usize]) -> Result<Vec<RecordBatch>> {
        self.live(|batch| batch.project(columns).map_err(Error::arrow("choosing a MemTable's columns")))
    }

    /// Those of these rows that are the newest of their keys. Without a primary key all are.
    pub(crate) fn only_live(&self, rows: Vec<u32>) -> Vec<u32> {
        let live = self.are_live(&rows);
        rows.into_iter().zip(live).filter_map(|(row, live)| live.then_some(row)).collect()
    }

    fn are_live(&self, rows: &[u32]) -> Vec<bool> {
        let watermark = self.view.rows();
        let state = self.state.read();
        let newest = |row: &u32| match &state.index {
            Some(index) => index.newest(*row as usize..*row as usize + 1, watermark).value(0),
            None => true,
        };
        rows.iter().map(newest).collect()
    }

    /// As [`take`](Self::take), of rows as the secondary indexes number them.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn take_numbered(&self, rows: &[u32], columns: &[usize]) -> Result<RecordBatch> {
        self.take(&rows.iter().map(|row| *row as usize).collect::<Vec<_>>(), columns)
    }

    /// The rows whose value in a column is in one of the ranges, in row order; `None` without a B-tree on it.
    ///
    /// # Errors
    /// [`Error::Arrow`] if the ranges are not of the column's type.
    pub(crate) fn in_ranges(&self, column: &str, ranges: &[ValueRange]) -> Result<Option<Vec<u32>>> {
        self.indexes.in_ranges(&self.view, column, ranges)
    }

    /// About the nearest of the rows that are in a graph; `None` without one with this metric.
    ///
    /// # Errors
    /// [`Error::Lance`] for a query that does not fit the column.
    pub(crate) fn nearest(
        &self,
        column: &str,
        metric: Metric,
        query: &Float32Array,
        count: usize,
    ) -> Result<Option<Nearby>> {
        self.indexes.nearest(&self.view, column, metric, query, count)
    }

    /// Where words are; `None` without a full-text index on the column with the same settings.
    ///
    /// # Errors
    /// None that a query could cause.
    pub(crate) fn text(&self, column: &str, config: &FullTextConfig, words: &[String]) -> Result<Option<TextMatches>> {
        self.indexes.text(&self.view, column, config, words)
    }

    /// The places of those of these columns that it has. One of an earlier time has fewer than the table has now.
    pub(crate) fn columns_named(&self, names: &[String]) -> Vec<usize> {
        names.iter().filter_map(|name| self.schema.index_of(name).ok()).collect()
    }

    /// The newest row of each key from row number `first` on, which starts a batch, with its number, in row order.
    ///
    /// # Errors
    /// [`Error::Arrow`] if there is no such column or a batch cannot be filtered.
    pub(crate) fn live_from(&self, first: u32, columns: &[usize]) -> Result<Vec<(RecordBatch, UInt32Array)>> {
        let mut live = Vec::new();
        for stored in self.view.iter().filter(|stored| stored.first_row >= first as usize) {
            let batch = stored.batch.project(columns).map_err(Error::arrow("choosing a MemTable's columns"))?;
            let rows =
                (stored.first_row..stored.first_row + batch.num_rows()).filter_map(|row| u32::try_from(row).ok());
            let rows: Vec<u32> = rows.collect();
            let newest = BooleanArray::from(self.are_live(&rows));
            let failed = || Error::arrow("leaving out a MemTable's older rows");
            let numbers = filter(&UInt32Array::from(rows), &newest).map_err(failed())?;
            let batch = filter_record_batch(&batch, &newest).map_err(failed())?;
            if batch.num_rows() > 0 {
                live.push((batch, numbers.as_primitive::<UInt32Type>().clone()));
            }
        }
        Ok(live)
    }

    fn live(&self, choose: impl Fn(&RecordBatch) -> Result<RecordBatch>) -> Result<Vec<RecordBatch>> {
        let mut live = Vec::new();
        for stored in self.view.iter() {
            let batch = choose(&stored.batch)?;
            let rows = stored.first_row..stored.first_row + batch.num_rows();
            // One short lock for each batch, so that the writer never waits for a whole scan.
            let newest = self.state.read().index.as_ref().map(|index| index.newest(rows, self.view.rows()));
            match newest {
                Some(newest) if newest.count_set_bits() == 0 => {}
                Some(newest) if newest.count_set_bits() < newest.len() => {
                    let filtered = filter_record_batch(&batch, &BooleanArray::new(newest, None));
                    live.push(filtered.map_err(Error::arrow("leaving out a MemTable's older rows"))?);
                }
                _ => live.push(batch),
            }
        }
        Ok(live)
    }

    /// For each of these keys (encoded with the table's [`KeyEncoder`](crate::key::KeyEncoder)), whether any row here
    /// has it, a tombstone too: then no older source's row of the key may be shown. Without a primary key never.
    pub(crate) fn contains_keys(&self, keys: &Keys) -> BooleanBuffer {
        match &self.state.read().index {
            Some(index) => keys.iter().map(|key| index.contains(key, self.view.rows())).collect(),
            None => BooleanBuffer::new_unset(keys.len()),
        }
    }

    /// For each of these encoded keys the number of its newest row, a tombstone too.
    pub(crate) fn newest_rows<'k>(&self, keys: impl IntoIterator<Item = &'k [u8]>) -> Vec<Option<usize>> {
        let state = self.state.read();
        let newest = |key| state.index.as_ref()?.newest_of(key, self.view.rows());
        keys.into_iter().map(newest).collect()
    }

    /// The number of a key's newest row, a tombstone too.
    pub(crate) fn newest_row(&self, key: &[u8]) -> Option<usize> {
        self.state.read().index.as_ref()?.newest_of(key, self.view.rows())
    }

    /// One row under a schema of some of the user's columns, without a copy: no row if it is a tombstone. `None`: the schema has
    /// columns that this MemTable has not, or has in another form.
    ///
    /// # Errors
    /// [`Error::Arrow`] if there is no such row.
    pub(crate) fn row(&self, row: usize, schema: &SchemaRef) -> Result<Option<RecordBatch>> {
        let Some(stored) = self.view.batch_of(row) else {
            let reason = format!("row {row} of {}", self.view.rows());
            let error = arrow_schema::ArrowError::InvalidArgumentError(reason);
            return Err(Error::arrow("taking a row of a MemTable")(error));
        };
        let (batch, at) = (&stored.batch, row - stored.first_row);
        // The last column, if the rows can be deleted.
        let tombstones = batch.columns().last().and_then(|column| column.as_boolean_opt());
        let is_tombstone = self.schema.fields().last().is_some_and(|field| field.name() == TOMBSTONE);
        if tombstones.is_some_and(|deleted| is_tombstone && deleted.value(at)) {
            return Ok(Some(RecordBatch::new_empty(Arc::clone(schema))));
        }
        let mut columns = Vec::with_capacity(schema.fields().len());
        for (n, field) in schema.fields().iter().enumerate() {
            // Most often the columns stand in the same order.
            let is_same = self.schema.fields().get(n).is_some_and(|own| own.name() == field.name());
            let place = if is_same { Some(n) } else { self.schema.index_of(field.name()).ok() };
            let Some(column) = place.and_then(|place| batch.columns().get(place)) else {
                return Ok(None);
            };
            columns.push(column.slice(at, 1));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(1));
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).ok())
    }

    /// These rows, in this order, with only these columns.
    ///
    /// # Errors
    /// [`Error::Arrow`] if there is no such row or column, or the rows do not fit into one batch.
    pub(crate) fn take(&self, rows: &[usize], columns: &[usize]) -> Result<RecordBatch> {
        let failed = || Error::arrow("taking rows of a MemTable");
        let mut number_of: HashMap<usize, usize> = HashMap::new();
        let mut batches = Vec::new();
        let mut places = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(stored) = self.view.batch_of(*row) else {
                let reason = format!("row {row} of {}", self.view.rows());
                return Err(failed()(arrow_schema::ArrowError::InvalidArgumentError(reason)));
            };
            let number = match number_of.entry(stored.first_row) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    batches.push(stored.batch.project(columns).map_err(failed())?);
                    *new.insert(batches.len() - 1)
                }
            };
            places.push((number, row - stored.first_row));
        }
        match batches.is_empty() {
            true => Ok(RecordBatch::new_empty(Arc::new(self.schema.project(columns).map_err(failed())?))),
            false => interleave_record_batch(&batches.iter().collect::<Vec<_>>(), &places).map_err(failed()),
        }
    }

    pub(super) fn for_flush(&self) -> Result<Vec<RecordBatch>> {
        let mut out = Vec::new();
        let mut group: Vec<RecordBatch> = Vec::new();
        let (mut group_rows, mut group_bytes) = (0, 0);
        for batch in self.live_batches()? {
            let mut offset = 0;
            while offset < batch.num_rows() {
                let piece = batch.slice(offset, FLUSH_BATCH_ROWS.min(batch.num_rows() - offset));
                offset += piece.num_rows();
                let bytes = batch_bytes(&piece);
                if group_rows + piece.num_rows() > FLUSH_BATCH_ROWS || group_bytes + bytes > FLUSH_BATCH_BYTES {
                    self.concat_into(&mut out, std::mem::take(&mut group));
                    (group_rows, group_bytes) = (0, 0);
                }
                group_rows += piece.num_rows();
                group_bytes += bytes;
                group.push(piece);
            }
        }
        self.concat_into(&mut out, group);
        Ok(out)
    }

    fn concat_into(&self, out: &mut Vec<RecordBatch>, group: Vec<RecordBatch>) {
        if group.len() <= 1 {
            out.extend(group);
            return;
        }
        match concat_batches(&self.schema, &group) {
            Ok(batch) => out.push(batch),
            // For example more dictionary values together than the keys can number. Small batches are only slower,
            // whereas an error here would stop every flush to come.
            Err(_) => out.extend(group),
        }
    }
}

impl fmt::Debug for MemTableSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemTableSnapshot")
            .field("generation", &self.generation)
            .field("rows", &self.rows())
            .finish_non_exhaustive()
    }
}
