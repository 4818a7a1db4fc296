//! Search: the best rows of a snapshot by a score, be it a distance of vectors or a rank of texts.
//!
//! Every source gives candidates, by an index if it has one, with the columns that decide about them. What newer sources
//! hide, what is deleted and what the filter refuses is left out of them, and scores are computed here, from the values
//! themselves: so they are on one scale, whatever made the candidates. A source that has given fewer rows than it may have
//! is asked for more; in the end it is searched without an index.

mod hybrid;
mod query;
mod sql;
mod text;
mod top_k;
mod vector;

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use datafusion::common::DFSchema;
use datafusion::execution::context::SessionContext;
use datafusion::logical_expr::{ColumnarValue, Expr};
use datafusion::physical_expr::PhysicalExpr;
use lance::Dataset;
use lance::dataset::scanner::Scanner;
use lance_core::ROW_ADDR;

use super::source::{Place, Source, Visibility};
use super::{Request, Snapshot};
use crate::error::{Error, Result};
use crate::index::{self, IndexConfig};
use crate::lance_store::quoted;

pub(crate) use self::hybrid::answer as hybrid_answer;
pub use self::query::{HybridQuery, TextQuery, VectorQuery};
pub use self::sql::register_tables;
pub(crate) use self::text::{TextStatistics, answer as text_answer};
pub(crate) use self::vector::answer as vector_answer;

/// Sources that are searched at once.
const SOURCES_AT_ONCE: usize = 8;

/// Which source a row is from, by its place in the snapshot; beside the row's number there it says which row it is.
const SOURCE: &str = "__source";

/// What a search wants to know of rows, and which rows it wants at all.
struct Search {
    snapshot: Arc<Snapshot>,
    request: Arc<Request>,
    filter: Option<Filter>,
    /// The columns of the answer.
    output: Vec<String>,
}

/// A filter that is evaluated here, on rows that a source has shown.
struct Filter {
    expr: Arc<dyn PhysicalExpr>,
}

impl Search {
    /// A search that looks at these columns besides those of the answer (`None`: all) and of the filter.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] for a column that the table does not have; [`Error::Query`] for a filter that does not fit
    /// its columns.
    fn new(
        snapshot: &Arc<Snapshot>,
        output: Option<&[String]>,
        filter: Option<&Expr>,
        looks_at: &[&str],
        score: &str,
    ) -> Result<Self> {
        let table = &snapshot.format.user;
        for taken in [ROW_ADDR, SOURCE, score] {
            if table.field_with_name(taken).is_ok() {
                return Err(Error::NotSupported(format!(
                    "the table has a column `{taken}`, which search needs for itself; rename it"
                )));
            }
        }
        let output: Vec<String> = match output {
            Some(columns) => columns.to_vec(),
            None => table.fields().iter().map(|field| field.name().clone()).collect(),
        };
        let in_filter = filter.iter().flat_map(|filter| filter.column_refs()).map(|column| column.name.as_str());
        let mut needed: Vec<Field> = Vec::new();
        for name in output.iter().map(String::as_str).chain(in_filter).chain(looks_at.iter().copied()) {
            let field = table.field_with_name(name).map_err(|_| no_column(snapshot, name))?;
            if needed.iter().all(|known| known.name() != name) {
                needed.push(field.clone());
            }
        }
        let needed: SchemaRef = Arc::new(Schema::new(needed));
        let coerced = filter.map(|filter| Filter::coerce(filter, table)).transpose()?;
        let filter = coerced.as_ref().map(|filter| Filter::new(filter, &needed)).transpose()?;
        let filters: Vec<Expr> = coerced.into_iter().collect();
        let row = Field::new(ROW_ADDR, DataType::UInt64, true);
        let request = Request::new(needed, &filters, table, None)?.with_more(&[row]);
        Ok(Self { snapshot: Arc::clone(snapshot), request: Arc::new(request), filter, output })
    }

    /// Whether a source can have a row that the filter lets through.
    async fn may_match(&self, source: &Source) -> Result<bool> {
        source.may_match(&self.snapshot, &self.request).await
    }

    async fn visibility(&self, source: &Source) -> Result<Visibility> {
        source.visibility(&self.snapshot, &self.request).await
    }

    /// The rows of candidates that are in the answer as far as newer versions, deletions and the filter decide it.
    fn shown(&self, visibility: &Visibility, candidates: &RecordBatch) -> Result<RecordBatch> {
        let visible = visibility.apply(candidates)?;
        match &self.filter {
            Some(filter) => filter.choose(&visible),
            None => Ok(visible),
        }
    }

