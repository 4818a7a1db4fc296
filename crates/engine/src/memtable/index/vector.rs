//! Vectors of a column, in memory, as a graph: Lance's HNSW, which takes vectors one after the other. What it has not
//! taken yet is searched exactly, so it may lag behind, and few rows need no graph at all.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::concat::concat;
use lance::dataset::mem_wal::index::HnswMemIndex;
use lance_index::vector::hnsw::builder::HnswBuildParams;
use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Result};
use crate::index::VectorConfig;

/// Rows that are put into the graph together at least. Fewer are searched exactly until more come.
const GROUP_ROWS: usize = 256;

/// Candidates of a search at least (`ef`): with the default graph, more than 0.99 of the nearest 10 are found.
const MIN_EFFORT: usize = 200;

const COLUMN: &str = "vector";

/// A graph of the first rows of a MemTable. It is made when there are more rows than are searched exactly, and made anew
/// with twice the room when it is full. Readers never wait for that.
pub(super) struct Vectors {
    config: VectorConfig,
    /// The type of the column with f32 values.
    schema: SchemaRef,
    builder: Mutex<Builder>,
    built: RwLock<Built>,
}

#[derive(Default)]
struct Builder {
    /// What the graph was given, to make a larger one of; null vectors are no part of it.
    given: Vec<(u32, ArrayRef)>,
    waiting: Vec<ArrayRef>,
    waiting_rows: usize,
}

/// What readers see.
#[derive(Clone, Default)]
struct Built {
    graph: Option<Arc<HnswMemIndex>>,
    /// Rows below this number that have a vector are in the graph.
    rows: u32,
    bytes: usize,
}

/// What a graph has found.
#[derive(Debug, Default)]
pub(crate) struct Nearby {
    /// Row numbers with their distances, nearest first.
    pub(crate) rows: Vec<(u32, f32)>,
    /// Rows below this number were looked at; what follows is to be searched exactly.
    pub(crate) searched: u32,
}

impl Vectors {
    pub(super) fn new(field: &Field, config: &VectorConfig) -> Self {
        let data_type = match field.data_type() {
            DataType::FixedSizeList(item, length) => {
                let item = Field::new(item.name(), DataType::Float32, item.is_nullable());
                DataType::FixedSizeList(Arc::new(item), *length)
            }
            other => other.clone(),
        };
        let schema = Arc::new(Schema::new(vec![Field::new(COLUMN, data_type, true)]));
        Self { config: config.clone(), schema, builder: Mutex::default(), built: RwLock::default() }
    }

    /// Takes the vectors of the next rows. One task at a time.
    pub(super) fn add(&self, column: &ArrayRef) -> Result<()> {
        let mut builder = self.builder.lock();
        let Built { graph, rows, .. } = self.built.read().clone();
        builder.waiting.push(Arc::clone(column));
        builder.waiting_rows += column.len();
        let total = rows as usize + builder.waiting_rows;
        if total <= self.config.exact_rows || builder.waiting_rows < GROUP_ROWS {
            return Ok(());
        }
        let group: Vec<&dyn Array> = builder.waiting.iter().map(AsRef::as_ref).collect();
        let group = match group.as_slice() {
            [_] => Arc::clone(column),
            many => concat(many).map_err(Error::arrow("gathering vectors"))?,
        };
        let vectors = self.to_f32(&group)?;
        let graph = match graph.filter(|graph| graph.capacity() >= total) {
            Some(graph) => graph,
            None => {
                let larger = self.empty_graph(total.saturating_mul(2));
                builder.given.iter().try_for_each(|(first, vectors)| self.insert(&larger, *first, vectors))?;
                Arc::new(larger)
            }
        };
        self.insert(&graph, rows, &vectors)?;
        builder.given.push((rows, vectors));
        (builder.waiting, builder.waiting_rows) = (vec![], 0);
        let bytes = self.bytes(&builder, graph.capacity());
        *self.built.write() = Built { graph: Some(graph), rows: u32::try_from(total).unwrap_or(u32::MAX), bytes };
        Ok(())
    }

    fn empty_graph(&self, capacity: usize) -> HnswMemIndex {
        let VectorConfig { metric, num_edges, ef_construction, .. } = self.config;
        let params = HnswBuildParams::default().num_edges(num_edges).ef_construction(ef_construction);
        // A group has many rows, so there are fewer batches than rows.
        HnswMemIndex::with_capacity(0, COLUMN.to_owned(), metric.to_lance(), params, capacity, capacity)
    }

    fn insert(&self, graph: &HnswMemIndex, first: u32, vectors: &ArrayRef) -> Result<()> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), vec![Arc::clone(vectors)]);
        let batch = batch.map_err(Error::arrow("gathering vectors"))?;
        graph.insert(&batch, u64::from(first)).map_err(failed())
    }

    fn to_f32(&self, column: &ArrayRef) -> Result<ArrayRef> {
        match self.schema.fields().first() {
            Some(field) if !column.data_type().equals_datatype(field.data_type()) => {
                cast(column, field.data_type()).map_err(Error::arrow("reading vectors"))
            }
            _ => Ok(Arc::clone(column)),
        }
    }

    fn bytes(&self, builder: &Builder, capacity: usize) -> usize {
        let of = |vectors: &ArrayRef| vectors.as_fixed_size_list().values().len() * size_of::<f32>();
        let vectors: usize = builder.given.iter().map(|(_, vectors)| of(vectors)).sum();
        // Twice the neighbours on the lowest level, each with its distance.
        vectors + capacity * (4 * self.config.num_edges + 4) * size_of::<u32>()
    }

    /// Rows below this number are in the graph.
    pub(super) fn rows(&self) -> u32 {
        self.built.read().rows
    }

    /// The nearest of the rows in the graph below `end`, up to `count`, with their distances; fewer if the graph leads to
    /// fewer.
    pub(super) fn nearest(&self, query: &Float32Array, count: usize, end: u32) -> Result<Nearby> {
        let Built { graph, rows, .. } = self.built.read().clone();
        let (Some(graph), Some(last)) = (graph, rows.min(end).checked_sub(1)) else {
            return Ok(Nearby::default());
        };
        let effort = count.saturating_mul(2).max(MIN_EFFORT);
        let found = graph.search(&as_list(query)?, count, Some(effort), u64::from(last)).map_err(failed())?;
        let found = found.into_iter().filter_map(|(distance, row)| Some((u32::try_from(row).ok()?, distance)));
        Ok(Nearby { rows: found.collect(), searched: last + 1 })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.built.read().bytes
    }
}

fn failed() -> impl FnOnce(lance::Error) -> Error {
    Error::lance("searching vectors in memory")
}

/// A query as Lance's graphs take it: a list of one vector.
fn as_list(query: &Float32Array) -> Result<FixedSizeListArray> {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let length = i32::try_from(query.len()).unwrap_or(i32::MAX);
    FixedSizeListArray::try_new(item, length, Arc::new(query.clone()), None).map_err(Error::arrow("reading a query"))
}
