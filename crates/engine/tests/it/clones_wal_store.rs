//! Clones of tables whose logs are in a store of their own, which may be gone by then: over files and an S3 server, as a user has them.

use std::collections::HashMap;
use std::sync::Arc;

use fencepost::wal::{Error as WalError, OpenOptions, WalAppender};
use fencepost::{
    CheckpointOptions, CheckpointScope, CloneOptions, DeleteOptions, Error, Store, Table, TableOptions, TableWriter,
    WriterConfig,
};
use fencepost_sim::S3Server;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStore;
use tempfile::TempDir;

use crate::support::*;

/// Real stores: each name is a place of its own.
enum Places {
    Files(TempDir),
    S3 { server: Box<S3Server>, _folder: TempDir },
}

impl Places {
    fn all() -> [Self; 2] {
        let folder = tempfile::tempdir().unwrap();
        let server = S3Server::start(folder.path()).unwrap();
        [Self::Files(tempfile::tempdir().unwrap()), Self::S3 { server: Box::new(server), _folder: folder }]
    }

    fn store(&self, name: &str) -> Store {
        match self {
            Self::Files(folder) => Store::open(folder.path().join(name).to_str().unwrap(), &HashMap::new()).unwrap(),
            Self::S3 { server, .. } => Store::open(&server.url(name), &server.storage_options()).unwrap(),
        }
    }

    async fn names(&self, name: &str) -> Vec<String> {
        let store = self.store(name);
        let listed = store.object_store().list(Some(store.root()));
        listed.map_ok(|object| object.location.to_string()).try_collect().await.unwrap()
    }

    async fn wipe(&self, name: &str) {
        let store = self.store(name);
        for path in self.names(name).await {
            store
                .object_store()
                .delete_stream(futures::stream::iter([Ok(path.into())]).boxed())
                .try_collect::<Vec<_>>()
                .await
                .unwrap();
        }
        if let Self::Files(folder) = self {
            std::fs::remove_dir_all(folder.path().join(name)).unwrap();
        }
    }

    /// A table at `t` of two shards, with its logs at `w`.
    async fn create(&self) -> Table {
        let options = TableOptions { primary_key: vec!["id".into()], sharding: "bucket(id,2)".parse().unwrap() };
        Table::create_with_wal_store(self.store("t"), self.store("w"), schema(), options).await.unwrap()
    }

    async fn writer(&self) -> TableWriter {
        Table::open(self.store("t")).await.unwrap().writer(config()).await.unwrap()
    }

    async fn seen(&self, name: &str) -> Vec<(i64, Option<i64>)> {
        pairs(Table::open(self.store(name)).await.unwrap().provider().await.unwrap()).await
    }
}

fn all() -> CheckpointOptions {
    CheckpointOptions { scope: CheckpointScope::All, ..Default::default() }
}

/// The seed's scenario: rows flushed with scope `All`, the WAL store wiped, a clone opened with a new one, all rows there. Right after the
/// flush, after one takeover or several with nothing to flush, and while appends go on.
#[tokio::test]
async fn a_clone_outlives_the_wal_store_of_its_source() {
    for places in Places::all() {
        for variant in ["flushed", "a takeover", "takeovers", "appends"] {
            places.create().await;
            let mut writer = places.writer().await;
            writer.put(ids(0..30)).await.unwrap();
            writer.delete(keys(&[3, 4])).await.unwrap();
            let takeovers = match variant {
                "a takeover" => 1,
                "takeovers" => 3,
                _ => 0,
            };
            if takeovers > 0 {
                writer.flush().await.unwrap();
            }
            for _ in 0..takeovers {
                writer = places.writer().await;
            }
            let writer = Arc::new(writer);
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let appending = (variant == "appends").then(|| {
                let writer = Arc::clone(&writer);
                tokio::spawn(async move {
                    let mut n = 1_000;
                    while !*stopped.borrow() {
                        writer.put(ids(n..n + 1)).await.unwrap();
                        n += 1;
                    }
                })
            });
            let made = writer.checkpoint(&all()).await.unwrap();
            assert!(!made.needs_log(), "{variant}");
            stop.send(true).ok();
            if let Some(appending) = appending {
                appending.await.unwrap();
            }
            drop(writer);
            places.wipe("w").await;

            let source = Table::open(places.store("t")).await.unwrap();
            let options = CloneOptions { checkpoint: Some(made.id), wal_store: Some(places.store("v")) };
            let (clone, report) = source.clone_to(places.store("c"), &options).await.unwrap();
            assert_eq!(report.log_entries, 0);
            let mut expected = id_pairs(0..30);
            expected.drain(3..5);
            let before_appends = async || {
                let mut rows = places.seen("c").await;
                rows.retain(|(id, _)| *id < 1_000);
                rows
            };
            assert_eq!(before_appends().await, expected, "{variant}");
            // It writes where it was told to, and nobody has to tell it again.
            let its = Table::open(places.store("c")).await.unwrap().writer(config()).await.unwrap();
            its.put(ids(40..45)).await.unwrap();
            expected.extend(id_pairs(40..45));
            assert_eq!(before_appends().await, expected, "{variant}");
            let logs: Vec<_> = clone.inspect().await.unwrap().shards.into_iter().map(|shard| shard.wal_store).collect();
            assert!(logs.iter().all(|url| url.as_deref() == Some(places.store("v").url().as_str())), "{logs:?}");
            assert!(places.names("v").await.iter().any(|name| name.ends_with(".arrow")));
            assert!(!places.names("c").await.iter().any(|name| name.contains("/wal/")), "nothing beside the table");
            drop(its);
            assert_eq!(before_appends().await, expected, "{variant}");

            // The source itself says that its log is gone, and what to do.
            let error = source.writer(config()).await.map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::Wal(WalError::WalStoreMissing { .. })), "{error}");
            for (name, wal_store) in [("c", None), ("t", None)] {
                let table = Table::open(places.store(name)).await.unwrap();
                for made in table.checkpoints(None).await.unwrap() {
                    table.delete_checkpoint(made.id).await.unwrap();
                }
                let options = DeleteOptions { purge: true, wal_store, abandon_wal_store: name == "t" };
                Table::delete(places.store(name), &options).await.unwrap();
            }
            assert!(places.names("v").await.iter().all(|name| !name.ends_with(".arrow")), "its log went with it");
        }
    }
}

