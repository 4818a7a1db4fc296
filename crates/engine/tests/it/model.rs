//! Random histories of a whole table against a model of what was promised: puts, deletes, flushes, crashes, takeovers,
//! reads from every side, on good days and on bad ones. A failure names its seed and step: `FENCEPOST_MODEL_SEED=n` runs
//! one seed, `FENCEPOST_MODEL_SEEDS=n` the first `n`.
//!
//! The model of a shard is the rows that are certain and the appends behind them, in order, of which the log holds some
//! prefix. What was acknowledged or seen bounds the prefix from below; the next takeover decides it for good.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::error::DataFusionError;
use fencepost::wal::{Error as WalError, OpenOptions, RetryPolicy, WalConfig};
use fencepost::{
    Error, MemTableConfig, Outcome, Result, Sharding, Store, Table, TableOptions, TableWriter, WriterConfig,
};
use fencepost_sim::{Fault, FaultStore, Op, RandomFaults, Rng, is_injected};
use futures::future::{join, join_all};
use tokio::sync::OnceCell;

use crate::support::{Bucket, soon, try_sql};

const IDS: [i64; 7] = [-7, 0, 1, 2, 3, 4, 5];
const NAMES: [&str; 3] = ["", "a", "b"];
const BUCKETS: u32 = 4;
/// Instead of a number of buckets: a shard for each id.
const BY_VALUE: u32 = 0;
const STEPS: usize = 40;

type Provider = Arc<dyn TableProvider>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    id: i64,
    name: String,
    v: Option<i64>,
    s: String,
}

impl Row {
    fn text(&self) -> Vec<String> {
        let v = self.v.map_or("null".to_owned(), |v| v.to_string());
        vec![self.id.to_string(), self.name.clone(), v, self.s.clone()]
    }

    fn of_text(text: &[String]) -> Self {
        let [id, name, v, s] = text else { panic!("four columns, not {text:?}") };
        let v = (v != "null").then(|| v.parse().unwrap());
        Self { id: id.parse().unwrap(), name: name.clone(), v, s: s.clone() }
    }
}

/// What makes a row the same row: its key, or in a table without one a number of its own.
type Identity = (i64, String, u64);

/// The part of one call that goes to one shard: there as a whole or not at all.
#[derive(Debug)]
struct Append {
    number: u64,
    changes: Vec<(Identity, Option<Row>)>,
}

#[derive(Debug, Default)]
struct ShardModel {
    rows: BTreeMap<Identity, Row>,
    /// Of one tenure, in the order of their first polls.
    tail: VecDeque<Append>,
    /// So many of them are acknowledged, so many were seen by another process.
    promised: usize,
    seen: usize,
}

fn apply(rows: &mut BTreeMap<Identity, Row>, append: &Append) {
    for (identity, row) in &append.changes {
        match row {
            Some(row) => drop(rows.insert(identity.clone(), row.clone())),
            None => drop(rows.remove(identity)),
        }
    }
}

impl ShardModel {
    /// The shortest prefix of the tail, of `least` appends or more, after which the shard has exactly these rows.
    fn matching(&self, observed: &[Row], least: usize) -> Option<usize> {
        let mut rows = self.rows.clone();
        for n in 0..=self.tail.len() {
            let mut now: Vec<_> = rows.values().cloned().collect();
            now.sort();
            if n >= least && now == observed {
                return Some(n);
            }
            self.tail.get(n).into_iter().for_each(|append| apply(&mut rows, append));
        }
        None
    }

    /// I1, I4: this append and all before it are there to stay.
    fn acknowledged(&mut self, number: u64) {
        self.promised = self.promised.max(self.tail.partition_point(|append| append.number <= number));
        self.seen = self.seen.max(self.promised);
    }

    /// The answer was "not written".
    fn refused(&mut self, number: u64) {
        let at = self.tail.iter().position(|append| append.number == number);
        let at = at.unwrap_or_else(|| panic!("append {number} was called not written, and it was acknowledged"));
        assert!(at >= self.seen, "append {number} was called not written, and it was seen");
        self.tail.remove(at);
    }

    fn compact(&mut self) {
        self.tail.drain(..self.promised).for_each(|append| apply(&mut self.rows, &append));
        self.seen -= self.promised;
        self.promised = 0;
    }

