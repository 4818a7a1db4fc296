//! `fencepost gc`: what it says, what it deletes, and that a dry run deletes nothing.

use serde_json::json;

use crate::support::{Place, fencepost};

/// A table with two merged SSTables and a log that is flushed.
fn merged(place: &Place) -> String {
    let table = place.table();
    place.create("id:int64,v:int64", "id");
    for round in 0..2 {
        let file = place.file("rows.csv", format!("id,v\n1,{round}\n{},7\n", 10 + round));
        fencepost(["ingest", &table, &file]).ok();
    }
    fencepost(["merge", &table]).ok();
    table
}

#[test]
fn what_is_merged_is_deleted_and_the_rows_stay() {
    let place = Place::new();
    let table = merged(&place);
    let rows = || place.query("select id, v from t order by id");
    let before = rows();
    assert_eq!(before.as_array().unwrap().len(), 3);

    // By default nothing that is this young.
    let young = fencepost(["gc", &table, "--output", "json"]).json();
    assert_eq!((&young["dry_run"], &young["min_age_seconds"]), (&json!(false), &json!(3600.0)));
    let kept = &young["shards"][0]["kept"];
    assert_eq!(young["objects"], 0);
    assert!(kept["young_entries"].as_u64().unwrap() > 0 && kept["young_sstables"] == 2, "{young:#}");

    let objects = place.objects();
    let plan = fencepost(["gc", &table, "--dry-run", "--min-age", "0", "--output", "json"]).json();
    assert_eq!(place.objects(), objects, "a dry run writes nothing");
    assert_eq!(plan["dry_run"], true);
    let said = fencepost(["gc", &table, "--dry-run", "--min-age", "0"]).ok();
    for deletion in plan["shards"][0]["deletions"].as_array().unwrap() {
        assert!(said.contains(deletion["path"].as_str().unwrap()), "{said}");
    }
    assert!(said.contains("would delete") && said.contains("nothing was written"), "{said}");

    let done = fencepost(["gc", &table, "--min-age", "0s", "--output", "json"]).json();
    assert_eq!((&done["objects"], &done["bytes"]), (&plan["objects"], &plan["bytes"]));
    let shard = &done["shards"][0];
    assert_eq!((&shard["value"], &shard["refused"]), (&json!("all"), &json!(null)));
    assert!(shard["freed"]["sstables"]["objects"].as_u64().unwrap() >= 2 * 5, "{done:#}");
    assert!(shard["freed"]["wal_entries"]["objects"].as_u64().unwrap() > 0);
    assert!(objects.len() > place.objects().len());
    assert!(place.objects().iter().all(|(path, _)| !path.to_str().unwrap().contains("_gen_")));
    assert_eq!(rows(), before);

    let again = fencepost(["gc", &table, "--min-age", "0"]).ok();
    assert!(again.contains("nothing to delete") && again.contains("deleted 0 objects (0 B)"), "{again}");
    fencepost(["ingest", &table, &place.file("more.csv", "id,v\n1,9\n")]).ok();
    assert_eq!(place.query("select v from t where id = 1"), json!([{"v": 9}]));
}

#[test]
fn a_table_for_people_says_what_goes_and_what_stays() {
    let place = Place::new();
    let table = merged(&place);
    let said = fencepost(["gc", &table]).ok();
    assert!(said.contains("the manifest drops 2 merged SSTables"), "{said}");
    assert!(said.contains("2 SSTables as too young") && said.contains("log entr"), "{said}");
    let done = fencepost(["gc", &table, "--min-age", "0"]).ok();
    assert!(done.contains("of SSTables") && done.contains("of the log") && done.contains("KiB"), "{done}");
}

#[test]
fn wrong_durations_and_missing_tables_are_named() {
    let place = Place::new();
    let said = fencepost(["gc", &place.table(), "--min-age", "5"]).fails(2);
    assert!(said.contains("--min-age") && said.contains("1h"), "{said}");
    fencepost(["gc", &place.table()]).fails(3);
}
