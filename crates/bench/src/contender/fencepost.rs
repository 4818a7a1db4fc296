//! Fencepost.

use async_trait::async_trait;
use fencepost::{MemTableConfig, Sharding, Store, Table, TableOptions, TableWriter, WriterConfig};
use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Setting, System, Tuning, Writer};
use crate::Result;
use crate::rows::{Rows, Shape};

/// A table and its writer.
pub(crate) struct Fencepost {
    pub(crate) table: Table,
    pub(crate) writer: TableWriter,
}

impl Fencepost {
    pub(super) async fn open(setting: Setting, store: &Store, shape: Shape) -> Result<Self> {
        let config = match setting.system {
            System::FencepostLog => WriterConfig::wal_only(),
            _ => WriterConfig::default(),
        };
        Self::open_with(store, shape, tuned(config, setting.tuning)).await
    }

    pub(crate) async fn open_with(store: &Store, shape: Shape, config: WriterConfig) -> Result<Self> {
        let table = create_table(store, shape).await?;
        let writer = table.writer(config).await?;
        Ok(Self { table, writer })
    }

    /// As [`open_with`](Self::open_with), with MemTables that nothing but a flush freezes.
    pub(crate) async fn open_unlimited(store: &Store, shape: Shape) -> Result<Self> {
        let limits = MemTableConfig {
            max_bytes: usize::MAX,
            max_rows: usize::MAX,
            max_batches: usize::MAX,
            ..MemTableConfig::default()
        };
        Self::open_with(store, shape, WriterConfig { memtable: Some(limits), ..WriterConfig::default() }).await
    }
}

fn tuned(mut config: WriterConfig, tuning: Tuning) -> WriterConfig {
    match tuning {
        Tuning::Defaults => {}
        Tuning::Gather(time) => {
            config.wal.linger = time;
            config.wal.flush_interval = config.wal.flush_interval.max(time);
        }
        Tuning::InFlight(puts) => config.wal.max_in_flight = puts,
    }
    config
}

/// Opens a table of this shape, keyed by `id`, in one shard; makes it if there is none.
pub(crate) async fn create_table(store: &Store, shape: Shape) -> Result<Table> {
    create_sharded(store, shape, 1).await
}

/// The same in so many shards.
pub(crate) async fn create_sharded(store: &Store, shape: Shape, shards: u32) -> Result<Table> {
    let sharding = if shards == 1 { Sharding::default() } else { format!("bucket(id,{shards})").parse()? };
    let options = TableOptions { primary_key: vec!["id".into()], sharding };
    match Table::create(store.clone(), shape.schema(), options).await {
        Err(fencepost::Error::TableExists { .. }) => Ok(Table::open(store.clone()).await?),
        made => Ok(made?),
    }
}

#[async_trait]
impl Writer for Fencepost {
    async fn put(&self, rows: &Rows) -> Result<()> {
        self.writer.put(rows.batch.clone()).await?;
        Ok(())
    }

    async fn put_no_wait(&self, rows: &Rows) -> Result<BoxFuture<'static, Result<()>>> {
        let durable = self.writer.put_no_wait(rows.batch.clone()).await?;
        Ok(async move {
            durable.await?;
            Ok(())
        }
        .boxed())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(self.writer.close().await?)
    }

    async fn crash(self: Box<Self>) -> Result<()> {
        self.writer.abort().await;
        Ok(())
    }
}
