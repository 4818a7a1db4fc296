//! One look at everything that a shard has on storage. It reads and decodes; what is wrong is judged elsewhere.
//!
//! The order matters, because writers and collectors go on meanwhile: first the log, then the folders, then the
//! manifests. So whatever the newest manifest says of the log had happened before; what it needs and the listing of the
//! log did not show is asked for once more at the end. So is the position at which the log seems to end: the pages of a
//! LIST are not of one moment, nor in the order of the positions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;
use object_store::path::Path;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{MAX_NAMED, VerifyOptions};
use crate::checkpoint::{self, ShardCheckpoint};
use crate::entry::{MAX_ENTRY_BYTES, WalEntry, decode};
use crate::error::{Error, Result};
use crate::gc;
use crate::ids::{Epoch, Generation, ManifestVersion, Position, ShardId};
use crate::log::Log;
use crate::manifest::{ManifestStore, ShardManifest, ShardPlace, SsTable};
use crate::names;
use crate::shard::{MEM_WAL_FOLDER, Shard};

const KIB: usize = 1024;

/// What an object turned out to be, or why it is not readable.
pub(super) type Content<T> = Result<T, String>;

/// A manifest version on storage.
#[derive(Debug)]
pub(super) struct FoundManifest {
    pub(super) object: ObjectMeta,
    pub(super) content: Content<ShardManifest>,
}

/// What is judged of an entry: all but its rows.
#[derive(Debug, Clone)]
pub(super) struct FoundEntry {
    pub(super) epoch: Epoch,
    pub(super) writer_id: Option<Uuid>,
    pub(super) generation: Option<Generation>,
    pub(super) is_sentinel: bool,
    pub(super) rows: u64,
    /// The columns and their types.
    pub(super) columns: String,
    /// Why its rows are not what the log is for.
    pub(super) misfit: Option<String>,
}

/// Everything that a shard has.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Where the log is. What stood in another store before is not looked at.
    pub(super) log: Option<Log>,
    pub(super) manifests: BTreeMap<u64, FoundManifest>,
    pub(super) entries: BTreeMap<u64, Content<FoundEntry>>,
    pub(super) checkpoints: BTreeMap<Uuid, Content<ShardCheckpoint>>,
    /// Objects in `wal/`, `manifest/` and `checkpoints/` that are none.
    pub(super) foreign: Vec<Path>,
    /// Half-made files, by their place in the shard's folder.
    pub(super) half_made: Vec<String>,
    /// The folders of the shard.
    pub(super) folders: Vec<String>,
    /// The folders of other shards whose SSTables it shares.
    pub(super) shared: BTreeMap<ShardPlace, BTreeSet<String>>,
    /// Objects directly in the shard's folder.
    pub(super) loose: Vec<Path>,
    /// The bytes of the hint for other readers.
    pub(super) hint: Option<bytes::Bytes>,
    pub(super) bytes: u64,
}

