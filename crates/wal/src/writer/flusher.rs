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
use tokio::time::Instant;

use super::Landed;
use super::queue::{Held, Item, Queue, Waiter};
use crate::appender::{in_serial_zone, resolve};
use crate::entry::encode_rows;
use crate::error::{Error, Outcome, Result};
use crate::ids::Position;
use crate::slot::{Placed, Unplaced, place};
use crate::stats::add;
use crate::tenure::Tenure;

/// An entry in the window: sent, perhaps landed, not yet acknowledged.
struct Entry {
    /// Counts the entries of this writer; it stays when a dead position moves the entry.
    number: u64,
    position: Position,
    bytes: Bytes,
    batches: Vec<RecordBatch>,
    held: Held,
    waiters: Vec<Answered>,
    sent: Instant,
    landed: bool,
}

/// Somebody who is answered when an entry is acknowledged.
struct Answered {
    waiter: Waiter,
    /// The entry with the first rows that it waits for: an append may be spread over several.
    since: u64,
}

type Answer = (Position, Result<Placed, Unplaced>);

pub(super) struct Flusher {
    tenure: Tenure,
    queue: Arc<Queue>,
    sink: Box<dyn Landed>,
    /// The position that the next entry gets.
    next: Position,
    /// The number that the next entry gets.
    number: u64,
    /// The entry with the first piece of the append whose other pieces are first in the queue.
    begun: Option<u64>,
    /// Entries in order of position, the lowest unacknowledged one first.
    window: VecDeque<Entry>,
    running: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Flusher {
    pub(super) fn new(tenure: Tenure, queue: Arc<Queue>, sink: Box<dyn Landed>) -> Result<Self> {
        let next = tenure.sentinel().next()?;
        let (window, running) = (VecDeque::new(), FuturesUnordered::new());
        Ok(Self { tenure, queue, sink, next, number: 1, begun: None, window, running })
    }

    /// Runs until the queue is closed and empty, or the tenure stops.
    pub(super) async fn run(mut self) {
        let _on_panic = StopOnPanic { tenure: self.tenure.clone(), queue: Arc::clone(&self.queue) };
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
                self.send().map_err(|error| self.failure(error))?;
            }
            let deadline = {
                let mut waiting = self.queue.waiting();
                if waiting.closed && waiting.is_empty() && self.window.is_empty() {
                    waiting.finished = true;
                    return Ok(());
                }
                // A flush alone sends nothing: it waits for answers.
                let first = waiting.first().filter(|_| waiting.bytes() > 0);
                first.map(|item| item.queued + self.queue.config.flush_interval)
            };
            // With the window full only an answer helps; the deadline is for items that nobody is waiting for.
            let due = deadline.filter(|_| self.window_is_open());
            // In this order, so that a run is repeated exactly by the same answers.
            tokio::select! {
                biased;
                Some(answer) = self.running.next() => self.answered(answer)?,
                () = self.queue.bell.notified() => {}
                () = sleep_until(due) => {}
                () = self.tenure.stopped() => {}
            }
            // Appends that are woken together shall leave together: those that were just acknowledged come back
            // with the next ones, instead of waiting for the PUT of the others.
            tokio::task::yield_now().await;
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
        let Some(first) = waiting.first() else {
            return false;
        };
        waiting.bytes() > 0
            && (waiting.closed
                || waiting.bytes() >= self.queue.config.max_buffer_bytes
                || waiting.is_urgent()
                || self.queue.is_waiting_for_memory()
                || first.queued.elapsed() >= self.queue.config.flush_interval)
    }

