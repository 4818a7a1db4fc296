//! Clients that append one row at a time: in a closed loop, and at a given rate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fencepost_sim::Rng;
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use object_store::{ObjectStoreExt, PutMode, PutOptions};

use crate::Result;
use crate::contender::SharedWriter;
use crate::place::Place;
use crate::rows::{Rows, Shape};

/// Rows that are made before the clock runs; clients take them in turns.
const POOL: usize = 8192;

/// Latencies in microseconds.
pub(crate) type Latencies = Histogram<u64>;

/// Microseconds of a quantile, as milliseconds.
pub(crate) fn at(latencies: &Latencies, quantile: f64) -> f64 {
    latencies.value_at_quantile(quantile) as f64 / 1e3
}

pub(crate) fn latencies() -> Result<Latencies> {
    Ok(Histogram::new(3)?)
}

/// One-row batches with ids of their own.
pub(crate) fn pool(shape: Shape) -> Result<Arc<Vec<Rows>>> {
    let rows: Result<Vec<Rows>> = (0..POOL as i64).map(|id| shape.rows([id])).collect();
    Ok(Arc::new(rows?))
}

/// What a closed loop of clients saw.
pub(crate) struct Loop {
    pub(crate) latencies: Latencies,
    /// Rows that were acknowledged in the measured time.
    pub(crate) rows: u64,
    pub(crate) time: Duration,
    /// Requests in that time.
    pub(crate) requests: fencepost_sim::RequestCounts,
}

/// So many clients, each of which appends a row, waits until it is durable, and appends the next. The time of the warm-up is
/// not measured.
pub(crate) async fn closed_loop(
    place: &Place,
    writer: &SharedWriter,
    pool: &Arc<Vec<Rows>>,
    clients: usize,
    warm_up: Duration,
    time: Duration,
) -> Result<Loop> {
    let begin = Instant::now() + warm_up;
    let end = begin + time;
    let client = |number: usize| {
        let (writer, pool) = (Arc::clone(writer), Arc::clone(pool));
        tokio::spawn(async move {
            let mut own: Vec<u32> = Vec::with_capacity(256);
            for turn in 0.. {
                let Some(rows) = pool.get((turn * clients + number) % pool.len()) else { break };
                let started = Instant::now();
                if started >= end {
                    break;
                }
                writer.put(rows).await?;
                let done = Instant::now();
                if started >= begin && done <= end {
                    own.push((done - started).as_micros() as u32);
                }
            }
            Ok::<Vec<u32>, crate::Failure>(own)
        })
    };
    let running: Vec<_> = (0..clients).map(client).collect();
    tokio::time::sleep_until(begin.into()).await;
    let before = place.requests();
    tokio::time::sleep_until(end.into()).await;
    let requests = place.requests() - before;
    let mut all = latencies()?;
    for own in try_join_all(running).await? {
        for micros in own? {
            all.record(u64::from(micros))?;
        }
    }
    Ok(Loop { rows: all.len(), latencies: all, time, requests })
}

/// Rows that come one by one at a mean rate, independent of each other and of whether earlier ones are durable: a Poisson
/// process, the same one for every system.
pub(crate) async fn at_rate(
    writer: &SharedWriter,
    pool: &Arc<Vec<Rows>>,
    rows_per_second: u64,
    rows: u64,
) -> Result<Latencies> {
    let mut due = Instant::now();
    let mut dice = Rng::new(rows_per_second);
    let mut running = Vec::with_capacity(rows as usize);
    for n in 0..rows {
        due += Duration::from_secs_f64(-(1.0 - dice.unit()).ln() / rows_per_second as f64);
        // Timers are exact to a millisecond; what is due by then leaves together.
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let (writer, pool) = (Arc::clone(writer), Arc::clone(pool));
        running.push(tokio::spawn(async move {
            let started = Instant::now();
            match pool.get(n as usize % pool.len()) {
                Some(rows) => writer.put(rows).await?,
                None => return Err("there are no rows".into()),
            }
            Ok::<u64, crate::Failure>(started.elapsed().as_micros() as u64)
        }));
    }
    let mut all = latencies()?;
    for one in try_join_all(running).await? {
        all.record(one?)?;
    }
    Ok(all)
}

/// Median milliseconds of a bare conditional PUT of a small object: the floor.
pub(crate) async fn bare_put(place: &Place) -> Result<f64> {
    let store = place.store();
    let mut all = latencies()?;
    for n in 0..30 {
        let path = store.root().clone().join(format!("bare-{n}"));
        let started = Instant::now();
        let create = PutOptions::from(PutMode::Create);
        store.object_store().put_opts(&path, vec![0u8; 1024].into(), create).await?;
        all.record(started.elapsed().as_micros() as u64)?;
    }
    for n in 0..30 {
        store.object_store().delete(&store.root().clone().join(format!("bare-{n}"))).await?;
    }
    Ok(at(&all, 0.5))
}