impl Look {
    /// Reads everything.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    pub(super) async fn take(shard: &Shard, options: &VerifyOptions<'_>) -> Result<Self> {
        let mut look = Self::default();
        let log = match ManifestStore::new(shard.clone()).latest().await {
            Ok(Some(manifest)) => shard.log(&manifest).await?,
            // Reported below.
            Ok(None) | Err(Error::Corrupt { .. }) => Log::own(shard),
            Err(error) => return Err(error),
        };
        look.log = Some(log.clone());
        look.read_log(&log, options).await?;
        let (folders, loose) = shard.store().list_level(shard.root()).await?;
        (look.folders, look.loose) = (folders, loose.into_iter().map(|object| object.location).collect());
        look.half_made = gc::find_leftovers(shard).await?.into_iter().map(|found| found.name.path).collect();
        look.read_checkpoints(shard, options).await?;
        look.read_manifests(shard, options).await?;
        if look.newest().is_some_and(|manifest| !log.is_of(manifest)) {
            // It moved meanwhile.
            return Box::pin(Self::take(shard, options)).await;
        }
        look.look_again(shard, &log, options).await?;
        look.read_shared(shard).await?;
        Ok(look)
    }

    /// The name of an entry.
    pub(super) fn entry_path(&self, shard: &Shard, position: u64) -> Path {
        let position = Position::new(position);
        self.log.as_ref().map_or_else(|| shard.entry_path(position), |log| log.entry_path(position))
    }

    /// Entries up to this position are where the log was before, in another store or in the shard that this one was cloned from,
    /// and not looked at.
    pub(super) fn after(&self) -> u64 {
        let cloned = self.newest().and_then(ShardManifest::origin).map_or(Position::ZERO, |origin| origin.after);
        self.log.as_ref().map_or(cloned, |log| log.after().max(cloned)).get()
    }

    /// Whether an SSTable's folder is there.
    pub(super) fn has_folder(&self, sstable: &SsTable) -> bool {
        match &sstable.base {
            None => self.folders.contains(&sstable.path),
            Some(base) => self.shared.get(&base.place).is_some_and(|folders| folders.contains(&sstable.path)),
        }
    }

    /// Lists the folders of the shards that the manifest, or a checkpoint, refers to.
    async fn read_shared(&mut self, shard: &Shard) -> Result<()> {
        let pinned = self.checkpoints.values().flatten().map(|checkpoint| &checkpoint.manifest);
        let manifests = self.newest().into_iter().chain(pinned);
        let bases = manifests.flat_map(|manifest| &manifest.sstables).filter_map(|sstable| sstable.base.as_ref());
        let places: BTreeSet<ShardPlace> = bases.map(|base| base.place.clone()).collect();
        for place in places {
            let there = place.open(shard.store())?;
            let folders = there.store().list_folders(there.root()).await?;
            self.shared.insert(place, folders.into_iter().collect());
        }
        Ok(())
    }

    /// The newest manifest, if it is readable.
    pub(super) fn newest(&self) -> Option<&ShardManifest> {
        self.manifests.last_key_value()?.1.content.as_ref().ok()
    }

    async fn read_log(&mut self, log: &Log, options: &VerifyOptions<'_>) -> Result<()> {
        let listed = log.store().list(log.folder()).await?;
        let place = |n| log.entry_path(Position::new(n));
        let mut found = self.numbered(listed, names::ENTRY_SUFFIX, place);
        found.retain(|(n, _)| *n > log.after().get());
        options.say(found.len() as u64, 0);
        let memory = Semaphore::new(options.budget_kib());
        let reads = stream::iter(found).map(|(n, object)| {
            let memory = &memory;
            async move {
                let _held = memory.acquire_many(options.share_of_budget(object.size)).await;
                let read = read_entry(log, Position::new(n), options).await?;
                options.say(0, 1);
                Ok::<_, Error>((n, object.size, read))
            }
        });
        let mut reads = reads.buffer_unordered(options.reads_at_once.max(1));
        while let Some((n, size, entry)) = reads.try_next().await? {
            // Absent: collected since the LIST.
            if let Some(entry) = entry {
                self.bytes += size;
                self.entries.insert(n, entry);
            }
        }
        Ok(())
    }

    async fn read_manifests(&mut self, shard: &Shard, options: &VerifyOptions<'_>) -> Result<()> {
        let listed = shard.store().list(&shard.manifest_folder()).await?;
        let (hint, listed): (Vec<_>, Vec<_>) = listed.into_iter().partition(|o| o.location == shard.hint_path());
        if !hint.is_empty() {
            self.hint = shard.store().get(&shard.hint_path()).await?;
        }
        let place = |n| shard.manifest_path(ManifestVersion::new(n));
        let found = self.numbered(listed, names::MANIFEST_SUFFIX, place);
        options.say(found.len() as u64, 0);
        let reads = stream::iter(found).map(|(n, object)| async move {
            let read = ManifestStore::new(shard.clone()).read(ManifestVersion::new(n)).await;
            options.say(0, 1);
            match read {
                Ok(manifest) => Ok(manifest.map(|manifest| (n, object, Ok(manifest)))),
                Err(Error::Corrupt { reason, .. }) => Ok(Some((n, object, Err(reason)))),
                Err(error) => Err(error),
            }
        });
        let mut reads = reads.buffer_unordered(options.reads_at_once.max(1));
        while let Some(found) = reads.try_next().await? {
            // Absent: pruned since the LIST.
            if let Some((n, object, content)) = found {
                self.bytes += object.size;
                self.manifests.insert(n, FoundManifest { object, content });
            }
        }
        Ok(())
    }

    async fn read_checkpoints(&mut self, shard: &Shard, options: &VerifyOptions<'_>) -> Result<()> {
        let listed = shard.store().list(&shard.checkpoint_folder()).await?;
        options.say(listed.len() as u64, 0);
        for object in listed {
            let id = object.location.filename().and_then(checkpoint::id_of);
            match id.filter(|id| shard.checkpoint_path(*id) == object.location) {
                Some(id) => {
                    self.bytes += object.size;
                    self.read_checkpoint(shard, id).await?;
                }
                None => self.foreign.push(object.location),
            }
            options.say(0, 1);
        }
        Ok(())
    }

    async fn read_checkpoint(&mut self, shard: &Shard, id: Uuid) -> Result<()> {
        let content = match checkpoint::read_object(shard, id).await {
            Ok(checkpoint) => Ok(checkpoint),
            Err(Error::Corrupt { reason, .. }) => Err(reason),
            Err(error) => return Err(error),
        };
        // Absent: deleted since the LIST, or it was listed for nothing.
        if content.is_ok() || shard.store().get(&shard.checkpoint_path(id)).await?.is_some() {
            self.checkpoints.insert(id, content);
        }
        Ok(())
    }

    /// Asks for what the newest manifest needs of the log and the listing, which is older, did not show.
    async fn look_again(&mut self, shard: &Shard, log: &Log, options: &VerifyOptions<'_>) -> Result<()> {
        let Some(manifest) = self.newest() else {
            return Ok(());
        };
        let after = Position::new(self.after());
        let (needed, end) = (needed(manifest, after), manifest.replay_after.max(manifest.landed_up_to()).get());
        let listed = manifest.checkpoints().iter().map(|listed| listed.id);
        let unread: Vec<Uuid> = listed.filter(|id| !self.checkpoints.contains_key(id)).collect();
        for id in unread {
            self.read_checkpoint(shard, id).await?;
        }
        let mut absent = BTreeSet::new();
        for positions in needed {
            // As many as are named, so that none is called missing that was not asked for.
            let mut missing = 0;
            for n in positions {
                if !self.entries.contains_key(&n) && (absent.contains(&n) || !self.read_again(log, options, n).await?) {
                    absent.insert(n);
                    missing += 1;
                }
                if missing == MAX_NAMED {
                    break;
                }
            }
        }
        self.read_on(log, options, end).await
    }

    /// Reads on behind `end` over what the listing did not show, up to the first position that is absent now. Only
    /// then an entry far behind it, which was listed before, proves a hole: a live writer would have filled it first.
    async fn read_on(&mut self, log: &Log, options: &VerifyOptions<'_>, end: u64) -> Result<()> {
        let highest = self.entries.last_key_value().map_or(0, |(position, _)| *position);
        for n in end.saturating_add(1)..=highest {
            if !self.entries.contains_key(&n) && !self.read_again(log, options, n).await? {
                break;
            }
        }
        Ok(())
    }

    /// Asks for a position that the listing did not show. Says whether it is there.
    async fn read_again(&mut self, log: &Log, options: &VerifyOptions<'_>, n: u64) -> Result<bool> {
        let entry = read_entry(log, Position::new(n), options).await?;
        let is_there = entry.is_some();
        self.entries.extend(entry.map(|entry| (n, entry)));
        Ok(is_there)
    }

    /// The objects that are named by numbers from 1, each at its very place; the others are foreign.
    fn numbered(
        &mut self,
        listed: Vec<ObjectMeta>,
        suffix: &str,
        place: impl Fn(u64) -> Path,
    ) -> Vec<(u64, ObjectMeta)> {
        let mut found = Vec::new();
        for object in listed {
            let number = object.location.filename().and_then(|name| names::parse(name, suffix));
            match number.filter(|n| *n > 0 && place(*n) == object.location) {
                Some(n) => found.push((n, object)),
                None => self.foreign.push(object.location),
            }
        }
        found.sort_unstable_by_key(|(n, _)| *n);
        found
    }
}

