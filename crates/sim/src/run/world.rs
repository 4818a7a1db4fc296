//! The one thing that all processes of a run share: the true store, the clock, and the oracle that watches every
//! change of the store the moment it happens. It owns no process; stalls and faults are the processes' own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectMeta};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::adversary::LyingInWait;
use super::coverage::Coverage;
use super::habits::{Habits, Kind, Point};
use super::oracle::{Invariant, Oracle, Violation};
use super::trace::{Trace, fnv};
use crate::lock;

/// What others wait for: a stalled process sleeps until one of these has happened a few times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Claimed,
    Published,
    Collected,
    Pruned,
    /// A forgotten manifest came back.
    CameBack,
    /// A checkpoint's object was deleted.
    CheckpointDeleted,
    /// Not how often: the highest position that was collected.
    CollectedUpTo,
    /// Not how often: the highest version that was pruned.
    PrunedUpTo,
    /// Not how often, as all below: exactly this forgotten version came back.
    CameBackAt,
    /// Somebody sends a PUT to exactly this position, for which a straggler lies in wait.
    AwaitedAt,
    /// Bytes came to exactly this position after it had been collected.
    ReturnedAt,
    /// An entry landed at exactly this position.
    LandedAt,
    /// Exactly this position was collected.
    CollectedAt,
    /// Somebody's PUT of exactly this manifest is held back.
    HeldAt,
}

/// How many kinds of events there are.
pub(crate) const EVENTS: usize = 14;

/// When something goes on: at a time, or earlier if others have done something often enough.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    pub(crate) event: Option<(Event, u64)>,
}

/// An object's role in a shard, from its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Entry(u64),
    Manifest(u64),
    /// The rows of an SSTable; the name of its folder.
    SsTable(String),
    Checkpoint(String),
    EntryFolder,
    ManifestFolder,
    Other,
}

/// The roots of the stores that the log may be in besides the table's own.
pub(crate) const WAL_STORES: [&str; 2] = ["w1", "w2"];

/// The number of the store that an object is in: 0 is the table's own.
pub(crate) fn store_number(path: &Path) -> usize {
    let root = path.as_ref().split('/').next();
    WAL_STORES.iter().position(|store| Some(*store) == root).map_or(0, |n| n + 1)
}

impl ObjectKind {
    pub(crate) fn of(path: &Path) -> Self {
        // t/_mem_wal/{shard}/…
        let mut parts = path.as_ref().split('/').skip(3);
        let number = |name: &str, suffix: &str| {
            let bits = name.strip_suffix(suffix).filter(|bits| bits.len() == 64)?;
            u64::from_str_radix(bits, 2).ok().map(u64::reverse_bits)
        };
        match (parts.next(), parts.next()) {
            (Some("wal"), None) => Self::EntryFolder,
            (Some("manifest"), None) => Self::ManifestFolder,
            (Some("wal"), Some(name)) => number(name, ".arrow").map_or(Self::Other, Self::Entry),
            (Some("manifest"), Some(name)) => number(name, ".binpb").map_or(Self::Other, Self::Manifest),
            (Some("checkpoints"), Some(name)) => Self::Checkpoint(name.to_owned()),
            (Some(folder), Some("rows")) if folder.contains("_gen_") => Self::SsTable(folder.to_owned()),
            _ => Self::Other,
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(position) => write!(f, "wal/{position}"),
            Self::Manifest(version) => write!(f, "manifest/{version}"),
            Self::SsTable(folder) => write!(f, "{folder}"),
            Self::Checkpoint(name) => write!(f, "checkpoints/{name}"),
            Self::EntryFolder => f.write_str("wal/"),
            Self::ManifestFolder => f.write_str("manifest/"),
            Self::Other => f.write_str("other"),
        }
    }
}

/// One request, as it arrives at the store.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Create(Bytes),
    Overwrite(Bytes),
    Get,
    List,
    Delete,
}

