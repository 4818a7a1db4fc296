//! One JSON object per line. It owns the split into lines and the search for the line that does not fit; Arrow's
//! decoder reads the values.

use std::io::{BufRead, Read};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef};
use serde_json::Value;

use super::conform::{Conform, Place, unknown_column};
use super::{Batches, INFER_ROWS, MAX_RECORD_BYTES, cannot_read};
use crate::error::{CliError, Result};

/// Gives the objects as batches.
pub(crate) fn read(
    source: String,
    input: Box<dyn BufRead + Send>,
    table: &SchemaRef,
    batch_rows: usize,
) -> Result<Batches> {
    let fields: Vec<Field> =
        table.fields().iter().map(|f| Field::new(f.name(), decoded_type(f.data_type()), true)).collect();
    let decoded = Arc::new(Schema::new(fields));
    let conform = Conform::new(&source, &decoded, table)?;
    Ok(Box::new(NdjsonBatches {
        source,
        input,
        decoded,
        table: table.clone(),
        conform,
        batch_rows,
        line: 0,
        done: false,
    }))
}

/// The columns that the first objects look like, in the order of their names.
pub(crate) fn infer(source: &str, input: Box<dyn BufRead + Send>) -> Result<Schema> {
    let (schema, _) = arrow_json::reader::infer_json_schema(input, Some(INFER_ROWS))
        .map_err(|e| cannot_read(source, "NDJSON (one object per line)", e))?;
    // Inference gives them in no particular order, and a table's columns must not depend on chance.
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    fields.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(Schema::new(fields))
}

struct NdjsonBatches {
    source: String,
    input: Box<dyn BufRead + Send>,
    decoded: SchemaRef,
    table: SchemaRef,
    conform: Conform,
    batch_rows: usize,
    line: u64,
    done: bool,
}

impl Iterator for NdjsonBatches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let batch = self.read_batch();
        // After an error the position in the text means nothing any more.
        self.done = !matches!(batch, Ok(Some(_)));
        batch.transpose()
    }
}

impl NdjsonBatches {
    fn read_batch(&mut self) -> Result<Option<RecordBatch>> {
        let mut text = Vec::new();
        let mut ends = Vec::new();
        let mut lines = Vec::new();
        while lines.len() < self.batch_rows && (text.len() as u64) < MAX_RECORD_BYTES {
            let start = text.len();
            if !self.read_line(&mut text)? {
                break;
            }
            if text.get(start..).unwrap_or_default().trim_ascii().is_empty() {
                text.truncate(start);
                continue;
            }
            ends.push(text.len());
            lines.push(self.line);
        }
        if lines.is_empty() {
            return Ok(None);
        }
        let Ok(batch) = self.decode(&text, lines.len()) else {
            return Err(self.first_bad_line(&text, &ends, &lines));
        };
        self.conform.batch(&batch, Place::Lines(&lines)).map(Some)
    }

    fn read_line(&mut self, text: &mut Vec<u8>) -> Result<bool> {
        let line = self.line + 1;
        let at = |what: String| CliError::input(format!("{}: line {line}: {what}", self.source));
        let mut limited = Read::take(&mut self.input, MAX_RECORD_BYTES);
        let n = limited.read_until(b'\n', text).map_err(|e| at(e.to_string()))?;
        if n as u64 == MAX_RECORD_BYTES {
            return Err(at(format!("longer than {MAX_RECORD_BYTES} bytes")));
        }
        if n > 0 && text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
        self.line = line;
        Ok(n > 0)
    }

    /// Decodes exactly `rows` objects. Strict: a key that is no column is an error.
    fn decode(&self, text: &[u8], rows: usize) -> Result<RecordBatch, String> {
        let mut decoder = arrow_json::ReaderBuilder::new(self.decoded.clone())
            .with_batch_size(rows + 1)
            .with_strict_mode(true)
            // Needed by `decoded_type`.
            .with_coerce_primitive(true)
            .build_decoder()
            .map_err(|e| e.to_string())?;
        let read = decoder.decode(text).map_err(|e| e.to_string())?;
        if read != text.len() || decoder.has_partial_record() || decoder.len() != rows {
            return Err("expected one JSON object".to_string());
        }
        decoder.flush().map_err(|e| e.to_string())?.ok_or_else(|| "expected one JSON object".to_string())
    }

    fn first_bad_line(&self, text: &[u8], ends: &[usize], lines: &[u64]) -> CliError {
        let mut start = 0;
        for (&end, line) in ends.iter().zip(lines) {
            let object = text.get(start..end).unwrap_or_default();
            start = end;
            if let Err(reason) = self.decode(object, 1) {
                return self.explain(object, *line, &reason);
            }
        }
        CliError::input(format!("{}: not one JSON object per line", self.source))
    }

    fn explain(&self, object: &[u8], line: u64, reason: &str) -> CliError {
        let place = format!("{}: line {line}", self.source);
        let help = "each line holds one JSON object, such as {\"id\": 1, \"name\": \"a\"}";
        match serde_json::from_slice::<Value>(object) {
            Err(e) => CliError::input(format!("{place}: not valid JSON: {e}")).help(help),
            Ok(Value::Object(map)) => match map.keys().find(|key| self.table.column_with_name(key).is_none()) {
                Some(key) => unknown_column(&place, key, &self.table),
                None => CliError::input(format!("{place}: {reason}"))
                    .help("correct the value in the file; nothing of this batch was written"),
            },
            Ok(_) => CliError::input(format!("{place}: not a JSON object")).help(help),
        }
    }
}

/// The type that Arrow's JSON decoder is asked for: whole numbers as text, because it would round 1.5 to 1, and
/// everything else as it is. The checked cast makes numbers of the text.
pub(crate) fn decoded_type(data_type: &DataType) -> DataType {
    let item = |f: &Arc<Field>| Arc::new(Field::new(f.name(), decoded_type(f.data_type()), true));
    match data_type {
        t if t.is_integer() => DataType::Utf8,
        DataType::List(f) => DataType::List(item(f)),
        DataType::LargeList(f) => DataType::LargeList(item(f)),
        DataType::FixedSizeList(f, n) => DataType::FixedSizeList(item(f), *n),
        DataType::Struct(fields) => {
            let fields: Fields = fields.iter().map(|f| Field::new(f.name(), f.data_type().clone(), true)).collect();
            DataType::Struct(fields)
        }
        other => other.clone(),
    }
}