    /// A successor is recorded: the log holds the first `n`, and of the others nothing ever.
    fn settle(&mut self, n: usize) {
        self.tail.drain(..).take(n).for_each(|append| apply(&mut self.rows, &append));
        (self.promised, self.seen) = (0, 0);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    Fair,
    /// Every request of the log and of its manifests may go wrong.
    Stormy,
    /// Lance's requests too.
    StormyEverywhere,
}

/// A writer that nobody took over from, as far as it knows.
struct Open {
    writer: TableWriter,
    process: FaultStore,
    table: Table,
    durable: bool,
    memtable: bool,
    /// Appends may have to wait for memory.
    tight: bool,
    /// A call of it failed.
    broken: bool,
}

/// What opening a writer needs.
struct Plan {
    process: FaultStore,
    store: Store,
    table: Option<Table>,
    config: WriterConfig,
}

impl Plan {
    async fn open(self) -> Result<Open> {
        let Self { process, store, table, config } = self;
        let table = match table {
            Some(table) => table,
            None => Table::open(store).await?,
        };
        let (durable, memtable, tight) =
            (config.durable, config.memtable.is_some(), config.wal.max_unflushed_bytes < 1 << 20);
        let writer = table.writer(config).await?;
        Ok(Open { writer, process, table, durable, memtable, tight, broken: false })
    }
}

/// A put or delete that the model knows of.
struct Write {
    batch: RecordBatch,
    deletes: bool,
    /// Its appends: shard and number.
    parts: Vec<(usize, u64)>,
}

impl Write {
    async fn send(&self, writer: &TableWriter) -> Result<()> {
        match self.deletes {
            true => writer.delete(self.batch.clone()).await.map(drop),
            false => writer.put(self.batch.clone()).await.map(drop),
        }
    }
}

/// One of several calls at once.
enum Call {
    Write(Write),
    /// With the last append of each shard that was accepted before.
    Flush(Vec<(usize, u64)>),
    ReadOwn,
    ReadElsewhere(Box<Reader>),
}

enum Answer {
    Done(Result<()>),
    Snapshot(Result<Provider>),
}

impl Call {
    async fn run(&self, writer: &TableWriter) -> Answer {
        match self {
            Call::Write(write) => Answer::Done(write.send(writer).await),
            Call::Flush(_) => Answer::Done(writer.flush().await),
            Call::ReadOwn => Answer::Snapshot(writer.provider().await),
            Call::ReadElsewhere(reader) => Answer::Snapshot(reader.provider().await),
        }
    }
}

async fn all_rows(provider: &Provider) -> Result<Vec<Row>, DataFusionError> {
    let rows = try_sql(provider, "select id, name, v, s from t order by id, name, s, v nulls last").await?;
    let rows: Vec<Row> = rows.iter().map(|row| Row::of_text(row)).collect();
    assert!(rows.is_sorted_by_key(|row| (row.id, row.name.clone(), row.s.clone())), "{rows:?}");
    Ok(rows)
}

/// A process that only reads: one that has just been started, or one that has been there for long.
enum Reader {
    Fresh(Box<Store>),
    Old(Box<Table>),
}

impl Reader {
    async fn provider(&self) -> Result<Provider> {
        match self {
            Reader::Fresh(store) => Table::open(*store.clone()).await?.provider().await,
            Reader::Old(table) => table.provider().await,
        }
    }
}

/// What was met: a test that never meets its faults proves nothing.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: u64,
    not_written: u64,
    unknown: u64,
    partly: u64,
    opened: u64,
    failed_opens: u64,
    fenced: u64,
    reads: u64,
    failed_reads: u64,
    landed_late: u64,
    sstables: u64,
}

impl Tally {
    fn add(&mut self, other: &Tally) {
        self.acknowledged += other.acknowledged;
        self.not_written += other.not_written;
        self.unknown += other.unknown;
        self.partly += other.partly;
        self.opened += other.opened;
        self.failed_opens += other.failed_opens;
        self.fenced += other.fenced;
        self.reads += other.reads;
        self.failed_reads += other.failed_reads;
        self.landed_late += other.landed_late;
        self.sstables += other.sstables;
    }
}

struct World {
    bucket: Bucket,
    keyed: bool,
    weather: Weather,
    /// Shards are made when their first row comes.
    by_value: bool,
    /// Which shard rows go to, by their `id`.
    route: HashMap<i64, usize>,
    shards: Vec<ShardModel>,
    writer: Option<Open>,
    /// Writers that were taken over from, and whether they wait for the log.
    zombies: Vec<(TableWriter, bool)>,
    processes: Vec<FaultStore>,
    /// In a process without faults.
    reader: Table,
    /// Snapshots and what they must show for ever.
    held: Vec<(Provider, Vec<Row>)>,
    next_number: u64,
    trace: Arc<Mutex<Vec<String>>>,
    tally: Tally,
}

fn brief(config: &WriterConfig) -> String {
    let memory = config
        .memtable
        .as_ref()
        .map(|m| format!("{} rows, {} batches, {} bytes", m.max_rows, m.max_batches, m.max_bytes));
    let WriterConfig { durable, wal, open, .. } = config;
    let (window, budget, replay) = (wal.max_in_flight, wal.max_unflushed_bytes, open.replay_budget_bytes);
    format!("durable {durable}, window {window}, budget {budget}, replay budget {replay}, MemTable {memory:?}")
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, false),
        Field::new("v", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
    ]))
}

fn batch_of(rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.name))),
        Arc::new(rows.iter().map(|row| row.v).collect::<Int64Array>()),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.s))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn sharding(buckets: u32) -> Sharding {
    match buckets {
        1 => Sharding::Unsharded,
        BY_VALUE => Sharding::Identity { column: "id".into() },
        buckets => Sharding::Bucket { column: "id".into(), buckets },
    }
}

async fn create(bucket: &Bucket, keyed: bool, buckets: u32) -> Table {
    let primary_key = if keyed { vec!["id".into(), "name".into()] } else { vec![] };
    let options = TableOptions { primary_key, sharding: sharding(buckets) };
    Table::create(bucket.process().store, schema(), options).await.unwrap()
}

/// Which shard an id goes to, found out by asking a table: the model does not repeat the hash function.
async fn routes(buckets: u32) -> HashMap<i64, usize> {
    let bucket = Bucket::new();
    let writer = create(&bucket, true, buckets).await.writer(WriterConfig::default()).await.unwrap();
    let mut route = HashMap::new();
    for id in IDS {
        let before: Vec<u64> = writer.shards().iter().map(|shard| shard.stats().wal.rows).collect();
        writer.put(batch_of(&[Row { id, name: String::new(), v: None, s: String::new() }])).await.unwrap();
        let grew = |n: usize| writer.shards()[n].stats().wal.rows > before[n];
        route.insert(id, (0..before.len()).find(|n| grew(*n)).unwrap());
    }
    route
}

