//! Taking over from a writer that never pauses (schedule 35): sentinels side by side, claimants that die between them,
//! and what the next claim makes of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fencepost_sim::{Fault, Gate, Latency, LatencyStore, Op};
use fencepost_wal::gc::BaseProgress;
use fencepost_wal::{
    EntryKind, Error, ManifestStore, OpenOptions, Position, Replay, Result, Shard, WalAppender, WalConfig, WalWriter,
};
use tokio::task::JoinHandle;

use crate::support::{Bucket, Process, append, batch, bucket, replayed, schema, settle};

fn wide(fence_width: usize) -> OpenOptions {
    OpenOptions { fence_width, ..OpenOptions::default() }
}

/// A process that is so far from the store.
fn at_distance(bucket: &Bucket, latency: Latency, seed: u64) -> (Process, Shard) {
    let process = bucket.process();
    let slow = |inner| Arc::new(LatencyStore::new(inner, latency, seed)) as _;
    let shard = Shard::new(process.shard.store().clone().wrapped(slow), process.shard.id());
    (process, shard)
}

/// A writer beyond its serial zone; the rows so far are -1 to -33.
async fn writer_beyond_the_zone(shard: &Shard, max_in_flight: usize) -> WalWriter {
    let config = WalConfig { max_in_flight, ..WalConfig::default() };
    let (writer, _) = WalWriter::open(shard, schema(), config, &OpenOptions::default()).await.unwrap();
    for id in 1..=33 {
        writer.append(batch([-id])).await.unwrap();
    }
    writer
}

/// Clients of a writer, each of which appends a row the moment the last one is durable, until the writer stops.
/// Collects what was acknowledged.
fn busy_clients(
    writer: &Arc<WalWriter>,
    clients: usize,
) -> (Vec<tokio::task::JoinHandle<Error>>, Arc<Mutex<Vec<i64>>>) {
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let clients = (0..clients as i64).map(|client| {
        let (writer, acknowledged) = (Arc::clone(writer), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(client as u64)).await;
            let mut id = client * 1_000_000;
            loop {
                match writer.append(batch([id])).await {
                    Ok(_) => acknowledged.lock().unwrap().push(id),
                    Err(error) => return error,
                }
                id += 1;
            }
        })
    });
    (clients.collect(), acknowledged)
}

