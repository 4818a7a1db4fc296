//! Arrow IPC, as a file or as a stream; the first bytes tell which.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, Schema, SchemaRef};

use super::conform::{Conform, Place};
use super::{Batches, cannot_read, slices, spool};
use crate::error::Result;

const FILE_MAGIC: &[u8] = b"ARROW1";

type Decoded = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>> + Send>;

/// Gives the rows as batches.
pub(crate) fn read(source: String, file: File, table: &SchemaRef, batch_rows: usize) -> Result<Batches> {
    let (schema, batches) = open(&source, file)?;
    conformed(source, &schema, batches, table, batch_rows)
}

/// The same from an input that cannot seek: a file, unlike a stream, has its schema at the end and is copied first.
pub(crate) fn read_unseekable(
    source: String,
    mut input: Box<dyn BufRead + Send>,
    table: &SchemaRef,
    batch_rows: usize,
) -> Result<Batches> {
    let start = input.fill_buf().map_err(|e| cannot_read(&source, "Arrow", e))?;
    if start.starts_with(FILE_MAGIC) {
        let file = spool(&source, &mut input)?;
        return read(source, file, table, batch_rows);
    }
    let reader = StreamReader::try_new(input, None).map_err(|e| cannot_read(&source, "an Arrow stream", e))?;
    let schema = reader.schema();
    conformed(source, &schema, Box::new(reader), table, batch_rows)
}

/// The file's own schema.
pub(crate) fn schema(source: &str, file: File) -> Result<Schema> {
    Ok(open(source, file)?.0.as_ref().clone())
}

fn open(source: &str, mut file: File) -> Result<(SchemaRef, Decoded)> {
    let mut magic = Vec::new();
    let peek = (&mut file).take(FILE_MAGIC.len() as u64).read_to_end(&mut magic).and_then(|_| file.rewind());
    peek.map_err(|e| cannot_read(source, "Arrow", e))?;
    if magic == FILE_MAGIC {
        let reader = FileReader::try_new(BufReader::new(file), None);
        let reader = reader.map_err(|e| cannot_read(source, "an Arrow file", e))?;
        Ok((reader.schema(), Box::new(reader)))
    } else {
        let reader = StreamReader::try_new(BufReader::new(file), None);
        let reader = reader.map_err(|e| cannot_read(source, "an Arrow stream", e))?;
        Ok((reader.schema(), Box::new(reader)))
    }
}

fn conformed(
    source: String,
    schema: &Schema,
    batches: Decoded,
    table: &SchemaRef,
    batch_rows: usize,
) -> Result<Batches> {
    let conform = Conform::new(&source, schema, table)?;
    let mut next_row = 1;
    let cut = batches.flat_map(move |batch| {
        let (batch, error) = match batch {
            Ok(batch) => (Some(batch), None),
            Err(e) => (None, Some(e)),
        };
        let good = batch.into_iter().flat_map(move |batch| slices(batch, batch_rows)).map(Ok);
        good.chain(error.map(Err))
    });
    Ok(Box::new(cut.map(move |batch: Result<RecordBatch, ArrowError>| {
        let batch = batch.map_err(|e| cannot_read(&source, "Arrow", e))?;
        let place = Place::Row(next_row);
        next_row += batch.num_rows() as u64;
        conform.batch(&batch, place)
    })))
}
