//! Bad input and damaged objects: a clear error that names the thing, and nothing changed.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use fencepost_sim::{Fault, IgnoreConditionStore, Op, S3Server};
use fencepost_wal::{
    Error, ManifestStore, OpenOptions, Outcome, Shard, ShardId, ShardManifest, Store, WalAppender, WalConfig,
    WalTailer, probe,
};
use object_store::memory::InMemory;

use crate::lance::lance_entry;
use crate::support::{Bucket, append, batch, bucket, memory_store, schema};

/// A shard with the rows 0, 1, 2 at positions 2, 3, 4.
async fn three_rows() -> Bucket {
    let bucket = bucket().await;
    let mut w1 = bucket.process().appender().await;
    for id in 0..3 {
        append(&mut w1, [id]).await.unwrap();
    }
    bucket
}

/// Opening and reading fail with an error that names `object`; what is stored stays as it was, but for the claim.
async fn assert_refused(bucket: &Bucket, object: &str) -> Error {
    let error = bucket.process().open().await.unwrap_err();
    assert!(error.to_string().contains(object), "{error}");
    let mut tailer = WalTailer::new(bucket.shard());
    let read = loop {
        match tailer.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a reader took {object} for the end of the log"),
            Err(error) => break error,
        }
    };
    assert!(read.to_string().contains(object), "{read}");
    error
}

