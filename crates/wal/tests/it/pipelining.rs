//! Several PUTs in flight: what they make of latency and of the bill, measured in virtual time, so that the figures of
//! `docs/pipelining.md` are exact and the same in every run.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use fencepost_sim::{Latency, LatencyStore, Rng};
use fencepost_wal::{Shard, WalConfig, WalWriter};
use tokio::time::Instant;

use crate::support::{batch, bucket, schema};

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
