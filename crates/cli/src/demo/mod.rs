//! `fencepost demo`: crashes and recovers a table in a temporary directory, with real processes and signals, and
//! checks every claim it prints. It owns the script; `checks` proves, `child` handles processes, `rows` generates.

pub(crate) mod check;
mod checks;
mod child;
mod rows;
mod signal;
pub(crate) mod writer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fencepost::{MergeOptions, Sharding, Store, Table, TableOptions};

use crate::args::DemoArgs;
use crate::error::{CliError, Exit, Result};
use crate::output::{count, line, plural};
use crate::table;

use checks::{SaidRows, ensure, visible};
use child::{Child, WriterSpec};

const SEED: u64 = 20_130_101;
const SHARDS: u32 = 2;
/// Small, so that a few seconds of writing leave several SSTables.
const MEMTABLE_ROWS: usize = 12_000;
/// How often the table is queried while it is written.
const QUERIES: usize = 4;
/// Rows that the killed writer has acknowledged when the signal is sent, at least.
const ROWS_BEFORE_KILL: u64 = 40_000;
/// Rows that the second writer has acknowledged when it is stopped, at least.
const ROWS_BEFORE_STOP: u64 = 1_000;
/// Rows that the third writer adds.
const ROWS_OF_THIRD: u64 = 3_000;
/// Longest wait for any one thing to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo. Fails if any of its proofs does.
pub(crate) async fn run(args: DemoArgs) -> Result<()> {
    if !cfg!(unix) {
        return Err(CliError::failure("the demo stops processes with Unix signals")
            .help("run it on Linux or macOS; the other verbs work everywhere"));
    }
    let failed = |e| CliError::failure(format!("cannot create a temporary directory: {e}"));
    let directory = tempfile::Builder::new().prefix("fencepost-demo-").tempdir().map_err(failed)?;
    let path = directory.path().join("pings");
    let started = Instant::now();
    let result = Demo::create(&path).await?.play().await;
    if args.keep {
        let kept = directory.keep();
        line(&format!("\nThe table is kept in {}", kept.join("pings").display()))?;
    }
    result?;
    line(&format!("\nAll proofs hold ({:.1} s).", started.elapsed().as_secs_f64()))
}

struct Demo {
    path: PathBuf,
    url: String,
    table: Table,
}

impl Demo {
    async fn create(path: &Path) -> Result<Self> {
        let url = path.display().to_string();
        let options = TableOptions {
            primary_key: rows::KEY.map(str::to_string).to_vec(),
            sharding: Sharding::Bucket { column: "vehicle".to_string(), buckets: SHARDS },
        };
        let store = Store::open(&url, &Default::default())?;
        let table = Table::create(store, rows::schema(), options).await?;
        line("Fencepost demo: GPS pings of a taxi fleet, written, crashed and recovered.")?;
        line(&format!("\n1. A table with primary key ({}) in {SHARDS} shards", rows::KEY.join(", ")))?;
        line(&format!("   {}", table.store().url()))?;
        Ok(Self { path: path.to_path_buf(), url, table })
    }

    async fn play(&self) -> Result<()> {
        let first = self.write_and_query().await?;
        let mut said = SaidRows::default();
        let sent = self.kill_and_recover(first, &mut said).await?;
        self.stop_and_take_over(sent, &mut said).await?;
        self.flush_and_open_with_lance(&said).await?;
        self.merge_and_open_with_lance(&said).await
    }

    /// Another process writes; this one asks storage what it sees.
    async fn write_and_query(&self) -> Result<Child> {
        line("\n2. A writer process appends while this process queries")?;
        let writer = self.start(WriterSpec { first: 0, rows: u64::MAX }).await?;
        let mut before = 0;
        for n in 1..=QUERIES as u64 {
            let target = ROWS_BEFORE_KILL * n / QUERIES as u64;
            writer.wait_for("acknowledgements", PATIENCE, |p| p.acknowledged() >= target).await?;
            let acknowledged = writer.progress().acknowledged();
            let started = Instant::now();
            let seen = checks::count(&self.table).await?;
            let took = started.elapsed();
            line(&format!(
                "   select count(*) from t  ->  {:>7}   ({} acknowledged when the query began; {:.0} ms)",
                count(seen),
                count(acknowledged),
                took.as_secs_f64() * 1e3
            ))?;
            ensure(seen >= acknowledged, || format!("{seen} rows are visible, but {acknowledged} were acknowledged"))?;
            // A row is announced before it is sent, but the announcement may still be on its way to us.
            let announced = writer.wait_for("announcement of a row that is visible", PATIENCE, |p| p.issued() >= seen);
            announced.await?;
            ensure(seen >= before, || format!("{seen} rows are visible, after {before}"))?;
            before = seen;
        }
        Ok(writer)
    }

