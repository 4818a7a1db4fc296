//! Measures the log on a simulated object store: what a durable one-row append costs in time and requests.
//!
//! `cargo run --release -p fencepost-bench`. The store lives in memory and answers a PUT after 30 ms, so the figures
//! are ratios to that, not speeds of a machine. Comparisons with other systems come here later.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use fencepost_sim::{CountingStore, Fault, FaultStore, Op};
use fencepost_wal::{ManifestStore, OpenOptions, Shard, ShardId, ShardManifest, Store, WalConfig, WalWriter};
use futures::future::try_join_all;

const PUT: Duration = Duration::from_millis(30);
const APPENDS_PER_CLIENT: usize = 50;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    println!("durable one-row appends, PUT = {} ms, {APPENDS_PER_CLIENT} per client", PUT.as_millis());
    println!("{:>8} {:>10} {:>10} {:>12} {:>12}", "clients", "p50 / PUT", "p99 / PUT", "PUTs/append", "others");
    for clients in [1, 16, 256] {
        measure(clients).await?;
    }
    Ok(())
}

async fn measure(clients: usize) -> Result<(), Failure> {
    let memory = Store::open(&format!("memory://bench-{clients}/t"), &HashMap::new())?;
    let faults = FaultStore::new(Arc::clone(memory.object_store()));
    let slow = faults.on(Op::Create).always().then(Fault::Delay(PUT));
    let counting = CountingStore::new(faults.store());
    let counts = counting.counts();
    let store = memory.wrapped(|_| Arc::new(counting));

    let shard = Shard::new(store, ShardId::new_random());
    ManifestStore::new(shard.clone()).initialize(ShardManifest::first(shard.id(), 0, vec![])).await?;
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let row = RecordBatch::try_from_iter([("id", ids)])?;
    let (writer, _) = WalWriter::open(&shard, row.schema(), WalConfig::default(), &OpenOptions::default()).await?;

    let before = counts.snapshot();
    let client = || async {
        let mut times = Vec::with_capacity(APPENDS_PER_CLIENT);
        for _ in 0..APPENDS_PER_CLIENT {
            let started = Instant::now();
            writer.append(row.clone()).await?;
            times.push(started.elapsed());
        }
        Ok::<_, Failure>(times)
    };
    let mut times = try_join_all((0..clients).map(|_| client())).await?.concat();
    let cost = counts.snapshot() - before;
    times.sort_unstable();
    let at =
        |percent: usize| times.get(times.len() * percent / 100).map_or(0.0, |t| t.as_secs_f64() / PUT.as_secs_f64());
    let appends = times.len() as f64;
    println!(
        "{clients:>8} {:>10.2} {:>10.2} {:>12.3} {:>12}",
        at(50),
        at(99),
        cost.put as f64 / appends,
        cost.get + cost.head + cost.list + cost.delete
    );
    writer.close().await?;
    slow.cancel();
    Ok(())
}
