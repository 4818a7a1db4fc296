//! The command against a real S3 server over loopback.

use fencepost_sim::S3Server;
use serde_json::json;

use crate::crash::s3_table;
use crate::python;
use crate::support::{Place, Run, fencepost, with_stdin};

fn run(verb: &str, table: &[String], rest: &[&str]) -> Run {
    let args = std::iter::once(verb.to_string()).chain(table.to_vec());
    fencepost(args.chain(rest.iter().map(|a| a.to_string())))
}

#[test]
fn a_table_lives_on_s3() {
    let place = Place::new();
    let server = S3Server::start(place.path("s3")).unwrap();
    let table = s3_table(&server, "t");
    assert_eq!(run("probe", &table, &["--rounds", "5", "--seconds", "1", "--output", "json"]).json()["fit"], true);
    run("create", &table, &["--columns", "id:int64,name:string", "--primary-key", "id"]).ok();
    let ingest = std::iter::once("ingest".to_string()).chain(table.clone());
    with_stdin(ingest.chain(["-", "--format", "csv"].map(str::to_string)), b"id,name\n1,a\n2,b\n1,c\n").ok();
    let sql = "select id, name from t order by id";
    let expected = json!([{"id": 1, "name": "c"}, {"id": 2, "name": "b"}]);
    assert_eq!(run("query", &table, &[sql, "--output", "json"]).json(), expected);
    run("flush", &table, &[]).ok();
    assert_eq!(run("query", &table, &[sql, "--output", "json"]).json(), expected);
    let merged = run("merge", &table, &["--output", "json"]).json();
    assert_eq!((&merged["sstables"], &merged["base"]["rows"]), (&json!(1), &json!(2)), "{merged}");
    assert_eq!(run("query", &table, &[sql, "--output", "json"]).json(), expected);
    let verified = run("verify", &table, &["--output", "json"]).json();
    assert_eq!(
        (&verified["damaged"], &verified["findings"], &verified["sstable_rows"]),
        (&json!(false), &json!([]), &json!(2))
    );
    let inspection = run("inspect", &table, &[]).json();
    assert_eq!(inspection["shards"].as_array().unwrap().len(), 1);
    assert_eq!(inspection["shards"][0]["sstables"][0]["merged"], true);

    // The base table by Lance's Python package, with the very same options.
    let option = |text: &String| {
        let (name, value) = text.strip_prefix("--storage-option=")?.split_once('=')?;
        Some((name.to_string(), json!(value)))
    };
    let options: serde_json::Map<_, _> = table.iter().filter_map(option).collect();
    let url = table.iter().find(|text| text.starts_with("s3://")).unwrap();
    if let Some(rows) = python::run("count_rows.py", &[url, &json!(options).to_string()]) {
        assert_eq!(rows, json!({ "rows": 2 }));
    }
}

#[test]
fn wrong_credentials_are_6_and_say_so() {
    let place = Place::new();
    let server = S3Server::start(place.path("s3")).unwrap();
    let mut table = s3_table(&server, "t");
    for option in &mut table {
        if option.starts_with("--storage-option=aws_secret_access_key=") {
            option.push_str("-wrong");
        }
    }
    for said in [
        run("create", &table, &["--columns", "id:int64"]).fails(6),
        run("query", &table, &["select 1"]).fails(6),
        run("probe", &table, &[]).fails(6),
    ] {
        assert!(said.contains("credentials"), "{said}");
    }
}