    /// SIGKILL with PUTs in flight. Returns how many rows were ever sent.
    async fn kill_and_recover(&self, writer: Child, said: &mut SaidRows) -> Result<u64> {
        writer.wait_for("appends in flight", PATIENCE, |p| p.issued() > p.acknowledged()).await?;
        writer.kill()?;
        let end = writer.end(PATIENCE).await?;
        let (acknowledged, issued) = (end.progress.acknowledged(), end.progress.issued());
        line(&format!(
            "\n3. kill -9 of the writer: {} acknowledged, {} in flight",
            count(acknowledged),
            count(issued - acknowledged)
        ))?;
        ensure(issued > acknowledged, || "nothing was in flight when the writer was killed".to_string())?;

        let started = Instant::now();
        let table = self.reopen().await?;
        let found = visible(&table, SEED).await?;
        let took = started.elapsed().as_secs_f64();
        said.add(0, acknowledged, issued);
        found.prove(said)?;
        line(&format!("   reopened and read in {took:.2} s: {} rows", count(found.total())))?;
        line(&format!(
            "   proved: each of the {} acknowledged rows is there exactly once and unchanged;\n   \
             {} of the {} rows in flight had landed, nothing else is there",
            count(acknowledged),
            count(found.total() - acknowledged),
            count(issued - acknowledged),
        ))?;
        Ok(issued)
    }

    /// A stopped process must not write after another took over.
    async fn stop_and_take_over(&self, from: u64, said: &mut SaidRows) -> Result<()> {
        let second = self.start(WriterSpec { first: from, rows: u64::MAX }).await?;
        second.wait_for("acknowledgements", PATIENCE, |p| p.acknowledged() >= from + ROWS_BEFORE_STOP).await?;
        second.stop()?;
        let stopped_at = second.progress();
        line(&format!(
            "\n4. A second writer took over and was stopped (SIGSTOP): {} acknowledged, {} in flight",
            count(stopped_at.acknowledged() - from),
            count(stopped_at.issued() - stopped_at.acknowledged())
        ))?;

        // The lines that the second writer wrote before it stopped may not all be read yet: leave a wide gap.
        let third_from = stopped_at.issued() + 1_000_000;
        let third = self.start(WriterSpec { first: third_from, rows: ROWS_OF_THIRD }).await?;
        let end = third.end(PATIENCE).await?;
        ensure(end.code == Some(0), || format!("the third writer failed: {}", end.stderr))?;
        line(&format!("   a third writer took the shards over and wrote {}", plural(ROWS_OF_THIRD, "row")))?;

        second.resume()?;
        let end = second.end(PATIENCE).await?;
        line("   the second writer goes on (SIGCONT) and is told:")?;
        // What it logs is for others.
        for said in end.stderr.lines().filter(|l| l.starts_with("error:") || l.starts_with("help:")) {
            line(&format!("     {said}"))?;
        }
        let fenced = Exit::Fenced as i32;
        ensure(end.code == Some(fenced), || format!("the second writer ended with {:?}, not {fenced}", end.code))?;
        ensure(end.stderr.contains("fenced"), || "the second writer was not told that it is fenced".to_string())?;

        said.add(from, end.progress.acknowledged(), end.progress.issued());
        said.add(third_from, third_from + ROWS_OF_THIRD, third_from + ROWS_OF_THIRD);
        visible(&self.reopen().await?, SEED).await?.prove(said)?;
        line(&format!(
            "   proved: it exits with code {fenced}; all rows that either writer was told are durable are there exactly once"
        ))
    }

    /// The SSTables are ordinary Lance datasets.
    async fn flush_and_open_with_lance(&self, said: &SaidRows) -> Result<()> {
        let table = self.reopen().await?;
        let before = checks::count(&table).await?;
        table.flush(table::flushing(table::writer_config(&table, None).await?)).await?;
        let table = self.reopen().await?;
        let after = visible(&table, SEED).await?;
        after.prove(said)?;
        ensure(after.total() == before, || format!("{before} rows before the flush, {} after", after.total()))?;

        let inspection = table.inspect().await?;
        let (mut files, mut rows_in_lance) = (0_u64, inspection.base.rows);
        for shard in &inspection.shards {
            for sstable in &shard.sstables {
                let shard_dir = self.path.join("_mem_wal").join(shard.shard_id.to_string());
                let uri = shard_dir.join(&sstable.path).display().to_string();
                rows_in_lance += checks::count_with_lance(&uri).await?;
                files += 1;
            }
        }
        line(&format!("\n5. Flushed: {}", plural(files, "SSTable")))?;
        line(&format!("   opened with plain Lance: {} rows in them", count(rows_in_lance)))?;
        ensure(rows_in_lance == before, || format!("Lance counts {rows_in_lance} rows, SQL {before}"))?;
        line("   proved: Lance counts the same rows as SQL before and after the flush")
    }

    /// The base table is one ordinary Lance dataset.
    async fn merge_and_open_with_lance(&self, said: &SaidRows) -> Result<()> {
        let table = self.reopen().await?;
        let before = checks::count(&table).await?;
        let report = table.merge(&MergeOptions::default(), |_| {}).await?;
        let in_base = checks::count_with_lance(&self.path.display().to_string()).await?;
        line(&format!("\n6. Merged {} into the base table", plural(report.sstables, "SSTable")))?;
        line(&format!("   opened with plain Lance, or lance.dataset() in Python: {} rows", count(in_base)))?;
        ensure(in_base == before, || format!("Lance counts {in_base} rows in the base table, SQL {before}"))?;
        visible(&self.reopen().await?, SEED).await?.prove(said)?;
        line("   proved: every row is in the base table, and SQL sees each exactly once")
    }

    async fn start(&self, spec: WriterSpec) -> Result<Child> {
        Child::start(&self.url, SEED, MEMTABLE_ROWS, spec).await
    }

    async fn reopen(&self) -> Result<Table> {
        Ok(Table::open(Store::open(&self.url, &Default::default())?).await?)
    }
}
