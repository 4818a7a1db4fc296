//! Putting one entry at one position: the answer table of protocol section 5, for the append path and for the fence.

use std::sync::Arc;

use bytes::Bytes;
use object_store::Error as StoreError;

use crate::entry::{WalEntry, WriterIdentity, decode};
use crate::error::{Error, Outcome, Result};
use crate::ids::Position;
use crate::log::Log;
use crate::mutants::{bytes_to_send, instead_of_reading};
use crate::retry::is_transient;

/// What stands at a position after a create of ours.
#[derive(Debug)]
pub(crate) enum Placed {
    /// Our bytes, durable.
    Ours,
    /// Somebody else's entry; ours is not there and never will be.
    Other(Box<WalEntry>),
}

/// Why a create has no certain answer.
#[derive(Debug)]
pub(crate) struct Unplaced {
    /// Whether the bytes may be there, or may still land.
    pub(crate) outcome: Outcome,
    /// What went wrong.
    pub(crate) reason: String,
}

/// Reads the entry at a position; `None` if there is none.
pub(crate) async fn read_entry(log: &Log, position: Position) -> Result<Option<WalEntry>> {
    let path = log.entry_path(position);
    match log.store().get(&path).await? {
        Some(bytes) => decode(path.as_ref(), position, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Creates the entry at a position. Every attempt sends the same bytes, and "already exists" is resolved by reading:
/// a position that was not read back is never passed over.
pub(crate) async fn place(log: &Log, position: Position, bytes: &Bytes) -> Result<Placed, Unplaced> {
    let store = log.store();
    let path = log.entry_path(position);
    let mut attempts = store.retry().start();
    loop {
        let sent = bytes_to_send(bytes, position, attempts.made());
        let answer = store.create_once(&path, sent.clone()).await;
        if matches!(answer, Err(StoreError::AlreadyExists { .. }))
            && let Some(taken_for) = instead_of_reading(position)
        {
            return Ok(taken_for);
        }
        let error = match answer {
            Ok(()) => return Ok(Placed::Ours),
            Err(StoreError::AlreadyExists { source, path: at }) => match store.get(&path).await {
                Ok(Some(found)) if found == sent => {
                    // I1: found, not written by an answered request, so its name may not be durable yet.
                    return match store.settle(&path).await {
                        Ok(()) => Ok(Placed::Ours),
                        Err(e) => Err(Unplaced { outcome: Outcome::Unknown, reason: e.to_string() }),
                    };
                }
                Ok(Some(found)) => {
                    // Whose bytes a damaged object was cannot be told: perhaps ours.
                    return decode(path.as_ref(), position, &found)
                        .map(|entry| Placed::Other(Box::new(entry)))
                        .map_err(|e| Unplaced { outcome: Outcome::Unknown, reason: e.to_string() });
                }
                // A 409 with nothing landed: the same PUT again. If all end so, nothing is known: what conflicted
                // may have been our own request, sent twice by the client library, which lands later.
                Ok(None) => StoreError::AlreadyExists { source, path: at },
                Err(e) => return Err(Unplaced { outcome: Outcome::Unknown, reason: e.to_string() }),
            },
            Err(error) if is_transient(&error) => error,
            Err(error) => return Err(unplaced(&path, attempts.made() + 1, error)),
        };
        if !attempts.again().await {
            return Err(unplaced(&path, attempts.made(), error));
        }
    }
}

fn unplaced(path: &object_store::path::Path, attempts: usize, error: StoreError) -> Unplaced {
    let error = Error::Store { operation: "PUT", object: path.to_string(), source: Arc::new(error) };
    Unplaced { outcome: Outcome::Unknown, reason: format!("{error} ({attempts} attempts)") }
}

/// What an entry of somebody else's at our next position means to a tenure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rival {
    /// A newer claim: we are fenced.
    Successor,
    /// A fenced writer's straggler: the position is dead.
    Straggler,
    /// Our own identity with other bytes: cannot be.
    Impostor,
}

impl Rival {
    pub(crate) fn of(entry: &WalEntry, us: &WriterIdentity) -> Self {
        match entry.writer_epoch.cmp(&us.epoch) {
            std::cmp::Ordering::Greater => Rival::Successor,
            std::cmp::Ordering::Less => Rival::Straggler,
            std::cmp::Ordering::Equal if entry.is_by(us) => Rival::Impostor,
            std::cmp::Ordering::Equal => Rival::Successor,
        }
    }
}
