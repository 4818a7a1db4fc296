//! A file's batches as the table's batches: columns by name, absent ones null, types cast without loss. It owns the
//! messages about rows and columns that do not fit.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::{Schema, SchemaRef};

use super::cast::{cast_checked, compatible};
use crate::columns::type_name;
use crate::error::{CliError, Result};

/// Where the rows of a batch stand in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// The number of the batch's first row, counted from 1.
    Row(u64),
    /// The line of every row.
    Lines(&'a [u64]),
}

impl Place<'_> {
    fn of(&self, index: usize) -> String {
        match self {
            Place::Row(first) => format!("row {}", first + index as u64),
            Place::Lines(lines) => match lines.get(index) {
                Some(line) => format!("line {line}"),
                None => format!("row {}", index + 1),
            },
        }
    }
}

/// The plan for one file.
#[derive(Debug)]
pub(crate) struct Conform {
    source: String,
    table: SchemaRef,
    /// For each column of the table its index in the file, if the file has it.
    columns: Vec<Option<usize>>,
}

impl Conform {
    /// Compares the columns of a file with those of the table.
    pub(crate) fn new(source: &str, file: &Schema, table: &SchemaRef) -> Result<Self> {
        check_names(source, file.fields().iter().map(|f| f.name().as_str()), table)?;
        let mut columns = Vec::with_capacity(table.fields().len());
        for field in table.fields() {
            let index = file.fields().iter().position(|f| f.name() == field.name());
            if let Some(from) = index.and_then(|i| file.fields().get(i))
                && !compatible(from.data_type(), field.data_type())
            {
                return Err(CliError::input(format!(
                    "{source}: column `{}` is {} in the file but {} in the table",
                    field.name(),
                    type_name(from.data_type()),
                    type_name(field.data_type()),
                ))
                .help("convert the column in the file, or create a table with that type"));
            }
            columns.push(index);
        }
        Ok(Self { source: source.to_string(), table: table.clone(), columns })
    }

    /// The batch with the table's columns, in the table's order.
    pub(crate) fn batch(&self, batch: &RecordBatch, place: Place<'_>) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.columns.len());
        for (field, index) in self.table.fields().iter().zip(&self.columns) {
            let at = |row: usize| format!("{}: {}, column `{}`", self.source, place.of(row), field.name());
            let array = match index.and_then(|i| batch.columns().get(i)) {
                Some(array) => cast_checked(array, field.data_type()).map_err(|e| {
                    CliError::input(format!("{}: {} does not fit {}", at(e.row), e.value, type_name(field.data_type())))
                        .help("correct the value in the file; nothing of this batch was written")
                })?,
                None => new_null_array(field.data_type(), batch.num_rows()),
            };
            if !field.is_nullable() && array.logical_null_count() > 0 {
                let nulls = array.logical_nulls();
                let row = nulls.and_then(|n| (0..n.len()).find(|&row| n.is_null(row))).unwrap_or(0);
                return Err(CliError::input(format!("{}: null, but the column holds no nulls", at(row)))
                    .help("give the row a value; columns of the primary key always need one"));
            }
            columns.push(array);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.table.clone(), columns, &options)
            .map_err(|e| CliError::input(format!("{}: {e}", self.source)))
    }
}

/// Refuses columns that the table does not have, columns that are named twice, and files without a column that the
/// table needs.
pub(crate) fn check_names<'a>(source: &str, names: impl Iterator<Item = &'a str>, table: &Arc<Schema>) -> Result<()> {
    let mut seen: Vec<&str> = Vec::new();
    for name in names {
        if table.column_with_name(name).is_none() {
            return Err(unknown_column(source, name, table));
        }
        if seen.contains(&name) {
            return Err(CliError::input(format!("{source}: column `{name}` is there twice")));
        }
        seen.push(name);
    }
    for field in table.fields() {
        if !field.is_nullable() && !seen.contains(&field.name().as_str()) {
            return Err(CliError::input(format!(
                "{source}: column `{}` is missing, and the table allows no nulls in it",
                field.name()
            ))
            .help("add the column to the file; columns of the primary key are always needed"));
        }
    }
    Ok(())
}

/// The error about a column that only the file has.
pub(crate) fn unknown_column(source: &str, name: &str, table: &Schema) -> CliError {
    let known: Vec<&str> = table.fields().iter().map(|f| f.name().as_str()).collect();
    CliError::input(format!("{source}: the table has no column `{name}`"))
        .help(format!("its columns are: {}", known.join(", ")))
}
