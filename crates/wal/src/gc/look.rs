//! What a plan is decided on: the certain manifest, one LIST of the shard's folder, and the checkpoints that stay
//! listed. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectMeta;
use uuid::Uuid;

use super::leftovers;
use super::plan::{CheckpointObject, DirectoryFound, Found, Inputs};
use super::{BaseProgress, GcOptions, contention};
use crate::checkpoint::{self, Checkpoint, ShardCheckpoint};
use crate::error::{Error, Result};
use crate::ids::{Generation, ManifestVersion, Position};
use crate::manifest::{ManifestStore, ShardManifest};
use crate::names;
use crate::shard::Shard;

/// Requests that run at once.
const READS_AT_ONCE: usize = 16;
/// How often others may change the shard while it is looked at.
const MAX_ROUNDS: usize = 16;

/// Gathers what a plan needs; `None` if the shard does not exist.
///
/// # Errors
/// Errors of reading; [`Error::Corrupt`] if the object of a checkpoint that stays listed is damaged or missing: what it
/// holds is not known then, and nothing may be collected.
pub async fn look(shard: &Shard, base: &BaseProgress, options: &GcOptions) -> Result<Option<Inputs>> {
    let manifests = ManifestStore::new(shard.clone());
    for _ in 0..MAX_ROUNDS {
        // Schedule 28: only a manifest that a LIST after it was read still shows as the newest.
        let Some(manifest) = manifests.latest_certain().await? else {
            return Ok(None);
        };
        let version = manifest.version;
        match gather(shard, &manifests, manifest, base, options).await {
            // A checkpoint that this manifest lists may have gone with a newer one, which is no damage.
            Err(Error::Corrupt { .. }) if manifests.latest_certain().await?.is_none_or(|m| m.version != version) => {}
            gathered => return gathered.map(Some),
        }
    }
    Err(contention(shard.id(), MAX_ROUNDS))
}

async fn gather(
    shard: &Shard,
    manifests: &ManifestStore,
    manifest: ShardManifest,
    base: &BaseProgress,
    options: &GcOptions,
) -> Result<Inputs> {
    let mut inputs = Inputs {
        manifest,
        settled: None,
        entries: Vec::new(),
        entries_in_wal_store: Vec::new(),
        manifests: Vec::new(),
        checkpoints: Vec::new(),
        sstables: Vec::new(),
        leftovers: leftovers::find(shard).await?,
        pinned: Vec::new(),
        base: base.clone(),
        now: shard.store().surroundings().now(),
        options: options.clone(),
    };
    let mut objects = Vec::new();
    let mut folders = BTreeMap::new();
    for object in shard.store().list(shard.root()).await? {
        sort_in(shard, &object, &mut inputs, &mut objects, &mut folders);
    }
    if inputs.manifest.wal_store().is_some() {
        let log = shard.log(&inputs.manifest).await?;
        let listed = log.store().list(log.folder()).await?;
        inputs.entries_in_wal_store =
            listed.iter().filter_map(|object| entry(object, object.location.filename()?)).collect();
    }
    let listed: BTreeSet<String> = folders.keys().cloned().collect();
    inputs.sstables = folders.into_values().collect();
    inputs.sstables.extend(leftovers::find_folders(shard, move |name| listed.contains(name)).await?);
    inputs.settled = settled(manifests, &inputs).await?;

    let is_kept = |c: &&Checkpoint| c.is_kept(inputs.now, options.min_age);
    let kept: Vec<Uuid> = inputs.manifest.checkpoints().iter().filter(is_kept).map(|c| c.id).collect();
    let read = stream::iter(kept).map(|id| checkpoint::read_object(shard, id));
    inputs.pinned = read.buffered(READS_AT_ONCE).try_collect().await?;
    let listed = |id: Uuid| inputs.manifest.checkpoints().iter().any(|c| c.id == id);
    let judged = stream::iter(objects).map(|found: Found<Uuid>| {
        let is_listed = listed(found.name);
        async move {
            let derived_from = match is_listed {
                true => None,
                false => derived_from(shard, found.name).await?,
            };
            let name = CheckpointObject { id: found.name, derived_from };
            Ok::<_, Error>(Found { name, bytes: found.bytes, modified: found.modified })
        }
    });
    let judged: Vec<_> = judged.buffered(READS_AT_ONCE).try_collect().await?;
    inputs.checkpoints = judged;
    Ok(inputs)
}

