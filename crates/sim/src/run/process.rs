//! A process of a run: it may stall at any instruction for any time, die, and have requests on the wire that land
//! without it. It owns the dice of everything that happens to it; the objects are the world's.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use fencepost_wal::{Store, Surroundings};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::adversary::{Lure, Trap};
use super::habits::{Plot, spread};
use super::network::wal_store_of;
use super::world::{Event, Moment, ObjectKind, Request, World};
use crate::lock;
use crate::rng::Rng;

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Later stalls of a process are short, so that a run comes to an end.
const MOST_LONG_STALLS: u32 = 4;
/// The adversary has more.
const MOST_PLOTTED_STALLS: u32 = 12;

/// What a process is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Writer,
    Collector,
    Follower,
    Keeper,
}

/// One process, from its start to its death or the end of the run.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) world: Arc<World>,
    /// The plot of forgotten manifests leaves it alone, so that versions go on.
    pub(crate) is_steady: bool,
    /// A stall is that of a whole suspended machine, whose clock stands still as well.
    pub(crate) sleeps_through_stalls: bool,
    /// How long an attempt of a request may take.
    pub(crate) patience: Duration,
    state: Mutex<State>,
    changed: Notify,
    /// Of the process itself: its stalls, its requests' fates, its ids.
    dice: Mutex<Rng>,
}

#[derive(Debug, Default)]
struct State {
    stalled: Option<Stall>,
    /// How often it has stalled.
    stalls: u64,
    dead: bool,
    throttled_until: Option<Instant>,
    long_stalls: u32,
    /// The position that it reads next, as a follower.
    follows: Option<u64>,
    /// It refreshes a checkpoint at the moment.
    refreshes: bool,
    /// The epoch with which it took the shard over.
    epoch: Option<u64>,
    /// When it stood still, from when to when.
    suspended: Vec<(Instant, Instant)>,
    /// Positions of PUTs that were sent and have not arrived; of a dead process, when it died.
    on_the_wire: BTreeSet<u64>,
}

/// The whole process stands still.
#[derive(Debug, Clone, Copy)]
struct Stall {
    /// Until then.
    until: Moment,
    since: Instant,
    /// The how many-th of the process.
    number: u64,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Process({})", self.name)
    }
}

impl Process {
    pub(crate) fn new(world: &Arc<World>, name: String, role: Role, is_steady: bool, mut dice: Rng) -> Arc<Self> {
        Arc::new(Self {
            name,
            role,
            is_steady,
            sleeps_through_stalls: dice.chance(0.5)
                || (role == Role::Follower && world.habits.plot == Some(Plot::Suspended)),
            patience: draw_patience(&mut dice),
            world: Arc::clone(world),
            state: Mutex::default(),
            changed: Notify::new(),
            dice: Mutex::new(dice),
        })
    }

    pub(crate) fn roll<T>(&self, roll: impl FnOnce(&mut Rng) -> T) -> T {
        roll(&mut lock(&self.dice))
    }

    pub(crate) fn chance(&self, p: f64) -> bool {
        p > 0.0 && self.roll(|dice| dice.chance(p)) && !self.world.is_calm()
    }

    pub(crate) fn note(&self, what: fmt::Arguments<'_>) {
        self.world.note(&self.name, what);
    }

    /// Ends it: nothing of it moves any more, only what is on the wire.
    pub(crate) fn die(&self, how: &str) {
        self.note(format_args!("dies {how}"));
        self.world.count("deaths");
        lock(&self.state).dead = true;
        self.changed.notify_waiters();
    }

    pub(crate) fn is_dead(&self) -> bool {
        lock(&self.state).dead
    }

