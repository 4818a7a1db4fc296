//! The shard goes back and forth between the two, with writes, flushes, deletions and crashes in between. After every
//! takeover the rows are exactly those that were acknowledged, for a Fencepost that only reads and for a Lance writer.

use fencepost::wal::Error as WalError;
use fencepost::{Error, ShardWriter, WriterConfig};
use fencepost_sim::Rng;

use super::lance::LanceWriter;
use super::model::Model;
use super::place::Place;
use crate::support::{config, keys, rows, small};

/// Who writes.
enum Owner {
    Fencepost(Box<ShardWriter>),
    Lance(Box<LanceWriter>),
}

impl Owner {
    async fn put(&self, pairs: &[(i64, i64)]) {
        match self {
            Self::Fencepost(writer) => drop(writer.put(rows(pairs)).await.unwrap()),
            Self::Lance(writer) => writer.put(pairs).await,
        }
    }

    async fn delete(&self, ids: &[i64]) {
        match self {
            Self::Fencepost(writer) => drop(writer.delete(keys(ids)).await.unwrap()),
            Self::Lance(writer) => writer.delete(ids).await,
        }
    }

    async fn flush(&self) {
        match self {
            Self::Fencepost(writer) => writer.flush().await.unwrap(),
            Self::Lance(writer) => writer.flush().await,
        }
    }

    async fn die(self) {
        match self {
            Self::Fencepost(writer) => drop(writer),
            Self::Lance(writer) => writer.die().await,
        }
    }

    async fn close(self) {
        match self {
            Self::Fencepost(writer) => writer.close().await.unwrap(),
            Self::Lance(writer) => writer.close().await,
        }
    }

    /// It was taken over, and finds out with its next write, of which nothing remains.
    async fn must_be_fenced(self) {
        match self {
            Self::Fencepost(writer) => {
                let error = writer.put(rows(&[(-1, -1)])).await.unwrap_err();
                assert!(matches!(error, Error::Wal(WalError::Fenced { .. })), "{error}");
            }
            Self::Lance(writer) => {
                writer.try_put(&[(-1, -1)]).await.unwrap_err();
                writer.die().await;
            }
        }
    }
}

/// A table, its present writer, and what its rows must be.
struct Table {
    place: Place,
    model: Model,
    owner: Owner,
}

impl Table {
    async fn new(keyed: bool) -> Self {
        let place = Place::new(keyed).await;
        let owner = Owner::Fencepost(Box::new(place.ours(config()).await));
        Self { place, model: Model::new(keyed), owner }
    }

    async fn put(&mut self, pairs: &[(i64, i64)]) {
        self.owner.put(pairs).await;
        self.model.put(pairs);
    }

    async fn delete(&mut self, ids: &[i64]) {
        if matches!(self.model, Model::Keyed(_)) {
            self.owner.delete(ids).await;
            self.model.delete(ids);
        }
    }

    async fn check(&self, what: &str) {
        assert_eq!(self.place.seen().await, self.model.rows(), "Fencepost, {what}");
        if let Owner::Lance(writer) = &self.owner {
            assert_eq!(writer.seen().await, self.model.rows(), "Lance, {what}");
        }
    }

    /// Hands over to the next owner and returns the one before.
    async fn hand_to_fencepost(&mut self, config: WriterConfig) -> Owner {
        let next = Owner::Fencepost(Box::new(self.place.ours(config).await));
        std::mem::replace(&mut self.owner, next)
    }

    async fn hand_to_lance(&mut self) -> Owner {
        let next = Owner::Lance(Box::new(self.place.theirs().await));
        std::mem::replace(&mut self.owner, next)
    }
}

