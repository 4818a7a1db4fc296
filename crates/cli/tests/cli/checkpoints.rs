//! `fencepost checkpoint` and `query --at`.

use serde_json::json;

use crate::support::{Place, fencepost};

#[test]
fn a_table_is_queried_as_it_was() {
    let place = Place::new();
    let table = place.table();
    let first = place.file("a.csv", "id,v\n1,a\n2,b\n");
    let second = place.file("b.csv", "id,v\n2,c\n3,d\n");
    fencepost([
        "create",
        &table,
        "--columns",
        "id:int64,v:string",
        "--primary-key",
        "id",
        "--shard-by",
        "bucket(id,2)",
    ])
    .ok();
    fencepost(["ingest", &table, &first]).ok();
    let create = ["checkpoint", "create", &table, "--output", "json"];
    let made = fencepost(create.into_iter().chain(["--name", "before", "--lifetime", "7d"])).json();
    assert_eq!((&made["name"], &made["needs_log"]), (&json!("before"), &json!(false)), "{made}");
    assert_eq!(made["shards"].as_array().unwrap().len(), 2);
    let id = made["id"].as_str().unwrap().to_owned();
    fencepost(["ingest", &table, &second]).ok();
    fencepost(["merge", &table]).ok();
    fencepost(["gc", &table, "--min-age", "0"]).ok();

    let query = |at: &[&str]| {
        let all = ["query", &table, "select id, v from t order by id", "--output", "json"];
        fencepost(all.iter().chain(at)).json()
    };
    let before = json!([{ "id": 1, "v": "a" }, { "id": 2, "v": "b" }]);
    assert_eq!(query(&["--at", &id]), before);
    assert_eq!(query(&["--at", "before"]), before);
    assert_eq!(query(&[]).as_array().unwrap().len(), 3);

    let list = || fencepost(["checkpoint", "list", &table, "--output", "json"]).json();
    assert_eq!(list(), json!([made]));
    let text = fencepost(["checkpoint", "list", &table]).ok();
    assert!(text.contains("`before`: 2 shards") && text.contains("expires in 6 days"), "{text}");
    let copy = fencepost(create.into_iter().chain(["--source", "before", "--scope", "all"]));
    assert!(copy.fails(2).contains("cannot be used with"));
    let copy = fencepost(create.into_iter().chain(["--source", "before", "--name", "copy"])).json();
    assert_eq!((&copy["base_version"], &copy["expires_at_ms"]), (&made["base_version"], &json!(null)));
    let refreshed = fencepost(["checkpoint", "refresh", &table, "before", "--output", "json"]).json();
    assert_eq!((&refreshed["id"], &refreshed["expires_at_ms"]), (&json!(id), &json!(null)));
    let deleted = fencepost(["checkpoint", "delete", &table, "before", "--output", "json"]).json();
    assert_eq!(deleted, json!({ "id": id }));
    assert_eq!(query(&["--at", "copy"]), before);
    fencepost(["checkpoint", "delete", &table, "copy"]).ok();
    assert_eq!(list(), json!([]));
    let said = fencepost(["query", &table, "select 1", "--at", &id]).fails(3);
    assert!(said.contains(&id) && said.contains("help: `fencepost checkpoint list T`"), "{said}");
    assert!(fencepost(["checkpoint", "delete", &table, "before"]).fails(3).contains("`before`"));
    let said = fencepost(["checkpoint", "create", &table, "--lifetime", "0"]).fails(2);
    assert!(said.contains("expires at once"), "{said}");

    // Takes the table over, as `flush` does.
    let all = fencepost(["checkpoint", "create", &table, "--scope", "all", "--output", "json"]).json();
    assert_eq!(all["needs_log"], json!(false));
    fencepost(["verify", &table]).ok();
}
