//! Clones of whole tables: whose rows they have, what they hold of each other, and what becomes of them when somebody dies half way.

use std::collections::BTreeMap;
use std::time::Duration;

use fencepost::wal::gc::GcKind;
use fencepost::wal::{Error as WalError, Outcome};
use fencepost::{
    CheckpointOptions, CheckpointScope, CloneOptions, DeleteOptions, Error, Store, Table, TableOptions, TableWriter,
};
use fencepost_sim::{Op, Rng};
use lance::Dataset;
use object_store::ObjectStoreExt;
use uuid::Uuid;

use crate::checkpoints::{at, meets, objects, written};
use crate::gc::{gc, later};
use crate::interop::place::Place;
use crate::merge::merge;
use crate::support::*;

type Rows = Vec<(i64, Option<i64>)>;

/// The store of another table in the bucket, as a process sees it.
fn beside(store: &Store, name: &str) -> Store {
    store.sibling(&format!("memory://it/{name}")).unwrap()
}

async fn table_at(bucket: &Bucket, name: &str) -> Table {
    Table::open(beside(&bucket.process().store, name)).await.unwrap()
}

async fn seen_at(bucket: &Bucket, name: &str) -> Rows {
    pairs(table_at(bucket, name).await.provider().await.unwrap()).await
}

async fn clone(bucket: &Bucket, from: &str, to: &str, checkpoint: Option<Uuid>) -> Table {
    let target = beside(&bucket.process().store, to);
    let options = CloneOptions { checkpoint, ..Default::default() };
    table_at(bucket, from).await.clone_to(target, &options).await.unwrap().0
}

async fn delete(bucket: &Bucket, name: &str) -> fencepost::Result<fencepost::DeleteReport> {
    Table::delete(beside(&bucket.process().store, name), &DeleteOptions::default()).await
}

async fn purge(bucket: &Bucket, name: &str) {
    let options = DeleteOptions { purge: true, ..Default::default() };
    Table::delete(beside(&bucket.process().store, name), &options).await.unwrap();
}

async fn is_whole(bucket: &Bucket, name: &str) {
    let verified = table_at(bucket, name).await.verify(|_| ()).await.unwrap();
    assert!(!verified.is_damaged(), "{name}: {:?}", verified.findings);
}

async fn change(writer: &TableWriter, by: i64) {
    writer.put(rows(&(0..50).map(|id| (id, by + id)).collect::<Vec<_>>())).await.unwrap();
    writer.delete(keys(&[by % 50, 7])).await.unwrap();
    writer.put(ids(by..by + 3)).await.unwrap();
}

#[tokio::test]
async fn a_clone_has_the_checkpoints_rows_and_neither_side_sees_the_others() {
    for sharding in ["unsharded", "bucket(id,4)"] {
        let bucket = Bucket::new();
        let writer = written(&bucket, sharding).await;
        let before = bucket.seen().await;
        let made = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
        change(&writer, 1_000).await;
        let now = bucket.seen().await;

        let target = beside(&bucket.process().store, "c");
        let options = CloneOptions { checkpoint: Some(made.id), ..Default::default() };
        let (table, report) = bucket.table().await.clone_to(target, &options).await.unwrap();
        assert_eq!((report.checkpoint, report.shards as usize), (made.id, made.shards.len()));
        assert!(report.log_entries > 0 && report.log_bytes > 0);
        assert_eq!(table.origin().as_deref(), Some("memory://it/t"));
        assert_eq!(seen_at(&bucket, "c").await, before, "{sharding}");
        assert_eq!(table.primary_key(), ["id"]);
        is_whole(&bucket, "c").await;

        // Both go on: with writes, flushes, merges, collections.
        let its = table.writer(config()).await.unwrap();
        assert_eq!(pairs(its.provider().await.unwrap()).await, before);
        for round in 0..3 {
            change(&its, 2_000 + round).await;
            let its_rows = pairs(its.provider().await.unwrap()).await;
            assert_eq!(pairs(writer.provider().await.unwrap()).await, now);
            its.flush().await.unwrap();
            if round == 1 {
                table.merge(&Default::default(), |_| ()).await.unwrap();
            }
            gc_at(&bucket, "c").await;
            assert_eq!(seen_at(&bucket, "c").await, its_rows);
        }
        let its_rows = seen_at(&bucket, "c").await;
        for round in 0..2 {
            change(&writer, 3_000 + round).await;
            writer.flush().await.unwrap();
            merge(&bucket.table().await).await;
            gc(&bucket).await;
            assert_eq!(seen_at(&bucket, "c").await, its_rows);
        }
        is_whole(&bucket, "c").await;
        is_whole(&bucket, "t").await;
        assert_eq!(at(&bucket, made.id).await, before);
    }
}

