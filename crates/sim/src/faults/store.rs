//! The store itself: looks every operation up in the script, then in the dice, and carries it out accordingly.
//!
//! It owns the order of the steps: record, decide, stall, send, stall, answer. An operation whose caller gives up is
//! dropped where it stands, like a request of a process that died; only PUTs on the wire (late ones) go on without it.

use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use tokio::sync::oneshot;

use super::random::{Dice, RandomFaults};
use super::record::{Log, Outcome, Record};
use super::script::{Action, RuleBuilder, ScriptedRule};
use super::{Fault, InjectedFault, Op};
use crate::lock;

/// An object store with faults. Clones share everything: script, dice, record and the PUTs on the wire.
///
/// Two `FaultStore`s around one inner store are two processes with a bucket in common.
#[derive(Debug, Clone)]
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<ScriptedRule>,
    dice: Option<Dice>,
    log: Log,
    late: Vec<LatePut>,
}

/// A PUT on the wire.
#[derive(Debug)]
struct LatePut {
    seq: u64,
    path: Path,
    payload: PutPayload,
    opts: PutOptions,
    waiter: Option<oneshot::Sender<Result<PutResult>>>,
}

/// What became of a late PUT when it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    /// Its object.
    pub path: String,
    /// [`Outcome::Ok`] if it landed, [`Outcome::AlreadyExists`] if the name was taken meanwhile.
    pub outcome: Outcome,
}

impl FaultStore {
    /// A view of `inner` without any faults yet.
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner, state: Arc::default() }
    }

    /// The store to hand to the code under test.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::new(self.clone())
    }

    /// The store below, without faults and without a record: for a test's own look at what is there.
    pub fn inner(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.inner)
    }

    /// Begins a rule for operations of the kind `op`.
    pub fn on(&self, op: Op) -> RuleBuilder {
        self.on_any([op])
    }

    /// Begins a rule for operations of any of these kinds, counted together.
    pub fn on_any(&self, ops: impl IntoIterator<Item = Op>) -> RuleBuilder {
        RuleBuilder::new(self.clone(), ops.into_iter().collect())
    }

    /// Forgets every rule. Operations that are stalled stay stalled.
    pub fn clear_rules(&self) {
        lock(&self.state).rules.clear();
    }

    /// Rolls dice for every operation that no rule acts on, from now on.
    pub fn random(&self, faults: RandomFaults) {
        lock(&self.state).dice = Some(Dice::new(faults));
    }

    /// Stops rolling dice. What is on the wire stays there.
    pub fn random_off(&self) {
        lock(&self.state).dice = None;
    }

    /// Every operation since the beginning or the last [`clear_log`](Self::clear_log), in order.
    pub fn log(&self) -> Vec<Record> {
        lock(&self.state).log.snapshot()
    }

    /// Empties the record. Sequence numbers go on counting.
    pub fn clear_log(&self) {
        lock(&self.state).log.clear();
    }

    /// How many operations of the kind `op` are in the record.
    pub fn count(&self, op: Op) -> usize {
        self.log().iter().filter(|record| record.op == op).count()
    }

    /// The paths of the PUTs on the wire, oldest first.
    pub fn late(&self) -> Vec<Path> {
        let state = lock(&self.state);
        state.late.iter().map(|put| put.path.clone()).collect()
    }

    /// Lets every PUT on the wire arrive, oldest first, each under its own condition.
    pub async fn land_late(&self) -> Vec<Landed> {
        self.land_late_where(|_| true).await
    }

    /// Lets those PUTs on the wire arrive whose path satisfies `choose`.
    pub async fn land_late_where(&self, choose: impl Fn(&str) -> bool) -> Vec<Landed> {
        let mut arriving = Vec::new();
        {
            let mut state = lock(&self.state);
            for put in std::mem::take(&mut state.late) {
                if choose(put.path.as_ref()) {
                    arriving.push(put);
                } else {
                    state.late.push(put);
                }
            }
        }
        self.land(arriving).await
    }

    /// PUTs on the wire that will never arrive. Callers that still wait get an error.
    pub fn drop_late(&self) {
        lock(&self.state).late.clear();
    }

    pub(super) fn add_rule(&self, rule: ScriptedRule) {
        lock(&self.state).rules.push(rule);
    }

    async fn land(&self, arriving: Vec<LatePut>) -> Vec<Landed> {
        let mut landed = Vec::new();
        for put in arriving {
            let answer = self.inner.put_opts(&put.path, put.payload, put.opts).await;
            landed.push(Landed { path: put.path.to_string(), outcome: Outcome::of(&answer) });
            if let Some(record) = lock(&self.state).log.get_mut(put.seq) {
                record.applied = answer.is_ok();
            }
            if let Some(waiter) = put.waiter {
                // Nobody waits any more: the process that sent it is gone.
                let _ = waiter.send(answer);
            }
        }
        landed
    }

    /// Lets arrive what the dice choose, records the operation and decides what happens to it.
    async fn begin(&self, op: Op, path: &Path) -> Call {
        let arriving = lock(&self.state).draw_arrivals();
        self.land(arriving).await;

        let mut state = lock(&self.state);
        let action = state.decide(op, path.as_ref());
        let fault = action.as_ref().map(Action::describe);
        let seq = state.log.begin(op, path.as_ref(), fault);
        Call { state: Arc::clone(&self.state), path: path.clone(), seq, action }
    }

    /// Keeps a PUT on the wire.
    fn send_late(
        &self,
        call: &Call,
        payload: PutPayload,
        opts: PutOptions,
        waiter: Option<oneshot::Sender<Result<PutResult>>>,
    ) {
        lock(&self.state).late.push(LatePut { seq: call.seq, path: call.path.clone(), payload, opts, waiter });
    }

    fn list_whole<F>(&self, prefix: Option<&Path>, send: F) -> BoxStream<'static, Result<ObjectMeta>>
    where
        F: FnOnce(Arc<dyn ObjectStore>) -> BoxStream<'static, Result<ObjectMeta>> + Send + 'static,
    {
        let this = self.clone();
        let prefix = prefix.cloned().unwrap_or_default();
        stream::once(async move {
            let call = this.begin(Op::List, &prefix).await;
            // Collected before it is answered, so that a stall after it holds the listing of one moment.
            let send = async { send(Arc::clone(&this.inner)).try_collect().await };
            let found: Vec<ObjectMeta> = call.carry_out(|_| Ok(Vec::new()), send).await?;
            Ok::<_, Error>(stream::iter(found.into_iter().map(Ok)))
        })
        .try_flatten()
        .boxed()
    }

    async fn delete_one(&self, path: &Path) -> Result<()> {
        let call = self.begin(Op::Delete, path).await;
        call.carry_out(|_| Ok(()), self.inner.delete(path)).await
    }
}

