//! Several PUTs in flight: what they make of latency and of the bill, when an append leaves, and what a window leaves
//! behind. Measured in virtual time, so that the figures of `docs/pipelining.md` are exact and the same in every run.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use fencepost_sim::{Fault, Latency, LatencyStore, Op, Outcome, Rng};
use fencepost_wal::{EntryKind, Error, Shard, WalConfig, WalTailer, WalWriter};
use tokio::time::Instant;

use crate::support::{Bucket, Process, append, batch, bucket, ids_of, replayed, schema, settle};

/// A table of figures in a page of the docs must be what the code measures.
pub(crate) fn assert_documented(page: &str, table: &str) {
    let path = format!("{}/../../docs/{page}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text.contains(table), "docs/{page} does not have this table, which is what was measured:\n\n{table}");
}

/// What closed-loop clients saw: each appends a row, waits until it is durable, is busy with other things for 1 to 5 ms,
/// and appends the next.
struct Seen {
    /// Milliseconds, ascending.
    latencies: Vec<u64>,
    appends_per_second: f64,
    puts_per_second: f64,
}

impl Seen {
    fn quantile(&self, q: f64) -> u64 {
        self.latencies[((self.latencies.len() - 1) as f64 * q).round() as usize]
    }

    fn row(&self) -> String {
        let (p50, p99) = (self.quantile(0.5), self.quantile(0.99));
        format!("{p50} ms | {p99} ms | {:.0} | {:.0}", self.appends_per_second, self.puts_per_second)
    }
}

async fn closed_loop(clients: usize, latency: Latency, config: WalConfig) -> Seen {
    let bucket = bucket().await;
    let store = bucket.shard().store().clone();
    let slow = |inner| Arc::new(LatencyStore::new(inner, latency, 1)) as _;
    let shard = Shard::new(store.wrapped(slow), bucket.shard().id());
    let (writer, _) = WalWriter::open(&shard, schema(), config, &Default::default()).await.unwrap();
    // Out of the serial zone, which one takeover has and steady writing has not.
    for id in 0..33 {
        writer.append(batch([id])).await.unwrap();
    }
    let writer = Arc::new(writer);
    let mut rng = Rng::new(1);
    let seconds = if clients > 100 { 4 } else { 20 };
    let end = Instant::now() + Duration::from_secs(1 + seconds);
    let running: Vec<_> = (0..clients)
        .map(|_| {
            let writer = Arc::clone(&writer);
            let mut rng = rng.fork();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < end {
                    tokio::time::sleep(Duration::from_millis(1 + rng.below(5))).await;
                    let sent = Instant::now();
                    writer.append(batch([0])).await.unwrap();
                    latencies.push((sent, sent.elapsed().as_millis() as u64));
                }
                latencies
            })
        })
        .collect();
    // The first second is for the clients to find their places.
    let from = end - Duration::from_secs(seconds);
    tokio::time::sleep_until(from).await;
    let entries = writer.stats().entries;
    tokio::time::sleep_until(end).await;
    let puts = writer.stats().entries - entries;
    let seen = futures::future::join_all(running).await.into_iter().flat_map(Result::unwrap);
    let mut latencies: Vec<u64> = seen.filter(|(sent, _)| *sent >= from).map(|(_, took)| took).collect();
    latencies.sort_unstable();
    Seen {
        appends_per_second: latencies.len() as f64 / seconds as f64,
        puts_per_second: puts as f64 / seconds as f64,
        latencies,
    }
}

/// Roughly what S3 Standard shows for small PUTs: half within 30 ms, one in a hundred above 120 ms.
fn like_s3() -> Latency {
    Latency::quantiles([(0.0, 15), (0.5, 30), (0.9, 55), (0.99, 120), (1.0, 300)])
}

fn window(max_in_flight: usize) -> WalConfig {
    WalConfig { max_in_flight, ..WalConfig::default() }
}

#[tokio::test(start_paused = true)]
async fn several_puts_in_flight_bring_an_append_down_to_one_puts_time() {
    let mut table = String::from(
        "| clients | PUTs in flight | p50 | p99 | appends/s | PUTs/s | p50, jitter | p99, jitter | appends/s | PUTs/s |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for clients in [1, 16, 256] {
        for max_in_flight in [1, 2, 4, 8] {
            let exact = closed_loop(clients, Latency::constant(30), window(max_in_flight)).await;
            let jitter = closed_loop(clients, like_s3(), window(max_in_flight)).await;
            if max_in_flight >= 4 {
                assert!(exact.quantile(0.5) <= 36, "{clients} clients: {} ms", exact.quantile(0.5));
            }
            writeln!(table, "| {clients} | {max_in_flight} | {} | {} |", exact.row(), jitter.row()).unwrap();
        }
    }
    assert_documented("pipelining.md", &table);
}

