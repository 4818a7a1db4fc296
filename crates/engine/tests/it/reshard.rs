//! Splitting and joining the shards of a table: nothing is copied, nothing is lost or doubled, readers go on, and whatever dies leaves one
//! layout or the other.

use std::collections::{BTreeMap, BTreeSet};

use fencepost::{CheckpointOptions, CloneOptions, Error, Outcome, Sharding, Table, TableWriter};
use fencepost_sim::{Op, Rng};

use crate::checkpoints::{at, meets, objects};
use crate::gc::gc;
use crate::merge::merge;
use crate::support::*;

type Rows = Vec<(i64, Option<i64>)>;

async fn reshard(bucket: &Bucket, buckets: u32) -> fencepost::Result<fencepost::ReshardReport> {
    bucket.table().await.reshard(buckets, config()).await
}

async fn writer(bucket: &Bucket) -> TableWriter {
    bucket.table().await.writer(config()).await.unwrap()
}

async fn layout(bucket: &Bucket) -> (u32, usize) {
    let table = bucket.table().await;
    let Sharding::Bucket { buckets, .. } = table.sharding() else { panic!("{}", table.sharding()) };
    (*buckets, table.shard_ids().await.unwrap().len())
}

/// Folders of SSTables that were written so far.
async fn folders(bucket: &Bucket) -> BTreeSet<String> {
    let names = objects(bucket, "_gen_").await;
    names.iter().map(|name| name.split("/").find(|part| part.contains("_gen_")).unwrap().to_owned()).collect()
}

async fn is_whole(bucket: &Bucket) {
    let verified = bucket.table().await.verify(|_| ()).await.unwrap();
    assert!(!verified.is_damaged(), "{:?}", verified.findings);
}