impl State {
    fn draw_arrivals(&mut self) -> Vec<LatePut> {
        let Some(dice) = &mut self.dice else {
            return Vec::new();
        };
        let drawn = std::mem::take(&mut self.late);
        let (arriving, waiting) = drawn.into_iter().partition(|_| dice.lands());
        self.late = waiting;
        arriving
    }

    fn decide(&mut self, op: Op, path: &str) -> Option<Action> {
        // Every rule must see the operation, also those behind the one that acts.
        let due: Vec<bool> = self.rules.iter_mut().map(|rule| rule.is_due(op, path)).collect();
        let first = self.rules.iter().zip(due).find(|(_, due)| *due);
        if let Some((rule, _)) = first {
            return Some(rule.fire());
        }
        let dice = self.dice.as_mut()?;
        dice.roll(op, path).map(Action::Fault)
    }
}

/// One operation between its beginning and its answer.
#[derive(Debug)]
struct Call {
    state: Arc<Mutex<State>>,
    path: Path,
    seq: u64,
    action: Option<Action>,
}

impl Call {
    fn fault(&self) -> Option<Fault> {
        match &self.action {
            Some(Action::Fault(fault)) => Some(*fault),
            _ => None,
        }
    }

    /// Sends the operation (by polling `send`) or does not, and answers, as the action demands. `swallowed` is the
    /// answer of an operation that was neither carried out nor refused.
    async fn carry_out<T>(
        self,
        swallowed: impl FnOnce(&Path) -> Result<T>,
        send: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let answer = match &self.action {
            Some(Action::StallBefore(gate)) => {
                gate.pass().await;
                self.applied(send.await)
            }
            Some(Action::StallAfter(gate)) => {
                let answer = self.applied(send.await);
                gate.pass().await;
                answer
            }
            Some(Action::Fault(fault)) => match fault {
                Fault::LostAckAsExists => match self.applied(send.await) {
                    Ok(_) => Err(self.already_exists(*fault)),
                    Err(error) => Err(error),
                },
                Fault::LostAck => {
                    // Whatever the store said, nobody heard it.
                    let _ = self.applied(send.await);
                    Err(self.broken(*fault))
                }
                Fault::LostAckAsRefusal => match self.applied(send.await) {
                    Ok(_) => Err(self.refused(*fault)),
                    Err(error) => Err(error),
                },
                Fault::Conflict409 => Err(self.already_exists(*fault)),
                // A late PUT is on the wire already, its sender hears nothing.
                Fault::Fail | Fault::LateLanding | Fault::InFlight => Err(self.broken(*fault)),
                Fault::Swallow => swallowed(&self.path),
                Fault::Delay(pause) => {
                    tokio::time::sleep(*pause).await;
                    self.applied(send.await)
                }
                // The payload was cut before it came here.
                Fault::Torn(_) => self.applied(send.await),
            },
            None => self.applied(send.await),
        };
        self.finish(answer)
    }

