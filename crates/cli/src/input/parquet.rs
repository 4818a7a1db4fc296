//! Parquet files.

use std::fs::File;

use arrow_schema::{Schema, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::conform::{Conform, Place};
use super::{Batches, cannot_read};
use crate::error::Result;

/// Gives the rows as batches.
pub(crate) fn read(source: String, file: File, table: &SchemaRef, batch_rows: usize) -> Result<Batches> {
    let builder = open(&source, file)?;
    let conform = Conform::new(&source, builder.schema(), table)?;
    let reader = builder.with_batch_size(batch_rows).build().map_err(|e| cannot_read(&source, "Parquet", e))?;
    let mut next_row = 1;
    Ok(Box::new(reader.map(move |batch| {
        let batch = batch.map_err(|e| cannot_read(&source, "Parquet", e))?;
        let place = Place::Row(next_row);
        next_row += batch.num_rows() as u64;
        conform.batch(&batch, place)
    })))
}

/// The file's own schema.
pub(crate) fn schema(source: &str, file: File) -> Result<Schema> {
    Ok(open(source, file)?.schema().as_ref().clone())
}

fn open(source: &str, file: File) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| cannot_read(source, "Parquet", e))
}
