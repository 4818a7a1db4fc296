//! Merging SSTables into the base table: what it does, and what crashes, stalls and second mergers cannot do to it.

use std::time::Duration;

use fencepost::{Error, MergeOptions, MergeReport, Table};
use fencepost_sim::{Fault, Gate, Op};
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::task::JoinHandle;

use crate::support::*;

pub(crate) fn options() -> MergeOptions {
    MergeOptions { retry_delay: Duration::from_millis(1), ..MergeOptions::default() }
}

pub(crate) async fn merge(table: &Table) -> MergeReport {
    table.merge(&options(), |_| {}).await.unwrap()
}

impl Process {
    /// A merger of this process, running beside the test.
    pub(crate) fn merger(&self) -> JoinHandle<fencepost::Result<MergeReport>> {
        let store = self.store.clone();
        tokio::spawn(async move { Table::open(store).await?.merge(&options(), |_| {}).await })
    }
}

/// Puts, overwrites and deletes over three generations, the last of which only deletes.
async fn three_generations(bucket: &Bucket) -> Vec<(i64, Option<i64>)> {
    let writer = bucket.process().writer(config()).await;
    writer.put(rows(&[(1, 10), (2, 20), (3, 30), (4, 40)])).await.unwrap();
    writer.flush().await.unwrap();
    writer.put(rows(&[(2, 21), (5, 50)])).await.unwrap();
    writer.delete(keys(&[3, 9])).await.unwrap();
    writer.flush().await.unwrap();
    writer.delete(keys(&[4])).await.unwrap();
    writer.close().await.unwrap();
    vec![(1, Some(10)), (2, Some(21)), (5, Some(50))]
}

/// What a reader sees once everything is merged, and that it saw it in the base table alone.
pub(crate) async fn only_in_base(bucket: &Bucket) -> Vec<(i64, Option<i64>)> {
    let reader = bucket.process();
    let seen = pairs(reader.table().await.provider().await.unwrap()).await;
    let opened: Vec<_> = reader.faults.log().into_iter().filter(|r| r.path.contains("_gen_")).collect();
    assert!(opened.is_empty(), "a reader opened SSTables that the base table has: {opened:?}");
    seen
}

async fn merged_generation(bucket: &Bucket) -> u64 {
    let inspection = bucket.table().await.inspect().await.unwrap();
    inspection.base.merged.first().map_or(0, |merged| merged.generation)
}

#[tokio::test]
async fn merging_moves_the_newest_row_of_each_key_into_the_base_table() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let expected = three_generations(&bucket).await;
    assert_eq!(bucket.seen().await, expected);

    let mut steps = Vec::new();
    let table = bucket.table().await;
    let report = table.merge(&options(), |p| steps.push((p.sstables, p.of_sstables, p.rows))).await.unwrap();
    assert_eq!(steps, [(0, 3, 0), (1, 3, 4), (2, 3, 8), (3, 3, 9)]);
    assert_eq!((report.sstables, report.merged_by_others), (3, 0));
    // Key 9 never had a row.
    assert_eq!((report.rows, report.deleted), (6, 2));
    assert_eq!(only_in_base(&bucket).await, expected);
    let inspection = table.inspect().await.unwrap();
    assert_eq!((inspection.base.rows, inspection.base.version), (3, report.base_version));
}

#[tokio::test]
async fn merging_appends_the_rows_of_a_keyless_table_once() {
    let bucket = Bucket::new();
    keyless(&bucket, 3).await;
    let writer = bucket.table().await.writer(config()).await.unwrap();
    for n in 0..4 {
        writer.put(ids(0..20)).await.unwrap();
        writer.put(rows(&[(n, 100 + n)])).await.unwrap();
        writer.flush().await.unwrap();
    }
    writer.close().await.unwrap();
    let before = bucket.seen().await;
    assert_eq!(before.len(), 84);
    let first = merge(&bucket.table().await).await;
    assert!(first.sstables >= 9 && first.rows == 84, "{first:?}");
    assert_eq!(only_in_base(&bucket).await, before);
    let again = merge(&bucket.table().await).await;
    assert_eq!((again.sstables, again.rows, again.base_version), (0, 0, first.base_version));
    assert_eq!(only_in_base(&bucket).await, before);
}

#[tokio::test]
async fn rows_written_after_a_merge_replace_and_delete_merged_ones() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 2).await;
    let writer = table.writer(config()).await.unwrap();
    writer.put(ids(0..10)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    writer.put(rows(&[(3, 33)])).await.unwrap();
    writer.delete(keys(&[4, 5])).await.unwrap();
    let expected: Vec<_> =
        (0..10).filter(|id| ![4, 5].contains(id)).map(|id| (id, Some(if id == 3 { 33 } else { id }))).collect();
    // In the log, in an SSTable, in the base.
    assert_eq!(pairs(writer.provider().await.unwrap()).await, expected);
    assert_eq!(bucket.seen().await, expected);
    writer.flush().await.unwrap();
    assert_eq!(bucket.seen().await, expected);
    merge(&bucket.table().await).await;
    assert_eq!(pairs(writer.provider().await.unwrap()).await, expected);
    assert_eq!(only_in_base(&bucket).await, expected);
}

