//! Whether an SSTable's statistics say what its rows say. A wrong one makes queries leave rows out without a word.

use arrow_array::{Array, RecordBatch};
use datafusion::functions_aggregate::min_max::{MaxAccumulator, MinAccumulator};
use datafusion::logical_expr::Accumulator;
use lance::Dataset;

use super::{ColumnText, STATISTICS, Statistics, bytes_of, has_statistics};
use crate::error::Result;

/// What the rows of an SSTable say, gathered as they are read, and the text that should say the same.
pub(crate) struct StatisticsCheck {
    text: String,
    rows: u64,
    columns: Vec<Gathered>,
}

/// What the rows say of a column.
struct Gathered {
    id: i32,
    name: String,
    nulls: u64,
    least: MinAccumulator,
    greatest: MaxAccumulator,
}

impl StatisticsCheck {
    /// `None`: the SSTable has no statistics.
    pub(crate) fn of(dataset: &Dataset) -> Result<Option<Self>> {
        let Some(text) = dataset.config().get(STATISTICS).cloned() else {
            return Ok(None);
        };
        let fields = dataset.schema().fields.iter().filter(|field| has_statistics(&field.data_type()));
        let columns = fields.map(|field| {
            let (id, name, data_type) = (field.id, field.name.clone(), field.data_type());
            let least = MinAccumulator::try_new(&data_type)?;
            Ok(Gathered { id, name, nulls: 0, least, greatest: MaxAccumulator::try_new(&data_type)? })
        });
        Ok(Some(Self { text, rows: 0, columns: columns.collect::<Result<_>>()? }))
    }

    /// Takes the next rows.
    pub(crate) fn add(&mut self, rows: &RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        for column in &mut self.columns {
            if let Some(values) = rows.column_by_name(&column.name) {
                column.nulls += values.null_count() as u64;
                column.least.update_batch(std::slice::from_ref(values))?;
                column.greatest.update_batch(std::slice::from_ref(values))?;
            }
        }
        Ok(())
    }

    /// What they say that is not so. That they say nothing of a column is no fault.
    pub(crate) fn fault(mut self) -> Result<Option<String>> {
        let Some(told) = Statistics::parse(&self.text) else {
            return Ok(Some(format!("its `{STATISTICS}` cannot be read: {}", self.text)));
        };
        if told.rows != self.rows {
            return Ok(Some(format!("its `{STATISTICS}` say {} rows, and it has {}", told.rows, self.rows)));
        }
        let mut known = told.columns;
        for column in &mut self.columns {
            let Some(told) = known.remove(&column.id) else {
                continue;
            };
            let ends = bytes_of(&column.least.evaluate()?).zip(bytes_of(&column.greatest.evaluate()?));
            if told != (ColumnText { nulls: column.nulls, ends }) {
                return Ok(Some(format!("its `{STATISTICS}` say other than its rows about column `{}`", column.name)));
            }
        }
        let unknown = known.keys().min();
        Ok(unknown.map(|id| format!("its `{STATISTICS}` are about field {id}, which it does not have, or not so")))
    }
}
