//! The store that all processes of a run share, the wire between it and each of them, and the trace. What was sent
//! arrives without its sender; a process may stall at any request, for hours, and die at any.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use fencepost_sim::{FaultStore, Op, RandomFaults, Rng};
use fencepost_wal::{RetryPolicy, Shard, ShardId, Store, Surroundings};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::oracle::{Object, Oracle, Verdict};

pub(super) struct World {
    pub(super) shard: ShardId,
    objects: Arc<InMemory>,
    started: Instant,
    state: Mutex<State>,
    failed: Notify,
}

pub(super) struct State {
    pub(super) oracle: Oracle,
    pub(super) trace: Vec<String>,
    pub(super) violation: Option<String>,
    pub(super) counts: HashMap<&'static str, u64>,
    /// What is there, by path, with the tag of the PUT that put it.
    seen: HashMap<Path, u64>,
    rounds_left: u64,
    calm: bool,
}

impl World {
    pub(super) fn new(keyed: bool, rounds: u64) -> Arc<Self> {
        let shard = ShardId::from_uuid(Uuid::from_u128(0x5EED));
        let state = State {
            oracle: Oracle::new(keyed, shard),
            trace: Vec::new(),
            violation: None,
            counts: HashMap::new(),
            seen: HashMap::new(),
            rounds_left: rounds,
            calm: false,
        };
        Arc::new(Self {
            shard,
            objects: Arc::new(InMemory::new()),
            started: Instant::now(),
            state: Mutex::new(state),
            failed: Notify::new(),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        let line = format!("{:>12.3}s {who:<4} {what}", self.started.elapsed().as_secs_f64());
        self.state().trace.push(line);
    }

    pub(super) fn count(&self, what: &'static str) {
        *self.state().counts.entry(what).or_default() += 1;
    }

    /// The first broken promise ends the run.
    pub(super) fn judge(&self, who: &str, verdict: Verdict) {
        if let Err(what) = verdict {
            self.note(who, format_args!("VIOLATION {what}"));
            self.state().violation.get_or_insert(what);
            self.failed.notify_one();
        }
    }

    pub(super) async fn failed(&self) {
        self.failed.notified().await;
    }

    pub(super) fn take_round(&self) -> bool {
        let mut state = self.state();
        let left = state.rounds_left;
        state.rounds_left = left.saturating_sub(1);
        left > 0
    }

    pub(super) fn rounds_left(&self) -> u64 {
        self.state().rounds_left
    }

    /// From now on nothing goes wrong; a few more rounds.
    pub(super) fn calm_down(&self, rounds: u64) {
        let mut state = self.state();
        (state.calm, state.rounds_left) = (true, rounds);
    }

    fn is_calm(&self) -> bool {
        self.state().calm
    }

    /// Shows the oracle what has changed, oldest change first.
    async fn look(&self, who: &str) {
        let found: Vec<ObjectMeta> = self.objects.list(None).try_collect().await.unwrap();
        let tags: HashMap<Path, u64> =
            found.into_iter().map(|m| (m.location, m.e_tag.unwrap().trim_matches('"').parse().unwrap())).collect();
        let before = std::mem::take(&mut self.state().seen);
        let mut gone: Vec<_> = before.keys().filter(|path| !tags.contains_key(path)).collect();
        gone.sort();
        for path in gone {
            let object = Object::of(path.as_ref());
            let line = self.state().oracle.describe(&object);
            self.note(who, format_args!("deletes {line}"));
            if matches!(object, Object::Entry(_)) {
                self.count("entries collected");
            }
            let verdict = self.state().oracle.deleted(&object);
            self.judge(who, verdict);
        }
        let mut new: Vec<_> = tags.iter().filter(|(path, tag)| before.get(path) != Some(tag)).collect();
        new.sort_by_key(|(_, tag)| **tag);
        for (path, _) in new {
            let bytes = self.objects.get(path).await.unwrap().bytes().await.unwrap();
            let object = Object::of(path.as_ref());
            let verdict = self.state().oracle.created(&object, &bytes);
            let line = self.state().oracle.describe(&object);
            self.note(who, format_args!("creates {line}"));
            self.judge(who, verdict);
        }
        self.state().seen = tags;
    }
}

/// How a process's requests fare.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    pub(super) stall: f64,
    pub(super) long_stalls: bool,
    pub(super) death: f64,
}

/// One process, from its start to its death.
pub(super) struct Process {
    pub(super) name: String,
    pub(super) world: Arc<World>,
    habits: Habits,
    faults: FaultStore,
    dice: Mutex<Rng>,
    life: Mutex<Life>,
    died: Notify,
}

#[derive(Default)]
struct Life {
    stalled_until: Option<Instant>,
    dead: bool,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Process {
    pub(super) fn new(
        world: &Arc<World>,
        name: String,
        mut dice: Rng,
        faults: RandomFaults,
        habits: Habits,
    ) -> Arc<Self> {
        let store = FaultStore::new(Arc::clone(&world.objects) as Arc<dyn ObjectStore>);
        if !world.is_calm() {
            store.random(RandomFaults { seed: dice.next_u64(), ..faults });
        }
        let (world, dice) = (Arc::clone(world), Mutex::new(dice));
        Arc::new(Self { name, world, habits, faults: store, dice, life: Mutex::default(), died: Notify::new() })
    }

    /// Its view of the shard. Most processes wait for an answer as long as a stall lasts.
    pub(super) fn shard(self: &Arc<Self>) -> Shard {
        let patience = [Duration::from_secs(5), Duration::from_secs(30), Duration::from_secs(1 << 40)];
        let retry = RetryPolicy {
            max_attempts: self.roll(|dice| *dice.pick(&[3, 6, 12]).unwrap()),
            attempt_timeout: self.roll(|dice| *dice.pick(&patience).unwrap()),
            ..RetryPolicy::default()
        };
        let url = Url::parse("memory://simulation/t").unwrap();
        let store = Store::from_parts(url, Arc::new(Wire(Arc::clone(self))), Path::from("t"));
        let store = store.with_retry(retry).with_surroundings(Arc::new(Virtual(Arc::clone(self))));
        Shard::new(store, self.world.shard)
    }

    pub(super) fn roll<T>(&self, roll: impl FnOnce(&mut Rng) -> T) -> T {
        roll(&mut self.dice.lock())
    }

    pub(super) fn chance(&self, p: f64) -> bool {
        self.roll(|dice| dice.chance(p)) && !self.world.is_calm()
    }

    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        self.world.note(&self.name, what);
    }