    async fn died(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_dead() {
                return;
            }
            changed.await;
        }
    }

    /// Stops the whole process for a while, whoever of its tasks it is that stalls.
    pub(crate) fn stall(&self, why: fmt::Arguments<'_>, at: Option<&ObjectKind>) {
        if self.is_stalled() {
            return;
        }
        let moment = match lock(&self.state).long_stalls < MOST_LONG_STALLS {
            true => self.draw_moment(at),
            false => Moment { at: Instant::now() + self.roll(|dice| spread(dice, 1, 20 * SECOND)), event: None },
        };
        let _ = self.stall_until(why, moment);
    }

    /// Stops it until a certain moment, unless it has been stopped for long often enough: whether it was.
    pub(crate) fn stall_until(&self, why: fmt::Arguments<'_>, moment: Moment) -> bool {
        let is_long = moment.event.is_some() || moment.at > Instant::now() + Duration::from_millis(3 * HOUR);
        if self.is_stalled() || (is_long && lock(&self.state).long_stalls >= MOST_PLOTTED_STALLS) {
            return false;
        }
        lock(&self.state).long_stalls += u32::from(is_long);
        self.note(format_args!("stalls {why}{}", until(&moment)));
        self.world.count("stalls");
        let mut state = lock(&self.state);
        state.stalls += 1;
        state.stalled = Some(Stall { until: moment, since: Instant::now(), number: state.stalls });
        true
    }

    /// It has taken the shard over, and nobody has replaced it.
    pub(crate) fn owns(&self) -> bool {
        let epoch = lock(&self.state).epoch;
        epoch.is_some() && epoch == self.world.state().oracle.epoch()
    }

    /// Whether it is there that it reads next, not ahead.
    pub(crate) fn is_at(&self, position: u64) -> bool {
        lock(&self.state).follows == Some(position)
    }

    /// Whether what it reads next is at or below this R.
    pub(crate) fn is_behind(&self, replay_after: u64) -> bool {
        lock(&self.state).follows.is_some_and(|next| next <= replay_after)
    }

    pub(crate) fn set_follows(&self, position: Option<u64>) {
        lock(&self.state).follows = position;
    }

    pub(crate) fn refreshes(&self) -> bool {
        lock(&self.state).refreshes
    }

    pub(crate) fn set_refreshes(&self, refreshes: bool) {
        lock(&self.state).refreshes = refreshes;
    }

    /// It is, or was, an owner: what it creates are rows, not sentinels.
    pub(crate) fn has_owned(&self) -> bool {
        lock(&self.state).epoch.is_some()
    }

    pub(crate) fn took_over(&self, epoch: u64) {
        lock(&self.state).epoch = Some(epoch);
        self.world.state().owner = Some(epoch);
    }

    /// Its life is over.
    pub(crate) fn is_gone(&self) {
        let epoch = lock(&self.state).epoch;
        let mut world = self.world.state();
        world.owner = world.owner.filter(|owner| Some(*owner) != epoch);
    }

    fn suspended_since(&self, since: Instant) -> Duration {
        let state = lock(&self.state);
        state.suspended.iter().map(|(from, to)| to.saturating_duration_since(since.max(*from))).sum()
    }

    /// An entry's PUT is sent.
    pub(crate) fn entry_sent(&self, position: u64) {
        lock(&self.state).on_the_wire.insert(position);
    }

    /// It has arrived, or its sender knows that it will not.
    pub(crate) fn entry_answered(&self, position: u64) {
        lock(&self.state).on_the_wire.remove(&position);
    }

    pub(crate) fn entries_on_the_wire(&self) -> usize {
        lock(&self.state).on_the_wire.len()
    }

    /// When something comes that waits for an event, at the latest.
    pub(crate) fn moment_of(event: Event, number: u64) -> Moment {
        let limit = match event {
            // Who holds it back comes soon, or another version is the next.
            Event::HeldAt => 5 * SECOND,
            // A writer that goes on has sent its next entry by then.
            Event::LandedAt => MINUTE,
            // Its sender waits all the while.
            Event::CollectedAt => HOUR,
            Event::ReturnedAt => 2 * HOUR,
            _ => 6 * DAY,
        };
        Moment { at: Instant::now() + Duration::from_millis(limit), event: Some((event, number)) }
    }

    fn is_stalled(&self) -> bool {
        let state = lock(&self.state);
        state.dead || state.stalled.is_some()
    }

    /// Waits while the process is stalled; for ever once it is dead.
    pub(crate) async fn pass(&self) {
        loop {
            let (dead, stalled) = {
                let state = lock(&self.state);
                (state.dead, state.stalled)
            };
            if dead {
                return std::future::pending().await;
            }
            let Some(stall) = stalled else {
                return;
            };
            let collected = self.world.events(Event::Collected);
            let pruned = self.world.events(Event::Pruned);
            self.world.wait_for(&stall.until).await;
            // Several tasks wait here, and the first to go on may have begun another stall.
            let is_over = {
                let mut state = lock(&self.state);
                let is_over = state.stalled.is_some_and(|now| now.number == stall.number);
                if is_over {
                    state.stalled = None;
                    state.suspended.push((stall.since, Instant::now()));
                }
                is_over
            };
            if is_over {
                self.note(format_args!("wakes up"));
                if self.world.events(Event::Collected) > collected {
                    self.world.count("stalls across a collection of the log");
                }
                if self.world.events(Event::Pruned) > pruned {
                    self.world.count("stalls across a pruning of manifests");
                }
            }
        }
    }

    /// A moment in the future: of a stall's end, of a late landing.
    ///
    /// Many of those at a certain object come when it has been collected: that is what a stalled process must survive.
    pub(crate) fn draw_moment(&self, object: Option<&ObjectKind>) -> Moment {
        let lengths = self.world.habits.lengths;
        let (kind, at, event, more) = self.roll(|dice| {
            let all = lengths.short + lengths.minutes + lengths.days + lengths.until_event;
            let kind = dice.below(all);
            let at = match kind {
                n if n < lengths.short => spread(dice, 1, 20 * SECOND),
                n if n < lengths.short + lengths.minutes => spread(dice, MINUTE, 3 * HOUR),
                n if n < lengths.short + lengths.minutes + lengths.days => spread(dice, 3 * HOUR, 5 * DAY),
                _ => spread(dice, HOUR, 6 * DAY),
            };
            let events = [Event::Claimed, Event::Published, Event::Collected, Event::Collected, Event::Pruned];
            let event = dice.pick(&events).copied().unwrap_or(Event::Collected);
            (kind, at, event, 1 + dice.below(3))
        });
        let targeted = match object {
            Some(ObjectKind::Entry(position)) => Some((Event::CollectedUpTo, *position)),
            Some(ObjectKind::Manifest(version)) => Some((Event::PrunedUpTo, *version)),
            _ => None,
        };
        let by_event = kind >= lengths.short + lengths.minutes + lengths.days;
        if let Some(targeted) = targeted.filter(|_| by_event && self.roll(|dice| dice.chance(0.6))) {
            let came_back = (Event::CameBack, self.world.events(Event::CameBack) + 1);
            let event = if targeted.0 == Event::PrunedUpTo && more == 1 { came_back } else { targeted };
            return Moment { at: Instant::now() + Duration::from_millis(6 * DAY), event: Some(event) };
        }
        Moment { at: Instant::now() + at, event: by_event.then(|| (event, self.world.events(event) + more)) }
    }

    /// The fate of a request whose sender waits no longer, because it died or stopped: it is lost (`false`), or arrives,
    /// often when a successor has just claimed the shard.
    pub(crate) async fn abandoned_arrives(self: &Arc<Self>, request: &Request, object: &ObjectKind) -> bool {
        if self.world.is_calm() {
            return true;
        }
        if let (Some(Plot::Stragglers), Request::Create(_), ObjectKind::Entry(position)) =
            (self.world.habits.plot, request, object)
        {
            // The successor finds the end of the log at the lowest one that has not arrived, and meets the others one by one.
            if lock(&self.state).on_the_wire.first() == Some(position) {
                return false;
            }
            let trap = Trap::set(self, Lure::Straggler, *position);
            self.world.wait_for(&Self::moment_of(Event::AwaitedAt, *position)).await;
            drop(trap);
            if self.world.has_happened(Event::AwaitedAt, *position) {
                self.world.count("stragglers that were sent in front of a successor's PUT");
            }
            return true;
        }
        let (fate, at, after) =
            self.roll(|dice| (dice.below(10), spread(dice, MINUTE, 2 * DAY), spread(dice, 1, 2000)));
        match fate {
            0..3 => return false,
            3..7 => {
                let event = (Event::Claimed, self.world.events(Event::Claimed) + 1);
                self.world.wait_for(&Moment { at: Instant::now() + at, event: Some(event) }).await;
                tokio::time::sleep(after).await;
            }
            7 | 8 => self.world.wait_for(&self.draw_moment(Some(object))).await,
            _ => {}
        }
        self.world.count("requests that arrived without their sender");
        true
    }

    /// A pause between two things that the process does by itself.
    pub(crate) async fn pause(&self) {
        self.pause_of((1, 2 * SECOND)).await;
    }

    /// The time from the end of another in its place to its own start.
    pub(crate) async fn restart(&self) {
        self.pause_of(self.world.habits.restart).await;
    }

    async fn pause_of(&self, (least, most): (u64, u64)) {
        // There, days pass for those who commit, not for those who append.
        let is_busy = self.role == Role::Writer && self.world.habits.plot == Some(Plot::Suspended);
        let long = if is_busy { 0.0 } else { self.world.habits.long_pause };
        let pause = self.roll(|dice| match dice.chance(long) {
            true => spread(dice, MINUTE, 2 * DAY),
            false => spread(dice, least, most),
        });
        if !self.world.is_calm() {
            self.world.wait_for(&Moment { at: Instant::now() + pause, event: None }).await;
        }
    }

    pub(crate) fn is_throttled(&self) -> bool {
        lock(&self.state).throttled_until.is_some_and(|until| Instant::now() < until)
    }

    pub(crate) fn throttle(&self) {
        let time = self.roll(|dice| spread(dice, SECOND, 2 * MINUTE));
        lock(&self.state).throttled_until = Some(Instant::now() + time);
    }
}