#[tokio::test]
async fn a_table_without_sstables_is_left_as_it_is() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 2).await;
    let before = table.inspect().await.unwrap();
    assert_eq!(merge(&table).await.sstables, 0);
    let writer = bucket.process().writer(fencepost::WriterConfig::wal_only()).await;
    writer.put(ids(0..3)).await.unwrap();
    let report = merge(&table).await;
    assert_eq!((report.sstables, report.base_version), (0, before.base.version));
}

/// The writer has lost the answer to its publish when another process merges the SSTable: the rows are in the base, in
/// an SSTable, and in a MemTable that the writer still takes for frozen.
#[tokio::test]
async fn a_frozen_memtable_whose_sstable_was_merged_shows_its_rows_once() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let process = bucket.process();
    let table = process.table().await;
    let writer = table.writer(config()).await.unwrap();
    writer.put(ids(0..5)).await.unwrap();
    let gate = process.faults.on(Op::Create).path_contains("/manifest/").stall_after();
    let flush = tokio::spawn(async move { writer.flush().await.map(|()| writer) });
    soon("the publish", gate.reached()).await;
    merge(&bucket.table().await).await;
    assert_eq!(only_in_base(&bucket).await, id_pairs(0..5));
    // The same table through the writer, which must not show the MemTable beside the base.
    gate.release();
    let writer = soon("the flush", flush).await.unwrap().unwrap();
    assert_eq!(pairs(writer.provider().await.unwrap()).await, id_pairs(0..5));
    assert_eq!(scanned(&writer.shards()[0]).await, []);
}

/// A replaced writer that does not know it: its successor has numbered the rows otherwise, and the first of its SSTables
/// is merged. The old writer's MemTable of that number holds more than the base has, or less.
#[tokio::test]
async fn a_replaced_writer_does_not_mix_its_memtable_with_what_its_successor_merged() {
    for key in [true, false] {
        let bucket = Bucket::new();
        let table = if key { keyed(&bucket, 1).await } else { keyless(&bucket, 1).await };
        let old = table.writer(config()).await.unwrap();
        for id in 0..10 {
            old.put(ids(id..id + 1)).await.unwrap();
        }
        // The replay is published in pieces.
        let next = bucket.process().writer(small(5)).await;
        let process = bucket.process();
        let second = process.faults.on(Op::Create).path_contains("_versions/").nth(2).stall();
        let merger = process.merger();
        soon("the second generation", second.reached()).await;
        assert_eq!(merged_generation(&bucket).await, 1);
        assert_eq!(bucket.seen().await, id_pairs(0..10));
        let refused =
            |error: Error| assert!(matches!(error, Error::Wal(fencepost::wal::Error::Fenced { .. })), "{error}");
        refused(old.provider().await.unwrap_err());
        refused(old.shards()[0].scan().await.err().unwrap());
        drop(next);
        merger.abort();
    }
}

/// Stops a merger before its `n`th write and kills it there; whoever reads in between, and whoever merges afterwards,
/// gets what was written.
#[tokio::test]
async fn a_merger_that_dies_before_any_of_its_writes_does_no_harm() {
    for key in [true, false] {
        let mut killed = 0;
        for n in 1.. {
            let bucket = Bucket::new();
            let expected = match key {
                true => {
                    keyed(&bucket, 1).await;
                    three_generations(&bucket).await
                }
                false => {
                    keyless(&bucket, 1).await;
                    let writer = bucket.process().writer(config()).await;
                    for _ in 0..2 {
                        writer.put(ids(0..3)).await.unwrap();
                        writer.flush().await.unwrap();
                    }
                    let mut twice = [id_pairs(0..3), id_pairs(0..3)].concat();
                    twice.sort_unstable();
                    twice
                }
            };
            let process = bucket.process();
            let gate = process.faults.on_any(Op::WRITES).nth(n).stall();
            let mut merger = process.merger();
            let stopped = tokio::select! {
                () = gate.reached() => true,
                done = &mut merger => done.unwrap().map(|_| false).unwrap(),
            };
            assert_eq!(bucket.seen().await, expected, "before write {n}");
            merger.abort();
            if !stopped {
                break;
            }
            killed += 1;
            merge(&bucket.table().await).await;
            assert_eq!(only_in_base(&bucket).await, expected, "killed before write {n}");
        }
        // At least a data file, a transaction file and a manifest for each generation.
        assert!(killed >= 6, "only {killed} writes were met");
    }
}

