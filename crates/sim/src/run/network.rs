//! The way between a process and the store: latencies, lost answers, late landings, refusals. What was sent goes on
//! without its sender.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use fencepost_wal::{RetryPolicy, Shard, ShardId, Store};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::adversary::{self, Plan, Trap};
use super::habits::{Faults, spread};
use super::oracle::Invariant;
use super::process::{Process, Virtual};
use super::world::{Answer, Event, Moment, ObjectKind, Request, World};

/// The shard of every run.
pub(crate) fn shard_id() -> ShardId {
    ShardId::from_uuid(Uuid::from_u128(0x5EED))
}

/// A process's view of the shard.
pub(crate) fn shard_of(process: &Arc<Process>) -> Result<Shard, url::ParseError> {
    let retry = process.roll(|dice| RetryPolicy {
        max_attempts: *dice.pick(&[2, 4, 8, 12]).unwrap_or(&8),
        attempt_timeout: process.patience,
        ..RetryPolicy::default()
    });
    Ok(Shard::new(store_of(process, "t", retry)?, shard_id()))
}

fn store_of(process: &Arc<Process>, root: &str, retry: RetryPolicy) -> Result<Store, url::ParseError> {
    let network: Arc<dyn ObjectStore> = Arc::new(Network { process: Arc::clone(process) });
    let url = Url::parse("memory://simulation/")?.join(root)?;
    let store = Store::from_parts(url, network, Path::from(root)).with_retry(retry);
    Ok(store.with_surroundings(Arc::new(Virtual(Arc::clone(process)))))
}

/// A process's view of one of the [`WAL_STORES`], with the patience of its view of the table.
pub(crate) fn wal_store_of(process: &Arc<Process>, root: &str) -> Option<Store> {
    let retry = RetryPolicy { attempt_timeout: process.patience, ..RetryPolicy::default() };
    store_of(process, root, retry).ok()
}

/// What the dice make of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    LostAck,
    LostAckAsExists,
    Conflict409,
    Late,
    Echo,
    Unavailable,
    Slow,
    Hang,
    Throttle,
}

impl Fate {
    fn draw(process: &Process, request: &Request) -> Self {
        if process.is_throttled() {
            return Self::Unavailable;
        }
        let f: Faults = process.world.habits.faults;
        if process.world.is_calm() {
            return Self::Fine;
        }
        let creates = matches!(request, Request::Create(_));
        let writes = creates || matches!(request, Request::Delete);
        let table = [
            (Self::LostAck, f.lost_ack, true),
            (Self::LostAckAsExists, f.lost_ack_as_exists, creates),
            (Self::Conflict409, f.conflict_409, creates),
            (Self::Late, f.late, writes),
            (Self::Echo, f.echo, creates),
            (Self::Unavailable, f.unavailable, true),
            (Self::Slow, f.slow, true),
            (Self::Hang, f.hang, creates),
            (Self::Throttle, f.throttle, true),
        ];
        let mut draw = process.roll(crate::Rng::unit);
        for (fate, probability, fits) in table {
            if draw < probability {
                return if fits { fate } else { Self::Fine };
            }
            draw -= probability;
        }
        Self::Fine
    }
}

#[derive(Debug, Clone)]
struct Network {
    process: Arc<Process>,
}

