//! CSV and TSV with a header line. It owns what fields mean: nothing is null, `""` is an empty string in text columns
//! and null elsewhere, lists are JSON (`[1,2,3]`), binary is hexadecimal; other types parse as in SQL.

use std::io::BufRead;
use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, StringBuilder};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};

use super::conform::{Conform, Place, check_names};
use super::ndjson::decoded_type;
use super::records::{RawField, Record, Records};
use super::{Batches, INFER_ROWS, cannot_read};
use crate::columns::type_name;
use crate::error::{CliError, Result};

/// Reads the header and gives the rest as batches.
pub(crate) fn read(
    source: String,
    input: Box<dyn BufRead + Send>,
    delimiter: u8,
    table: &SchemaRef,
    batch_rows: usize,
) -> Result<Batches> {
    let mut records = Records::new(input, delimiter);
    let names = header(&source, &mut records)?;
    check_names(&source, names.iter().map(String::as_str), table)?;
    let targets: Vec<DataType> = names
        .iter()
        .filter_map(|name| table.column_with_name(name))
        .map(|(_, field)| field.data_type().clone())
        .collect();
    let fields: Vec<Field> =
        names.iter().zip(&targets).map(|(name, to)| Field::new(name, parsed_type(to), true)).collect();
    let schema = Arc::new(Schema::new(fields));
    let conform = Conform::new(&source, &schema, table)?;
    Ok(Box::new(CsvBatches { source, records, names, targets, schema, conform, batch_rows, done: false }))
}

/// The columns that the first rows look like.
pub(crate) fn infer(source: &str, input: Box<dyn BufRead + Send>, delimiter: u8) -> Result<Schema> {
    let format = arrow_csv::reader::Format::default().with_header(true).with_delimiter(delimiter);
    let (schema, _) = format.infer_schema(input, Some(INFER_ROWS)).map_err(|e| cannot_read(source, "CSV", e))?;
    Ok(schema)
}

struct CsvBatches {
    source: String,
    records: Records<Box<dyn BufRead + Send>>,
    names: Vec<String>,
    targets: Vec<DataType>,
    schema: SchemaRef,
    conform: Conform,
    batch_rows: usize,
    done: bool,
}

impl Iterator for CsvBatches {
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

impl CsvBatches {
    fn read_batch(&mut self) -> Result<Option<RecordBatch>> {
        let mut builders: Vec<StringBuilder> = self.names.iter().map(|_| StringBuilder::new()).collect();
        let mut lines = Vec::new();
        let mut record = Record::default();
        while lines.len() < self.batch_rows
            && self.records.read(&mut record).map_err(|e| CliError::input(format!("{}: {e}", self.source)))?
        {
            self.append(&record, &mut builders)?;
            lines.push(record.line);
        }
        if lines.is_empty() {
            return Ok(None);
        }
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(builders.len());
        for ((mut builder, to), name) in builders.into_iter().zip(&self.targets).zip(&self.names) {
            let text = builder.finish();
            columns.push(parse_special(text, to).map_err(|(row, reason)| {
                let line = lines.get(row).copied().unwrap_or_default();
                CliError::input(format!("{}: line {line}, column `{name}`: {reason}", self.source))
                    .help("correct the value in the file; nothing of this batch was written")
            })?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(lines.len()));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|e| CliError::input(format!("{}: {e}", self.source)))?;
        self.conform.batch(&batch, Place::Lines(&lines)).map(Some)
    }

    fn append(&self, record: &Record, builders: &mut [StringBuilder]) -> Result<()> {
        let at = |what: String| CliError::input(format!("{}: line {}: {what}", self.source, record.line));
        if record.len() != builders.len() {
            return Err(at(format!("{} fields, but the header has {}", record.len(), builders.len()))
                .help("a comma, a tab or a line end inside a value needs quotes around the value"));
        }
        for ((field, builder), (to, name)) in record.fields().zip(builders).zip(self.targets.iter().zip(&self.names)) {
            let text =
                std::str::from_utf8(field.bytes).map_err(|_| at(format!("column `{name}` is not UTF-8 text")))?;
            match value(field, text, to) {
                Some(text) => builder.append_value(text),
                None => builder.append_null(),
            }
        }
        Ok(())
    }
}

fn header(source: &str, records: &mut Records<Box<dyn BufRead + Send>>) -> Result<Vec<String>> {
    let mut record = Record::default();
    if !records.read(&mut record).map_err(|e| CliError::input(format!("{source}: {e}")))? {
        return Err(CliError::input(format!("{source} is empty: a header line with column names is needed")));
    }
    let names = record.fields().map(|f| std::str::from_utf8(f.bytes).map(|name| name.trim().to_string()));
    names
        .collect::<Result<Vec<String>, _>>()
        .map_err(|_| CliError::input(format!("{source}: the header line is not UTF-8 text")))
}

fn value<'a>(field: RawField<'_>, text: &'a str, to: &DataType) -> Option<&'a str> {
    if matches!(to, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
        return (field.quoted || !text.is_empty()).then_some(text);
    }
    let text = text.trim();
    (!text.is_empty()).then_some(text)
}

/// The type that the text of a column is parsed to here; what stays text is parsed by the cast to the table's type.
fn parsed_type(to: &DataType) -> DataType {
    match to {
        DataType::Binary => DataType::Binary,
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _) | DataType::Struct(_) => {
            decoded_type(to)
        }
        _ => DataType::Utf8,
    }
}

fn parse_special(text: StringArray, to: &DataType) -> Result<ArrayRef, (usize, String)> {
    match parsed_type(to) {
        DataType::Utf8 => Ok(Arc::new(text)),
        DataType::Binary => parse_hex(&text),
        nested => parse_json(&text, &nested),
    }
}

fn parse_hex(text: &StringArray) -> Result<ArrayRef, (usize, String)> {
    let mut builder = BinaryBuilder::new();
    for (row, value) in text.iter().enumerate() {
        match value {
            None => builder.append_null(),
            Some(value) => {
                let bytes = hex_bytes(value).ok_or_else(|| (row, format!("{value:?} is not hexadecimal")))?;
                builder.append_value(bytes);
            }
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn hex_bytes(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16);
    pairs.iter().map(|&[high, low]| u8::try_from(digit(high)? * 16 + digit(low)?).ok()).collect()
}

fn parse_json(text: &StringArray, to: &DataType) -> Result<ArrayRef, (usize, String)> {
    if let Some(array) = decode_json(text, to) {
        return Ok(array);
    }
    let bad = |row: &usize| decode_json(&text.slice(*row, 1), to).is_none();
    let row = (0..text.len()).find(bad).unwrap_or(0);
    let shown = if text.is_valid(row) { text.value(row) } else { "" };
    Err((row, format!("{shown:?} does not fit {}; a list is written as JSON, such as \"[1,2,3]\"", type_name(to))))
}

fn decode_json(text: &StringArray, to: &DataType) -> Option<ArrayRef> {
    let schema = Arc::new(Schema::new(vec![Field::new("v", to.clone(), true)]));
    let mut decoder = arrow_json::ReaderBuilder::new(schema)
        .with_batch_size(text.len() + 1)
        .with_strict_mode(true)
        .with_coerce_primitive(true)
        .build_decoder()
        .ok()?;
    for value in text {
        let line = format!("{{\"v\":{}}}\n", value.unwrap_or("null"));
        if decoder.decode(line.as_bytes()).ok()? != line.len() {
            return None;
        }
    }
    if decoder.has_partial_record() || decoder.len() != text.len() {
        return None;
    }
    let batch = decoder.flush().ok()??;
    batch.columns().first().cloned()
}
