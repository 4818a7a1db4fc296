//! One of the fighters: a process that takes the shard over whenever it feels like it, and says what it was promised.
//!
//! It prints a line per event, an acknowledgement only after the append returned: `taken EPOCH`, `ack ID POSITION`,
//! `fenced EPOCH`, `stopped WHY` (its own patience), `refused WHY` (an open), `damage WHY` (must never be).

use std::collections::HashMap;
use std::time::Duration;

use fencepost_sim::Rng;
use fencepost_wal::{Error, OpenOptions, Position, Result, Shard, SsTable, Store, WalConfig, WalWriter};
use futures::future::join_all;
use object_store::ObjectStoreExt;
use tokio::sync::watch;

use crate::rows::{batch, rows_of, schema, sstable_path, to_text};

/// Rows of writer `n` have the numbers from `n * ROWS_PER_WRITER` on, in the order of its appends.
pub(crate) const ROWS_PER_WRITER: i64 = 1_000_000_000;

/// The variables by which a process is told that it is a fighter, and where.
pub(crate) const PLACE: &str = "FENCEPOST_FIGHT_PLACE";

/// Where the fight is, as text for a variable.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) url: String,
    pub(crate) options: HashMap<String, String>,
    pub(crate) shard: String,
}

impl Place {
    pub(crate) fn shard(&self) -> Shard {
        let store = Store::open(&self.url, &self.options).unwrap();
        Shard::new(store, self.shard.parse().unwrap())
    }

    pub(crate) fn to_text(&self, writer: i64) -> String {
        let options = self.options.iter().map(|(name, value)| format!("\n{name}={value}"));
        format!("{writer}\n{}\n{}{}", self.url, self.shard, options.collect::<String>())
    }

    fn parse(text: &str) -> (i64, Self) {
        let mut lines = text.lines();
        let mut next = || lines.next().unwrap().to_owned();
        let (writer, url, shard) = (next().parse().unwrap(), next(), next());
        let options = lines.map(|line| line.split_once('=').unwrap()).map(|(n, v)| (n.to_owned(), v.to_owned()));
        (writer, Self { url, options: options.collect(), shard })
    }
}

/// Fights until its standard input says that it is enough, or ends.
pub(crate) fn run(place: &str) {
    let (writer, place) = Place::parse(place);
    let (enough, stop) = watch::channel(false);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        enough.send_replace(true);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(
        Fighter { shard: place.shard(), next: writer * ROWS_PER_WRITER, rng: Rng::new(writer as u64), stop }.fight(),
    );
}

struct Fighter {
    shard: Shard,
    next: i64,
    rng: Rng,
    stop: watch::Receiver<bool>,
}

impl Fighter {
    async fn fight(mut self) {
        // To open again after `Fenced` is this test's decision: the log never does it by itself.
        while self.pause(Duration::from_secs(8)).await {
            let config = WalConfig { max_in_flight: 4, gc: None, ..WalConfig::default() };
            let opened = WalWriter::open(&self.shard, schema(), config, &OpenOptions::default()).await;
            let told = match opened {
                Ok((writer, replay)) => {
                    let rows = match rows_of(replay).await {
                        Ok(rows) => rows,
                        Err(error) => return println!("damage {error}"),
                    };
                    println!("taken {}", writer.tenure().epoch());
                    self.tenure(&writer, rows).await
                }
                Err(error) if is_damage(&error) => return println!("damage {error}"),
                Err(error) => {
                    println!("refused {error}");
                    continue;
                }
            };
            match told {
                Ok(()) => return,
                Err(Error::Fenced { epoch, .. }) => println!("fenced {epoch}"),
                Err(error) if is_damage(&error) => return println!("damage {error}"),
                Err(error) => println!("stopped {error}"),
            }
        }
    }

    /// Appends, many at once, and flushes at times, until it is fenced or told to stop.
    async fn tenure(&mut self, writer: &WalWriter, mut rows: Vec<(u64, i64)>) -> Result<()> {
        while !*self.stop.borrow() {
            let ids: Vec<i64> = (0..1 + self.rng.below(12) as i64).map(|n| self.next + n).collect();
            self.next += ids.len() as i64;
            let appends = ids.into_iter().map(|id| async move {
                let position = writer.append(batch([id])).await?;
                println!("ack {id} {position}");
                Ok((position.get(), id))
            });
            for acknowledged in join_all(appends).await {
                rows.push(acknowledged?);
            }
            if self.rng.chance(0.03) {
                self.flush(writer, std::mem::take(&mut rows)).await?;
            }
            if self.rng.chance(0.2) {
                self.pause(Duration::from_millis(30)).await;
            }
        }
        Ok(())
    }

    /// Writes the rows as an SSTable, which here is a list of them, and publishes it.
    async fn flush(&mut self, writer: &WalWriter, rows: Vec<(u64, i64)>) -> Result<()> {
        let tenure = writer.tenure();
        let generation = tenure.current_generation().await;
        let sstable = SsTable::new(generation, format!("{:08x}_gen_{generation}", self.rng.next_u64() as u32));
        let path = sstable_path(&self.shard, &sstable);
        let put = self.shard.store().object_store().put(&path, to_text(&rows).into()).await;
        put.map_err(|e| tenure.poison(e.to_string(), fencepost_wal::Outcome::Written))?;
        let covers = rows.iter().map(|row| row.0).max().map_or(tenure.sentinel(), Position::new);
        tenure.publish(Some(sstable), covers).await.map(|_| ())
    }

    /// Waits up to `longest`. False: it is enough.
    async fn pause(&mut self, longest: Duration) -> bool {
        let pause = longest.mul_f64(self.rng.unit());
        let enough = self.stop.wait_for(|stop| *stop);
        tokio::time::timeout(pause, enough).await.is_err()
    }
}

/// What must never be said of this log, however hard it is fought for.
fn is_damage(error: &Error) -> bool {
    matches!(
        error,
        Error::Corrupt { .. } | Error::LogHole { .. } | Error::Stranded { .. } | Error::ShardNotFound { .. }
    )
}
