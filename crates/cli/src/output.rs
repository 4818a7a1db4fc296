//! What goes to stdout: text, JSON values, and query results as a table or a JSON array. It owns the formats and
//! turns a reader that went away into a quiet end.

use std::io::{self, BufWriter, Write};

use arrow_array::RecordBatch;
use arrow_cast::display::{ArrayFormatter, FormatOptions};
use arrow_json::WriterBuilder;
use arrow_json::writer::JsonArray;
use arrow_schema::{ArrowError, SchemaRef};
use comfy_table::{CellAlignment, Table, presets};
use datafusion::scalar::ScalarValue;
use fencepost::ShardValue;
use serde_json::{Value, json};

use crate::args::Output;
use crate::error::{CliError, Result};

/// Rows that a table shows. It has to be held in memory to be aligned; JSON has no limit.
pub(crate) const MAX_TABLE_ROWS: usize = 1_000;

/// Prints one line and flushes it.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(CliError::stdout)
}

/// Prints a JSON value, indented.
pub(crate) fn json(value: &Value) -> Result<()> {
    line(&format!("{value:#}"))
}

/// Prints `text` or `value`, whichever was asked for.
pub(crate) fn result(output: Output, text: &str, value: &Value) -> Result<()> {
    match output {
        Output::Table => line(text),
        Output::Json => json(value),
    }
}

/// What a shard holds: "all", {"bucket": 3}, {"value": "eu"}, or null where its manifest does not say.
pub(crate) fn shard_value(value: &ShardValue) -> Value {
    let scalar = match value {
        ShardValue::All => return json!("all"),
        ShardValue::Bucket(bucket) => return json!({ "bucket": bucket }),
        ShardValue::Identity(scalar) => scalar,
        _ => return Value::Null,
    };
    let scalar = match scalar {
        scalar if scalar.is_null() => Value::Null,
        ScalarValue::Boolean(Some(flag)) => json!(flag),
        ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) => json!(text),
        // A number.
        other => other.to_string().parse().map_or_else(|_| json!(other.to_string()), Value::Number),
    };
    json!({ "value": scalar })
}

/// A count with separators: 336,776.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// "1 row", "2 rows".
pub(crate) fn plural(n: u64, noun: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{} {noun}{s}", count(n))
}

/// A size: 999 B, 1.5 KiB, 20.0 MiB.
pub(crate) fn bytes(n: u64) -> String {
    let mut size = n as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    if unit == "B" { format!("{n} B") } else { format!("{size:.1} {unit}") }
}

