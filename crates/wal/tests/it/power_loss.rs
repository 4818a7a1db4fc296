//! Power loss on `file://`: whatever was not fsynced is gone, and every acknowledged row is there (I1).
//!
//! The log, its manifests and its writers are the real ones; only the file system below is simulated. All processes of
//! a history share the disk and die with it; the next boot opens the shard and must find what was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use fencepost_sim::{Call, PowerLossDisk, PowerLossStore, Rng, Survival, Syncs};
use fencepost_wal::{
    Error, FileSync, ManifestStore, OpenOptions, Position, Replay, RetryPolicy, Shard, ShardId, ShardManifest, SsTable,
    Store, WalConfig, WalWriter,
};
use futures::future::join_all;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

use crate::support::{batch, ids_of, schema};

/// What of the syncing is left out, to see that the test notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    /// Files get their names before their bytes are durable.
    NoFileSync,
    /// Names are never made durable.
    NoFolderSync,
    /// Objects and folders that somebody else made are taken for durable.
    NoSettling,
}

#[derive(Debug)]
struct NoSettling;

#[async_trait]
impl FileSync for NoSettling {
    async fn sync_object(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    async fn sync_folder(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// A process's own view of the disk: its own store, which knows nothing of what others have synced.
fn shard_on(disk: &PowerLossDisk, id: ShardId, mutant: Mutant) -> Shard {
    let syncs = Syncs { files: mutant != Mutant::NoFileSync, folders: mutant != Mutant::NoFolderSync };
    let files = PowerLossStore::new(disk.clone(), syncs);
    let sync: Arc<dyn FileSync> = match mutant {
        Mutant::NoSettling | Mutant::NoFolderSync => Arc::new(NoSettling),
        _ => Arc::new(files.clone()),
    };
    let url = Url::parse("file:///srv/tables/t").unwrap();
    let store = Store::on_files(url, files.store(), Path::from("srv/tables/t"), sync);
    let retry = RetryPolicy { attempt_timeout: Duration::from_secs(2), ..RetryPolicy::default() };
    Shard::new(store.with_retry(retry), id)
}

/// What was promised on one disk, through all its boots.
#[derive(Debug, Default)]
struct Promises {
    next_id: i64,
    acknowledged: BTreeSet<i64>,
}

type Shared = Arc<Mutex<Promises>>;

/// Takes the shard over, appends in groups with several PUTs in flight, and flushes what it has at some point.
async fn one_writer(shard: Shard, promises: Shared, mut rng: Rng) {
    let config = WalConfig { max_in_flight: 4, flush_interval: Duration::from_millis(5), ..WalConfig::default() };
    let Ok((writer, replay)) = WalWriter::open(&shard, schema(), config, &OpenOptions::default()).await else {
        return; // Fenced by the other one, or poisoned by its own patience.
    };
    let Ok(mut rows) = rows_of(replay).await else { return };
    for _ in 0..2 + rng.below(3) {
        let appends = (0..1 + rng.below(4)).map(|_| {
            let id = {
                let mut promises = promises.lock().unwrap();
                promises.next_id += 1;
                promises.next_id
            };
            let (writer, promises) = (&writer, Arc::clone(&promises));
            async move {
                let appended = writer.append(batch([id])).await;
                appended.map(|position| {
                    promises.lock().unwrap().acknowledged.insert(id);
                    (position.get(), id)
                })
            }
        });
        for appended in join_all(appends).await {
            let Ok(row) = appended else { return };
            rows.push(row);
        }
        if rng.chance(0.4) && flush(&shard, &writer, std::mem::take(&mut rows)).await.is_none() {
            return;
        }
    }
    if rng.chance(0.5) {
        let _ = writer.close().await;
    }
}

async fn rows_of(mut replay: Replay) -> fencepost_wal::Result<Vec<(u64, i64)>> {
    let mut rows = Vec::new();
    while let Some(entry) = replay.next().await? {
        rows.extend(ids_of(&entry).into_iter().map(|id| (entry.position.get(), id)));
    }
    Ok(rows)
}

/// Writes the rows to an SSTable, which here is one object with numbers in it, and publishes it.
async fn flush(shard: &Shard, writer: &WalWriter, rows: Vec<(u64, i64)>) -> Option<()> {
    let tenure = writer.tenure();
    let generation = tenure.current_generation().await;
    let covers = rows.iter().map(|row| row.0).max().map_or(tenure.acknowledged(), Position::new);
    let folder = format!("{:08x}_gen_{}", tenure.epoch().get(), generation.get());
    let text: Vec<String> = rows.iter().map(|row| row.1.to_string()).collect();
    let path = shard.root().clone().join(folder.as_str()).join("data").join("rows");
    shard.store().object_store().put(&path, text.join(" ").into()).await.ok()?;
    tenure.publish(Some(SsTable::new(generation, folder)), covers).await.ok().map(|_| ())
}

async fn create(shard: &Shard) {
    let first = ShardManifest::first(shard.id(), 0, vec![]);
    // A shard whose first commit is unknown is created again by the writers' next look.
    let _ = ManifestStore::new(shard.clone()).initialize(first).await;
}

/// What a boot does until the power is lost, or until everybody is done.
async fn boot(disk: &PowerLossDisk, id: ShardId, promises: &Shared, rng: &mut Rng, mutant: Mutant) {
    let writers: Vec<(Shard, Rng)> =
        (0..1 + rng.below(2)).map(|_| (shard_on(disk, id, mutant), Rng::new(rng.next_u64()))).collect();
    let creator = shard_on(disk, id, mutant);
    let mut work = tokio::task::JoinSet::new();
    let promises = Arc::clone(promises);
    work.spawn(async move {
        create(&creator).await;
        let writers = writers.into_iter().map(|(shard, rng)| one_writer(shard, Arc::clone(&promises), rng));
        join_all(writers).await;
    });
    tokio::select! {
        biased;
        () = disk.power_lost() => {}
        done = work.join_next() => done.unwrap().unwrap(),
    }
}

/// Every row that a fresh process finds, the flushed ones included, and how often.
async fn found(disk: &PowerLossDisk, id: ShardId) -> fencepost_wal::Result<BTreeMap<i64, usize>> {
    let shard = shard_on(disk, id, Mutant::None);
    let (_writer, replay) =
        WalWriter::open(&shard, schema(), WalConfig::default(), &OpenOptions::default()).await?;
    let mut found = BTreeMap::new();
    for (_, id) in rows_of(replay).await? {
        *found.entry(id).or_default() += 1;
    }
    for sstable in ManifestStore::new(shard.clone()).latest_existing().await?.sstables {
        let path = shard.root().clone().join(sstable.path).join("data").join("rows");
        let bytes = shard.store().get(&path).await?.unwrap_or_default();
        for id in String::from_utf8_lossy(&bytes).split_whitespace() {
            *found.entry(id.parse().unwrap_or(i64::MIN)).or_default() += 1;
        }
    }
    Ok(found)
}

/// What is wrong with what the next boot finds; nothing, we hope.
async fn judge(disk: &PowerLossDisk, id: ShardId, promises: &Shared) -> Result<(), String> {
    let promises = promises.lock().unwrap();
    let rows = match found(disk, id).await {
        Ok(rows) => rows,
        Err(Error::ShardNotFound { .. }) if promises.acknowledged.is_empty() => return Ok(()),
        Err(error) => return Err(format!("does not open: {error}")),
    };
    if let Some(lost) = promises.acknowledged.iter().find(|id| !rows.contains_key(id)) {
        return Err(format!("row {lost} was acknowledged and is lost"));
    }
    match rows.iter().find(|(_, count)| **count > 1) {
        Some((doubled, count)) => Err(format!("row {doubled} is there {count} times")),
        None => Ok(()),
    }
}

/// One history: boots on one disk, the power lost at the end of each. What is wrong in the end, and the calls of the
/// last boot.
fn history(seed: u64, slow: bool, power_lost_at: Option<usize>, survival: Survival, mutant: Mutant) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut rng = Rng::new(seed);
        let (id, promises) = (ShardId::new_random(), Shared::default());
        let mut disk = PowerLossDisk::new();
        let mut wrong = Ok(());
        let mut calls = Vec::new();
        let boots = if power_lost_at.is_some() { 1 } else { 1 + rng.below(3) };
        for _ in 0..boots {
            if slow {
                disk.slow(Rng::new(rng.next_u64()), 0.1, Duration::from_secs(8));
            }
            disk.lose_power_at(power_lost_at.unwrap_or_else(|| rng.below(400) as usize));
            boot(&disk, id, &promises, &mut rng, mutant).await;
            calls = disk.calls();
            disk = disk.restart(survival.clone());
            wrong = judge(&disk, id, &promises).await;
            if wrong.is_err() {
                break;
            }
        }
        let acknowledged = promises.lock().unwrap().acknowledged.len();
        History { wrong, calls, acknowledged }
    })
}