impl Request {
    pub(crate) fn point(&self, kind: &ObjectKind) -> Point {
        match (self, kind) {
            (Self::Delete, _) => Point::Delete,
            (Self::Create(_), ObjectKind::Entry(_)) => Point::CreateEntry,
            (Self::Create(_), ObjectKind::Manifest(_)) => Point::CreateManifest,
            (Self::Get, ObjectKind::Entry(_)) => Point::GetEntry,
            (Self::Get, ObjectKind::Manifest(_)) => Point::GetManifest,
            (Self::List, ObjectKind::EntryFolder) => Point::ListEntries,
            (Self::List, ObjectKind::ManifestFolder) => Point::ListManifests,
            (_, ObjectKind::SsTable(_)) => Point::SsTable,
            _ => Point::Other,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create(_) => "create",
            Self::Overwrite(_) => "overwrite",
            Self::Get => "get",
            Self::List => "list",
            Self::Delete => "delete",
        })
    }
}

/// What the store answers.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Done,
    Object(ObjectMeta, Bytes),
    Listing(Vec<ObjectMeta>),
}

#[derive(Debug)]
struct Object {
    bytes: Bytes,
    modified: Duration,
}

#[derive(Debug)]
pub(crate) struct State {
    objects: BTreeMap<Path, Object>,
    pub(crate) oracle: Oracle,
    pub(crate) coverage: Coverage,
    trace: Trace,
    violation: Option<Violation>,
    events: [u64; EVENTS],
    /// Those of the events that are about one object.
    exact: BTreeSet<(Event, u64)>,
    collected: BTreeSet<u64>,
    pub(crate) lying_in_wait: LyingInWait,
    /// Writers that are about to open the shard.
    pub(crate) opening: u32,
    /// The epoch of the last process that took the shard over, for as long as it lives.
    pub(crate) owner: Option<u64>,
    rounds_left: u64,
    calm: bool,
    /// Objects created and deleted.
    changes: u64,
}

/// The shared side of a run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) habits: Habits,
    start: Instant,
    state: Mutex<State>,
    /// Something happened that a [`Moment`] may wait for.
    news: Notify,
    failed: Notify,
}