#[tokio::test]
async fn two_rounds_from_hand_to_hand_lose_and_invent_nothing() {
    for keyed in [true, false] {
        let mut table = Table::new(keyed).await;
        for round in 0..2 {
            let v = 10 * round;
            // Ours: an SSTable, rows in the log, a deletion of each.
            table.put(&[(1, v), (2, v), (3, v)]).await;
            table.owner.flush().await;
            table.put(&[(4, v), (5, v)]).await;
            table.delete(&[1, 4]).await;
            table.hand_to_lance().await.die().await;
            table.check("Lance after a crash of ours").await;

            // Lance's: the same on top of ours.
            table.put(&[(1, v + 1), (2, v + 1)]).await;
            table.delete(&[3]).await;
            table.owner.flush().await;
            table.check("Lance's SSTable").await;
            table.place.merge().await;
            table.check("what both flushed is merged").await;
            table.put(&[(3, v + 2), (6, v + 2)]).await;
            table.delete(&[2, 5]).await;
            table.hand_to_fencepost(small(2)).await.must_be_fenced().await;
            table.check("we while Lance lived").await;

            // Ours again, with small MemTables, while Lance takes over from a live writer.
            table.put(&[(2, v + 3), (7, v + 3)]).await;
            table.owner.flush().await;
            table.delete(&[7]).await;
            table.put(&[(8, v + 3)]).await;
            table.hand_to_lance().await.must_be_fenced().await;
            table.check("Lance while we lived").await;
            table.put(&[(9, v + 4)]).await;
            table.check("Lance's log").await;
            let theirs = table.hand_to_fencepost(config()).await;
            theirs.must_be_fenced().await;
            table.check("we at the end of the round").await;
        }
        table.owner.close().await;
        assert_eq!(table.place.seen().await, table.model.rows());
        table.place.merge().await;
        assert_eq!(table.place.base().await, table.model.rows());
        let fencepost::Inspection { shards, .. } = table.place.table().await.inspect().await.unwrap();
        assert_eq!((shards[0].replay_after, shards[0].rows_in_log), (shards[0].tail, 0));
    }
}

/// Steps of any kind in any order. `FENCEPOST_INTEROP_SEEDS=a..b` runs other seeds, or more of them.
#[tokio::test]
async fn random_histories_of_two_engines_lose_and_invent_nothing() {
    let seeds = std::env::var("FENCEPOST_INTEROP_SEEDS").unwrap_or_else(|_| "0..3".into());
    let (from, to) = seeds.split_once("..").expect("FENCEPOST_INTEROP_SEEDS=a..b");
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        println!("FENCEPOST_INTEROP_SEEDS={seed}..{}", seed + 1);
        history(seed).await;
    }
}

async fn history(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut table = Table::new(seed.is_multiple_of(2)).await;
    let mut v = 0;
    for step in 0..50 {
        match rng.below(21) {
            0..=9 => {
                let pairs: Vec<(i64, i64)> = (0..=rng.below(3)).map(|_| (rng.below(12) as i64, next(&mut v))).collect();
                // Of two rows of one key in one batch the last wins, for both.
                table.put(&pairs).await;
            }
            10..=12 => table.delete(&[rng.below(12) as i64, rng.below(12) as i64]).await,
            13..=14 => table.owner.flush().await,
            20 => drop(table.place.merge().await),
            15 => table.check(&format!("seed {seed}, step {step}")).await,
            takeover => {
                let what = format!("seed {seed}, step {step}, takeover {takeover}");
                let before = match takeover {
                    16..=17 => table.hand_to_lance().await,
                    _ => table.hand_to_fencepost(small([1, 3, 100][rng.below(3) as usize])).await,
                };
                table.check(&what).await;
                match rng.below(2) {
                    0 => before.die().await,
                    _ => before.must_be_fenced().await,
                }
                if rng.below(4) == 0 {
                    table = reopened(table, rng.below(2) == 0).await;
                    table.check(&format!("{what}, closed")).await;
                }
            }
        }
    }
    table.owner.close().await;
    assert_eq!(table.place.seen().await, table.model.rows(), "seed {seed}");
    let theirs = table.place.theirs().await;
    assert_eq!(theirs.seen().await, table.model.rows(), "seed {seed}");
    theirs.close().await;
    table.place.merge().await;
    assert_eq!(table.place.base().await, table.model.rows(), "seed {seed}");
}

fn next(v: &mut i64) -> i64 {
    *v += 1;
    *v
}

/// The owner closes cleanly, and somebody opens the table.
async fn reopened(table: Table, by_lance: bool) -> Table {
    let Table { place, model, owner } = table;
    owner.close().await;
    let owner = match by_lance {
        true => Owner::Lance(Box::new(place.theirs().await)),
        false => Owner::Fencepost(Box::new(place.ours(config()).await)),
    };
    Table { place, model, owner }
}
