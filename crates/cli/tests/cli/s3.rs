//! The command against a real S3 server over loopback.

use fencepost_sim::S3Server;
use serde_json::json;

use crate::crash::s3_table;
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
    assert_eq!(run("probe", &table, &["--output", "json"]).json()["fit"], true);
    run("create", &table, &["--columns", "id:int64,name:string", "--primary-key", "id"]).ok();
    let ingest = std::iter::once("ingest".to_string()).chain(table.clone());
    with_stdin(ingest.chain(["-", "--format", "csv"].map(str::to_string)), b"id,name\n1,a\n2,b\n1,c\n").ok();
    let sql = "select id, name from t order by id";
    let expected = json!([{"id": 1, "name": "c"}, {"id": 2, "name": "b"}]);
    assert_eq!(run("query", &table, &[sql, "--output", "json"]).json(), expected);
    run("flush", &table, &[]).ok();
    assert_eq!(run("query", &table, &[sql, "--output", "json"]).json(), expected);
    assert_eq!(run("inspect", &table, &[]).json()["shards"].as_array().unwrap().len(), 1);
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