impl World {
    async fn new(keyed: bool, buckets: u32, weather: Weather, trace: Arc<Mutex<Vec<String>>>) -> Self {
        static ROUTES: OnceCell<HashMap<i64, usize>> = OnceCell::const_new();
        let route = match buckets {
            1 => IDS.into_iter().map(|id| (id, 0)).collect(),
            BY_VALUE => IDS.into_iter().zip(0..).collect(),
            buckets => ROUTES.get_or_init(|| routes(buckets)).await.clone(),
        };
        let bucket = Bucket::new();
        let reader = create(&bucket, keyed, buckets).await;
        let shards = if buckets == BY_VALUE { IDS.len() } else { buckets as usize };
        Self {
            bucket,
            keyed,
            weather,
            route,
            shards: (0..shards).map(|_| ShardModel::default()).collect(),
            by_value: buckets == BY_VALUE,
            writer: None,
            zombies: Vec::new(),
            processes: Vec::new(),
            reader,
            held: Vec::new(),
            next_number: 0,
            trace,
            tally: Tally::default(),
        }
    }

    fn note(&self, what: impl Into<String>) {
        self.trace.lock().unwrap().push(what.into());
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
    fn is_fair(&self) -> bool {
        self.weather == Weather::Fair
    }

    // What is drawn.

    fn draw_row(&mut self, rng: &mut Rng) -> (Identity, Row) {
        let number = self.number();
        let (id, name) = (*rng.pick(&IDS).unwrap(), (*rng.pick(&NAMES).unwrap()).to_owned());
        let v = (!rng.chance(0.25)).then(|| rng.below(10) as i64);
        // Now and then rows that cannot be told apart.
        let s = if rng.chance(0.1) { "same".to_owned() } else { format!("w{number}") };
        ((id, name.clone(), if self.keyed { 0 } else { number }), Row { id, name, v, s })
    }

    /// Rows for a put that the model does not know of.
    fn draw_rows(&mut self, rng: &mut Rng) -> (RecordBatch, Vec<(Identity, Option<Row>)>) {
        let count = if rng.chance(0.03) { 0 } else { 1 + rng.below(5) };
        let drawn: Vec<_> = (0..count).map(|_| self.draw_row(rng)).collect();
        let rows: Vec<Row> = drawn.iter().map(|(_, row)| row.clone()).collect();
        (batch_of(&rows), drawn.into_iter().map(|(identity, row)| (identity, Some(row))).collect())
    }

    /// A write, which the model expects from now on: its first poll must come before that of the next one.
    fn draw_write(&mut self, rng: &mut Rng, may_delete: bool) -> Write {
        let deletes = may_delete && rng.chance(0.25);
        let (batch, changes) = match deletes {
            false => self.draw_rows(rng),
            true => {
                let keys: Vec<_> = (0..1 + rng.below(3)).map(|_| self.draw_row(rng).0).collect();
                let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.iter().map(|key| key.0)));
                let names: ArrayRef = Arc::new(StringArray::from_iter_values(keys.iter().map(|key| &key.1)));
                let mut columns = [("id", ids), ("name", names)];
                rng.shuffle(&mut columns);
                let batch = RecordBatch::try_from_iter(columns).unwrap();
                (batch, keys.into_iter().map(|key| (key, None)).collect())
            }
        };
        let mut by_shard: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for change in changes {
            by_shard.entry(self.route[&change.0.0]).or_default().push(change);
        }
        let mut parts = Vec::new();
        for (shard, changes) in by_shard {
            let number = self.number();
            self.note(format!("    append {number} to shard {shard}: {changes:?}"));
            self.shards[shard].tail.push_back(Append { number, changes });
            parts.push((shard, number));
        }
        Write { batch, deletes, parts }
    }

    fn draw_config(&mut self, rng: &mut Rng) -> WriterConfig {
        let memtable = MemTableConfig {
            max_rows: *rng.pick(&[2, 5, 12, 12, 1000, 1000]).unwrap(),
            max_batches: *rng.pick(&[2, 1000, 1000, 1000]).unwrap(),
            max_bytes: *rng.pick(&[600, 1 << 20, 1 << 20, 1 << 20]).unwrap(),
            flush_retry_delay: Duration::from_millis(1),
            ..MemTableConfig::default()
        };
        WriterConfig {
            durable: rng.chance(0.65),
            memtable: (!rng.chance(if self.keyed { 0.05 } else { 0.2 })).then_some(memtable),
            wal: WalConfig {
                max_in_flight: *rng.pick(&[1, 1, 2, 4, 32]).unwrap(),
                // What is sent when is the seed's choice, not the clock's.
                flush_interval: Duration::from_secs(3600),
                max_unflushed_bytes: *rng.pick(&[4_000, 1 << 30, 1 << 30, 1 << 30]).unwrap(),
                ..WalConfig::default()
            },
            open: OpenOptions {
                replay_budget_bytes: *rng.pick(&[0, 3000, 1 << 20]).unwrap(),
                ..OpenOptions::default()
            },
            ..WriterConfig::default()
        }
    }

    fn draw_process(&mut self, rng: &mut Rng) -> (FaultStore, Store) {
        let process = self.bucket.process();
        let (faults, mut store) = (process.faults, process.store);
        let of_the_log = |path: &str| path.contains("/wal/") || path.contains("/manifest/");
        if self.is_fair() {
            if rng.chance(0.5) {
                let pause = Fault::Delay(Duration::from_millis(1));
                faults.on(Op::Create).path_contains("/wal/").always().then(pause);
            }
        } else {
            // Some processes give up soon, so that writers are poisoned too.
            let max_attempts = *rng.pick(&[2, 3, 3, 4, 6]).unwrap();
            let retry = RetryPolicy { max_attempts, ..store.retry().clone() };
            store = store.with_retry(retry);
            if self.weather == Weather::Stormy {
                for op in [Op::Create, Op::Get, Op::Head, Op::List, Op::Delete] {
                    // A rule goes before the dice.
                    let gate = faults.on(op).path_matches(move |path| !of_the_log(path)).always().stall();
                    gate.release();
                }
            }
            // What is late lands when the seed says so.
            let burst = 1 + rng.below(5) as u32;
            let stormy = RandomFaults::stormy(rng.next_u64());
            faults.random(RandomFaults { burst, land: 0.0, late_landing: 0.15, fail_create: 0.1, ..stormy });
            self.processes.push(faults.clone());
        }
        (faults, store)
    }

    fn draw_plan(&mut self, rng: &mut Rng) -> Plan {
        let again = rng.chance(0.3);
        let config = self.draw_config(rng);
        self.note(format!("  open: {}", brief(&config)));
        if let Some(open) = self.writer.as_ref().filter(|_| again) {
            let table = rng.chance(0.7).then(|| open.table.clone());
            return Plan { process: open.process.clone(), store: open.table.store().clone(), table, config };
        }
        let (process, store) = self.draw_process(rng);
        Plan { process, store, table: None, config }
    }

    /// Mostly in a process without faults.
    fn draw_reader(&mut self, rng: &mut Rng) -> Reader {
        match (&self.writer, rng.below(10)) {
            (Some(open), 0) => Reader::Fresh(Box::new(open.table.store().clone())),
            (Some(open), 1) => Reader::Old(Box::new(open.table.clone())),
            (_, 0..4) => Reader::Fresh(Box::new(self.bucket.process().store)),
            _ => Reader::Old(Box::new(self.reader.clone())),
        }
    }

    // What is promised.

    /// An error that no fault and no rival explains fails the test.
    fn excuse(&self, what: &str, error: &Error, rivals: bool) {
        self.note(format!("  {what}: {error}"));
        let never = matches!(
            error,
            Error::Corrupt { .. }
                | Error::InvalidOptions(_)
                | Error::InvalidBatch(_)
                | Error::TooLarge { .. }
                | Error::TableNotFound { .. }
                | Error::TableExists { .. }
                | Error::Wal(
                    WalError::Corrupt { .. }
                        | WalError::LogHole { .. }
                        | WalError::ShardNotFound { .. }
                        | WalError::StoreUnfit { .. }
                        | WalError::TooLarge { .. }
                        | WalError::InvalidArgument(_)
                )
        );
        assert!(!never && (rivals || !self.is_fair()), "{what}: {error} ({error:?})");
    }

    fn excuse_read(&mut self, what: &str, error: &DataFusionError) {
        self.note(format!("  {what}: {error}"));
        let text = format!("{error} {error:?}");
        let injected = is_injected(error) || text.contains("injected fault") || text.contains("InjectedFault");
        assert!(!self.is_fair() && injected, "{what}: {error:?}");
        self.tally.failed_reads += 1;
    }

    /// Takes the answer of a write into the model.
    fn answered(&mut self, write: &Write, answer: &Result<()>, open: &mut Open, rivals: bool) {
        match answer {
            Ok(()) if open.durable => {
                self.tally.acknowledged += 1;
                write.parts.iter().for_each(|(shard, number)| self.shards[*shard].acknowledged(*number));
            }
            Ok(()) => {}
            Err(error) => {
                self.excuse("write", error, rivals || open.broken);
                open.broken = true;
                self.tally.partly += u64::from(matches!(error, Error::PartlyWritten { .. }));
                match error.outcome() {
                    Outcome::NotWritten => {
                        self.tally.not_written += 1;
                        write.parts.iter().for_each(|(shard, number)| self.shards[*shard].refused(*number));
                    }
                    Outcome::Unknown => self.tally.unknown += 1,
                    Outcome::Written => panic!("a write that failed and is written: {error}"),
                }
            }
        }
    }

    fn flushed(&mut self, covered: &[(usize, u64)]) {
        covered.iter().for_each(|(shard, number)| self.shards[*shard].acknowledged(*number));
    }

    /// The last append of each shard.
    fn accepted(&self) -> Vec<(usize, u64)> {
        let last = self.shards.iter().enumerate().filter_map(|(n, shard)| Some((n, shard.tail.back()?.number)));
        last.collect()
    }

    /// How many appends of each shard's tail these rows are the state after.
    #[track_caller]
    fn explain(&self, what: &str, rows: &[Row], least: impl Fn(&ShardModel) -> usize) -> Vec<usize> {
        let mut of_shard: Vec<Vec<Row>> = self.shards.iter().map(|_| Vec::new()).collect();
        rows.iter().for_each(|row| of_shard[self.route[&row.id]].push(row.clone()));
        let found = self.shards.iter().zip(of_shard).enumerate().map(|(n, (shard, mut rows))| {
            rows.sort();
            let least = least(shard);
            shard.matching(&rows, least).unwrap_or_else(|| {
                panic!("{what}, shard {n}: rows {rows:#?}\nare the state after no prefix of {least} appends or more of {shard:#?}")
            })
        });
        found.collect()
    }

    // What is seen.

    /// Every row, after other queries of the same snapshot were compared with them.
    async fn query(&mut self, what: &str, provider: &Provider, rng: &mut Rng) -> Option<Vec<Row>> {
        match self.try_query(provider, rng).await {
            Ok(rows) => {
                self.tally.reads += 1;
                if self.held.len() < 4 && rng.chance(0.1) {
                    self.held.push((Arc::clone(provider), rows.clone()));
                }
                Some(rows)
            }
            Err(error) => {
                self.excuse_read(what, &error);
                None
            }
        }
    }

    async fn try_query(&self, provider: &Provider, rng: &mut Rng) -> Result<Vec<Row>, DataFusionError> {
        let rows = all_rows(provider).await?;
        if rng.chance(0.6) {
            self.compare(provider, &rows, rng).await?;
        }
        Ok(rows)
    }

    /// One of many queries must fit to all the rows of the same snapshot.
    async fn compare(&self, provider: &Provider, rows: &[Row], rng: &mut Rng) -> Result<(), DataFusionError> {
        type Holds<'a> = &'a dyn Fn(&Row) -> bool;
        let x = rng.below(10) as i64;
        let id = *rng.pick(&IDS).unwrap();
        let name = *rng.pick(&NAMES).unwrap();
        let s = rows.get(rng.below(rows.len() as u64) as usize).map_or("w1".to_owned(), |row| row.s.clone());
        let filters: [(String, Holds); 13] = [
            (format!("v >= {x}"), &|row| row.v.is_some_and(|v| v >= x)),
            ("v is null".into(), &|row| row.v.is_none()),
            (format!("not (v = {x})"), &|row| row.v.is_some_and(|v| v != x)),
            (format!("v % 3 = {}", x % 3), &|row| row.v.is_some_and(|v| v % 3 == x % 3)),
            (format!("s = '{s}'"), &|row| row.s == s),
            (format!("v in ({x}, 3) or s = '{s}'"), &|row| row.v.is_some_and(|v| v == x || v == 3) || row.s == s),
            (format!("id = {id}"), &|row| row.id == id),
            (format!("id = {id} and name = '{name}'"), &|row| row.id == id && row.name == name),
            (format!("(id = {id} or {x} = id) and name in ('{name}', '')"), &|row| {
                (row.id == id || row.id == x) && (row.name == name || row.name.is_empty())
            }),
            (format!("name > '{name}'"), &|row| row.name.as_str() > name),
            (format!("id between {id} and 3 and v < {x}"), &|row| {
                id <= row.id && row.id <= 3 && row.v.is_some_and(|v| v < x)
            }),
            (format!("id <> {id}"), &|row| row.id != id),
            (format!("v is distinct from {x}"), &|row| row.v != Some(x)),
        ];
        let (filter, holds) = &filters[rng.below(filters.len() as u64) as usize];
        let matching: Vec<Row> = rows.iter().filter(|row| holds(row)).cloned().collect();
        let count = |rows: &[Row]| vec![vec![rows.len().to_string()]];
        let (sql, expected) = match rng.below(7) {
            0 => ("select count(*) from t".to_owned(), count(rows)),
            1 => {
                let mut groups: BTreeMap<&str, (u64, u64, Option<i64>, &str)> = BTreeMap::new();
                for row in rows {
                    let group = groups.entry(&row.name).or_insert((0, 0, None, &row.s));
                    let sum = row.v.map(|v| v + group.2.unwrap_or(0)).or(group.2);
                    *group = (group.0 + 1, group.1 + u64::from(row.v.is_some()), sum, group.3.min(&row.s));
                }
                let text = |(name, (n, values, sum, s)): (&&str, &(u64, u64, Option<i64>, &str))| {
                    let sum = sum.map_or("null".to_owned(), |sum| sum.to_string());
                    vec![(*name).to_owned(), n.to_string(), values.to_string(), sum, (*s).to_owned()]
                };
                let sql = "select name, count(*), count(v), sum(v), min(s) from t group by name order by name";
                (sql.to_owned(), groups.iter().map(text).collect())
            }
            2 => (format!("select count(*) from t where {filter}"), count(&matching)),
            3 => {
                let mut only_s: Vec<_> = matching.iter().map(|row| vec![row.s.clone()]).collect();
                only_s.sort();
                (format!("select s from t where {filter} order by s"), only_s)
            }
            4 => {
                let limit = rng.below(rows.len() as u64 + 2) as usize;
                let where_filter = if rng.chance(0.5) { format!("where {filter}") } else { String::new() };
                let mut from = if where_filter.is_empty() { rows.to_vec() } else { matching };
                let sql = format!("select s, v, name, id from t {where_filter} limit {limit}");
                let found = try_sql(provider, &sql).await?;
                assert_eq!(found.len(), limit.min(from.len()), "{sql}");
                for mut row in found {
                    row.reverse();
                    let row = Row::of_text(&row);
                    let at = from.iter().position(|other| *other == row);
                    from.remove(at.unwrap_or_else(|| panic!("{sql}: {row:?} is not there, or twice")));
                }
                return Ok(());
            }
            _ => {
                let sql = format!("select id, name, v, s from t where {filter} order by id, name, s, v nulls last");
                (sql, matching.iter().map(Row::text).collect())
            }
        };
        assert_eq!(try_sql(provider, &sql).await?, expected, "{sql}; all rows: {rows:#?}");
        Ok(())
    }

    /// What the writer itself shows: at least what it has acknowledged, and everything it has accepted if it does not
    /// wait for the log.
    async fn read_own(&mut self, open: &mut Open, rng: &mut Rng) {
        match open.writer.provider().await {
            Ok(provider) => {
                let Some(rows) = self.query("a query through the writer", &provider, rng).await else {
                    return;
                };
                let exact = !open.durable && !open.broken;
                let found = self.explain("the writer's provider", &rows, |shard| match exact {
                    true => shard.tail.len(),
                    false => shard.promised,
                });
                if open.durable {
                    for (shard, n) in self.shards.iter_mut().zip(found) {
                        shard.promised = shard.promised.max(n);
                        shard.seen = shard.seen.max(n);
                    }
                }
            }
            Err(error) => self.excuse("the writer's provider", &error, open.broken),
        }
    }

    async fn read_elsewhere(&mut self, reader: Reader, rng: &mut Rng) {
        match reader.provider().await {
            Ok(provider) => {
                let Some(rows) = self.query("a query elsewhere", &provider, rng).await else {
                    return;
                };
                let found = self.explain("a provider elsewhere", &rows, |shard| shard.seen);
                self.shards.iter_mut().zip(found).for_each(|(shard, n)| shard.seen = shard.seen.max(n));
            }
            Err(error) => self.excuse("a provider elsewhere", &error, false),
        }
    }

    async fn recheck_held(&mut self) {
        for (provider, expected) in std::mem::take(&mut self.held) {
            match all_rows(&provider).await {
                Ok(rows) => assert_eq!(rows, expected, "an older snapshot"),
                Err(error) => self.excuse_read("an older snapshot", &error),
            }
        }
    }

    // What happens.

    /// Several calls at once, polled in this order.
    async fn calls(&mut self, rng: &mut Rng, count: u64) {
        let Some(mut open) = self.writer.take() else {
            return;
        };
        let mut calls = Vec::new();
        for _ in 0..count {
            calls.push(match rng.below(if count == 1 { 10 } else { 14 }) {
                10 => Call::Flush(self.accepted()),
                11 if open.memtable => Call::ReadOwn,
                12 => Call::ReadElsewhere(Box::new(self.draw_reader(rng))),
                _ => Call::Write(self.draw_write(rng, self.keyed && open.memtable)),
            });
        }
        let answers = join_all(calls.iter().map(|call| call.run(&open.writer))).await;
        let mut snapshots = Vec::new();
        // What a snapshot shows is compared with what was certain before, so it comes first; but for what was never
        // written.
        let before: Vec<(usize, usize)> = self.shards.iter().map(|shard| (shard.promised, shard.seen)).collect();
        for (call, answer) in calls.iter().zip(answers) {
            match (call, answer) {
                (Call::Write(write), Answer::Done(answer)) => self.answered(write, &answer, &mut open, false),
                (Call::Flush(covered), Answer::Done(Ok(()))) => self.flushed(covered),
                (Call::Flush(_), Answer::Done(Err(error))) => {
                    self.excuse("flush", &error, open.broken);
                    open.broken |= !matches!(error, Error::FlushFailed { .. });
                }
                (call, Answer::Snapshot(Ok(provider))) => snapshots.push((matches!(call, Call::ReadOwn), provider)),
                (_, Answer::Snapshot(Err(error))) => self.excuse("a provider", &error, open.broken),
                (_, Answer::Done(_)) => unreachable!("a snapshot is answered by a snapshot"),
            }
        }
        for (own, provider) in snapshots {
            let Some(rows) = self.query("a query beside writes", &provider, rng).await else {
                continue;
            };
            let after: Vec<(usize, usize)> = self.shards.iter().map(|shard| (shard.promised, shard.seen)).collect();
            for (shard, (promised, seen)) in self.shards.iter_mut().zip(&before) {
                (shard.promised, shard.seen) = (*promised, *seen);
            }
            self.explain(
                "a snapshot taken beside writes",
                &rows,
                |shard| if own { shard.promised } else { shard.seen },
            );
            for (shard, (promised, seen)) in self.shards.iter_mut().zip(after) {
                (shard.promised, shard.seen) = (promised, seen);
            }
        }
        self.writer = Some(open);
    }

    /// Calls that are begun and given up: what they have queued is sent all the same.
    async fn abandon(&mut self, rng: &mut Rng) {
        let Some(open) = self.writer.take() else {
            return;
        };
        // A write that waits for its shard is not queued yet: given up, it never was.
        if open.tight || self.by_value || rng.chance(0.3) {
            self.note("  a flush given up");
            let mut flush = Box::pin(open.writer.flush());
            let _ = futures::poll!(&mut flush);
        } else if !open.broken {
            self.note("  a write given up");
            let write = self.draw_write(rng, self.keyed && open.memtable);
            let mut sent = Box::pin(write.send(&open.writer));
            if let std::task::Poll::Ready(Ok(())) = futures::poll!(&mut sent) {
                assert!(!open.durable || write.parts.is_empty(), "acknowledged before anything was sent");
            }
        }
        for _ in 0..rng.below(30) {
            tokio::task::yield_now().await;
        }
        self.writer = Some(open);
    }

    async fn flush(&mut self) {
        let Some(mut open) = self.writer.take() else {
            return;
        };
        let accepted = self.accepted();
        match open.writer.flush().await {
            Ok(()) => self.flushed(&accepted),
            Err(error) => {
                self.excuse("flush", &error, open.broken);
                open.broken |= !matches!(error, Error::FlushFailed { .. });
            }
        }
        self.writer = Some(open);
    }

    /// A writer dies or is closed, and another is opened.
    async fn reopen(&mut self, rng: &mut Rng, close: bool) {
        let plan = self.draw_plan(rng);
        if let Some(open) = self.writer.take() {
            self.note(if close { "  close" } else { "  drop" });
            if close {
                let accepted = self.accepted();
                match open.writer.close().await {
                    Ok(()) => self.flushed(&accepted),
                    Err(error) => self.excuse("close", &error, open.broken),
                }
            }
        }
        let opened = plan.open().await;
        self.opened(opened, rng).await;
    }

    /// A second writer is opened while the first one lives, perhaps in the middle of its writes.
    async fn take_over(&mut self, rng: &mut Rng) {
        let plan = self.draw_plan(rng);
        let Some(mut old) = self.writer.take() else {
            return;
        };
        let writes: Vec<Write> = (0..rng.below(5)).map(|_| self.draw_write(rng, self.keyed && old.memtable)).collect();
        let sent = join_all(writes.iter().map(|write| write.send(&old.writer)));
        let (answers, opened) = match rng.chance(0.5) {
            // A takeover is one of the shards that are there when it begins.
            _ if self.by_value => (sent.await, plan.open().await),
            true => join(sent, plan.open()).await,
            false => {
                let (opened, answers) = join(plan.open(), sent).await;
                (answers, opened)
            }
        };
        for (write, answer) in writes.iter().zip(answers) {
            self.answered(write, &answer, &mut old, true);
        }
        match opened.is_ok() {
            // What a replaced writer may still do is make a shard that its successor has not made yet.
            true if self.by_value => drop(old.writer),
            true => self.zombies.push((old.writer, old.durable)),
            // Some shards may have been claimed.
            false => self.writer = Some(Open { broken: true, ..old }),
        }
        self.opened(opened, rng).await;
    }

    /// The successor is recorded: from here on the log says what was written, and nothing can be added to that.
    async fn opened(&mut self, opened: Result<Open>, rng: &mut Rng) {
        let mut open = match opened {
            Ok(open) => open,
            Err(error) => {
                self.tally.failed_opens += 1;
                return self.excuse("open", &error, false);
            }
        };
        self.tally.opened += 1;
        let rows = all_rows(&self.reader.provider().await.unwrap()).await.unwrap();
        let found = self.explain("a reader after the takeover", &rows, |shard| shard.seen);
        self.shards.iter_mut().zip(found).for_each(|(shard, n)| shard.settle(n));
        if open.memtable {
            self.read_own(&mut open, rng).await;
        }
        self.writer = Some(open);
    }

    /// I3: who was taken over from acknowledges nothing any more. The model does not know of its rows.
    async fn zombie(&mut self, rng: &mut Rng) {
        if self.zombies.is_empty() {
            return;
        }
        let (zombie, durable) = self.zombies.swap_remove(rng.below(self.zombies.len() as u64) as usize);
        match rng.below(4) {
            0 | 1 => {
                let (batch, _) = self.draw_rows(rng);
                if batch.num_rows() > 0 {
                    let put = zombie.put(batch).await;
                    let answer = match durable {
                        true => put.map(drop),
                        // In memory it may be.
                        false => zombie.flush().await,
                    };
                    let error = answer.expect_err("a writer that was taken over from has acknowledged rows");
                    self.excuse("zombie", &error, true);
                    self.tally.fenced += 1;
                }
                self.zombies.push((zombie, durable));
            }
            2 => {
                let error = zombie.close().await.expect_err("a writer that was taken over from has closed cleanly");
                self.excuse("zombie", &error, true);
                self.tally.fenced += 1;
            }
            _ => drop(zombie),
        }
    }

    async fn late(&mut self, rng: &mut Rng) {
        let Some(process) = rng.pick(&self.processes) else {
            return;
        };
        self.tally.landed_late += process.land_late().await.len() as u64;
    }

    async fn step(&mut self, rng: &mut Rng) {
        let broken = self.writer.as_ref().is_none_or(|open| open.broken);
        let what = match rng.below(100) {
            _ if broken && rng.chance(0.5) => 60 + rng.below(10),
            what => what,
        };
        let reader = self.draw_reader(rng);
        self.note(match what {
            0..25 => "one call",
            25..40 => "calls at once",
            40..45 => "given up",
            45..52 => "flush",
            52..60 => "read own",
            60..66 => "drop and reopen",
            66..70 => "close and reopen",
            70..76 => "take over",
            76..82 => "zombie",
            82..88 => "late PUTs land",
            88..98 => "read elsewhere",
            _ => "older snapshots",
        });
        match what {
            0..25 => self.calls(rng, 1).await,
            25..40 => {
                let count = 2 + rng.below(7);
                self.calls(rng, count).await;
            }
            40..45 => self.abandon(rng).await,
            45..52 => self.flush().await,
            52..60 => {
                if let Some(mut open) = self.writer.take() {
                    if open.memtable {
                        self.read_own(&mut open, rng).await;
                    }
                    self.writer = Some(open);
                }
            }
            60..66 => self.reopen(rng, false).await,
            66..70 => self.reopen(rng, true).await,
            70..76 => self.take_over(rng).await,
            76..82 => self.zombie(rng).await,
            82..88 => self.late(rng).await,
            88..98 => self.read_elsewhere(reader, rng).await,
            _ => self.recheck_held().await,
        }
        self.shards.iter_mut().for_each(ShardModel::compact);
    }

    /// Good weather again: everything is there, in every way to look at it.
    async fn finish(&mut self, rng: &mut Rng) {
        for process in std::mem::take(&mut self.processes) {
            process.random_off();
            match rng.chance(0.5) {
                true => drop(process.land_late().await),
                false => process.drop_late(),
            }
        }
        self.weather = Weather::Fair;
        self.recheck_held().await;
        match self.writer.take() {
            Some(open) if !self.by_value && rng.chance(0.3) => self.zombies.push((open.writer, open.durable)),
            open => drop(open),
        }
        for close in [false, true] {
            let mut config = self.draw_config(rng);
            config.memtable.get_or_insert_default();
            self.note(format!("  open: {}", brief(&config)));
            let plan =
                Plan { process: self.bucket.process().faults, store: self.bucket.process().store, table: None, config };
            let opened = plan.open().await;
            self.opened(opened, rng).await;
            self.zombie(rng).await;
            let open = self.writer.take().unwrap();
            open.writer.flush().await.unwrap();
            if close {
                let inspection = open.table.inspect().await.unwrap();
                assert!(inspection.shards.iter().all(|shard| shard.rows_in_log == 0), "{inspection:?}");
                let flushed =
                    inspection.shards.iter().flat_map(|shard| &shard.sstables).filter_map(|sstable| sstable.rows);
                self.tally.sstables += flushed.clone().count() as u64;
                if !self.keyed {
                    let rows: usize = self.shards.iter().map(|shard| shard.rows.len()).sum();
                    assert_eq!(flushed.sum::<u64>(), rows as u64);
                }
                open.writer.close().await.unwrap();
            }
            let provider = Reader::Fresh(Box::new(self.bucket.process().store)).provider().await.unwrap();
            let rows = self.try_query(&provider, rng).await.unwrap();
            self.explain("the end", &rows, |shard| shard.tail.len());
        }
    }
}