/// The positions whose entries a manifest needs: R, from which other readers start, everything above R that it says
/// had landed, the fences, and what checkpoints hold; of those behind `after`.
fn needed(manifest: &ShardManifest, after: Position) -> Vec<RangeInclusive<u64>> {
    let (r, landed) = (manifest.replay_after, manifest.landed_up_to());
    let behind = |from: Position, to: Position| from.get().saturating_add(1)..=to.get();
    let replay_point = (r > Position::ZERO).then(|| r.get()..=r.get());
    let fences = manifest.fences().iter().map(|fence| fence.position.get()..=fence.position.get());
    let held = manifest.checkpoints().iter().map(|c| behind(c.replay_after, c.tail));
    let all = replay_point.into_iter().chain(fences).chain([behind(r, landed)]).chain(held);
    all.map(|positions| (*positions.start()).max(after.get().saturating_add(1))..=*positions.end()).collect()
}

async fn read_entry(log: &Log, position: Position, options: &VerifyOptions<'_>) -> Result<Option<Content<FoundEntry>>> {
    let path = log.entry_path(position);
    let Some(bytes) = log.store().get(&path).await? else {
        return Ok(None);
    };
    match decode(path.as_ref(), position, &bytes) {
        Ok(entry) => Ok(Some(Ok(FoundEntry::of(&entry, options)))),
        Err(Error::Corrupt { reason, .. }) => Ok(Some(Err(reason))),
        Err(error) => Err(error),
    }
}

