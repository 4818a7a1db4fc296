//! What a writer can be told beside writing: to freeze, to wait, to stop at once, to answer before the store does; and
//! what it tells of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use fencepost::wal::Error as WalError;
use fencepost::{Admission, Admitted, AppendRequest, Error, Outcome, Result, ShardWriter, WriterConfig, Written};
use fencepost_sim::{Fault, Op};
use futures::poll;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::support::*;

fn one_put_at_a_time(mut config: WriterConfig) -> WriterConfig {
    config.wal.max_in_flight = 1;
    config.wal.gc = None;
    config
}

/// Lets everything happen that does not wait for something.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

fn aborted(error: &Error) -> Outcome {
    assert!(matches!(error, Error::Wal(WalError::Aborted { .. })), "{error}");
    error.outcome()
}

#[tokio::test]
async fn a_forced_freeze_takes_what_is_durable_and_an_empty_memtable_has_nothing_to_freeze() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let writer = process.writer(one_put_at_a_time(config())).await;
    assert_eq!(writer.force_freeze().unwrap(), None);
    writer.put(ids(0..3)).await.unwrap();
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let mut under_way = Box::pin(writer.put(ids(3..4)));
    assert!(poll!(&mut under_way).is_pending());
    soon("the PUT", gate.reached()).await;
    assert_eq!(writer.force_freeze().unwrap().map(|g| g.get()), Some(1));
    assert_eq!(writer.force_freeze().unwrap(), None, "what is under way is in no MemTable yet");
    soon("the flush", writer.wait_for_flush_drain()).await.unwrap();
    let manifest = bucket.manifest().await;
    assert_eq!((manifest.sstables.len(), manifest.sstables[0].physical_rows), (1, Some(3)));
    gate.release();
    soon("the put", under_way).await.unwrap();
    assert_eq!(scanned(&writer).await, id_pairs(0..4));

    let bucket = Bucket::new();
    let table = keyed(&bucket, 4).await;
    let writer = table.writer(config()).await.unwrap();
    writer.put(ids(0..1)).await.unwrap();
    let with_rows: Vec<_> =
        writer.stats().into_iter().filter(|(_, stats)| stats.wal.rows > 0).map(|(s, _)| s).collect();
    let frozen = writer.force_freeze().unwrap();
    assert_eq!(frozen.keys().copied().collect::<Vec<_>>(), with_rows);
    soon("the flush", writer.wait_for_flush_drain()).await.unwrap();
    assert_eq!(writer.stats()[&with_rows[0]].flushes, 1);
}

#[tokio::test]
async fn draining_waits_for_the_manifest_and_says_when_it_cannot_come() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let writer = Arc::new(process.writer(config()).await);
    soon("nothing is frozen", writer.wait_for_flush_drain()).await.unwrap();
    writer.put(ids(0..3)).await.unwrap();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    writer.force_freeze().unwrap();
    let mut drained = Box::pin(writer.wait_for_flush_drain());
    assert!(poll!(&mut drained).is_pending());
    soon("the commit", gate.reached()).await;
    assert!(poll!(&mut drained).is_pending());
    assert_eq!(bucket.manifest().await.sstables.len(), 0);
    gate.release();
    soon("the drain", drained).await.unwrap();
    assert_eq!(bucket.manifest().await.sstables.len(), 1);

    let failing = process.faults.on(Op::Create).path_contains("_gen_").always().then(Fault::Fail);
    writer.put(ids(3..4)).await.unwrap();
    writer.force_freeze().unwrap();
    let error = soon("the drain", writer.wait_for_flush_drain()).await.unwrap_err();
    assert!(matches!(error, Error::FlushFailed { .. }) && error.outcome() == Outcome::Written, "{error}");
    // Nor does it wait for a writer that is gone, and the rows are in the log all the same.
    failing.cancel();
    let gate = process.faults.on(Op::Create).path_contains("_gen_").stall();
    let waiting = tokio::spawn({
        let writer = Arc::clone(&writer);
        async move { writer.wait_for_flush_drain().await }
    });
    soon("the next attempt", gate.reached()).await;
    soon("the abort", writer.abort()).await;
    let error = soon("the drain", waiting).await.unwrap().unwrap_err();
    assert_eq!(error.outcome(), Outcome::Written, "{error}");
    assert_eq!(bucket.seen().await, id_pairs(0..4));
}