async fn history(seed: u64, keyed: bool, stormy: bool, trace: Arc<Mutex<Vec<String>>>) -> Tally {
    let mut rng = Rng::new(seed << 2 | u64::from(keyed) << 1 | u64::from(stormy));
    let buckets = *rng.pick(&[1, 1, 1, BUCKETS, BUCKETS, BY_VALUE]).unwrap();
    let weather = match (stormy, rng.chance(0.4)) {
        (false, _) => Weather::Fair,
        (true, false) => Weather::Stormy,
        (true, true) => Weather::StormyEverywhere,
    };
    trace.lock().unwrap().push(format!("{}, {weather:?}", sharding(buckets)));
    let mut world = World::new(keyed, buckets, weather, trace).await;
    for step in 0..STEPS {
        world.note(format!("step {step}"));
        // What a step draws does not depend on how the ones before it went.
        soon("this step", world.step(&mut rng.fork())).await;
    }
    world.note("the end");
    soon("the end", world.finish(&mut rng.fork())).await;
    world.tally
}

fn run(name: &str, keyed: bool, stormy: bool) {
    let default = 7;
    let number = |name| std::env::var(name).ok().and_then(|n: String| n.parse::<u64>().ok());
    let seeds = match number("FENCEPOST_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FENCEPOST_MODEL_SEEDS").unwrap_or(default),
    };
    let whole = seeds.end - seeds.start >= default;
    let mut met = Tally::default();
    for seed in seeds {
        let trace: Arc<Mutex<Vec<String>>> = Arc::default();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let history = history(seed, keyed, stormy, Arc::clone(&trace));
            runtime.block_on(history)
        }));
        match outcome {
            Ok(tally) => met.add(&tally),
            Err(panic) => {
                let trace = trace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let step = trace.iter().rposition(|line| line.starts_with("step ")).map_or("", |at| &trace[at]);
                eprintln!("{}", trace[trace.len().saturating_sub(100)..].join("\n"));
                eprintln!(
                    "seed {seed}, {step}; FENCEPOST_MODEL_SEED={seed} cargo test --test it model::{name} repeats it"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{name}: {met:?}");
    if whole {
        let always = [met.acknowledged, met.opened, met.fenced, met.reads, met.sstables];
        let in_storms = [met.unknown, met.failed_opens, met.landed_late];
        assert!(
            always.iter().chain(in_storms.iter().filter(|_| stormy)).all(|n| *n > 0),
            "too little happened: {met:?}"
        );
    }
}

#[test]
fn keyed_on_good_days() {
    run("keyed_on_good_days", true, false);
}

#[test]
fn keyless_on_good_days() {
    run("keyless_on_good_days", false, false);
}

#[test]
fn keyed_in_storms() {
    run("keyed_in_storms", true, true);
}

#[test]
fn keyless_in_storms() {
    run("keyless_in_storms", false, true);
}