async fn gc_at(bucket: &Bucket, name: &str) -> u64 {
    let store = beside(&later(bucket), name);
    let report = Table::open(store).await.unwrap().gc(&crate::gc::at_once(), |_| ()).await.unwrap();
    assert!(report.shards.iter().all(|shard| shard.report.refused.is_none()));
    report.shards.iter().map(|shard| shard.report.of(GcKind::SsTable).objects).sum()
}

/// What is merged into a clone is Lance's as any table, and what it shares is read from its source.
#[tokio::test]
async fn plain_lance_reads_a_clone() {
    let place = Place::sharded(true, "bucket(id,2)".parse().unwrap()).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(ids(0..20)).await.unwrap();
    writer.flush().await.unwrap();
    merge(&place.table().await).await;
    writer.put(ids(20..30)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clone of it").to_str().unwrap().to_owned();
    let target = Store::open(&path, &Default::default()).unwrap();
    let (table, _) = place.table().await.clone_to(target, &CloneOptions::default()).await.unwrap();
    assert_eq!(place.table().await.checkpoints(None).await.unwrap(), [], "the one that it was made of is gone");
    let count = async || Dataset::open(&path).await.unwrap().count_rows(None).await.unwrap();
    assert_eq!(count().await, 20);
    table.flush(config()).await.unwrap();
    table.merge(&Default::default(), |_| ()).await.unwrap();
    assert_eq!(count().await, 30);
    // A row that the source has in its own file is replaced and deleted in the clone alone.
    let its = table.writer(config()).await.unwrap();
    its.put(rows(&[(1, 100)])).await.unwrap();
    its.delete(keys(&[2])).await.unwrap();
    its.close().await.unwrap();
    table.merge(&Default::default(), |_| ()).await.unwrap();
    assert_eq!(count().await, 29);
    let mut expected = id_pairs(0..30);
    expected.remove(2);
    expected[1].1 = Some(100);
    assert_eq!(pairs(table.provider().await.unwrap()).await, expected);
    assert_eq!(place.seen().await, id_pairs(0..30));
    let lance = Dataset::open(&path).await.unwrap();
    lance.validate().await.unwrap();
}

/// Killed in front of, or behind, each of its writes, and run again by another process.
#[tokio::test]
async fn a_clone_may_die_at_every_write_and_is_finished_by_the_next() {
    let (mut deaths, mut unfinished) = (0, 0);
    for behind in [false, true] {
        for nth in 1.. {
            let bucket = Bucket::new();
            let writer = written(&bucket, "bucket(id,2)").await;
            let before = bucket.seen().await;
            let made = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
            let dying = bucket.process();
            let rule = dying
                .faults
                .on_any([Op::Create, Op::Overwrite])
                .path_matches(|path| !path.ends_with("_hint.json"))
                .nth(nth);
            let gate = if behind { rule.stall_after() } else { rule.stall() };
            let table = dying.table().await;
            let target = beside(&dying.store, "c");
            let options = CloneOptions { checkpoint: Some(made.id), ..Default::default() };
            let cloning = tokio::spawn(async move { table.clone_to(target, &options).await });
            if !meets(&gate, &cloning).await {
                cloning.await.unwrap().unwrap();
                break;
            }
            cloning.abort();
            deaths += 1;
            change(&writer, 1_000).await;
            let mut name = "c";
            match Table::open(beside(&bucket.process().store, "c")).await {
                Ok(table) => assert_eq!(pairs(table.provider().await.unwrap()).await, before),
                Err(error) => {
                    unfinished += 1;
                    let is_none = matches!(error, Error::TableNotFound { .. });
                    assert!(is_none || matches!(error, Error::TableNotReady { .. }), "{error}");
                    // Again, or given up and made somewhere else.
                    if nth % 3 == 0 && !is_none {
                        delete(&bucket, "c").await.unwrap();
                        name = "e";
                    }
                    clone(&bucket, "t", name, Some(made.id)).await;
                }
            }
            assert_eq!(seen_at(&bucket, name).await, before, "{nth}");
            is_whole(&bucket, name).await;
            bucket.table().await.delete_checkpoint(made.id).await.unwrap();
            writer.flush().await.unwrap();
            merge(&bucket.table().await).await;
            gc(&bucket).await;
            assert_eq!(seen_at(&bucket, name).await, before, "{nth}");
            let refused = delete(&bucket, "t").await.unwrap_err();
            assert!(refused.to_string().contains(&format!("the clone at memory://it/{name}")), "{refused}");
            // It holds exactly what it needs, by one pin on each shard and one tag.
            delete(&bucket, name).await.unwrap();
            assert_eq!(objects(&bucket, "/t/_refs/tags/").await, [""; 0]);
            delete(&bucket, "t").await.unwrap();
        }
    }
    assert!(deaths > 25 && unfinished > 20, "{deaths} deaths, {unfinished} unfinished");
}

#[tokio::test]
async fn what_cannot_be_cloned_is_said_and_nothing_is_left_half_done() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,2)").await;
    let table = bucket.table().await;
    let clone_to = async |name: &str, checkpoint| {
        let options = CloneOptions { checkpoint, ..Default::default() };
        table.clone_to(beside(table.store(), name), &options).await.map(|_| ()).unwrap_err()
    };
    for inside in ["t", "t/below"] {
        let error = clone_to(inside, None).await;
        assert!(matches!(error, Error::InvalidOptions(_)) && error.to_string().contains("another place"), "{error}");
    }
    let short = CheckpointOptions { lifetime: Some(Duration::from_secs(60)), ..Default::default() };
    let short = writer.checkpoint(&short).await.unwrap();
    let late = Table::open(later(&bucket)).await.unwrap();
    let options = CloneOptions { checkpoint: Some(short.id), ..Default::default() };
    let error = late.clone_to(beside(late.store(), "c"), &options).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NoCheckpoint { .. }), "{error}");
    let error = clone_to("c", Some(Uuid::new_v4())).await;
    assert!(matches!(error, Error::NoCheckpoint { .. }), "{error}");
    assert_eq!(objects(&bucket, "/c/").await, [""; 0]);

    // Somebody else's place.
    clone(&bucket, "t", "c", None).await;
    assert!(matches!(clone_to("c", None).await, Error::TableExists { .. }));
    // A clone of another moment that was not finished.
    let dying = bucket.process();
    let gate = dying.faults.on(Op::Create).path_contains("d/_mem_wal/").nth(1).stall();
    let (first, second) =
        (writer.checkpoint(&Default::default()).await.unwrap(), writer.checkpoint(&Default::default()).await.unwrap());
    let (source, target) = (dying.table().await, beside(&dying.store, "d"));
    let options = CloneOptions { checkpoint: Some(first.id), ..Default::default() };
    let cloning = tokio::spawn(async move { source.clone_to(target, &options).await });
    assert!(meets(&gate, &cloning).await);
    cloning.abort();
    let error = clone_to("d", Some(second.id)).await.to_string();
    assert!(error.contains(&first.id.to_string()) && error.contains("run that again"), "{error}");
    let Err(error) = Table::open(beside(&bucket.process().store, "d")).await else { panic!("it is not finished") };
    assert!(error.to_string().contains("clone of memory://it/t that was not finished"), "{error}");
    // Whoever does not name the checkpoint goes on with that one.
    clone(&bucket, "t", "d", None).await;
    is_whole(&bucket, "d").await;

    let error = delete(&bucket, "nowhere").await.unwrap_err();
    assert!(matches!(error, Error::TableNotFound { .. }), "{error}");
}

