//! Bad input gets a clear error and changes nothing.

use serde_json::json;

use crate::support::{Place, Run, fencepost};

/// A keyed table with one row, flushed.
fn place() -> Place {
    let place = Place::new();
    place.create("id:int64,name:string,v:float32[2]", "id");
    let file = place.file("good.csv", "id,name,v\n1,a,\"[1,2]\"\n");
    fencepost(["ingest", &place.table(), &file]).ok();
    place
}

/// Ingests a file that must be refused, and checks that not one object changed.
#[track_caller]
fn refused(place: &Place, name: &str, content: impl AsRef<[u8]>, code: i32) -> String {
    let before = place.objects();
    let file = place.file(name, content);
    let said = fencepost(["ingest", &place.table(), &file]).fails(code);
    assert_eq!(place.objects(), before, "objects changed");
    assert!(said.contains(name), "the file is not named: {said}");
    said
}

#[test]
fn values_of_the_wrong_type() {
    let place = place();
    let said = refused(&place, "bad.csv", "id,name\n2,b\nx,c\n", 4);
    assert!(said.contains("line 3, column `id`: \"x\" does not fit int64"), "{said}");
    let said = refused(&place, "bad.ndjson", "{\"id\": 2}\n{\"id\": 3, \"v\": [1, 2, 3]}\n", 4);
    assert!(said.contains("line 2"), "{said}");
    let said = refused(&place, "bad.ndjson", "{\"id\": 2, \"name\": {\"a\": 1}}\n", 4);
    assert!(said.contains("line 1"), "{said}");
}

#[test]
fn a_null_in_a_key() {
    let place = place();
    let said = refused(&place, "bad.csv", "id,name\n,b\n", 4);
    assert!(said.contains("line 2, column `id`: null"), "{said}");
    let said = refused(&place, "bad.ndjson", "{\"name\": \"b\"}\n", 4);
    assert!(said.contains("line 1, column `id`: null"), "{said}");
    let said = refused(&place, "bad2.csv", "name\nb\n", 4);
    assert!(said.contains("column `id` is missing"), "{said}");
}

#[test]
fn an_unknown_column() {
    let place = place();
    for (name, content) in [("bad.csv", "id,nmae\n2,b\n"), ("bad.ndjson", "{\"id\":2,\"nmae\":\"b\"}\n")] {
        let said = refused(&place, name, content, 4);
        assert!(said.contains("the table has no column `nmae`"), "{said}");
        assert!(said.contains("help: its columns are: id, name, v"), "{said}");
    }
}

#[test]
fn files_that_are_not_what_they_say() {
    let place = place();
    for name in ["bad.parquet", "bad.arrow"] {
        let said = refused(&place, name, "id,name\n", 4);
        assert!(said.contains("cannot read"), "{said}");
    }
    refused(&place, "bad.csv", "id\n2\n\"3\n", 4);
    refused(&place, "bad.txt", "id\n2\n", 2);
    let said = fencepost(["ingest", &place.table(), "/no/such/file.csv"]).fails(4);
    assert!(said.contains("/no/such/file.csv"), "{said}");
}

#[test]
fn a_bad_file_in_the_middle_keeps_what_was_acknowledged() {
    let place = place();
    let good = place.file("1.csv", "id,name\n2,b\n3,c\n");
    let bad = place.file("2.csv", "id,name\n4,d\nx,e\n");
    let said = fencepost(["ingest", &place.table(), &good, &bad]).fails(4);
    assert!(said.contains("2.csv: line 3"), "{said}");
    assert!(said.contains("the first 2 rows of the input are durable"), "{said}");
    assert_eq!(place.query("select id from t order by id"), json!([{"id": 1}, {"id": 2}, {"id": 3}]));
}

#[test]
fn a_bad_file_creates_no_table() {
    let place = Place::new();
    let like = place.file("like.csv", "id,name\n1,a\n");
    let bad = place.file("bad.csv", "id,name\nx,a\n");
    fencepost(["ingest", &place.table(), &bad, "--like", &like]).fails(4);
    assert_eq!(place.objects(), []);
}

