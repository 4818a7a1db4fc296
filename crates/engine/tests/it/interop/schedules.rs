//! Schedules 30, 31 and 40 of protocol section 13, with the published crate as the other engine.

use fencepost::Error;
use fencepost::wal::{Error as WalError, Position, adopt};
use fencepost_sim::{Fault, Op};

use super::lance::Lance;
use super::model::Model;
use super::place::Place;
use crate::support::{config, ids, rows, small, soon};

fn is_fenced(error: &Error) -> bool {
    matches!(error, Error::Wal(WalError::Fenced { .. }))
}

/// Lance took over from a stalled writer of ours, and we from Lance. Its sentinel is below R and among nobody's
/// fences: collected, it would leave the stalled PUT a free name.
#[tokio::test]
async fn schedule_30_gc_after_another_engine_waits_until_its_fences_are_adopted() {
    let place = Place::new(true).await;
    let process = place.process();
    let w1 = process.writer(config()).await;
    w1.put(ids(0..1)).await.unwrap();
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let stalled = tokio::spawn(async move { w1.put(ids(90..91)).await });
    soon("the PUT at position 3", gate.reached()).await;

    let theirs = place.theirs().await;
    theirs.put(&[(1, 1)]).await;
    theirs.flush().await;
    theirs.die().await;
    let w3 = place.ours(config()).await;
    w3.put(ids(2..3)).await.unwrap();
    w3.flush().await.unwrap();

    // Nothing is collected before somebody looked.
    let refused = place.collect_garbage().await.unwrap_err();
    assert!(matches!(refused, WalError::Unadopted { .. }), "{refused}");
    let adopted = adopt(&place.shard().await).await.unwrap();
    assert_eq!(adopted.fences.iter().map(|f| f.position.get()).collect::<Vec<_>>(), [3]);
    place.collect_garbage().await.unwrap();
    assert!(!place.entry_file(2).await.exists() && !place.entry_file(4).await.exists(), "rows are collected");

    gate.release();
    let error = soon("the stalled PUT", stalled).await.unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    w3.put(ids(3..4)).await.unwrap();
    w3.close().await.unwrap();
    assert_eq!(place.seen().await, crate::support::id_pairs(0..4));
    place.collect_garbage().await.unwrap();
}

/// The same with a dead entry on the stalled writer's next position: Lance takes its rows for live ones and flushes
/// them, and it is the only thing that stands there.
#[tokio::test]
async fn schedule_30_a_dead_entry_that_lance_flushed_stays_too() {
    let place = Place::new(false).await;
    let w1 = place.ours(config()).await;
    w1.put(ids(0..1)).await.unwrap();
    drop(w1);
    let process = place.process();
    let w2 = process.writer(config()).await;
    let gate = process.faults.on(Op::Create).path_contains("/wal/").stall();
    let stalled = tokio::spawn(async move { w2.put(ids(90..91)).await });
    soon("the PUT at position 4", gate.reached()).await;
    // A request of W1 lands there after all.
    place.straggle(2, 4).await;

    let theirs = place.theirs().await;
    theirs.put(&[(1, 1)]).await;
    theirs.flush().await;
    theirs.die().await;
    let w4 = place.ours(config()).await;
    w4.flush().await.unwrap();
    adopt(&place.shard().await).await.unwrap();
    place.collect_garbage().await.unwrap();
    assert!(!place.entry_file(2).await.exists(), "rows are collected");
    assert!(place.entry_file(4).await.exists(), "the dead entry is a fence");

    gate.release();
    let error = soon("the stalled PUT", stalled).await.unwrap().unwrap_err();
    assert!(is_fenced(&error), "{error}");
    w4.close().await.unwrap();
    // Lance knows no dead entries: the row of the straggler is there twice. Never less than what was acknowledged.
    assert_eq!(place.seen().await, [(0, Some(0)), (0, Some(0)), (1, Some(1))]);
}

/// Unflushed tenures of either engine, one after the other.
#[derive(Debug, Clone, Copy)]
enum Tenure {
    Ours(i64),
    Lances(i64),
}
use Tenure::{Lances, Ours};

/// A log of these tenures, each of that many entries of one row, every one of which crashed.
async fn log_of(tenures: &[Tenure], keyed: bool) -> (Place, Model) {
    let (place, mut model) = (Place::new(keyed).await, Model::new(keyed));
    let mut id = 0;
    let mut next = |entries| {
        id += entries;
        id - entries..id
    };
    for tenure in tenures {
        match tenure {
            Ours(entries) => {
                let writer = place.ours(config()).await;
                for id in next(*entries) {
                    writer.put(rows(&[(id, id)])).await.unwrap();
                    model.put(&[(id, id)]);
                }
            }
            Lances(entries) => {
                let writer = place.theirs().await;
                for id in next(*entries) {
                    writer.put(&[(id, id)]).await;
                    model.put(&[(id, id)]);
                }
                writer.die().await;
            }
        }
    }
    (place, model)
}