#[tokio::test]
async fn without_a_memtable_there_is_nothing_to_freeze() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(WriterConfig::wal_only()).await;
    assert!(matches!(writer.force_freeze(), Err(Error::NotSupported(_))));
    assert!(matches!(writer.wait_for_flush_drain().await, Err(Error::NotSupported(_))));
    assert!(matches!(writer.delete_no_wait(keys(&[1])).await, Err(Error::NotSupported(_))));
}

/// With a row that was sent, one that was queued, and one that came later: everybody hears what is true, and what was
/// acknowledged is there for the next writer.
#[tokio::test]
async fn an_abort_answers_everybody_and_loses_nothing_that_was_acknowledged() {
    for with_memtable in [true, false] {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let process = bucket.process();
        let mode = if with_memtable { config() } else { WriterConfig::wal_only() };
        let writer = Arc::new(process.writer(one_put_at_a_time(mode)).await);
        writer.put(ids(0..2)).await.unwrap();
        let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
        let put = |batch| {
            let writer = Arc::clone(&writer);
            tokio::spawn(async move { writer.put(batch).await })
        };
        let sent = put(ids(2..3));
        soon("the PUT", gate.reached()).await;
        let queued = put(ids(3..4));
        let unwaited = writer.put_no_wait(ids(4..5)).await.unwrap();
        settle().await;
        soon("the abort", writer.abort()).await;
        assert_eq!(aborted(&soon("what was sent", sent).await.unwrap().unwrap_err()), Outcome::Unknown);
        assert_eq!(aborted(&soon("what was queued", queued).await.unwrap().unwrap_err()), Outcome::NotWritten);
        assert_eq!(aborted(&soon("what nobody waited for", unwaited).await.unwrap_err()), Outcome::NotWritten);
        assert_eq!(aborted(&writer.put(ids(5..6)).await.unwrap_err()), Outcome::NotWritten);
        assert_eq!(aborted(&writer.flush().await.unwrap_err()), Outcome::Unknown);
        soon("a second abort", writer.abort()).await;
        let requests = process.faults.log().len();
        gate.release();
        settle().await;
        assert_eq!(process.faults.log().len(), requests, "an aborted writer asks for something");
        drop(writer);
        let next = bucket.process().writer(config()).await;
        assert_eq!(scanned(&next).await, id_pairs(0..2));
    }
}

/// The rows wait for memory, or their SSTable is half written: an abort ends that as well.
#[tokio::test]
async fn an_abort_ends_a_flush_and_a_wait_for_memory() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let mut small_budget = config();
    small_budget.wal.max_unflushed_bytes = 3_000;
    let writer = Arc::new(process.writer(small_budget).await);
    let gate = process.faults.on(Op::Create).path_contains("_gen_").stall();
    writer.put(wide_row(0, 2_000)).await.unwrap();
    let starving = tokio::spawn({
        let writer = Arc::clone(&writer);
        async move { writer.put(wide_row(1, 2_000)).await }
    });
    soon("the flush that makes room", gate.reached()).await;
    assert_eq!(writer.stats().wal.backpressure_waiting, 1);
    soon("the abort", writer.abort()).await;
    assert_eq!(aborted(&soon("the put", starving).await.unwrap().unwrap_err()), Outcome::NotWritten);
    assert_eq!(writer.stats().wal.backpressure_waiting, 0);
    gate.release();
    assert_eq!(bucket.seen().await, id_pairs(0..1));
}