/// The only version after which an unlisted checkpoint could have been listed; `None` if it cannot be decoded or is
/// gone by now.
async fn derived_from(shard: &Shard, id: Uuid) -> Result<Option<ManifestVersion>> {
    match checkpoint::read_object(shard, id).await {
        Ok(ShardCheckpoint { derived_from, .. }) => Ok(Some(derived_from)),
        Err(Error::Corrupt { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The newest manifest that is older than `min_age`.
async fn settled(manifests: &ManifestStore, inputs: &Inputs) -> Result<Option<ShardManifest>> {
    let is_old = |found: &&Found<ManifestVersion>| {
        found.name <= inputs.manifest.version
            && inputs.now.duration_since(found.modified).is_ok_and(|age| age >= inputs.options.min_age)
    };
    match inputs.manifests.iter().filter(is_old).map(|found| found.name).max() {
        Some(version) if version == inputs.manifest.version => Ok(Some(inputs.manifest.clone())),
        Some(version) => manifests.read(version).await,
        None => Ok(None),
    }
}

fn sort_in(
    shard: &Shard,
    object: &ObjectMeta,
    inputs: &mut Inputs,
    checkpoints: &mut Vec<Found<Uuid>>,
    folders: &mut BTreeMap<String, DirectoryFound>,
) {
    let Some(parts) = object.location.prefix_match(shard.root()) else {
        return;
    };
    let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
    let (bytes, modified) = (object.size, SystemTime::from(object.last_modified));
    match parts.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["wal", name] => {
            inputs.entries.extend(entry(object, name));
        }
        ["manifest", name] => {
            let version = names::parse(name, names::MANIFEST_SUFFIX).map(ManifestVersion::new);
            inputs.manifests.extend(version.map(|name| Found { name, bytes, modified }));
        }
        ["checkpoints", name] => {
            checkpoints.extend(checkpoint::id_of(name).map(|name| Found { name, bytes, modified }));
        }
        [folder, _, ..] => {
            let Some(generation) = generation_of(folder) else {
                return;
            };
            let found = folders.entry((*folder).to_owned()).or_insert_with(|| DirectoryFound {
                name: (*folder).to_owned(),
                generation,
                objects: 0,
                bytes: 0,
                modified,
            });
            found.objects += 1;
            found.bytes += bytes;
            found.modified = found.modified.max(modified);
        }
        _ => {}
    }
}

fn entry(object: &ObjectMeta, name: &str) -> Option<Found<Position>> {
    let position = names::parse(name, names::ENTRY_SUFFIX).map(Position::new)?;
    Some(Found { name: position, bytes: object.size, modified: object.last_modified.into() })
}

/// The generation of a folder that is named `{8 hex}_gen_{generation}`; `None` for any other.
pub(crate) fn generation_of(folder: &str) -> Option<Generation> {
    let (random, generation) = folder.split_once("_gen_")?;
    let is_ours = random.len() == 8 && random.bytes().all(|b| b.is_ascii_hexdigit());
    let number: u64 = generation.parse().ok().filter(|n: &u64| n.to_string() == generation)?;
    is_ours.then_some(Generation::new(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_sstables_are_taken_for_such() {
        assert_eq!(generation_of("0badcafe_gen_12"), Some(Generation::new(12)));
        for other in ["wal", "0badcafe_gen_", "0badcafe_gen_01", "badcafe_gen_1", "0badcaf€_gen_1", "0badcafe_gen_+1"]
        {
            assert_eq!(generation_of(other), None, "{other}");
        }
    }
}
