//! Every rule of the protocol that can be turned off in the real log: the simulation notices that it is off, within the
//! number of seeds that `docs/simulation.md` says.

#![cfg(feature = "mutants")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use fencepost_sim::run::{Mutant, plot_of, simulate, simulate_mutant};
use fencepost_sim::{FaultStore, Op};
use fencepost_wal::{
    Error, ManifestStore, OpenOptions, Position, Result, Shard, ShardId, ShardManifest, Store, WalAppender, mutants,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

const PAGE: &str = include_str!("../../../docs/simulation.md");

/// A row of the page's table: how many seeds it may take, and the plot that it is looked for in.
fn documented(mutant: Mutant) -> Option<(u64, Option<String>)> {
    let row = PAGE.lines().find(|line| line.starts_with(&format!("| `{}` |", mutant.name())))?;
    let limit = row.split('|').map(str::trim).nth(3)?;
    match limit.strip_suffix(')').and_then(|limit| limit.split_once(" (")) {
        Some((limit, plot)) => Some((limit.parse().ok()?, Some(plot.to_owned()))),
        None => Some((limit.parse().ok()?, None)),
    }
}

/// What is wrong with `mutant`'s row, or with its being caught.
fn escape_of(mutant: Mutant) -> Option<String> {
    let Some((seeds, plot)) = documented(mutant) else { return Some(format!("{} has no row", mutant.name())) };
    let seeds_of_plot = (0..seeds).filter(|seed| plot.is_none() || plot_of(*seed) == plot);
    let caught = seeds_of_plot.map(|seed| simulate_mutant(seed, false, mutant)).find(|r| r.violation.is_some());
    let Some(report) = caught else { return Some(format!("{}: not caught in {seeds} seeds", mutant.name())) };
    // The run proves something about the rule only if it holds with the rule.
    let violation = simulate(report.seed, false).violation?;
    Some(format!("{}: seed {} fails with the rule, too: {violation}", mutant.name(), report.seed))
}

#[test]
fn every_mutant_is_caught_within_its_number_of_seeds() {
    // A mutant is one of its thread's, so each core takes the next of them.
    let mutants = Mutex::new(Mutant::ALL.iter());
    let escaped = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(&mutant) = mutants.lock().unwrap().next() else { return };
                    let escape = escape_of(mutant);
                    escaped.lock().unwrap().extend(escape);
                }
            });
        }
    });
    let escaped = escaped.into_inner().unwrap();
    assert!(escaped.is_empty(), "{}", escaped.join("\n"));
}

async fn append(writer: &mut WalAppender, id: i64) -> Result<Position> {
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![id]));
    let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
    writer.append(&batch.schema(), &[batch]).await
}

/// W1 has 32 PUTs in flight and goes on between the sentinels of W2, up to the first one that stands; what it has on the
/// wire then reaches 31 positions beyond that one. W2 comes there.
async fn a_range_of_sentinels_between_entries() -> Result<u64> {
    let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let of_w2 = FaultStore::new(Arc::clone(&inner));
    let id = ShardId::new_random();
    let shard = |store| Shard::new(Store::from_parts(Url::parse("memory://t").unwrap(), store, Path::from("t")), id);
    let (near, far) = (shard(Arc::clone(&inner)), shard(of_w2.store()));
    ManifestStore::new(near.clone()).initialize(ShardManifest::first(id, 0, vec![])).await?;
    let (mut w1, _) = WalAppender::open(&near, &OpenOptions::default()).await?;
    let landed = append(&mut w1, 1).await?.get();
    let bytes = inner.get(&near.entry_path(Position::new(landed))).await.unwrap().bytes().await.unwrap();
    // An entry does not say where it stands, so this is what W1 sends to every position.
    let lands = async |position| {
        inner.put(&near.entry_path(Position::new(position)), bytes.clone().into()).await.unwrap();
    };

    let gate = of_w2.on(Op::Create).path_contains("/wal/").times(8).stall();
    let opening =
        tokio::spawn(
            async move { WalAppender::open(&far, &OpenOptions { fence_width: 8, ..Default::default() }).await },
        );
    gate.reached_times(8).await;
    lands(landed + 1).await;
    lands(landed + 2).await;
    gate.release();
    let (mut w2, _) = opening.await.unwrap()?;
    let first_that_stands = landed + 3;
    assert_eq!(w2.tenure().sentinel().get(), landed + 8);
    lands(first_that_stands + 31).await;
    let mut last = 0;
    for id in 2..40 {
        last = append(&mut w2, id).await?.get();
    }
    Ok(last - w2.tenure().sentinel().get())
}

/// The simulation meets this one too; here it is to be read.
#[tokio::test]
async fn the_serial_zone_begins_behind_the_whole_range_of_sentinels() {
    mutants::set(Some(Mutant::ZoneFromStartOfRange));
    let broken = a_range_of_sentinels_between_entries().await;
    mutants::set(None);
    let is_beyond = |reason: &String| reason.contains("beyond the reach of any");
    assert!(matches!(&broken, Err(Error::Poisoned { reason, .. }) if is_beyond(reason)), "{broken:?}");
    // 38 entries, and the straggler that W2 went around.
    assert_eq!(a_range_of_sentinels_between_entries().await.unwrap(), 39);
}
