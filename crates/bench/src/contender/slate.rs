//! SlateDB: keys and values instead of rows.

use std::sync::Arc;

use async_trait::async_trait;
use fencepost::Store;
use futures::FutureExt;
use futures::future::BoxFuture;
use object_store::path::Path;
use slatedb::config::WriteOptions;
use slatedb::{Db, Settings, WriteBatch, WriteHandle};

use super::{Setting, Tuning, Writer};
use crate::Result;
use crate::rows::Rows;

/// A database.
pub(crate) struct Slate {
    pub(crate) db: Db,
}

impl Slate {
    pub(super) async fn open(setting: Setting, store: &Store) -> Result<Self> {
        let mut settings = Settings::default();
        if let Tuning::Gather(time) = setting.tuning {
            settings.flush_interval = Some(time);
        }
        Self::open_with(store, settings).await
    }

    pub(crate) async fn open_with(store: &Store, settings: Settings) -> Result<Self> {
        let objects = Arc::clone(store.object_store());
        let db = Db::builder(Self::path(store), objects).with_settings(settings).build().await?;
        Ok(Self { db })
    }

    /// Where its database is.
    pub(crate) fn path(store: &Store) -> Path {
        store.root().clone().join("slate")
    }

    async fn write(&self, rows: &Rows) -> Result<WriteHandle> {
        if let [(key, value)] = rows.pairs.as_slice() {
            return Ok(self.db.put_bytes(key.clone(), value.clone()).await?);
        }
        let mut batch = WriteBatch::new();
        for (key, value) in &rows.pairs {
            batch.put_bytes(key.clone(), value.clone());
        }
        Ok(self.db.write_with_options(batch, &WriteOptions::default()).await?)
    }
}

#[async_trait]
impl Writer for Slate {
    async fn put(&self, rows: &Rows) -> Result<()> {
        Ok(self.write(rows).await?.await_durable().await?)
    }

    async fn put_no_wait(&self, rows: &Rows) -> Result<BoxFuture<'static, Result<()>>> {
        let written = self.write(rows).await?;
        Ok(async move { Ok(written.await_durable().await?) }.boxed())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(self.db.close().await?)
    }

    async fn crash(self: Box<Self>) -> Result<()> {
        // What it has still to write it writes in the background; nobody waits for it.
        drop(self.db);
        Ok(())
    }
}