    /// The dataset of a source; `None` for a MemTable.
    async fn dataset(&self, source: &Source) -> Result<Option<Dataset>> {
        dataset_of(&self.snapshot, source).await
    }

    /// A scanner of a dataset's rows with what decides about them, as far as the dataset has it: columns that were added to the
    /// table later are null. `None`: it does not have `column`, so it has nothing to find.
    fn scanner(
        &self,
        source: &Source,
        dataset: &Dataset,
        visibility: &Visibility,
        column: &str,
    ) -> Result<Option<Scanner>> {
        let columns = source.columns_there(&self.snapshot, dataset, visibility.columns())?;
        let is_there = |name: &str| dataset.schema().fields.iter().any(|field| field.name == name);
        if !is_there(column) {
            return Ok(None);
        }
        let mut scanner = dataset.scan();
        let columns = columns.iter().map(|name| (name, quoted(name))).collect::<Vec<_>>();
        let projected = scanner.project_with_transform(&columns).map(drop);
        projected.map_err(Error::lance(format!("searching {}", dataset.uri())))?;
        scanner.with_row_address().prefilter(true);
        let filter = self.request.filter().filter(|filter| filter.column_refs().iter().all(|c| is_there(&c.name)));
        if let Some(filter) = filter {
            scanner.filter_expr(filter.clone());
        }
        Ok(Some(scanner))
    }

    /// The answer's columns of the best rows, and their score.
    fn answer(&self, best: &RecordBatch, score: &str) -> Result<RecordBatch> {
        let names = self.output.iter().map(String::as_str).chain([score]);
        let columns = names.map(|name| best.schema_ref().index_of(name).map_err(Error::arrow("answering a search")));
        best.project(&columns.collect::<Result<Vec<_>>>()?).map_err(Error::arrow("answering a search"))
    }
}

async fn dataset_of(snapshot: &Snapshot, source: &Source) -> Result<Option<Dataset>> {
    match source.place() {
        Place::MemTable(_) => Ok(None),
        Place::SsTable { place, .. } => snapshot.cache.dataset(place).await.map(Some),
        Place::Base => Ok(Some(snapshot.base.dataset().clone())),
    }
}

/// The index of a dataset on a column that is of a wanted kind.
async fn index_on(
    dataset: &Dataset,
    column: &str,
    wanted: impl Fn(&IndexConfig) -> bool,
) -> Result<Option<IndexConfig>> {
    let indexes = index::of_dataset(dataset).await?;
    Ok(indexes.into_iter().find(|index| index.column == column && wanted(index)))
}

fn no_column(snapshot: &Snapshot, name: &str) -> Error {
    let known: Vec<&str> = snapshot.format.user.fields().iter().map(|field| field.name().as_str()).collect();
    Error::InvalidOptions(format!("the table has no column `{name}`; it has {}", known.join(", ")))
}

/// Rows of a MemTable with their numbers in the place of a dataset's row addresses.
fn numbered(batch: &RecordBatch, rows: &UInt32Array) -> Result<RecordBatch> {
    let mut fields: Vec<Arc<Field>> = batch.schema_ref().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(ROW_ADDR, DataType::UInt64, true)));
    let numbers = UInt64Array::from_iter_values(rows.values().iter().map(|row| u64::from(*row)));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(numbers) as ArrayRef);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(Error::arrow("numbering rows"))
}

impl Filter {
    /// The filter with literals of its columns' types, as DataFusion does it for SQL.
    fn coerce(filter: &Expr, table: &Schema) -> Result<Expr> {
        use datafusion::optimizer::simplify_expressions::{ExprSimplifier, SimplifyContext};
        let schema = DFSchema::try_from(table.clone())?;
        let context = SimplifyContext::builder().with_schema(Arc::new(schema.clone())).build();
        let simplifier = ExprSimplifier::new(context);
        Ok(simplifier.simplify(simplifier.coerce(super::source::unqualified(filter.clone())?, &schema)?)?)
    }

    fn new(filter: &Expr, rows: &SchemaRef) -> Result<Self> {
        let schema = DFSchema::try_from(Arc::clone(rows))?;
        let expr = SessionContext::new().create_physical_expr(filter.clone(), &schema)?;
        Ok(Self { expr })
    }

    fn choose(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let chosen = match self.expr.evaluate(batch)? {
            ColumnarValue::Array(chosen) => chosen,
            ColumnarValue::Scalar(chosen) => chosen.to_array_of_size(batch.num_rows())?,
        };
        let Some(chosen) = chosen.as_boolean_opt() else {
            return Err(Error::InvalidOptions(
                "the filter of a search is no condition: it is neither true nor false".into(),
            ));
        };
        filter_record_batch(batch, chosen).map_err(Error::arrow("filtering rows"))
    }
}
