//! Search in SQL, as DataFusion's table functions: each is a table of the best rows with their score.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::context::SessionContext;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};

use super::{HybridQuery, TextQuery, VectorQuery, hybrid, text, vector};
use crate::error::Error;
use crate::read::TableSnapshot;

/// Registers tables for SQL, and three table functions that search them, whose first argument is a table's name:
///
/// | function | rows | score |
/// |---|---|---|
/// | `vector_search('t', 'column', [0.1, …], k [, 'metric' [, 'filter']])` | nearest | `_distance` |
/// | `text_search('t', 'column', 'words', k [, 'filter'])` | best texts | `_score` |
/// | `hybrid_search('t', 'vectors', [0.1, …], 'texts', 'words', k [, 'filter'])` | best of both | `_relevance_score` |
///
/// A metric is `l2`, `cosine` or `dot`, or `''` for the index's. A filter is a condition in SQL: the rows are the best of
/// those for which it is true, whereas a `where` behind the function chooses among the best. The order of the rows is that of
/// the score only with an `order by`.
///
/// # Errors
/// DataFusion's, if a name is taken.
pub fn register_tables<S: Into<String>>(
    context: &SessionContext,
    tables: impl IntoIterator<Item = (S, TableSnapshot)>,
) -> Result<()> {
    let tables: Arc<HashMap<String, TableSnapshot>> =
        Arc::new(tables.into_iter().map(|(name, snapshot)| (name.into(), snapshot)).collect());
    for (name, snapshot) in tables.iter() {
        context.register_table(name.as_str(), snapshot.provider())?;
    }
    for kind in [Kind::Vector, Kind::Text, Kind::Hybrid] {
        context.register_udtf(kind.name(), Arc::new(Function { kind, tables: Arc::clone(&tables) }));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vector,
    Text,
    Hybrid,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Vector => "vector_search",
            Self::Text => "text_search",
            Self::Hybrid => "hybrid_search",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::Vector => "vector_search('table', 'column', [vector], k [, 'metric' [, 'filter']])",
            Self::Text => "text_search('table', 'column', 'words', k [, 'filter'])",
            Self::Hybrid => "hybrid_search('table', 'vectors', [vector], 'texts', 'words', k [, 'filter'])",
        }
    }

    fn score(self) -> &'static str {
        match self {
            Self::Vector => vector::DISTANCE,
            Self::Text => text::SCORE,
            Self::Hybrid => hybrid::RELEVANCE,
        }
    }
}

#[derive(Debug)]
struct Function {
    kind: Kind,
    tables: Arc<HashMap<String, TableSnapshot>>,
}

/// What is to be found, once it is asked for.
#[derive(Debug, Clone)]
enum Query {
    Vector(VectorQuery),
    Text(TextQuery),
    Hybrid(Box<HybridQuery>),
}

impl TableFunctionImpl for Function {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let mut args = Arguments { kind: self.kind, all: args.exprs(), next: 0 };
        let name = args.text("table")?;
        let Some(snapshot) = self.tables.get(&name) else {
            return Err(DataFusionError::Plan(format!("{}: there is no table `{name}` to search", self.kind.name())));
        };
        let schema = snapshot.schema();
        let query = match self.kind {
            Kind::Vector => {
                let (column, vector, k) = (args.text("column")?, args.vector("vector")?, args.count("k")?);
                let mut query = VectorQuery::new(column, vector, k);
                if let Some(metric) = args.optional("metric")?.filter(|metric| !metric.is_empty()) {
                    query = query.with_metric(metric.parse().map_err(DataFusionError::from)?);
                }
                Query::Vector(match args.filter(&schema)? {
                    Some(filter) => query.with_filter(filter),
                    None => query,
                })
            }
            Kind::Text => {
                let query = TextQuery::new(args.text("column")?, args.text("words")?, args.count("k")?);
                Query::Text(match args.filter(&schema)? {
                    Some(filter) => query.with_filter(filter),
                    None => query,
                })
            }
            Kind::Hybrid => {
                let (vectors, vector) = (args.text("vectors")?, args.vector("vector")?);
                let (texts, words, k) = (args.text("texts")?, args.text("words")?, args.count("k")?);
                let filter = args.filter(&schema)?;
                let (mut vector, mut text) = (VectorQuery::new(vectors, vector, k), TextQuery::new(texts, words, k));
                if let Some(filter) = filter {
                    (vector, text) = (vector.with_filter(filter.clone()), text.with_filter(filter));
                }
                Query::Hybrid(Box::new(HybridQuery::new(vector, text, k)))
            }
        };
        args.end()?;
        let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(self.kind.score(), DataType::Float32, false)));
        Ok(Arc::new(Found { snapshot: snapshot.clone(), query, schema: Arc::new(Schema::new(fields)) }))
    }
}

