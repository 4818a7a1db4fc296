//! One entry, one PUT, one at a time: the simplest writer, and the order of steps that the batched one follows too.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;

use crate::claim::{OpenOptions, Opened, Replay, open};
use crate::entry::encode_rows;
use crate::error::{Error, Outcome, Result};
use crate::ids::{Epoch, Position};
use crate::manifest::{Fence, ShardManifest};
use crate::shard::Shard;
use crate::slot::{Placed, Rival, Unplaced, place};
use crate::tenure::Tenure;

/// Appends entries to a shard's log, each durable when [`append`](Self::append) returns.
#[derive(Debug)]
pub struct WalAppender {
    tenure: Tenure,
    next: Position,
    /// Set while a PUT runs: if the caller drops it half way, what the position holds is unknown.
    in_doubt: bool,
}

impl WalAppender {
    /// Takes the shard over; see [`open`](crate::open()) for what that writes and whom it fences. The replay holds
    /// what the log held; an appender does not need it.
    ///
    /// # Errors
    /// As [`open`](crate::open()).
    pub async fn open(shard: &Shard, options: &OpenOptions) -> Result<(Self, Replay)> {
        let Opened { tenure, replay } = open(shard, options).await?;
        Ok((Self::start(tenure)?, replay))
    }

    /// Starts to append in a tenure that the caller has and that nothing else appends in.
    ///
    /// # Errors
    /// [`Error::Overflow`] if the log has no position left.
    pub fn start(tenure: Tenure) -> Result<Self> {
        let next = tenure.sentinel().next()?;
        Ok(Self { tenure, next, in_doubt: false })
    }

    /// The position that the next entry gets if no dead one stands there.
    pub fn next_position(&self) -> Position {
        self.next
    }

    /// The epoch of this writer.
    pub fn epoch(&self) -> Epoch {
        self.tenure.epoch()
    }

    /// The right to write, for publishing SSTables.
    pub fn tenure(&self) -> &Tenure {
        &self.tenure
    }

    /// Writes the batches as one entry and returns its position once it is durable.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a batch has other columns than `schema`, [`Error::TooLarge`]; [`Error::Fenced`]
    /// if another writer owns the shard; [`Error::Poisoned`] if the outcome is unknown. After either, every call fails. Dropping the future while its PUT runs poisons the appender too.
    pub async fn append(&mut self, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Position> {
        self.tenure.check()?;
        if self.in_doubt {
            return Err(self.tenure.poison("an append was dropped while its PUT was running", Outcome::NotWritten));
        }
        if let Some(other) = batches.iter().find(|batch| batch.schema_ref().fields() != schema.fields()) {
            return Err(Error::other_columns(self.tenure.shard().id(), other.schema_ref(), schema));
        }
        let bytes = encode_rows(schema, batches, self.tenure.identity())?;
        let log = self.tenure.log().clone();
        loop {
            let position = self.next;
            let after = position.next()?;
            self.in_doubt = true;
            let placed = place(&log, position, &bytes).await;
            self.in_doubt = false;
            let acknowledged = resolve(&self.tenure, position, placed)?;
            self.next = after;
            if acknowledged {
                self.tenure.acknowledge(position);
                return Ok(position);
            }
        }
    }

    /// Declares the entries at or below `position` consumed; see [`Tenure::truncate`].
    ///
    /// # Errors
    /// As [`Tenure::truncate`].
    pub async fn truncate(&self, position: Position) -> Result<ShardManifest> {
        self.tenure.truncate(position).await
    }

    /// Ends the tenure cleanly. R stays where it is.
    ///
    /// # Errors
    /// The error that stopped the writer before, if one did.
    pub async fn close(self) -> Result<()> {
        if self.in_doubt {
            return Err(self.tenure.poison("an append was dropped while its PUT was running", Outcome::Unknown));
        }
        self.tenure.close().await
    }
}

/// What the answer at a position means for the tenure: `true` if our entry landed, `false` if the position is dead
/// and the next one is to be taken. Anything else stops the tenure.
pub(crate) fn resolve(tenure: &Tenure, position: Position, placed: Result<Placed, Unplaced>) -> Result<bool> {
    let entry = match placed {
        Ok(Placed::Ours) => return Ok(true),
        Ok(Placed::Other(entry)) => entry,
        Err(Unplaced { outcome, reason }) => return Err(tenure.poison(reason, outcome)),
    };
    match Rival::of(&entry, tenure.identity()) {
        Rival::Successor => {
            let error = tenure.fenced_by(entry.writer_epoch, Outcome::NotWritten);
            tenure.stop(error.clone());
            Err(error)
        }
        // Schedule 40: another engine's may have been acknowledged. Opening again says so.
        Rival::Straggler if entry.writer_id.is_none() && entry.rows() > 0 => Err(tenure.poison(
            format!("an entry that another engine wrote with epoch {} stands at {position}", entry.writer_epoch),
            Outcome::NotWritten,
        )),
        Rival::Straggler if tenure.in_serial_zone(position) => {
            tenure.pass_over(Fence { position, epoch: entry.writer_epoch });
            Ok(false)
        }
        Rival::Straggler => Err(tenure.poison(
            format!("a straggler of epoch {} stands at {position}, beyond the reach of any", entry.writer_epoch),
            Outcome::NotWritten,
        )),
        Rival::Impostor => Err(tenure.poison(
            format!("position {position} holds an entry of this very writer with other rows"),
            Outcome::NotWritten,
        )),
    }
}
