//! Files and stdin as record batches that fit a table. It owns formats, names of sources and schema inference; the
//! format modules read, `conform` casts and checks.

mod arrow;
mod cast;
mod conform;
mod csv;
mod ndjson;
mod parquet;
mod records;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::concat::concat_batches;
use clap::ValueEnum;

use crate::error::{CliError, Result};

/// Rows that are looked at to find out the columns of a CSV or NDJSON file.
const INFER_ROWS: usize = 10_000;

/// The longest line or CSV record; a longer one is a file of another format.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// Batches of one source, in order, each with the table's schema and at most the asked number of rows.
pub(crate) type Batches = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// What a file can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated, with a header line; an empty field is null, "" an empty string
    Csv,
    /// The same with tabs
    Tsv,
    /// One JSON object per line
    Ndjson,
    /// Apache Parquet
    Parquet,
    /// Arrow IPC, file or stream
    Arrow,
}

impl Format {
    fn of(path: &Path, told: Option<Format>) -> Result<Format> {
        if let Some(format) = told {
            return Ok(format);
        }
        if is_stdin(path) {
            return Err(CliError::usage("the format of stdin is not known")
                .help("add --format csv, tsv, ndjson, parquet or arrow"));
        }
        let suffix = path.extension().and_then(|s| s.to_str()).unwrap_or_default();
        match suffix.to_ascii_lowercase().as_str() {
            "csv" => Ok(Format::Csv),
            "tsv" => Ok(Format::Tsv),
            "ndjson" | "jsonl" | "json" => Ok(Format::Ndjson),
            "parquet" | "pq" => Ok(Format::Parquet),
            "arrow" | "arrows" | "ipc" | "feather" => Ok(Format::Arrow),
            _ => Err(CliError::usage(format!("the format of {} cannot be told by its suffix", path.display()))
                .help("add --format csv, tsv, ndjson, parquet or arrow")),
        }
    }
}

/// Opens a file, or stdin for "-", to be read as rows of a table with `schema`.
pub(crate) fn open(path: &Path, format: Option<Format>, schema: &SchemaRef, batch_rows: usize) -> Result<Batches> {
    let format = Format::of(path, format)?;
    let source = source_name(path);
    match format {
        Format::Csv => csv::read(source, reader(path)?, b',', schema, batch_rows),
        Format::Tsv => csv::read(source, reader(path)?, b'\t', schema, batch_rows),
        Format::Ndjson => ndjson::read(source, reader(path)?, schema, batch_rows),
        Format::Parquet => parquet::read(source, seekable(path)?, schema, batch_rows),
        Format::Arrow if is_stdin(path) => arrow::read_unseekable(source, reader(path)?, schema, batch_rows),
        Format::Arrow => arrow::read(source, open_file(path)?, schema, batch_rows),
    }
}

/// Keys on the command line, each a JSON object with the columns of the primary key, as one batch of the table's types.
pub(crate) fn keys(objects: &[String], table: &Schema, primary_key: &[String]) -> Result<RecordBatch> {
    let is_key = |field: &&Arc<Field>| primary_key.contains(field.name());
    let schema = Arc::new(Schema::new(table.fields().iter().filter(is_key).cloned().collect::<Vec<_>>()));
    // One per line; inside of a JSON string a line break is written in another way.
    let lines = objects.iter().map(|object| object.replace(['\n', '\r'], " ") + "\n");
    let text = io::Cursor::new(lines.collect::<String>());
    let batches = ndjson::read("--key".to_string(), Box::new(text), &schema, objects.len())?;
    let batches = batches.collect::<Result<Vec<_>>>()?;
    let keys = concat_batches(&schema, &batches).map_err(|e| CliError::input(format!("--key: {e}")))?;
    match keys.num_rows() == objects.len() {
        true => Ok(keys),
        false => Err(CliError::input("--key: an empty key").help("a key is a JSON object, such as {\"id\": 1}")),
    }
}

