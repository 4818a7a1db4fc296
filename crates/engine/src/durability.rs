//! What a caller who does not wait for the store is given instead: a future that knows when the store has the rows.

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::error::Result;
use crate::written::Written;

/// Resolves when the rows of a [`put_no_wait`](crate::TableWriter::put_no_wait) or
/// [`delete_no_wait`](crate::TableWriter::delete_no_wait) are durable, with where they are.
///
/// The rows are on their way whether or not it is polled, and dropping it takes nothing back. Its error is that of a
/// [`put`](crate::TableWriter::put): [`Error::outcome`](crate::Error::outcome) says what is true of the rows.
pub struct Durability {
    answer: BoxFuture<'static, Result<Written>>,
}

impl Durability {
    pub(crate) fn new(answer: impl Future<Output = Result<Written>> + Send + 'static) -> Self {
        Self { answer: answer.boxed() }
    }

    /// Of a call without rows.
    pub(crate) fn of_nothing() -> Self {
        Self::new(ready(Ok(Written::default())))
    }
}

impl Future for Durability {
    type Output = Result<Written>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.poll_unpin(context)
    }
}

impl fmt::Debug for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durability").finish_non_exhaustive()
    }
}