impl Network {
    async fn send(&self, path: &Path, request: Request) -> Result<Answer> {
        let process = &self.process;
        process.pass().await;
        let kind = ObjectKind::of(path);
        let point = request.point(&kind) as usize;
        let habits = &process.world.habits;
        let chance = |p: &[f64]| process.chance(p.get(point).copied().unwrap_or_default());
        if chance(&habits.stalls.before) {
            process.stall(format_args!("before {request} {kind}"), Some(&kind));
            process.pass().await;
        }
        if process.chance(habits.faults.death / 2.0) {
            process.die(&format!("before {request} {kind}"));
            process.pass().await;
        }
        let mut fate = Fate::draw(process, &request);
        let (mut stall_after, mut arrival) = (None, None);
        if let Some(plan) = adversary::plan(process, &request, &kind) {
            let plot = plan.name();
            match plan {
                Plan::StallBefore(event, number, trap) => {
                    if process.stall_until(format_args!("before {request} {kind}"), Process::moment_of(event, number)) {
                        process.pass().await;
                        process.world.count_if(event, number, plot);
                    }
                    drop(trap);
                }
                Plan::LoseAnswerAndStall(event, number, trap) => {
                    (fate, stall_after) = (Fate::LostAck, Some((event, number, trap, plot)));
                }
                Plan::LandAt(event, number, trap) => {
                    (fate, arrival) = (Fate::Late, Some(Arrival::plotted(event, number, Some(trap), plot)));
                }
                Plan::HangUntil(event, number, trap) => {
                    (fate, arrival) = (Fate::Hang, Some(Arrival::plotted(event, number, trap, plot)));
                }
                Plan::Die => {
                    process.world.count(plot);
                    process.die(&format!("before {request} {kind}"));
                    process.pass().await;
                }
            }
        }
        let _sent = Sent::new(process, &request, &kind);
        if fate != Fate::Fine {
            process.note(format_args!("{request} {kind}: {fate:?}"));
        }
        let latency = process.roll(|dice| match fate {
            Fate::Slow => spread(dice, 1000, 60_000),
            _ => spread(dice, habits.latency.0, habits.latency.1),
        });
        let answer = match fate {
            Fate::Unavailable | Fate::Throttle => {
                if fate == Fate::Throttle {
                    process.throttle();
                }
                tokio::time::sleep(latency).await;
                Err(broken("503 Slow Down"))
            }
            Fate::Conflict409 => {
                tokio::time::sleep(latency).await;
                Err(Error::AlreadyExists { path: path.to_string(), source: "409 Conflict".into() })
            }
            Fate::Late => {
                let arrival = arrival.unwrap_or_else(|| Arrival::at(process.draw_moment(Some(&kind))));
                self.land_late(path, request.clone(), arrival);
                tokio::time::sleep(latency).await;
                Err(broken("timeout"))
            }
            Fate::Hang => {
                // It lands and is answered some time, unless it is given up before.
                let arrival = arrival.unwrap_or_else(|| Arrival::at(process.draw_moment(Some(&kind))));
                self.wire(path, request.clone(), arrival).await.unwrap_or_else(|_| Err(broken("the run ended")))
            }
            Fate::Fine | Fate::Slow | Fate::LostAck | Fate::LostAckAsExists | Fate::Echo => {
                let arrival = Arrival::at(Moment { at: Instant::now() + latency, event: None });
                let answer = self.wire(path, request.clone(), arrival);
                if process.chance(habits.faults.death / 2.0) {
                    process.die(&format!("with {request} {kind} on the wire"));
                    process.pass().await;
                }
                let answer = answer.await.unwrap_or_else(|_| {
                    process.world.fail(
                        &process.name,
                        Invariant::Panic,
                        format!("the oracle panicked at {request} {kind}"),
                    );
                    Err(broken("the run ended"))
                });
                match (fate, answer) {
                    (Fate::LostAck, _) => Err(broken("timeout")),
                    (Fate::LostAckAsExists, Ok(_)) => {
                        Err(Error::AlreadyExists { path: path.to_string(), source: "412 Precondition Failed".into() })
                    }
                    (Fate::Echo, answer) => {
                        self.land_late(path, request.clone(), Arrival::at(process.draw_moment(Some(&kind))));
                        answer
                    }
                    (_, answer) => answer,
                }
            }
        };
        match stall_after {
            Some((event, number, trap, plot)) => {
                if process.stall_until(format_args!("after {request} {kind}"), Process::moment_of(event, number)) {
                    process.pass().await;
                    process.world.count_if(event, number, plot);
                }
                drop(trap);
            }
            None if chance(&habits.stalls.after) => process.stall(format_args!("after {request} {kind}"), Some(&kind)),
            None => {}
        }
        process.pass().await;
        answer
    }

    /// The request on its way; it arrives also if nobody waits for its answer any more.
    fn wire(&self, path: &Path, request: Request, arrival: Arrival) -> oneshot::Receiver<Result<Answer>> {
        let (sender, answer) = oneshot::channel();
        let (process, path) = (Arc::clone(&self.process), path.clone());
        tokio::spawn(async move {
            let kind = ObjectKind::of(&path);
            match arrival.moment.event {
                None => tokio::time::sleep_until(arrival.moment.at).await,
                Some(_) => process.world.wait_for(&arrival.moment).await,
            }
            let is_plotted = arrival.plot.is_some();
            arrival.comes(&process.world);
            if sender.is_closed() && !is_plotted && !process.abandoned_arrives(&request, &kind).await {
                return process.note(format_args!("{request} {kind} is lost"));
            }
            if let (Request::Create(_), ObjectKind::Entry(position)) = (&request, &kind) {
                process.entry_answered(*position);
            }
            // Nobody waits any more: the process that sent it is gone.
            let _ = sender.send(process.world.arrive(&process.name, &path, &request));
        });
        answer
    }