/// The columns of a file: its own schema, or what its first rows look like. Types that tables do not keep
/// (dictionaries, views) become the plain types of the same values.
pub(crate) fn schema_of(path: &Path, format: Option<Format>) -> Result<Schema> {
    if is_stdin(path) {
        return Err(CliError::usage("--like reads a file: stdin can be read only once")
            .help("name a file, or create the table with `fencepost create T --columns ...`"));
    }
    let format = Format::of(path, format)?;
    let source = source_name(path);
    let schema = match format {
        Format::Csv => csv::infer(&source, reader(path)?, b',')?,
        Format::Tsv => csv::infer(&source, reader(path)?, b'\t')?,
        Format::Ndjson => ndjson::infer(&source, reader(path)?)?,
        Format::Parquet => parquet::schema(&source, open_file(path)?)?,
        Format::Arrow => arrow::schema(&source, open_file(path)?)?,
    };
    if schema.fields().is_empty() {
        return Err(CliError::input(format!("{source} has no columns")));
    }
    let fields: Vec<Field> = schema.fields().iter().map(|f| plain_field(f)).collect();
    Ok(Schema::new(fields))
}

/// Whether a path stands for stdin.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// What messages call a source.
pub(crate) fn source_name(path: &Path) -> String {
    if is_stdin(path) { "<stdin>".to_string() } else { path.display().to_string() }
}

fn open_file(path: &Path) -> Result<File> {
    let name = path.display();
    let file = File::open(path).map_err(|e| CliError::input(format!("cannot open {name}: {e}")))?;
    let is_dir = file.metadata().map(|m| m.is_dir()).unwrap_or(false);
    if is_dir {
        return Err(CliError::input(format!("{name} is a directory"))
            .help("name the files in it, for example with DIR/*.parquet"));
    }
    Ok(file)
}

fn reader(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    if is_stdin(path) {
        Ok(Box::new(BufReader::with_capacity(1 << 18, io::stdin())))
    } else {
        Ok(Box::new(BufReader::with_capacity(1 << 18, open_file(path)?)))
    }
}

/// A file that can seek. Stdin is copied to an unnamed temporary file first.
fn seekable(path: &Path) -> Result<File> {
    if is_stdin(path) { spool("<stdin>", &mut io::stdin()) } else { open_file(path) }
}

fn spool(source: &str, input: &mut dyn Read) -> Result<File> {
    let copied = tempfile::tempfile().and_then(|mut file| {
        io::copy(input, &mut file)?;
        file.rewind()?;
        Ok(file)
    });
    copied.map_err(|e| CliError::input(format!("cannot copy {source} to a temporary file: {e}")))
}

fn cannot_read(source: &str, kind: &str, error: impl std::fmt::Display) -> CliError {
    CliError::input(format!("cannot read {source} as {kind}: {error}"))
        .help("check the file, or name its format with --format")
}

/// Cuts batches that are larger than asked.
fn slices(batch: RecordBatch, rows: usize) -> impl Iterator<Item = RecordBatch> {
    let total = batch.num_rows();
    (0..total).step_by(rows.max(1)).map(move |start| batch.slice(start, rows.max(1).min(total - start)))
}

fn plain_field(field: &Field) -> Field {
    // Other metadata belongs to the file (Parquet field ids and the like) and would mislead the table.
    let metadata = field
        .metadata()
        .iter()
        .filter(|(key, _)| key.starts_with("ARROW:extension:"))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    Field::new(field.name(), plain_type(field.data_type()), field.is_nullable()).with_metadata(metadata)
}

fn plain_type(data_type: &DataType) -> DataType {
    let item = |f: &Arc<Field>| Arc::new(Field::new("item", plain_type(f.data_type()), true));
    match data_type {
        DataType::Dictionary(_, value) => plain_type(value),
        DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::List(f) | DataType::ListView(f) => DataType::List(item(f)),
        DataType::LargeList(f) | DataType::LargeListView(f) => DataType::LargeList(item(f)),
        DataType::FixedSizeList(f, n) => DataType::FixedSizeList(item(f), *n),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|f| plain_field(f)).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
