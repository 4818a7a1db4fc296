//! `fencepost follow`: a line for every change, with no pause in the test: whoever reads a line waits for it.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use serde_json::{Value, json};

use crate::support::*;

/// A follower that runs beside the test.
struct Following {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Following {
    fn start(place: &Place, more: &[&str]) -> Self {
        let table = place.table();
        let mut args = vec!["follow", &table, "--interval", "20ms", "--output", "json"];
        args.extend(more);
        let mut child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "it has ended");
        serde_json::from_str(&line).unwrap()
    }

    /// The first line for which this holds.
    fn line_with(&mut self, holds: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.line();
            if holds(&line) {
                return line;
            }
        }
    }

    fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

fn ingest(place: &Place, name: &str, ids: std::ops::Range<i64>) {
    let rows: String = ids.map(|id| format!("{id},n{id}\n")).collect();
    let file = place.file(name, format!("id,name\n{rows}"));
    fencepost(["ingest", &place.table(), &file]).ok();
}

/// Every shard with the end of its log, as `--until-position` takes it.
fn ends(place: &Place) -> String {
    let shards = fencepost(["inspect", &place.table()]).json();
    let end = |shard: &Value| format!("{}:{}", shard["shard_id"].as_str().unwrap(), shard["tail"]);
    shards["shards"].as_array().unwrap().iter().map(end).collect::<Vec<_>>().join(",")
}

#[test]
fn a_line_for_every_change_until_it_is_killed() {
    let place = Place::new();
    place.create("id:int64,name:string", "id");
    let mut counting = Following::start(&place, &[]);
    let mut asking = Following::start(&place, &["--sql", "select max(id) as m from t"]);
    assert_eq!(counting.line()["rows"], json!(0));
    assert_eq!(asking.line()["result"], json!([{ "m": null }]));

    ingest(&place, "a.csv", 0..100);
    let line = counting.line_with(|line| line["rows"] == json!(100));
    assert_eq!(line["is_full"], json!(false), "{line}");
    assert!(line["seconds_behind"].as_f64().unwrap() >= 0.0 && line["positions_behind"].is_u64(), "{line}");
    assert_eq!(line["positions"].as_object().unwrap().len(), 1, "{line}");
    asking.line_with(|line| line["result"] == json!([{ "m": 99 }]));

    // A merge changes where rows are, and no answer.
    let before = line["base_version"].as_u64().unwrap();
    fencepost(["merge", &place.table()]).ok();
    fencepost(["gc", &place.table(), "--min-age", "0"]).ok();
    let line = counting.line_with(|line| line["base_version"].as_u64().unwrap() > before);
    assert_eq!(line["rows"], json!(100), "{line}");
    ingest(&place, "b.csv", 50..150);
    counting.line_with(|line| line["rows"] == json!(150));
    asking.line_with(|line| line["result"] == json!([{ "m": 149 }]));
    for mut following in [counting, asking] {
        following.child.kill().unwrap();
        following.child.wait().unwrap();
    }
}

#[test]
fn it_stops_where_it_was_told_to_and_writes_nothing() {
    let place = Place::new();
    place.create("id:int64,name:string", "id");
    ingest(&place, "a.csv", 0..10);
    let (ends, before) = (ends(&place), place.objects());
    let until = fencepost(["follow", &place.table(), "--until-position", &ends, "--output", "json"]).json();
    assert_eq!(until["rows"], json!(10));
    let text = fencepost(["follow", &place.table(), "--changes", "1"]).ok();
    assert!(text.contains("10 rows") && text.contains("1 shard, up to date"), "{text}");
    let sql = ["--sql", "select name from t where id < 2 order by id"];
    let text = fencepost([&["follow", &place.table(), "--changes", "1"][..], &sql].concat()).ok();
    assert!(text.contains("n1") && text.contains("(2 rows)") && text.contains("up to date"), "{text}");
    assert_eq!(place.objects(), before);
}

#[test]
fn what_cannot_be_followed_is_said() {
    let place = Place::new();
    let table = place.table();
    fencepost(["follow", &table]).fails(3);
    place.create("id:int64,name:string", "id");
    assert!(fencepost(["follow", &table, "--changes", "1", "--sql", "select x from t"]).fails(1).contains('x'));
    fencepost(["follow", &table, "--changes", "1", "--sql", "drop table t"]).fails(1);
    let wrong = fencepost(["follow", &table, "--until-position", "7"]).fails(2);
    assert!(wrong.contains("SHARD:POSITION"), "{wrong}");
    fencepost(["follow", &table, "--interval", "0"]).fails(2);
    fencepost(["follow", &table, "--max-bytes", "0"]).fails(2);
}

#[test]
fn a_deleted_table_ends_it() {
    let place = Place::new();
    place.create("id:int64,name:string", "id");
    let mut following = Following::start(&place, &[]);
    assert_eq!(following.line()["rows"], json!(0));
    fencepost(["delete", &place.table()]).ok();
    let (code, stderr) = following.end();
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("has ended") && stderr.contains("deleted"), "{stderr}");
}
