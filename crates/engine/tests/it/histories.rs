//! Random histories against a map: puts, deletes, flushes, crashes, closes, takeovers and queries, on a store that
//! loses answers, answers 409 and lets PUTs land late.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use fencepost::{Outcome, Table, TableWriter, WriterConfig};
use fencepost_sim::{FaultStore, RandomFaults, Rng};
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::support::*;

/// Sends what concerns the log and its manifests through the faults, and every create of Lance's. Lance's other
/// requests go around them, since Lance gives up on the first error of a read.
#[derive(Debug)]
struct LogFaults {
    faults: FaultStore,
    clean: Arc<dyn ObjectStore>,
}

impl LogFaults {
    fn of(&self, path: &Path) -> &dyn ObjectStore {
        match path.as_ref().contains("/wal") || path.as_ref().contains("/manifest") {
            true => &self.faults,
            false => &self.clean,
        }
    }
}

impl fmt::Display for LogFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogFaults")
    }
}

#[async_trait]
impl ObjectStore for LogFaults {
    async fn put_opts(&self, path: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        match opts.mode {
            PutMode::Create => self.faults.put_opts(path, payload, opts).await,
            _ => self.of(path).put_opts(path, payload, opts).await,
        }
    }
    async fn put_multipart_opts(&self, path: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.of(path).put_multipart_opts(path, opts).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.of(path).get_opts(path, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.clean.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.of(&prefix.cloned().unwrap_or_default()).list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.of(&prefix.cloned().unwrap_or_default()).list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.clean.copy_opts(from, to, options).await
    }
}

/// One call's effect on the rows.
#[derive(Debug, Clone)]
enum Change {
    Put(Vec<(i64, i64)>),
    Delete(Vec<i64>),
}

/// What the table must hold: versions by id in a keyed table, and in a keyless one each id once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model(BTreeMap<i64, i64>);

impl Model {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(rows) => self.0.extend(rows.iter().copied()),
            Change::Delete(ids) => self.0.retain(|id, _| !ids.contains(id)),
        }
    }

    fn pairs(&self) -> Vec<(i64, Option<i64>)> {
        self.0.iter().map(|(id, v)| (*id, Some(*v))).collect()
    }

    /// Whether the rows are those of the model with each row of the change applied or not, and none twice.
    fn admits(&self, change: &Change, found: &[(i64, Option<i64>)]) -> bool {
        let mut applied = self.clone();
        applied.apply(change);
        let map: BTreeMap<i64, i64> = found.iter().filter_map(|(id, v)| Some((*id, (*v)?))).collect();
        let mut ids = self.0.keys().chain(applied.0.keys()).chain(map.keys());
        map.len() == found.len() && ids.all(|id| map.get(id) == self.0.get(id) || map.get(id) == applied.0.get(id))
    }
}

/// One history.
struct History {
    rng: Rng,
    bucket: Bucket,
    keyed: bool,
    /// Shards are made when their first row comes.
    by_value: bool,
    faults: Option<u64>,
    processes: Vec<FaultStore>,
    model: Model,
    next_id: i64,
    log: Vec<String>,
}