    /// Takes a group from the queue, encodes it and starts its PUT.
    fn send(&mut self) -> Result<()> {
        let (items, batches, bytes) = self.take_group()?;
        let number = self.number;
        self.number += 1;
        let mut entry = Entry {
            number,
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
            let since = match (&item.batch, &item.waiter) {
                // A flush waits for everything before it.
                (None, _) => 0,
                (Some(_), Some(_)) => self.begun.take().unwrap_or(number),
                (Some(_), None) => *self.begun.get_or_insert(number),
            };
            entry.waiters.extend(item.waiter.map(|waiter| Answered { waiter, since }));
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

    /// The items of the next entry, their batches, and its bytes. After an error they are back in the queue.
    fn take_group(&self) -> Result<(Vec<Item>, Vec<RecordBatch>, Bytes)> {
        let limit = self.queue.config.max_buffer_bytes;
        let mut items: Vec<Item> = Vec::new();
        {
            let mut waiting = self.queue.waiting();
            let mut taken = 0;
            while let Some(item) = waiting.first() {
                if taken > 0 && taken + item.bytes > limit {
                    break;
                }
                taken += item.bytes;
                items.extend(waiting.take());
            }
        }
        // The limit is on what is sent, which may be more than what was counted: give back from the end until it fits.
        loop {
            let batches: Vec<RecordBatch> = items.iter().filter_map(|item| item.batch.clone()).collect();
            let encoded = encode_rows(&self.queue.schema, &batches, self.tenure.identity());
            let keep = match &encoded {
                Ok(bytes) if bytes.len() <= limit => return encoded.map(|bytes| (items, batches, bytes)),
                Ok(_) => batches.len() / 2,
                Err(_) => 0,
            };
            self.give_back(&mut items, keep);
            if keep == 0 {
                // Each piece was measured when it was accepted, so that one alone always fits.
                let limit = Error::InvalidArgument("a piece of an append fits into no entry".into());
                return Err(encoded.err().unwrap_or(limit));
            }
        }
    }

    /// Returns the last items of a group to the queue, until at most `keep` batches are left.
    fn give_back(&self, items: &mut Vec<Item>, keep: usize) {
        let mut waiting = self.queue.waiting();
        let mut batches = items.iter().filter(|item| item.batch.is_some()).count();
        while batches > keep
            && let Some(item) = items.pop()
        {
            batches -= usize::from(item.batch.is_some());
            waiting.give_back(item);
        }
        // Flushes in front of the first batch do not leave without it.
        while keep == 0
            && let Some(item) = items.pop()
        {
            waiting.give_back(item);
        }
    }

    /// Takes the answer of one PUT.
    fn answered(&mut self, (position, placed): Answer) -> Result<(), Failure> {
        let landed =
            resolve(&self.tenure, position, placed).map_err(|error| Failure { error, from: Some(position) })?;
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
        self.next = self.next.next().map_err(|error| self.failure(error))?;
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
            // After the sink has them, so that a reader of both never misses them.
            self.queue.waiting().hand_over(batches);
            if let Err(reason) = taken {
                let error = self.tenure.poison(reason, Outcome::Written);
                entry.waiters.into_iter().for_each(|a| drop(a.waiter.send(Err(error.clone()))));
                return Err(Failure { error, from: None });
            }
            entry.waiters.into_iter().for_each(|a| drop(a.waiter.send(Ok(entry.position))));
        }
        Ok(())
    }

    /// Barriers at the head of the queue are answered when nothing before them is in flight.
    fn answer_idle_barriers(&mut self) {
        if !self.window.is_empty() {
            return;
        }
        let mut waiting = self.queue.waiting();
        while waiting.first().is_some_and(|item| item.batch.is_none()) {
            if let Some(waiter) = waiting.take().and_then(|item| item.waiter) {
                let _ = waiter.send(Ok(self.tenure.acknowledged()));
            }
        }
    }

    /// What stops the writer although no answer of the store did: the handle cannot go on with what it has accepted.
    fn failure(&self, error: Error) -> Failure {
        Failure { error: self.tenure.poison(error.to_string(), Outcome::NotWritten), from: None }
    }

    /// Answers every append that was accepted and not acknowledged, each with what is true of it.
    fn answer_all(&mut self, failure: &Failure) {
        let failed = self.window.iter().find(|entry| Some(entry.position) == failure.from).map(|entry| entry.number);
        // Behind a successor's entry ours are dead wherever they land; at it, ours is not there.
        let fence = failed.filter(|_| matches!(failure.error, Error::Fenced { .. }));
        let outcome = |since: u64, until: u64| match (fence, failed) {
            (Some(fence), _) if since >= fence => Outcome::NotWritten,
            (None, Some(failed)) if since == failed && until == failed => failure.error.outcome(),
            // Some of it was sent, and not answered in order.
            _ => Outcome::Unknown,
        };
        for entry in self.window.drain(..) {
            for Answered { waiter, since } in entry.waiters {
                let _ = waiter.send(Err(failure.answer(&self.tenure, outcome(since, entry.number))));
            }
        }
        let queued = self.queue.waiting().abandon();
        for item in queued {
            let outcome = match (&item.batch, self.begun) {
                (None, _) => Outcome::Unknown,
                (Some(_), Some(since)) => outcome(since, u64::MAX),
                (Some(_), None) => Outcome::NotWritten,
            };
            if let Some(waiter) = item.waiter {
                let _ = waiter.send(Err(failure.answer(&self.tenure, outcome)));
                if item.batch.is_some() {
                    self.begun = None;
                }
            }
        }
    }
}

/// Why the flusher stopped, and at which position if at one.
struct Failure {
    error: Error,
    from: Option<Position>,
}

impl Failure {
    fn answer(&self, tenure: &Tenure, outcome: Outcome) -> Error {
        match &self.error {
            Error::Fenced { .. } | Error::Poisoned { .. } => self.error.with_outcome(outcome),
            error if error.outcome() == outcome => error.clone(),
            error => Error::Poisoned { shard: tenure.shard().id(), reason: error.to_string(), outcome },
        }
    }
}

/// Lets nobody wait for a task that is no more: a sink is the caller's code and may panic.
struct StopOnPanic {
    tenure: Tenure,
    queue: Arc<Queue>,
}

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = self.tenure.poison("the task that writes the log panicked", Outcome::Unknown);
            let queued = self.queue.waiting().abandon();
            for waiter in queued.into_iter().filter_map(|item| item.waiter) {
                let _ = waiter.send(Err(error.clone()));
            }
            self.queue.stop_waiting_for_memory();
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