#[tokio::test(start_paused = true)]
async fn linger_and_the_cap_trade_latency_for_puts() {
    let mut table = String::from(
        "| clients | setting | p50 | p99 | appends/s | PUTs/s | p50, jitter | p99, jitter | appends/s | PUTs/s |\n\
         |---:|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let linger = |millis| WalConfig { linger: Duration::from_millis(millis), ..WalConfig::default() };
    let cap = |most| WalConfig { max_puts_per_second: Some(most), ..WalConfig::default() };
    for clients in [16, 256] {
        for (name, config) in [
            ("default", WalConfig::default()),
            ("`linger` 5 ms", linger(5)),
            ("`linger` 20 ms", linger(20)),
            ("`max_puts_per_second` 50", cap(50.0)),
            ("`max_puts_per_second` 10", cap(10.0)),
        ] {
            let exact = closed_loop(clients, Latency::constant(30), config.clone()).await;
            let jitter = closed_loop(clients, like_s3(), config.clone()).await;
            for seen in [&exact, &jitter] {
                let most = config.max_puts_per_second.unwrap_or(f64::INFINITY);
                assert!(seen.puts_per_second <= most + 1.0, "{} PUTs per second", seen.puts_per_second);
            }
            writeln!(table, "| {clients} | {name} | {} | {} |", exact.row(), jitter.row()).unwrap();
        }
    }
    assert_documented("pipelining.md", &table);
}

// When an append leaves.

/// A writer beyond its serial zone whose PUTs take 30 ms each.
async fn writer_at_30_ms(bucket: &Bucket, config: WalConfig) -> (Process, WalWriter) {
    let process = bucket.process();
    let writer = process.writer(config).await;
    process.faults.on(Op::Create).path_contains("/wal/").always().then(Fault::Delay(Duration::from_millis(30)));
    for id in 1..=33 {
        writer.append(batch([-id])).await.unwrap();
    }
    process.faults.clear_log();
    (process, writer)
}

async fn appended_after(writer: &WalWriter, millis: u64, id: i64) -> u64 {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    let started = Instant::now();
    writer.append(batch([id])).await.unwrap();
    started.elapsed().as_millis() as u64
}

#[tokio::test(start_paused = true)]
async fn a_durable_append_that_finds_a_place_free_is_sent_at_once() {
    let bucket = bucket().await;
    let (process, writer) = writer_at_30_ms(&bucket, WalConfig::default()).await;
    let appends = (0..4).map(|n| appended_after(&writer, n, n as i64));
    assert_eq!(futures::future::join_all(appends).await, [30; 4]);
    assert_eq!(process.requests(Op::Create, "/wal/"), 4);
}

#[tokio::test(start_paused = true)]
async fn appends_that_find_all_places_taken_leave_together_with_the_next() {
    let bucket = bucket().await;
    let (process, writer) = writer_at_30_ms(&bucket, WalConfig::default()).await;
    // Four at 0 to 3 ms, ten more at 5 to 14: these leave when the first answer is there.
    let appends = (0..4).chain(5..15).map(|n| appended_after(&writer, n, n as i64));
    let took = futures::future::join_all(appends).await;
    assert_eq!(took[..4], [30; 4]);
    assert_eq!(took[4..], (5..15).map(|n| 60 - n).collect::<Vec<_>>());
    assert_eq!(process.requests(Op::Create, "/wal/"), 5);
}

#[tokio::test(start_paused = true)]
async fn linger_waits_for_company_and_a_flush_does_not() {
    let bucket = bucket().await;
    let config = WalConfig { linger: Duration::from_millis(10), ..WalConfig::default() };
    let (process, writer) = writer_at_30_ms(&bucket, config).await;
    let appends = [0, 4, 9, 11].map(|n| appended_after(&writer, n, n as i64));
    // The first three leave at 10 ms, the fourth at 21.
    assert_eq!(futures::future::join_all(appends).await, [40, 36, 31, 40]);
    assert_eq!(process.requests(Op::Create, "/wal/"), 2);

    let started = Instant::now();
    let durable = writer.append_urgent(batch([20])).await.unwrap();
    writer.flush().await.unwrap();
    durable.await.unwrap();
    assert_eq!(started.elapsed().as_millis(), 30);
    let started = Instant::now();
    let durable = writer.append_urgent(batch([21])).await.unwrap();
    writer.close().await.unwrap();
    durable.await.unwrap();
    assert_eq!(started.elapsed().as_millis(), 30);
}

#[tokio::test(start_paused = true)]
async fn the_cap_bounds_the_puts_of_any_span_of_time() {
    let bucket = bucket().await;
    let config = WalConfig { max_puts_per_second: Some(10.0), ..WalConfig::default() };
    let process = bucket.process();
    let writer = process.writer(config).await;
    process.faults.clear_log();
    let started = Instant::now();
    for id in 0..104 {
        writer.append(batch([id])).await.unwrap();
    }
    // A full bucket of four, and then one each 100 ms.
    assert_eq!(started.elapsed().as_millis(), 10_000);
    assert_eq!(process.requests(Op::Create, "/wal/"), 104);
    // Those that come faster gather, in their order.
    let appends = futures::future::join_all((104..150).map(|id| writer.append(batch([id])))).await;
    assert!(appends.iter().all(|position| position.as_ref().unwrap() == appends[0].as_ref().unwrap()));
    assert_eq!(process.requests(Op::Create, "/wal/"), 105);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let started = Instant::now();
    for id in 150..154 {
        writer.append(batch([id])).await.unwrap();
    }
    assert_eq!(started.elapsed().as_millis(), 0, "an idle hour saves no more than four");
    writer.append(batch([154])).await.unwrap();
    assert_eq!(started.elapsed().as_millis(), 100);
    assert_eq!(bucket.rows().await, (0..155).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn settings_out_of_their_limits_are_named() {
    let defaults = WalConfig::default;
    for (field, config) in [
        ("max_in_flight", WalConfig { max_in_flight: 33, ..defaults() }),
        ("linger", WalConfig { linger: Duration::from_millis(101), ..defaults() }),
        ("max_puts_per_second", WalConfig { max_puts_per_second: Some(0.0), ..defaults() }),
        ("max_puts_per_second", WalConfig { max_puts_per_second: Some(-1.0), ..defaults() }),
        ("max_puts_per_second", WalConfig { max_puts_per_second: Some(f64::NAN), ..defaults() }),
        ("max_puts_per_second", WalConfig { max_puts_per_second: Some(f64::INFINITY), ..defaults() }),
    ] {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(field) && error.contains("use "), "{error}");
    }
    WalConfig { linger: Duration::from_millis(100), max_puts_per_second: Some(0.001), ..defaults() }
        .validate()
        .unwrap();
}

// What a window leaves behind.

#[tokio::test(start_paused = true)]
async fn retries_send_the_same_bytes_whatever_was_queued_meanwhile() {
    // Each PUT of the window times out at first and lands before it is sent again: other bytes would be an impostor's.
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = process.writer(window(4)).await;
    for id in 1..=33 {
        writer.append(batch([-id])).await.unwrap();
    }
    process.faults.on(Op::Create).path_contains("/wal/").times(4).then(Fault::LateLanding);
    let mut durable = Vec::new();
    for id in 0..4 {
        durable.push(writer.append_urgent(batch([id])).await.unwrap());
        settle().await;
    }
    for id in 4..20 {
        durable.push(writer.append_urgent(batch([id])).await.unwrap());
    }
    assert_eq!(process.faults.land_late().await.len(), 4);
    for durable in durable {
        durable.await.unwrap();
    }
    let rows: Vec<i64> = bucket.rows().await.into_iter().filter(|id| *id >= 0).collect();
    assert_eq!(rows, (0..20).collect::<Vec<_>>());
}

/// A writer that dies with a whole window under way, of which those landed that the bits of `mask` choose. Returns its
/// process, which has the others on the wire, and the first position of the window.
async fn die_with_a_window(bucket: &Bucket, max_in_flight: usize, mask: u64) -> (Process, u64) {
    let process = bucket.process();
    let writer = process.writer(window(max_in_flight)).await;
    for id in 1..=33 {
        writer.append(batch([-id])).await.unwrap();
    }
    let first = writer.stats().next_position.get();
    process.faults.on(Op::Create).path_contains("/wal/").times(max_in_flight as u64).then(Fault::InFlight);
    for id in 0..max_in_flight as i64 {
        drop(writer.append_urgent(batch([id])).await.unwrap());
        settle().await;
    }
    assert_eq!(process.faults.late().len(), max_in_flight);
    let chosen = |n: u64| mask >> n & 1 == 1;
    for position in (0..max_in_flight as u64).filter(|n| chosen(*n)).map(|n| bucket.entry_path(first + n).to_string()) {
        process.faults.land_late_where(|path| path == position).await;
    }
    drop(writer);
    settle().await;
    (process, first)
}

/// Windows, and what of them landed when their writer died.
fn remains() -> impl Iterator<Item = (usize, u64)> {
    let mut rng = Rng::new(5);
    let small = [2, 4].into_iter().flat_map(|width| (0..1 << width).map(move |mask| (width, mask)));
    let large: Vec<_> = (0..24).map(|_| (32, rng.next_u64() | rng.next_u64())).collect();
    small.chain(large)
}

#[tokio::test(start_paused = true)]
async fn schedule_05_of_any_window_the_successor_keeps_what_stands_before_the_first_gap() {
    for (width, mask) in remains() {
        let bucket = bucket().await;
        let (_, first) = die_with_a_window(&bucket, width, mask).await;
        let kept = u64::from(mask.trailing_ones()).min(width as u64);
        let (mut w2, replay) = bucket.process().open().await.unwrap();
        assert_eq!(w2.tenure().sentinel().get(), first + kept, "{width}, {mask:b}");
        let mut rows: Vec<i64> = (1..=33).map(|id| -id).chain(0..kept as i64).collect();
        assert_eq!(replayed(replay).await, rows, "{width}, {mask:b}");
        for id in 100..140 {
            append(&mut w2, [id]).await.unwrap();
            rows.push(id);
        }
        assert_eq!(bucket.rows().await, rows, "{width}, {mask:b}");
    }
}

#[tokio::test(start_paused = true)]
async fn schedule_06_stragglers_of_any_window_land_where_the_successors_successor_writes() {
    for (width, mask) in remains() {
        let bucket = bucket().await;
        let (w1, first) = die_with_a_window(&bucket, width, mask).await;
        let kept = i64::from(mask.trailing_ones()).min(width as i64);
        let w2 = bucket.process().appender().await;
        let w3 = bucket.process().writer(window(4)).await;
        assert!(w3.tenure().sentinel() > w2.tenure().sentinel(), "{first}");
        let mut rows: Vec<i64> = (1..=33).map(|id| -id).chain(0..kept).collect();
        for id in 100..150 {
            w3.append(batch([id])).await.unwrap_or_else(|e| panic!("{width}, {mask:b}: {e}"));
            rows.push(id);
            if id == 101 {
                w1.faults.land_late().await;
            }
        }
        assert_eq!(bucket.rows().await, rows, "{width}, {mask:b}");
        // What it went around stays for good.
        let dead: Vec<u64> = bucket.log().await.iter().filter(|e| e.2 == EntryKind::Dead).map(|e| e.0).collect();
        w3.truncate(w3.tenure().acknowledged()).await.unwrap();
        let fences: Vec<u64> = bucket.fences().await.into_iter().map(|f| f.0).collect();
        assert!(dead.iter().all(|position| fences.contains(position)), "{width}, {mask:b}: {dead:?}, {fences:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn schedule_15_a_put_that_hangs_holds_a_window_of_any_width_by_distance() {
    for width in [2, 4, 32] {
        let bucket = bucket().await;
        let process = bucket.patient();
        let writer = process.writer(window(width)).await;
        for id in 1..=33 {
            writer.append(batch([-id])).await.unwrap();
        }
        let first = writer.stats().next_position.get();
        process.faults.clear_log();
        process.faults.on(Op::Create).path_contains("/wal/").then(Fault::InFlight);
        let mut durable = Vec::new();
        for id in 0..80 {
            durable.push(writer.append_urgent(batch([id])).await.unwrap());
            settle().await;
        }
        let sent: Vec<String> = process.faults.log().iter().map(|r| r.path.clone()).collect();
        let expected: Vec<String> = (first..first + width as u64).map(|p| bucket.entry_path(p).to_string()).collect();
        assert_eq!(sent, expected, "all but one have landed, and not one goes further");
        process.faults.land_late().await;
        for durable in durable {
            durable.await.unwrap();
        }
        let rows: Vec<i64> = bucket.rows().await.into_iter().filter(|id| *id >= 0).collect();
        assert_eq!(rows, (0..80).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn schedule_41_a_position_that_was_passed_over_stays_taken() {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    append(&mut w1, [1]).await.unwrap();
    let process = bucket.process();
    let mut w2 = process.appender().await;
    let (taken, next) = (w2.next_position(), w2.next_position().next().unwrap());
    // Its PUT times out and stays on the wire. A straggler of W1's is faster than the second attempt.
    process.faults.on(Op::Create).path_contains("/wal/").then(Fault::LateLanding);
    let appending = tokio::spawn(async move { (append(&mut w2, [2]).await.unwrap(), w2) });
    settle().await;
    bucket.copy_entry(2, taken.get()).await;
    let (position, mut w2) = appending.await.unwrap();
    assert_eq!(position, next);

    // A follower is about to read there; everything is consumed and collected meanwhile.
    let mut follower = WalTailer::new(bucket.shard());
    assert_eq!(ids_of(&follower.next().await.unwrap().unwrap()), [1]);
    assert_eq!(follower.next_any().await.unwrap().unwrap().0, EntryKind::Sentinel);
    assert_eq!(follower.next_position(), Some(taken));
    w2.truncate(position).await.unwrap();
    bucket.collect_garbage().await;
    assert_eq!(process.faults.land_late().await[0].outcome, Outcome::AlreadyExists);
    let read = follower.next().await;
    assert!(matches!(read, Err(Error::Behind { .. })), "it was given {read:?}");
    append(&mut w2, [3]).await.unwrap();
    assert_eq!(bucket.rows().await, [3]);
}