#[tokio::test]
async fn an_aborted_table_writer_opens_no_shard() {
    let bucket = Bucket::new();
    let table = create(&bucket, &["id"], "identity(id)").await;
    let writer = table.writer(config()).await.unwrap();
    writer.put(ids(0..2)).await.unwrap();
    soon("the abort", writer.abort()).await;
    assert_eq!(aborted(&writer.put(ids(0..1)).await.unwrap_err()), Outcome::NotWritten);
    let error = writer.put(ids(7..8)).await.unwrap_err();
    assert!(
        matches!(&error, Error::ShardNotOpened { source, .. } if aborted(source) == Outcome::NotWritten),
        "{error}"
    );
    assert_eq!(bucket.seen().await, id_pairs(0..2));
    assert_eq!(table.shard_ids().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_call_that_does_not_wait_returns_before_the_store_answers() {
    for durable in [true, false] {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let process = bucket.process();
        let writer = process.writer(WriterConfig { durable, ..config() }).await;
        let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
        let mut durability = writer.put_no_wait(ids(0..3)).await.unwrap();
        let dropped = writer.put_no_wait(ids(3..4)).await.unwrap();
        soon("the PUT", gate.reached()).await;
        assert!(poll!(&mut durability).is_pending());
        assert_eq!(bucket.seen().await, []);
        // Dropping the future takes nothing back.
        drop(dropped);
        gate.release();
        let written = soon("the rows", durability).await.unwrap();
        let position = writer.stats().wal.acknowledged;
        assert!(written.positions().all(|(shard, p)| shard == writer.shard_id() && p <= position));
        assert_eq!(written.positions().len(), 1);
        soon("a deletion", writer.delete_no_wait(keys(&[1])).await.unwrap()).await.unwrap();
        assert_eq!(bucket.seen().await, [(0, Some(0)), (2, Some(2)), (3, Some(3))]);
        assert_eq!(writer.put_no_wait(ids(0..0)).await.unwrap().await.unwrap(), Written::default());
        assert!(matches!(writer.put_no_wait(keys(&[1])).await, Err(Error::InvalidBatch(_))));
    }
}

/// I8, over several shards, also if a future is polled late or never.
#[tokio::test]
async fn calls_that_do_not_wait_keep_their_order_in_every_shard() {
    for sharding in ["bucket(id,4)", "identity(id)"] {
        let bucket = Bucket::new();
        let table = create(&bucket, &["id"], sharding).await;
        let writer = table.writer(config()).await.unwrap();
        let mut last = None;
        for v in 0..50 {
            let values: Vec<(i64, i64)> = (0..8).map(|id| (id, v)).collect();
            last = Some(writer.put_no_wait(rows(&values)).await.unwrap());
        }
        writer.delete_no_wait(keys(&[7])).await.unwrap();
        let written = soon("the last put", last.unwrap()).await.unwrap();
        assert_eq!(written.positions().len(), writer.shards().len());
        writer.flush().await.unwrap();
        assert_eq!(bucket.seen().await, (0..7).map(|id| (id, Some(49))).collect::<Vec<_>>(), "{sharding}");
    }
}

#[tokio::test]
async fn a_part_that_is_not_acknowledged_makes_the_future_say_so() {
    let bucket = Bucket::new();
    let process = bucket.process();
    let table = keyed(&bucket, 2).await;
    let table = fencepost::Table::open(table.store().clone().wrapped(|_| process.faults.store())).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    let failing = writer.shards()[1].shard_id();
    let rule = process.faults.on(Op::Create).path_contains(folder(failing) + "wal/").always().then(Fault::Fail);
    let durability = writer.put_no_wait(ids(0..40)).await.unwrap();
    let error = soon("the rows", durability).await.unwrap_err();
    assert!(
        matches!(&error, Error::PartlyWritten { written: 1, shards: 2, failed, .. } if *failed == failing),
        "{error}"
    );
    assert_eq!(error.outcome(), Outcome::Unknown);
    assert!(rule.fired() > 0);
    // One shard does not take its part any more, the other one does.
    let error = writer.put_no_wait(ids(0..40)).await.unwrap_err();
    assert!(matches!(error, Error::PartlyWritten { written: 1, shards: 2, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_work_is_counted_and_timed() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let writer = process.writer(one_put_at_a_time(config())).await;
    let millis = Duration::from_millis;
    process.faults.on(Op::Create).path_contains("/wal/").times(2).then(Fault::Delay(millis(30)));
    writer.put(ids(0..5)).await.unwrap();
    process.faults.on(Op::Create).path_contains("/wal/").then(Fault::Delay(millis(500)));
    writer.put(ids(3..7)).await.unwrap();
    writer.delete(keys(&[0])).await.unwrap();
    let stats = writer.stats();
    for (what, of, rows) in [
        ("puts", stats.put, 10),
        ("entries", stats.wal.flush, 10),
        ("PUTs", stats.wal.io, 10),
        ("applied entries", stats.index_update, 10),
    ] {
        assert_eq!((of.count, of.rows), (3, rows), "{what}: {of:?}");
        assert!(of.bytes > 80, "{what}: {of:?}");
        let latency = of.latency;
        assert!(latency.p50() <= latency.p99() && latency.p99_9() <= latency.max(), "{what}: {of:?}");
        assert!(of.time >= latency.max(), "{what}: {of:?}");
    }
    assert_eq!((stats.wal.entries, stats.wal.entry_bytes), (stats.wal.io.count, stats.wal.io.bytes));
    let io = stats.wal.io.latency;
    assert!(io.max() >= millis(500) && io.max() < millis(520), "{io:?}");
    assert!(io.p50() >= millis(29) && io.p50() < millis(50), "{io:?}");
    assert_eq!(io.p99_9(), io.max());
    assert!(stats.put.latency.max() >= io.max() && stats.wal.flush.latency.max() >= io.max());
    assert_eq!(stats.memtable_flush.count, 0);

    writer.flush().await.unwrap();
    let flush = writer.stats().memtable_flush;
    assert_eq!((flush.count, flush.rows), (1, 7), "one row for each key, tombstones too");
    assert!(flush.bytes > 0);
    let memory = writer.memtable_stats().unwrap();
    assert_eq!((memory.rows, memory.frozen_rows, memory.frozen_bytes), (0, 0, 0));

    // A replay updates the indexes, too.
    writer.put(ids(0..2)).await.unwrap();
    drop(writer);
    let next = bucket.process().writer(config()).await;
    assert_eq!((next.stats().index_update.rows, next.stats().put.count), (2, 0));
    // Without a MemTable there are only the log's.
    drop(next);
    let log = bucket.process().writer(WriterConfig::wal_only()).await;
    log.put(ids(0..2)).await.unwrap();
    assert_eq!((log.stats().put.rows, log.stats().wal.io.rows, log.stats().index_update.count), (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_for_memory_is_logged_again_and_again_and_counted() {
    for with_memtable in [true, false] {
        let log = Warnings::default();
        let _subscribed = tracing::subscriber::set_default(log.clone());
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let process = bucket.process();
        let mut config = if with_memtable { config() } else { WriterConfig::wal_only() };
        config.wal.max_unflushed_bytes = 3_000;
        config.wal.gc = None;
        let writer = process.writer(config).await;
        let stalled = if with_memtable { "_gen_" } else { "/wal/" };
        let gate = process.faults.on(Op::Create).path_contains(stalled).stall();
        let first = writer.put_no_wait(wide_row(0, 2_000)).await.unwrap();
        let mut second = Box::pin(writer.put(wide_row(1, 2_000)));
        let waited = tokio::time::timeout(Duration::from_secs(100), &mut second).await;
        assert!(waited.is_err(), "there is no room");
        let stats = writer.stats().wal;
        assert_eq!((stats.backpressure_waits, stats.backpressure_waiting), (1, 1));
        assert_eq!(stats.backpressure_time, Duration::ZERO, "it still waits");
        assert_eq!(log.count("an append waits for memory"), 3);
        gate.release();
        soon("both", async { tokio::try_join!(first, second) }).await.unwrap();
        let stats = writer.stats().wal;
        assert_eq!((stats.backpressure_waits, stats.backpressure_waiting), (1, 0));
        assert!(stats.backpressure_time >= Duration::from_secs(100));
        // One that gives up was one that waited.
        writer.flush().await.unwrap();
        let gate = process.faults.on(Op::Create).path_contains(stalled).stall();
        let first = writer.put_no_wait(wide_row(2, 2_000)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(1), writer.put(wide_row(3, 2_000))).await.unwrap_err();
        assert_eq!((writer.stats().wal.backpressure_waits, writer.stats().wal.backpressure_waiting), (2, 0));
        gate.release();
        soon("the first", first).await.unwrap();
    }
}

/// Keeps the messages of warnings.
#[derive(Debug, Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn count(&self, message: &str) -> usize {
        self.0.lock().iter().filter(|found| found.contains(message)).count()
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().push(message.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// Lets in as many rows as there are permits, and refuses appends of more than ten.
#[derive(Debug)]
struct Rows {
    permits: Arc<Semaphore>,
    asked: Mutex<Vec<AppendRequest>>,
}

impl Rows {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self { permits: Arc::new(Semaphore::new(permits)), asked: Mutex::default() })
    }

    fn of(self: &Arc<Self>, mut config: WriterConfig) -> WriterConfig {
        config.wal.admission = Some(Arc::clone(self) as Arc<dyn Admission>);
        config
    }

    fn free(&self) -> usize {
        self.permits.available_permits()
    }
}

#[async_trait]
impl Admission for Rows {
    async fn admit(&self, append: &AppendRequest) -> Result<Admitted, String> {
        self.asked.lock().push(append.clone());
        if append.rows > 10 {
            return Err(format!("{} rows are too many for today", append.rows));
        }
        let permit: OwnedSemaphorePermit =
            Arc::clone(&self.permits).acquire_many_owned(append.rows as u32).await.map_err(|e| e.to_string())?;
        Ok(Admitted::holding(permit))
    }
}

#[tokio::test]
async fn what_is_not_admitted_is_not_written_and_says_why() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 2).await;
    let rows_allowed = Rows::new(100);
    let writer = table.writer(rows_allowed.of(config())).await.unwrap();
    writer.put(ids(0..8)).await.unwrap();
    assert_eq!(rows_allowed.asked.lock().iter().map(|append| append.rows).sum::<usize>(), 8);
    assert!(rows_allowed.asked.lock().iter().all(|append| append.bytes > 16 * append.rows && append.urgent));
    let error = writer.put(ids(0..100)).await.unwrap_err();
    assert!(matches!(error, Error::Wal(WalError::NotAdmitted { .. })), "{error}");
    assert!(error.to_string().contains("too many for today"), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert_eq!(writer.stats().values().map(|stats| stats.wal.not_admitted).sum::<u64>(), 2);
    assert_eq!(bucket.seen().await, id_pairs(0..8));
    // One that cannot be taken anyway is not asked for.
    let asked = rows_allowed.asked.lock().len();
    writer.put(keys(&[1])).await.unwrap_err();
    assert_eq!(rows_allowed.asked.lock().len(), asked);
}

/// I8: the second append could be let in while the first one waits, and is not.
#[tokio::test]
async fn appends_keep_their_order_while_one_waits_to_be_admitted() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let rows_allowed = Rows::new(2);
    let writer = bucket.process().writer(rows_allowed.of(config())).await;
    let mut first = Box::pin(writer.put(rows(&[(1, 10), (2, 10), (3, 10)])));
    let mut second = Box::pin(writer.put(rows(&[(1, 20)])));
    for _ in 0..10 {
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        tokio::task::yield_now().await;
    }
    rows_allowed.permits.add_permits(10);
    soon("both", async { tokio::try_join!(second, first) }).await.unwrap();
    assert_eq!(bucket.seen().await, [(1, Some(20)), (2, Some(10)), (3, Some(10))]);
    // Whoever gives up lets the next one in.
    let taken = rows_allowed.permits.available_permits();
    let kept = Arc::clone(&rows_allowed.permits).acquire_many_owned(taken as u32 - 1).await.unwrap();
    let mut gives_up = Box::pin(writer.put(ids(0..5)));
    assert!(poll!(&mut gives_up).is_pending());
    drop(gives_up);
    soon("the next", writer.put(rows(&[(1, 30)]))).await.unwrap();
    drop(kept);
}

#[tokio::test]
async fn what_was_admitted_is_given_back_when_the_rows_leave_memory() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let rows_allowed = Rows::new(20);
    let process = bucket.process();
    let writer = process.writer(rows_allowed.of(config())).await;
    writer.put(ids(0..5)).await.unwrap();
    writer.put(ids(5..8)).await.unwrap();
    assert_eq!(rows_allowed.free(), 12, "in the MemTable");
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall();
    writer.force_freeze().unwrap();
    soon("the commit", gate.reached()).await;
    assert_eq!(rows_allowed.free(), 12, "not published yet");
    gate.release();
    soon("the flush", writer.wait_for_flush_drain()).await.unwrap();
    assert_eq!(rows_allowed.free(), 20);
    // Rows that nobody takes any more, and those of a writer that is gone.
    writer.put(ids(0..5)).await.unwrap();
    process.faults.on(Op::Create).path_contains("/wal/").always().then(Fault::Fail);
    soon("a put that fails", writer.put(ids(5..10))).await.unwrap_err();
    soon("the end", writer.abort()).await;
    drop(writer);
    assert_eq!(rows_allowed.free(), 20);

    // What is replayed is not asked for. Without a MemTable rows leave memory when they have landed.
    let log = bucket.process().writer(rows_allowed.of(WriterConfig::wal_only())).await;
    log.put(ids(0..5)).await.unwrap();
    assert_eq!(rows_allowed.free(), 20);
}

/// Never answers.
#[derive(Debug, Default)]
struct Silent {
    asked: Notify,
    dropped: Arc<AtomicUsize>,
}

#[async_trait]
impl Admission for Silent {
    async fn admit(&self, _: &AppendRequest) -> Result<Admitted, String> {
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let _counted = Counted(Arc::clone(&self.dropped));
        self.asked.notify_one();
        std::future::pending().await
    }
}

#[tokio::test]
async fn whoever_waits_to_be_admitted_hears_that_the_writer_stopped() {
    async fn waiting(writer: &Arc<ShardWriter>) -> Vec<tokio::task::JoinHandle<Result<Written>>> {
        let put = |id| {
            let writer = Arc::clone(writer);
            tokio::spawn(async move { writer.put(ids(id..id + 1)).await })
        };
        (0..3).map(put).collect()
    }
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let silent = Arc::new(Silent::default());
    let mut config = config();
    config.wal.admission = Some(Arc::clone(&silent) as Arc<dyn Admission>);
    let writer = Arc::new(bucket.process().writer(config).await);
    let puts = waiting(&writer).await;
    soon("the question", silent.asked.notified()).await;
    soon("the abort", writer.abort()).await;
    for put in puts {
        assert_eq!(aborted(&soon("a put", put).await.unwrap().unwrap_err()), Outcome::NotWritten);
    }
    assert_eq!(silent.dropped.load(Ordering::SeqCst), 1, "the first was asked for; the others had their turn too late");
    assert_eq!(bucket.seen().await, []);
}

/// A MemTable is frozen at a number of batches: if each put of a row were one, it would be after a few thousand rows, and SSTables
/// would be small.
#[tokio::test]
async fn the_puts_of_one_log_entry_are_one_batch_of_the_memtable() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let process = bucket.process();
    let writer = process.writer(one_put_at_a_time(config())).await;
    let puts = futures::future::join_all((0..500).map(|id| writer.put(ids(id..id + 1)))).await;
    assert!(puts.iter().all(Result::is_ok));
    let (of_log, of_memory) = (writer.stats().wal, writer.memtable_stats().unwrap());
    assert_eq!((of_log.rows, of_memory.rows), (500, 500));
    assert!(of_log.entries < 50, "{} entries", of_log.entries);
    assert_eq!(of_memory.batches as u64, of_log.entries);
    assert_eq!(scanned(&writer).await, id_pairs(0..500));
    // As when the log is replayed.
    writer.abort().await;
    let reopened = process.writer(one_put_at_a_time(config())).await;
    assert_eq!(reopened.memtable_stats().unwrap().batches as u64, of_log.entries);
}