    /// The same request, landing at some later moment, under its own condition.
    fn land_late(&self, path: &Path, request: Request, arrival: Arrival) {
        let (process, path) = (Arc::clone(&self.process), path.clone());
        tokio::spawn(async move {
            process.world.wait_for(&arrival.moment).await;
            arrival.comes(&process.world);
            let world: &World = &process.world;
            process.note(format_args!("late:"));
            if world.arrive(&process.name, &path, &request).is_ok() {
                world.count("late landings");
                if process.is_dead() {
                    world.count("late landings of dead processes");
                }
            }
        });
    }
}

/// When a request arrives at the store, and whose plot it is.
struct Arrival {
    moment: Moment,
    trap: Option<Trap>,
    plot: Option<&'static str>,
}

impl Arrival {
    fn at(moment: Moment) -> Self {
        Self { moment, trap: None, plot: None }
    }

    fn plotted(event: Event, number: u64, trap: Option<Trap>, plot: &'static str) -> Self {
        Self { moment: Process::moment_of(event, number), trap, plot: Some(plot) }
    }

    /// Its moment has come.
    fn comes(self, world: &World) {
        drop(self.trap);
        if let (Some(plot), Some((event, number))) = (self.plot, self.moment.event) {
            world.count_if(event, number, plot);
        }
    }
}

/// An entry's PUT, from when it is sent to when it is answered. What a process that died had on the wire stays so.
struct Sent {
    process: Arc<Process>,
    position: Option<u64>,
}

impl Sent {
    fn new(process: &Arc<Process>, request: &Request, kind: &ObjectKind) -> Self {
        let position = match (request, kind) {
            (Request::Create(_), ObjectKind::Entry(position)) => Some(*position),
            _ => None,
        };
        position.into_iter().for_each(|position| process.entry_sent(position));
        Self { process: Arc::clone(process), position }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if let Some(position) = self.position.filter(|_| !self.process.is_dead()) {
            self.process.entry_answered(position);
        }
    }
}

fn broken(what: &'static str) -> Error {
    Error::Generic { store: "simulation", source: what.into() }
}

fn unexpected() -> Error {
    broken("the simulated store got a request that it does not know")
}

fn put_result() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Network({})", self.process.name)
    }
}

#[async_trait]
impl ObjectStore for Network {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let bytes = Bytes::from(payload);
        let request = match opts.mode {
            PutMode::Create => Request::Create(bytes),
            PutMode::Overwrite => Request::Overwrite(bytes),
            PutMode::Update(_) => return Err(unexpected()),
        };
        self.send(location, request).await.map(|_| put_result())
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(unexpected())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let Answer::Object(meta, bytes) = self.send(location, Request::Get).await? else {
            return Err(unexpected());
        };
        let range = match &options.range {
            Some(range) => range.as_range(meta.size).map_err(|_| unexpected())?,
            None => 0..meta.size,
        };
        let bytes = match options.head {
            true => Bytes::new(),
            false => bytes.slice(range.start as usize..range.end as usize),
        };
        let payload = GetResultPayload::Stream(stream::once(std::future::ready(Ok(bytes))).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .then(move |location| {
                let this = this.clone();
                async move {
                    let location = location?;
                    this.send(&location, Request::Delete).await.map(|_| location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let listed = async move {
            match this.send(&prefix, Request::List).await {
                Ok(Answer::Listing(found)) => found.into_iter().map(Ok).collect(),
                Ok(_) => vec![Err(unexpected())],
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let Answer::Listing(found) = self.send(&prefix, Request::List).await? else {
            return Err(unexpected());
        };
        let mut result = ListResult { common_prefixes: vec![], objects: vec![], extensions: Default::default() };
        for meta in found {
            let mut parts = meta.location.prefix_match(&prefix).into_iter().flatten();
            match (parts.next(), parts.next()) {
                (Some(folder), Some(_)) => {
                    let folder = prefix.clone().join(folder);
                    if result.common_prefixes.last() != Some(&folder) {
                        result.common_prefixes.push(folder);
                    }
                }
                _ => result.objects.push(meta.clone()),
            }
        }
        Ok(result)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unexpected())
    }
}