/// The arguments of a call, one after the other.
struct Arguments<'a> {
    kind: Kind,
    all: &'a [Expr],
    next: usize,
}

impl Arguments<'_> {
    fn wrong(&self, what: &str, needs: &str) -> DataFusionError {
        DataFusionError::Plan(format!("argument {} (`{what}`) is {needs}: {}", self.next, self.kind.usage()))
    }

    fn value(&mut self, what: &str) -> Result<ScalarValue> {
        let argument = self.all.get(self.next);
        self.next += 1;
        match argument {
            Some(Expr::Literal(value, _)) => Ok(value.clone()),
            Some(_) => Err(self.wrong(what, "no literal")),
            None => Err(self.wrong(what, "missing")),
        }
    }

    fn text(&mut self, what: &str) -> Result<String> {
        match self.value(what)?.try_as_str() {
            Some(Some(text)) => Ok(text.to_owned()),
            _ => Err(self.wrong(what, "no string")),
        }
    }

    fn optional(&mut self, what: &str) -> Result<Option<String>> {
        match self.next < self.all.len() {
            true => self.text(what).map(Some),
            false => Ok(None),
        }
    }

    fn count(&mut self, what: &str) -> Result<usize> {
        let value = self.value(what)?.cast_to(&DataType::UInt64);
        match value {
            Ok(ScalarValue::UInt64(Some(count))) => Ok(usize::try_from(count).unwrap_or(usize::MAX)),
            _ => Err(self.wrong(what, "no number of rows")),
        }
    }

    /// A list of numbers, or a string with one.
    fn vector(&mut self, what: &str) -> Result<Vec<f32>> {
        let value = self.value(what)?;
        if let Some(Some(text)) = value.try_as_str() {
            let numbers = text.trim().trim_start_matches('[').trim_end_matches(']').split(',');
            let numbers: Option<Vec<f32>> = numbers.map(|number| number.trim().parse().ok()).collect();
            return numbers.ok_or_else(|| self.wrong(what, "no list of numbers"));
        }
        let values: ArrayRef = match &value {
            ScalarValue::List(list) => list.values().clone(),
            ScalarValue::LargeList(list) => list.values().clone(),
            ScalarValue::FixedSizeList(list) => list.values().clone(),
            _ => return Err(self.wrong(what, "no list of numbers")),
        };
        match cast(&values, &DataType::Float32) {
            Ok(values) if values.null_count() == 0 => Ok(values.as_primitive::<Float32Type>().values().to_vec()),
            _ => Err(self.wrong(what, "no list of numbers")),
        }
    }

    fn filter(&mut self, schema: &SchemaRef) -> Result<Option<Expr>> {
        let Some(filter) = self.optional("filter")?.filter(|filter| !filter.is_empty()) else {
            return Ok(None);
        };
        let schema = DFSchema::try_from(Arc::clone(schema))?;
        SessionContext::new().parse_sql_expr(&filter, &schema).map(Some)
    }

    fn end(&self) -> Result<()> {
        match self.next < self.all.len() {
            true => Err(DataFusionError::Plan(format!("too many arguments: {}", self.kind.usage()))),
            false => Ok(()),
        }
    }
}

/// The answer of a search as a table. It is searched for when the table is read.
#[derive(Debug)]
struct Found {
    snapshot: TableSnapshot,
    query: Query,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for Found {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let part = Arc::new(FoundPartition {
            snapshot: self.snapshot.clone(),
            query: self.query.clone(),
            schema: Arc::clone(&self.schema),
        });
        let plan = StreamingTableExec::try_new(Arc::clone(&self.schema), vec![part], projection, [], false, limit)?;
        Ok(Arc::new(plan))
    }
}

struct FoundPartition {
    snapshot: TableSnapshot,
    query: Query,
    schema: SchemaRef,
}

impl fmt::Debug for FoundPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.query)
    }
}

impl PartitionStream for FoundPartition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (snapshot, query, schema) = (self.snapshot.clone(), self.query.clone(), Arc::clone(&self.schema));
        let rows = async move {
            let found = match &query {
                Query::Vector(query) => snapshot.nearest(query).await,
                Query::Text(query) => snapshot.search_text(query).await,
                Query::Hybrid(query) => snapshot.search_hybrid(query).await,
            };
            let found = found.map_err(DataFusionError::from)?;
            let columns = found.columns().to_vec();
            RecordBatch::try_new(schema, columns)
                .map_err(|e| DataFusionError::from(Error::arrow("a search's answer")(e)))
        };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::once(rows)))
    }
}
