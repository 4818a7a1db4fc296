//! The task that empties the queue: groups items into entries, keeps a window of PUTs in flight, acknowledges in
//! order of position, and answers everybody when the tenure ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Landed;
use super::queue::{Held, Item, Queue};
use crate::appender::{in_serial_zone, resolve};
use crate::entry::encode_rows;
use crate::error::{Error, Outcome, Result};
use crate::ids::Position;
use crate::slot::{Placed, Unplaced, place};
use crate::stats::add;
use crate::tenure::Tenure;

/// An entry in the window: sent, perhaps landed, not yet acknowledged.
struct Entry {
    position: Position,
    bytes: Bytes,
    batches: Vec<RecordBatch>,
    held: Held,
    waiters: Vec<oneshot::Sender<Result<Position>>>,
    sent: Instant,
    landed: bool,
}

type Answer = (Position, Result<Placed, Unplaced>);

pub(super) struct Flusher {
    tenure: Tenure,
    queue: Arc<Queue>,
    sink: Box<dyn Landed>,
    /// The position that the next entry gets.
    next: Position,
    /// Entries in order of position, the lowest unacknowledged one first.
    window: VecDeque<Entry>,
    running: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Flusher {
    pub(super) fn new(tenure: Tenure, queue: Arc<Queue>, sink: Box<dyn Landed>) -> Result<Self> {
        let next = tenure.sentinel().next()?;
        Ok(Self { tenure, queue, sink, next, window: VecDeque::new(), running: FuturesUnordered::new() })
    }

    /// Runs until the queue is closed and empty, or the tenure stops.
    pub(super) async fn run(mut self) {
        if let Err(failure) = self.work().await {
            self.tenure.stop(failure.error.clone());
            self.answer_all(&failure);
        }
        self.queue.stop_waiting_for_memory();
    }

    async fn work(&mut self) -> Result<(), Failure> {
        loop {
            self.tenure.check().map_err(|error| Failure { error, from: None })?;
            self.answer_idle_barriers();
            while self.may_send() {
                self.send().map_err(|error| Failure { error, from: None })?;
            }
            let deadline = {
                let waiting = self.queue.waiting();
                if waiting.closed && waiting.items.is_empty() && self.window.is_empty() {
                    return Ok(());
                }
                waiting.items.front().map(|item| item.queued + self.queue.config.flush_interval)
            };
            // With the window full only an answer helps; the deadline is for items that nobody is waiting for.
            let due = deadline.filter(|_| self.window_is_open());
            tokio::select! {
                Some(answer) = self.running.next() => self.answered(answer)?,
                () = self.queue.bell.notified() => {
                    // Appends that were woken together shall leave together.
                    tokio::task::yield_now().await;
                }
                () = sleep_until(due) => {}
                () = self.tenure.stopped() => {}
            }
        }
    }

    /// The distance in positions is bounded, not the count: otherwise one stuck PUT would let stragglers land
    /// arbitrarily far ahead (schedule 15). Within reach of a dead predecessor's stragglers, one at a time.
    fn window_is_open(&self) -> bool {
        let Some(lowest) = self.window.front() else {
            return true;
        };
        // The zone of the lowest one: a straggler on its position moves it to the next, which must still be free.
        let width = match in_serial_zone(&self.tenure, lowest.position) {
            true => 1,
            false => self.queue.config.max_in_flight as u64,
        };
        self.next.get() - lowest.position.get() < width
    }

    fn may_send(&self) -> bool {
        if !self.window_is_open() {
            return false;
        }
        let waiting = self.queue.waiting();
        let Some(first) = waiting.items.front() else {
            return false;
        };
        waiting.bytes > 0
            && (waiting.closed
                || waiting.bytes >= self.queue.config.max_buffer_bytes
                || waiting.items.iter().any(|item| item.urgent)
                || first.queued.elapsed() >= self.queue.config.flush_interval)
    }

    /// Takes a group from the queue, encodes it and starts its PUT.
    fn send(&mut self) -> Result<()> {
        let (mut items, mut batches) = self.take_group();
        let limit = self.queue.config.max_buffer_bytes;
        // The estimate is in memory; what counts is what is sent. Give back from the end until it fits.
        let bytes = loop {
            let bytes = encode_rows(&self.queue.schema, &batches, self.tenure.identity())?;
            if bytes.len() <= limit {
                break bytes;
            }
            if !self.give_back(&mut items, bytes.len(), limit) {
                return Ok(());
            }
            batches = items.iter().filter_map(|item| item.batch.clone()).collect();
        };
        self.queue.waiting().in_flight.extend(batches.iter().cloned());
        let mut entry = Entry {
            position: self.next,
            bytes,
            batches,
            held: Held::default(),
            waiters: Vec::new(),
            sent: Instant::now(),
            landed: false,
        };
        for item in items {
            entry.held.merge(item.held);
            entry.waiters.extend(item.waiter);
        }
        self.next = self.next.next()?;
        self.queue.counters.next_position.store(self.next.get(), Ordering::Relaxed);
        self.start_put(&entry);
        self.window.push_back(entry);
        Ok(())
    }

    fn start_put(&self, entry: &Entry) {
        let shard = self.tenure.shard().clone();
        let (position, bytes) = (entry.position, entry.bytes.clone());
        self.running.push(Box::pin(async move { (position, place(&shard, position, &bytes).await) }));
    }

    fn take_group(&self) -> (Vec<Item>, Vec<RecordBatch>) {
        let mut waiting = self.queue.waiting();
        let mut items: Vec<Item> = Vec::new();
        let mut taken = 0;
        while let Some(item) = waiting.items.front() {
            if !items.is_empty() && taken + item.bytes > self.queue.config.max_buffer_bytes {
                break;
            }
            taken += item.bytes;
            items.extend(waiting.items.pop_front());
        }
        waiting.bytes -= taken;
        let batches = items.iter().filter_map(|item| item.batch.clone()).collect();
        (items, batches)
    }

    /// Shortens a group whose entry would exceed the limit; `false` if nothing is left of it, because its only row
    /// is larger than an entry may be.
    fn give_back(&self, items: &mut Vec<Item>, actual: usize, limit: usize) -> bool {
        let with_rows = items.iter().filter(|item| item.batch.is_some()).count();
        let mut waiting = self.queue.waiting();
        let put_back = |waiting: &mut super::queue::Waiting, item: Item| {
            waiting.bytes += item.bytes;
            waiting.items.push_front(item);
        };
        if with_rows > 1 {
            let keep = items.len() / 2;
            while items.len() > keep.max(1) {
                if let Some(item) = items.pop() {
                    put_back(&mut waiting, item);
                }
            }
            return true;
        }
        // One batch: everything behind it goes back, then it is halved.
        while items.len() > 1 && items.last().is_some_and(|item| item.batch.is_none()) {
            if let Some(item) = items.pop() {
                put_back(&mut waiting, item);
            }
        }
        let Some(item) = items.last_mut() else {
            return false;
        };
        let Some(batch) = item.batch.take() else {
            return false;
        };
        let rows = batch.num_rows();
        if rows <= 1 {
            if let Some(waiter) = item.waiter.take() {
                let _ = waiter.send(Err(Error::TooLarge {
                    what: "one row".into(),
                    actual,
                    limit_name: "max_buffer_bytes",
                    limit,
                }));
            }
            return false;
        }
        let half = rows / 2;
        let bytes = item.bytes / 2;
        let mut second = Item {
            batch: Some(batch.slice(half, rows - half)),
            bytes: item.bytes - bytes,
            held: Held::default(),
            waiter: item.waiter.take(),
            urgent: item.urgent,
            queued: item.queued,
        };
        std::mem::swap(&mut second.held, &mut item.held);
        item.batch = Some(batch.slice(0, half));
        item.bytes = bytes;
        put_back(&mut waiting, second);
        true
    }

    /// Takes the answer of one PUT.
    fn answered(&mut self, (position, placed): Answer) -> Result<(), Failure> {
        let landed = resolve(&self.tenure, position, placed).map_err(|error| Failure { error, from: Some(position) })?;
        let window = &mut self.window;
        let Some(entry) = window.iter_mut().find(|entry| entry.position == position) else {
            return Ok(());
        };
        if landed {
            entry.landed = true;
            add(&self.queue.counters.entries, 1usize);
            add(&self.queue.counters.entry_bytes, entry.bytes.len());
            add(&self.queue.counters.put_micros, entry.sent.elapsed().as_micros());
            return self.acknowledge();
        }
        // A dead position, in the serial zone: this entry is the only one in flight, and takes the next position
        // with the same bytes.
        add(&self.queue.counters.dead_positions, 1usize);
        entry.position = self.next;
        self.next = self.next.next().map_err(|error| Failure { error, from: None })?;
        self.queue.counters.next_position.store(self.next.get(), Ordering::Relaxed);
        if let Some(entry) = self.window.back() {
            self.start_put(entry);
        }
        Ok(())
    }

    /// I1, I3: an entry is acknowledged when it and every entry before it have landed.
    fn acknowledge(&mut self) -> Result<(), Failure> {
        while self.window.front().is_some_and(|entry| entry.landed) {
            let Some(entry) = self.window.pop_front() else {
                return Ok(());
            };
            self.tenure.acknowledge(entry.position);
            let batches = entry.batches.len();
            let taken = self.sink.landed(entry.position, entry.batches, entry.held);
            {
                // After the sink has them, so that a reader of both never misses them.
                let mut waiting = self.queue.waiting();
                waiting.in_flight.drain(..batches);
                waiting.handed_over += batches as u64;
            }
            if let Err(reason) = taken {
                let error = self.tenure.poison(reason, Outcome::Written);
                entry.waiters.into_iter().for_each(|waiter| drop(waiter.send(Err(error.clone()))));
                return Err(Failure { error, from: None });
            }
            entry.waiters.into_iter().for_each(|waiter| drop(waiter.send(Ok(entry.position))));
        }
        Ok(())
    }

    /// Barriers at the head of the queue are answered when nothing before them is in flight.
    fn answer_idle_barriers(&mut self) {
        if !self.window.is_empty() {
            return;
        }
        let mut waiting = self.queue.waiting();
        while waiting.items.front().is_some_and(|item| item.batch.is_none()) {
            if let Some(waiter) = waiting.items.pop_front().and_then(|item| item.waiter) {
                let _ = waiter.send(Ok(self.tenure.acknowledged()));
            }
        }
    }

    /// Answers every append that was accepted and not acknowledged, each with what is true of it.
    fn answer_all(&mut self, failure: &Failure) {
        let fenced_at = match (&failure.error, failure.from) {
            (Error::Fenced { .. }, Some(position)) => Some(position),
            _ => None,
        };
        for entry in self.window.drain(..) {
            let outcome = match (failure.from, fenced_at) {
                // Behind a successor's entry ours are dead wherever they land; at it, ours is not there.
                (_, Some(fence)) if entry.position >= fence => Outcome::NotWritten,
                (Some(failed), None) if entry.position == failed => failure.error.outcome(),
                // Sent, and not answered in order.
                _ => Outcome::Unknown,
            };
            for waiter in entry.waiters {
                let _ = waiter.send(Err(failure.error.with_outcome(outcome)));
            }
        }
        let queued = {
            let mut waiting = self.queue.waiting();
            waiting.closed = true;
            waiting.in_flight.clear();
            waiting.bytes = 0;
            std::mem::take(&mut waiting.items)
        };
        for waiter in queued.into_iter().filter_map(|item| item.waiter) {
            let _ = waiter.send(Err(failure.error.with_outcome(Outcome::NotWritten)));
        }
    }
}

/// Why the flusher stopped, and at which position if at one.
struct Failure {
    error: Error,
    from: Option<Position>,
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
