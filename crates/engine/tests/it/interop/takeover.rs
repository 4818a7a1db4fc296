//! Fencepost reads, replays, takes over and flushes what Lance wrote, and each of them fences the other.

use std::io::Write;

use fencepost::wal::{Error as WalError, ManifestVersion};
use fencepost::{Error, Sharding};
use futures::TryStreamExt;

use super::lance::Lance;
use super::place::{Place, file};
use crate::support::{config, keys, pairs, rows, scanned, small};

/// What Lance acknowledged before it died: puts over two entries, with a key also an update and a deletion.
async fn written_by_lance(place: &Place, keyed: bool, memtable: bool) -> Vec<(i64, Option<i64>)> {
    let lance = place.lance().await;
    let theirs = lance.writer_with(Lance::config().with_enable_memtable(memtable)).await;
    theirs.put(&[(1, 1), (2, 2), (3, 3)]).await;
    theirs.put(&[(4, 4)]).await;
    if keyed {
        theirs.put(&[(2, 20)]).await;
    }
    if keyed && memtable {
        theirs.delete(&[3]).await;
    }
    theirs.die().await;
    match (keyed, memtable) {
        (true, true) => vec![(1, Some(1)), (2, Some(20)), (4, Some(4))],
        (true, false) => vec![(1, Some(1)), (2, Some(20)), (3, Some(3)), (4, Some(4))],
        (false, _) => vec![(1, Some(1)), (2, Some(2)), (3, Some(3)), (4, Some(4))],
    }
}

#[tokio::test]
async fn we_replay_and_flush_lances_log() {
    for keyed in [true, false] {
        for memtable in [true, false] {
            let place = Place::new(keyed).await;
            let mut expected = written_by_lance(&place, keyed, memtable).await;
            let stamped = place.lance().await.tailer().await.read_entry(1).await.unwrap().unwrap();
            assert_eq!(format!("{stamped:?}").contains("generation: Some(1)"), memtable, "Lance's stamp");
            assert_eq!(place.seen().await, expected, "before anybody took over");

            let ours = place.ours(config()).await;
            assert_eq!(scanned(&ours).await, expected);
            ours.put(rows(&[(9, 9)])).await.unwrap();
            expected.push((9, Some(9)));
            ours.flush().await.unwrap();
            assert_eq!(place.seen().await, expected);
            let manifest = place.manifest().await;
            assert_eq!((manifest.sstables.len(), manifest.current_generation.get()), (1, 2));
            ours.close().await.unwrap();
            assert_eq!(place.seen().await, expected);
            let theirs = place.theirs().await;
            assert!(theirs.memtable().await.is_empty());
            assert_eq!(theirs.seen().await, expected, "keyed {keyed}, MemTable {memtable}");
            theirs.die().await;
        }
    }
}

/// Within one SSTable Lance hides the older version of a key by a deletion vector.
#[tokio::test]
async fn we_read_lances_sstables_and_hide_their_rows() {
    let place = Place::new(true).await;
    let theirs = place.theirs().await;
    theirs.put(&[(1, 1), (2, 2), (3, 3)]).await;
    theirs.put(&[(1, 10), (2, 20)]).await;
    theirs.delete(&[2]).await;
    theirs.flush().await;
    let manifest = theirs.lance.manifest().await;
    let sstable = theirs.lance.sstable(&manifest.sstables[0].path).await;
    assert!(sstable.get_fragments()[0].metadata().deletion_file.is_some());
    assert_eq!(place.seen().await, [(1, Some(10)), (3, Some(3))]);
    // Its second one hides rows of its first.
    theirs.put(&[(2, 200), (3, 30)]).await;
    theirs.flush().await;
    theirs.put(&[(4, 4)]).await;
    assert_eq!(place.seen().await, [(1, Some(10)), (2, Some(200)), (3, Some(30)), (4, Some(4))]);
    theirs.die().await;

    // And ours hides rows of both.
    let ours = place.ours(config()).await;
    ours.delete(keys(&[1, 4])).await.unwrap();
    ours.put(rows(&[(2, 2000)])).await.unwrap();
    let expected = [(2, Some(2000)), (3, Some(30))];
    assert_eq!(place.seen().await, expected);
    ours.close().await.unwrap();
    assert_eq!(place.manifest().await.sstables.len(), 3);
    assert_eq!(place.seen().await, expected);
    let theirs = place.theirs().await;
    assert_eq!(theirs.seen().await, expected);
    theirs.die().await;
}

#[tokio::test]
async fn we_read_lances_sstables_of_a_table_without_a_key() {
    let place = Place::new(false).await;
    let theirs = place.theirs().await;
    theirs.put(&[(1, 1), (1, 1)]).await;
    theirs.flush().await;
    theirs.put(&[(1, 1), (2, 2)]).await;
    theirs.close().await;
    let ours = place.ours(config()).await;
    ours.put(rows(&[(1, 1)])).await.unwrap();
    ours.close().await.unwrap();
    assert_eq!(place.seen().await, [(1, Some(1)), (1, Some(1)), (1, Some(1)), (1, Some(1)), (2, Some(2))]);
    assert_eq!(place.manifest().await.sstables.len(), 3);
}

