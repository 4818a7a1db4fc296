//! `probe` on a store that keeps its promises, and on one that does not.

use std::process::Stdio;

use fencepost_sim::{S3Habits, S3Server};
use serde_json::{Value, json};

use crate::crash::s3_table;
use crate::support::{Place, Run, command, fencepost};

/// Little of everything.
const SHORT: [&str; 6] = ["--rounds", "20", "--seconds", "1", "--size", "1000"];

fn probe(target: &[String], more: &[&str]) -> Run {
    let args = std::iter::once("probe").chain(target.iter().map(String::as_str));
    fencepost(args.chain(SHORT).chain(more.iter().copied()))
}

fn check(found: &Value, refused_as: &str) {
    assert_eq!((&found["fit"], &found["rounds"], &found["racers"]), (&json!(true), &json!(20), &json!(32)), "{found}");
    assert_eq!(found["answers"][refused_as], json!(20 * 32), "{found}");
    let puts = found["puts"].as_array().unwrap();
    let kinds: Vec<_> = puts.iter().map(|p| (p["conditional"].clone(), p["at_once"].clone())).collect();
    assert_eq!(kinds, [(true, 1), (false, 1), (true, 16), (false, 16)].map(|(c, n)| (json!(c), json!(n))));
    for figures in puts {
        let number = |name: &str| figures[name].as_f64().unwrap();
        assert!(number("p50_ms") > 0.0 && number("p50_ms") <= number("p99_ms"), "{figures}");
        assert!(number("per_second") > 0.0 && number("puts") > 0.0, "{figures}");
    }
}

#[test]
fn files_are_probed_and_nothing_is_left() {
    let place = Place::new();
    check(&probe(&[place.table()], &["--output", "json"]).json(), "exists_without_status");
    assert!(!place.path("t").exists(), "a folder that was not there before");
    let text = probe(&[place.table()], &[]).ok();
    for part in ["can hold a log", "20 races of 32", "640 x \"already exists\"", "| conditional |", "PUTs/s", "costs"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn memory_is_probed_too() {
    check(&probe(&["memory://p/t".to_owned()], &["--output", "json"]).json(), "exists_without_status");
}

#[test]
fn a_server_is_probed_and_its_412s_are_counted() {
    let place = Place::new();
    let server = S3Server::start(place.path("s3")).unwrap();
    check(&probe(&s3_table(&server, "t"), &["--output", "json"]).json(), "status_412");
}

#[test]
fn a_server_that_ignores_conditions_is_refused_with_the_reason() {
    let place = Place::new();
    let habits = S3Habits { ignores_conditions: true, ..S3Habits::default() };
    let server = S3Server::start_with(place.path("s3"), habits).unwrap();
    let said = probe(&s3_table(&server, "t"), &[]).fails(6);
    assert!(said.contains("32 of 32 concurrent creates of one key succeeded") && said.contains("help: "), "{said}");
    let run = probe(&s3_table(&server, "t"), &["--output", "json"]);
    let found: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(found["fit"], false);
    assert!(found["reason"].as_str().unwrap().contains("32 of 32"), "{found}");
    run.fails(6);
}

#[test]
fn options_out_of_their_limits_are_2() {
    for option in [["--rounds", "0"], ["--racers", "1"], ["--size", "0"], ["--seconds", "0"]] {
        assert_eq!(fencepost(["probe", "memory://p/t"].iter().chain(&option)).code, Some(2), "{option:?}");
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_cleans_up() {
    let place = Place::new();
    let table = place.table();
    let args = ["probe", &table, "--rounds", "100000"];
    let child = command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !place.path("t").exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let sent = std::process::Command::new("sh").args(["-c", &format!("kill -s INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    let end = child.wait_with_output().unwrap();
    assert_eq!(end.status.code(), Some(130), "{end:?}");
    assert!(!place.path("t").exists(), "something is left");
}