#[test]
fn a_table_path_that_is_a_file() {
    let place = Place::new();
    let file = place.file("t", "not a table");
    for run in [
        fencepost(["create", &file, "--columns", "id:int64"]),
        fencepost(["query", &file, "select 1"]),
        fencepost(["inspect", &file]),
    ] {
        let said = run.fails(6);
        assert!(said.contains("it is a file"), "{said}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), b"not a table");
}

#[test]
fn an_unknown_scheme() {
    let said = fencepost(["create", "ftp://host/t", "--columns", "id:int64"]).fails(6);
    assert!(said.contains("`ftp` is unknown") && said.contains("help: "), "{said}");
}

#[test]
fn options_that_the_store_does_not_know() {
    let place = Place::new();
    let run: Run = fencepost(["query", &place.table(), "select 1", "--storage-option", "color=red"]);
    let said = run.fails(6);
    assert!(said.contains("color"), "{said}");
}

#[cfg(unix)]
mod storage {
    //! Objects that were damaged from outside: every reader and writer stops and names them.

    use std::path::{Path, PathBuf};

    use crate::crash::Crashed;
    use crate::support::{Run, fencepost};

    /// A sentinel is smaller than this, an entry with rows larger.
    const SENTINEL_BYTES: u64 = 1_500;

    /// The objects below a folder, named like this.
    fn objects(folder: &Path, suffix: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(objects(&path, suffix));
            } else if path.display().to_string().ends_with(suffix) {
                // Not `....arrow#1`: that is a PUT that the kill interrupted, and no object.
                found.push(path);
            }
        }
        found
    }

    /// What an object's name counts: its bits are reversed.
    fn number(object: &Path) -> String {
        object.file_stem().unwrap().to_str().unwrap().chars().rev().collect()
    }

    /// The first entry with rows: an acknowledged one, with others behind it.
    fn first_entry(table: &Path) -> PathBuf {
        let entries = objects(table, ".arrow").into_iter();
        let with_rows = entries.filter(|e| e.metadata().unwrap().len() > SENTINEL_BYTES);
        with_rows.min_by_key(|e| number(e)).unwrap()
    }

    /// The newest manifest of one shard.
    fn newest_manifest(table: &Path) -> PathBuf {
        let manifests = objects(table, ".binpb");
        let shard = manifests[0].parent().unwrap();
        objects(shard, ".binpb").into_iter().max_by_key(|m| number(m)).unwrap()
    }

    /// Damages one entry; readers and writers must refuse and name it, and must change nothing.
    #[track_caller]
    fn damaged(damage: impl Fn(&mut Vec<u8>)) {
        let crashed = Crashed::new(500);
        let object = first_entry(Path::new(&crashed.table));
        let mut bytes = std::fs::read(&object).unwrap();
        damage(&mut bytes);
        std::fs::write(&object, &bytes).unwrap();
        let name = object.file_name().unwrap().to_str().unwrap().to_string();
        let runs: [Run; 2] =
            [fencepost(["query", &crashed.table, "select count(*) from t"]), fencepost(["flush", &crashed.table])];
        for run in runs {
            assert_ne!(run.code, Some(0), "{run:#?}");
            assert!(!run.stderr.contains("panicked"), "{run:#?}");
            assert!(run.stderr.contains(&name), "{name} is not named: {run:#?}");
        }
        assert_eq!(std::fs::read(&object).unwrap(), bytes);
    }

    #[test]
    fn a_truncated_wal_entry() {
        damaged(|bytes| bytes.truncate(bytes.len() / 2));
    }

    #[test]
    fn an_empty_wal_entry() {
        damaged(Vec::clear);
    }

    #[test]
    fn a_wal_entry_with_a_wrong_trailer() {
        damaged(|bytes| {
            let checksum = bytes.len() - 10;
            bytes[checksum] ^= 1;
        });
    }

    #[test]
    fn a_wal_entry_with_a_flipped_bit() {
        damaged(|bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
    }

    #[test]
    fn a_wal_entry_replaced_by_garbage() {
        damaged(|bytes| bytes.fill(b'x'));
    }

    #[test]
    fn a_truncated_manifest() {
        let crashed = Crashed::new(500);
        let manifest = newest_manifest(Path::new(&crashed.table));
        let bytes = std::fs::read(&manifest).unwrap();
        std::fs::write(&manifest, &bytes[..bytes.len() / 2]).unwrap();
        let name = manifest.file_name().unwrap().to_str().unwrap();
        for run in [
            fencepost(["query", &crashed.table, "select count(*) from t"]),
            fencepost(["inspect", &crashed.table]),
            fencepost(["flush", &crashed.table]),
        ] {
            assert_ne!(run.code, Some(0), "{run:#?}");
            assert!(run.stderr.contains(name), "{run:#?}");
        }
    }
}