    pub(super) async fn died(&self) {
        loop {
            let died = self.died.notified();
            if self.life.lock().dead {
                return;
            }
            died.await;
        }
    }

    /// Waits while the process is stalled; for ever once it is dead.
    async fn pass(&self) {
        loop {
            let (dead, until) = {
                let life = self.life.lock();
                (life.dead, life.stalled_until.filter(|until| *until > Instant::now()))
            };
            match (dead, until) {
                (true, _) => std::future::pending().await,
                (false, Some(until)) if !self.world.is_calm() => tokio::time::sleep_until(until).await,
                (false, _) => return,
            }
        }
    }

    fn may_stall(&self, path: &Path) {
        if self.chance(self.habits.stall) {
            let longest = if self.habits.long_stalls { 10_800_000 } else { 20_000 };
            let pause = self.roll(|dice| spread(dice, 100, longest));
            self.note(format_args!("stalls for {pause:?} at {:?}", Object::of(path.as_ref())));
            self.world.count("stalls");
            self.life.lock().stalled_until = Some(Instant::now() + pause);
        }
        if self.chance(self.habits.death) {
            self.note(format_args!("dies at {:?}", Object::of(path.as_ref())));
            self.world.count("deaths");
            self.life.lock().dead = true;
            self.died.notify_waiters();
        }
    }