/// A clone of a clone, whose checkpoints in between go; nobody in the middle can be deleted, and everything can in the end.
#[tokio::test]
async fn nested_clones_survive_and_are_given_up_from_the_last_to_the_first() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,2)").await;
    let first = bucket.seen().await;
    clone(&bucket, "t", "c", None).await;
    let its = table_at(&bucket, "c").await.writer(config()).await.unwrap();
    change(&its, 100).await;
    its.flush().await.unwrap();
    change(&its, 200).await;
    let second = seen_at(&bucket, "c").await;
    clone(&bucket, "c", "d", None).await;
    let mut last = table_at(&bucket, "d").await.writer(config()).await.unwrap();
    change(&last, 300).await;
    let third = seen_at(&bucket, "d").await;
    assert_eq!(table_at(&bucket, "d").await.origin().as_deref(), Some("memory://it/c"));

    for round in 0..3 {
        for (name, writer) in [("t", &writer), ("c", &its)] {
            change(writer, 1_000 + round).await;
            writer.flush().await.unwrap();
            table_at(&bucket, name).await.merge(&Default::default(), |_| ()).await.unwrap();
            gc_at(&bucket, name).await;
        }
    }
    assert_ne!((&first, &second), (&second, &third));
    assert_eq!(seen_at(&bucket, "d").await, third);
    for (name, by) in [("t", "memory://it/c"), ("c", "memory://it/d")] {
        let before = seen_at(&bucket, name).await;
        let refused = delete(&bucket, name).await.unwrap_err();
        assert!(matches!(&refused, Error::Wal(WalError::Pinned { .. })), "{refused}");
        assert!(refused.to_string().contains(by) || refused.to_string().contains("memory://it/d"), "{refused}");
        assert_eq!(seen_at(&bucket, name).await, before, "nothing has changed");
    }
    // It goes on, merged too: what it shares is read by the merger.
    last.flush().await.unwrap();
    last.close().await.unwrap();
    table_at(&bucket, "d").await.merge(&Default::default(), |_| ()).await.unwrap();
    assert_eq!(seen_at(&bucket, "d").await, third);
    gc_at(&bucket, "d").await;
    assert_eq!(seen_at(&bucket, "d").await, third);
    is_whole(&bucket, "d").await;
    last = table_at(&bucket, "d").await.writer(config()).await.unwrap();

    for name in ["d", "c"] {
        let report = delete(&bucket, name).await.unwrap();
        assert!(report.objects > 10, "{report:?}");
        assert!(delete(&bucket, name).await.unwrap().fences > 0, "again");
    }
    let error = last.put(ids(0..3)).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotWritten, "{error}");
    assert_eq!(objects(&bucket, "/t/_refs/tags/").await, [""; 0]);
    // Nothing holds the source any more: what was merged goes.
    assert!(gc(&bucket).await.shards.iter().map(|s| s.report.of(GcKind::SsTable).objects).sum::<u64>() > 0);
    delete(&bucket, "t").await.unwrap();
    let left = objects(&bucket, "/").await;
    let is_fence = |name: &String| ["/manifest/", "/wal/", "/_versions/"].iter().any(|part| name.contains(part));
    assert!(left.iter().all(is_fence) && left.len() <= 3 + 6 * 4, "{left:?}");
    for name in ["t", "c", "d"] {
        purge(&bucket, name).await;
    }
    assert_eq!(objects(&bucket, "/").await, [""; 0]);
}