fn until(moment: &Moment) -> String {
    let seconds = moment.at.saturating_duration_since(Instant::now()).as_secs_f64();
    match moment.event {
        Some((event, count)) => format!(" until {event:?} is {count} or {seconds:.3}s have passed"),
        None => format!(" for {seconds:.3}s"),
    }
}

/// Runs a life of a process: `None` if it died. Every point where the life waits may become a stall.
pub(crate) async fn live<T>(process: &Arc<Process>, life: impl Future<Output = T> + Send) -> Option<T> {
    let stalling = Stalling { process, life: Box::pin(life), pass: None };
    tokio::select! {
        biased;
        () = process.died() => None,
        answer = stalling => Some(answer),
    }
}

struct Stalling<'a, F> {
    process: &'a Arc<Process>,
    life: Pin<Box<F>>,
    pass: Option<BoxFuture<'a, ()>>,
}

impl<F: Future> Future for Stalling<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(pass) = &mut self.pass {
                if pass.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.pass = None;
                // It has just waited: it moves on before it may stall again.
                return self.life.as_mut().poll(cx);
            }
            let process = self.process;
            if !process.is_stalled() && process.chance(process.world.habits.stalls.at_poll) {
                process.stall(format_args!("between two instructions"), None);
            }
            if !process.is_stalled() {
                return self.life.as_mut().poll(cx);
            }
            self.pass = Some(process.pass().boxed());
        }
    }
}