/// Stops a merger before a commit of the base table, lets `meanwhile` happen, and lets it go on.
async fn stalled_at_commit(bucket: &Bucket, nth: u64) -> (Gate, JoinHandle<fencepost::Result<MergeReport>>) {
    let process = bucket.process();
    let gate = process.faults.on(Op::Create).path_contains("_versions/").nth(nth).stall();
    let merger = process.merger();
    soon("the merger's commit", gate.reached()).await;
    (gate, merger)
}

/// 25: one merger stalls with a generation in its hands, another one commits that generation and those behind it. In
/// a keyless table a doubled append would be rows twice.
#[tokio::test]
async fn s25_a_merger_that_wakes_up_late_adds_nothing() {
    let bucket = Bucket::new();
    keyless(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    for _ in 0..3 {
        writer.put(ids(0..4)).await.unwrap();
        writer.flush().await.unwrap();
    }
    let expected = bucket.seen().await;
    assert_eq!(expected.len(), 12);
    let (gate, merger) = stalled_at_commit(&bucket, 2).await;
    let other = merge(&bucket.table().await).await;
    assert_eq!(only_in_base(&bucket).await, expected);
    gate.release();
    let late = soon("the late merger", merger).await.unwrap().unwrap();
    assert_eq!((other.sstables, late.sstables, late.merged_by_others), (2, 1, 2));
    assert_eq!(only_in_base(&bucket).await, expected);
    assert_eq!(merged_generation(&bucket).await, 3);
}

/// 25 for a keyed table, at every commit of the stalled merger: its deletions, its upserts.
#[tokio::test]
async fn s25_a_merger_that_wakes_up_late_replaces_nothing() {
    for nth in 1..=5 {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        let expected = three_generations(&bucket).await;
        let (gate, merger) = stalled_at_commit(&bucket, nth).await;
        merge(&bucket.table().await).await;
        assert_eq!(only_in_base(&bucket).await, expected);
        gate.release();
        soon("the late merger", merger).await.unwrap().unwrap();
        assert_eq!(only_in_base(&bucket).await, expected, "stalled before commit {nth}");
        assert_eq!(merged_generation(&bucket).await, 3);
    }
}

/// The delete-retry trap: generation 2 deletes a key, generation 3 writes it again. A merger stalls with the deletion
/// of generation 2 in its hands until another one has merged both. Carried out on the newest version it would remove
/// the row of generation 3.
#[tokio::test]
async fn a_late_deletion_leaves_what_a_later_generation_has_written() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    writer.put(ids(0..5)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    writer.delete(keys(&[1, 2])).await.unwrap();
    writer.flush().await.unwrap();
    let (gate, merger) = stalled_at_commit(&bucket, 1).await;
    writer.put(rows(&[(1, 100)])).await.unwrap();
    writer.flush().await.unwrap();
    let expected = vec![(0, Some(0)), (1, Some(100)), (3, Some(3)), (4, Some(4))];
    merge(&bucket.table().await).await;
    assert_eq!(only_in_base(&bucket).await, expected);
    gate.release();
    soon("the late merger", merger).await.unwrap().unwrap();
    assert_eq!(only_in_base(&bucket).await, expected);
}

/// 36: a merger stalls with a deletion vector in its hands while others merge on, and the versions in between are cleaned
/// up: nothing tells it any more what happened since. Its deletion vector is older than the table's, and would bring
/// back the rows that were deleted meanwhile.
#[tokio::test]
async fn s36_a_deletion_that_sleeps_through_a_cleanup_brings_no_row_back() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    let writer = bucket.process().writer(config()).await;
    writer.put(ids(0..9)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    writer.delete(keys(&[1])).await.unwrap();
    writer.flush().await.unwrap();

    let process = bucket.process();
    let gate = process.faults.on_any(Op::WRITES).path_contains("_deletions/").stall_after();
    let merger = process.merger();
    soon("the deletion file", gate.reached()).await;
    writer.delete(keys(&[2, 3])).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    bucket.clean_up_base_versions().await;
    let expected: Vec<_> = [0, 4, 5, 6, 7, 8].map(|id| (id, Some(id))).into();
    assert_eq!(only_in_base(&bucket).await, expected);
    gate.release();
    soon("the late merger", merger).await.unwrap().unwrap();
    assert_eq!(only_in_base(&bucket).await, expected);
}

/// 36 again: the commit of the deletions itself lands late, under a name that came back when newer versions were cleaned up. It is
/// answered with success, and is no part of the table's history. `process` has faults, `healthy` has none.
async fn deletions_under_a_forgotten_name(process: Process, healthy: fencepost::Store, in_between: bool) {
    let table = Table::open(healthy.clone()).await.unwrap();
    let writer = table.writer(config()).await.unwrap();
    writer.put(ids(0..5)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&table).await;
    writer.delete(keys(&[1, 2])).await.unwrap();
    writer.flush().await.unwrap();
    let commit_something = async |n: u32| {
        let mut other = config();
        other.wal.max_in_flight = 2 + n as usize;
        table.set_writer_defaults(&other).await.unwrap();
    };

    // Lance looks for newer versions between the two.
    let look = process.faults.on_any(Op::WRITES).path_contains("_deletions/").stall_after();
    let gate = process.faults.on(Op::Create).path_contains("_versions/").stall();
    let merger = process.merger();
    soon("the deletion file", look.reached()).await;
    if in_between {
        commit_something(0).await;
    }
    look.release();
    soon("the commit of the deletions", gate.reached()).await;
    for n in 1..5 {
        commit_something(n).await;
    }
    // As Lance's cleanup does. Named by 2^64 - 1 - version: the newest is the first.
    let versions = healthy.root().clone().join("_versions");
    let mut manifests: Vec<_> = healthy.object_store().list(Some(&versions)).try_collect().await.unwrap();
    manifests.retain(|found| found.location.as_ref().ends_with(".manifest"));
    manifests.sort_by(|a, b| a.location.cmp(&b.location));
    for found in &manifests[1..] {
        healthy.object_store().delete(&found.location).await.unwrap();
    }
    gate.release();
    soon("the late merger", merger).await.unwrap().unwrap();
    let base = Table::open(healthy).await.unwrap().inspect().await.unwrap().base;
    assert_eq!((base.rows, base.merged.first().map(|merged| merged.generation)), (3, Some(2)));
    let seen = pairs(table.provider().await.unwrap()).await;
    assert_eq!(seen, [0, 3, 4].map(|id| (id, Some(id))), "a commit in between: {in_between}");
}

#[tokio::test]
async fn s36_deletions_under_a_forgotten_name_are_made_again() {
    for in_between in [false, true] {
        let bucket = Bucket::new();
        keyed(&bucket, 1).await;
        deletions_under_a_forgotten_name(bucket.process(), bucket.process().store, in_between).await;
    }
}

/// There Lance finds the newest version by a hint, which the late commit has written, too.
#[tokio::test]
async fn s36_deletions_under_a_forgotten_name_are_made_again_on_files() {
    for in_between in [false, true] {
        let place = crate::interop::place::Place::new(true).await;
        deletions_under_a_forgotten_name(place.process(), place.store(), in_between).await;
    }
}

/// Every way in which a commit of the base table can be answered wrongly, at every commit.
#[tokio::test]
async fn a_commit_that_is_answered_wrongly_is_neither_lost_nor_doubled() {
    for fault in [Fault::LostAck, Fault::LostAckAsExists, Fault::Conflict409, Fault::Fail] {
        for nth in 1..=3 {
            let bucket = Bucket::new();
            keyless(&bucket, 1).await;
            let writer = bucket.process().writer(config()).await;
            for n in 0..3 {
                writer.put(ids(n..n + 2)).await.unwrap();
                writer.flush().await.unwrap();
            }
            let expected = bucket.seen().await;
            let process = bucket.process();
            let rule = process.faults.on(Op::Create).path_contains("_versions/").nth(nth).then(fault);
            let report = soon("the merge", process.merger()).await.unwrap().unwrap();
            assert_eq!(rule.fired(), 1);
            assert_eq!(report.sstables + report.merged_by_others, 3);
            assert_eq!(only_in_base(&bucket).await, expected, "{fault:?} at commit {nth}");
        }
    }
}

#[tokio::test]
async fn a_generation_that_is_missing_stops_the_merge_by_name() {
    let bucket = Bucket::new();
    keyed(&bucket, 1).await;
    three_generations(&bucket).await;
    let folder = bucket.manifest().await.sstables[1].path.clone();
    let process = bucket.process();
    process.faults.on(Op::Get).path_contains(folder.as_str()).always().then(Fault::Swallow);
    let error = soon("the merge", process.merger()).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Lance { .. }) && error.to_string().contains(&folder), "{error}");
    // What came before is merged, and nothing of what comes after.
    assert_eq!(merged_generation(&bucket).await, 1);
}

#[tokio::test]
async fn no_attempts_is_no_merge() {
    let bucket = Bucket::new();
    let table = keyed(&bucket, 1).await;
    let none = MergeOptions { attempts: 0, ..options() };
    assert!(matches!(table.merge(&none, |_| {}).await, Err(Error::InvalidOptions(_))));
}
