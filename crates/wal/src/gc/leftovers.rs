//! What only `file://` has and no LIST shows: the half-made files of processes that were killed in the middle of a PUT
//! (`object_store` writes to `{name}#{number}` first), and folders without a finished object.

use std::fs::DirEntry;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use object_store::Error as StoreError;
use object_store::path::Path;

use super::look::generation_of;
use super::plan::{DirectoryFound, Found, LeftoverFound, LeftoverOf};
use crate::checkpoint::id_of;
use crate::error::{Error, Result};
use crate::ids::{ManifestVersion, Position};
use crate::names;
use crate::shard::Shard;

/// Half-made files in `wal/`, `manifest/` and `checkpoints/`; none where objects are no files. (Those in an SSTable's
/// folder go with it.)
pub(crate) async fn find(shard: &Shard) -> Result<Vec<Found<LeftoverFound>>> {
    let Some(root) = shard.store().local_path(shard.root()) else {
        return Ok(Vec::new());
    };
    blocking(shard.root(), "LIST", move || find_in(&root)).await
}

fn find_in(root: &FilePath) -> io::Result<Vec<Found<LeftoverFound>>> {
    let mut found = Vec::new();
    for folder in ["wal", "manifest", "checkpoints"] {
        for file in entries(&root.join(folder))? {
            let name = file.file_name();
            let Some((name, of)) = name.to_str().and_then(|name| Some((name, half_made(folder, name)?))) else {
                continue;
            };
            // Gone meanwhile: its PUT has ended.
            let Ok(metadata) = file.metadata() else { continue };
            if metadata.is_file() {
                let name = LeftoverFound { path: format!("{folder}/{name}"), of };
                found.push(Found { name, bytes: metadata.len(), modified: metadata.modified()? });
            }
        }
    }
    Ok(found)
}

/// The folders of SSTables except those that `is_listed` knows: no object is in them. A flush that is killed during its
/// first file leaves such a one, and a collector that dies between the objects and their folder. None where objects are
/// no files.
pub(super) async fn find_folders(
    shard: &Shard,
    is_listed: impl Fn(&str) -> bool + Send + 'static,
) -> Result<Vec<DirectoryFound>> {
    let Some(root) = shard.store().local_path(shard.root()) else {
        return Ok(Vec::new());
    };
    blocking(shard.root(), "LIST", move || find_folders_in(&root, is_listed)).await
}

fn find_folders_in(root: &FilePath, is_listed: impl Fn(&str) -> bool) -> io::Result<Vec<DirectoryFound>> {
    let mut found = Vec::new();
    for folder in entries(root)? {
        let name = folder.file_name();
        let Some((name, generation)) = name.to_str().and_then(|name| Some((name, generation_of(name)?))) else {
            continue;
        };
        if is_listed(name) || !folder.file_type()?.is_dir() {
            continue;
        }
        let mut of_folder = DirectoryFound {
            name: name.to_owned(),
            generation,
            objects: 0,
            bytes: 0,
            modified: SystemTime::UNIX_EPOCH,
        };
        let mut to_visit = vec![folder];
        while let Some(place) = to_visit.pop() {
            // Gone meanwhile: another collector is at work.
            let Ok(metadata) = place.metadata() else { continue };
            of_folder.modified = of_folder.modified.max(metadata.modified()?);
            match metadata.is_dir() {
                true => to_visit.extend(entries(&place.path())?),
                false => of_folder.bytes += metadata.len(),
            }
        }
        found.push(of_folder);
    }
    Ok(found)
}

/// What is in a folder; nothing if it is gone.
fn entries(folder: &FilePath) -> io::Result<Vec<DirEntry>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What a file would have become; `None` if it is no half-made one.
fn half_made(folder: &str, name: &str) -> Option<LeftoverOf> {
    let (object, number) = name.rsplit_once('#')?;
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    match folder {
        "wal" => names::parse(object, names::ENTRY_SUFFIX).map(|n| LeftoverOf::Entry(Position::new(n))),
        "manifest" if object == "version_hint.json" => Some(LeftoverOf::Hint),
        "manifest" => {
            names::parse(object, names::MANIFEST_SUFFIX).map(|n| LeftoverOf::Manifest(ManifestVersion::new(n)))
        }
        "checkpoints" => id_of(object).map(|_| LeftoverOf::Checkpoint),
        _ => None,
    }
}

/// Removes a half-made file, or finds it gone.
pub(super) async fn remove(shard: &Shard, path: &str) -> Result<()> {
    remove_with(shard, path, |file| std::fs::remove_file(file)).await
}

/// Removes what is left of a folder whose objects are deleted. Nothing to do where objects are no files.
pub(super) async fn remove_folder(shard: &Shard, path: &str) -> Result<()> {
    remove_with(shard, path, |folder| std::fs::remove_dir_all(folder)).await
}

async fn remove_with(shard: &Shard, path: &str, how: fn(&FilePath) -> io::Result<()>) -> Result<()> {
    let Some(root) = shard.store().local_path(shard.root()) else {
        return Ok(());
    };
    let at: PathBuf = root.join(path);
    blocking(&shard.root().clone().join(path), "DELETE", move || match how(&at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
    .await
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    operation: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Store {
        operation,
        object: path.to_string(),
        source: Arc::new(StoreError::Generic { store: "file", source }),
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|e| failed(e.into())),
        Err(e) => Err(failed(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_half_made_files_of_ours_are_taken_for_such() {
        let entry = names::format(7, names::ENTRY_SUFFIX);
        assert_eq!(half_made("wal", &format!("{entry}#1")), Some(LeftoverOf::Entry(Position::new(7))));
        let manifest = names::format(3, names::MANIFEST_SUFFIX);
        let of_manifest = Some(LeftoverOf::Manifest(ManifestVersion::new(3)));
        assert_eq!(half_made("manifest", &format!("{manifest}#12")), of_manifest);
        assert_eq!(half_made("manifest", "version_hint.json#1"), Some(LeftoverOf::Hint));
        for (folder, name) in [
            ("wal", entry.clone()),
            ("wal", format!("{entry}#")),
            ("wal", format!("{entry}#1a")),
            ("wal", format!("{manifest}#1")),
            ("wal", "notes#1".into()),
            ("manifest", format!("{entry}#1")),
            ("checkpoints", "mine.binpb#1".into()),
        ] {
            assert_eq!(half_made(folder, &name), None, "{folder}/{name}");
        }
    }
}
