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
use fencepost_wal::gc::{self, BaseProgress, GcOptions};
use fencepost_wal::{
    Error, FileSync, ManifestStore, OpenOptions, Position, Replay, RetryPolicy, Shard, ShardId, ShardManifest, SsTable,
    Store, WalConfig, WalWriter,
};
use futures::future::join_all;
use object_store::ObjectStoreExt;
use object_store::path::Path;
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
    /// Objects that were found are taken for durable.
    NoSettling,
    /// Folders that somebody else made are taken for durable.
    NoSettlingOfFolders,
}

/// Syncs what was found, or the folders above, or neither.
#[derive(Debug)]
struct Settling {
    files: PowerLossStore,
    found: bool,
    folders: bool,
    /// Folders of objects that were found; each is synced right after its object.
    of_found: Mutex<Vec<Path>>,
}

#[async_trait]
impl FileSync for Settling {
    async fn sync_object(&self, object: &Path) -> io::Result<()> {
        let (folder, _) = object.as_ref().rsplit_once('/').unwrap();
        self.of_found.lock().unwrap().push(Path::from(folder));
        if self.found { self.files.sync_object(object).await } else { Ok(()) }
    }

    async fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let is_of_found = {
            let mut of_found = self.of_found.lock().unwrap();
            let at = of_found.iter().position(|found| found == folder);
            at.map(|at| of_found.remove(at)).is_some()
        };
        if if is_of_found { self.found } else { self.folders } { self.files.sync_folder(folder).await } else { Ok(()) }
    }
}

