//! `bench` measures on a store, and leaves nothing behind.

use crate::support::{Place, fencepost};

#[test]
fn a_store_is_measured_and_nothing_is_left() {
    let place = Place::new();
    let run = |more: &[&str]| {
        let url = place.table();
        let args = ["bench".to_owned(), url, "--seconds".into(), "1".into()];
        fencepost(args.iter().map(String::as_str).chain(more.iter().copied()))
    };
    let found = run(&["--output", "json", "--put-price", "0.01"]).json();
    assert!(found["put_p50_ms"].as_f64().unwrap() > 0.0, "{found}");
    let lines = found["measured"].as_array().unwrap();
    assert_eq!(lines.len(), 7, "{found}");
    for line in lines {
        let number = |name: &str| line[name].as_f64().unwrap();
        let (rows, puts) = (number("rows"), number("puts"));
        // An acknowledged row was in a PUT, and a PUT had a row.
        assert!(rows >= 1.0 && puts >= 1.0 && puts <= rows, "{line}");
        assert!(number("log_bytes") >= rows * 108.0, "{line}");
        let dollars = puts / rows * 1e9 * 0.01 / 1000.0;
        assert!((number("dollars_per_billion_rows") - dollars).abs() <= dollars * 1e-9, "{line}");
    }
    // One client waits for each of its rows.
    assert_eq!(lines[0]["rows"], lines[0]["puts"], "{found}");
    assert!(lines[0]["p50_ms"].as_f64() <= lines[0]["p99_ms"].as_f64());
    let left = std::fs::read_dir(place.path("t")).map_or(0, |left| left.count());
    assert_eq!(left, 0, "what was written is deleted");
    let text = run(&[]).ok();
    for part in ["one row each, 64 clients", "| batches of 1,000 rows", "linger 100 ms", "$ per billion rows"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
