//! What happens to a table in a random history, and how such histories are made.

use fencepost::Metric;
use proptest::prelude::*;

use super::documents::*;
use super::questions::{IDS, Question, metric, question};

#[derive(Debug, Clone)]
pub(super) enum Step {
    Put(Vec<(i64, Document)>),
    /// Through handles of the same writer, in tasks of which each has keys of its own.
    PutTogether(Vec<(i64, Document)>),
    Delete(Vec<i64>),
    Freeze,
    Flush,
    /// And whether the base table's indexes get what was merged.
    Merge(bool),
    Reopen(Reopen),
    Collect,
    Index(Metric),
    Hold(View),
    Release,
    Ask(View, Question),
}

/// What becomes of the writer before the next one opens.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reopen {
    Dropped,
    Aborted,
    Closed,
    /// It is still there, and learns that it is not the writer any more.
    TakenOver,
}

/// From where it is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum View {
    Writer,
    /// The writer of the only shard.
    Shard,
    /// Another clone of the handle that the writer was opened with.
    Handle,
    OtherProcess,
    Follower,
    Held,
}

fn document() -> impl Strategy<Value = Document> {
    let value = prop_oneof![Just(-1.0f32), Just(0.25), Just(0.5), Just(1.0), Just(3.0)];
    let vector = [value.clone(), value.clone(), value.clone(), value];
    let words = prop::collection::vec(0..WORDS.len(), 1..6);
    (prop::option::weighted(0.9, 0..10i64), prop::option::weighted(0.9, words), prop::option::weighted(0.9, vector))
        .prop_map(|(n, words, vector)| Document { n, words, vector })
}

fn documents(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(i64, Document)>> {
    prop::collection::vec((0..IDS, document()), count)
}

fn view() -> impl Strategy<Value = View> {
    prop_oneof![
        4 => Just(View::Writer),
        1 => Just(View::Shard),
        2 => Just(View::Handle),
        2 => Just(View::OtherProcess),
        2 => Just(View::Follower),
        3 => Just(View::Held),
    ]
}

fn reopen() -> impl Strategy<Value = Reopen> {
    prop_oneof![Just(Reopen::Dropped), Just(Reopen::Aborted), Just(Reopen::Closed), Just(Reopen::TakenOver)]
}

/// What a case begins with, and what happens then.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) keyed: bool,
    pub(super) buckets: u32,
    /// The metric of the table's indexes, if it has some from the start.
    pub(super) index: Option<Metric>,
    /// Whether there are rows in SSTables and in the base table from the start.
    pub(super) stored: bool,
    pub(super) steps: Vec<Step>,
}

/// `stored`: how likely it is that there are rows on storage from the start.
pub(super) fn cases(
    keyed: bool,
    stored: f64,
    steps: impl Strategy<Value = Step> + 'static,
    length: std::ops::Range<usize>,
) -> BoxedStrategy<Case> {
    let index = prop::option::weighted(0.5, metric());
    let steps = prop::collection::vec(steps, length);
    (1..3u32, index, prop::bool::weighted(stored), steps)
        .prop_map(move |(buckets, index, stored, steps)| Case { keyed, buckets, index, stored, steps })
        .boxed()
}

pub(super) fn steps_in_memory() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => documents(1..5).prop_map(Step::Put),
        2 => documents(2..8).prop_map(Step::PutTogether),
        4 => prop::collection::vec(0..IDS, 1..4).prop_map(Step::Delete),
        3 => Just(Step::Freeze),
        2 => reopen().prop_map(Step::Reopen),
        2 => view().prop_map(Step::Hold),
        1 => Just(Step::Release),
        16 => (view(), question()).prop_map(|(view, question)| Step::Ask(view, question)),
    ]
}

pub(super) fn steps_on_storage() -> impl Strategy<Value = Step> {
    let writes = prop_oneof![
        10 => documents(1..5).prop_map(Step::Put),
        2 => documents(2..8).prop_map(Step::PutTogether),
        4 => prop::collection::vec(0..IDS, 1..4).prop_map(Step::Delete),
        2 => reopen().prop_map(Step::Reopen),
    ];
    let background = prop_oneof![
        2 => Just(Step::Freeze),
        4 => Just(Step::Flush),
        3 => any::<bool>().prop_map(Step::Merge),
        3 => Just(Step::Collect),
        1 => metric().prop_map(Step::Index),
        1 => view().prop_map(Step::Hold),
        1 => Just(Step::Release),
    ];
    prop_oneof![
        18 => writes,
        14 => background,
        20 => (view(), question()).prop_map(|(view, question)| Step::Ask(view, question)),
    ]
}