/// A replay of Lance's entries, all stamped with one generation, reaches a MemTable's limit in the middle of them. If a
/// part of them were published as that generation, the rest would count as published with it.
async fn every_crash_of_a_replay_keeps_every_row(tenures: &[Tenure], keyed: bool) {
    let (place, model) = log_of(tenures, keyed).await;
    for max_rows in [1, 2, 3] {
        // Its manifests: claim, record, then one for each SSTable. It dies before the nth, or comes through.
        for nth in 1.. {
            let what = format!("{tenures:?}, at most {max_rows} rows, dies before manifest {nth}");
            let place = place.copy();
            let process = place.process();
            let gate = process.faults.on(Op::Create).path_contains("/manifest/").nth(nth).stall();
            let opening = tokio::spawn(async move { process.writer(small(max_rows)).await });
            let came_through = soon(&what, async {
                tokio::select! {
                    () = gate.reached() => false,
                    () = async { while !opening.is_finished() { tokio::task::yield_now().await } } => true,
                }
            })
            .await;
            opening.abort();
            let _ = opening.await;
            assert_eq!(place.seen().await, model.rows(), "{what}");

            let theirs = place.theirs().await;
            assert_eq!(theirs.seen().await, model.rows(), "{what}, then Lance");
            theirs.die().await;
            place.ours(small(max_rows)).await.close().await.unwrap();
            assert_eq!(place.seen().await, model.rows(), "{what}, then Lance, then we");
            if came_through {
                assert!(nth > 3, "{what}: nothing was flushed on the way");
                break;
            }
        }
    }
}

#[tokio::test]
async fn schedule_31_a_replay_of_lances_entries_is_published_as_a_whole() {
    every_crash_of_a_replay_keeps_every_row(&[Lances(5), Ours(4)], true).await;
}

#[tokio::test]
async fn schedule_31_with_entries_of_ours_in_front() {
    every_crash_of_a_replay_keeps_every_row(&[Ours(3), Lances(4), Ours(3)], false).await;
}

#[tokio::test]
async fn schedule_31_with_entries_of_ours_in_between() {
    every_crash_of_a_replay_keeps_every_row(&[Lances(3), Ours(3), Lances(3), Ours(3)], true).await;
}

/// A writer that has taken Lance's entries into its MemTable goes on: the first SSTable covers them all, also if a
/// flush comes at once, and also if its answer is lost.
#[tokio::test]
async fn schedule_31_the_first_flush_after_a_takeover_covers_all_of_lances_entries() {
    let (place, mut model) = log_of(&[Ours(2), Lances(6)], false).await;
    let process = place.process();
    let ours = process.writer(small(2)).await;
    process.faults.on(Op::Create).path_contains("/manifest/").then(Fault::LostAck);
    ours.put(rows(&[(100, 100)])).await.unwrap();
    model.put(&[(100, 100)]);
    ours.flush().await.unwrap();
    let manifest = place.manifest().await;
    assert_eq!(manifest.sstables[0].physical_rows.map(|n| n >= 8), Some(true), "{manifest:?}");
    assert_eq!(place.seen().await, model.rows());
    drop(ours);
    // Stamps of the next generation are live again.
    let theirs = place.theirs().await;
    theirs.put(&[(200, 200), (201, 201), (202, 202)]).await;
    model.put(&[(200, 200), (201, 201), (202, 202)]);
    theirs.die().await;
    assert_eq!(place.seen().await, model.rows());
    place.ours(small(2)).await.close().await.unwrap();
    assert_eq!(place.seen().await, model.rows());
    assert!(place.manifest().await.replay_after > Position::ZERO);
}

/// Lance takes a 409 with nothing landed for a position that is taken, and acknowledges an entry behind the hole.
#[tokio::test]
async fn schedule_40_what_lance_acknowledged_behind_a_hole_is_refused_and_not_lost() {
    let place = Place::new(true).await;
    let ours = place.ours(config()).await;
    ours.put(rows(&[(1, 1)])).await.unwrap();
    let shard = ours.shard_id();
    let lance = Lance::open_with(&place.path(), shard, |faults| {
        // Its sentinel, one entry, and the next.
        drop(faults.on(Op::Rename).path_contains("/wal/").nth(3).then(Fault::Conflict409));
    })
    .await;
    let theirs = lance.writer().await;
    theirs.put(&[(2, 2)]).await;
    theirs.put(&[(3, 3)]).await;
    assert!(!place.entry_file(5).await.exists() && place.entry_file(6).await.exists(), "the hole, and what is behind");
    theirs.die().await;

    let refused = place.process().table().await.shard_writer(shard, config()).await.unwrap_err();
    let stranded = matches!(&refused, Error::Wal(WalError::Stranded { position, .. }) if position.get() == 6);
    assert!(stranded, "{refused}");
    // As the error says: Lance fills the hole and flushes.
    let theirs = place.theirs().await;
    let expected = [(1, Some(1)), (2, Some(2)), (3, Some(3))];
    assert_eq!(theirs.seen().await, expected);
    theirs.flush().await;
    theirs.die().await;
    assert_eq!(place.seen().await, expected);
    let ours = place.ours(config()).await;
    ours.put(rows(&[(4, 4)])).await.unwrap();
    ours.close().await.unwrap();
    assert_eq!(place.seen().await, [&expected[..], &[(4, Some(4))]].concat());
}
