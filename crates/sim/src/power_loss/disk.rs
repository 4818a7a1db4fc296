//! The disk: files and folders, each with what is there now and what a power loss would leave.
//!
//! The model is harsher than most file systems. Every name in a folder survives or not for itself, in no order; a file
//! that was not synced has any prefix of its bytes, or zeros in their place; a folder that is durable itself is gone
//! when its own name is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::{Rng, lock};

/// One call that changed the disk, or made a change durable. Paths have no leading slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// A new, empty file (`O_CREAT | O_EXCL`).
    CreateNew(String),
    /// A new folder.
    CreateFolder(String),
    /// Bytes into a file.
    Write(String),
    /// `fsync` of a file.
    SyncFile(String),
    /// `fsync` of a folder; the empty path is the root.
    SyncFolder(String),
    /// A second name for a file.
    Link(String, String),
    /// Another name for a file.
    Rename(String, String),
    /// A name less.
    Unlink(String),
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateNew(path) => write!(f, "create {path}"),
            Self::CreateFolder(path) => write!(f, "mkdir {path}"),
            Self::Write(path) => write!(f, "write {path}"),
            Self::SyncFile(path) => write!(f, "fsync {path}"),
            Self::SyncFolder(path) => write!(f, "fsync folder {path}"),
            Self::Link(from, to) => write!(f, "link {from} {to}"),
            Self::Rename(from, to) => write!(f, "rename {from} {to}"),
            Self::Unlink(path) => write!(f, "unlink {path}"),
        }
    }
}

/// What becomes of that which was not synced.
#[derive(Debug, Clone)]
pub enum Survival {
    /// Nothing of it survives.
    Synced,
    /// All of it does: the machine was lucky.
    Everything,
    /// Each name and each file for itself, files also torn, as the dice say.
    Random(Rng),
}

type FileId = usize;

#[derive(Debug, Clone)]
enum Node {
    File { now: Vec<u8>, durable: Vec<u8> },
    Folder { now: BTreeMap<String, FileId>, durable: BTreeMap<String, FileId> },
}

impl Node {
    fn folder() -> Self {
        Node::Folder { now: BTreeMap::new(), durable: BTreeMap::new() }
    }
}

/// A disk in memory. Clones are the same disk.
///
/// Every call that changes something waits its turn (others run in between), may be slow, and may be the one at which
/// the power is lost: from then on no call returns.
#[derive(Debug, Clone)]
pub struct PowerLossDisk {
    state: Arc<Mutex<State>>,
    lost: Arc<watch::Sender<bool>>,
}

#[derive(Debug)]
struct State {
    nodes: Vec<Node>,
    calls: Vec<Call>,
    power_lost_at: Option<usize>,
    slow: Option<Slow>,
}

#[derive(Debug)]
struct Slow {
    rng: Rng,
    chance: f64,
    longest: Duration,
}

const ROOT: FileId = 0;

impl Default for PowerLossDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl PowerLossDisk {
    /// An empty disk that keeps its power.
    pub fn new() -> Self {
        Self::with_nodes(vec![Node::folder()])
    }

    fn with_nodes(nodes: Vec<Node>) -> Self {
        let state = State { nodes, calls: Vec::new(), power_lost_at: None, slow: None };
        Self { state: Arc::new(Mutex::new(state)), lost: Arc::new(watch::Sender::new(false)) }
    }

    /// Loses power in front of the call of this number, counted from 0 and from the beginning.
    pub fn lose_power_at(&self, call: usize) {
        lock(&self.state).power_lost_at = Some(call);
    }

    /// Some calls take up to `longest` of tokio's clock, from now on.
    pub fn slow(&self, rng: Rng, chance: f64, longest: Duration) {
        lock(&self.state).slow = Some(Slow { rng, chance, longest });
    }

