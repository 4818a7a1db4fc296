//! The batched writer: when it sends, how large, what it holds, and what everybody is told when it stops.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_array::types::Int8Type;
use arrow_array::{
    Array, ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray, StringViewArray, UnionArray,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef, UnionFields, UnionMode};
use fencepost_sim::{Fault, Op, Rng};
use fencepost_wal::{
    Error, Held, Landed, LandedEntry, OpenOptions, Outcome, Position, Result, WalConfig, WalTailer, WalWriter, open,
};
use proptest::prelude::*;
use tokio::time::Instant;

use crate::support::{
    Bucket, Process, append, batch, bucket, ids_of, ids_of_batch, must_wait, replayed, schema, settle,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Small entries, and no flush by time within a test.
fn small() -> WalConfig {
    WalConfig { max_buffer_bytes: 4096, flush_interval: HOUR, ..WalConfig::default() }
}

/// Strings of the given lengths, numbered so that order can be told.
fn texts(lengths: &[usize], first: usize) -> RecordBatch {
    let texts = lengths.iter().enumerate().map(|(n, len)| format!("{:08}{}", first + n, "x".repeat(*len)));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    RecordBatch::try_from_iter_with_nullable([("text", texts, true)]).unwrap()
}

fn texts_schema() -> SchemaRef {
    texts(&[], 0).schema()
}

async fn texts_writer(process: &Process, config: WalConfig) -> WalWriter {
    WalWriter::open(&process.shard, texts_schema(), config, &OpenOptions::default()).await.unwrap().0
}

/// The strings in the log, in order, and the size of every entry with rows.
async fn texts_in_log(bucket: &Bucket) -> (Vec<String>, Vec<usize>) {
    let mut tailer = WalTailer::new(bucket.shard());
    let (mut texts, mut sizes) = (Vec::new(), Vec::new());
    while let Some(entry) = tailer.next().await.unwrap() {
        sizes.push(entry.object_bytes);
        for batch in &entry.batches {
            let column = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap();
            texts.extend(column.iter().map(|text| text.unwrap().to_owned()));
        }
    }
    (texts, sizes)
}

fn entries_sent(process: &Process) -> usize {
    process.requests(Op::Create, "/wal/") - 1 // the sentinel
}

// When it sends.

#[tokio::test(start_paused = true)]
async fn a_durable_append_is_sent_at_once() {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = process.writer(small()).await;
    let started = Instant::now();
    for id in 0..10 {
        writer.append(batch([id])).await.unwrap();
    }
    assert_eq!(Instant::now(), started, "no tick was waited for");
    assert_eq!(entries_sent(&process), 10);
}

#[tokio::test(start_paused = true)]
async fn appends_that_come_while_a_put_runs_share_the_next_entry() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = process.writer(WalConfig::default()).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let mut first = Box::pin(writer.append(batch([0])));
    must_wait(&mut first).await;
    gate.reached().await;
    let appends: Vec<_> = (1..=50).map(|id| writer.append(batch([id]))).collect();
    let mut rest = Box::pin(futures::future::join_all(appends));
    must_wait(&mut rest).await;
    gate.release();
    assert_eq!(first.await.unwrap(), Position::new(2));
    let positions: Vec<Position> = rest.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(positions, [Position::new(3); 50]);
    assert_eq!(entries_sent(&process), 2);
    assert_eq!(writer.stats().entries, 2);
    assert_eq!(bucket.rows().await, (0..=50).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_non_durable_append_is_sent_after_the_interval_and_not_before() {
    let bucket = bucket().await;
    let process = bucket.process();
    let config = WalConfig { flush_interval: Duration::from_millis(100), ..WalConfig::default() };
    let writer = process.writer(config).await;
    let started = Instant::now();
    let first = writer.append_no_wait(batch([1])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    let second = writer.append_no_wait(batch([2])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(39)).await;
    assert_eq!(entries_sent(&process), 0);
    assert_eq!(first.await.unwrap(), Position::new(2));
    assert_eq!(second.await.unwrap(), Position::new(2));
    assert_eq!((Instant::now() - started).as_millis(), 100);
    assert_eq!(entries_sent(&process), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_buffer_is_sent_at_once() {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = texts_writer(&process, small()).await;
    let started = Instant::now();
    let mut durable = Vec::new();
    for n in 0..5 {
        durable.push(writer.append_no_wait(texts(&[1000], n)).await.unwrap());
        settle().await;
    }
    assert_eq!(entries_sent(&process), 1);
    for durable in durable.into_iter().take(2) {
        durable.await.unwrap();
    }
    assert_eq!(Instant::now(), started);
}

#[tokio::test(start_paused = true)]
async fn flush_and_a_durable_append_take_the_non_durable_ones_along() {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = process.writer(small()).await;
    let started = Instant::now();
    for id in 0..5 {
        drop(writer.append_no_wait(batch([id])).await.unwrap());
    }
    writer.flush().await.unwrap();
    assert_eq!(writer.stats().acknowledged, Position::new(2));
    for id in 5..9 {
        drop(writer.append_no_wait(batch([id])).await.unwrap());
    }
    assert_eq!(writer.append(batch([9])).await.unwrap(), Position::new(3));
    writer.flush().await.unwrap();
    assert_eq!(Instant::now(), started);
    assert_eq!(entries_sent(&process), 2, "a flush of nothing writes nothing");
    assert_eq!(bucket.rows().await, (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_without_spinning_while_the_window_is_open() {
    let bucket = bucket().await;
    let process = bucket.process();
    let (writer, _) = wide_writer(&process, 4).await;
    process.faults.on(Op::Create).path_contains("/wal/").then(Fault::Delay(HOUR / 1000));
    drop(writer.append_urgent(batch([1])).await.unwrap());
    // Time stands still as long as a task runs.
    writer.flush().await.unwrap();
    assert!(writer.pending().1.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_put_at_a_time_within_reach_of_stragglers_and_several_behind() {
    let bucket = bucket().await;
    for tenure in 1..=3 {
        let process = bucket.patient();
        let writer = process.writer(WalConfig { max_in_flight: 8, ..WalConfig::default() }).await;
        let sentinel = writer.tenure().sentinel().get();
        for (first, running) in widths(&process, &writer, 40).await {
            // I4: nobody was there before the first one, whose stragglers could land there.
            let expected = if tenure > 1 && first <= sentinel + 32 { 1 } else { 8 };
            assert_eq!(running, expected, "tenure {tenure} at {first}, sentinel at {sentinel}");
        }
        if tenure == 2 {
            // A clean close changes nothing: its predecessor did not close.
            writer.close().await.unwrap();
        }
    }
}

/// How many PUTs run at once when twelve appends come together, and the position of the first, so many times.
async fn widths(process: &Process, writer: &WalWriter, rounds: i64) -> Vec<(u64, u64)> {
    let mut width = Vec::new();
    for round in 0..rounds {
        let gate = process.faults.on(Op::Create).path_contains("/wal/").always().stall();
        let mut appends = Vec::new();
        for id in 0..12 {
            let mut append = Box::pin(writer.append(batch([round * 100 + id])));
            must_wait(&mut append).await;
            settle().await;
            appends.push(append);
        }
        width.push((writer.stats().next_position.get(), gate.arrivals()));
        gate.release();
        process.faults.clear_rules();
        for append in appends {
            append.await.unwrap();
        }
    }
    width.into_iter().map(|(next, running)| (next - running, running)).collect()
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_keep_the_order_of_positions() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = process.writer(WalConfig { max_in_flight: 4, ..WalConfig::default() }).await;
    for id in 0..33 {
        writer.append(batch([id])).await.unwrap();
    }
    process.faults.on(Op::Create).path_contains("/wal/").then(Fault::InFlight);
    let mut appends: Vec<_> = (100..104).map(|id| Box::pin(writer.append(batch([id])))).collect();
    for append in &mut appends {
        must_wait(append).await;
        settle().await;
    }
    // Three of the four have landed, and the first has not.
    for append in &mut appends {
        must_wait(append).await;
    }
    assert_eq!(writer.stats().entries, 36);
    assert_eq!(writer.pending().1.iter().flat_map(ids_of_batch).collect::<Vec<_>>(), [100, 101, 102, 103]);
    process.faults.land_late().await;
    for (n, append) in appends.into_iter().enumerate() {
        assert_eq!(append.await.unwrap(), Position::new(35 + n as u64));
    }
    assert!(writer.pending().1.is_empty());
}

// How large.

#[tokio::test(start_paused = true)]
async fn small_batches_become_one_batch_per_entry() {
    let bucket = bucket().await;
    let writer = bucket.process().writer(WalConfig::default()).await;
    for id in 0..100 {
        drop(writer.append_no_wait(batch([id])).await.unwrap());
    }
    writer.flush().await.unwrap();
    let entry = WalTailer::new(bucket.shard()).next().await.unwrap().unwrap();
    assert_eq!((entry.batches.len(), entry.rows()), (1, 100));
}

#[tokio::test(start_paused = true)]
async fn an_append_larger_than_an_entry_is_spread_over_several() {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = texts_writer(&process, small()).await;
    let position = writer.append(texts(&[500; 40], 0)).await.unwrap();
    assert_eq!(position.get(), entries_sent(&process) as u64 + 1, "that of the last entry");
    let (texts, sizes) = texts_in_log(&bucket).await;
    assert_eq!(texts.len(), 40);
    assert!(texts.is_sorted());
    assert!(sizes.iter().all(|size| *size <= 4096), "{sizes:?}");
    assert!(sizes.len() < 20, "{sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_row_larger_than_an_entry_is_refused_and_nothing_of_its_append_is_written() {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = texts_writer(&process, small()).await;
    for lengths in [vec![5000], vec![5000, 1], vec![1, 5000, 1, 1], vec![1500, 1500, 1500, 5000, 1500], vec![3900]] {
        let error = writer.append(texts(&lengths, 0)).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit_name: "max_buffer_bytes", limit: 4096, .. }), "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
    }
    assert_eq!(entries_sent(&process), 0);
    assert_eq!(writer.stats().unflushed_bytes, 0);
    writer.append(texts(&[1000], 0)).await.unwrap();
    writer.close().await.unwrap();
    assert_eq!(texts_in_log(&bucket).await.0.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_not_disturbed_by_a_refused_row() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = texts_writer(&process, small()).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let mut first = Box::pin(writer.append(texts(&[1], 0)));
    must_wait(&mut first).await;
    gate.reached().await;
    let mut flush = Box::pin(writer.flush());
    must_wait(&mut flush).await;
    let mut large = Box::pin(writer.append(texts(&[5000], 1)));
    let refused = futures::poll!(large.as_mut());
    gate.release();
    first.await.unwrap();
    flush.await.unwrap();
    let error = match refused {
        std::task::Poll::Ready(answer) => answer.unwrap_err(),
        std::task::Poll::Pending => large.await.unwrap_err(),
    };
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    assert_eq!(entries_sent(&process), 1);
}

#[tokio::test(start_paused = true)]
async fn views_and_dictionaries_are_measured_by_what_is_sent() {
    // A slice of a view keeps all of its buffers, and a dictionary is sent whole.
    let long: Vec<String> = (0..100).map(|n| format!("{n:0>400}")).collect();
    let views: ArrayRef = Arc::new(StringViewArray::from_iter_values(&long));
    let dictionary: DictionaryArray<Int8Type> = long.iter().map(String::as_str).collect();
    for column in [views, Arc::new(dictionary) as ArrayRef] {
        let bucket = bucket().await;
        let process = bucket.process();
        let rows = RecordBatch::try_from_iter_with_nullable([("text", column, true)]).unwrap();
        let config = WalConfig { max_buffer_bytes: 64 << 10, max_unflushed_bytes: 128 << 10, ..small() };
        let writer =
            WalWriter::open(&process.shard, rows.schema(), config.clone(), &OpenOptions::default()).await.unwrap().0;
        let mut durable = writer.append_no_wait(rows.clone()).await.unwrap();
        assert!(writer.stats().unflushed_bytes >= 40_000, "{} counted", writer.stats().unflushed_bytes);
        (&mut durable).await.unwrap_or_else(|error| panic!("{error}"));
        let mut tailer = WalTailer::new(bucket.shard());
        let mut rows_read = 0;
        while let Some(entry) = tailer.next().await.unwrap() {
            assert!(entry.object_bytes <= config.max_buffer_bytes);
            rows_read += entry.rows();
        }
        assert_eq!(rows_read, 100);
    }
}

#[tokio::test(start_paused = true)]
async fn batches_whose_dictionaries_do_not_fit_into_one_stay_apart() {
    let bucket = bucket().await;
    let process = bucket.process();
    let rows = |from: usize| {
        let values: Vec<String> = (from..from + 100).map(|n| n.to_string()).collect();
        let dictionary: DictionaryArray<Int8Type> = values.iter().map(String::as_str).collect();
        RecordBatch::try_from_iter_with_nullable([("text", Arc::new(dictionary) as ArrayRef, true)]).unwrap()
    };
    let writer = WalWriter::open(&process.shard, rows(0).schema(), WalConfig::default(), &OpenOptions::default())
        .await
        .unwrap()
        .0;
    for from in [0, 100, 200] {
        drop(writer.append_no_wait(rows(from)).await.unwrap());
    }
    writer.flush().await.unwrap();
    let entry = WalTailer::new(bucket.shard()).next().await.unwrap().unwrap();
    let mut seen = Vec::new();
    for batch in &entry.batches {
        let texts = batch.column(0).as_any().downcast_ref::<DictionaryArray<Int8Type>>().unwrap();
        let texts = texts.downcast_dict::<StringArray>().unwrap();
        seen.extend(texts.into_iter().map(|t| t.unwrap().parse::<usize>().unwrap()));
    }
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_empty_batch_is_accepted() {
    let bucket = bucket().await;
    let writer = bucket.process().writer(WalConfig::default()).await;
    writer.append(batch([])).await.unwrap();
    writer.append(batch([1])).await.unwrap();
    assert_eq!(bucket.rows().await, [1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn no_entry_exceeds_the_buffer_and_no_row_is_lost(
        appends in prop::collection::vec((prop::collection::vec(0usize..1200, 1..12), any::<bool>()), 1..25),
        max_buffer_bytes in 4096usize..8192,
        max_in_flight in 1usize..5,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let bucket = bucket().await;
            let config = WalConfig { max_buffer_bytes, max_in_flight, ..WalConfig::default() };
            let writer = texts_writer(&bucket.process(), config).await;
            let mut rows = 0;
            for (lengths, durable) in &appends {
                let rows_before = rows;
                rows += lengths.len();
                match durable {
                    true => drop(writer.append(texts(lengths, rows_before)).await.unwrap()),
                    false => drop(writer.append_no_wait(texts(lengths, rows_before)).await.unwrap()),
                }
            }
            writer.close().await.unwrap();
            let (texts, sizes) = texts_in_log(&bucket).await;
            let numbers: Vec<usize> = texts.iter().map(|text| text[..8].parse().unwrap()).collect();
            assert_eq!(numbers, (0..rows).collect::<Vec<_>>());
            assert!(sizes.iter().all(|size| *size <= max_buffer_bytes), "{sizes:?}");
        });
    }
}

/// Views count as what they show: four of these are taken for an entry, and three fit.
#[tokio::test(start_paused = true)]
async fn groups_that_are_encoded_ahead_keep_their_order_if_one_does_not_fit() {
    let rows = |n: usize| {
        let column: ArrayRef = Arc::new(StringViewArray::from_iter_values([format!("{n:04}{}", "x".repeat(996))]));
        RecordBatch::try_from_iter_with_nullable([("text", column, true)]).unwrap()
    };
    let (bucket, options) = (bucket().await, OpenOptions::default());
    let process = bucket.process();
    let config = WalConfig { max_in_flight: 2, ..small() };
    let (writer, _) = WalWriter::open(&process.shard, rows(0).schema(), config, &options).await.unwrap();
    let first = process.faults.on(Op::Create).path_contains("/wal/").stall();
    for n in 0..40 {
        writer.append_no_wait(rows(n)).await.unwrap();
    }
    first.reached().await;
    settle().await;
    first.release();
    writer.close().await.unwrap();
    let mut tailer = WalTailer::new(bucket.shard());
    let (mut found, mut entries) = (Vec::new(), 0);
    while let Some(entry) = tailer.next().await.unwrap() {
        entries += 1;
        for batch in &entry.batches {
            let column = batch.column(0).as_any().downcast_ref::<StringViewArray>().unwrap();
            found.extend(column.iter().map(|text| text.unwrap()[..4].parse::<usize>().unwrap()));
        }
    }
    assert_eq!(found, (0..40).collect::<Vec<_>>());
    assert!((14..=20).contains(&entries), "{entries} entries: none took four");
}

// What it holds.

#[tokio::test(start_paused = true)]
async fn a_failed_put_leaves_what_is_queued_in_the_queue() {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = process.writer(WalConfig::default()).await;
    process.faults.on(Op::Create).path_contains("/wal/").times(5).then(Fault::Fail);
    let mut durable = Vec::new();
    for id in 0..10 {
        durable.push(writer.append_no_wait(batch([id])).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(writer.pending().1.iter().flat_map(ids_of_batch).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    for durable in durable {
        durable.await.unwrap();
    }
    assert!(writer.pending().1.is_empty());
    assert_eq!(bucket.rows().await, (0..10).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_by_one_budget() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let config = WalConfig { max_unflushed_bytes: 10_000, ..small() };
    let writer = texts_writer(&process, config).await;
    let error = writer.append(texts(&[10_000], 0)).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit_name: "max_unflushed_bytes", .. }), "{error}");

    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let mut appends: Vec<_> = (0..20).map(|n| Box::pin(writer.append(texts(&[1000], n)))).collect();
    for append in &mut appends {
        must_wait(append).await;
        settle().await;
        assert!(writer.stats().unflushed_bytes <= 10_000);
    }
    assert!(writer.is_waiting_for_memory());
    assert!(writer.pending().1.len() < 10);
    gate.release();
    for append in appends {
        append.await.unwrap();
    }
    let stats = writer.stats();
    assert!(!writer.is_waiting_for_memory());
    assert!(stats.backpressure_waits >= 10, "{stats:?}");
    assert_eq!((stats.appends, stats.unflushed_bytes), (20, 0));
    let (texts, _) = texts_in_log(&bucket).await;
    assert!(texts.len() == 20 && texts.is_sorted());
}

#[tokio::test(start_paused = true)]
async fn an_append_that_waits_for_memory_does_not_wait_for_the_interval() {
    // The buffer is larger than the budget: it never fills, and nobody durable is waiting.
    let bucket = bucket().await;
    let process = bucket.process();
    let config = WalConfig { max_unflushed_bytes: 5_000, flush_interval: HOUR, ..WalConfig::default() };
    let writer = texts_writer(&process, config).await;
    let started = Instant::now();
    for n in 0..20 {
        drop(writer.append_no_wait(texts(&[1000], n)).await.unwrap());
    }
    assert_eq!(Instant::now(), started);
}

/// Keeps the memory of what landed until the test releases it, as a MemTable does.
#[derive(Debug, Clone, Default)]
struct MemTable {
    rows: Arc<Mutex<Vec<(u64, i64)>>>,
    held: Arc<Mutex<Held>>,
    fail: Arc<AtomicBool>,
    panic: Arc<AtomicBool>,
}

impl Landed for MemTable {
    fn landed(&mut self, LandedEntry { position, batches, held, .. }: LandedEntry) -> Result<(), String> {
        if self.panic.load(Ordering::Relaxed) {
            panic!("the MemTable has a bug");
        }
        if self.fail.load(Ordering::Relaxed) {
            return Err("the MemTable is out of order".into());
        }
        let ids = batches.iter().flat_map(ids_of_batch);
        self.rows.lock().unwrap().extend(ids.map(|id| (position.get(), id)));
        self.held.lock().unwrap().merge(held);
        Ok(())
    }
}

impl MemTable {
    fn flush(&self) {
        drop(std::mem::take(&mut *self.held.lock().unwrap()));
    }

    async fn writer(&self, process: &Process, config: WalConfig) -> WalWriter {
        let opened = open(&process.shard, &OpenOptions::default()).await.unwrap();
        WalWriter::start(opened.tenure, schema(), config, self.clone()).unwrap()
    }
}

/// A budget that the rows 0 to 9 fill.
async fn full(process: &Process, memtable: &MemTable) -> WalWriter {
    let bytes = {
        let writer = memtable.writer(process, WalConfig::default()).await;
        writer.append(batch([0])).await.unwrap();
        writer.stats().unflushed_bytes as usize
    };
    memtable.flush();
    memtable.rows.lock().unwrap().clear();
    let writer = memtable.writer(process, WalConfig { max_unflushed_bytes: bytes * 10, ..WalConfig::default() }).await;
    for id in 0..10 {
        writer.append(batch([id])).await.unwrap();
    }
    writer
}

#[tokio::test(start_paused = true)]
async fn a_sink_is_fed_in_order_before_the_append_is_acknowledged() {
    let bucket = bucket().await;
    let memtable = MemTable::default();
    let writer = memtable.writer(&bucket.process(), WalConfig::default()).await;
    for id in 0..10 {
        let position = writer.append(batch([id])).await.unwrap();
        assert_eq!(memtable.rows.lock().unwrap().last(), Some(&(position.get(), id)));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_sink_holds_counts_until_it_lets_go() {
    let bucket = bucket().await;
    let memtable = MemTable::default();
    let writer = full(&bucket.process(), &memtable).await;
    let held = memtable.held.lock().unwrap().bytes() as u64;
    assert_eq!(writer.stats().unflushed_bytes, held);
    let mut waits = Box::pin(writer.append(batch([10])));
    must_wait(&mut waits).await;
    settle().await;
    must_wait(&mut waits).await;
    assert!(writer.is_waiting_for_memory());
    writer.memory_wanted().await;
    memtable.flush();
    waits.await.unwrap();
    assert_eq!(writer.stats().backpressure_waits, 1);
}

#[tokio::test(start_paused = true)]
async fn a_replays_share_of_the_budget_is_held_as_far_as_it_reaches() {
    let bucket = bucket().await;
    let writer = bucket.process().writer(WalConfig { max_unflushed_bytes: 1000, ..small() }).await;
    let first = writer.hold(600);
    assert_eq!((first.bytes(), writer.stats().unflushed_bytes), (600, 600));
    let second = writer.hold(600);
    assert_eq!(second.bytes(), 400);
    let mut waits = Box::pin(writer.append(batch([1])));
    must_wait(&mut waits).await;
    drop(second);
    waits.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn appends_keep_their_order_also_when_they_wait_for_memory() {
    let bucket = bucket().await;
    let memtable = MemTable::default();
    let writer = full(&bucket.process(), &memtable).await;
    let mut first = Box::pin(writer.append(batch([10])));
    let mut second = Box::pin(writer.append(batch([11])));
    must_wait(&mut first).await;
    must_wait(&mut second).await;
    // There is room for all at once; a newcomer must not pass those who waited.
    memtable.flush();
    let mut third = Box::pin(writer.append(batch([12])));
    must_wait(&mut third).await;
    must_wait(&mut second).await;
    must_wait(&mut first).await;
    futures::future::join3(third, second, first).await.0.unwrap();
    let ids: Vec<i64> = memtable.rows.lock().unwrap().iter().map(|(_, id)| *id).collect();
    assert_eq!(ids, (0..13).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn an_append_that_waits_for_memory_learns_that_the_writer_was_fenced_elsewhere() {
    let bucket = bucket().await;
    let memtable = MemTable::default();
    let writer = full(&bucket.process(), &memtable).await;
    let mut waits = Box::pin(writer.append(batch([10])));
    must_wait(&mut waits).await;
    let _new = bucket.process().appender().await;
    // The flusher of the MemTable finds out; its memory is never released.
    let acknowledged = writer.tenure().acknowledged();
    assert!(writer.tenure().publish(None, acknowledged).await.is_err());
    let error = tokio::time::timeout(HOUR, waits).await.expect("it waits for ever").unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    writer.memory_wanted().await;
}

// What everybody is told.

/// A writer beyond the serial zone, and the position that comes next. The rows so far are negative.
async fn wide_writer(process: &Process, max_in_flight: usize) -> (WalWriter, u64) {
    let writer = process.writer(WalConfig { max_in_flight, ..WalConfig::default() }).await;
    for id in 1..=33 {
        writer.append(batch([-id])).await.unwrap();
    }
    let next = writer.stats().next_position.get();
    (writer, next)
}

/// Starts the appends one after the other, so that each is sent (or queued) by itself.
async fn start_appends(
    writer: &WalWriter,
    ids: std::ops::Range<i64>,
) -> Vec<std::pin::Pin<Box<impl Future<Output = Result<Position>> + '_>>> {
    let mut appends = Vec::new();
    for id in ids {
        let mut append = Box::pin(writer.append(batch([id])));
        must_wait(&mut append).await;
        settle().await;
        appends.push(append);
    }
    appends
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_writer_tells_each_append_what_is_true_of_it() {
    let bucket = bucket().await;
    let process = bucket.attempts(2);
    let (writer, first) = wide_writer(&process, 4).await;
    let second = bucket.entry_path(first + 1).to_string();
    process.faults.on(Op::Create).path_ends_with(second).always().then(Fault::Fail);
    let appends = start_appends(&writer, 0..8).await;
    let answers = futures::future::join_all(appends).await;
    assert_eq!(answers[0].as_ref().unwrap(), &Position::new(first), "it landed, and everything before it");
    for (id, answer) in answers.iter().enumerate().skip(1) {
        let error = answer.as_ref().unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{error}");
        let outcome = if id < 4 + 1 { Outcome::Unknown } else { Outcome::NotWritten };
        assert_eq!(error.outcome(), outcome, "append {id}");
    }
    // The rows behind the one that never landed are found by nobody.
    let rows: Vec<i64> = bucket.rows().await.into_iter().filter(|id| *id >= 0).collect();
    assert_eq!(rows, [0]);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_writer_tells_each_append_what_is_true_of_it() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let (writer, first) = wide_writer(&process, 4).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").nth(2).always().stall();
    let mut appends = start_appends(&writer, 0..6).await;
    assert_eq!(appends.remove(0).await.unwrap(), Position::new(first));
    let mut new = bucket.process().appender().await;
    append(&mut new, [100]).await.unwrap();
    gate.release();
    for append in appends {
        let error = append.await.unwrap_err();
        assert!(matches!(error, Error::Fenced { by, .. } if by == new.epoch()), "{error}");
    }
    let rows: Vec<i64> = bucket.rows().await.into_iter().filter(|id| *id >= 0).collect();
    assert_eq!(rows, [0, 100]);
}

#[tokio::test(start_paused = true)]
async fn an_append_of_several_entries_is_not_written_only_if_none_of_them_is() {
    // Its first entries landed; then the writer stopped, with the last ones queued or refused.
    for fenced in [false, true] {
        let bucket = bucket().await;
        let process = bucket.attempts(2);
        let writer = texts_writer(&process, small()).await;
        let third = bucket.entry_path(4);
        match fenced {
            true => {
                let elsewhere = crate::support::bucket().await;
                elsewhere.process().appender().await;
                let new = elsewhere.process().appender().await;
                let sentinel = elsewhere.entry_path(new.tenure().sentinel().get());
                bucket.write(&third, elsewhere.read(&sentinel).await.unwrap()).await;
            }
            false => {
                process.faults.on(Op::Create).path_ends_with(third.to_string()).always().then(Fault::Fail);
            }
        }
        let mut large = Box::pin(writer.append(texts(&[500; 40], 0)));
        must_wait(&mut large).await;
        let mut behind = Box::pin(writer.append(texts(&[1], 40)));
        must_wait(&mut behind).await;
        let error = large.await.unwrap_err();
        assert_eq!(matches!(error, Error::Fenced { .. }), fenced, "{error}");
        assert_eq!(error.outcome(), Outcome::Unknown, "some of its rows are in the log");
        assert_eq!(behind.await.unwrap_err().outcome(), Outcome::NotWritten);
        assert!(!texts_in_log(&bucket).await.0.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_of_several_entries_of_which_none_landed_is_not_written() {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = texts_writer(&process, small()).await;
    let new = bucket.process().appender().await;
    let error = writer.append(texts(&[500; 40], 0)).await.unwrap_err();
    assert!(matches!(error, Error::Fenced { by, .. } if by == new.epoch()), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_fails_poisons_and_the_rows_are_written() {
    let bucket = bucket().await;
    let memtable = MemTable::default();
    let writer = memtable.writer(&bucket.process(), WalConfig::default()).await;
    writer.append(batch([0])).await.unwrap();
    memtable.fail.store(true, Ordering::Relaxed);
    let error = writer.append(batch([1])).await.unwrap_err();
    assert!(error.to_string().contains("out of order"), "{error}");
    assert_eq!(error.outcome(), Outcome::Written);
    let error = writer.append(batch([2])).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert_eq!(bucket.rows().await, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_panics_leaves_nobody_waiting() {
    let bucket = bucket().await;
    let memtable = MemTable::default();
    let writer = full(&bucket.process(), &memtable).await;
    let mut starved = Box::pin(writer.append(batch([11])));
    must_wait(&mut starved).await;
    memtable.panic.store(true, Ordering::Relaxed);
    memtable.flush();
    let answer = tokio::time::timeout(HOUR, starved).await.expect("it waits for ever");
    assert_eq!(answer.unwrap_err().outcome(), Outcome::Unknown);
    for _ in 0..20 {
        let later = tokio::time::timeout(HOUR, writer.append(batch([12]))).await.expect("it waits for ever");
        let error = later.unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
    }
    assert!(tokio::time::timeout(HOUR, writer.close()).await.expect("it waits for ever").is_err());
}

// Cancellation, close, drop.

#[tokio::test(start_paused = true)]
async fn an_append_dropped_while_it_waits_for_memory_was_never_there() {
    let bucket = bucket().await;
    let memtable = MemTable::default();
    let writer = full(&bucket.process(), &memtable).await;
    let mut dropped = Box::pin(writer.append(batch([10])));
    must_wait(&mut dropped).await;
    let mut kept = Box::pin(writer.append(batch([11])));
    must_wait(&mut kept).await;
    drop(dropped);
    memtable.flush();
    kept.await.unwrap();
    assert!(!writer.is_waiting_for_memory());
    memtable.flush();
    assert_eq!(writer.stats().unflushed_bytes, 0);
    assert!(!bucket.rows().await.contains(&10));
}

#[tokio::test(start_paused = true)]
async fn an_append_dropped_after_it_was_accepted_is_written_all_the_same() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = process.writer(WalConfig::default()).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let appends = start_appends(&writer, 0..3).await;
    drop(appends);
    gate.release();
    writer.append(batch([3])).await.unwrap();
    assert_eq!(bucket.rows().await, [0, 1, 2, 3]);
    assert_eq!(writer.stats().unflushed_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn an_appender_dropped_in_the_middle_of_a_put_is_poisoned() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let mut appender = process.appender().await;
    let _gate = process.faults.on(Op::Create).path_contains("/wal/").stall_after();
    let mut dropped = Box::pin(append(&mut appender, [1]));
    must_wait(&mut dropped).await;
    drop(dropped);
    let error = append(&mut appender, [2]).await.unwrap_err();
    assert!(matches!(error, Error::Poisoned { .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotWritten);
    assert!(appender.close().await.is_err());
    assert_eq!(bucket.rows().await, [1], "the first one did land");
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_what_was_accepted_and_takes_no_more() {
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = process.writer(small()).await;
    let mut durable = Vec::new();
    for id in 0..5 {
        durable.push(writer.append_no_wait(batch([id])).await.unwrap());
    }
    writer.close().await.unwrap();
    for durable in durable {
        durable.await.unwrap();
    }
    assert_eq!(bucket.rows().await, [0, 1, 2, 3, 4]);
    let manifest = bucket.manifest().await;
    assert_eq!(manifest.extension.unwrap().closed_cleanly_epoch, manifest.writer_epoch);
}

#[tokio::test(start_paused = true)]
async fn a_close_refuses_appends_from_its_first_moment_on() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = process.writer(WalConfig::default()).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let appends = start_appends(&writer, 0..2).await;
    let mut closing = Box::pin(writer.close());
    must_wait(&mut closing).await;
    let error = writer.append(batch([9])).await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
    // What it waits for may be waited for by others too.
    let mut flush = Box::pin(writer.flush());
    must_wait(&mut flush).await;
    gate.release();
    closing.await.unwrap();
    flush.await.unwrap();
    for append in appends {
        append.await.unwrap();
    }
    assert!(matches!(writer.close().await, Err(Error::Closed { .. })));
    assert!(matches!(writer.append(batch([9])).await, Err(Error::Closed { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_close_that_was_dropped_half_way_can_be_asked_for_again() {
    for stall_at in ["/wal/", "/manifest/"] {
        let bucket = bucket().await;
        let process = bucket.patient();
        let writer = process.writer(WalConfig::default()).await;
        let gate = process.faults.on(Op::Create).path_contains(stall_at).stall();
        let durable = writer.append_no_wait(batch([1])).await.unwrap();
        let mut closing = Box::pin(writer.close());
        while gate.arrivals() == 0 {
            must_wait(&mut closing).await;
            settle().await;
        }
        drop(closing);
        gate.release();
        let again = tokio::time::timeout(HOUR, writer.close()).await.expect("it waits for ever");
        again.unwrap();
        durable.await.unwrap();
        assert_eq!(bucket.manifest().await.extension.unwrap().closed_cleanly_epoch.get(), 1, "{stall_at}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_append_that_waits_for_memory_while_the_writer_closes_is_refused() {
    let bucket = bucket().await;
    let memtable = MemTable::default();
    let writer = full(&bucket.process(), &memtable).await;
    let mut waits = Box::pin(writer.append(batch([10])));
    must_wait(&mut waits).await;
    writer.close().await.unwrap();
    let error = tokio::time::timeout(HOUR, waits).await.expect("it waits for ever").unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_close_that_fails_closes_nothing_cleanly() {
    let bucket = bucket().await;
    let process = bucket.attempts(2);
    let writer = process.writer(small()).await;
    let durable = writer.append_no_wait(batch([1])).await.unwrap();
    process.faults.on(Op::Create).path_contains("/wal/").always().then(Fault::Fail);
    let error = writer.close().await.unwrap_err();
    assert!(matches!(error, Error::Poisoned { .. }), "{error}");
    assert_eq!(durable.await.unwrap_err().outcome(), Outcome::Unknown);
    assert_eq!(bucket.manifest().await.extension.unwrap().closed_cleanly_epoch.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_writer_sends_nothing_more_and_answers_everybody() {
    let bucket = bucket().await;
    let process = bucket.patient();
    let writer = process.writer(WalConfig::default()).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let mut durable = Vec::new();
    for id in 0..3 {
        durable.push(writer.append_no_wait(batch([id])).await.unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gate.reached().await;
    let sent = process.requests(Op::Create, "/wal/");
    drop(writer);
    for durable in durable {
        let answer = tokio::time::timeout(HOUR, durable).await.expect("it waits for ever");
        assert_eq!(answer.unwrap_err().outcome(), Outcome::Unknown);
    }
    gate.release();
    settle().await;
    assert_eq!(process.requests(Op::Create, "/wal/"), sent);
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replayed(replay).await, [0; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_config_out_of_its_limits_is_refused_before_anything_is_claimed() {
    let bucket = bucket().await;
    let defaults = WalConfig::default;
    for config in [
        WalConfig { max_buffer_bytes: 100, ..defaults() },
        WalConfig { max_buffer_bytes: (256 << 20) + 1, ..defaults() },
        WalConfig { max_in_flight: 0, ..defaults() },
        WalConfig { max_in_flight: 33, ..defaults() },
        WalConfig { max_unflushed_bytes: 0, ..defaults() },
        WalConfig { max_unflushed_bytes: 1 << 32, ..defaults() },
        WalConfig { flush_interval: Duration::ZERO, ..defaults() },
    ] {
        let opened = WalWriter::open(&bucket.shard(), schema(), config, &OpenOptions::default()).await;
        assert!(matches!(opened, Err(Error::InvalidArgument(_))));
    }
    assert_eq!(bucket.manifest().await.version.get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_at_once_lose_nothing() {
    let bucket = bucket().await;
    let config = WalConfig { max_in_flight: 8, max_unflushed_bytes: 100_000, ..small() };
    let writer = Arc::new(texts_writer(&bucket.process(), config).await);
    let tasks = (0..16u64).map(|task| {
        let writer = Arc::clone(&writer);
        tokio::spawn(async move {
            let mut rng = Rng::new(task);
            let mut positions = Vec::new();
            for n in 0..50 {
                let rows = texts(&[rng.below(300) as usize], task as usize * 1000 + n);
                positions.push(writer.append(rows).await.unwrap());
            }
            assert!(positions.is_sorted());
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap();
    }
    let (mut texts, _) = texts_in_log(&bucket).await;
    texts.iter_mut().for_each(|text| text.truncate(8));
    // Each task's rows in its order, and all of them once.
    for task in 0..16 {
        let mine: Vec<usize> = texts.iter().map(|t| t.parse().unwrap()).filter(|n| n / 1000 == task).collect();
        assert_eq!(mine, (task * 1000..task * 1000 + 50).collect::<Vec<_>>());
    }
    assert_eq!(texts.len(), 800);
    let stats = writer.stats();
    assert_eq!((stats.appends, stats.unflushed_bytes), (800, 0));
}

#[tokio::test]
async fn the_same_on_files_and_on_s3() {
    let folder = tempfile::tempdir().unwrap();
    let server_folder = tempfile::tempdir().unwrap();
    let server = fencepost_sim::S3Server::start(server_folder.path()).unwrap();
    for store in [
        fencepost_wal::Store::open(folder.path().to_str().unwrap(), &Default::default()).unwrap(),
        fencepost_wal::Store::open(&server.url("t"), &server.storage_options()).unwrap(),
    ] {
        let shard = fencepost_wal::Shard::new(store, fencepost_wal::ShardId::new_random());
        let first = fencepost_wal::ShardManifest::first(shard.id(), 0, vec![]);
        fencepost_wal::ManifestStore::new(shard.clone()).initialize(first).await.unwrap();
        let config = WalConfig { max_in_flight: 4, ..WalConfig::default() };
        let (writer, _) = WalWriter::open(&shard, schema(), config, &OpenOptions::default()).await.unwrap();
        for id in 0..40 {
            writer.append(batch([id])).await.unwrap();
        }
        let appends = futures::future::join_all((40..80).map(|id| writer.append(batch([id])))).await;
        assert!(appends.iter().all(Result::is_ok));
        writer.close().await.unwrap();
        let mut tailer = WalTailer::new(shard);
        let mut ids = Vec::new();
        while let Some(entry) = tailer.next().await.unwrap() {
            ids.extend(ids_of(&entry));
        }
        assert_eq!(ids, (0..80).collect::<Vec<_>>());
    }
}

/// I1: a column that no reader would take is refused before anything is claimed, not acknowledged and lost.
#[tokio::test(start_paused = true)]
async fn a_column_that_cannot_be_read_again_is_refused_before_the_claim() {
    let bucket = bucket().await;
    let fields = UnionFields::try_new([0], [Field::new("a", DataType::Int32, true)]).unwrap();
    let union = Field::new("u", DataType::Union(fields.clone(), UnionMode::Sparse), false);
    let schema = Arc::new(Schema::new(vec![union]));
    let before = bucket.manifest().await;
    let opened = WalWriter::open(&bucket.shard(), schema.clone(), WalConfig::default(), &OpenOptions::default()).await;
    let error = opened.err().unwrap();
    assert!(matches!(&error, Error::InvalidArgument(reason) if reason.contains("`u`")), "{error}");
    assert_eq!(bucket.manifest().await, before);

    let ids: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let column = UnionArray::try_new(fields, vec![0_i8].into(), None, vec![ids]).unwrap();
    let rows = RecordBatch::try_new(schema.clone(), vec![Arc::new(column)]).unwrap();
    let mut appender = bucket.process().appender().await;
    let error = appender.append(&schema, &[rows]).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument(reason) if reason.contains("`u`")), "{error}");
    append(&mut appender, [1]).await.unwrap();
    assert_eq!(bucket.rows().await, [1]);
}