/// The clock and the ids of a process.
#[derive(Debug)]
pub(crate) struct Virtual(pub(crate) Arc<Process>);

impl Surroundings for Virtual {
    fn now(&self) -> SystemTime {
        self.0.world.wall_clock()
    }

    fn fresh_id(&self) -> Uuid {
        fresh_id(&self.0)
    }

    fn elapsed(&self, since: Instant) -> Duration {
        let elapsed = since.elapsed();
        match self.0.sleeps_through_stalls {
            true => elapsed.saturating_sub(self.0.suspended_since(since)),
            false => elapsed,
        }
    }

    fn open_store(&self, url: &str) -> Option<Store> {
        wal_store_of(&self.0, url.strip_prefix("memory://simulation/")?)
    }
}

pub(crate) fn fresh_id(process: &Process) -> Uuid {
    let (high, low) = process.roll(|dice| (dice.next_u64(), dice.next_u64()));
    uuid::Builder::from_u128(u128::from(high) << 64 | u128::from(low)).with_version(uuid::Version::Random).into_uuid()
}

/// How long one attempt of a request may take in this process: most wait as long as a stall lasts, because a process
/// that really stops does not count the time either.
fn draw_patience(dice: &mut Rng) -> Duration {
    *dice
        .pick(&[Duration::from_secs(5), Duration::from_secs(30), YEARS, YEARS, YEARS])
        .unwrap_or(&Duration::from_secs(30))
}

const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
