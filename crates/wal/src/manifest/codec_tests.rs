#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use proptest::prelude::*;

use super::*;
use crate::manifest::{Origin, RowFilter, ShardPlace, SsTableBase};

const SHARD: ShardId = ShardId::from_uuid(Uuid::from_u128(0xfeed));

fn sample() -> ShardManifest {
    let mut manifest =
        ShardManifest::first(SHARD, 1, vec![ShardFieldEntry { field_id: "bucket".into(), value: vec![3] }]);
    manifest.version = ManifestVersion::new(9);
    manifest.writer_epoch = Epoch::new(4);
    manifest.replay_after = Position::new(17);
    manifest.last_seen = Position::new(20);
    manifest.current_generation = Generation::new(3);
    for generation in [1, 2] {
        let mut sstable = SsTable::new(Generation::new(generation), format!("0badcafe_gen_{generation}"));
        sstable.physical_rows = Some(100 * generation);
        manifest.sstables.push(sstable);
    }
    let extension = manifest.extension.as_mut().unwrap();
    extension.writer_id = Uuid::from_u128(1);
    extension.commit_id = Uuid::from_u128(2);
    extension.parent_commit_id = Uuid::from_u128(3);
    extension.replay_after_epoch = Epoch::new(3);
    extension.add_fences([(18, 4), (5, 2)].map(|(p, e)| Fence { position: Position::new(p), epoch: Epoch::new(e) }));
    extension.closed_cleanly_epoch = Epoch::new(3);
    extension.checkpoints = vec![
        Checkpoint {
            id: Uuid::from_u128(7),
            name: Some("before the import".into()),
            created_at_ms: 1_700_000_000_000,
            expires_at_ms: Some(1_700_000_060_000),
            replay_after: Position::new(11),
            tail: Position::new(15),
            version: ManifestVersion::new(6),
            is_pin: false,
            table: None,
            holder: None,
            unknown: vec![],
        },
        Checkpoint {
            id: Uuid::from_u128(8),
            name: None,
            created_at_ms: 1_700_000_000_001,
            expires_at_ms: None,
            replay_after: Position::new(17),
            tail: Position::new(17),
            version: ManifestVersion::new(8),
            is_pin: true,
            table: None,
            holder: None,
            unknown: vec![],
        },
    ];
    manifest
}

fn decoded(bytes: &[u8]) -> Result<ShardManifest> {
    decode("manifest/x.binpb", bytes, SHARD, ManifestVersion::new(9))
}

/// A shard that was cloned from a clone, has a part of a table's checkpoint and is pinned by another clone.
fn shared() -> ShardManifest {
    let place = |url: &str, shard| ShardPlace { url: url.into(), shard_id: ShardId::from_uuid(Uuid::from_u128(shard)) };
    let mut manifest = sample();
    manifest.sstables[0].base = Some(SsTableBase {
        place: place("s3://b/first", 11),
        filter: Some(RowFilter { buckets: 8, bucket: 5 }),
        unknown: vec![],
    });
    let extension = manifest.extension.as_mut().unwrap();
    extension.table_id = Some(Uuid::from_u128(14));
    extension.checkpoints[0].table = Some(TablePart { id: Uuid::from_u128(9), shards: 4, base_version: 12 });
    extension.checkpoints[1].holder = Some("s3://b/third".into());
    extension.origin = Some(Origin {
        place: place("s3://b/second", 12),
        checkpoint: Uuid::from_u128(13),
        after: Position::new(3),
        initialized: true,
        pins: vec![place("s3://b/second", 12), place("s3://b/first", 11)],
        unknown: vec![],
    });
    manifest
}

#[test]
fn every_field_comes_back() {
    assert_eq!(decoded(&encode(&sample())).unwrap(), sample());
    assert_eq!(decoded(&encode(&shared())).unwrap(), shared());
}

#[test]
fn golden_manifest_of_a_clone() {
    let committed = crate::golden::committed("manifest-clone.binpb", &encode(&shared()));
    assert_eq!(decoded(&committed).unwrap(), shared());
}

#[test]
fn what_is_said_of_another_shard_makes_sense_or_is_refused() {
    let refused = |change: &dyn Fn(&mut ShardManifest)| {
        let mut manifest = shared();
        change(&mut manifest);
        decoded(&encode(&manifest)).unwrap_err().to_string()
    };
    let base =
        |m: &mut ShardManifest| m.sstables[0].base.as_mut().unwrap().filter = Some(RowFilter { buckets: 2, bucket: 2 });
    assert!(refused(&base).contains("bucket 2 of 2"));
    let url = |m: &mut ShardManifest| m.extension.as_mut().unwrap().origin.as_mut().unwrap().place.url.clear();
    assert!(refused(&url).contains("has no URL"));
}

