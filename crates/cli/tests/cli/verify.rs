//! `fencepost verify`: 0 for a healthy table, 1 and the object's name for every kind of damage, one at a time.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use fencepost::verify::kinds as table_kinds;
use fencepost_wal::verify::kinds as log_kinds;
use fencepost_wal::{
    Epoch, Generation, ManifestVersion, Position, Severity, Shard, ShardManifest, Store, WalEntry, checkpoint, raw,
};
use serde_json::Value;

use crate::support::{Place, fencepost};

/// A table of one shard, written to twice and merged once: what a case damages a copy of.
struct Healthy {
    place: Place,
    shard: String,
    /// The last entry, which is the one at R.
    tail: u64,
    version: u64,
}

impl Healthy {
    fn new() -> Self {
        let place = Place::new();
        place.create("id:int64,name:string", "id");
        let table = place.table();
        for rows in ["id,name\n1,a\n2,b\n", "id,name\n2,c\n3,d\n"] {
            let file = place.file("rows.csv", rows);
            fencepost(["ingest", &table, &file]).ok();
        }
        let inspection = fencepost(["inspect", &table]).json();
        let shard = &inspection["shards"][0];
        assert_eq!((&shard["sstables"].as_array().unwrap().len(), &shard["replay_after"]), (&2, &shard["tail"]));
        let shard = (shard["shard_id"].as_str().unwrap().to_owned(), shard["tail"].as_u64().unwrap());
        let healthy = Self { place, shard: shard.0, tail: shard.1, version: 0 };
        // A command that ends may leave the hint half-made that it is writing.
        let manifests = Path::new(&healthy.place.table()).join("_mem_wal").join(&healthy.shard).join("manifest");
        for file in fs::read_dir(manifests).unwrap().map(|file| file.unwrap().path()) {
            if file.to_str().unwrap().contains("version_hint.json#") {
                fs::remove_file(file).unwrap();
            }
        }
        let report = fencepost(["verify", &healthy.place.table(), "--output", "json"]).json();
        assert_eq!(report["findings"], Value::Array(vec![]));
        let version = report["shards"][0]["manifest_version"].as_u64().unwrap();
        Self { version, ..healthy }
    }

    fn copy(&self) -> Case<'_> {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in self.place.objects() {
            let to = dir.path().join(path.strip_prefix(self.place.path("")).unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::write(to, bytes).unwrap();
        }
        Case { dir, of: self }
    }
}

struct Case<'a> {
    dir: tempfile::TempDir,
    of: &'a Healthy,
}

impl Case<'_> {
    /// The table is a clone of one that is gone, which was where this says.
    fn become_clone_without_source(&self) -> PathBuf {
        let source = self.table().with_file_name("source");
        fs::rename(self.table(), &source).unwrap();
        fencepost(["clone", source.to_str().unwrap(), self.table().to_str().unwrap()]).ok();
        fs::remove_dir_all(&source).unwrap();
        source
    }

    fn table(&self) -> PathBuf {
        self.dir.path().join("t")
    }

    fn shard(&self) -> PathBuf {
        self.table().join("_mem_wal").join(&self.of.shard)
    }

    fn entry(&self, position: u64) -> PathBuf {
        self.shard().join("wal").join(format!("{:064b}.arrow", position.reverse_bits()))
    }

    fn manifest(&self, version: u64) -> PathBuf {
        self.shard().join("manifest").join(format!("{:064b}.binpb", version.reverse_bits()))
    }

    fn sstable(&self, generation: u64) -> PathBuf {
        let is_it = |path: &PathBuf| path.to_str().unwrap().ends_with(&format!("_gen_{generation}"));
        fs::read_dir(self.shard()).unwrap().map(|entry| entry.unwrap().path()).find(is_it).unwrap()
    }

    fn edit(&self, version: u64, change: impl FnOnce(&mut ShardManifest)) -> PathBuf {
        let path = self.manifest(version);
        let id = self.of.shard.parse().unwrap();
        let bytes = fs::read(&path).unwrap();
        let mut manifest = raw::decode_manifest("m", &bytes, id, ManifestVersion::new(version)).unwrap();
        change(&mut manifest);
        fs::write(&path, raw::encode_manifest(&manifest)).unwrap();
        path
    }

    fn edit_newest(&self, change: impl FnOnce(&mut ShardManifest)) -> PathBuf {
        self.edit(self.of.version, change)
    }

    fn checkpoint(&self) -> PathBuf {
        file_below(&self.shard().join("checkpoints"), ".binpb")
    }

    /// A checkpoint that holds the last entries of the log.
    fn list_checkpoint(&self) {
        let store = Store::open(self.table().to_str().unwrap(), &HashMap::new()).unwrap();
        let shard = Shard::new(store, self.of.shard.parse().unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = checkpoint::CheckpointOptions::default();
        let made = runtime.block_on(checkpoint::create(&shard, &options)).unwrap();
        // Made when R was two entries back, as far as the manifest and the object say.
        let r = Position::new(self.of.tail - 2);
        let path = self.checkpoint();
        let mut object = raw::decode_checkpoint("c", &fs::read(&path).unwrap(), shard.id(), made.id).unwrap();
        object.manifest.replay_after = r;
        fs::write(&path, raw::encode_checkpoint(&object)).unwrap();
        self.edit(self.of.version + 1, |m| m.extension.as_mut().unwrap().checkpoints[0].replay_after = r);
    }

    /// A copy of the last entry with rows, changed, as the next one.
    fn append(&self, change: impl FnOnce(&mut WalEntry)) -> PathBuf {
        let bytes = fs::read(self.entry(self.of.tail)).unwrap();
        let mut entry = raw::decode_entry("e", Position::new(self.of.tail), &bytes.into()).unwrap();
        assert!(entry.rows() > 0, "a close leaves rows at the end");
        change(&mut entry);
        let path = self.entry(self.of.tail + 1);
        fs::write(&path, raw::encode_entry(&entry).unwrap()).unwrap();
        path
    }
}

