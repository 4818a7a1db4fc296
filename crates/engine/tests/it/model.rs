//! Random histories of a whole table against a model of what was promised: puts, deletes, flushes, crashes, takeovers,
//! reads from every side, on good days and on bad ones. A failure names its seed and step: `FENCEPOST_MODEL_SEED=n` runs
//! one seed, `FENCEPOST_MODEL_SEEDS=n` the first `n`.
//!
//! The model of a shard is the rows that are certain and the appends behind them, in order, of which the log holds some
//! prefix. What was acknowledged or seen bounds the prefix from below; the next takeover decides it for good.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, OnceLock};
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

use crate::support::{Bucket, try_sql};

const IDS: [i64; 7] = [-7, 0, 1, 2, 3, 4, 5];
const NAMES: [&str; 3] = ["", "a", "b"];
const BUCKETS: u32 = 4;

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
            true => writer.delete(self.batch.clone()).await,
            false => writer.put(self.batch.clone()).await,
        }
    }
}

/// One of several calls at once.
enum Call {
    Write(Write),
    /// With the last append of each shard that was accepted before.
    Flush(Vec<(usize, u64)>),
    ReadOwn,
    ReadFresh(Store),
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
            Call::ReadFresh(store) => Answer::Snapshot(fresh(store.clone()).await),
        }
    }
}

async fn fresh(store: Store) -> Result<Provider> {
    Table::open(store).await?.provider().await
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

struct World {
    bucket: Bucket,
    keyed: bool,
    weather: Weather,
    /// Which shard rows go to, by their `id`.
    route: HashMap<i64, usize>,
    shards: Vec<ShardModel>,
    writer: Option<Open>,
    /// Writers that were taken over from, and whether they wait for the log.
    zombies: Vec<(TableWriter, bool)>,
    processes: Vec<FaultStore>,
    /// Snapshots and what they must show for ever.
    held: Vec<(Provider, Vec<Row>)>,
    next_number: u64,
    trace: Arc<Mutex<Vec<String>>>,
    tally: Tally,
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
        static ROUTES: OnceLock<HashMap<i64, usize>> = OnceLock::new();
        let route = match (buckets, ROUTES.get()) {
            (1, _) => IDS.into_iter().map(|id| (id, 0)).collect(),
            (_, Some(route)) => route.clone(),
            (_, None) => ROUTES.get_or_init(|| HashMap::new()).clone(),
        };
        let route = if route.is_empty() { routes(buckets).await } else { route };
        let bucket = Bucket::new();
        create(&bucket, keyed, buckets).await;
        Self {
            bucket,
            keyed,
            weather,
            route,
            shards: (0..buckets).map(|_| ShardModel::default()).collect(),
            writer: None,
            zombies: Vec::new(),
            processes: Vec::new(),
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
}