#[test]
fn fields_of_a_later_version_survive_a_rewrite_at_every_level() {
    let foreign = [0xb2, 0x06, 0x02, b'h', b'i']; // tag 102, two bytes
    let mut manifest = sample();
    manifest.unknown = foreign.to_vec();
    manifest.sstables[0].unknown = foreign.to_vec();
    manifest.extension.as_mut().unwrap().checkpoints[1].unknown = foreign.to_vec();
    manifest.extension.as_mut().unwrap().unknown = foreign.to_vec();
    let shared = shared();
    manifest.sstables[0].base = shared.sstables[0].base.clone();
    manifest.sstables[0].base.as_mut().unwrap().unknown = foreign.to_vec();
    manifest.extension.as_mut().unwrap().origin = shared.extension.unwrap().origin;
    manifest.extension.as_mut().unwrap().origin.as_mut().unwrap().unknown = foreign.to_vec();
    let mut again = decoded(&encode(&manifest)).unwrap();
    assert_eq!(again, manifest);
    again.writer_epoch = Epoch::new(5);
    assert_eq!(decoded(&encode(&again)).unwrap(), again);
}

#[test]
fn a_manifest_of_another_engine_has_no_extension() {
    let mut manifest = sample();
    manifest.extension = None;
    assert_eq!(decoded(&encode(&manifest)).unwrap().extension, None);
}

#[test]
fn a_manifest_under_the_wrong_name_or_of_a_newer_format_is_refused() {
    let bytes = encode(&sample());
    let error = decode("m", &bytes, SHARD, ManifestVersion::new(10)).unwrap_err();
    assert!(error.to_string().contains("says version 9, its name says 10"), "{error}");
    assert!(decode("m", &bytes, ShardId::new_random(), ManifestVersion::new(9)).is_err());
    let mut newer = sample();
    newer.extension.as_mut().unwrap().format_version = 2;
    assert!(decoded(&encode(&newer)).unwrap_err().to_string().contains("use a newer one"));
}

/// Every field of ours is set, every level has a field of a later version.
#[test]
fn golden_manifest() {
    let later = |n: u8| [0xb2, 0x06, 0x02, b'v', n]; // tag 102, two bytes
    let mut manifest = sample();
    manifest.status = ShardStatus::Sealed;
    manifest.unknown = later(b'1').to_vec();
    let sstable = &mut manifest.sstables[1];
    (sstable.in_memory_bytes, sstable.primary_key_bytes) = (Some(4096), Some(1600));
    sstable.unknown = later(b'2').to_vec();
    let extension = manifest.extension.as_mut().unwrap();
    (extension.unadopted, extension.deleted) = (true, true);
    extension.unknown = later(b'3').to_vec();
    extension.checkpoints[0].unknown = later(b'4').to_vec();
    let committed = crate::golden::committed("manifest.binpb", &encode(&manifest));
    assert_eq!(decoded(&committed).unwrap(), manifest);
}

/// A manifest of before there were checkpoints.
#[test]
fn a_manifest_without_checkpoints_still_decodes() {
    let bytes = include_bytes!("../../tests/golden/manifest-no-checkpoints.binpb");
    let manifest = decoded(bytes).unwrap();
    assert_eq!(manifest.checkpoints(), []);
    assert_eq!((manifest.replay_after, manifest.fences().len()), (Position::new(17), 2));
    assert_eq!(encode(&manifest), bytes, "and a rewrite changes nothing");
}

/// What Lance parses: one number under one name.
#[test]
fn golden_version_hint() {
    let committed = crate::golden::committed("version_hint.json", &encode_hint(ManifestVersion::new(42)));
    assert_eq!(committed.as_ref(), b"{\"version\":42}");
}

proptest! {
    #[test]
    fn a_truncated_manifest_is_refused(cut in 0usize..10_000) {
        let bytes = encode(&sample());
        let error = decoded(&bytes[..cut % bytes.len()]).unwrap_err();
        prop_assert!(error.to_string().contains("manifest/x.binpb is damaged"), "{error}");
    }

    #[test]
    fn a_flipped_byte_of_lances_fields_is_noticed(at in 0usize..10_000, bit in 0u8..8) {
        let mut bytes = encode(&sample());
        let ours = fields(&bytes).unwrap()[0].1.end;
        let lances = bytes.len() - ours;
        bytes[ours + at % lances] ^= 1 << bit;
        prop_assert!(decoded(&bytes).is_err());
    }

    #[test]
    fn garbage_does_not_panic(bytes: Vec<u8>) {
        let _ = decoded(&bytes);
    }
}
