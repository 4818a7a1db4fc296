//! What was accepted and not acknowledged, in the order of the log, and when it is to leave.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_array::RecordBatch;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::WalConfig;
use super::queue::{Columns, Held};
use crate::error::Result;
use crate::ids::Position;

/// Where an append or a flush is answered.
pub(super) type Waiter = oneshot::Sender<Result<Position>>;

/// One piece of an append, which goes into an entry as a whole; or, without a batch, a flush.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) batch: Option<RecordBatch>,
    /// The batch's; the same object for the same columns.
    pub(super) columns: Option<Arc<Columns>>,
    pub(super) bytes: usize,
    pub(super) held: Held,
    /// Answered when this piece is acknowledged: set on the last piece of an append.
    pub(super) waiter: Option<Waiter>,
    pub(super) urgent: bool,
    pub(super) queued: Instant,
}

/// What was accepted and not acknowledged, in order: first `in_flight`, then `items`.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    items: VecDeque<Item>,
    /// Of all `items`.
    bytes: usize,
    /// When those `items` were queued that somebody waits for, in order.
    urgent: VecDeque<Instant>,
    /// How many `items` are flushes.
    flushes: usize,
    /// Batches that were taken from `items` and not given to the sink yet.
    in_flight: VecDeque<RecordBatch>,
    /// Batches that landed and were given to the sink.
    handed_over: u64,
    pub(super) closed: bool,
    /// Closed, and everything was acknowledged: nobody will take an item any more.
    pub(super) finished: bool,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn first(&self) -> Option<&Item> {
        self.items.front()
    }

    /// Bytes of the batches that were not taken.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether what waits is enough to be sent, and is to be sent whatever else may come. A flush alone sends nothing: it
    /// waits for answers.
    pub(super) fn is_pressing(&self, config: &WalConfig) -> bool {
        self.bytes > 0 && (self.closed || self.flushes > 0 || self.bytes >= config.max_buffer_bytes)
    }

    /// When the next group has waited long enough, perhaps in the past; `None` if there is nothing to send.
    pub(super) fn due(&self, config: &WalConfig) -> Option<Instant> {
        let first = self.items.front().filter(|_| self.bytes > 0)?;
        let interval = first.queued + config.flush_interval;
        Some(self.urgent.front().map_or(interval, |queued| interval.min(*queued + config.linger)))
    }

    /// How many items somebody waits for.
    pub(super) fn urgent(&self) -> usize {
        self.urgent.len()
    }

    pub(super) fn push(&mut self, item: Item) {
        self.bytes += item.bytes;
        self.urgent.extend(item.urgent.then_some(item.queued));
        self.flushes += usize::from(item.batch.is_none());
        self.items.push_back(item);
    }

    /// Takes the first item. A batch is in flight from here on: a reader of the queue misses it at no moment.
    pub(super) fn take(&mut self) -> Option<Item> {
        let item = self.items.pop_front()?;
        self.bytes -= item.bytes;
        if item.urgent {
            self.urgent.pop_front();
        }
        self.flushes -= usize::from(item.batch.is_none());
        self.in_flight.extend(item.batch.clone());
        Some(item)
    }

    /// Undoes the latest [`take`](Self::take).
    pub(super) fn give_back(&mut self, item: Item) {
        self.bytes += item.bytes;
        if item.urgent {
            self.urgent.push_front(item.queued);
        }
        match item.batch {
            Some(_) => drop(self.in_flight.pop_back()),
            None => self.flushes += 1,
        }
        self.items.push_front(item);
    }

    /// The first `batches` in flight have been given to the sink.
    pub(super) fn hand_over(&mut self, batches: usize) {
        self.in_flight.drain(..batches.min(self.in_flight.len()));
        self.handed_over += batches as u64;
    }

    /// The batches that were not given to the sink yet, in order, behind how many that were.
    pub(super) fn pending(&self) -> (u64, Vec<RecordBatch>) {
        let queued = self.items.iter().filter_map(|item| item.batch.as_ref());
        (self.handed_over, self.in_flight.iter().chain(queued).cloned().collect())
    }

    /// Takes everything, for good: the writer has stopped.
    pub(super) fn abandon(&mut self) -> VecDeque<Item> {
        self.closed = true;
        self.in_flight.clear();
        self.bytes = 0;
        self.urgent.clear();
        self.flushes = 0;
        std::mem::take(&mut self.items)
    }
}
