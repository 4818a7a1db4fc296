//! `fencepost ingest`: files into a table, several appends in flight, rows of one key in the order of the files.
//! It owns the order of events: nothing is claimed before the input was looked at, and every end, good or bad, says
//! how many rows are durable.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Instant;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use fencepost::{Table, TableOptions};
use serde_json::json;
use tokio::sync::mpsc;

use super::put::{Acknowledged, Puts};
use crate::args::{IngestArgs, Output};
use crate::error::{CliError, Exit, Result};
use crate::input;
use crate::output::{self, count, plural};
use crate::progress::Progress;
use crate::table;

/// Batches that are read ahead of the appends.
const READ_AHEAD: usize = 2;

/// Ingests every file.
pub(crate) async fn run(args: IngestArgs) -> Result<()> {
    if args.files.iter().filter(|f| input::is_stdin(f)).count() > 1 {
        return Err(CliError::usage("stdin (\"-\") is named twice, and can be read only once"));
    }
    let target = Target::find(&args).await?;
    check_files(&args, &target.schema())?;
    let started = Instant::now();
    let mut reader = Reader::start(&args, target.schema());
    // The first batch shows whether the input is any good; until then nothing is created and nobody is fenced.
    let first = reader.next().await.transpose()?;
    let table = target.open_or_create(&args).await?;

    let mut done = Done::default();
    let result = match first {
        None => Ok(()),
        Some(first) => write_all(&args, &table, first, &mut reader, &mut done).await,
    };
    let seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(()) => report(args.output.output, &done, seconds),
        Err(e) => Err(e.note(done.sentence(!table.primary_key().is_empty()))),
    }
}

/// What was acknowledged, in the order of the input.
#[derive(Debug, Default)]
struct Done {
    batches: u64,
    rows: u64,
}

impl Done {
    fn sentence(&self, keyed: bool) -> String {
        let again = if keyed {
            "to go on, ingest the whole input again: rows that are there already are not doubled"
        } else {
            "to go on, ingest only the rest of the input: the table has no primary key, so rows can be doubled"
        };
        match self.rows {
            0 => "no row was acknowledged".to_string(),
            n => format!("the first {} of the input are durable ({again})", plural(n, "row")),
        }
    }
}

async fn write_all(
    args: &IngestArgs,
    table: &Table,
    first: RecordBatch,
    reader: &mut Reader,
    done: &mut Done,
) -> Result<()> {
    let mut ack_log = AckLog::open(args.ack_log.as_deref())?;
    let progress = Progress::rows();
    let writer = table.writer(table::writer_config_of(table, &args.abandon).await?).await?;
    let mut puts = Puts::new(&writer, usize::from(args.in_flight));
    puts.issue(first).await;

    let mut stop: Option<CliError> = None;
    let mut reading = true;
    let mut ctrl_c = pin!(tokio::signal::ctrl_c());
    while reading || !puts.is_empty() {
        tokio::select! {
            biased;
            _ = &mut ctrl_c => {
                let interrupted = CliError::new(Exit::Interrupted, "stopped by Ctrl-C");
                if !reading {
                    // The second time: no longer wait for the appends in flight.
                    return Err(interrupted);
                }
                stop = Some(interrupted);
                reading = false;
                ctrl_c.set(tokio::signal::ctrl_c());
            }
            Some(acknowledged) = puts.next(), if !puts.is_empty() => {
                // Later appends may have landed as well, but only an unbroken start can be told to the user.
                let Acknowledged { rows } = acknowledged?;
                done.batches += 1;
                done.rows += rows;
                ack_log.write(done)?;
                progress.add(rows);
            }
            batch = reader.next(), if reading && puts.has_room() => match batch {
                Some(Ok(batch)) => puts.issue(batch).await,
                Some(Err(e)) => {
                    stop = Some(e);
                    reading = false;
                }
                None => reading = false,
            },
        }
        if let Some(name) = reader.source() {
            progress.source(name);
        }
    }
    drop(puts);
    drop(progress);
    writer.close().await.map_err(|e| CliError::from(e).context("closing the table"))?;
    stop.map_or(Ok(()), Err)
}

