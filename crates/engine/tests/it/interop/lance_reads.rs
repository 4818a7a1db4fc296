//! Lance reads and replays what Fencepost wrote: entries, sentinels, manifests, SSTables.

use fencepost::WriterConfig;
use fencepost::wal::{ManifestStore, ManifestVersion, Position, ShardStatus};
use fencepost_sim::Op;

use super::lance::{rows_of, scan};
use super::place::Place;
use crate::support::{config, id_pairs, ids, keys, rows, small, soon};

/// Both kinds of table and both kinds of writer.
const KINDS: [(bool, bool); 4] = [(true, true), (true, false), (false, true), (false, false)];

fn writer_config(memtable: bool) -> WriterConfig {
    if memtable { config() } else { WriterConfig::wal_only() }
}

/// Two tenures, both of which crashed: sentinel 1, rows at 2 and 3, sentinel 4, a straggler of the first at 5, rows
/// at 6; with a key and a MemTable also a deletion at 7. Returns the last position.
async fn two_tenures(place: &Place, keyed: bool, memtable: bool) -> u64 {
    let w1 = place.ours(writer_config(memtable)).await;
    w1.put(rows(&[(1, 1), (2, 2)])).await.unwrap();
    w1.put(rows(&[(3, 3)])).await.unwrap();
    drop(w1);
    let w2 = place.ours(writer_config(memtable)).await;
    place.straggle(2, 5).await;
    w2.put(rows(&[(3, 30), (4, 4)])).await.unwrap();
    if keyed && memtable {
        w2.delete(keys(&[4])).await.unwrap();
        return 7;
    }
    6
}

#[tokio::test]
async fn its_tailer_reads_our_entries_our_sentinels_and_dead_entries() {
    for (keyed, memtable) in KINDS {
        let place = Place::new(keyed).await;
        let last = two_tenures(&place, keyed, memtable).await;
        let tailer = place.lance().await.tailer().await;
        let mut found = Vec::new();
        for position in 1..=last {
            let entry = tailer.read_entry(position).await.unwrap().unwrap();
            let rows: Vec<_> = entry.batches.iter().flat_map(rows_of).collect();
            // A row of a WAL-only log has no tombstone column, a sentinel not even a batch.
            let tombstones = entry.batches.iter().filter(|b| b.column_by_name("_tombstone").is_some()).count();
            assert_eq!(tombstones, if memtable { entry.batches.len() } else { 0 });
            assert_eq!(entry.batches.is_empty(), rows.is_empty());
            found.push((entry.writer_epoch, rows));
        }
        let mut expected = vec![
            (1, vec![]),
            (1, vec![(1, Some(1), false), (2, Some(2), false)]),
            (1, vec![(3, Some(3), false)]),
            (2, vec![]),
            (1, vec![(1, Some(1), false), (2, Some(2), false)]),
            (2, vec![(3, Some(30), false), (4, Some(4), false)]),
        ];
        if last == 7 {
            expected.push((2, vec![(4, None, true)]));
        }
        assert_eq!(found, expected, "keyed {keyed}, MemTable {memtable}");
        assert!(tailer.read_entry(last + 1).await.unwrap().is_none());
        let fresh = place.lance().await.tailer().await;
        assert_eq!(fresh.next_position().await.unwrap(), last + 1);
        assert_eq!(fresh.first_position().await.unwrap(), 1);
    }
}

/// Lance knows no dead entries, so it replays the straggler's rows too: more than was acknowledged, never less.
#[tokio::test]
async fn it_replays_our_log_in_order() {
    for (keyed, memtable) in KINDS {
        let place = Place::new(keyed).await;
        let last = two_tenures(&place, keyed, memtable).await;
        let theirs = place.theirs().await;
        let mut expected = vec![
            (1, Some(1), false),
            (2, Some(2), false),
            (3, Some(3), false),
            (1, Some(1), false),
            (2, Some(2), false),
            (3, Some(30), false),
            (4, Some(4), false),
        ];
        if keyed && memtable {
            expected.push((4, None, true));
        }
        assert_eq!(theirs.memtable().await, expected, "keyed {keyed}, MemTable {memtable}");
        theirs.put(&[(5, 5)]).await;
        // Behind its own sentinel.
        assert_eq!(theirs.writer.wal_stats().next_wal_entry_position, last + 3);
        theirs.die().await;
    }
}