impl History {
    async fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let bucket = Bucket::new();
        let keyed_table = rng.chance(0.6);
        let buckets = if rng.chance(0.5) { 1 } else { 4 };
        let by_value = keyed_table && rng.chance(0.3);
        match keyed_table {
            true if by_value => drop(create(&bucket, &["id"], "identity(id)").await),
            true => drop(keyed(&bucket, buckets).await),
            false => drop(keyless(&bucket, buckets).await),
        }
        let faults = rng.chance(0.5).then_some(seed);
        let shards = if by_value { "a shard for each id".to_owned() } else { format!("{buckets} shards") };
        let log = vec![format!("seed {seed}: keyed {keyed_table}, {shards}, faults {}", faults.is_some())];
        let processes = Vec::new();
        Self { rng, bucket, keyed: keyed_table, by_value, faults, processes, model: Model::default(), next_id: 0, log }
    }

    fn note(&mut self, what: impl fmt::Debug) {
        self.log.push(format!("{what:?}"));
    }

    fn told(&self) -> String {
        self.log.join("\n")
    }

    /// A table handle of a process of its own.
    async fn process(&mut self) -> Table {
        let faults = FaultStore::new(self.bucket.inner());
        if let Some(seed) = self.faults {
            faults.random(RandomFaults::stormy(seed ^ ((self.processes.len() as u64) << 32)));
        }
        self.processes.push(faults.clone());
        let store = self.bucket.store(Arc::new(LogFaults { faults, clean: self.bucket.inner() }));
        Table::open(store).await.unwrap()
    }

    fn config(&mut self) -> WriterConfig {
        let mut config = small(*self.rng.pick(&[2, 5, 20, 100_000]).unwrap());
        if let Some(memtable) = &mut config.memtable {
            // With a dozen shards one of them meets five faults in a row now and then.
            memtable.flush_attempts = 20;
        }
        config.durable = self.rng.chance(0.7);
        config.wal.flush_interval = Duration::from_millis(1);
        config.wal.max_in_flight = *self.rng.pick(&[1, 4]).unwrap();
        config.wal.max_unflushed_bytes = *self.rng.pick(&[2_000, 1 << 20]).unwrap();
        config.open.replay_budget_bytes = *self.rng.pick(&[1, 4_000, 1 << 20]).unwrap();
        config
    }

    async fn writer(&mut self) -> (TableWriter, bool) {
        let table = self.process().await;
        let config = self.config();
        self.note(("open", config.durable, config.memtable.as_ref().map(|m| m.max_rows)));
        let durable = config.durable;
        (table.writer(config).await.unwrap_or_else(|e| panic!("{e}\n{}", self.told())), durable)
    }

    fn change(&mut self) -> Change {
        let count = 1 + self.rng.below(6) as usize;
        if !self.keyed {
            let first = self.next_id;
            self.next_id += count as i64;
            return Change::Put((first..self.next_id).map(|id| (id, self.rng.below(4) as i64)).collect());
        }
        let ids: Vec<i64> = (0..count).map(|_| self.rng.below(12) as i64).collect();
        match self.rng.chance(0.3) {
            true => Change::Delete(ids),
            false => Change::Put(ids.into_iter().map(|id| (id, self.rng.below(4) as i64)).collect()),
        }
    }

    async fn check(&mut self, provider: Arc<dyn TableProvider>) {
        let expected = self.model.pairs();
        assert_eq!(pairs(Arc::clone(&provider)).await, expected, "{}", self.told());
        let v = self.rng.below(4) as i64;
        let matching = expected.iter().filter(|(_, found)| *found == Some(v)).map(|(id, _)| id);
        let rows = sql(&provider, &format!("select id from t where v = {v} order by id")).await;
        let ids: Vec<i64> = rows.iter().map(|row| row[0].parse().unwrap()).collect();
        assert!(ids.iter().eq(matching), "v = {v}: {ids:?}\n{}", self.told());
        let (a, b) = (self.rng.below(14) as i64, self.rng.below(14) as i64);
        let wanted = expected.iter().filter(|(id, _)| *id == a || *id == b).count() as i64;
        let query = format!("select count(*) from t where id in ({a}, {b})");
        assert_eq!(number(&provider, &query).await, wanted, "{query}\n{}", self.told());
        let limit = self.rng.below(6) as usize;
        let rows = sql(&provider, &format!("select s from t where id >= 2 limit {limit}")).await;
        let there = expected.iter().filter(|(id, _)| *id >= 2).count();
        assert_eq!(rows.len(), there.min(limit), "{}", self.told());
        assert_eq!(number(&provider, "select count(*) from t").await, expected.len() as i64, "{}", self.told());
    }

    /// A change may or may not have happened, each row for itself: look, and believe what is there.
    async fn settle(&mut self, change: &Change, provider: Arc<dyn TableProvider>) {
        let found = pairs(provider).await;
        let admitted = self.model.admits(change, &found);
        assert!(admitted, "{found:?} after {change:?} on {:?}\n{}", self.model, self.told());
        self.model.0 = found.into_iter().map(|(id, v)| (id, v.unwrap())).collect();
    }

    async fn run(mut self, steps: usize) {
        let (mut writer, mut durable) = self.writer().await;
        for _ in 0..steps {
            let step = self.rng.below(100);
            // What is only in memory may be lost with its process and is not seen by others.
            if !durable && (72..90).contains(&step) || step >= 95 {
                writer.flush().await.unwrap_or_else(|e| panic!("{e}\n{}", self.told()));
            }
            match step {
                0..55 => {
                    let change = self.change();
                    self.note(&change);
                    send(&writer, &change).await.unwrap_or_else(|e| panic!("{e}\n{}", self.told()));
                    self.model.apply(&change);
                }
                55..65 => {
                    self.note("flush");
                    writer.flush().await.unwrap_or_else(|e| panic!("{e}\n{}", self.told()));
                }
                65..72 => {
                    self.note("close");
                    writer.close().await.unwrap_or_else(|e| panic!("{e}\n{}", self.told()));
                    (writer, durable) = self.writer().await;
                }
                72..79 => {
                    self.note("drop");
                    drop(writer);
                    (writer, durable) = self.writer().await;
                }
                79..85 => {
                    self.note("takeover");
                    let (successor, now_durable) = self.writer().await;
                    let change = self.change();
                    if self.by_value {
                        // It may still make a shard that its successor has not made yet.
                        (writer, durable) = (successor, now_durable);
                        continue;
                    }
                    let refused = send(&writer, &change).await;
                    if durable {
                        // "Unknown" if the PUT was on its way when a flush in the background met the successor.
                        let error = refused.unwrap_err();
                        assert_ne!(error.outcome(), Outcome::Written, "{error}\n{}", self.told());
                    }
                    assert!(writer.flush().await.is_err(), "a fenced writer flushed\n{}", self.told());
                    (writer, durable) = (successor, now_durable);
                }
                85..90 => {
                    // The process dies with a call half way.
                    let change = self.change();
                    self.note(("dies in", &change));
                    let polls = self.rng.below(40);
                    {
                        let mut sending = Box::pin(send(&writer, &change));
                        let mut done = false;
                        for _ in 0..polls {
                            done = done || futures::poll!(&mut sending).is_ready();
                            tokio::task::yield_now().await;
                        }
                    }
                    drop(writer);
                    (writer, durable) = self.writer().await;
                    let provider = writer.provider().await.unwrap();
                    self.settle(&change, provider).await;
                }
                90..95 => {
                    self.note("look");
                    let provider = writer.provider().await.unwrap();
                    self.check(provider).await;
                }
                _ => {
                    self.note("look from elsewhere");
                    let provider = self.process().await.provider().await.unwrap();
                    self.check(provider).await;
                }
            }
        }
        let provider = writer.provider().await.unwrap();
        self.check(provider).await;
        writer.close().await.unwrap();
        for faults in &self.processes {
            faults.land_late().await;
        }
        let table = self.bucket.table().await;
        let provider = table.provider().await.unwrap();
        self.check(provider).await;
        for shard in table.inspect().await.unwrap().shards {
            let listed: Vec<u64> = shard.sstables.iter().map(|s| s.generation).collect();
            assert_eq!(shard.rows_in_log, 0, "{}", self.told());
            assert_eq!(listed, (1..shard.current_generation).collect::<Vec<_>>(), "{}", self.told());
        }
    }
}

async fn send(writer: &TableWriter, change: &Change) -> fencepost::Result<()> {
    match change {
        Change::Put(pairs) => writer.put(rows(pairs)).await.map(drop),
        Change::Delete(ids) => writer.delete(keys(ids)).await.map(drop),
    }
}

/// Histories of every second seed, so that two tests share the work. `HISTORIES=100..5000` runs others.
async fn histories(parity: u64) {
    let seeds = std::env::var("HISTORIES").unwrap_or_else(|_| "0..12".into());
    let (from, to) = seeds.split_once("..").unwrap();
    for seed in (from.parse::<u64>().unwrap()..to.parse().unwrap()).filter(|seed| seed % 2 == parity) {
        let history = History::new(seed).await;
        let run = tokio::time::timeout(Duration::from_secs(60), history.run(30));
        run.await.unwrap_or_else(|_| panic!("seed {seed} hangs"));
    }
}

#[tokio::test]
async fn random_histories_agree_with_a_map() {
    histories(0).await;
}

#[tokio::test]
async fn more_random_histories_agree_with_a_map() {
    histories(1).await;
}
