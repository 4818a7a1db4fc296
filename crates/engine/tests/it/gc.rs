//! Garbage collection of whole tables: what goes once the base table has it, and that nobody sees a difference.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use fencepost::wal::gc::{GcConfig, GcKind, GcOptions, Refusal};
use fencepost::wal::{Surroundings, checkpoint};
use fencepost::{Table, TableGcReport};
use futures::TryStreamExt;
use object_store::ObjectStore;
use uuid::Uuid;

use crate::interop::place::Place;
use crate::merge::{merge, only_in_base};
use crate::support::*;

/// The clock of a process that runs ahead.
#[derive(Debug)]
struct Later(Duration);

impl Surroundings for Later {
    fn now(&self) -> SystemTime {
        SystemTime::now() + self.0
    }

    fn fresh_id(&self) -> Uuid {
        Uuid::new_v4()
    }
}

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn at_once() -> GcOptions {
    GcOptions { min_age: Duration::ZERO, ..GcOptions::default() }
}

/// The store of a process whose clock is two days ahead.
pub(crate) fn later(bucket: &Bucket) -> fencepost::Store {
    bucket.process().store.with_surroundings(std::sync::Arc::new(Later(48 * HOUR)))
}

/// Everything is old enough, manifests included.
pub(crate) async fn gc(bucket: &Bucket) -> TableGcReport {
    Table::open(later(bucket)).await.unwrap().gc(&at_once(), |_| ()).await.unwrap()
}

fn deleted(report: &TableGcReport, kind: GcKind) -> u64 {
    report.shards.iter().map(|shard| shard.report.of(kind).objects).sum()
}

async fn folders(bucket: &Bucket) -> BTreeSet<String> {
    let objects: Vec<_> = bucket.inner().list(None).try_collect().await.unwrap();
    let parts =
        objects.iter().flat_map(|object| object.location.parts().map(|p| p.as_ref().to_owned()).collect::<Vec<_>>());
    parts.filter(|part| part.contains("_gen_")).collect()
}

#[tokio::test]
async fn a_table_is_the_same_after_a_collection_and_goes_on() {
    for key in [&["id"][..], &[]] {
        let bucket = Bucket::new();
        create(&bucket, key, "bucket(id,2)").await;
        let writer = bucket.table().await.writer(config()).await.unwrap();
        for round in 0..4 {
            writer.put(ids(10 * round..10 * round + 10)).await.unwrap();
            writer.flush().await.unwrap();
        }
        merge(&bucket.table().await).await;
        writer.put(ids(100..110)).await.unwrap();
        writer.flush().await.unwrap();
        writer.put(ids(200..203)).await.unwrap();
        let before = bucket.seen().await;
        assert_eq!(pairs(writer.provider().await.unwrap()).await, before);
        assert_eq!(folders(&bucket).await.len(), 10);

        let mut steps = Vec::new();
        let store = bucket.process().store.with_surroundings(std::sync::Arc::new(Later(48 * HOUR)));
        let collector = Table::open(store).await.unwrap();
        let planned = collector.gc_dry_run(&at_once()).await.unwrap();
        assert_eq!(bucket.seen().await, before);
        let report = collector.gc(&at_once(), |p| steps.push((p.objects, p.of_objects))).await.unwrap();
        assert_eq!(report.shards.len(), 2);
        for (shard, planned) in report.shards.iter().zip(&planned) {
            assert_eq!((shard.shard_id, shard.report.refused), (planned.shard_id, None));
            assert_eq!(shard.report.dropped_sstables.len(), 4);
            assert_eq!(shard.report.total().objects, planned.plan.deletions.iter().map(|d| d.objects).sum::<u64>());
        }
        assert!(deleted(&report, GcKind::SsTable) >= 8 * 2 && deleted(&report, GcKind::WalEntry) > 0);
        let last = steps.last().copied().unwrap();
        assert_eq!((last.0, last.0), (last.1, report.shards.iter().map(|s| s.report.total().objects).sum()));
        assert!(steps.is_sorted_by_key(|step| step.0));
        assert_eq!(folders(&bucket).await.len(), 2, "generation 5 of both shards");

        // Readers, the writer that was there, the next one, and a merge see the same table.
        assert_eq!(bucket.seen().await, before);
        assert_eq!(pairs(writer.provider().await.unwrap()).await, before);
        writer.put(ids(300..302)).await.unwrap();
        let mut after = [before, id_pairs(300..302)].concat();
        after.sort_unstable();
        assert_eq!(pairs(writer.provider().await.unwrap()).await, after);
        drop(writer);
        let next = bucket.table().await.writer(config()).await.unwrap();
        assert_eq!(pairs(next.provider().await.unwrap()).await, after);
        next.close().await.unwrap();
        merge(&bucket.table().await).await;
        gc(&bucket).await;
        assert_eq!(folders(&bucket).await, BTreeSet::new());
        assert_eq!(only_in_base(&bucket).await, after);
        // A shard of which nothing but the base's record is left is not taken for a lost one.
        let next = bucket.table().await.writer(config()).await.unwrap();
        next.put(ids(400..401)).await.unwrap();
        next.close().await.unwrap();
        assert_eq!(bucket.seen().await, [after, id_pairs(400..401)].concat());
    }
}