    fn applied<T>(&self, answer: Result<T>) -> Result<T> {
        if let Some(record) = lock(&self.state).log.get_mut(self.seq) {
            record.applied = answer.is_ok();
        }
        answer
    }

    fn finish<T>(self, answer: Result<T>) -> Result<T> {
        if let Some(record) = lock(&self.state).log.get_mut(self.seq) {
            record.outcome = Outcome::of(&answer);
        }
        answer
    }

    fn injected(&self, fault: Fault) -> Box<InjectedFault> {
        Box::new(InjectedFault { fault, path: self.path.to_string() })
    }

    fn refused(&self, fault: Fault) -> Error {
        Error::PermissionDenied { path: self.path.to_string(), source: self.injected(fault) }
    }

    fn already_exists(&self, fault: Fault) -> Error {
        Error::AlreadyExists { path: self.path.to_string(), source: self.injected(fault) }
    }

    fn broken(&self, fault: Fault) -> Error {
        Error::Generic { store: "FaultStore", source: self.injected(fault) }
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultStore({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, mut payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let op = match opts.mode {
            PutMode::Create => Op::Create,
            PutMode::Overwrite => Op::Overwrite,
            PutMode::Update(_) => Op::Update,
        };
        let call = self.begin(op, location).await;
        match call.fault() {
            Some(Fault::LateLanding) => {
                self.send_late(&call, payload.clone(), opts.clone(), None);
            }
            Some(Fault::InFlight) => {
                let (waiter, answer) = oneshot::channel();
                self.send_late(&call, payload, opts, Some(waiter));
                let lost = call.broken(Fault::InFlight);
                let answer = answer.await.unwrap_or(Err(lost));
                return call.finish(answer);
            }
            Some(Fault::Torn(keep)) => payload = cut(&payload, keep),
            _ => {}
        }
        let send = self.inner.put_opts(location, payload, opts);
        call.carry_out(|_| Ok(nothing_put()), send).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(FaultUpload { upload, faults: self.clone(), path: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let op = if options.head { Op::Head } else { Op::Get };
        let call = self.begin(op, location).await;
        let send = self.inner.get_opts(location, options);
        call.carry_out(|path| Err(not_found(path)), send).await
    }

    // `get_ranges` keeps its default, which sends each coalesced range through `get_opts` above.

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .and_then(move |location| {
                let this = this.clone();
                async move { this.delete_one(&location).await.map(|()| location) }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let below = prefix.cloned();
        self.list_whole(prefix, move |inner| inner.list(below.as_ref()))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (below, offset) = (prefix.cloned(), offset.clone());
        self.list_whole(prefix, move |inner| inner.list_with_offset(below.as_ref(), &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let call = self.begin(Op::List, &prefix.cloned().unwrap_or_default()).await;
        let send = self.inner.list_with_delimiter(prefix);
        call.carry_out(|_| Ok(nothing_listed()), send).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let call = self.begin(Op::Copy, to).await;
        call.carry_out(|_| Ok(()), self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let call = self.begin(Op::Rename, to).await;
        call.carry_out(|_| Ok(()), self.inner.rename_opts(from, to, options)).await
    }
}

/// A multipart upload, whose completion is the operation that faults are hung on.
#[derive(Debug)]
struct FaultUpload {
    upload: Box<dyn MultipartUpload>,
    faults: FaultStore,
    path: Path,
}

#[async_trait]
impl MultipartUpload for FaultUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let call = self.faults.begin(Op::CompleteMultipart, &self.path).await;
        call.carry_out(|_| Ok(nothing_put()), self.upload.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

fn cut(payload: &PutPayload, keep: usize) -> PutPayload {
    let mut left = keep;
    payload
        .iter()
        .map(|chunk| {
            let taken = chunk.slice(..chunk.len().min(left));
            left -= taken.len();
            taken
        })
        .collect()
}

fn nothing_put() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

fn nothing_listed() -> ListResult {
    ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() }
}

fn not_found(path: &Path) -> Error {
    Error::NotFound {
        path: path.to_string(),
        source: Box::new(InjectedFault { fault: Fault::Swallow, path: path.to_string() }),
    }
}