/// Takes the batches of a result and prints them.
pub(crate) trait RowSink {
    /// Takes one batch. False: no more are wanted.
    fn write(&mut self, batch: &RecordBatch) -> Result<bool>;
    /// Prints what is left.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// The rows of a result as one JSON array.
pub(crate) fn json_rows(batches: &[RecordBatch]) -> Result<Value> {
    let mut writer: arrow_json::Writer<_, JsonArray> = WriterBuilder::new().with_explicit_nulls(true).build(Vec::new());
    for batch in batches {
        writer.write(batch).map_err(json_error)?;
    }
    writer.finish().map_err(json_error)?;
    serde_json::from_slice(&writer.into_inner())
        .map_err(|e| CliError::failure(format!("cannot print the result as JSON: {e}")))
}

/// A sink to stdout.
pub(crate) fn rows(output: Output, schema: SchemaRef) -> Box<dyn RowSink> {
    match output {
        Output::Table => Box::new(TableSink::new(io::stdout(), schema)),
        Output::Json => Box::new(JsonSink::new(BufWriter::new(io::stdout()))),
    }
}

struct TableSink<W> {
    out: W,
    schema: SchemaRef,
    table: Table,
    rows: usize,
    cut: bool,
}

impl<W: Write> TableSink<W> {
    fn new(out: W, schema: SchemaRef) -> Self {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN);
        table.set_header(schema.fields().iter().map(|f| f.name().as_str()));
        for (field, column) in schema.fields().iter().zip(table.column_iter_mut()) {
            if field.data_type().is_numeric() {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Self { out, schema, table, rows: 0, cut: false }
    }
}

impl<W: Write> RowSink for TableSink<W> {
    fn write(&mut self, batch: &RecordBatch) -> Result<bool> {
        let options = FormatOptions::new().with_display_error(true).with_null("NULL");
        let formatters = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| CliError::failure(format!("cannot print the result: {e}")))?;
        for row in 0..batch.num_rows() {
            if self.rows == MAX_TABLE_ROWS {
                self.cut = true;
                return Ok(false);
            }
            self.table.add_row(formatters.iter().map(|f| f.value(row).to_string()));
            self.rows += 1;
        }
        Ok(true)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let mut text = String::new();
        if !self.schema.fields().is_empty() {
            text.push_str(&self.table.trim_fmt());
            text.push('\n');
        }
        if self.cut {
            text.push_str(&format!("(the first {MAX_TABLE_ROWS} rows; --output json prints all)\n"));
        } else {
            text.push_str(&format!("({})\n", plural(self.rows as u64, "row")));
        }
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(CliError::stdout)
    }
}

struct JsonSink<W: Write> {
    writer: arrow_json::Writer<W, JsonArray>,
}

impl<W: Write> JsonSink<W> {
    fn new(out: W) -> Self {
        Self { writer: WriterBuilder::new().with_explicit_nulls(true).build(out) }
    }
}

impl<W: Write> RowSink for JsonSink<W> {
    fn write(&mut self, batch: &RecordBatch) -> Result<bool> {
        self.writer.write(batch).map_err(json_error)?;
        Ok(true)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.writer.finish().map_err(json_error)?;
        let mut out = self.writer.into_inner();
        out.write_all(b"\n").and_then(|()| out.flush()).map_err(CliError::stdout)
    }
}

fn json_error(error: ArrowError) -> CliError {
    match error {
        ArrowError::IoError(_, e) => CliError::stdout(e),
        ArrowError::ExternalError(e) => match e.downcast::<io::Error>() {
            Ok(e) => CliError::stdout(*e),
            Err(e) => CliError::failure(format!("cannot print the result as JSON: {e}")),
        },
        other => CliError::failure(format!("cannot print the result as JSON: {other}"))
            .help("cast the column to a type that JSON knows, or use --output table"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow_array::{Int64Array, StringArray};
    use arrow_schema::{DataType, Field, Schema};

    use super::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true), Field::new("name", DataType::Utf8, true)]))
    }

    fn batch(rows: i64) -> RecordBatch {
        let names: StringArray = (0..rows).map(|n| (n % 2 == 0).then_some("even")).collect();
        RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from_iter_values(0..rows)), Arc::new(names)]).unwrap()
    }

    /// Collects what a sink writes.
    #[derive(Clone, Default)]
    struct Shared(Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn json_is_one_array_of_row_objects_with_nulls() {
        let out = Shared::default();
        let mut sink = Box::new(JsonSink::new(out.clone()));
        assert!(sink.write(&batch(1)).unwrap());
        assert!(sink.write(&batch(2)).unwrap());
        sink.finish().unwrap();
        let value: Value = serde_json::from_str(&out.text()).unwrap();
        let expected = serde_json::json!([
            {"n": 0, "name": "even"}, {"n": 0, "name": "even"}, {"n": 1, "name": null}
        ]);
        assert_eq!(value, expected);
    }

    #[test]
    fn json_of_nothing_is_an_empty_array() {
        let out = Shared::default();
        Box::new(JsonSink::new(out.clone())).finish().unwrap();
        assert_eq!(out.text().trim(), "[]");
    }

    #[test]
    fn a_table_shows_names_values_and_the_number_of_rows() {
        let out = Shared::default();
        let mut sink = Box::new(TableSink::new(out.clone(), schema()));
        assert!(sink.write(&batch(2)).unwrap());
        sink.finish().unwrap();
        let text = out.text();
        assert!(text.contains("name") && text.contains("even") && text.contains("NULL"), "{text}");
        assert!(text.ends_with("(2 rows)\n"), "{text}");
    }

    #[test]
    fn a_long_table_is_cut_and_says_so() {
        let out = Shared::default();
        let mut sink = Box::new(TableSink::new(out.clone(), schema()));
        assert!(sink.write(&batch(MAX_TABLE_ROWS as i64)).unwrap());
        assert!(!sink.write(&batch(1)).unwrap());
        sink.finish().unwrap();
        assert!(out.text().contains("--output json prints all"));
    }

    #[test]
    fn a_closed_pipe_is_a_quiet_end() {
        let mut json = Box::new(JsonSink::new(Closed));
        let written = json.write(&batch(10)).map(|_| ());
        let error = written.and_then(|()| json.finish()).unwrap_err();
        assert!(error.exit().is_none(), "{error}");
        let error = Box::new(TableSink::new(Closed, schema())).finish().unwrap_err();
        assert!(error.exit().is_none(), "{error}");
    }

    #[test]
    fn what_a_shard_holds_is_told_as_json() {
        for (value, expected) in [
            (ShardValue::All, json!("all")),
            (ShardValue::Bucket(3), json!({ "bucket": 3 })),
            (ShardValue::Identity(ScalarValue::from("eu")), json!({ "value": "eu" })),
            (ShardValue::Identity(ScalarValue::from("7")), json!({ "value": "7" })),
            (ShardValue::Identity(ScalarValue::from(i64::MIN)), json!({ "value": i64::MIN })),
            (ShardValue::Identity(ScalarValue::from(u64::MAX)), json!({ "value": u64::MAX })),
            (ShardValue::Identity(ScalarValue::from(true)), json!({ "value": true })),
            (ShardValue::Identity(ScalarValue::Int8(None)), json!({ "value": null })),
            (ShardValue::Unknown, Value::Null),
        ] {
            assert_eq!(shard_value(&value), expected, "{value}");
        }
    }

    #[test]
    fn counts_are_grouped() {
        assert_eq!([count(0), count(999), count(1000), count(336776)], ["0", "999", "1,000", "336,776"]);
        assert_eq!([plural(1, "row"), plural(2, "row")], ["1 row", "2 rows"]);
    }
}
