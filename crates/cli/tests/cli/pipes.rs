//! A reader that goes away is no failure.

use std::io::Read;
use std::process::Stdio;

use crate::support::{Place, command, fencepost};

#[test]
fn a_closed_pipe_ends_a_query_quietly() {
    let place = Place::new();
    let rows: String = (0..50_000).map(|n| format!("{n},some text that makes the row longer\n")).collect();
    let file = place.file("rows.csv", format!("id,text\n{rows}"));
    fencepost(["ingest", &place.table(), &file, "--like", &file]).ok();
    for output in ["json", "table"] {
        let mut child = command(["query", &place.table(), "select * from t", "--output", output])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 16];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut first).unwrap();
        drop(stdout);
        let end = child.wait_with_output().unwrap();
        assert_eq!(end.status.code(), Some(0), "{output}: {}", String::from_utf8_lossy(&end.stderr));
        assert_eq!(String::from_utf8_lossy(&end.stderr), "", "{output}");
    }
}