impl World {
    pub(crate) fn new(habits: Habits, trace: bool) -> Arc<Self> {
        let state = State {
            objects: BTreeMap::new(),
            oracle: Oracle::new(habits.kind),
            coverage: Coverage::default(),
            trace: Trace::new(trace),
            violation: None,
            events: [0; EVENTS],
            exact: BTreeSet::new(),
            collected: BTreeSet::new(),
            lying_in_wait: LyingInWait::default(),
            opening: 0,
            owner: None,
            rounds_left: habits.rounds,
            calm: false,
            changes: 0,
        };
        Arc::new(Self {
            habits,
            start: Instant::now(),
            state: Mutex::new(state),
            news: Notify::new(),
            failed: Notify::new(),
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.habits.kind
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The wall clock of everybody: no two processes disagree here, because no safety rests on it anyway.
    pub(crate) fn wall_clock(&self) -> SystemTime {
        wall_clock_at(self.start.elapsed())
    }

    pub(crate) fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        self.state().trace.line(self.start.elapsed(), who, what);
    }

    pub(crate) fn count(&self, what: &'static str) {
        self.state().coverage.count(what);
    }

    /// Counts something if what it waited for has happened.
    pub(crate) fn count_if(&self, event: Event, number: u64, what: &'static str) {
        if self.has_happened(event, number) {
            self.count(what);
        }
    }

    /// Takes one round of the workload; `false` when there is none left.
    pub(crate) fn take_round(&self) -> bool {
        let mut state = self.state();
        match state.rounds_left.checked_sub(1) {
            Some(left) => {
                state.rounds_left = left;
                true
            }
            None => false,
        }
    }

    pub(crate) fn set_rounds(&self, rounds: u64) {
        self.state().rounds_left = rounds;
    }

    pub(crate) fn set_calm(&self, calm: bool) {
        self.state().calm = calm;
    }

    pub(crate) fn rounds_left(&self) -> u64 {
        self.state().rounds_left
    }

    /// Ends every fault, stall and wait.
    pub(crate) fn calm_down(&self) {
        let mut state = self.state();
        state.calm = true;
        state.rounds_left = 0;
        drop(state);
        self.news.notify_waiters();
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.state().calm
    }

    pub(crate) fn events(&self, event: Event) -> u64 {
        self.state().events.get(event as usize).copied().unwrap_or_default()
    }

    pub(crate) fn has_come(&self, moment: &Moment) -> bool {
        self.is_calm()
            || Instant::now() >= moment.at
            || moment.event.is_some_and(|(event, count)| self.has_happened(event, count))
    }

    /// So often, up to there, or just there: as the event says.
    pub(crate) fn has_happened(&self, event: Event, number: u64) -> bool {
        self.events(event) >= number || self.state().exact.contains(&(event, number))
    }

    /// Something happened to exactly this object.
    pub(crate) fn happened(&self, event: Event, number: u64) {
        self.state().exact.insert((event, number));
        self.news.notify_waiters();
    }

    /// Waits for a moment, or for the calm.
    pub(crate) async fn wait_for(&self, moment: &Moment) {
        loop {
            let news = self.news.notified();
            if self.has_come(moment) {
                return;
            }
            tokio::select! {
                biased;
                () = news => {}
                () = tokio::time::sleep_until(moment.at) => {}
            }
        }
    }

    pub(crate) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Waits until the store is another than after `seen` changes, for a day at most.
    pub(crate) async fn wait_for_change(&self, seen: u64) {
        let at = Instant::now() + Duration::from_secs(24 * 3600);
        loop {
            let news = self.news.notified();
            if self.is_calm() || self.changes() != seen || Instant::now() >= at {
                return;
            }
            tokio::select! {
                biased;
                () = news => {}
                () = tokio::time::sleep_until(at) => {}
            }
        }
    }

    /// Records what the oracle found; the first violation ends the run.
    pub(crate) fn judge(&self, who: &str, found: Result<(), Violation>) {
        if let Err(violation) = found {
            self.note(who, format_args!("VIOLATION {violation}"));
            self.state().violation.get_or_insert(violation);
            self.failed.notify_one();
        }
    }

    pub(crate) fn fail(&self, who: &str, invariant: Invariant, what: String) {
        self.judge(who, Err(Violation { invariant, what }));
    }

    pub(crate) async fn failed(&self) {
        self.failed.notified().await;
    }

    pub(crate) fn end(&self) -> (Option<Violation>, Coverage, u64, u64, Vec<String>, Duration) {
        let mut state = self.state();
        let (hash, count) = (state.trace.hash(), state.trace.count());
        let lines = state.trace.take_lines();
        (state.violation.take(), std::mem::take(&mut state.coverage), hash, count, lines, self.start.elapsed())
    }

    /// A request arrives: it is carried out in one moment, and the oracle looks at what it changed.
    pub(crate) fn arrive(&self, who: &str, path: &Path, request: &Request) -> Result<Answer, StoreError> {
        let kind = ObjectKind::of(path);
        let now = self.start.elapsed();
        let mut found = Ok(());
        let answer = {
            let state = &mut *self.state();
            state.oracle.tick(wall_clock_at(now));
            let answer = match request {
                Request::Create(_) if state.objects.contains_key(path) => {
                    Err(StoreError::AlreadyExists { path: path.to_string(), source: "it is there".into() })
                }
                Request::Create(bytes) | Request::Overwrite(bytes) => {
                    state.objects.insert(path.clone(), Object { bytes: bytes.clone(), modified: now });
                    let events = state.oracle.events();
                    found = state.oracle.created(store_number(path), &kind, bytes, &mut state.coverage);
                    state.add_events(events);
                    state.note_return(&kind, events);
                    if let ObjectKind::Entry(position) = kind {
                        state.exact.insert((Event::LandedAt, position));
                    }
                    state.changes += 1;
                    Ok(Answer::Done)
                }
                Request::Get => match state.objects.get(path) {
                    Some(object) => Ok(Answer::Object(meta(path, object), object.bytes.clone())),
                    None => Err(not_found(path)),
                },
                Request::List => Ok(Answer::Listing(state.list(path))),
                Request::Delete => {
                    if state.objects.remove(path).is_some() {
                        let events = state.oracle.events();
                        found = state.oracle.deleted(store_number(path), &kind, &mut state.coverage);
                        if let ObjectKind::Entry(position) = kind {
                            state.collected.insert(position);
                            state.exact.insert((Event::CollectedAt, position));
                        }
                        state.add_events(events);
                        state.changes += 1;
                    }
                    // As S3 answers it.
                    Ok(Answer::Done)
                }
            };
            let outcome = match &answer {
                Ok(Answer::Listing(found)) => format!("{} names", found.len()),
                Ok(_) => "ok".to_owned(),
                Err(StoreError::NotFound { .. }) => "absent".to_owned(),
                Err(_) => "exists".to_owned(),
            };
            match request {
                Request::Create(bytes) => {
                    let content = fnv(0, bytes) as u32;
                    state.trace.line(now, who, format_args!("{request} {kind} #{content:08x} {outcome}"));
                    if state.trace.is_kept() {
                        let detail = state.oracle.describe(&kind, bytes);
                        state.trace.detail(&detail);
                    }
                }
                _ => state.trace.line(now, who, format_args!("{request} {kind} {outcome}")),
            }
            answer
        };
        self.news.notify_waiters();
        self.judge(who, found);
        answer
    }
}

impl World {
    /// An operator looks whether the WAL store that the newest manifest names may be wiped, and wipes it. Nobody is
    /// opening the shard, who has it open goes on (section 10); all of it in one moment.
    pub(crate) fn wipe_if_allowed(&self, who: &str) {
        let wiped: Vec<Path> = {
            let state = self.state();
            let Some(store) = state.oracle.wal_store_to_wipe().filter(|_| state.opening == 0) else { return };
            let root = WAL_STORES.get(store - 1).map(|root| format!("{root}/")).unwrap_or_default();
            state.objects.keys().filter(|path| path.as_ref().starts_with(&root)).cloned().collect()
        };
        for path in &wiped {
            if let Err(error) = self.arrive(who, path, &Request::Delete) {
                self.fail(who, Invariant::Truth, format!("the world cannot delete {path}: {error}"));
            }
        }
        if !wiped.is_empty() {
            self.count("WAL stores wiped");
        }
    }
}

impl State {
    /// An object came into being whose name had been deleted before.
    fn note_return(&mut self, kind: &ObjectKind, before: [u64; EVENTS]) {
        let count = |events: [u64; EVENTS]| events.get(Event::CameBack as usize).copied();
        let event = match kind {
            ObjectKind::Manifest(version) if count(self.oracle.events()) != count(before) => {
                (Event::CameBackAt, *version)
            }
            ObjectKind::Entry(position) if self.collected.contains(position) => (Event::ReturnedAt, *position),
            _ => return,
        };
        self.exact.insert(event);
    }

    fn list(&self, prefix: &Path) -> Vec<ObjectMeta> {
        let below = format!("{prefix}/");
        let found = self.objects.iter().filter(|(path, _)| path.as_ref().starts_with(&below));
        found.map(|(path, object)| meta(path, object)).collect()
    }

    fn add_events(&mut self, before: [u64; EVENTS]) {
        let after = self.oracle.events();
        for ((count, before), after) in self.events.iter_mut().zip(before).zip(after) {
            *count += after - before;
        }
    }
}

fn meta(path: &Path, object: &Object) -> ObjectMeta {
    ObjectMeta {
        location: path.clone(),
        last_modified: wall_clock_at(object.modified).into(),
        size: object.bytes.len() as u64,
        e_tag: None,
        version: None,
    }
}

fn not_found(path: &Path) -> StoreError {
    StoreError::NotFound { path: path.to_string(), source: "it is not there".into() }
}

fn wall_clock_at(elapsed: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + elapsed
}
