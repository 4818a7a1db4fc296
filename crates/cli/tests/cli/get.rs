//! Rows by key from the command line.

use serde_json::json;

use crate::support::{Place, fencepost};

#[test]
fn rows_come_in_the_order_of_the_keys() {
    let place = Place::new();
    let table = place.table();
    place.create("region:string,id:uint64,v:float32[2]", "region,id");
    let rows = "{\"region\":\"eu\",\"id\":1,\"v\":[1,2]}\n{\"region\":\"us\",\"id\":1}\n{\"region\":\"eu\",\"id\":18446744073709551615}\n";
    let file = place.file("rows.ndjson", rows);
    fencepost(["ingest", &table, &file]).ok();
    let ends = ["{\"region\":\"us\",\"id\":1}", "{\"id\": 18446744073709551615,\n \"region\": \"eu\"}"];
    let get = |more: &[&str]| {
        let mut args = vec!["get", &table, "--key", ends[1], "--key", "{\"id\":7,\"region\":\"eu\"}", "--key", ends[0]];
        args.extend(["--key", ends[1], "--output", "json"]);
        args.extend(more);
        fencepost(args).json()
    };
    let all = json!([
        {"region": "eu", "id": u64::MAX, "v": null}, {"region": "us", "id": 1, "v": null}
    ]);
    assert_eq!(get(&[]), all);
    fencepost(["flush", &table]).ok();
    assert_eq!(get(&[]), all);
    assert_eq!(get(&["--columns", "id"]), json!([{"id": u64::MAX}, {"id": 1}]));
    fencepost(["merge", &table]).ok();
    assert_eq!(get(&["--columns", "region,v"]), json!([{"region": "eu", "v": null}, {"region": "us", "v": null}]));
    let shown = fencepost(["get", &table, "--key", "{\"region\":\"eu\",\"id\":1}"]).ok();
    assert!(shown.contains("[1.0, 2.0]"), "{shown}");
}

#[test]
fn what_is_no_key_is_refused_with_its_place() {
    let place = Place::new();
    let table = place.table();
    place.create("id:int64,v:string", "id");
    for (key, word) in [
        ("{\"id\":", "not valid JSON"),
        ("{\"v\":\"a\"}", "`v`"),
        ("{\"id\":1.5}", "id"),
        ("{}", "id"),
        ("", "empty key"),
    ] {
        let run = fencepost(["get", &table, "--key", "{\"id\":1}", "--key", key]);
        let code = run.code.unwrap();
        assert!(code == 2 || code == 4, "{key}: {run:?}");
        let text = run.fails(code);
        assert!(text.contains(word), "{key}: {text}");
    }
    let text = fencepost(["get", &table, "--key", "{\"id\":1}", "--columns", "w"]).fails(2);
    assert!(text.contains("`w` is unknown"), "{text}");
    let place = Place::new();
    place.create("id:int64", "");
    let text = fencepost(["get", &place.table(), "--key", "{\"id\":1}"]).fails(2);
    assert!(text.contains("no primary key"), "{text}");
}