/// A clone is deleted and made again at the same place; a writer of the first one wakes up, in the middle of an append or of a flush. What is
/// left of the first one stops it; and if somebody has purged that, it still cannot touch the second one.
#[tokio::test]
async fn schedule_21_a_writer_of_a_deleted_clone_neither_acknowledges_nor_comes_back() {
    for (path, is_purged) in
        [("/wal/", false), ("/manifest/", false), ("/wal/", true), ("/manifest/", true), ("_gen_", true)]
    {
        let bucket = Bucket::new();
        let writer = written(&bucket, "unsharded").await;
        let before = bucket.seen().await;
        let made = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
        clone(&bucket, "t", "c", Some(made.id)).await;
        let slow = bucket.process();
        let its = Table::open(beside(&slow.store, "c")).await.unwrap().writer(config()).await.unwrap();
        its.put(ids(500..510)).await.unwrap();
        let gate = slow.faults.on(Op::Create).path_contains(path).stall();
        let late = tokio::spawn(async move {
            let put = its.put(ids(600..610)).await;
            (put, its.flush().await)
        });
        assert!(meets(&gate, &late).await);
        delete(&bucket, "c").await.unwrap();
        let options = CloneOptions { checkpoint: Some(made.id), ..Default::default() };
        let again = bucket.table().await.clone_to(beside(&bucket.process().store, "c"), &options).await.map(|_| ());
        let error = again.unwrap_err();
        assert!(matches!(&error, Error::TableNotReady { .. }) && error.to_string().contains("--purge"), "{error}");
        if !is_purged {
            gate.release();
            let (put, flushed) = late.await.unwrap();
            assert!(matches!(put, Err(Error::Wal(WalError::Fenced { .. }))) || path == "/manifest/", "{put:?}");
            assert!(flushed.is_err(), "{path}");
            assert_eq!(bucket.seen().await, before);
            continue;
        }
        purge(&bucket, "c").await;
        clone(&bucket, "t", "c", Some(made.id)).await;
        assert_eq!(seen_at(&bucket, "c").await, before);
        let successor = table_at(&bucket, "c").await.writer(config()).await.unwrap();
        successor.put(ids(700..703)).await.unwrap();
        gate.release();
        late.await.unwrap().1.ok();
        let expected = [before, id_pairs(700..703)].concat();
        assert_eq!(seen_at(&bucket, "c").await, expected, "{path}");
        assert_eq!(pairs(successor.provider().await.unwrap()).await, expected);
        successor.flush().await.unwrap();
        is_whole(&bucket, "c").await;
        // The whole table can be written by the next one, too: no shard of the first one is in the way.
        let next = table_at(&bucket, "c").await.writer(config()).await.unwrap();
        next.put(ids(800..803)).await.unwrap();
        merge(&table_at(&bucket, "c").await).await;
        gc_at(&bucket, "c").await;
        assert_eq!(seen_at(&bucket, "c").await, [expected, id_pairs(800..803)].concat());
    }
}