impl FoundEntry {
    fn of(entry: &WalEntry, options: &VerifyOptions<'_>) -> Self {
        let columns = entry.schema.fields().iter().map(|field| format!("{}: {}", field.name(), field.data_type()));
        let check = options.check_rows.filter(|_| entry.rows() > 0);
        Self {
            epoch: entry.writer_epoch,
            writer_id: entry.writer_id,
            generation: entry.generation,
            is_sentinel: entry.is_sentinel,
            rows: entry.rows() as u64,
            columns: columns.collect::<Vec<_>>().join(", "),
            misfit: check.and_then(|check| check(entry).err()),
        }
    }

    /// Whether another engine wrote it.
    pub(super) fn is_foreign(&self) -> bool {
        self.writer_id.is_none()
    }
}

impl VerifyOptions<'_> {
    fn say(&self, found: u64, read: u64) {
        if let Some(progress) = self.progress {
            progress(found, read);
        }
    }

    fn budget_kib(&self) -> usize {
        (self.budget_bytes / KIB).clamp(1, MAX_ENTRY_BYTES / KIB)
    }

    /// What an object takes of the budget; one that is larger takes all of it, and is read alone.
    fn share_of_budget(&self, object_bytes: u64) -> u32 {
        let kib = (object_bytes / KIB as u64).saturating_add(1);
        u32::try_from(kib).unwrap_or(u32::MAX).min(u32::try_from(self.budget_kib()).unwrap_or(u32::MAX))
    }
}

/// The version that the hint file names.
pub(super) fn hinted(hint: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(hint).ok()?;
    let (_, rest) = text.split_once("\"version\"")?;
    let digits = rest.trim_start_matches([':', ' ']);
    digits.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Whether the folder of a shard has any object. On `file://` a process that dies before its first commit leaves the
/// folders of the log and the manifests, with nothing or a half-made file in them; no reader takes that for a shard.
pub(super) fn is_there(look: &Look) -> bool {
    let is_sstable = |folder: &String| !matches!(folder.as_str(), "wal" | "manifest" | "checkpoints");
    let has_log = !look.entries.is_empty() || !look.manifests.is_empty() || !look.checkpoints.is_empty();
    let has_others = look.hint.is_some() || !look.foreign.is_empty() || !look.loose.is_empty();
    has_log || has_others || look.folders.iter().any(is_sstable)
}

/// A folder of a shard.
pub(super) fn folder_path(shard: &Shard, folder: &str) -> Path {
    shard.root().clone().join(folder)
}

/// The folder of an SSTable, for people.
pub(super) fn place_of(shard: &Shard, sstable: &SsTable) -> String {
    match &sstable.base {
        None => folder_path(shard, &sstable.path).to_string(),
        Some(base) => {
            let table = base.place.url.trim_end_matches('/');
            format!("{table}/{MEM_WAL_FOLDER}/{}/{}", base.place.shard_id, sstable.path)
        }
    }
}

/// What a shard that is not there is answered with.
pub(super) fn not_found(shard: &Shard) -> Error {
    let id: ShardId = shard.id();
    Error::ShardNotFound { shard: id, url: shard.store().url().to_string() }
}
