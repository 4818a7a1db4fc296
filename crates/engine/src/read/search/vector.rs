//! Nearest neighbours.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, Float32Array, RecordBatch, UInt32Array};
use arrow_buffer::BooleanBuffer;
use arrow_cast::cast;
use arrow_schema::DataType;
use arrow_select::filter::filter_record_batch;
use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;

use super::top_k::{Best, TopK};
use super::{SOURCES_AT_ONCE, Search, VectorQuery, index_on, no_column, numbered};
use crate::error::{Error, Result};
use crate::index::{IndexKind, Metric, vector_dimension};
use crate::lance_store::quoted;
use crate::memtable::{MemTableSnapshot, Nearby};
use crate::read::Snapshot;
use crate::read::source::{Place, Source, Visibility};

/// The name of the score; lower is nearer.
pub(super) const DISTANCE: &str = "_distance";

/// More candidates than wanted that a source is asked for at first, so that a few hidden ones cost no second round.
const SPARE: usize = 16;

/// By how much more is asked for in each round.
const GROWTH: usize = 4;

/// Candidates of a graph at least; see [`VectorQuery::with_effort`].
const MIN_EFFORT: usize = 200;

/// A query that fits its column.
struct Nearest<'a> {
    search: Search,
    query: &'a VectorQuery,
    metric: Metric,
    vector: Float32Array,
}

/// The nearest rows with all that the search has looked at, nearest first.
pub(super) async fn nearest(snapshot: &Arc<Snapshot>, query: &VectorQuery) -> Result<RecordBatch> {
    Ok(Nearest::new(snapshot, query).await?.run().await?.into_rows())
}

/// The nearest rows with the columns of the answer, nearest first.
pub(crate) async fn answer(snapshot: &Arc<Snapshot>, query: &VectorQuery) -> Result<RecordBatch> {
    let nearest = Nearest::new(snapshot, query).await?;
    let best = nearest.run().await?.into_rows();
    nearest.search.answer(&best, DISTANCE)
}

impl<'a> Nearest<'a> {
    async fn new(snapshot: &Arc<Snapshot>, query: &'a VectorQuery) -> Result<Self> {
        let column = &query.column;
        let field = snapshot.format.user.field_with_name(column).map_err(|_| no_column(snapshot, column))?;
        let Some(dimension) = vector_dimension(field) else {
            return Err(Error::InvalidOptions(format!(
                "column `{column}` is {}; a vector search needs a fixed size list of f32 or f16",
                field.data_type()
            )));
        };
        if query.vector.len() != dimension {
            return Err(Error::InvalidOptions(format!(
                "the query has {} dimensions and column `{column}` has {dimension}",
                query.vector.len()
            )));
        }
        if query.vector.iter().any(|value| !value.is_finite()) {
            return Err(Error::InvalidOptions("the query vector has a value that is not finite".into()));
        }
        if query.k == 0 {
            return Err(Error::InvalidOptions("a search for 0 rows finds nothing; ask for 1 or more".into()));
        }
        let metric = match query.metric {
            Some(metric) => metric,
            None => metric_of(snapshot.base.dataset(), column).await?.unwrap_or_default(),
        };
        let search =
            Search::new(snapshot, query.columns.as_deref(), query.filter.as_ref(), &[column.as_str()], DISTANCE)?;
        Ok(Self { search, query, metric, vector: Float32Array::from(query.vector.clone()) })
    }

    async fn run(&self) -> Result<TopK> {
        let sources = (0..).zip(self.search.snapshot.sources());
        let found = stream::iter(sources).map(|(number, source)| self.in_source(number, source));
        let mut found = found.buffered(SOURCES_AT_ONCE);
        let mut best = self.empty();
        while let Some(of_source) = found.try_next().await? {
            best.merge(&of_source.into_rows())?;
        }
        Ok(best)
    }