/// A table is deleted; a writer, a merger or another deleter that had stalled wakes up, and meets what is left of it.
#[tokio::test]
async fn schedule_48_a_writer_of_a_deleted_table_meets_what_is_left_of_it() {
    for path in ["/wal/", "/manifest/"] {
        let bucket = Bucket::new();
        keyed(&bucket, 2).await;
        let slow = bucket.process();
        let writer = slow.table().await.writer(config()).await.unwrap();
        writer.put(ids(0..20)).await.unwrap();
        let gate = slow.faults.on(Op::Create).path_contains(path).stall();
        let late = tokio::spawn(async move { (writer.put(ids(30..40)).await, writer.flush().await) });
        assert!(meets(&gate, &late).await);
        let report = delete(&bucket, "t").await.unwrap();
        assert!(report.fences >= 5, "{report:?}");
        gate.release();
        let (put, flushed) = late.await.unwrap();
        assert!(flushed.is_err() && (put.is_err() || path == "/manifest/"), "{path}: {put:?} {flushed:?}");
        // Nobody makes a table among what has to stay.
        let options = TableOptions { primary_key: vec!["id".into()], sharding: "bucket(id,2)".parse().unwrap() };
        let error = Table::create(bucket.process().store, schema(), options.clone()).await.map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, Error::TableNotReady { .. }) && error.to_string().contains("it was deleted"),
            "{error}"
        );
        purge(&bucket, "t").await;
        assert_eq!(objects(&bucket, "/t/").await, [""; 0]);
        let table = Table::create(bucket.process().store, schema(), options).await.unwrap();
        let writer = table.writer(config()).await.unwrap();
        writer.put(ids(100..105)).await.unwrap();
        assert_eq!(bucket.seen().await, id_pairs(100..105));
    }
    // A merger at its commit: the base table does not come back.
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,2)").await;
    writer.close().await.unwrap();
    let slow = bucket.process();
    let gate = slow.faults.on(Op::Create).path_contains("t/_versions/").stall();
    let merging = slow.merger();
    assert!(meets(&gate, &merging).await);
    delete(&bucket, "t").await.unwrap();
    gate.release();
    assert!(merging.await.unwrap().is_err());
    assert!(matches!(Table::open(bucket.process().store).await, Err(Error::TableNotReady { .. })));
    purge(&bucket, "t").await;
}

/// Once everything is pinned, the checkpoint may go before the clone is finished.
#[tokio::test]
async fn a_clone_is_finished_without_its_checkpoint_once_it_has_its_pins() {
    for (path, is_pinned) in [("c/_mem_wal/", false), ("c/_mem_wal/.*/wal/", true)] {
        let bucket = Bucket::new();
        let writer = written(&bucket, "bucket(id,2)").await;
        let before = bucket.seen().await;
        let made = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
        let dying = bucket.process();
        let is_it = move |name: &str| name.contains("c/_mem_wal/") && (path == "c/_mem_wal/" || name.contains("/wal/"));
        let gate = dying.faults.on(Op::Create).path_matches(is_it).stall();
        let (table, target) = (dying.table().await, beside(&dying.store, "c"));
        let options = CloneOptions { checkpoint: Some(made.id), ..Default::default() };
        let cloning = tokio::spawn(async move { table.clone_to(target, &options).await });
        assert!(meets(&gate, &cloning).await);
        cloning.abort();
        bucket.table().await.delete_checkpoint(made.id).await.unwrap();
        change(&writer, 1_000).await;
        writer.flush().await.unwrap();
        merge(&bucket.table().await).await;
        gc(&bucket).await;
        let options = CloneOptions { checkpoint: Some(made.id), ..Default::default() };
        let again = bucket.table().await.clone_to(beside(&bucket.process().store, "c"), &options).await.map(|_| ());
        match is_pinned {
            true => {
                again.unwrap();
                assert_eq!(seen_at(&bucket, "c").await, before);
                is_whole(&bucket, "c").await;
            }
            false => assert!(matches!(again, Err(Error::NoCheckpoint { .. })), "{again:?}"),
        }
        delete(&bucket, "c").await.unwrap();
        assert_eq!(objects(&bucket, "/t/_refs/tags/").await, [""; 0]);
    }
}

