//! The hook for whoever decides, outside of a writer, how much may be written: a limit on the memory of many writers of
//! a process, a quota, a rate. It decides before an append is queued, and is told when its rows have left memory.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::ids::ShardId;

/// An append that asks to be queued.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppendRequest {
    /// The shard that it goes to.
    pub shard: ShardId,
    /// Its rows.
    pub rows: usize,
    /// Their bytes in memory, by the same estimate as
    /// [`max_unflushed_bytes`](crate::WalConfig::max_unflushed_bytes).
    pub bytes: usize,
    /// Whether it is sent as soon as a PUT may start, and not only after `flush_interval`.
    pub urgent: bool,
}

/// Decides which appends may be queued, and when. One controller may serve many writers.
///
/// A writer asks once for each append that it can take, before it waits for memory and before anything of it is queued.
/// What was replayed at open is not asked for. Appends of one shard keep their order: while one is asked for, those
/// behind it wait; so answer soon, or refuse. An append that is dropped by its caller meanwhile drops the future of
/// [`admit`](Self::admit), and so does a writer that stops.
#[async_trait]
pub trait Admission: fmt::Debug + Send + Sync {
    /// Lets an append in, at once or later, or refuses it.
    ///
    /// # Errors
    /// The reason of a refusal, in words for the caller of the append, who gets
    /// [`Error::NotAdmitted`](crate::Error::NotAdmitted). Nothing of the append is written then.
    async fn admit(&self, append: &AppendRequest) -> Result<Admitted, String>;
}

/// Leave to queue an append.
///
/// What it holds is dropped when the last of the append's rows is no longer in memory: without a MemTable when they have
/// landed, with one when their SSTable is published, and in any case when the append fails or the writer is dropped.
/// That is the same moment at which the writer's own budget gets the memory back.
#[derive(Default)]
pub struct Admitted(Option<Arc<dyn Any + Send + Sync>>);

impl Admitted {
    /// Leave that nobody waits to get back.
    pub fn freely() -> Self {
        Self::default()
    }

    /// Leave that holds something: a permit of a semaphore, say, or whatever does its work when it is dropped.
    pub fn holding(held: impl Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(held)))
    }

    pub(super) fn into_held(self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.0
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted").field("holds", &self.0.is_some()).finish()
    }
}
