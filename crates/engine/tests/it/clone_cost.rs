//! What a checkpoint and a clone cost: the figures of `docs/figures.md`. The data that is flushed already costs nothing, shards and
//! entries of the log behind the last flush cost a fixed number of requests each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fencepost::{CheckpointOptions, CloneOptions, Store, Table, TableOptions};
use fencepost_sim::{CountingStore, FaultStore, Op, RequestCounts, Rng};

use crate::merge::merge;
use crate::support::*;

const ROW_BYTES: usize = 64 << 10;

/// What a table has when it is cloned.
#[derive(Debug, Clone, Copy)]
struct Size {
    megabytes: usize,
    shards: u32,
    /// Entries of each shard's log that are not flushed.
    entries: usize,
}

#[derive(Debug)]
struct Cost {
    checkpoint: Spent,
    clone: Spent,
}

/// By opening the table and doing it, without the hints for other readers, which are written beside it.
#[derive(Debug)]
struct Spent {
    puts: u64,
    gets: u64,
    others: u64,
    bytes: RequestCounts,
    time: Duration,
}

impl Spent {
    fn requests(&self) -> u64 {
        self.puts + self.gets + self.others
    }
}

async fn measure(size: Size) -> Cost {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let counter = CountingStore::new(Arc::clone(Store::open(&path("t"), &Default::default()).unwrap().object_store()));
    let counts = counter.counts();
    let faults = FaultStore::new(Arc::new(counter));
    let store = Store::open(&path("t"), &Default::default()).unwrap().wrapped(|_| faults.store());
    let sharding = format!("bucket(id,{})", size.shards).parse().unwrap();
    let options = TableOptions { primary_key: vec!["id".into()], sharding };
    let table = Table::create(store.clone(), schema(), options).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    let (mut rng, mut id) = (Rng::new(1), 0);
    // Half of it in the base table, half in SSTables.
    for half in 0..2 {
        for _ in 0..size.megabytes {
            let pairs: Vec<(i64, i64)> = (id..id + (1 << 19) / ROW_BYTES as i64).map(|id| (id, id)).collect();
            let texts: Vec<String> = pairs.iter().map(|_| text(&mut rng)).collect();
            writer.put(rows_with_texts(&pairs, &texts)).await.unwrap();
            id += pairs.len() as i64;
        }
        writer.flush().await.unwrap();
        if half == 0 {
            merge(&table).await;
        }
    }
    for shard in writer.shards() {
        let mut left = size.entries;
        while left > 0 {
            id += 1;
            left -= usize::from(shard.put(ids(id..id + 1)).await.is_ok());
        }
    }
    let counted = async |what: &str| {
        faults.clear_log();
        let (before, started) = (counts.snapshot(), Instant::now());
        let reader = Table::open(store.clone()).await.unwrap();
        match what {
            "checkpoint" => drop(reader.checkpoint(&CheckpointOptions::default()).await.unwrap()),
            _ => {
                let id = reader.checkpoints(None).await.unwrap()[0].id;
                let options = CloneOptions { checkpoint: Some(id), ..Default::default() };
                let clone = reader.clone_to(store.sibling(&path("c")).unwrap(), &options).await.unwrap().0;
                assert_eq!(clone.shard_ids().await.unwrap().len() as u32, size.shards);
            }
        }
        let (time, log) = (started.elapsed(), faults.log());
        let log: Vec<_> = log.iter().filter(|record| !record.path.ends_with("_hint.json")).collect();
        let of = |ops: &[Op]| log.iter().filter(|record| ops.contains(&record.op)).count() as u64;
        let (puts, gets) = (of(&[Op::Create, Op::Overwrite, Op::Update, Op::CompleteMultipart]), of(&[Op::Get]));
        Spent { puts, gets, others: log.len() as u64 - puts - gets, bytes: counts.snapshot() - before, time }
    };
    let (checkpoint, clone) = (counted("checkpoint").await, counted("clone").await);
    Cost { checkpoint, clone }
}

fn text(rng: &mut Rng) -> String {
    rng.bytes(ROW_BYTES / 2).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn requests(spent: &Spent) -> [u64; 3] {
    [spent.puts, spent.gets, spent.others]
}

#[tokio::test]
async fn a_clone_costs_the_same_whatever_is_flushed_and_grows_with_shards_and_log() {
    let size = |megabytes, shards, entries| Size { megabytes, shards, entries };
    let small = measure(size(1, 1, 0)).await;
    let large = measure(size(24, 1, 0)).await;
    assert_eq!(requests(&small.checkpoint), requests(&large.checkpoint));
    assert_eq!(requests(&small.clone), requests(&large.clone));
    // Nothing of the data is read or written.
    let bytes = large.clone.bytes;
    assert!(bytes.bytes_put < 64 << 10 && bytes.bytes_got < 512 << 10, "{bytes:?}");

    let all = |cost: &Cost| (cost.checkpoint.requests(), cost.clone.requests());
    let of_shards =
        [all(&measure(size(1, 2, 0)).await), all(&measure(size(1, 4, 0)).await), all(&measure(size(1, 8, 0)).await)];
    let per_shard = |a: (u64, u64), b: (u64, u64), n| ((b.0 - a.0) / n, (b.1 - a.1) / n);
    assert_eq!(per_shard(of_shards[0], of_shards[1], 2), per_shard(of_shards[1], of_shards[2], 4), "{of_shards:?}");
    // One GET and one PUT for each entry of the log.
    let of_entries = [measure(size(1, 1, 10)).await, measure(size(1, 1, 110)).await];
    let puts = of_entries[1].clone.puts - of_entries[0].clone.puts;
    let gets = of_entries[1].clone.gets - of_entries[0].clone.gets;
    assert_eq!((puts, gets), (100, 100));
}

/// The table of `docs/figures.md`: `FENCEPOST_FIGURES=1 cargo test --test it clone_cost -- --nocapture`.
#[tokio::test]
async fn figures_of_clones() {
    if std::env::var_os("FENCEPOST_FIGURES").is_none() {
        return;
    }
    println!(
        "| flushed | shards | entries of the log | checkpoint | | clone | |\n|---:|---:|---:|---:|---:|---:|---:|"
    );
    let sizes = [(1, 1, 0), (100, 1, 0), (1_024, 1, 0), (100, 4, 0), (100, 16, 0), (100, 1, 100), (100, 1, 1_000)];
    for (megabytes, shards, entries) in sizes {
        let cost = measure(Size { megabytes, shards, entries }).await;
        let shown = |spent: &Spent| format!("{} requests | {} ms", spent.requests(), spent.time.as_millis());
        let (checkpoint, clone) = (shown(&cost.checkpoint), shown(&cost.clone));
        println!("| {megabytes} MB | {shards} | {entries} | {checkpoint} | {clone} |");
    }
}