/// The pins that a clone needs are proved, too: without them it would be lost later.
#[tokio::test]
async fn a_clone_without_its_pins_is_found() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,2)").await;
    writer.flush().await.unwrap();
    clone(&bucket, "t", "c", None).await;
    is_whole(&bucket, "c").await;
    let shards = table_at(&bucket, "c").await.shard_ids().await.unwrap();
    for id in bucket.table().await.shard_ids().await.unwrap() {
        let source = fencepost::wal::Shard::new(bucket.process().store, id);
        for shard in &shards {
            fencepost::wal::checkpoint::release(&source, *shard).await.unwrap();
        }
    }
    for tag in objects(&bucket, "/t/_refs/tags/fencepost-clone-").await {
        bucket.inner().delete(&tag[1..].into()).await.unwrap();
    }
    let found = table_at(&bucket, "c").await.verify(|_| ()).await.unwrap();
    let mut kinds: Vec<&str> = found.findings.iter().map(|finding| finding.kind.name).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["clone-tag-missing", "pin-missing", "pin-missing"]);
}

/// What is no table, or not all of a table's, stays.
#[tokio::test]
async fn a_deletion_deletes_a_table_and_nothing_else() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "unsharded").await;
    let names = ["t/notes.txt", "t/inner/data/x", "other/data/y", "t/_versions_of_mine/z"];
    for name in names {
        bucket.inner().put(&name.into(), "mine".into()).await.unwrap();
    }
    // Neither a folder of tables nor a Lance dataset without our index.
    let root = bucket.process().store.sibling("memory://it/").unwrap();
    for options in [DeleteOptions::default(), DeleteOptions { purge: true, ..Default::default() }] {
        for store in
            [root.clone(), beside(&bucket.process().store, "other"), beside(&bucket.process().store, "nothing")]
        {
            let error = Table::delete(store, &options).await.unwrap_err();
            assert!(matches!(error, Error::TableNotFound { .. }), "{error}");
        }
    }
    writer.put(ids(90..92)).await.unwrap();
    purge(&bucket, "t").await;
    let left: Vec<String> = objects(&bucket, "/").await.iter().map(|name| name[1..].to_owned()).collect();
    let mut expected: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    expected.sort();
    assert_eq!(left, expected);
}

/// Refused at any point, the table is as it was, for its writer too; a mark of another table is nobody's to take back.
#[tokio::test]
async fn a_refused_deletion_changes_nothing() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,4)").await;
    let before = bucket.seen().await;
    let made = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
    let refused = delete(&bucket, "t").await.unwrap_err();
    assert!(matches!(refused, Error::Wal(WalError::Pinned { .. })), "{refused}");
    writer.put(ids(90..92)).await.unwrap();
    bucket.table().await.delete_checkpoint(made.id).await.unwrap();
    // A checkpoint of one shard comes between the look and the marks.
    let slow = bucket.process();
    let gate = slow.faults.on(Op::Create).path_contains("t/_versions/").stall();
    let store = slow.store.clone();
    let deleting = tokio::spawn(async move { Table::delete(store, &DeleteOptions::default()).await });
    assert!(meets(&gate, &deleting).await);
    let last = *bucket.table().await.shard_ids().await.unwrap().iter().max().unwrap();
    let shard = fencepost::wal::Shard::new(bucket.process().store, last);
    let pinned = fencepost::wal::checkpoint::create(&shard, &Default::default()).await.unwrap();
    gate.release();
    let refused = deleting.await.unwrap().unwrap_err();
    assert!(matches!(refused, Error::Wal(WalError::Pinned { .. })), "{refused}");
    let expected = [before, id_pairs(90..92)].concat();
    assert_eq!(bucket.seen().await, expected);
    is_whole(&bucket, "t").await;
    let next = bucket.table().await.writer(config()).await.unwrap();
    next.put(ids(95..97)).await.unwrap();
    assert_eq!(bucket.seen().await, [expected, id_pairs(95..97)].concat());
    fencepost::wal::checkpoint::delete(&shard, pinned.id).await.unwrap();
    delete(&bucket, "t").await.unwrap();
}

/// Of two deleters, one of which is refused and takes its marks back, none undoes what the other relies on.
#[tokio::test]
async fn a_refused_deletion_takes_nothing_back_that_another_one_relies_on() {
    let bucket = Bucket::new();
    let writer = written(&bucket, "bucket(id,2)").await;
    let shards = bucket.table().await.shard_ids().await.unwrap();
    let (first, last) = (*shards.iter().min().unwrap(), *shards.iter().max().unwrap());
    let slow = bucket.process();
    // It has marked the first shard, and stalls at the second one.
    let gate = slow.faults.on(Op::Create).path_contains(format!("{last}/manifest/")).stall();
    let store = slow.store.clone();
    let refused = tokio::spawn(async move { Table::delete(store, &DeleteOptions::default()).await });
    assert!(meets(&gate, &refused).await);
    delete(&bucket, "t").await.unwrap();
    gate.release();
    let _ = refused.await.unwrap();
    assert!(matches!(Table::open(bucket.process().store).await, Err(Error::TableNotReady { .. })));
    for id in [first, last] {
        let shard = fencepost::wal::Shard::new(bucket.process().store, id);
        assert!(fencepost::wal::ManifestStore::new(shard).latest_existing().await.unwrap().is_deleted());
    }
    assert!(writer.put(ids(0..30)).await.is_err());
    purge(&bucket, "t").await;
}

