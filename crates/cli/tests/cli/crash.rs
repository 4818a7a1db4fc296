//! SIGKILL at random moments with PUTs in flight, again and again on one table: exactly the acknowledged rows are
//! there, plus at most those in flight (I1, I2).

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use fencepost_sim::{Rng, S3Server};

use crate::support::{Place, command, fencepost};

/// How often the writer is killed; `FENCEPOST_CRASHES` overrides it.
const CRASHES: usize = 50;
const CRASHES_PER_TABLE: usize = 10;

/// A table, as arguments: its URL and the options of its store.
type Target = [String];

/// What one writer said before it was killed: its first row, and the ends of what was acknowledged and sent.
#[derive(Debug, Clone, Copy)]
struct Said {
    first: u64,
    acknowledged: u64,
    sent: u64,
}

/// Starts a writer at row `first` and kills it when `enough` is true of what it said.
fn crash(table: &Target, first: u64, memtable_rows: u64, mut enough: impl FnMut(&Said) -> bool) -> Said {
    let mut child = command(["__writer", "--create", "--rows", "1000000000", "--batch-rows", "50"])
        .args(table)
        .args(["--first", &first.to_string(), "--memtable-rows", &memtable_rows.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut said = Said { first, acknowledged: first, sent: first };
    let mut killed = false;
    // After the kill the pipe still holds what the writer said before, and that counts.
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["put", _, end, "."] => said.sent = end.parse().unwrap(),
            ["ack", _, end, "."] => said.acknowledged = end.parse().unwrap(),
            _ => assert!(killed, "the writer said {line:?}"),
        }
        if !killed && enough(&said) {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(killed, "the writer ended by itself: {status}");
    said
}

/// A table whose writer was killed, with its rows still in the log.
pub(crate) struct Crashed {
    _place: Place,
    pub(crate) table: String,
}

impl Crashed {
    /// At least `rows` rows are acknowledged.
    pub(crate) fn new(rows: u64) -> Self {
        let place = Place::new();
        let table = place.table();
        crash(std::slice::from_ref(&table), 0, 1_000_000, |said| said.acknowledged >= rows);
        Self { _place: place, table }
    }
}

/// Kills writers of several tables, and checks after every kill. A table per few kills keeps the checks short.
fn crash_again_and_again(seed: u64, table: impl Fn(usize) -> Vec<String>) {
    let crashes = std::env::var("FENCEPOST_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(CRASHES);
    let mut rng = Rng::new(seed);
    let mut in_flight = 0;
    for done in (0..crashes).step_by(CRASHES_PER_TABLE) {
        let kills = CRASHES_PER_TABLE.min(crashes - done);
        in_flight += crash_one_table(&mut rng, &table(done), kills);
    }
    assert!(in_flight > 0, "no kill met an append in flight");
    println!("{crashes} kills, {in_flight} of them with appends in flight");
}

/// How many of the kills met appends in flight.
fn crash_one_table(rng: &mut Rng, table: &Target, kills: usize) -> usize {
    let run = |verb: &str, claims: &[String]| {
        fencepost(std::iter::once(verb.to_string()).chain(table.to_vec()).chain(claims.to_vec()))
    };
    let mut claims: Vec<String> = Vec::new();
    let (mut first, mut in_flight) = (0, 0);
    for _ in 0..kills {
        // Some writers die before their first acknowledgement, some after a MemTable or two.
        let lines = rng.below(60);
        let pause = Duration::from_micros(rng.below(3_000));
        let mut heard = 0;
        let said = crash(table, first, 400, |_| {
            heard += 1;
            let enough = heard > lines;
            if enough {
                std::thread::sleep(pause);
            }
            enough
        });
        claims.extend(["--acknowledged".to_string(), format!("{}..{}", said.first, said.acknowledged)]);
        claims.extend(["--sent".to_string(), format!("{}..{}", said.first, said.sent)]);
        in_flight += usize::from(said.sent > said.acknowledged);
        first = said.sent;
        run("__check", &claims).ok();
    }
    run("flush", &[]).ok();
    run("__check", &claims).ok();
    in_flight
}

#[test]
fn no_acknowledged_row_is_lost_and_none_is_doubled_on_files() {
    let place = Place::new();
    crash_again_and_again(7, |n| vec![place.path(&format!("t{n}")).display().to_string()]);
}

#[test]
fn no_acknowledged_row_is_lost_and_none_is_doubled_on_s3() {
    let place = Place::new();
    let server = S3Server::start(place.path("s3")).unwrap();
    crash_again_and_again(8, |n| s3_table(&server, &format!("t{n}")));
}

/// A table in the bucket, as arguments.
pub(crate) fn s3_table(server: &S3Server, name: &str) -> Vec<String> {
    let options = server.storage_options().into_iter().map(|(k, v)| format!("--storage-option={k}={v}"));
    std::iter::once(server.url(name)).chain(options).collect()
}