    fn empty(&self) -> TopK {
        TopK::new(self.query.k, Best::Lowest, self.search.request.schema(), DISTANCE)
    }

    async fn in_source(&self, number: u32, source: Source) -> Result<TopK> {
        if !self.search.may_match(&source).await? {
            return Ok(self.empty());
        }
        let visibility = self.search.visibility(&source).await?;
        match (source.place(), self.search.dataset(&source).await?) {
            (Place::MemTable(memtable), _) => self.in_memtable(number, memtable, &visibility),
            (_, Some(dataset)) => self.in_dataset(number, &source, &dataset, &visibility).await,
            (_, None) => Ok(self.empty()),
        }
    }

    fn in_memtable(&self, number: u32, memtable: &MemTableSnapshot, visibility: &Visibility) -> Result<TopK> {
        let columns = memtable.columns_named(visibility.columns());
        if !self.query.exact
            && let Some(best) = self.by_graph(number, memtable, visibility, &columns)?
        {
            return Ok(best);
        }
        let mut best = self.empty();
        self.take_from(number, memtable, visibility, &columns, 0, &mut best)?;
        Ok(best)
    }

    /// `None`: there is no graph, or it does not lead to enough rows.
    fn by_graph(
        &self,
        number: u32,
        memtable: &MemTableSnapshot,
        visibility: &Visibility,
        columns: &[usize],
    ) -> Result<Option<TopK>> {
        let mut wanted = self.query.k.saturating_mul(2).saturating_add(SPARE).max(self.query.effort.unwrap_or(0) / 2);
        loop {
            let found = memtable.nearest(&self.query.column, self.metric, &self.vector, wanted)?;
            let Some(Nearby { rows: found, searched }) = found.filter(|found| found.searched > 0) else {
                return Ok(None);
            };
            let rows: Vec<u32> = found.iter().map(|(row, _)| *row).collect();
            let rows = memtable.only_live(rows);
            let mut best = self.empty();
            let taken = numbered(&memtable.take_numbered(&rows, columns)?, &UInt32Array::from(rows))?;
            self.take_rows(number, &taken, visibility, &mut best)?;
            if best.len() >= self.query.k {
                self.take_from(number, memtable, visibility, columns, searched, &mut best)?;
                return Ok(Some(best));
            }
            if found.len() < wanted || wanted >= searched as usize / GROWTH {
                return Ok(None);
            }
            wanted = wanted.saturating_mul(GROWTH);
        }
    }

    fn take_from(
        &self,
        number: u32,
        memtable: &MemTableSnapshot,
        visibility: &Visibility,
        columns: &[usize],
        first: u32,
        best: &mut TopK,
    ) -> Result<()> {
        for (batch, rows) in memtable.live_from(first, columns)? {
            self.take_rows(number, &numbered(&batch, &rows)?, visibility, best)?;
        }
        Ok(())
    }

    fn take_rows(&self, number: u32, rows: &RecordBatch, visibility: &Visibility, best: &mut TopK) -> Result<usize> {
        let shown = self.search.shown(visibility, rows)?;
        let with_vector = shown.column_by_name(&self.query.column).map(|vectors| match vectors.nulls() {
            Some(nulls) => BooleanArray::new(nulls.inner().clone(), None),
            None => BooleanArray::new(BooleanBuffer::new_set(vectors.len()), None),
        });
        let Some(with_vector) = with_vector else {
            return Ok(0);
        };
        let shown = filter_record_batch(&shown, &with_vector).map_err(Error::arrow("leaving out null vectors"))?;
        let Some(vectors) = shown.column_by_name(&self.query.column).filter(|_| shown.num_rows() > 0) else {
            return Ok(0);
        };
        best.push(number, &shown, &self.distances(vectors)?)?;
        Ok(shown.num_rows())
    }