/// Rows in the base table, in SSTables that were merged in part, and in the log.
async fn written(bucket: &Bucket, key: &[&str], buckets: u32) -> Rows {
    create(bucket, key, &format!("bucket(id,{buckets})")).await;
    let writer = writer(bucket).await;
    writer.put(ids(0..40)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    writer.put(ids(40..60)).await.unwrap();
    if !key.is_empty() {
        writer.put(rows(&(10..30).map(|id| (id, 100 + id)).collect::<Vec<_>>())).await.unwrap();
        writer.delete(keys(&[1, 2, 3, 45])).await.unwrap();
    }
    writer.flush().await.unwrap();
    writer.put(ids(60..70)).await.unwrap();
    bucket.seen().await
}

#[tokio::test]
async fn a_table_is_split_and_joined_without_copying_an_sstable() {
    for key in [&["id"][..], &[]] {
        let bucket = Bucket::new();
        let mut expected = written(&bucket, key, 2).await;
        let mut next = 1_000;
        for (round, buckets) in [8, 4, 16, 2, 4].into_iter().enumerate() {
            // What is in the log is flushed once, by the seal; nothing else is written.
            writer(&bucket).await.close().await.unwrap();
            let before = folders(&bucket).await;
            let report = reshard(&bucket, buckets).await.unwrap();
            assert_eq!((report.to, layout(&bucket).await), (buckets, (buckets, buckets as usize)));
            assert_eq!(folders(&bucket).await, before);
            assert_eq!(bucket.seen().await, expected, "{buckets}");
            is_whole(&bucket).await;
            // Queries that read few shards agree on where rows are.
            let provider = bucket.table().await.provider().await.unwrap();
            for id in [0, 5, 12, 44, 65] {
                let there = expected.iter().filter(|(key, _)| *key == id).count() as i64;
                assert_eq!(number(&provider, &format!("select count(*) from t where id = {id}")).await, there, "{id}");
                assert_eq!(number(&provider, &format!("select count(v) from t where id = {id}")).await, there, "{id}");
            }
            let writer = writer(&bucket).await;
            writer.put(ids(next..next + 20)).await.unwrap();
            expected.extend(id_pairs(next..next + 20));
            if !key.is_empty() {
                writer.put(rows(&[(5, next), (12, next), (65, next)])).await.unwrap();
                writer.delete(keys(&[20 + round as i64, 61])).await.unwrap();
                expected.retain(|(id, _)| ![20 + round as i64, 61].contains(id));
                expected.iter_mut().filter(|(id, _)| [5, 12, 65].contains(id)).for_each(|(_, v)| *v = Some(next));
            }
            next += 100;
            assert_eq!(pairs(writer.provider().await.unwrap()).await, expected, "{buckets}");
            writer.close().await.unwrap();
            if round % 2 == 1 {
                merge(&bucket.table().await).await;
                gc(&bucket).await;
            }
            assert_eq!(bucket.seen().await, expected, "{buckets}");
            is_whole(&bucket).await;
        }
        merge(&bucket.table().await).await;
        gc(&bucket).await;
        assert_eq!(bucket.seen().await, expected);
        let merged = bucket.table().await.inspect().await.unwrap();
        assert_eq!(merged.base.rows as usize, expected.len());
    }
}

#[tokio::test]
async fn what_cannot_be_split_is_said() {
    let bucket = Bucket::new();
    let before = written(&bucket, &["id"], 4).await;
    for wrong in [0, 3, 6, 12, 2048] {
        let error = reshard(&bucket, wrong).await.unwrap_err();
        assert!(
            matches!(error, Error::InvalidOptions(_)) && error.to_string().contains("power of two"),
            "{wrong}: {error}"
        );
    }
    assert_eq!(reshard(&bucket, 4).await.unwrap().shared_sstables, 0);
    let error = bucket.table().await.reshard(8, fencepost::WriterConfig::wal_only()).await.unwrap_err();
    assert!(error.to_string().contains("need a MemTable"), "{error}");
    let other = Bucket::new();
    create(&other, &["id"], "unsharded").await;
    let error = reshard(&other, 2).await.unwrap_err();
    assert!(error.to_string().contains("only a table sharded by buckets"), "{error}");
    assert!(!bucket.table().await.give_up_resharding().await.unwrap());
    assert_eq!(bucket.seen().await, before);
}

/// A writer that lives while its shard is sealed acknowledges nothing any more, wherever it stalls, and is told the new layout.
#[tokio::test]
async fn schedule_23_a_writer_of_a_sealed_shard_is_fenced_and_told_the_new_layout() {
    for (path, nth) in [("/wal/", 1), ("/wal/", 2), ("/manifest/", 1), ("_gen_", 1)] {
        let bucket = Bucket::new();
        create(&bucket, &["id"], "bucket(id,2)").await;
        let slow = bucket.process();
        let old = slow.table().await.writer(config()).await.unwrap();
        old.put(ids(0..10)).await.unwrap();
        let gate = slow.faults.on(Op::Create).path_contains(path).nth(nth).stall();
        let late = tokio::spawn(async move {
            let put = old.put(ids(10..20)).await;
            let flushed = old.flush().await;
            (put, flushed, old.put(ids(20..30)).await, old)
        });
        assert!(meets(&gate, &late).await);
        reshard(&bucket, 4).await.unwrap();
        let sealed = bucket.seen().await;
        gate.release();
        let (put, flushed, again, old) = late.await.unwrap();
        // What was acknowledged before the seal is there, nothing of it afterwards.
        if put.is_ok() {
            assert_eq!(sealed, id_pairs(0..20), "{path}");
        }
        assert!(flushed.is_err() || put.is_err(), "{path}");
        let error = again.unwrap_err();
        let Error::Resharded { sharding, is_done: true, .. } = &error else { panic!("{error}") };
        assert_eq!(sharding.to_string(), "bucket(id,4)");
        assert_eq!(error.outcome(), Outcome::NotWritten);
        assert!(
            error.to_string().contains("is now sharded `bucket(id,4)`")
                && error.to_string().contains("open the table again"),
            "{error}"
        );
        let read = old.provider().await.map(|_| ()).unwrap_err();
        assert!(matches!(read, Error::Resharded { is_done: true, .. } | Error::Wal(_)), "{read}");
        drop(old);
        let now = bucket.seen().await;
        assert!(now == sealed, "{path}: {now:?}");
        let writer = writer(&bucket).await;
        writer.put(ids(50..60)).await.unwrap();
        assert_eq!(bucket.seen().await, [sealed, id_pairs(50..60)].concat());
    }
}

/// Killed in front of, or behind, each of its writes: the old layout or the new one, the same rows at every moment; the next call finishes it,
/// or it is given up.
#[tokio::test]
async fn a_split_or_a_join_may_die_at_every_write() {
    let (mut deaths, mut layouts, mut refused) = (0, BTreeMap::new(), 0);
    for (from, to) in [(2, 4), (4, 2)] {
        for half in 0..2 {
            for nth in (1..).skip(half).step_by(2) {
                // Odd ones in front of a write of one direction and behind one of the other.
                let behind = (half == 0) == (from < to);
                let bucket = Bucket::new();
                let before = written(&bucket, &["id"], from).await;
                let dying = bucket.process();
                let rule = dying.faults.on(Op::Create).nth(nth);
                let gate = if behind { rule.stall_after() } else { rule.stall() };
                let table = dying.table().await;
                let resharding = tokio::spawn(async move { table.reshard(to, config()).await });
                if !meets(&gate, &resharding).await {
                    resharding.await.unwrap().unwrap();
                    break;
                }
                // Readers go on while it is under way.
                assert_eq!(bucket.seen().await, before, "{from} to {to}, {nth}");
                resharding.abort();
                deaths += 1;
                assert_eq!(bucket.seen().await, before, "{from} to {to}, {nth}");
                let (buckets, shards) = layout(&bucket).await;
                assert_eq!(shards as u32, buckets, "{from} to {to}, {nth}");
                *layouts.entry((from, buckets)).or_insert(0) += 1;
                match bucket.table().await.writer(config()).await {
                    Ok(_) => {}
                    Err(Error::Resharded { is_done: false, sharding, .. }) => {
                        refused += 1;
                        assert_eq!(sharding.to_string(), format!("bucket(id,{to})"));
                    }
                    Err(error) => panic!("{error}"),
                }
                let expected = match nth % 3 {
                    0 => {
                        bucket.table().await.give_up_resharding().await.unwrap();
                        buckets
                    }
                    1 => {
                        // Somebody merges meanwhile.
                        merge(&bucket.table().await).await;
                        reshard(&bucket, to).await.unwrap();
                        to
                    }
                    _ => {
                        reshard(&bucket, to).await.unwrap();
                        to
                    }
                };
                assert_eq!(layout(&bucket).await, (expected, expected as usize), "{from} to {to}, {nth}");
                assert_eq!(bucket.seen().await, before, "{from} to {to}, {nth}");
                let writer = writer(&bucket).await;
                writer.put(ids(500..510)).await.unwrap();
                writer.flush().await.unwrap();
                merge(&bucket.table().await).await;
                gc(&bucket).await;
                assert_eq!(bucket.seen().await, [before, id_pairs(500..510)].concat(), "{from} to {to}, {nth}");
                is_whole(&bucket).await;
            }
        }
    }
    assert!(deaths > 60 && refused > 20 && layouts.len() == 4, "{deaths} deaths, {refused} refused, {layouts:?}");
}

/// Another number, while one is under way.
#[tokio::test]
async fn what_was_begun_is_finished_or_given_up_before_anything_else() {
    let bucket = Bucket::new();
    let before = written(&bucket, &["id"], 2).await;
    let dying = bucket.process();
    let gate = dying.faults.on(Op::Create).path_contains("/checkpoints/").nth(2).stall();
    let table = dying.table().await;
    let resharding = tokio::spawn(async move { table.reshard(4, config()).await });
    assert!(meets(&gate, &resharding).await);
    let error = reshard(&bucket, 8).await.unwrap_err().to_string();
    assert!(error.contains("about to get 4 buckets") && error.contains("--abort"), "{error}");
    assert!(bucket.table().await.give_up_resharding().await.unwrap());
    assert_eq!(reshard(&bucket, 8).await.unwrap().to, 8);
    let writer = writer(&bucket).await;
    writer.put(ids(500..510)).await.unwrap();
    // The one that was given up wakes up, and changes nothing.
    gate.release();
    let late = resharding.await.unwrap();
    assert!(late.is_err(), "{late:?}");
    assert_eq!(layout(&bucket).await, (8, 8));
    writer.put(ids(510..520)).await.unwrap();
    assert_eq!(bucket.seen().await, [before, id_pairs(500..520)].concat());
    is_whole(&bucket).await;
}

/// A merger that stalls over the switch, before any of its commits, merges nothing under an old name.
#[tokio::test]
async fn a_merger_that_sleeps_through_a_split_adds_nothing_twice() {
    let mut stalls = 0;
    for key in [&["id"][..], &[]] {
        for nth in 1.. {
            let bucket = Bucket::new();
            let before = written(&bucket, key, 2).await;
            let slow = bucket.process();
            let gate = slow.faults.on(Op::Create).path_contains("t/_versions/").nth(nth).stall();
            let merging = slow.merger();
            if !meets(&gate, &merging).await {
                merging.await.unwrap().unwrap();
                break;
            }
            stalls += 1;
            reshard(&bucket, 4).await.unwrap();
            assert_eq!(bucket.seen().await, before);
            merge(&bucket.table().await).await;
            gate.release();
            merging.await.unwrap().ok();
            assert_eq!(bucket.seen().await, before, "{key:?} {nth}");
            let writer = writer(&bucket).await;
            writer.put(ids(500..510)).await.unwrap();
            writer.close().await.unwrap();
            merge(&bucket.table().await).await;
            gc(&bucket).await;
            assert_eq!(bucket.seen().await, [before, id_pairs(500..510)].concat(), "{key:?} {nth}");
            is_whole(&bucket).await;
        }
    }
    assert!(stalls >= 5, "{stalls}");
}

/// Checkpoints from before, and clones of what was split, have the rows of their moment.
#[tokio::test]
async fn checkpoints_and_clones_go_along() {
    let bucket = Bucket::new();
    let before = written(&bucket, &["id"], 2).await;
    let old = bucket.table().await.checkpoint(&CheckpointOptions::default()).await.unwrap();
    reshard(&bucket, 4).await.unwrap();
    let new = bucket.table().await.checkpoint(&CheckpointOptions::default()).await.unwrap();
    let target = bucket.process().store.sibling("memory://it/c").unwrap();
    let options = CloneOptions { checkpoint: Some(new.id), ..Default::default() };
    let clone = bucket.table().await.clone_to(target, &options).await.unwrap().0;
    let writer = writer(&bucket).await;
    writer.put(rows(&(0..70).map(|id| (id, 7)).collect::<Vec<_>>())).await.unwrap();
    writer.flush().await.unwrap();
    merge(&bucket.table().await).await;
    gc(&bucket).await;
    assert_eq!(at(&bucket, old.id).await, before);
    assert_eq!(at(&bucket, new.id).await, before);
    assert_eq!(pairs(clone.provider().await.unwrap()).await, before);
    // It is a table of four buckets, with shards of its own, and can be split again.
    assert_eq!(clone.shard_ids().await.unwrap().len(), 4);
    clone.reshard(8, config()).await.unwrap();
    let clone = Table::open(bucket.process().store.sibling("memory://it/c").unwrap()).await.unwrap();
    assert_eq!(pairs(clone.provider().await.unwrap()).await, before);
    merge(&clone).await;
    assert_eq!(pairs(clone.provider().await.unwrap()).await, before);
    assert!(!clone.verify(|_| ()).await.unwrap().is_damaged());
}

/// Splits and joins among writes, merges, collections and takeovers, against a model.
#[tokio::test]
async fn random_histories_with_splits_and_joins_equal_a_model() {
    let mut switched = 0;
    for seed in 0..10 {
        let mut rng = Rng::new(seed);
        let bucket = Bucket::new();
        create(&bucket, &["id"], "bucket(id,2)").await;
        let mut model = BTreeMap::new();
        let mut current = Some(writer(&bucket).await);
        for step in 0..40_i64 {
            let writer = match current.take() {
                Some(writer) => writer,
                None => self::writer(&bucket).await,
            };
            let from = rng.below(50) as i64;
            match rng.below(12) {
                0..=3 => {
                    let batch: Vec<(i64, i64)> = (from..from + 8).map(|id| (id, 1_000 * step + id)).collect();
                    writer.put(rows(&batch)).await.unwrap();
                    model.extend(batch);
                }
                4 | 5 => {
                    let doomed: Vec<i64> = (from..from + 5).collect();
                    writer.delete(keys(&doomed)).await.unwrap();
                    model.retain(|id, _| !doomed.contains(id));
                }
                6 => writer.flush().await.unwrap(),
                7 => drop(merge(&bucket.table().await).await),
                8 => drop(gc(&bucket).await),
                9 | 10 => {
                    let buckets = [1, 2, 4, 8][rng.below(4) as usize];
                    reshard(&bucket, buckets).await.unwrap();
                    switched += 1;
                    let late = writer.put(rows(&[(1, 1)])).await;
                    assert!(late.is_err() || layout(&bucket).await.0 == buckets, "{late:?}");
                    if late.is_ok() {
                        model.insert(1, 1);
                    }
                    drop(writer);
                    continue;
                }
                _ => {
                    drop(writer);
                    continue;
                }
            }
            current = Some(writer);
            if step % 4 == 0 {
                let expected: Rows = model.iter().map(|(id, v)| (*id, Some(*v))).collect();
                assert_eq!(bucket.seen().await, expected, "seed {seed} step {step}");
            }
        }
        drop(current);
        let expected: Rows = model.iter().map(|(id, v)| (*id, Some(*v))).collect();
        assert_eq!(bucket.seen().await, expected, "seed {seed}");
        is_whole(&bucket).await;
        bucket.table().await.flush(config()).await.unwrap();
        merge(&bucket.table().await).await;
        assert_eq!(bucket.seen().await, expected, "seed {seed}");
    }
    assert!(switched > 30, "{switched}");
}

/// An attempt that was given up, at any of its writes, and wakes up beside another one or after it: a number that it had is nobody else's.
#[tokio::test]
async fn an_attempt_that_was_given_up_changes_nothing_when_it_wakes_up() {
    let mut woken = 0;
    for nth in (1..).step_by(2) {
        let bucket = Bucket::new();
        let before = written(&bucket, &["id"], 4).await;
        let slow = bucket.process();
        let gate = slow.faults.on(Op::Create).nth(nth).stall();
        let table = slow.table().await;
        let resharding = tokio::spawn(async move { table.reshard(8, config()).await });
        if !meets(&gate, &resharding).await {
            resharding.await.unwrap().unwrap();
            break;
        }
        if bucket.table().await.give_up_resharding().await.unwrap() {
            woken += 1;
        }
        // Others write, and the table gets fewer buckets instead.
        let open = bucket.table().await.writer(config()).await;
        let Ok(writer) = open else { panic!("{nth}: {:?}", open.err()) };
        writer.put(ids(500..510)).await.unwrap();
        writer.flush().await.unwrap();
        let (now, other) = (layout(&bucket).await.0, if nth % 4 == 1 { 2 } else { 8 });
        reshard(&bucket, other).await.unwrap();
        let expected = [before, id_pairs(500..510)].concat();
        assert_eq!(bucket.seen().await, expected, "{nth} {now}");
        gate.release();
        let late = resharding.await.unwrap();
        let (buckets, shards) = layout(&bucket).await;
        assert!(buckets == other || (late.is_ok() && buckets == 8), "{nth}: {late:?} {buckets}");
        assert_eq!((shards as u32, bucket.seen().await), (buckets, expected.clone()), "{nth}");
        let writer = self::writer(&bucket).await;
        writer.put(ids(600..610)).await.unwrap();
        writer.flush().await.unwrap();
        merge(&bucket.table().await).await;
        gc(&bucket).await;
        assert_eq!(bucket.seen().await, [expected, id_pairs(600..610)].concat(), "{nth}");
        is_whole(&bucket).await;
    }
    assert!(woken > 8, "{woken}");
}

/// A writer that has not noticed does not answer from what it has in memory.
#[tokio::test]
async fn a_writer_that_slept_through_a_split_reads_nothing_old() {
    let bucket = Bucket::new();
    create(&bucket, &["id"], "bucket(id,2)").await;
    let old = writer(&bucket).await;
    old.put(ids(0..10)).await.unwrap();
    reshard(&bucket, 4).await.unwrap();
    let next = writer(&bucket).await;
    next.put(rows(&(0..10).map(|id| (id, 7)).collect::<Vec<_>>())).await.unwrap();
    next.flush().await.unwrap();
    merge(&bucket.table().await).await;
    let error = old.provider().await.map(|_| ()).unwrap_err();
    let Error::Resharded { sharding, is_done: true, .. } = &error else { panic!("{error}") };
    assert_eq!(sharding.to_string(), "bucket(id,4)");
    assert!(matches!(old.shards()[0].scan().await.map(|_| ()), Err(Error::Resharded { .. })));
}

/// A table that was split goes as a whole, and what was given up holds nothing.
#[tokio::test]
async fn a_split_table_can_be_deleted_and_one_that_was_given_up_is_collected() {
    let bucket = Bucket::new();
    written(&bucket, &["id"], 2).await;
    let dying = bucket.process();
    let gate = dying.faults.on(Op::Create).path_contains("t/_versions/").nth(2).stall();
    let table = dying.table().await;
    let resharding = tokio::spawn(async move { table.reshard(4, config()).await });
    assert!(meets(&gate, &resharding).await, "at the switch");
    resharding.abort();
    assert!(bucket.table().await.give_up_resharding().await.unwrap());
    merge(&bucket.table().await).await;
    gc(&bucket).await;
    assert_eq!(folders(&bucket).await, BTreeSet::new(), "nobody holds what is merged");

    let bucket = Bucket::new();
    let before = written(&bucket, &["id"], 2).await;
    reshard(&bucket, 4).await.unwrap();
    assert_eq!(bucket.seen().await, before);
    Table::delete(bucket.process().store, &fencepost::DeleteOptions { purge: true, ..Default::default() })
        .await
        .unwrap();
    assert_eq!(objects(&bucket, "/").await, [""; 0]);
}

/// Which shard a row goes to never depends on who asks: an old handle of the table opens the new layout.
#[tokio::test]
async fn an_old_handle_writes_to_the_new_layout() {
    let bucket = Bucket::new();
    let before = written(&bucket, &["id"], 2).await;
    let handle = bucket.table().await;
    let provider = handle.provider().await.unwrap();
    reshard(&bucket, 8).await.unwrap();
    assert_eq!(pairs(provider).await, before, "a snapshot stays");
    assert_eq!(pairs(handle.provider().await.unwrap()).await, before);
    let writer = handle.writer(config()).await.unwrap();
    writer.put(ids(500..520)).await.unwrap();
    assert_eq!(bucket.seen().await, [before, id_pairs(500..520)].concat());
    assert_eq!(layout(&bucket).await, (8, 8));
    let error = handle.shard_writer(fencepost::ShardId::new_random(), config()).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::InvalidOptions(_)), "{error}");
}
