//! Several durable appends in flight, acknowledged in the order in which they were issued. `ingest` and the demo's
//! writer share it.

use arrow_array::RecordBatch;
use fencepost::TableWriter;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};

use crate::error::Result;

/// One append that is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// Its rows.
    pub(crate) rows: u64,
}

/// The appends that wait for the store.
pub(crate) struct Puts<'w> {
    writer: &'w TableWriter,
    limit: usize,
    waiting: FuturesOrdered<BoxFuture<'w, Result<Acknowledged>>>,
}

impl<'w> Puts<'w> {
    /// At most `limit` appends wait at once; the caller asks [`has_room`](Self::has_room) first.
    pub(crate) fn new(writer: &'w TableWriter, limit: usize) -> Self {
        Self { writer, limit, waiting: FuturesOrdered::new() }
    }

    /// Whether one more may be issued.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < self.limit
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Issues an append. It is polled once at once, because that is what gives it its place in the log: I8, rows of
    /// one key follow the order of the input.
    pub(crate) async fn issue(&mut self, batch: RecordBatch) {
        let writer = self.writer;
        let rows = batch.num_rows() as u64;
        let mut put = async move {
            writer.put(batch).await?;
            Ok(Acknowledged { rows })
        }
        .boxed();
        match futures::poll!(&mut put) {
            std::task::Poll::Ready(result) => self.waiting.push_back(futures::future::ready(result).boxed()),
            std::task::Poll::Pending => self.waiting.push_back(put),
        }
    }

    /// The answer to the oldest append.
    pub(crate) async fn next(&mut self) -> Option<Result<Acknowledged>> {
        self.waiting.next().await
    }
}