/// A query that has its snapshot from before the merge reads on.
#[tokio::test]
async fn a_reader_of_a_moment_ago_still_finds_its_sstables() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    writer.put(ids(0..10)).await.unwrap();
    writer.close().await.unwrap();
    let snapshot = bucket.table().await.provider().await.unwrap();
    merge(&bucket.table().await).await;
    let store = bucket.process().store.with_surroundings(std::sync::Arc::new(Later(48 * HOUR)));
    let collector = Table::open(store).await.unwrap();
    // Everything is old but the manifest that names the SSTable no more.
    let options = GcOptions { min_age: HOUR, fence_retention: None };
    let report = collector.gc(&options, |_| ()).await.unwrap();
    let shard = &report.shards[0].report;
    assert_eq!((shard.dropped_sstables.len(), shard.kept.young_sstables), (1, 1));
    assert_eq!(pairs(snapshot).await, id_pairs(0..10));
    assert_eq!(folders(&bucket).await.len(), 1);
}

/// On `file://`: an index that lags keeps its SSTable; what goes leaves no empty folder behind.
#[tokio::test]
async fn a_lagging_index_keeps_what_was_merged() {
    let place = Place::new(true).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(ids(0..20)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&place.table().await).await;
    place.index_by_lance("v").await;
    writer.put(rows(&[(100, 5)])).await.unwrap();
    writer.flush().await.unwrap();
    merge(&place.table().await).await;
    let before = place.seen().await;

    let report = place.table().await.gc(&at_once(), |_| ()).await.unwrap();
    let shard = &report.shards[0].report;
    assert_eq!(shard.dropped_sstables.iter().map(|g| g.get()).collect::<Vec<_>>(), [1]);
    assert_eq!(shard.kept.lagging_indexes.get("v_idx"), Some(&1));
    let folders = || {
        let shard = std::path::Path::new(&place.path()).join("_mem_wal").read_dir().unwrap().next().unwrap().unwrap();
        let names = shard.path().read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains("_gen_")).count()
    };
    assert_eq!(folders(), 1);
    let optimize = fencepost::MergeOptions { optimize_indexes: true, ..crate::merge::options() };
    place.table().await.merge(&optimize, |_| ()).await.unwrap();
    let report = place.table().await.gc(&at_once(), |_| ()).await.unwrap();
    assert_eq!(report.shards[0].report.dropped_sstables.len(), 1);
    assert_eq!(folders(), 0);
    assert_eq!(place.seen().await, before);
}

/// The writer's own collector: after a merge the SSTables go without anybody's doing.
#[tokio::test]
async fn a_writer_collects_what_was_merged() {
    let bucket = Bucket::new();
    keyed(&bucket, 2).await;
    let mut config = config();
    let interval = Duration::from_millis(5);
    config.wal.gc = Some(GcConfig { interval, options: at_once() });
    let writer = bucket.table().await.writer(config).await.unwrap();
    writer.put(ids(0..20)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    // So that both collectors have a reason to look.
    writer.put(ids(20..40)).await.unwrap();
    writer.flush().await.unwrap();
    soon("the merged SSTables to go", async {
        while folders(&bucket).await.len() > 2 {
            tokio::time::sleep(interval).await;
        }
    })
    .await;
    assert_eq!(pairs(writer.provider().await.unwrap()).await, id_pairs(0..40));
    soon("the runs to be counted", async {
        while !writer.shards().iter().all(|shard| shard.stats().wal.gc.objects > 0) {
            tokio::time::sleep(interval).await;
        }
    })
    .await;
    for shard in writer.shards() {
        let stats = shard.stats().wal.gc;
        assert!(stats.runs > 0 && stats.failures == 0, "{stats:?}");
    }
    writer.close().await.unwrap();
    assert_eq!(bucket.seen().await, id_pairs(0..40));
}

/// Collectors, mergers, flushes and readers at once.
#[tokio::test]
async fn collecting_beside_everything_else_changes_no_answer() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    for round in 0..8 {
        writer.put(ids(10 * round..10 * round + 10)).await.unwrap();
        let (flushed, merged, first, second) =
            tokio::join!(writer.flush(), bucket.process().merger(), gc(&bucket), gc(&bucket));
        flushed.unwrap();
        merged.unwrap().unwrap();
        assert!(first.shards.iter().chain(&second.shards).all(|shard| shard.report.refused.is_none()));
        assert_eq!(bucket.seen().await, id_pairs(0..10 * (round + 1)));
        // Its own view leaves out what the base has, also where it still lists it.
        assert!(scanned(&writer).await.iter().all(|row| (0..10 * (round + 1)).contains(&row.0)));
    }
    merge(&bucket.table().await).await;
    gc(&bucket).await;
    assert_eq!(only_in_base(&bucket).await, id_pairs(0..80));
}

#[tokio::test]
async fn a_shard_that_lance_wrote_to_is_named_and_left_alone() {
    let place = Place::new(true).await;
    let theirs = place.theirs().await;
    theirs.put(&[(1, 1)]).await;
    theirs.flush().await;
    theirs.die().await;
    merge(&place.table().await).await;
    let refused = place.table().await.gc(&at_once(), |_| ()).await.unwrap();
    assert_eq!(refused.shards[0].report.refused, Some(Refusal::Unadopted));
    place.table().await.adopt().await.unwrap();
    // What a checkpoint holds stays.
    let shard = place.shard().await;
    let made = checkpoint::create(&shard, &Default::default()).await.unwrap();
    let report = place.table().await.gc(&at_once(), |_| ()).await.unwrap();
    let kept = &report.shards[0].report.kept;
    assert_eq!((report.shards[0].report.dropped_sstables.len(), kept.sstables_in_checkpoints), (1, 1));
    checkpoint::delete(&shard, made.id).await.unwrap();
    let report = place.table().await.gc(&at_once(), |_| ()).await.unwrap();
    assert!(deleted(&report, GcKind::SsTable) > 0);
    assert_eq!(place.seen().await, [(1, Some(1))]);
}