    /// What a process that is gone left on the wire arrives, some time.
    pub(super) async fn land_what_is_late(&self) {
        tokio::time::sleep(self.roll(|dice| spread(dice, 1, 3_600_000))).await;
        if !self.faults.land_late().await.is_empty() {
            self.world.count("late landings of the dead");
        }
        self.world.look(&self.name).await;
    }
}

/// A time between `least` and `most` milliseconds, each order of magnitude as likely as the next.
pub(super) fn spread(dice: &mut Rng, least: u64, most: u64) -> Duration {
    let (least, most) = (least as f64, most as f64);
    Duration::from_millis((least * (most / least).powf(dice.unit())) as u64)
}

#[derive(Debug)]
struct Virtual(Arc<Process>);

impl Surroundings for Virtual {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.0.world.started.elapsed()
    }

    fn fresh_id(&self) -> Uuid {
        let bytes = self.0.roll(|dice| dice.bytes(16));
        uuid::Builder::from_slice(&bytes).unwrap().with_version(uuid::Version::Random).into_uuid()
    }
}

/// A process's way to the store.
#[derive(Debug, Clone)]
struct Wire(Arc<Process>);

impl Wire {
    async fn send<T: Send + 'static>(
        &self,
        op: Op,
        path: &Path,
        request: impl FnOnce(FaultStore) -> BoxFuture<'static, Result<T>> + Send + 'static,
    ) -> Result<T> {
        let process = &self.0;
        process.may_stall(path);
        process.pass().await;
        let (there, back) = process.roll(|dice| (spread(dice, 1, 40), spread(dice, 1, 40)));
        let sent = {
            let (process, path) = (Arc::clone(process), path.clone());
            async move {
                tokio::time::sleep(there).await;
                let answer = request(process.faults.clone()).await;
                let outcome = answer.as_ref().map_or_else(short, |_| "ok".to_owned());
                process.note(format_args!("{op:?} {:?}: {outcome}", Object::of(path.as_ref())));
                process.world.look(&process.name).await;
                answer
            }
        };
        let answer = tokio::spawn(sent).await.unwrap_or_else(|e| {
            process.world.judge(&process.name, Err(format!("the oracle panicked: {e}")));
            Err(Error::Generic { store: "simulation", source: "the run ended".into() })
        });
        process.may_stall(path);
        tokio::time::sleep(back).await;
        process.pass().await;
        answer
    }
}

fn short(error: &Error) -> String {
    error.to_string().chars().take(80).collect()
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({})", self.0.name)
    }
}

#[async_trait]
impl ObjectStore for Wire {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let to = location.clone();
        let put = move |store: FaultStore| async move { store.put_opts(&to, payload, opts).await }.boxed();
        self.send(Op::Create, location, put).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "put_multipart".into(), implementer: self.to_string() })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let from = location.clone();
        let get = move |store: FaultStore| async move { store.get_opts(&from, options).await }.boxed();
        self.send(Op::Get, location, get).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |location: Result<Path>| {
            let this = this.clone();
            async move {
                let location = location?;
                let path = location.clone();
                let delete = move |store: FaultStore| async move { store.delete(&path).await }.boxed();
                this.send(Op::Delete, &location, delete).await.map(|()| location)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned().unwrap_or_default());
        let listed = async move {
            let below = prefix.clone();
            let list = move |store: FaultStore| async move { store.list(Some(&below)).try_collect::<Vec<_>>().await };
            match this.send(Op::List, &prefix, |store| list(store).boxed()).await {
                Ok(found) => found.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            }
        };
        stream::once(listed).flat_map(stream::iter).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let below = prefix.cloned().unwrap_or_default();
        let at = below.clone();
        let list = move |store: FaultStore| async move { store.list_with_delimiter(Some(&below)).await }.boxed();
        self.send(Op::List, &at, list).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".into(), implementer: self.to_string() })
    }
}