/// A process's own view of the disk: its own store, which knows nothing of what others have synced.
fn shard_on(disk: &PowerLossDisk, id: ShardId, mutant: Mutant) -> Shard {
    let syncs = Syncs { files: mutant != Mutant::NoFileSync, folders: mutant != Mutant::NoFolderSync };
    let files = PowerLossStore::new(disk.clone(), syncs);
    let sync = Arc::new(Settling {
        files: files.clone(),
        found: !matches!(mutant, Mutant::NoSettling | Mutant::NoFolderSync),
        folders: !matches!(mutant, Mutant::NoSettlingOfFolders | Mutant::NoFolderSync),
        of_found: Mutex::default(),
    });
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

/// Collects again and again, in a process of its own: what it judges by may be somebody's commit that is not durable yet.
async fn one_collector(shard: Shard, mut rng: Rng, quick: bool) {
    let options = GcOptions { min_age: Duration::ZERO, ..GcOptions::default() };
    for _ in 0..12 {
        match quick {
            true => {
                for _ in 0..rng.below(100) {
                    tokio::task::yield_now().await;
                }
            }
            false => tokio::time::sleep(Duration::from_secs(2).mul_f64(rng.unit())).await,
        }
        // Others commit meanwhile, or there is no shard yet.
        let _ = gc::collect(&shard, &BaseProgress::default(), &options, |_| {}).await;
    }
}

async fn rows_of(mut replay: Replay) -> fencepost_wal::Result<Vec<(u64, i64)>> {
    let mut rows = Vec::new();
    while let Some(entry) = replay.next().await? {
        rows.extend(ids_of(&entry).into_iter().map(|id| (entry.position.get(), id)));
    }
    Ok(rows)
}

/// Behind the last row of an SSTable.
const END: &str = "end";

/// Writes the rows to an SSTable, which here is one object with numbers in it, and publishes it.
async fn flush(shard: &Shard, writer: &WalWriter, rows: Vec<(u64, i64)>) -> Option<()> {
    let tenure = writer.tenure();
    let generation = tenure.current_generation().await;
    let covers = rows.iter().map(|row| row.0).max().map_or(tenure.acknowledged(), Position::new);
    let folder = format!("{:08x}_gen_{}", tenure.epoch().get(), generation.get());
    let numbers = rows.iter().map(|row| row.1.to_string());
    let text: Vec<String> = numbers.chain([END.to_owned()]).collect();
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
async fn boot(disk: &PowerLossDisk, id: ShardId, promises: &Shared, rng: &mut Rng, slow: bool, mutant: Mutant) {
    let writers: Vec<(Shard, Rng)> =
        (0..1 + rng.below(2)).map(|_| (shard_on(disk, id, mutant), Rng::new(rng.next_u64()))).collect();
    let creator = shard_on(disk, id, mutant);
    let collector = rng.chance(0.5).then(|| (shard_on(disk, id, mutant), Rng::new(rng.next_u64())));
    let mut work = tokio::task::JoinSet::new();
    let promises = Arc::clone(promises);
    work.spawn(async move {
        create(&creator).await;
        let writers = writers.into_iter().map(|(shard, rng)| one_writer(shard, Arc::clone(&promises), rng));
        let collector = async {
            if let Some((shard, rng)) = collector {
                one_collector(shard, rng, !slow).await;
            }
        };
        futures::join!(join_all(writers), collector);
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
    let (_writer, replay) = WalWriter::open(&shard, schema(), WalConfig::default(), &OpenOptions::default()).await?;
    let mut found = BTreeMap::new();
    for (_, id) in rows_of(replay).await? {
        *found.entry(id).or_default() += 1;
    }
    for sstable in ManifestStore::new(shard.clone()).latest_existing().await?.sstables {
        let path = shard.root().clone().join(sstable.path).join("data").join("rows");
        let text = String::from_utf8(shard.store().get(&path).await?.unwrap_or_default().to_vec()).unwrap();
        let Some(numbers) = text.strip_suffix(END) else {
            return Err(Error::Corrupt { object: path.to_string(), reason: "the SSTable has no end".into() });
        };
        for id in numbers.split_whitespace() {
            *found.entry(id.parse().unwrap()).or_default() += 1;
        }
    }
    Ok(found)
}

/// What is wrong with what the next boot finds; nothing, we hope.
async fn judge(disk: &PowerLossDisk, id: ShardId, promises: &Shared) -> Result<(), String> {
    let rows = found(disk, id).await;
    let promises = promises.lock().unwrap();
    let rows = match rows {
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
            boot(&disk, id, &promises, &mut rng, slow, mutant).await;
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

/// Every call of a few small histories: one writer and two that fight, with quick calls only and with slow ones.
#[test]
fn power_lost_at_any_call_of_a_small_history_loses_no_acknowledged_row() {
    for slow in [false, true] {
        let whole = |seed| history(seed, slow, Some(usize::MAX), Survival::Everything, Mutant::None);
        let busy = (0..).map(|seed| (seed, whole(seed))).filter(|(_, whole)| whole.acknowledged >= 5);
        for (seed, whole) in busy.take(2) {
            for call in 0..whole.calls.len() {
                for survival in survivals(seed * 1000 + call as u64) {
                    let run = history(seed, slow, Some(call), survival.clone(), Mutant::None);
                    assert_eq!(run.wrong, Ok(()), "seed {seed}, power lost in front of call {call}, {survival:?}");
                }
            }
        }
    }
}

#[test]
fn power_lost_again_and_again_loses_no_acknowledged_row() {
    let mut acknowledged = 0;
    for seed in 0..seeds(100) {
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
    for mutant in [Mutant::NoFileSync, Mutant::NoFolderSync, Mutant::NoSettling, Mutant::NoSettlingOfFolders] {
        let caught = caught(mutant);
        println!("{mutant:?}: {caught:?}");
        assert!(caught.is_some(), "{mutant:?} survives");
    }
}

/// 12: a name whose bytes are not there. It is never taken for the end of the log, nor for an empty entry.
#[test]
fn s12_a_torn_file_is_named_and_nothing_is_lost_in_silence() {
    let mut torn = 0;
    for seed in 0..100 {
        for survival in survivals(seed) {
            let run = history(seed, false, None, survival, Mutant::NoFileSync);
            if let Err(wrong) = run.wrong {
                assert!(wrong.starts_with("does not open: srv/tables/t/_mem_wal/"), "seed {seed}: {wrong}");
                assert!(wrong.contains("damaged"), "seed {seed}: {wrong}");
                torn += 1;
            }
        }
    }
    assert!(torn > 10, "only {torn} disks had a torn file");
}