#[tokio::test]
async fn it_reads_every_manifest_of_ours() {
    let place = Place::new(true).await;
    let w1 = place.ours(config()).await;
    w1.put(ids(0..5)).await.unwrap();
    w1.flush().await.unwrap();
    w1.put(ids(5..7)).await.unwrap();
    w1.close().await.unwrap();
    drop(place.ours(config()).await);

    let ours = ManifestStore::new(place.shard().await);
    let theirs = place.lance().await.manifests().await;
    let newest = place.manifest().await;
    assert_eq!(newest.sstables.len(), 2);
    assert_eq!(theirs.latest().await.unwrap().unwrap().version, newest.version.get());
    for version in 1..=newest.version.get() {
        let ours = ours.read(ManifestVersion::new(version)).await.unwrap().unwrap();
        let theirs = theirs.read_version(version).await.unwrap();
        assert_eq!(theirs.version, version);
        assert_eq!(theirs.shard_id, *ours.shard_id.as_uuid());
        assert_eq!(theirs.shard_spec_id, ours.shard_spec_id);
        assert_eq!(theirs.writer_epoch, ours.writer_epoch.get());
        assert_eq!(theirs.replay_after_wal_entry_position, ours.replay_after.get());
        assert_eq!(theirs.wal_entry_position_last_seen, ours.last_seen.get());
        assert_eq!(theirs.current_generation, ours.current_generation.get());
        assert_eq!(format!("{:?}", theirs.status), "Active");
        assert_eq!(ours.status, ShardStatus::Active);
        let sstable = |s: &fencepost::wal::SsTable| {
            (s.generation.get(), s.path.clone(), s.in_memory_bytes, s.physical_rows, s.primary_key_bytes)
        };
        let expected: Vec<_> = ours.sstables.iter().map(sstable).collect();
        let found = theirs.sstables.iter();
        let found =
            found.map(|s| (s.generation, s.path.clone(), s.in_memory_bytes, s.physical_rows, s.primary_key_bytes));
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn it_replays_only_what_is_behind_our_flush() {
    for keyed in [true, false] {
        let place = Place::new(keyed).await;
        let ours = place.ours(config()).await;
        ours.put(ids(0..5)).await.unwrap();
        ours.flush().await.unwrap();
        ours.put(ids(5..8)).await.unwrap();
        drop(ours);
        let theirs = place.theirs().await;
        let replayed: Vec<_> = theirs.memtable().await.iter().map(|row| row.0).collect();
        assert_eq!(replayed, [5, 6, 7]);
        assert_eq!(theirs.seen().await, id_pairs(0..8));
        theirs.die().await;
    }
}

/// W2 replays ten entries of W1, publishes the first five and dies.
#[tokio::test]
async fn it_finds_every_row_of_a_log_that_we_flushed_in_part() {
    for keyed in [true, false] {
        let place = Place::new(keyed).await;
        let w1 = place.ours(config()).await;
        for id in 0..10 {
            w1.put(ids(id..id + 1)).await.unwrap();
        }
        drop(w1);
        let process = place.process();
        let gate = process.faults.on(Op::Create).path_contains("/manifest/").nth(4).stall();
        let opening = tokio::spawn(async move { process.writer(small(5)).await });
        soon("the second publish", gate.reached()).await;
        opening.abort();
        let _ = opening.await;
        assert_eq!(place.manifest().await.replay_after, Position::new(6));
        let theirs = place.theirs().await;
        assert_eq!(theirs.memtable().await.len(), 5);
        assert_eq!(theirs.seen().await, id_pairs(0..10));
        theirs.die().await;
    }
}

#[tokio::test]
async fn our_sstables_are_datasets_with_the_base_tables_field_ids() {
    for keyed in [true, false] {
        let place = Place::new(keyed).await;
        let ours = place.ours(config()).await;
        ours.put(rows(&[(1, 1), (2, 2)])).await.unwrap();
        if keyed {
            ours.delete(keys(&[2])).await.unwrap();
        }
        ours.flush().await.unwrap();
        let lance = place.lance().await;
        let [sstable] = &lance.manifest().await.sstables[..] else { panic!("one SSTable") };
        let sstable = lance.sstable(&sstable.path).await;
        let fields = |schema: &lance_core::datatypes::Schema| -> Vec<_> {
            schema.fields_pre_order().map(|f| (f.name.clone(), f.id, f.data_type())).collect()
        };
        let (of_base, of_sstable) = (fields(lance.dataset.schema()), fields(sstable.schema()));
        assert_eq!(of_sstable[..of_base.len()], of_base);
        assert_eq!(of_sstable.len(), of_base.len() + 1);
        assert_eq!(of_sstable.last().unwrap().0, "_tombstone");
        let key = |schema: &lance_core::datatypes::Schema| -> Vec<String> {
            schema.unenforced_primary_key().iter().map(|f| f.name.clone()).collect()
        };
        assert_eq!(key(sstable.schema()), key(lance.dataset.schema()));
        assert_eq!(sstable.manifest().data_storage_format, lance.dataset.manifest().data_storage_format);
        let expected = match keyed {
            // Of two versions of a key only the newer one is there.
            true => vec![(1, Some(1), false), (2, None, true)],
            false => vec![(1, Some(1), false), (2, Some(2), false)],
        };
        assert_eq!(scan(&sstable).await, expected);
        sstable.validate().await.unwrap();
    }
}

/// Lance's own read path over the base table and our SSTables. It opens `_pk_index` of every SSTable, so it cannot read
/// a table without a key, ours or its own.
#[tokio::test]
async fn its_lsm_reader_resolves_our_sstables() {
    let place = Place::new(true).await;
    let ours = place.ours(config()).await;
    for round in 0..3 {
        ours.put(rows(&[(1, round), (2 + round, round), (10 + round, round)])).await.unwrap();
        ours.delete(keys(&[1 + round])).await.unwrap();
        ours.flush().await.unwrap();
    }
    ours.close().await.unwrap();
    let found = place.lance().await.lsm_scan().await;
    assert_eq!(found, place.seen().await);
    assert_eq!(found, [(1, Some(2)), (4, Some(2)), (10, Some(0)), (11, Some(1)), (12, Some(2))]);
}