/// A shard for a new value appears while the table is deleted: it is marked with the others, or its maker finds out.
#[tokio::test]
async fn a_shard_that_appears_during_a_deletion_goes_with_it() {
    let (mut acknowledged, mut refused) = (0, 0);
    for nth in 1..=8 {
        let bucket = Bucket::new();
        create(&bucket, &["id"], "identity(id)").await;
        let writer = bucket.table().await.writer(config()).await.unwrap();
        writer.put(ids(0..2)).await.unwrap();
        let slow = bucket.process();
        let gate = slow.faults.on_any([Op::Create, Op::List]).nth(nth * 4).stall();
        let store = slow.store.clone();
        let deleting = tokio::spawn(async move { Table::delete(store, &DeleteOptions::default()).await });
        let is_met = meets(&gate, &deleting).await;
        match writer.put(ids(5..6)).await {
            Ok(_) => acknowledged += 1,
            Err(_) => refused += 1,
        }
        gate.release();
        deleting.await.unwrap().unwrap();
        assert!(writer.put(ids(5..6)).await.is_err() && writer.put(ids(0..1)).await.is_err(), "{nth} {is_met}");
        assert!(writer.put(ids(7..8)).await.is_err(), "no new shard in what was deleted");
        purge(&bucket, "t").await;
        assert_eq!(objects(&bucket, "/t/").await, [""; 0], "{nth}");
    }
    assert!(acknowledged > 0 && refused > 0, "{acknowledged} {refused}");
}

/// Killed behind each of its writes and deletions, a deletion is finished by the next one; until then the table opens for nobody.
#[tokio::test]
async fn a_deletion_may_die_anywhere_and_is_finished_by_the_next() {
    let mut deaths = 0;
    for nth in 1.. {
        let bucket = Bucket::new();
        let writer = written(&bucket, "bucket(id,2)").await;
        let before = bucket.seen().await;
        clone(&bucket, "t", "c", None).await;
        let dying = bucket.process();
        let gate = dying.faults.on_any([Op::Create, Op::Delete]).nth(nth).stall_after();
        let target = beside(&dying.store, "c");
        let deleting = tokio::spawn(async move { Table::delete(target, &DeleteOptions::default()).await });
        if !meets(&gate, &deleting).await {
            deleting.await.unwrap().unwrap();
            break;
        }
        deleting.abort();
        deaths += 1;
        let again = delete(&bucket, "c").await;
        assert!(matches!(again, Ok(_) | Err(Error::TableNotFound { .. })), "{again:?}");
        assert_eq!(objects(&bucket, "/t/_refs/tags/").await, [""; 0], "{nth}");
        let open = Table::open(beside(&bucket.process().store, "c")).await;
        assert!(matches!(open, Err(Error::TableNotFound { .. } | Error::TableNotReady { .. })));
        assert_eq!(bucket.seen().await, before);
        // Nothing holds the source.
        drop(writer);
        delete(&bucket, "t").await.unwrap();
    }
    assert!(deaths > 10, "{deaths}");
}

#[tokio::test]
async fn a_deleted_tables_folder_goes_on_files() {
    let place = Place::sharded(true, "bucket(id,2)".parse().unwrap()).await;
    let writer = place.table().await.writer(config()).await.unwrap();
    writer.put(ids(0..20)).await.unwrap();
    writer.close().await.unwrap();
    merge(&place.table().await).await;
    let report = Table::delete(place.store(), &DeleteOptions::default()).await.unwrap();
    let left = walk(place.path().as_ref());
    assert_eq!(left.len() as u64, report.fences, "{left:?}");
    let purge = DeleteOptions { purge: true, ..Default::default() };
    Table::delete(place.store(), &purge).await.unwrap();
    assert!(!std::path::Path::new(&place.path()).exists());
}

fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(walk(&entry.path())),
            false => files.push(entry.path().display().to_string()),
        }
    }
    files
}

