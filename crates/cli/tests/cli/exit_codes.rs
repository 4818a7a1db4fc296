//! Each documented exit code, and the help that comes with it.

use crate::support::{Place, fencepost};

#[test]
fn usage_is_2() {
    assert_eq!(fencepost(["no-such-verb"]).code, Some(2));
    assert_eq!(fencepost(["create", "t"]).code, Some(2));
    let place = Place::new();
    let said = fencepost(["create", &place.table(), "--columns", "id:int46"]).fails(2);
    assert!(said.contains("unknown type \"int46\"") && said.contains("help: "), "{said}");
    fencepost(["create", &place.table(), "--columns", "id:int64", "--primary-key", "x"]).fails(2);
    fencepost(["create", &place.table(), "--columns", "id:int64", "--shard-by", "hash(id)"]).fails(2);
    fencepost(["create", &place.table(), "--columns", "id:int64", "--shard-by", "bucket(x,2)"]).fails(2);
    assert_eq!(place.objects(), []);
}

#[test]
fn an_absent_or_existing_table_is_3() {
    let place = Place::new();
    let table = place.table();
    let file = place.file("rows.csv", "id\n1\n");
    for args in [
        vec!["query", &table, "select 1"],
        vec!["ingest", &table, &file],
        vec!["tail", &table],
        vec!["inspect", &table],
        vec!["verify", &table],
        vec!["flush", &table],
    ] {
        let said = fencepost(&args).fails(3);
        assert!(said.contains("help: create it with"), "{args:?}: {said}");
    }
    place.create("id:int64", "id");
    fencepost(["create", &table, "--columns", "id:int64"]).fails(3);
    fencepost(["ingest", &table, &file, "--like", &file, "--primary-key", "other"]).fails(3);
}

#[test]
fn a_bad_query_is_1_and_says_what_the_table_is_called() {
    let place = Place::new();
    place.create("id:int64", "id");
    for sql in ["selec 1", "select * from u", "select nope from t"] {
        let said = fencepost(["query", &place.table(), sql]).fails(1);
        assert!(said.contains("`t`"), "{sql}: {said}");
    }
}

#[test]
fn a_query_cannot_change_anything() {
    let place = Place::new();
    place.create("id:int64", "id");
    let before = place.objects();
    for sql in ["insert into t values (1)", "create table u as select 1", "drop table t", "set a.b = 1"] {
        fencepost(["query", &place.table(), sql]).fails(1);
    }
    assert_eq!(place.objects(), before);
}

#[test]
fn help_lists_the_exit_codes() {
    let help = fencepost(["--help"]).ok();
    assert!(help.contains("Exit codes:") && help.contains("FENCEPOST_LOG"));
    assert!(!help.contains("__writer"), "internal verbs are hidden");
}