/// Rows that were in the log only: the clone fails, says which entry is missing, and opens for nobody; with the store it works.
#[tokio::test]
async fn a_durable_checkpoint_without_its_wal_store_cannot_be_cloned() {
    for places in Places::all() {
        places.create().await;
        let writer = places.writer().await;
        writer.put(ids(0..10)).await.unwrap();
        writer.flush().await.unwrap();
        writer.put(ids(10..20)).await.unwrap();
        let made = writer.checkpoint(&CheckpointOptions::default()).await.unwrap();
        writer.flush().await.unwrap();
        writer.put(ids(20..30)).await.unwrap();
        drop(writer);
        let (kept, first) = (places.names("w").await, made.shards[0].replay_after.get() + 1);
        let bytes = futures::future::join_all(kept.iter().map(|name| async {
            let store = places.store("w");
            let object = object_store::ObjectStoreExt::get(store.object_store(), &name.clone().into()).await.unwrap();
            object.bytes().await.unwrap()
        }));
        let bytes = bytes.await;
        places.wipe("w").await;

        let source = Table::open(places.store("t")).await.unwrap();
        let options = CloneOptions { checkpoint: Some(made.id), wal_store: Some(places.store("v")) };
        let error = source.clone_to(places.store("c"), &options).await.map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, Error::Wal(WalError::CheckpointLost { position, .. }) if position.get() == first),
            "{error}"
        );
        assert!(error.to_string().contains(places.store("w").url().as_str()), "{error}");
        let Err(error) = Table::open(places.store("c")).await else { panic!("it is not finished") };
        assert!(error.to_string().contains("run the same clone again"), "{error}");
        let Err(error) = source.provider_at(made.id).await else { panic!("it is lost") };
        assert!(matches!(&error, Error::Wal(WalError::CheckpointLost { .. })), "{error}");

        // It is found elsewhere: the same clone again, with the parent's WAL store given.
        for (name, bytes) in kept.iter().zip(bytes) {
            let (from, to) = (places.store("w"), places.store("elsewhere"));
            let below: object_store::path::Path = object_store::path::Path::from(name.as_str())
                .prefix_match(from.root())
                .unwrap()
                .fold(to.root().clone(), |path, part| path.join(part));
            object_store::ObjectStoreExt::put(to.object_store(), &below, bytes.into()).await.unwrap();
        }
        let source = Table::open_with_wal_store(places.store("t"), places.store("elsewhere")).await.unwrap();
        let (_, report) = source.clone_to(places.store("c"), &options).await.unwrap();
        assert_eq!(report.log_entries, 2);
        assert_eq!(places.seen("c").await, id_pairs(0..20));
        assert_eq!(pairs(source.provider_at(made.id).await.unwrap()).await, id_pairs(0..20));
        // Another store altogether does not pass for it.
        let other = places.store("x");
        let shard = fencepost::wal::Shard::new(places.store("y"), fencepost::ShardId::new_random());
        let manifests = fencepost::wal::ManifestStore::new(shard.clone());
        manifests.initialize(fencepost::wal::ShardManifest::first(shard.id(), 0, vec![])).await.unwrap();
        drop(WalAppender::open(&shard.with_wal_store(other.clone()), &OpenOptions::default()).await.unwrap());
        let source = Table::open_with_wal_store(places.store("t"), other).await.unwrap();
        let error = source.clone_to(places.store("z"), &options).await.map(|_| ()).unwrap_err();
        assert!(matches!(&error, Error::Wal(WalError::CheckpointLost { .. })), "{error}");
    }
}

/// A consumer's log: a WAL-only table has nothing but its log, and a clone of it has that log.
#[tokio::test]
async fn a_wal_only_table_is_cloned_with_its_log() {
    for places in Places::all() {
        places.create().await;
        let table = Table::open(places.store("t")).await.unwrap();
        let writer = table.writer(WriterConfig::wal_only()).await.unwrap();
        writer.put(ids(0..20)).await.unwrap();
        let (clone, report) = table.clone_to(places.store("c"), &CloneOptions::default()).await.unwrap();
        assert_eq!(report.log_entries, 2);
        writer.put(ids(20..25)).await.unwrap();
        assert_eq!(places.seen("c").await, id_pairs(0..20));
        let its = clone.writer(WriterConfig::wal_only()).await.unwrap();
        its.put(ids(50..52)).await.unwrap();
        assert_eq!(places.seen("c").await.len(), 22);
        assert_eq!(places.seen("t").await, id_pairs(0..25));
    }
}