/// I9: random clone trees, with writes, flushes, merges, checkpoints, collections and deletions on all of them; each table, and each
/// checkpoint, equals a model of its own at every step.
#[tokio::test]
async fn every_table_of_a_random_tree_equals_its_own_model() {
    let (mut clones, mut deleted, mut read_at) = (0, 0, 0);
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let bucket = Bucket::new();
        let sharding = ["unsharded", "bucket(id,2)"][rng.below(2) as usize];
        create(&bucket, &["id"], sharding).await;
        let mut tables: BTreeMap<String, Tree> = BTreeMap::new();
        tables.insert("t".into(), Tree::open(&bucket, "t", BTreeMap::new()).await);
        for step in 0..60 {
            let names: Vec<String> = tables.keys().cloned().collect();
            let name = names[rng.below(names.len() as u64) as usize].clone();
            let (what, may_grow) = (rng.below(20), tables.len() < 5);
            let tree = tables.get_mut(&name).unwrap();
            match what {
                0..=5 => {
                    let from = rng.below(40) as i64;
                    let batch: Vec<(i64, i64)> = (from..from + 6).map(|id| (id, 1_000 * step + id)).collect();
                    tree.writer.put(rows(&batch)).await.unwrap();
                    tree.rows.extend(batch);
                }
                6 | 7 => {
                    let from = rng.below(40) as i64;
                    let doomed: Vec<i64> = (from..from + 4).collect();
                    tree.writer.delete(keys(&doomed)).await.unwrap();
                    tree.rows.retain(|id, _| !doomed.contains(id));
                }
                8 | 9 => tree.writer.flush().await.unwrap(),
                10 | 11 => drop(table_at(&bucket, &name).await.merge(&Default::default(), |_| ()).await.unwrap()),
                12 | 13 => drop(gc_at(&bucket, &name).await),
                // A process dies, another one takes over.
                14 => tree.writer = table_at(&bucket, &name).await.writer(config()).await.unwrap(),
                15 | 16 => {
                    let scope = [CheckpointScope::All, CheckpointScope::Durable][rng.below(2) as usize];
                    let made =
                        tree.writer.checkpoint(&CheckpointOptions { scope, ..Default::default() }).await.unwrap();
                    tree.checkpoints.insert(made.id, tree.rows.clone());
                }
                17 | 18 if may_grow => {
                    let checkpoint = tree.checkpoints.iter().next().filter(|_| rng.below(2) == 0);
                    let (checkpoint, model) = match checkpoint {
                        Some((id, model)) => (Some(*id), model.clone()),
                        None => (None, tree.rows.clone()),
                    };
                    clones += 1;
                    let new = format!("clone{clones}");
                    clone(&bucket, &name, &new, checkpoint).await;
                    tables.insert(new.clone(), Tree::open(&bucket, &new, model).await);
                }
                19 if name != "t" => match delete(&bucket, &name).await {
                    Ok(_) => {
                        deleted += 1;
                        tables.remove(&name);
                    }
                    Err(error) => assert!(matches!(&error, Error::Wal(WalError::Pinned { .. })), "{error}"),
                },
                _ => {
                    // One checkpoint goes, if there is one.
                    if let Some((id, _)) = tree.checkpoints.pop_first() {
                        table_at(&bucket, &name).await.delete_checkpoint(id).await.unwrap();
                    }
                }
            }
            if step % 5 == 0 || what >= 17 {
                for (name, tree) in &tables {
                    assert_eq!(seen_at(&bucket, name).await, model(&tree.rows), "seed {seed} step {step} {name}");
                }
            }
        }
        for (name, tree) in &tables {
            assert_eq!(pairs(tree.writer.provider().await.unwrap()).await, model(&tree.rows), "seed {seed} {name}");
            for (id, then) in &tree.checkpoints {
                let provider = table_at(&bucket, name).await.provider_at(*id).await.unwrap();
                assert_eq!(pairs(provider).await, model(then), "seed {seed} {name} at {id}");
                read_at += 1;
            }
            is_whole(&bucket, name).await;
        }
    }
    assert!(
        clones > 20 && deleted > 3 && read_at > 20,
        "{clones} clones, {deleted} deleted, {read_at} read at checkpoints"
    );
}

struct Tree {
    writer: TableWriter,
    rows: BTreeMap<i64, i64>,
    checkpoints: BTreeMap<Uuid, BTreeMap<i64, i64>>,
}

impl Tree {
    async fn open(bucket: &Bucket, name: &str, rows: BTreeMap<i64, i64>) -> Self {
        let writer = table_at(bucket, name).await.writer(config()).await.unwrap();
        Self { writer, rows, checkpoints: BTreeMap::new() }
    }
}

fn model(rows: &BTreeMap<i64, i64>) -> Rows {
    rows.iter().map(|(id, v)| (*id, Some(*v))).collect()
}