fn report(output: Output, done: &Done, seconds: f64) -> Result<()> {
    let per_second = done.rows as f64 / seconds.max(1e-9);
    let text = format!("{} durable in {seconds:.2} s ({} rows/s)", plural(done.rows, "row"), count(per_second as u64));
    let value = json!({
        "rows": done.rows,
        "batches": done.batches,
        "seconds": seconds,
        "rows_per_second": per_second,
    });
    output::result(output, &text, &value)
}

/// The table that is written to: one that is there, or one that will be created once the input proved readable.
enum Target {
    Existing(Box<Table>),
    New(SchemaRef, TableOptions),
}

impl Target {
    async fn find(args: &IngestArgs) -> Result<Target> {
        let Some(like) = &args.like else {
            let table = table::open(&args.table).await?;
            table::check_layout(&table, &args.layout)?;
            return Ok(Target::Existing(Box::new(table)));
        };
        match table::open_if_there(&args.table).await? {
            Some(table) => {
                table::check_layout(&table, &args.layout)?;
                Ok(Target::Existing(Box::new(table)))
            }
            None => {
                let (schema, options) = table::plan(input::schema_of(like, args.format)?, &args.layout)?;
                Ok(Target::New(schema, options))
            }
        }
    }

    fn schema(&self) -> SchemaRef {
        match self {
            Target::Existing(table) => table.schema(),
            Target::New(schema, _) => schema.clone(),
        }
    }

    async fn open_or_create(self, args: &IngestArgs) -> Result<Table> {
        match self {
            Target::Existing(table) => Ok(*table),
            Target::New(schema, options) => table::create(&args.table, schema, options).await,
        }
    }
}

/// Opens every file once, so that one with the wrong columns is refused before anything is written.
fn check_files(args: &IngestArgs, schema: &SchemaRef) -> Result<()> {
    for file in args.files.iter().filter(|f| !input::is_stdin(f)) {
        drop(input::open(file, args.format, schema, 1)?);
    }
    Ok(())
}

/// Reads the files on a thread of its own, a little ahead.
struct Reader {
    batches: mpsc::Receiver<(usize, Result<RecordBatch>)>,
    files: Vec<PathBuf>,
    current: Option<String>,
}

impl Reader {
    fn start(args: &IngestArgs, schema: SchemaRef) -> Self {
        let (sender, batches) = mpsc::channel(READ_AHEAD);
        let (format, batch_rows) = (args.format, args.batch_rows as usize);
        let files = args.files.clone();
        // A plain thread: it may wait for stdin for ever, and must not keep the runtime from ending.
        std::thread::spawn(move || {
            for (index, file) in files.iter().enumerate() {
                let opened = match input::open(file, format, &schema, batch_rows) {
                    Ok(batches) => batches,
                    Err(e) => {
                        let _ = sender.blocking_send((index, Err(e)));
                        return;
                    }
                };
                for batch in opened {
                    let failed = batch.is_err();
                    if sender.blocking_send((index, batch)).is_err() || failed {
                        return;
                    }
                }
            }
        });
        Self { batches, files: args.files.clone(), current: None }
    }

    async fn next(&mut self) -> Option<Result<RecordBatch>> {
        let (index, batch) = self.batches.recv().await?;
        self.current = self.files.get(index).map(|f| input::source_name(f));
        Some(batch)
    }

    fn source(&self) -> Option<&str> {
        self.current.as_deref()
    }
}

/// Where a crash test looks for what was acknowledged.
enum AckLog {
    None,
    Stdout,
    File(File),
}

impl AckLog {
    fn open(path: Option<&Path>) -> Result<Self> {
        match path {
            None => Ok(AckLog::None),
            Some(path) if input::is_stdin(path) => Ok(AckLog::Stdout),
            Some(path) => OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map(AckLog::File)
                .map_err(|e| CliError::failure(format!("cannot open --ack-log {}: {e}", path.display()))),
        }
    }

    fn write(&mut self, done: &Done) -> Result<()> {
        let line = format!("{} {}", done.batches, done.rows);
        let wrong = |e: io::Error| CliError::failure(format!("cannot write to --ack-log: {e}"));
        match self {
            AckLog::None => Ok(()),
            AckLog::Stdout => output::line(&line),
            AckLog::File(file) => writeln!(file, "{line}").and_then(|()| file.flush()).map_err(wrong),
        }
    }
}
