//! The systems under test, each behind the same few calls, each with the settings of its makers and with those that serve
//! the scenario best.

mod fencepost;
mod lance;
mod layered;
mod slate;

use std::sync::Arc;
use std::time::Duration;

use ::fencepost::Store;
use async_trait::async_trait;
use futures::future::BoxFuture;

pub(crate) use self::fencepost::{Fencepost, create_sharded, create_table};
pub(crate) use self::lance::{Lance, SHARD as LANCE_SHARD, dataset};
pub(crate) use self::layered::{Layers, merge_insert};
pub(crate) use self::slate::Slate;
use crate::Result;
use crate::rows::{Rows, Shape};

/// An open writer.
#[async_trait]
pub(crate) trait Writer: Send + Sync {
    /// Durable when it returns.
    async fn put(&self, rows: &Rows) -> Result<()>;

    /// In memory when it returns. The future resolves when the rows are durable; a system that cannot tell that of rows
    /// answers at once, and they are durable when it is closed.
    async fn put_no_wait(&self, rows: &Rows) -> Result<BoxFuture<'static, Result<()>>>;

    /// Everything is durable, and nothing runs any more.
    async fn close(self: Box<Self>) -> Result<()>;

    /// As if the process died.
    async fn crash(self: Box<Self>) -> Result<()>;
}

/// A writer that several clients have; the last one closes it.
pub(crate) type SharedWriter = Arc<Box<dyn Writer>>;

/// Closes a writer that nobody else has any more.
pub(crate) async fn close(writer: SharedWriter) -> Result<()> {
    Arc::into_inner(writer).ok_or("a client still has the writer")?.close().await
}

/// A system in one of its modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// Rows in the log and in a MemTable with a primary key.
    Fencepost,
    /// Rows in the log only.
    FencepostLog,
    Lance,
    LanceLog,
    Slate,
}

/// How a system is set up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Setting {
    pub(crate) system: System,
    pub(crate) tuning: Tuning,
}

/// What is set other than its makers did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Tuning {
    /// Nothing.
    Defaults,
    /// Rows wait so long for company: `linger` of Fencepost, the flush interval of the others.
    Gather(Duration),
    /// Of Fencepost: so many PUTs in flight.
    InFlight(usize),
}

impl Setting {
    pub(crate) const fn defaults(system: System) -> Self {
        Self { system, tuning: Tuning::Defaults }
    }

    pub(crate) const fn gather(system: System, millis: u64) -> Self {
        Self { system, tuning: Tuning::Gather(Duration::from_millis(millis)) }
    }

    pub(crate) fn system_name(self) -> &'static str {
        match self.system {
            System::Fencepost => "Fencepost, MemTable",
            System::FencepostLog => "Fencepost, WAL-only",
            System::Lance => "Lance MemWAL, MemTable",
            System::LanceLog => "Lance MemWAL, WAL-only",
            System::Slate => "SlateDB",
        }
    }

    pub(crate) fn tuning_name(self) -> String {
        match (self.tuning, self.system) {
            (Tuning::Defaults, _) => "defaults".into(),
            (Tuning::InFlight(puts), _) => format!("{puts} PUTs in flight"),
            (Tuning::Gather(time), System::Fencepost | System::FencepostLog) => {
                format!("linger {} ms", time.as_millis())
            }
            (Tuning::Gather(time), _) => format!("flush interval {} ms", time.as_millis()),
        }
    }

    /// Opens a writer on a table of this shape, which is made if there is none.
    pub(crate) async fn open(self, store: &Store, shape: Shape) -> Result<Box<dyn Writer>> {
        Ok(match self.system {
            System::Fencepost | System::FencepostLog => Box::new(Fencepost::open(self, store, shape).await?),
            System::Lance | System::LanceLog => Box::new(Lance::open(self, store, shape).await?),
            System::Slate => Box::new(Slate::open(self, store).await?),
        })
    }
}
