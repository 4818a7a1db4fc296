//! Indexes and search from the command line.

use serde_json::json;

use crate::support::{Place, fencepost};

#[test]
fn indexes_are_made_listed_and_dropped_and_searches_are_sql() {
    let place = Place::new();
    let table = place.table();
    place.create("id:int64,body:string,v:float32[2]", "id");
    let index = |args: &[&str]| fencepost(["index"].into_iter().chain(args.iter().copied()));
    assert_eq!(index(&["list", &table, "--output", "json"]).json(), json!([]));
    let made = index(&["create", &table, "--column", "body", "--kind", "text"]).ok();
    assert!(made.contains("made index `body_idx` on `body`: text"), "{made}");
    index(&["create", &table, "--column", "v", "--kind", "vector", "--metric", "cosine", "--name", "near"]).ok();
    let rows = "{\"id\":1,\"body\":\"red apples\",\"v\":[1,0]}\n{\"id\":2,\"body\":\"green pears\",\"v\":[0,1]}\n\
                {\"id\":3,\"body\":\"an apple a day\",\"v\":[1,1]}\n";
    let file = place.file("rows.ndjson", rows);
    fencepost(["ingest", &table, &file]).ok();
    let ids = |sql: &str| fencepost(["query", &table, sql, "--output", "json"]).json();
    let near = "select id from vector_search('t', 'v', '[1, 0.1]', 2) order by _distance";
    let words = "select id from text_search('t', 'body', 'apple', 5) order by _score desc";
    for step in ["flush", "merge", "merge"] {
        assert_eq!(ids(near), json!([{"id": 1}, {"id": 3}]));
        assert_eq!(ids(words).as_array().map(Vec::len), Some(2));
        fencepost([step, &table]).ok();
    }
    assert_eq!(
        index(&["list", &table, "--output", "json"]).json(),
        json!([
            {"name": "body_idx", "column": "body", "kind": "text", "metric": null},
            {"name": "near", "column": "v", "kind": "vector", "metric": "cosine"},
        ])
    );
    index(&["drop", &table, "near"]).ok();
    assert_eq!(ids(near), json!([{"id": 1}, {"id": 3}]), "found without it, too");
}
