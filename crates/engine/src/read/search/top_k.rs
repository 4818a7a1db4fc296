//! The best rows so far, in order.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, BooleanArray, Float32Array, RecordBatch, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::concat::concat_batches;
use arrow_select::filter::filter_record_batch;
use arrow_select::take::take_record_batch;

use super::SOURCE;
use crate::error::{Error, Result};

/// Which scores are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Best {
    Lowest,
    Highest,
}

/// The `k` best rows of what was pushed, best first; of equal ones those that came first.
pub(super) struct TopK {
    k: usize,
    best: Best,
    rows: RecordBatch,
}

impl TopK {
    /// `rows` is the schema of what will be pushed; the best have a source and a score besides.
    pub(super) fn new(k: usize, best: Best, rows: &Schema, score: &str) -> Self {
        let mut fields: Vec<Arc<Field>> = rows.fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new(SOURCE, DataType::UInt32, false)));
        fields.push(Arc::new(Field::new(score, DataType::Float32, false)));
        Self { k, best, rows: RecordBatch::new_empty(Arc::new(Schema::new(fields))) }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Takes the rows with a finite score that are among the best.
    pub(super) fn push(&mut self, source: u32, rows: &RecordBatch, scores: &Float32Array) -> Result<()> {
        let mut columns = rows.columns().to_vec();
        columns.push(Arc::new(UInt32Array::from_value(source, rows.num_rows())));
        columns.push(Arc::new(Float32Array::new(scores.values().clone(), None)));
        let finite = (0..scores.len()).map(|row| scores.is_valid(row) && scores.value(row).is_finite());
        let finite = BooleanArray::from(finite.collect::<Vec<_>>());
        let scored = RecordBatch::try_new(self.schema(), columns).map_err(failed())?;
        self.merge(&filter_record_batch(&scored, &finite).map_err(failed())?)
    }

    /// Takes the best of another one.
    pub(super) fn merge(&mut self, scored: &RecordBatch) -> Result<()> {
        let worst = self.scores().values().last().copied().filter(|_| self.len() >= self.k);
        let better = match worst {
            Some(worst) => {
                let scores = scores_of(scored);
                let is_better = scores.values().iter().map(|score| self.order(*score, worst) == Ordering::Less);
                let is_better = BooleanArray::from(is_better.collect::<Vec<_>>());
                filter_record_batch(scored, &is_better).map_err(failed())?
            }
            None => scored.clone(),
        };
        if better.num_rows() == 0 {
            return Ok(());
        }
        let all = concat_batches(&self.schema(), [&self.rows, &better]).map_err(failed())?;
        let scores = scores_of(&all);
        let mut order: Vec<(usize, f32)> = scores.values().iter().copied().enumerate().collect();
        order.sort_by(|(_, a), (_, b)| self.order(*a, *b));
        order.truncate(self.k);
        let order = UInt64Array::from_iter_values(order.into_iter().map(|(row, _)| row as u64));
        self.rows = take_record_batch(&all, &order).map_err(failed())?;
        Ok(())
    }

    /// The best rows with source and score.
    pub(super) fn into_rows(self) -> RecordBatch {
        self.rows
    }

    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    fn scores(&self) -> Float32Array {
        scores_of(&self.rows)
    }

    fn order(&self, a: f32, b: f32) -> Ordering {
        match self.best {
            Best::Lowest => a.total_cmp(&b),
            Best::Highest => b.total_cmp(&a),
        }
    }
}

fn scores_of(rows: &RecordBatch) -> Float32Array {
    let scores = rows.columns().last().and_then(|column| column.as_primitive_opt::<Float32Type>());
    scores.cloned().unwrap_or_else(|| Float32Array::from(Vec::<f32>::new()))
}

fn failed() -> impl FnOnce(arrow_schema::ArrowError) -> Error {
    Error::arrow("choosing the best rows")
}