struct History {
    wrong: Result<(), String>,
    calls: Vec<Call>,
    acknowledged: usize,
}

fn survivals(seed: u64) -> [Survival; 4] {
    let random = |n| Survival::Random(Rng::new(seed.wrapping_mul(2).wrapping_add(n)));
    [Survival::Synced, Survival::Everything, random(0), random(1)]
}

/// `FENCEPOST_SEEDS` runs more random histories.
fn seeds(default: u64) -> u64 {
    std::env::var("FENCEPOST_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Every call of a few small histories: one writer, two that fight, slow calls and quick ones.
#[test]
fn power_lost_at_any_call_of_a_small_history_loses_no_acknowledged_row() {
    for seed in 0..4 {
        let slow = seed % 2 == 1;
        let whole = history(seed, slow, Some(usize::MAX), Survival::Everything, Mutant::None);
        assert!(whole.acknowledged > 3 && whole.calls.len() > 60, "seed {seed} does too little: {}", whole.calls.len());
        for call in 0..whole.calls.len() {
            for survival in survivals(seed * 1000 + call as u64) {
                let run = history(seed, slow, Some(call), survival.clone(), Mutant::None);
                assert_eq!(run.wrong, Ok(()), "seed {seed}, power lost in front of call {call}, {survival:?}");
            }
        }
    }
}

#[test]
fn power_lost_again_and_again_loses_no_acknowledged_row() {
    let mut acknowledged = 0;
    for seed in 0..seeds(300) {
        for survival in survivals(seed) {
            let run = history(seed, seed % 2 == 0, None, survival.clone(), Mutant::None);
            assert_eq!(run.wrong, Ok(()), "seed {seed}, {survival:?}");
            acknowledged += run.acknowledged;
        }
    }
    assert!(acknowledged > 1000, "only {acknowledged} rows were promised");
}

/// The first seed that shows that something is wrong, and what.
fn caught(mutant: Mutant) -> Option<(u64, String)> {
    (0..300).find_map(|seed| {
        let mut runs = survivals(seed).into_iter().map(|survival| history(seed, seed % 2 == 0, None, survival, mutant));
        runs.find_map(|run| run.wrong.err()).map(|wrong| (seed, wrong))
    })
}

#[test]
fn leaving_out_an_fsync_is_noticed() {
    for mutant in [Mutant::NoFileSync, Mutant::NoFolderSync, Mutant::NoSettling] {
        let caught = caught(mutant);
        println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} survives");
    }
}
