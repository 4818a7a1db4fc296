//! A fenced write-ahead log on object storage, in the layout of Lance's MemWAL.
//!
//! Batches of Arrow rows are appended to a *shard*; each entry is durable after one conditional PUT. Whoever opens a
//! shard for writing takes it over: the writer before it can never acknowledge another append, however long it was
//! stalled. The store needs read-after-write, atomic create-if-absent and whole objects, nothing else: no clock, no
//! lock service, no compare-and-swap.
//!
//! It is not a broker: no consumer groups, no topics, no retention by time.
//!
//! ```
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! use std::{collections::HashMap, sync::Arc};
//! use arrow_array::{ArrayRef, Int64Array, RecordBatch};
//! use fencepost_wal::{ManifestStore, OpenOptions, Shard, ShardId, ShardManifest, Store, WalConfig, WalTailer, WalWriter};
//!
//! let store = Store::open("memory:///events", &HashMap::new())?;
//! let shard = Shard::new(store, ShardId::new_random());
//! ManifestStore::new(shard.clone()).initialize(ShardManifest::first(shard.id(), 0, vec![])).await?;
//!
//! let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
//! let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
//! let (writer, _replay) =
//!     WalWriter::open(&shard, batch.schema(), WalConfig::default(), &OpenOptions::default()).await?;
//! writer.append(batch).await?; // durable now
//! writer.close().await?;
//!
//! let entry = WalTailer::new(shard).next().await?.expect("one entry");
//! assert_eq!(entry.rows(), 3);
//! # Ok::<(), fencepost_wal::Error>(())
//! # }).unwrap();
//! ```
//!
//! | to … | use |
//! |---|---|
//! | append many small batches | [`WalWriter`] |
//! | append one entry at a time | [`WalAppender`] |
//! | read without owning | [`WalTailer`] |
//! | take a shard over by hand | [`open()`], which returns a [`Tenure`] and a [`Replay`] |
//! | go on after another engine wrote | [`adopt()`] |
//! | keep a moment of a shard | [`checkpoint::create`], [`Tenure::checkpoint`] |
//! | fork a shard that is written to | [`clone::clone`] |
//! | delete one that nobody needs | [`delete::mark_deleted`] |
//! | delete what nobody needs any more | [`gc::collect`]; writers do it by themselves |
//! | look at a shard | [`ManifestStore::latest`] |
//! | prove every object of a shard | [`verify()`] |
//! | check a bucket before trusting it | [`probe()`], at length [`Survey`] |

#![forbid(unsafe_code)]

mod adopt;
mod appender;
mod background;
pub mod checkpoint;
mod claim;
mod client_options;
pub mod clone;
pub mod delete;
mod entry;
mod error;
mod files;
pub mod gc;
#[cfg(test)]
mod golden;
mod ids;
mod liveness;
mod log;
mod manifest;
mod meter;
#[cfg(feature = "mutants")]
pub mod mutants;
#[cfg(not(feature = "mutants"))]
mod mutants;
mod names;
mod prefetch;
mod preflight;
mod probe;
#[doc(hidden)]
pub mod raw;
mod retry;
mod shard;
mod slot;
mod stats;
mod store;
mod surroundings;
mod tailer;
mod tenure;
pub mod verify;
mod wal_store;
mod writer;

pub use adopt::{Adopted, adopt};
pub use appender::WalAppender;
pub use background::BackgroundTask;
pub use claim::{OpenOptions, Opened, Replay, open, open_seen};
pub use entry::{MAX_ENTRY_BYTES, WalEntry, WriterIdentity};
pub use error::{Error, Outcome, Result};
pub use files::{FileSync, OsFiles};
pub use ids::{Epoch, Generation, ManifestVersion, Position, ShardId};
pub use liveness::{EntryKind, MAX_IN_FLIGHT};
pub use log::Log;
pub use manifest::{
    Extension, FORMAT_VERSION, Fence, ManifestStore, Origin, RowFilter, SeenManifest, ShardFieldEntry, ShardManifest,
    ShardPlace, ShardStatus, SsTable, SsTableBase,
};
pub use meter::{Latency, Meter, OperationStats};
pub use probe::{Answers, ProbeReport, PutFigures, Survey, SurveyOptions, SurveyReport, SurveyStep, probe};
pub use retry::RetryPolicy;
pub use shard::{MEM_WAL_FOLDER, Shard};
pub use stats::WalStats;
pub use store::Store;
pub use surroundings::{RealSurroundings, Surroundings};
pub use tailer::{FollowOptions, WalTailer};
pub use tenure::Tenure;
pub use verify::{Finding, FindingKind, Severity, VerifyCounts, VerifyOptions, VerifyReport, verify};
pub use wal_store::{IDENTITY_OBJECT, WalStoreRef};
pub use writer::{
    Admission, Admitted, AppendRequest, Durability, Held, Landed, LandedEntry, WalConfig, WalOnly, WalWriter,
};