#[tokio::test]
async fn a_takeover_fences_lances_writer_before_it_acknowledges_anything_more() {
    for memtable in [true, false] {
        let place = Place::new(true).await;
        let lance = place.lance().await;
        let theirs = lance.writer_with(Lance::config().with_enable_memtable(memtable)).await;
        theirs.put(&[(1, 1)]).await;
        let ours = place.ours(config()).await;
        theirs.try_put(&[(2, 2)]).await.unwrap_err();
        if memtable {
            // Neither does it publish.
            let before = place.manifest().await;
            assert!(theirs.writer.force_freeze_active().await.is_err());
            assert_eq!(place.manifest().await, before);
        }
        ours.put(rows(&[(3, 3)])).await.unwrap();
        assert_eq!(place.seen().await, [(1, Some(1)), (3, Some(3))]);
        theirs.die().await;
    }
}

#[tokio::test]
async fn a_takeover_by_lance_fences_us_before_we_acknowledge_anything_more() {
    let place = Place::new(true).await;
    let ours = place.ours(config()).await;
    ours.put(rows(&[(1, 1)])).await.unwrap();
    let theirs = place.theirs().await;
    let error = ours.put(rows(&[(2, 2)])).await.unwrap_err();
    assert!(matches!(error, Error::Wal(WalError::Fenced { .. })), "{error}");
    theirs.put(&[(3, 3)]).await;
    assert_eq!(theirs.seen().await, [(1, Some(1)), (3, Some(3))]);

    // A flush is refused by the manifest alone.
    let ours = place.ours(config()).await;
    let theirs = place.theirs().await;
    let before = place.manifest().await;
    let error = ours.flush().await.unwrap_err();
    assert!(matches!(error, Error::Wal(WalError::Fenced { .. })), "{error}");
    assert_eq!(place.manifest().await, before);
    theirs.die().await;
}

/// A newer Lance may know more fields than this one: ours keeps them at every level.
#[tokio::test]
async fn fields_that_we_do_not_know_survive_our_takeover() {
    let place = Place::new(true).await;
    let theirs = place.theirs().await;
    theirs.put(&[(1, 1)]).await;
    theirs.flush().await;
    theirs.die().await;
    let newest = place.manifest().await;
    let path = file(&place.shard().await.manifest_path(newest.version));
    // Tag 99, length-delimited, "kept", behind what is there.
    let unknown = [0x9a, 0x06, 4, b'k', b'e', b'p', b't'];
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&unknown).unwrap();

    let ours = place.ours(config()).await;
    ours.put(rows(&[(2, 2)])).await.unwrap();
    ours.close().await.unwrap();
    let newest = place.manifest().await;
    assert!(newest.extension.is_some());
    for version in newest.version.get() - 3..=newest.version.get() {
        let path = file(&place.shard().await.manifest_path(ManifestVersion::new(version)));
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes.windows(unknown.len()).any(|w| w == unknown), "version {version}");
    }
    let theirs = place.theirs().await;
    assert_eq!(theirs.seen().await, [(1, Some(1)), (2, Some(2))]);
    theirs.die().await;
}

/// Lance writes to each shard of a sharded table. What its manifests say of the shard stays.
#[tokio::test]
async fn a_sharded_table_goes_from_hand_to_hand_shard_by_shard() {
    let sharding = Sharding::Bucket { column: "id".into(), buckets: 3 };
    let place = Place::sharded(true, sharding).await;
    let table = place.table().await;
    let writer = table.writer(config()).await.unwrap();
    writer.put(crate::support::ids(0..30)).await.unwrap();
    drop(writer);
    let mut expected = Vec::new();
    for shard in table.shard_ids().await.unwrap() {
        let before = fencepost::wal::ManifestStore::new(fencepost::wal::Shard::new(place.store(), shard));
        let entries = before.latest_existing().await.unwrap().shard_field_entries;
        assert_eq!(entries.len(), 1);
        // Its own rows: all that a Lance writer replays.
        let theirs = place.lance().await.on_shard(shard).writer().await;
        let own: Vec<i64> = theirs.memtable().await.iter().map(|row| row.0).collect();
        assert!(!own.is_empty());
        theirs.put(&own.iter().map(|id| (*id, id + 100)).collect::<Vec<_>>()).await;
        theirs.delete(&own[..1]).await;
        theirs.flush().await;
        theirs.die().await;
        expected.extend(own[1..].iter().map(|id| (*id, Some(id + 100))));
        let after = before.latest_existing().await.unwrap();
        assert_eq!((after.shard_field_entries, after.extension), (entries, None));
    }
    expected.sort_unstable();
    assert_eq!(place.seen().await, expected);
    let writer = table.writer(small(5)).await.unwrap();
    writer.put(rows(&[(77, 77)])).await.unwrap();
    expected.push((77, Some(77)));
    assert_eq!(pairs(writer.provider().await.unwrap()).await, expected);
    writer.close().await.unwrap();
    assert_eq!(place.seen().await, expected);
}

/// What Lance's own reader makes of its SSTables is what ours makes of them.
#[tokio::test]
async fn lances_lsm_reader_and_ours_agree_on_lances_sstables() {
    let place = Place::new(true).await;
    let theirs = place.theirs().await;
    for round in 0..3 {
        theirs.put(&[(1, round), (2 + round, round)]).await;
        theirs.delete(&[1 + round]).await;
        theirs.flush().await;
    }
    theirs.die().await;
    let lance = place.lance().await;
    let seen = place.seen().await;
    assert_eq!(lance.lsm_scan().await, seen);
    assert_eq!(seen.len(), 2);
    let streamed: Vec<_> = lance.dataset.scan().try_into_stream().await.unwrap().try_collect().await.unwrap();
    assert!(streamed.iter().all(|batch| batch.num_rows() == 0), "nothing is merged yet");
}
