//! One module per verb: arguments in, engine calls, result out.

pub(crate) mod adopt;
pub(crate) mod bench;
pub(crate) mod checkpoint;
pub(crate) mod clone;
pub(crate) mod create;
pub(crate) mod flush;
pub(crate) mod follow;
pub(crate) mod gc;
pub(crate) mod get;
pub(crate) mod index;
pub(crate) mod ingest;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod probe;
pub(crate) mod put;
pub(crate) mod query;
pub(crate) mod reshard;
pub(crate) mod tail;
pub(crate) mod verify;
