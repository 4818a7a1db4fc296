//! The task that empties the queue: gives groups their positions, keeps a window of PUTs in flight, acknowledges in
//! order of position, and answers everybody when the tenure ends. When a group leaves is told by `waiting` and `pace`,
//! what is in it by `group`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::group::{Group, Ready};
use super::pace::{Cap, Spacing};
use super::queue::{Held, Queue};
use super::waiting::Waiter;
use super::{Landed, LandedEntry};
use crate::appender::resolve;
use crate::error::{Error, Outcome, Result};
use crate::ids::Position;
use crate::mutants::{Mutant, is_on};
use crate::slot::{Placed, Unplaced, place};
use crate::stats::add;
use crate::tenure::Tenure;

/// Groups that are taken from a full queue to be encoded side by side, at most.
const GROUPS_AHEAD: usize = 4;

/// An entry in the window: sent, perhaps landed, not yet acknowledged.
struct Entry {
    /// Counts the entries of this writer; it stays when a dead position moves the entry.
    number: u64,
    position: Position,
    bytes: Bytes,
    batches: Vec<RecordBatch>,
    /// The batches of appends that these were made of.
    appended: usize,
    held: Held,
    waiters: Vec<Answered>,
    /// When its rows were taken from the queue.
    taken: Instant,
    sent: Instant,
    landed: bool,
}

impl Entry {
    fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
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
    /// The groups that leave next, in their order: they are being encoded, or wait for a PUT that may start. A second one only
    /// if it cannot grow any more.
    groups: VecDeque<Group>,
    cap: Option<Cap>,
    spacing: Spacing,
    /// Entries in order of position, the lowest unacknowledged one first.
    window: VecDeque<Entry>,
    running: FuturesUnordered<BoxFuture<'static, Answer>>,
}

impl Flusher {
    pub(super) fn new(tenure: Tenure, queue: Arc<Queue>, sink: Box<dyn Landed>) -> Result<Self> {
        let next = tenure.sentinel().next()?;
        let (window, running) = (VecDeque::new(), FuturesUnordered::new());
        let (cap, spacing) = (Cap::new(&queue.config), Spacing::new(&queue.config));
        Ok(Self {
            tenure,
            queue,
            sink,
            next,
            number: 1,
            begun: None,
            groups: VecDeque::new(),
            cap,
            spacing,
            window,
            running,
        })
    }

    /// Runs until the queue is closed and empty, or the tenure stops.
    pub(super) async fn run(mut self) {
        let _on_panic = StopOnPanic { tenure: self.tenure.clone(), queue: Arc::clone(&self.queue) };
        if let Err(failure) = self.work().await {
            self.tenure.stop(failure.error.clone());
            self.undo_groups();
            self.answer_all(&failure);
        }
        self.queue.stop_waiting_for_memory();
    }

    async fn work(&mut self) -> Result<(), Failure> {
        loop {
            self.tenure.check().map_err(|error| Failure { error, from: None })?;
            self.answer_idle_barriers();
            self.send_what_may_leave().map_err(|error| self.failure(error))?;
            {
                let mut waiting = self.queue.waiting();
                if waiting.closed && waiting.is_empty() && self.groups.is_empty() && self.window.is_empty() {
                    waiting.finished = true;
                    return Ok(());
                }
            }
            let due = self.wakes_at();
            // In this order, so that a run is repeated exactly by the same answers.
            tokio::select! {
                biased;
                Some(answer) = self.running.next() => self.answered(answer)?,
                () = encoded(self.groups.front_mut()) => continue,
                () = self.queue.bell.notified() => {}
                () = sleep_until(due) => {}
                () = self.tenure.stopped() => {}
            }
            // Appends that are woken together shall leave together: those that were just acknowledged come back
            // with the next ones, instead of waiting for the PUT of the others.
            tokio::task::yield_now().await;
        }
    }

    /// Sends the group that is encoded if a PUT may start, and has the next one encoded.
    fn send_what_may_leave(&mut self) -> Result<()> {
        loop {
            let is_encoded = self.groups.front().is_some_and(Group::is_encoded);
            let leaving = if is_encoded && self.may_start() { self.groups.pop_front() } else { None };
            let has_left = leaving.is_some();
            if let Some(group) = leaving {
                if !group.is_whole() {
                    // What does not fit returns to the queue, in front of what was taken after it.
                    self.undo_groups();
                }
                let ready = group.ready(&self.queue)?;
                self.send(ready)?;
            }
            if self.may_gather() {
                self.groups.push_back(Group::take(&self.queue));
            } else if !has_left {
                return Ok(());
            }
        }
    }

    /// Whether the next group is to be made: it is due and a PUT may start, or it cannot grow any more.
    fn may_gather(&self) -> bool {
        let is_full = self.queue.waiting().bytes() >= self.queue.config.max_buffer_bytes;
        match self.groups.len() {
            0 => is_full || (self.may_start() && self.due().is_some_and(|due| due <= Instant::now())),
            ahead => is_full && ahead < GROUPS_AHEAD,
        }
    }