#[tokio::test(start_paused = true)]
async fn schedule_35_a_predecessor_that_never_pauses_and_is_nearer_is_taken_over() {
    // Milliseconds, from and to. As far as a PUT of the claimant arrives before the old writer has gone on by 32.
    let cases = [(1, (5, 15), (20, 60)), (4, (5, 15), (10, 30)), (4, (20, 40), (60, 100)), (32, (25, 75), (30, 90))];
    for (window, old_latency, new_latency) in cases {
        for seed in 0..4 {
            let bucket = bucket().await;
            let (_, near) = at_distance(&bucket, Latency::uniform(old_latency.0..old_latency.1), seed);
            let old = Arc::new(writer_beyond_the_zone(&near, window).await);
            let (clients, acknowledged) = busy_clients(&old, window);
            tokio::time::sleep(Duration::from_secs(2)).await;

            let (process, far) = at_distance(&bucket, Latency::uniform(new_latency.0..new_latency.1), 100 + seed);
            let (mut new, replay) = WalAppender::open(&far, &OpenOptions::default()).await.unwrap();
            // 1, 2, 4, 8, 16 and then 32 at a time.
            let sentinels = process.requests(Op::Create, "/wal/");
            let rounds = if sentinels < 63 { sentinels.ilog2() + 1 } else { 5 + (sentinels as u32 - 31).div_ceil(32) };
            assert!(rounds <= 12, "{rounds} rounds, window {window}, seed {seed}");

            for client in clients {
                let error = client.await.unwrap();
                assert!(matches!(error, Error::Fenced { by, .. } if by == new.epoch()), "{error}");
            }
            append(&mut new, [7]).await.unwrap();
            let mut rows = replayed(replay).await;
            let mut in_log = bucket.rows().await;
            assert_eq!(in_log.pop(), Some(7));
            assert_eq!(in_log, rows);
            rows.retain(|id| *id >= 0);
            rows.sort_unstable();
            let unique = rows.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(unique, "I2: no row twice");
            let acknowledged = acknowledged.lock().unwrap();
            assert!(acknowledged.len() > 50);
            assert!(acknowledged.iter().all(|id| rows.binary_search(id).is_ok()), "I1");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_try_puts_as_many_sentinels_as_it_was_told_to() {
    let bucket = bucket().await;
    for fence_width in [0, 33] {
        let refused = fencepost_wal::open(&bucket.shard(), &wide(fence_width)).await;
        assert!(matches!(refused, Err(Error::InvalidArgument(_))));
    }
    assert_eq!(bucket.manifest().await.version.get(), 1, "refused before anything was claimed");
    let (mut w1, _) = WalAppender::open(&bucket.shard(), &wide(32)).await.unwrap();
    assert_eq!(w1.tenure().sentinel().get(), 32);
    assert_eq!(append(&mut w1, [1]).await.unwrap().get(), 33);
    assert_eq!(bucket.manifest().await.last_seen.get(), 32);
    assert_eq!(bucket.fences().await, (1..=32).map(|p| (p, 1)).collect::<Vec<_>>());
    w1.close().await.unwrap();
    // After a clean close nobody can collide with them.
    let (mut w2, _) = WalAppender::open(&bucket.shard(), &wide(4)).await.unwrap();
    assert_eq!(w2.tenure().sentinel().get(), 37);
    assert_eq!(bucket.fences().await.len(), 32);
    append(&mut w2, [2]).await.unwrap();
    assert_eq!(bucket.rows().await, [1, 2]);
}

/// A claimant that has sent its four sentinels, at `first` and behind. They are on the wire.
async fn four_on_the_wire(bucket: &Bucket) -> (Process, tokio::task::JoinHandle<Result<WalAppender, Error>>, u64) {
    let process = bucket.process();
    process.faults.on(Op::Create).path_contains("/wal/").times(4).then(Fault::InFlight);
    let opening = tokio::spawn({
        let shard = process.shard.clone();
        async move { WalAppender::open(&shard, &wide(4)).await.map(|(appender, _)| appender) }
    });
    for _ in 0..10 {
        settle().await;
    }
    let first = bucket.log().await.last().unwrap().0 + 1;
    let expected: Vec<_> = (first..first + 4).map(|p| bucket.entry_path(p)).collect();
    assert_eq!(process.faults.late(), expected);
    (process, opening, first)
}

/// Lands those of the claimant's sentinels that the bits of `mask` choose.
async fn land(bucket: &Bucket, process: &Process, first: u64, mask: u64) {
    let chosen: Vec<String> =
        (0..4).filter(|n| mask >> n & 1 == 1).map(|n| bucket.entry_path(first + n).to_string()).collect();
    process.faults.land_late_where(|path| chosen.iter().any(|chosen| chosen == path)).await;
}

/// When the sentinels land that did not land before their claimant died.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rest {
    Never,
    BeforeTheNextClaim,
    WhileTheNextWrites,
}

#[tokio::test(start_paused = true)]
async fn a_claimant_that_dies_after_any_part_of_its_range_costs_no_row() {
    for window in [1, 4, 32] {
        for mask in 0..16 {
            for rest in [Rest::Never, Rest::BeforeTheNextClaim, Rest::WhileTheNextWrites] {
                let name = format!("window {window}, landed {mask:04b}, the rest {rest:?}");
                let bucket = bucket().await;
                let w1 = writer_beyond_the_zone(&bucket.shard(), window).await;
                let (w2, opening, first) = four_on_the_wire(&bucket).await;
                land(&bucket, &w2, first, mask).await;
                opening.abort();
                let _ = opening.await;

                // The old writer goes on. It meets the first sentinel that landed, if one did.
                let mut appends = Vec::new();
                for id in 1..=40 {
                    let durable = w1.append_urgent(batch([id])).await;
                    settle().await;
                    appends.push((id, durable));
                }
                let mut acknowledged: Vec<i64> = (1..=33).map(|id| -id).collect();
                for (id, durable) in appends {
                    match durable {
                        Ok(durable) => acknowledged.extend(durable.await.is_ok().then_some(id)),
                        Err(error) => assert!(matches!(error, Error::Fenced { .. }), "{name}: {error}"),
                    }
                }
                let expected = if mask == 0 { 40 } else { i64::from(mask.trailing_zeros()) };
                assert_eq!(acknowledged.len() as i64 - 33, expected, "{name}");

                if rest == Rest::BeforeTheNextClaim {
                    w2.faults.land_late().await;
                }
                let (mut w3, replay) = bucket.process().open().await.unwrap_or_else(|e| panic!("{name}: {e}"));
                let replayed = replayed(replay).await;
                assert!(replayed.starts_with(&acknowledged), "I1, {name}: {replayed:?}");
                let mut rows = replayed.clone();
                for id in 100..140 {
                    rows.push(id);
                    append(&mut w3, [id]).await.unwrap_or_else(|e| panic!("{name}: {e}"));
                    if id == 100 && rest == Rest::WhileTheNextWrites {
                        w2.faults.land_late().await;
                    }
                }
                assert_eq!(bucket.rows().await, rows, "I2, {name}");
                assert!(w1.append(batch([99])).await.is_err(), "I3, {name}");

                // And once all of it was collected, it is no different to the next.
                let last = w3.tenure().acknowledged();
                w3.truncate(Position::new(last.get() - 1)).await.unwrap();
                bucket.collect_garbage().await;
                w2.faults.land_late().await;
                let (_, replay) = bucket.process().open().await.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(crate::support::replayed(replay).await, [139], "{name}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_sentinel_at_the_end_of_a_range_is_no_hole_in_the_log() {
    // The whole of the reach: 31 positions that nobody has written, and behind them one sentinel. The old writer goes
    // on through them, or does not.
    for goes_on in [false, true] {
        let bucket = bucket().await;
        let w1 = writer_beyond_the_zone(&bucket.shard(), 32).await;
        let process = bucket.process();
        process.faults.on(Op::Create).path_contains("/wal/").times(32).then(Fault::InFlight);
        let opening = tokio::spawn({
            let shard = process.shard.clone();
            async move { WalAppender::open(&shard, &wide(32)).await.map(|_| ()) }
        });
        settle().await;
        let first = bucket.log().await.last().unwrap().0 + 1;
        let last = bucket.entry_path(first + 31).to_string();
        assert_eq!(process.faults.land_late_where(|path| path == last).await.len(), 1);
        opening.abort();
        let mut rows: Vec<i64> = (1..=33).map(|id| -id).collect();
        if goes_on {
            for id in 0..31 {
                w1.append(batch([id])).await.unwrap();
                rows.push(id);
            }
            assert!(w1.append(batch([31])).await.is_err());
        }
        let (mut w3, replay) = bucket.process().open().await.unwrap();
        assert_eq!(replayed(replay).await, rows);
        for id in 100..140 {
            append(&mut w3, [id]).await.unwrap();
            rows.push(id);
        }
        assert_eq!(bucket.rows().await, rows);
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_says_of_each_position_whether_it_is_live() {
    // The old writer has PUTs under way at all four positions of the range; these land before the claimant's.
    for landed in 0..16u64 {
        let bucket = bucket().await;
        let old = bucket.process();
        let w1 = writer_beyond_the_zone(&old.shard, 4).await;
        old.faults.on(Op::Create).path_contains("/wal/").times(4).then(Fault::InFlight);
        let mut durable = Vec::new();
        for id in 0..4 {
            durable.push(w1.append_urgent(batch([id])).await.unwrap());
            settle().await;
        }
        let (w2, opening, first) = four_on_the_wire(&bucket).await;
        land(&bucket, &old, first, landed).await;
        land(&bucket, &w2, first, 15).await;
        if landed == 15 {
            // All four were taken: the claimant reads on, and eight sentinels follow.
            let new = opening.await.unwrap().unwrap();
            assert_eq!(new.tenure().sentinel().get(), first + 4 + 7);
            for durable in durable {
                durable.await.unwrap();
            }
            continue;
        }
        let mut new = opening.await.unwrap().unwrap();
        assert_eq!(new.tenure().sentinel().get(), first + 3, "{landed:04b}");
        let live = u64::from(landed.trailing_ones());
        let kinds: Vec<EntryKind> = bucket.log().await.into_iter().filter(|e| e.0 >= first).map(|e| e.2).collect();
        let expected: Vec<EntryKind> = (0..4)
            .map(|n| match landed >> n & 1 {
                0 => EntryKind::Sentinel,
                _ if n < live => EntryKind::Rows,
                _ => EntryKind::Dead,
            })
            .collect();
        assert_eq!(kinds, expected, "{landed:04b}");
        // Whatever is not live is kept.
        let fences: Vec<u64> = bucket.fences().await.iter().map(|f| f.0).filter(|p| *p >= first).collect();
        assert_eq!(fences, (first + live..first + 4).collect::<Vec<_>>(), "{landed:04b}");
        assert_eq!(bucket.manifest().await.last_seen.get(), first + 3);
        assert_eq!(append(&mut new, [100]).await.unwrap().get(), first + 4);

        old.faults.land_late().await;
        let mut acknowledged = 0;
        for durable in durable {
            acknowledged += u64::from(durable.await.is_ok());
        }
        assert_eq!(acknowledged, live, "I3, {landed:04b}");
        let rows: Vec<i64> = bucket.rows().await.into_iter().filter(|id| *id >= 0).collect();
        assert_eq!(rows, (0..live as i64).chain([100]).collect::<Vec<_>>(), "{landed:04b}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_claimants_whose_ranges_cross_leave_one_owner() {
    for mask in 0..16 {
        let bucket = bucket().await;
        let mut w1 = bucket.process().appender().await;
        append(&mut w1, [1]).await.unwrap();
        let (w2, older, first) = four_on_the_wire(&bucket).await;
        let (w3, newer, _) = four_on_the_wire(&bucket).await;
        land(&bucket, &w2, first, mask).await;
        land(&bucket, &w3, first, 15).await;
        w2.faults.land_late().await;
        let older = older.await.unwrap();
        let mut newer = newer.await.unwrap().unwrap_or_else(|e| panic!("{mask:04b}: {e}"));
        let error = older.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Fenced { by, .. } if by == newer.epoch()), "{mask:04b}: {error}");
        assert!(matches!(append(&mut w1, [2]).await, Err(Error::Fenced { .. })));
        append(&mut newer, [3]).await.unwrap();
        assert_eq!(bucket.rows().await, [1, 3], "{mask:04b}");
    }
}

/// A shard whose writer has declared everything consumed: nothing is to be replayed.
async fn consumed(bucket: &Bucket) -> WalWriter {
    let old = bucket.process().writer(WalConfig::default()).await;
    let last = old.append(batch([1])).await.unwrap();
    old.truncate(last).await.unwrap();
    old
}

/// An opening whose LIST of the log has not been sent; everything beside it was answered.
async fn opens_behind_its_list(process: &Process) -> (Gate, JoinHandle<Result<(WalAppender, Replay)>>) {
    let list = process.faults.on(Op::List).path_contains("/wal").stall();
    let shard = process.shard.clone();
    let opening = tokio::spawn(async move { WalAppender::open(&shard, &OpenOptions::default()).await });
    list.reached().await;
    settle().await;
    (list, opening)
}

#[tokio::test(start_paused = true)]
async fn the_position_behind_r_is_read_beside_the_list_and_again_if_something_came_in_between() {
    for lands in [false, true] {
        let bucket = bucket().await;
        let old = consumed(&bucket).await;
        let next = old.stats().next_position;
        let process = bucket.process();
        let (list, opening) = opens_behind_its_list(&process).await;
        let entry = bucket.entry_path(next.get());
        assert_eq!(process.requests(Op::Get, entry.as_ref()), 1, "it was absent");
        if lands {
            assert_eq!(old.append(batch([2])).await.unwrap(), next);
        }
        list.release();
        let (_, replay) = opening.await.unwrap().unwrap();
        assert_eq!(replayed(replay).await, if lands { vec![2] } else { vec![] });
        // If it came before the sentinel, it is read where it was absent, and the two positions behind it.
        assert_eq!(process.requests(Op::Get, "/wal/"), if lands { 4 } else { 1 });
    }
}

/// What the LIST shows is no gain of a writer that is faster than the claimant, however much it is.
#[tokio::test(start_paused = true)]
async fn a_log_that_was_empty_before_the_list_and_long_in_it_is_read_in_all() {
    let bucket = bucket().await;
    let old = consumed(&bucket).await;
    let next = old.stats().next_position.get();
    let process = bucket.process();
    let (list, opening) = opens_behind_its_list(&process).await;
    old.append(batch([0])).await.unwrap();
    // The same entry, 16,500 times.
    for position in next + 1..next + 16_500 {
        bucket.copy_entry(next, position).await;
    }
    list.release();
    let (_, replay) = opening.await.unwrap().unwrap();
    assert_eq!(replay.rows(), 16_500);
}

/// What happens between the look at a shard and the claim that starts from it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meanwhile {
    Nothing,
    Rows,
    Truncation,
    Claim,
    ClaimTruncationAndCollection,
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_starts_from_an_old_manifest_finds_what_one_that_reads_the_newest_finds() {
    use Meanwhile::{Claim, ClaimTruncationAndCollection, Nothing, Rows, Truncation};
    for meanwhile in [Nothing, Rows, Truncation, Claim, ClaimTruncationAndCollection] {
        let bucket = bucket().await;
        let old = bucket.process().writer(WalConfig::default()).await;
        let first = old.append(batch([1])).await.unwrap();
        let process = bucket.process();
        let seen = ManifestStore::new(process.shard.clone()).see().await.unwrap();
        assert!(seen.is_some());
        let mut expected = vec![1];
        let mut epoch = 1;
        match meanwhile {
            Nothing => {}
            Rows => {
                old.append(batch([2])).await.unwrap();
                expected.push(2);
            }
            Truncation => {
                old.truncate(first).await.unwrap();
                expected.clear();
            }
            Claim | ClaimTruncationAndCollection => {
                let other = bucket.process().writer(WalConfig::default()).await;
                epoch += 1;
                let last = other.append(batch([2])).await.unwrap();
                expected.push(2);
                if meanwhile == ClaimTruncationAndCollection {
                    other.truncate(last).await.unwrap();
                    other.append(batch([3])).await.unwrap();
                    expected = vec![3];
                    bucket.process().collect(&BaseProgress::default()).await.unwrap();
                }
            }
        }
        process.faults.clear_log();
        let opened = fencepost_wal::open_seen(&process.shard, &OpenOptions::default(), seen).await.unwrap();
        assert_eq!(opened.tenure.epoch().get(), epoch + 1, "{meanwhile:?}");
        assert_eq!(replayed(opened.replay).await, expected, "{meanwhile:?}");
        // Only a manifest that is not the newest any more is read again.
        let is_stale = !matches!(meanwhile, Nothing | Rows);
        assert_eq!(process.requests(Op::Get, "/manifest/") > 0, is_stale, "{meanwhile:?}");
    }
}