/// The first file below a folder whose path has this part.
fn file_below(folder: &Path, part: &str) -> PathBuf {
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.to_str().unwrap().contains(part) => return path,
                false => {}
            }
        }
    }
    panic!("no {part} in {}", folder.display());
}

fn cut_in_half(path: PathBuf) -> PathBuf {
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    path
}

fn removed(path: PathBuf) -> PathBuf {
    match path.is_dir() {
        true => fs::remove_dir_all(&path).unwrap(),
        false => fs::remove_file(&path).unwrap(),
    }
    path
}

/// An entry as Lance writes it.
fn lances_entry(epoch: u64) -> Vec<u8> {
    let names: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let metadata = HashMap::from([("writer_epoch".to_owned(), epoch.to_string())]);
    let schema = Arc::new(Schema::new_with_metadata(vec![Field::new("name", DataType::Utf8, false)], metadata));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![names]).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

/// Does the damage, returns the object that has to be named.
type Inflict = fn(&Case<'_>) -> PathBuf;

const DAMAGE: &[(&str, Inflict)] = &[
    ("foreign-object", |c| {
        let path = c.shard().join("wal/3.arrow");
        fs::copy(c.entry(c.of.tail), &path).unwrap();
        path
    }),
    ("manifest-damaged", |c| cut_in_half(c.manifest(c.of.version))),
    ("manifest-damaged", |c| cut_in_half(c.manifest(1))),
    ("manifest-missing", |c| removed(c.manifest(2))),
    ("lineage-broken", |c| {
        c.edit(2, |m| m.extension.as_mut().unwrap().commit_id = Default::default());
        c.manifest(3)
    }),
    ("manifest-went-back", |c| {
        c.edit(c.of.version - 1, |m| m.writer_epoch = Epoch::new(9));
        c.manifest(c.of.version)
    }),
    ("manifest-inconsistent", |c| c.edit_newest(|m| m.last_seen = Position::new(1))),
    ("sstables-inconsistent", |c| c.edit_newest(|m| m.sstables.reverse())),
    ("entry-damaged", |c| cut_in_half(c.entry(c.of.tail))),
    ("log-hole", |c| {
        fs::copy(c.entry(c.of.tail), c.entry(c.of.tail + 40)).unwrap();
        c.entry(c.of.tail + 1)
    }),
    ("replay-point-missing", |c| removed(c.entry(c.of.tail))),
    ("epoch-unclaimed", |c| c.append(|entry| entry.writer_epoch = Epoch::new(7))),
    ("epoch-shared", |c| c.append(|entry| entry.writer_id = Some(Default::default()))),
    ("replay-epoch-wrong", |c| c.edit_newest(|m| m.extension.as_mut().unwrap().replay_after_epoch = Epoch::new(0))),
    ("fence-missing", |c| removed(c.entry(1))),
    ("fence-replaced", |c| {
        fs::copy(c.entry(c.of.tail), c.entry(1)).unwrap();
        c.entry(1)
    }),
    ("stranded", |c| {
        fs::write(c.entry(c.of.tail + 2), lances_entry(2)).unwrap();
        c.entry(c.of.tail + 2)
    }),
    ("entry-misfit", |c| {
        c.append(|entry| {
            let names: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
            let batch = RecordBatch::try_from_iter([("other", names)]).unwrap();
            (entry.schema, entry.batches) = (batch.schema(), vec![batch]);
        })
    }),
    ("checkpoint-missing", |c| {
        c.list_checkpoint();
        removed(c.checkpoint())
    }),
    ("checkpoint-damaged", |c| {
        c.list_checkpoint();
        cut_in_half(c.checkpoint())
    }),
    ("checkpoint-hole", |c| {
        c.list_checkpoint();
        removed(c.entry(c.of.tail - 1))
    }),
    ("sstable-missing", |c| removed(c.sstable(1))),
    ("sstable-damaged", |c| cut_in_half(file_below(&c.sstable(2), "/data/"))),
    ("sstable-rows-wrong", |c| {
        c.edit_newest(|m| m.sstables[0].physical_rows = Some(7));
        c.sstable(1)
    }),
    ("sstable-columns-wrong", |c| {
        // The base table's manifest: no `_tombstone`.
        let base = file_below(&c.table().join("_versions"), ".manifest");
        fs::copy(base, file_below(&c.sstable(1).join("_versions"), ".manifest")).unwrap();
        c.sstable(1)
    }),
    ("sstable-statistics-wrong", |c| {
        let manifest = file_below(&c.sstable(1).join("_versions"), ".manifest");
        let (mut bytes, name) = (fs::read(&manifest).unwrap(), b"fencepost.statistics");
        let at = bytes.windows(name.len()).position(|part| part == name).unwrap() + name.len();
        // Behind the value's tag and length: the number of rows.
        bytes[at + 2] = if bytes[at + 2] == b'1' { b'2' } else { b'1' };
        fs::write(manifest, bytes).unwrap();
        c.sstable(1)
    }),
    ("key-index-damaged", |c| cut_in_half(file_below(&c.sstable(1), "page_data"))),
    ("bloom-filter-damaged", |c| cut_in_half(c.sstable(1).join("bloom_filter.bin"))),
    ("generation-missing", |c| c.edit_newest(|m| drop(m.sstables.pop()))),
    ("shard-lost", |c| {
        fencepost(["merge", c.table().to_str().unwrap()]).ok();
        c.edit_newest(|m| m.current_generation = Generation::new(2));
        c.shard()
    }),
    ("shard-deleted", |c| {
        c.edit_newest(|m| m.extension.as_mut().unwrap().deleted = true);
        c.shard()
    }),
    ("pin-missing", |c| {
        c.become_clone_without_source();
        fs::read_dir(c.table().join("_mem_wal")).unwrap().next().unwrap().unwrap().path()
    }),
    ("clone-tag-missing", |c| format!("file://{}", c.become_clone_without_source().display()).into()),
    ("base-damaged", |c| {
        fencepost(["merge", c.table().to_str().unwrap()]).ok();
        removed(file_below(&c.table().join("data"), ".lance"));
        c.table()
    }),
];

#[test]
fn every_kind_of_damage_is_1_and_names_the_object() {
    let healthy = Healthy::new();
    for (kind, inflict) in DAMAGE {
        let case = healthy.copy();
        let object = inflict(&case);
        let table = case.table().display().to_string();
        let name = object.to_str().unwrap().trim_start_matches('/');

        let run = fencepost(["verify", &table, "--output", "json"]);
        assert_eq!(run.code, Some(1), "{kind}: {run:#?}");
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(report["damaged"], true);
        let findings = report["findings"].as_array().unwrap();
        let is_it = |f: &&Value| f["kind"] == *kind && f["object"] == name && f["severity"] == "damage";
        let finding = findings.iter().find(is_it).unwrap_or_else(|| panic!("{kind} of {name}: {report:#}"));
        assert!(!finding["what_to_do"].as_str().unwrap().is_empty());

        let run = fencepost(["verify", &table]);
        assert!(run.stdout.contains(&format!("damage: {kind}: {name}: ")), "{run:#?}");
        assert!(run.stdout.contains("DAMAGED"), "{run:#?}");
        let said = run.fails(1);
        assert!(said.contains("help: "), "{said}");
    }
}

#[test]
fn every_kind_of_damage_is_inflicted() {
    let inflicted: BTreeSet<&str> = DAMAGE.iter().map(|(kind, _)| *kind).collect();
    let kinds = log_kinds::ALL.iter().chain(table_kinds::ALL).filter(|kind| kind.severity == Severity::Damage);
    let missing: Vec<&str> = kinds.map(|kind| kind.name).filter(|name| !inflicted.contains(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn warnings_and_remarks_are_0() {
    let healthy = Healthy::new();
    let case = healthy.copy();
    fs::write(case.shard().join("notes.txt"), "x").unwrap();
    fs::write(case.shard().join("manifest/version_hint.json"), "{\"version\":99}").unwrap();
    let said = fencepost(["verify", case.table().to_str().unwrap()]).ok();
    assert!(said.contains("warning: unknown-object") && said.contains("info: hint-wrong"), "{said}");
    assert!(said.contains("nothing is damaged (1 warning, 1 remark)"), "{said}");
}