    /// The calls that were carried out so far.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.state).calls.clone()
    }

    /// Resolves when the power is lost.
    pub async fn power_lost(&self) {
        let mut lost = self.lost.subscribe();
        // The sender lives as long as `self`.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// The disk that the next boot finds. The old one is dead from now on.
    pub fn restart(&self, mut survival: Survival) -> PowerLossDisk {
        self.lost.send_replace(true);
        let state = lock(&self.state);
        let mut nodes = state.nodes.clone();
        drop(state);
        for node in &mut nodes {
            match node {
                Node::File { now, durable } => {
                    *durable = survival.bytes(now, durable);
                    now.clone_from(durable);
                }
                Node::Folder { now, durable } => {
                    let names: BTreeSet<String> = now.keys().chain(durable.keys()).cloned().collect();
                    let left = names.into_iter().filter_map(|name| {
                        let (now, durable) = (now.get(&name).copied(), durable.get(&name).copied());
                        survival.name(now, durable).map(|file| (name, file))
                    });
                    *durable = left.collect();
                    now.clone_from(durable);
                }
            }
        }
        Self::with_nodes(nodes)
    }

    /// Waits for its turn, and for ever once the power is lost. Whatever changes the disk comes through here.
    async fn change<T>(&self, call: Call, act: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let pause = lock(&self.state).slow.as_mut().and_then(Slow::draw);
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => tokio::task::yield_now().await,
        }
        if !*self.lost.borrow() {
            let mut state = lock(&self.state);
            if state.power_lost_at != Some(state.calls.len()) {
                let done = act(&mut state)?;
                state.calls.push(call);
                return Ok(done);
            }
            drop(state);
            self.lost.send_replace(true);
        }
        std::future::pending().await
    }

    async fn look<T>(&self, act: impl FnOnce(&State) -> io::Result<T>) -> io::Result<T> {
        tokio::task::yield_now().await;
        if *self.lost.borrow() {
            std::future::pending::<()>().await;
        }
        act(&lock(&self.state))
    }

    pub(super) async fn create_new(&self, path: &str) -> io::Result<()> {
        self.change(Call::CreateNew(path.to_owned()), |state| {
            let file = Node::File { now: Vec::new(), durable: Vec::new() };
            state.add(path, file)
        })
        .await
    }

    pub(super) async fn create_folder(&self, path: &str) -> io::Result<()> {
        self.change(Call::CreateFolder(path.to_owned()), |state| state.add(path, Node::folder())).await
    }

    pub(super) async fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.change(Call::Write(path.to_owned()), |state| match state.node_mut(path)? {
            Node::File { now, .. } => {
                now.extend_from_slice(bytes);
                Ok(())
            }
            Node::Folder { .. } => Err(io::ErrorKind::IsADirectory.into()),
        })
        .await
    }

    /// Fsyncs a file.
    ///
    /// # Errors
    /// If there is none.
    pub async fn sync_file(&self, path: &str) -> io::Result<()> {
        self.change(Call::SyncFile(path.to_owned()), |state| match state.node_mut(path)? {
            Node::File { now, durable } => {
                durable.clone_from(now);
                Ok(())
            }
            Node::Folder { .. } => Err(io::ErrorKind::IsADirectory.into()),
        })
        .await
    }

    /// Fsyncs a folder; the empty path is the root.
    ///
    /// # Errors
    /// If there is none.
    pub async fn sync_folder(&self, path: &str) -> io::Result<()> {
        self.change(Call::SyncFolder(path.to_owned()), |state| match state.node_mut(path)? {
            Node::Folder { now, durable } => {
                durable.clone_from(now);
                Ok(())
            }
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        })
        .await
    }

    pub(super) async fn link(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(Call::Link(from.to_owned(), to.to_owned()), |state| {
            let file = state.find(from)?;
            let (names, name) = state.place_of(to)?;
            if names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            names.insert(name.to_owned(), file);
            Ok(())
        })
        .await
    }

    pub(super) async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(Call::Rename(from.to_owned(), to.to_owned()), |state| {
            let file = state.find(from)?;
            let (names, name) = state.place_of(to)?;
            names.insert(name.to_owned(), file);
            let (names, name) = state.place_of(from)?;
            names.remove(name);
            Ok(())
        })
        .await
    }

    pub(super) async fn unlink(&self, path: &str) -> io::Result<()> {
        self.change(Call::Unlink(path.to_owned()), |state| {
            let (names, name) = state.place_of(path)?;
            names.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
        .await
    }

    pub(super) async fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        self.look(|state| match state.nodes.get(state.find(path)?) {
            Some(Node::File { now, .. }) => Ok(now.clone()),
            _ => Err(io::ErrorKind::NotFound.into()),
        })
        .await
    }

    pub(super) async fn exists(&self, path: &str) -> io::Result<bool> {
        self.look(|state| Ok(state.find(path).is_ok())).await
    }

    /// Every file below a folder: its path and size. Nothing, if there is no such folder.
    pub(super) async fn files_below(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        self.look(|state| {
            let mut found = Vec::new();
            if let Ok(id) = state.find(folder) {
                state.walk(id, folder, &mut found);
            }
            Ok(found)
        })
        .await
    }
}

impl State {
    fn find(&self, path: &str) -> io::Result<FileId> {
        let mut at = ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let Some(Node::Folder { now, .. }) = self.nodes.get(at) else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            at = *now.get(part).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn node_mut(&mut self, path: &str) -> io::Result<&mut Node> {
        let id = self.find(path)?;
        self.nodes.get_mut(id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The names in the folder that a path lies in, and the path's own name.
    fn place_of<'a>(&mut self, path: &'a str) -> io::Result<(&mut BTreeMap<String, FileId>, &'a str)> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        match self.node_mut(folder)? {
            Node::Folder { now, .. } => Ok((now, name)),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn add(&mut self, path: &str, node: Node) -> io::Result<()> {
        let id = self.nodes.len();
        let (names, name) = self.place_of(path)?;
        if names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        names.insert(name.to_owned(), id);
        self.nodes.push(node);
        Ok(())
    }

    fn walk(&self, id: FileId, path: &str, found: &mut Vec<(String, u64)>) {
        match self.nodes.get(id) {
            Some(Node::File { now, .. }) => found.push((path.to_owned(), now.len() as u64)),
            Some(Node::Folder { now, .. }) => {
                for (name, id) in now {
                    let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                    self.walk(*id, &below, found);
                }
            }
            None => {}
        }
    }
}

impl Slow {
    fn draw(&mut self) -> Option<Duration> {
        let slow = self.rng.chance(self.chance);
        slow.then(|| self.longest.mul_f64(self.rng.unit()))
    }
}

impl Survival {
    fn name(&mut self, now: Option<FileId>, durable: Option<FileId>) -> Option<FileId> {
        match self {
            _ if now == durable => now,
            Survival::Synced => durable,
            Survival::Everything => now,
            Survival::Random(rng) => match rng.chance(0.5) {
                true => now,
                false => durable,
            },
        }
    }

    fn bytes(&mut self, now: &[u8], durable: &[u8]) -> Vec<u8> {
        match self {
            _ if now == durable => now.to_vec(),
            Survival::Synced => durable.to_vec(),
            Survival::Everything => now.to_vec(),
            Survival::Random(rng) => {
                let kept = rng.below(now.len() as u64 + 1) as usize;
                let mut bytes: Vec<u8> = now.iter().copied().take(kept).collect();
                if rng.chance(0.3) {
                    // Its length was written, its blocks were not.
                    bytes.resize(now.len(), 0);
                }
                bytes
            }
        }
    }
}