    /// Returns the groups, of which nothing was sent, to the queue.
    fn undo_groups(&mut self) {
        while let Some(group) = self.groups.pop_back() {
            group.undo(&self.queue);
        }
    }

    /// When what waits in the queue is to leave, perhaps in the past.
    fn due(&self) -> Option<Instant> {
        let waiting = self.queue.waiting();
        let due = waiting.due(&self.queue.config)?;
        if waiting.is_pressing(&self.queue.config) || self.queue.is_waiting_for_memory() {
            return Some(due.min(Instant::now()));
        }
        if self.window.is_empty() {
            return Some(due);
        }
        let under_way = waiting.urgent() + self.window.iter().map(|entry| entry.waiters.len()).sum::<usize>();
        Some(due.max(self.spacing.ready_at(under_way)))
    }

    fn may_start(&self) -> bool {
        self.window_is_open() && self.cap.as_ref().is_none_or(|cap| cap.ready_at() <= Instant::now())
    }

    /// When there is something to do although no answer came and nobody rang.
    fn wakes_at(&self) -> Option<Instant> {
        // With the window full only an answer helps.
        if !self.window_is_open() {
            return None;
        }
        let capped_until = self.cap.as_ref().map(Cap::ready_at);
        match self.groups.front() {
            Some(group) if group.is_encoded() => capped_until,
            Some(_) => None,
            None => self.due().map(|due| capped_until.map_or(due, |until| until.max(due))),
        }
    }

    /// The distance in positions is bounded, not the count: otherwise one stuck PUT would let stragglers land
    /// arbitrarily far ahead (schedule 15). Within reach of a dead predecessor's stragglers, one at a time.
    fn window_is_open(&self) -> bool {
        let Some(lowest) = self.window.front() else {
            return true;
        };
        // The zone of the lowest one: a straggler on its position moves it to the next, which must still be free.
        let width = match self.tenure.in_serial_zone(lowest.position) && !is_on(Mutant::NoSerialZone) {
            true => 1,
            false => self.queue.config.max_in_flight as u64,
        };
        if is_on(Mutant::WindowByCount) {
            return (self.window.iter().filter(|entry| !entry.landed).count() as u64) < width;
        }
        self.next.get() - lowest.position.get() < width
    }

    /// Gives a group the next position and starts its PUT.
    fn send(&mut self, Ready { items, batches, bytes, taken }: Ready) -> Result<()> {
        let number = self.number;
        self.number += 1;
        let mut entry = Entry {
            number,
            position: self.next,
            bytes,
            batches,
            appended: items.iter().filter(|item| item.batch.is_some()).count(),
            held: Held::default(),
            waiters: Vec::new(),
            taken,
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
        self.start_put(entry.position, entry.bytes.clone());
        self.window.push_back(entry);
        Ok(())
    }

    fn start_put(&mut self, position: Position, bytes: Bytes) {
        if let Some(cap) = &mut self.cap {
            cap.take();
        }
        self.spacing.started();
        let log = self.tenure.log().clone();
        self.running.push(Box::pin(async move { (position, place(&log, position, &bytes).await) }));
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
            if is_on(Mutant::AcknowledgeOutOfOrder) {
                entry.waiters.drain(..).for_each(|a| drop(a.waiter.send(Ok(position))));
            }
            let took = entry.sent.elapsed();
            self.queue.counters.io.record(entry.rows(), entry.bytes.len(), took);
            self.spacing.took(took);
            return self.acknowledge();
        }
        // A dead position, in the serial zone: this entry is the only one in flight, and takes the next position
        // with the same bytes.
        add(&self.queue.counters.dead_positions, 1usize);
        entry.position = self.next;
        let moved = (entry.position, entry.bytes.clone());
        self.next = self.next.next().map_err(|error| self.failure(error))?;
        self.queue.counters.next_position.store(self.next.get(), Ordering::Relaxed);
        self.start_put(moved.0, moved.1);
        Ok(())
    }

    /// I1, I3: an entry is acknowledged when it and every entry before it have landed.
    fn acknowledge(&mut self) -> Result<(), Failure> {
        while self.window.front().is_some_and(|entry| entry.landed) {
            let Some(entry) = self.window.pop_front() else {
                return Ok(());
            };
            self.tenure.acknowledge(entry.position);
            self.queue.counters.flush.record(entry.rows(), entry.bytes.len(), entry.taken.elapsed());
            let Entry { position, batches, appended, held, .. } = entry;
            let taken = self.sink.landed(LandedEntry { position, batches, appended, held });
            // After the sink has them, so that a reader of both never misses them.
            self.queue.waiting().hand_over(appended);
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
        if !self.window.is_empty() || !self.groups.is_empty() {
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
            Error::Fenced { .. } | Error::Poisoned { .. } | Error::Aborted { .. } => self.error.with_outcome(outcome),
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

async fn encoded(group: Option<&mut Group>) {
    match group.filter(|group| !group.is_encoded()) {
        Some(group) => group.encoded().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
