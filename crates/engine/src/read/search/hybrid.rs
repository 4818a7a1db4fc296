//! Hybrid search: two rankings become one by reciprocal rank fusion (Cormack, Clarke, Büttcher 2009): a row's score is the
//! sum of 1 / (constant + rank) over the searches that found it. Distances and text scores are never compared.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, Float32Array, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use arrow_select::concat::concat_batches;
use arrow_select::take::take_record_batch;
use lance_core::ROW_ADDR;

use super::text::{self, TextStatistics};
use super::vector;
use super::{HybridQuery, SOURCE};
use crate::error::{Error, Result};
use crate::read::Snapshot;

/// The name of the score, as LanceDB calls it; higher is better.
pub(super) const RELEVANCE: &str = "_relevance_score";

/// The best rows of both searches, best first.
pub(crate) async fn answer(
    snapshot: &Arc<Snapshot>,
    query: &HybridQuery,
    statistics: &TextStatistics,
) -> Result<RecordBatch> {
    if query.k == 0 {
        return Err(Error::InvalidOptions("a search for 0 rows finds nothing; ask for 1 or more".into()));
    }
    let columns = match &query.vector.columns {
        Some(columns) => columns.clone(),
        None => snapshot.format.user.fields().iter().map(|field| field.name().clone()).collect(),
    };
    let nearest = vector::nearest(snapshot, &query.vector.clone().with_columns(columns.clone())).await?;
    let text = query.text.clone().with_columns(columns.clone());
    let (_, best) = text::best(snapshot, &text, statistics).await?;
    let nearest = Ranking::of(&nearest, &columns)?;
    let best = Ranking::of(&best, &columns)?;
    let mut scores: HashMap<(u32, u64), (f32, usize)> = HashMap::new();
    let all = nearest.rows.iter().chain(&best.rows).copied().enumerate();
    let ranks = (1..=nearest.rows.len()).chain(1..=best.rows.len());
    for ((place, row), rank) in all.zip(ranks) {
        let (score, _) = scores.entry(row).or_insert((0.0, place));
        *score += 1.0 / (query.rank_constant as f32 + rank as f32);
    }
    let mut fused: Vec<(f32, usize)> = scores.into_values().collect();
    fused.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.cmp(y)));
    fused.truncate(query.k);
    let failed = || Error::arrow("fusing two rankings");
    let both = concat_batches(&nearest.columns.schema(), [&nearest.columns, &best.columns]).map_err(failed())?;
    let places = UInt64Array::from_iter_values(fused.iter().map(|(_, place)| *place as u64));
    let rows = take_record_batch(&both, &places).map_err(failed())?;
    let mut fields: Vec<Arc<Field>> = rows.schema_ref().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(RELEVANCE, DataType::Float32, false)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(Float32Array::from_iter_values(fused.iter().map(|(score, _)| *score))) as ArrayRef);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(failed())
}

/// Rows in their order, and which they are: by their source and their place there.
struct Ranking {
    rows: Vec<(u32, u64)>,
    columns: RecordBatch,
}

impl Ranking {
    fn of(best: &RecordBatch, columns: &[String]) -> Result<Self> {
        let column = |name: &str| best.schema_ref().index_of(name).map_err(Error::arrow("fusing two rankings"));
        let sources = best.column(column(SOURCE)?).as_primitive::<UInt32Type>();
        let numbers = best.column(column(ROW_ADDR)?).as_primitive::<UInt64Type>();
        let rows = sources.values().iter().copied().zip(numbers.values().iter().copied()).collect();
        let places = columns.iter().map(|name| column(name)).collect::<Result<Vec<_>>>()?;
        let columns = best.project(&places).map_err(Error::arrow("fusing two rankings"))?;
        Ok(Self { rows, columns })
    }
}