    fn distances(&self, vectors: &ArrayRef) -> Result<Float32Array> {
        let failed = || Error::arrow("comparing vectors");
        let vectors = match vectors.data_type() {
            DataType::FixedSizeList(item, length) if *item.data_type() != DataType::Float32 => {
                let item = item.as_ref().clone().with_data_type(DataType::Float32);
                cast(vectors, &DataType::FixedSizeList(Arc::new(item), *length)).map_err(failed())?
            }
            _ => Arc::clone(vectors),
        };
        let compare = self.metric.to_lance().arrow_batch_func();
        let distances = compare(&self.vector, vectors.as_fixed_size_list())
            .map_err(|e| Error::InvalidOptions(format!("vectors of column `{}`: {e}", self.query.column)))?;
        Ok(distances.as_ref().clone())
    }

    async fn in_dataset(
        &self,
        number: u32,
        source: &Source,
        dataset: &Dataset,
        visibility: &Visibility,
    ) -> Result<TopK> {
        let rows = dataset.count_rows(None).await.map_err(self.failed(dataset))?;
        let same = |index: &crate::index::IndexConfig| matches!(&index.kind, IndexKind::Vector(config) if config.metric == self.metric);
        let mut by_index = !self.query.exact && index_on(dataset, &self.query.column, same).await?.is_some();
        let mut wanted = self.query.k.saturating_mul(2).saturating_add(SPARE);
        loop {
            let mut best = self.empty();
            let candidates = self.candidates(source, dataset, visibility, wanted, by_index).await?;
            let mut found = 0;
            for batch in &candidates {
                found += batch.num_rows();
                self.take_rows(number, batch, visibility, &mut best)?;
            }
            if best.len() >= self.query.k || (!by_index && (found < wanted || wanted >= rows)) {
                return Ok(best);
            }
            // An index that gave less than it was asked for may not lead to every row.
            let all = wanted >= rows || found < wanted;
            by_index = by_index && !all;
            wanted = if all { wanted } else { wanted.saturating_mul(GROWTH).min(rows) };
        }
    }

    /// The nearest rows of a dataset, hidden and deleted ones among them.
    async fn candidates(
        &self,
        source: &Source,
        dataset: &Dataset,
        visibility: &Visibility,
        count: usize,
        by_index: bool,
    ) -> Result<Vec<RecordBatch>> {
        let failed = || self.failed(dataset);
        let query = match dataset.schema().field(&quoted(&self.query.column)).map(|field| field.data_type()) {
            Some(DataType::FixedSizeList(item, _)) => {
                cast(&self.vector, item.data_type()).map_err(Error::arrow("comparing vectors"))?
            }
            _ => Arc::new(self.vector.clone()) as ArrayRef,
        };
        let Some(mut scanner) = self.search.scanner(source, dataset, visibility, &self.query.column)? else {
            return Ok(vec![]);
        };
        scanner.nearest(&quoted(&self.query.column), query.as_ref(), count).map_err(failed())?;
        scanner.distance_metric(self.metric.to_lance()).use_index(by_index);
        scanner.ef(self.query.effort.unwrap_or(MIN_EFFORT).max(count.saturating_mul(2)));
        if let Some(partitions) = self.query.partitions {
            scanner.nprobes(partitions);
        }
        let stream = scanner.try_into_stream().await.map_err(failed())?;
        stream.try_collect().await.map_err(failed())
    }

    fn failed(&self, dataset: &Dataset) -> impl FnOnce(lance::Error) -> Error + use<> {
        Error::lance(format!("searching column `{}` of {}", self.query.column, dataset.uri()))
    }
}

/// The metric of a dataset's index on a column.
async fn metric_of(dataset: &Dataset, column: &str) -> Result<Option<Metric>> {
    let index = index_on(dataset, column, |index| matches!(index.kind, IndexKind::Vector(_))).await?;
    Ok(index.and_then(|index| match index.kind {
        IndexKind::Vector(config) => Some(config.metric),
        _ => None,
    }))
}