#[tokio::test(start_paused = true)]
async fn a_truncated_entry_is_refused() {
    for keep in [0, 1, 15, 16, 100, usize::MAX] {
        let bucket = three_rows().await;
        let path = bucket.entry_path(3);
        let whole = bucket.read(&path).await.unwrap();
        let keep = keep.min(whole.len() - 1);
        bucket.write(&path, whole.slice(..keep)).await;
        let error = assert_refused(&bucket, path.as_ref()).await;
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
        assert_eq!(bucket.read(&path).await.unwrap().len(), keep, "it was left as it is");
        assert!(bucket.read(&bucket.entry_path(5)).await.is_none(), "no sentinel was written");
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_and_a_wrong_trailer_are_refused() {
    let bucket = three_rows().await;
    let path = bucket.entry_path(4);
    let whole = bucket.read(&path).await.unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1;
        bytes.into()
    };
    let trailer = whole.len() - 16;
    let damaged: [(bytes::Bytes, &str); 5] = [
        (vec![7; 1000].into(), "no WAL entry"),
        (flipped(trailer), "no WAL entry"),
        (flipped(trailer + 5), "checksum"),
        (flipped(trailer + 9), "trailer says"),
        (flipped(200), "checksum"),
    ];
    for (bytes, reason) in damaged {
        bucket.write(&path, bytes).await;
        let error = assert_refused(&bucket, path.as_ref()).await;
        assert!(error.to_string().contains(reason), "{error}");
    }
    bucket.write(&path, whole).await;
    assert_eq!(bucket.rows().await, [0, 1, 2]);
    bucket.process().open().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_truncated_or_garbled_manifest_is_refused() {
    let bucket = three_rows().await;
    let path = bucket.manifest_path(bucket.manifest().await.version.get());
    let whole = bucket.read(&path).await.unwrap();
    for bytes in [whole.slice(..0), whole.slice(..whole.len() / 2), whole.slice(..whole.len() - 1), vec![9; 50].into()]
    {
        bucket.write(&path, bytes).await;
        let error = assert_refused(&bucket, path.as_ref()).await;
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
    bucket.write(&path, whole).await;
    assert_eq!(bucket.rows().await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_missing_entry_is_a_hole_and_not_the_end() {
    // However few entries stand behind it.
    for (entries, missing) in [(3, 2), (3, 3), (3, 4), (3, 5), (40, 20), (100, 2)] {
        let bucket = bucket().await;
        let mut w1 = bucket.process().appender().await;
        for id in 0..entries {
            append(&mut w1, [id]).await.unwrap();
        }
        drop(w1);
        let mut w2 = bucket.process().appender().await;
        append(&mut w2, [entries]).await.unwrap();
        drop(w2);
        let path = bucket.entry_path(missing);
        let bytes = bucket.read(&path).await.unwrap();
        bucket.delete(&path).await;
        let error = bucket.process().open().await.unwrap_err();
        assert!(matches!(error, Error::LogHole { position, .. } if position.get() == missing), "{entries}: {error}");
        assert!(error.to_string().contains(path.as_ref()), "{error}");
        // A reader without a tenure does not take it for the end either.
        let mut tailer = WalTailer::new(bucket.shard());
        let read = loop {
            match tailer.next_any().await {
                Ok(Some((_, entry))) => assert!(entry.position.get() < missing),
                end => break end,
            }
        };
        assert!(matches!(&read, Err(Error::LogHole { position, .. }) if position.get() == missing), "{read:?}");
        // Nothing was put into the hole, so that a copy brings everything back.
        assert!(bucket.read(&path).await.is_none());
        bucket.write(&path, bytes).await;
        let (_, replay) = bucket.process().open().await.unwrap();
        assert_eq!(replay.rows(), entries as u64 + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_vanished_is_a_hole_too() {
    let bucket = three_rows().await;
    for position in 1..=4 {
        bucket.delete(&bucket.entry_path(position)).await;
    }
    let error = bucket.process().open().await.unwrap_err();
    assert!(matches!(error, Error::LogHole { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_vanishes_between_two_reads_is_a_hole() {
    let bucket = three_rows().await;
    let options = OpenOptions { replay_budget_bytes: 0, ..OpenOptions::default() };
    let (_, mut replay) = WalAppender::open(&bucket.shard(), &options).await.unwrap();
    bucket.delete(&bucket.entry_path(3)).await;
    assert!(replay.next().await.unwrap().is_some());
    let error = replay.next().await.unwrap_err();
    assert!(matches!(error, Error::LogHole { position, .. } if position.get() == 3), "{error}");
    assert!(replay.next().await.is_err(), "it does not end well on asking again");
}

#[tokio::test(start_paused = true)]
async fn a_failed_second_read_of_the_replay_is_not_passed_over() {
    let bucket = three_rows().await;
    let process = bucket.attempts(1);
    let options = OpenOptions { replay_budget_bytes: 0, ..OpenOptions::default() };
    let (_, mut replay) = WalAppender::open(&process.shard, &options).await.unwrap();
    process.faults.on(Op::Get).path_contains("/wal/").nth(2).then(Fault::Fail);
    let mut ids = Vec::new();
    let mut failures = 0;
    loop {
        match replay.next().await {
            Ok(Some(entry)) => ids.extend(crate::support::ids_of(&entry)),
            Ok(None) => break,
            Err(_) => failures += 1,
        }
    }
    assert_eq!((ids, failures), (vec![0, 1, 2], 1));
}

#[tokio::test(start_paused = true)]
async fn objects_that_are_not_ours_are_left_alone() {
    let bucket = three_rows().await;
    for folder in ["wal", "manifest"] {
        let path = bucket.shard().root().clone().join(folder).join("notes.txt");
        bucket.write(&path, "hello".into()).await;
    }
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replay.rows(), 3);
}

#[tokio::test(start_paused = true)]
async fn entries_of_lance_are_read_and_their_flushed_generations_skipped() {
    let bucket = three_rows().await;
    bucket.write(&bucket.entry_path(5), lance_entry(1, Some(0), &[10])).await;
    bucket.write(&bucket.entry_path(6), lance_entry(1, Some(1), &[11])).await;
    let (_, replay) = bucket.process().open().await.unwrap();
    assert_eq!(replay.rows(), 4, "generation 0 is below the manifest's: it is in an SSTable");
    assert_eq!(crate::support::replayed(replay).await, [0, 1, 2, 11]);
}

#[test]
fn a_damaged_entry_of_lance_never_panics() {
    // It has no checksum: whatever Arrow makes of it, it is an error or rows, and no panic.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let whole = lance_entry(1, None, &[1, 2, 3]);
        let bucket = three_rows().await;
        let path = bucket.entry_path(5);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.to_vec();
                bytes[at] ^= 1 << bit;
                bucket.write(&path, bytes.into()).await;
                let mut tailer = WalTailer::new(bucket.shard());
                for _ in 0..3 {
                    tailer.next().await.unwrap();
                }
                match tailer.next().await {
                    Ok(_) | Err(Error::Corrupt { .. }) => {}
                    Err(other) => panic!("byte {at} bit {bit}: {other}"),
                }
            }
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_another_schema_is_refused_and_changes_nothing() {
    let names: ArrayRef = Arc::new(StringArray::from(vec!["a"]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let others = [
        RecordBatch::try_from_iter_with_nullable([("id", Arc::clone(&names), false)]).unwrap(),
        RecordBatch::try_from_iter_with_nullable([("key", Arc::clone(&ids), false)]).unwrap(),
        RecordBatch::try_from_iter_with_nullable([("id", Arc::clone(&ids), false), ("name", names, false)]).unwrap(),
        RecordBatch::try_from_iter_with_nullable([("id", ids, true)]).unwrap(),
    ];
    let bucket = bucket().await;
    let process = bucket.process();
    let writer = process.writer(WalConfig::default()).await;
    for other in &others {
        let error = writer.append(other.clone()).await.unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        assert_eq!(error.outcome(), Outcome::NotWritten);
    }
    writer.append(batch([1])).await.unwrap();
    writer.close().await.unwrap();

    let mut appender = process.appender().await;
    for other in &others {
        let error = appender.append(&schema(), &[batch([7]), other.clone()]).await.unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        let error = appender.append(&schema(), std::slice::from_ref(other)).await.unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
    }
    append(&mut appender, [2]).await.unwrap();
    assert_eq!(bucket.rows().await, [1, 2]);
}

#[test]
fn a_table_path_that_is_a_file_an_unknown_scheme_and_an_unknown_option_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let none = HashMap::new();
    let unknown = HashMap::from([("aws_colour".to_owned(), "red".to_owned())]);
    let refused = |url: &str, options: &HashMap<String, String>, reason: &str| {
        let error = Store::open(url, options).unwrap_err();
        assert!(matches!(error, Error::InvalidUrl { .. }), "{error}");
        assert!(error.to_string().contains(url) && error.to_string().contains(reason), "{error}");
    };
    refused(path, &none, "a table is a folder");
    refused(&format!("file://{path}"), &none, "a table is a folder");
    refused("ftp://host/t", &none, "`ftp` is unknown");
    refused("", &none, "empty");
    refused("s3://bucket/t", &unknown, "`aws_colour` is unknown");
    refused("gs://bucket/t", &unknown, "`aws_colour` is unknown");
    refused("az://container/t", &unknown, "`aws_colour` is unknown");
    refused("memory://m/t", &unknown, "takes none");
    refused("file:///t", &unknown, "takes none");
}

#[tokio::test]
async fn a_table_below_a_file_is_an_error_that_names_the_object() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let store = Store::open(&format!("{}/t", file.path().display()), &HashMap::new()).unwrap();
    let store = store.with_retry(fencepost_wal::RetryPolicy { max_attempts: 1, ..Default::default() });
    let shard = Shard::new(store, ShardId::new_random());
    let error =
        ManifestStore::new(shard.clone()).initialize(ShardManifest::first(shard.id(), 0, vec![])).await.unwrap_err();
    assert!(error.to_string().contains(shard.root().as_ref()), "{error}");
}

#[tokio::test]
async fn wrong_credentials_are_named_at_once_and_create_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(folder.path()).unwrap();
    let mut options = server.storage_options();
    options.insert("aws_secret_access_key".into(), "wrong".into());
    let store = Store::open(&server.url("t"), &options).unwrap();
    let shard = Shard::new(store.clone(), ShardId::new_random());
    let first = ShardManifest::first(shard.id(), 0, vec![]);
    let started = std::time::Instant::now();
    for error in [
        ManifestStore::new(shard.clone()).initialize(first).await.unwrap_err(),
        fencepost_wal::open(&shard, &OpenOptions::default()).await.unwrap_err(),
        probe(&store).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Store { .. }), "{error}");
        assert!(error.to_string().contains("_mem_wal") || error.to_string().contains("probe"), "{error}");
    }
    assert!(started.elapsed().as_secs() < 5, "no use in trying again");
    let right = Store::open(&server.url("t"), &server.storage_options()).unwrap();
    assert!(ManifestStore::new(Shard::new(right, shard.id())).latest().await.unwrap().is_none());
}

#[tokio::test]
async fn the_probe_accepts_what_honours_conditions_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server_folder = tempfile::tempdir().unwrap();
    let server = S3Server::start(server_folder.path()).unwrap();
    let stores = [
        memory_store(Arc::new(InMemory::new())),
        Store::open(folder.path().to_str().unwrap(), &HashMap::new()).unwrap(),
        Store::open(&server.url("t"), &server.storage_options()).unwrap(),
    ];
    for store in stores {
        let report = probe(&store).await.unwrap();
        assert!(report.rounds > 0 && report.racers > 1);
        use futures::TryStreamExt;
        let left: Vec<_> = store.object_store().list(Some(store.root())).try_collect().await.unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn the_probe_refuses_a_store_that_ignores_conditions() {
    let store = memory_store(Arc::new(IgnoreConditionStore::new(Arc::new(InMemory::new()))));
    let error = probe(&store).await.unwrap_err();
    assert!(matches!(error, Error::StoreUnfit { .. }), "{error}");
    assert!(error.to_string().contains("conditional"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_probe_survives_lost_answers() {
    let faults = fencepost_sim::FaultStore::new(Arc::new(InMemory::new()));
    for fault in [Fault::LostAckAsExists, Fault::Conflict409, Fault::LostAck, Fault::Fail] {
        for path in ["/single/", "/race/"] {
            faults.clear_rules();
            let rule = faults.on(Op::Create).path_contains(path).nth(3).then(fault);
            if let Err(error) = probe(&memory_store(faults.store())).await {
                assert!(matches!(error, Error::Store { .. }), "an honest store was called unfit: {error}");
            }
            assert_eq!(rule.fired(), 1);
        }
    }
}
