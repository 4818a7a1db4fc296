//! Runs the scripts in `tests/python` with the interpreter that `FENCEPOST_PYTHON` names.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// What the script printed, as JSON; `None`, with a note, if there is no interpreter.
#[track_caller]
pub(crate) fn run(script: &str, args: &[&str]) -> Option<Value> {
    let Some(python) = std::env::var_os("FENCEPOST_PYTHON") else {
        note(&format!("{script} was not run: FENCEPOST_PYTHON names no interpreter (tools/python makes one)"));
        return None;
    };
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let run = Command::new(python).arg(path).args(args).output().unwrap();
    assert!(run.status.success(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
    Some(serde_json::from_slice(&run.stdout).unwrap())
}

/// Past the test harness, which hides what a passing test prints.
pub(crate) fn note(what: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "{what}").unwrap();
}
