//! An object store that misbehaves where a test says so, in the ways that real stores and their clients do.
//!
//! [`FaultStore`] owns the list of what can go wrong ([`Fault`]), the script of where ([`FaultStore::on`]), the dice of
//! [`FaultStore::random`] and the record of every operation. It stores nothing itself: whatever lands, lands in the
//! store below, where another `FaultStore` (another process, as it were) sees it at once.

mod gate;
mod random;
mod record;
mod script;
mod store;
#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

pub use gate::Gate;
pub use random::RandomFaults;
pub use record::{Outcome, Record};
pub use script::{Rule, RuleBuilder};
pub use store::{FaultStore, Landed};

/// The operations that a fault can be hung on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// A PUT with `If-None-Match: *` (`PutMode::Create`).
    Create,
    /// An unconditional PUT (`PutMode::Overwrite`).
    Overwrite,
    /// A compare-and-swap PUT (`PutMode::Update`).
    Update,
    /// The completion of a multipart upload, which is when its object appears.
    CompleteMultipart,
    /// A GET of content.
    Get,
    /// A HEAD.
    Head,
    /// A LIST; its path is the prefix. It is answered whole, as of one moment.
    List,
    /// The deletion of one object.
    Delete,
    /// A copy; its path is the target.
    Copy,
    /// A rename; its path is the target.
    Rename,
}

impl Op {
    /// The operations that change what is stored.
    pub const WRITES: [Self; 7] =
        [Self::Create, Self::Overwrite, Self::Update, Self::CompleteMultipart, Self::Delete, Self::Copy, Self::Rename];

    /// Whether the operation sends content under a name of its own, which alone can land late or torn.
    fn is_put(self) -> bool {
        matches!(self, Self::Create | Self::Overwrite | Self::Update)
    }

    /// Whether "already exists" is an answer that the operation can get.
    fn may_exist(self) -> bool {
        self.is_put() || matches!(self, Self::CompleteMultipart | Self::Copy | Self::Rename)
    }
}

/// What goes wrong with one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The write lands; the answer is `AlreadyExists`. The client library lost the first answer, tried again by itself
    /// and met its own object.
    LostAckAsExists,
    /// The operation is carried out; the answer is a timeout.
    LostAck,
    /// The write lands; the answer is a refusal. The client library lost the first answer, and its second attempt met
    /// credentials that had expired meanwhile.
    LostAckAsRefusal,
    /// Nothing lands; the answer is `AlreadyExists`: S3's 409, as `object_store` reports it.
    Conflict409,
    /// Nothing is carried out; the answer is a transient error.
    Fail,
    /// The answer is a timeout now; the PUT lands, under its own condition, when the test calls
    /// [`FaultStore::land_late`].
    LateLanding,
    /// No answer yet; the PUT lands when the test calls [`FaultStore::land_late`], and its true answer is given then,
    /// if the caller still waits. It lands even if the caller is gone: its process died with the request on the wire.
    InFlight,
    /// Nothing is carried out, and the answer claims that it was: writes and deletes succeed, GET and HEAD find
    /// nothing, LIST is empty.
    Swallow,
    /// The PUT lands with only its first `n` bytes and succeeds: a torn file after a power loss.
    Torn(usize),
    /// The operation is sent after this pause of tokio's clock, then goes well.
    Delay(Duration),
}

impl Fault {
    /// Whether the fault has a meaning for `op`.
    fn fits(self, op: Op) -> bool {
        match self {
            Self::LostAckAsExists | Self::Conflict409 => op.may_exist(),
            Self::LateLanding | Self::InFlight | Self::Torn(_) => op.is_put(),
            Self::LostAck | Self::LostAckAsRefusal | Self::Fail | Self::Swallow | Self::Delay(_) => true,
        }
    }
}

/// The source of every error that a [`FaultStore`] made up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectedFault {
    /// What was injected.
    pub fault: Fault,
    /// The path of the operation.
    pub path: String,
}

impl fmt::Display for InjectedFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected fault {:?} on {}", self.fault, self.path)
    }
}

impl StdError for InjectedFault {}

/// Whether `error` was made up by a [`FaultStore`]. Looks through the whole chain of sources.
pub fn is_injected(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<InjectedFault>() {
            return true;
        }
        next = error.source();
    }
    false
}
