//! What things cost in requests, to the last one: the figures of `docs/figures.md`.

use std::sync::Arc;

use fencepost_sim::{CountingStore, Counts, RequestCounts};
use fencepost_wal::{OpenOptions, Shard, WalConfig, WalWriter};

use crate::pipelining::assert_documented;
use crate::support::{Bucket, batch, bucket, replayed, schema, settle};

fn counted(bucket: &Bucket) -> (Shard, Counts) {
    let shard = bucket.shard();
    let counter = CountingStore::new(Arc::clone(shard.store().object_store()));
    let counts = counter.counts();
    let store = shard.store().clone().wrapped(|_| Arc::new(counter));
    (Shard::new(store, shard.id()), counts)
}

fn row(what: &str, cost: RequestCounts) -> String {
    format!("| {what} | {} | {} | {} | {} | {} |\n", cost.put, cost.get, cost.head, cost.list, cost.delete)
}

#[tokio::test(start_paused = true)]
async fn a_durable_append_is_one_put_and_nothing_else() {
    let bucket = bucket().await;
    let (shard, counts) = counted(&bucket);
    let (writer, _) = WalWriter::open(&shard, schema(), WalConfig::default(), &OpenOptions::default()).await.unwrap();
    settle().await;
    let before = counts.snapshot();
    for id in 0..10_000 {
        writer.append(batch([id])).await.unwrap();
    }
    settle().await;
    let cost = counts.snapshot() - before;
    assert_eq!((cost.put, cost.requests()), (10_000, 10_000));
    let table = row("10,000 durable appends, one after the other", cost);
    assert_documented("figures.md", &table);

    // Appends that come together share it.
    let before = counts.snapshot();
    let together = (0..10_000).map(|id| writer.append(batch([id])));
    assert!(futures::future::join_all(together).await.iter().all(Result::is_ok));
    let cost = counts.snapshot() - before;
    assert_eq!((cost.put, cost.requests()), (1, 1));
    assert_documented("figures.md", &row("10,000 durable appends at the same moment", cost));
}

#[tokio::test(start_paused = true)]
async fn an_open_reads_each_entry_once_and_asks_for_little_else() {
    let mut table = String::new();
    for entries in [0, 10, 1_000] {
        let bucket = bucket().await;
        let (before, _) =
            WalWriter::open(&bucket.shard(), schema(), WalConfig::default(), &OpenOptions::default()).await.unwrap();
        // R is at the sentinel, so that exactly the entries are to be replayed.
        before.truncate(before.tenure().sentinel()).await.unwrap();
        for id in 0..entries {
            before.append(batch([id])).await.unwrap();
        }
        drop(before);
        settle().await;

        let (shard, counts) = counted(&bucket);
        let (writer, replay) =
            WalWriter::open(&shard, schema(), WalConfig::default(), &OpenOptions::default()).await.unwrap();
        settle().await;
        assert_eq!(replayed(replay).await.len() as i64, entries);
        let cost = counts.snapshot();
        // PUTs: claim, sentinel, record, and a hint for other readers with either manifest. LISTs: the newest manifest,
        // the log, and one with each commit. GETs: the newest manifest, the entries, and the position behind.
        let expected = RequestCounts { put: 5, get: 2 + entries as u64, list: 4, ..RequestCounts::default() };
        let requests = RequestCounts { bytes_put: 0, bytes_got: 0, ..cost };
        assert_eq!(requests, expected, "{entries} entries");
        table += &row(&format!("open, {entries} entries to replay"), cost);

        let before = counts.snapshot();
        writer.close().await.unwrap();
        settle().await;
        let cost = counts.snapshot() - before;
        assert_eq!((cost.put, cost.list, cost.requests()), (2, 1, 3), "a manifest, its hint, its lineage");
        if entries == 1_000 {
            table += &row("close", cost);
        }
    }
    assert_documented("figures.md", &table);
}
