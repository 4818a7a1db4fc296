//! Questions of every kind to a snapshot, and whether the answers are those that a look at every row gives.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_select::concat::concat_batches;
use datafusion::prelude::SessionContext;
use fencepost::{Error, Metric, TableSnapshot, register_tables};
use proptest::prelude::*;
use proptest::sample::subsequence;

use super::documents::*;
use crate::support::*;

/// Ids of rows; few, so that they are often overwritten.
pub(super) const IDS: i64 = 12;

#[derive(Debug, Clone)]
pub(super) enum Question {
    Near(Near),
    Match(Match),
    Hybrid(Near, Match, usize),
    Get(Vec<i64>),
    Rows(Option<Condition>),
    Groups(Option<Condition>),
    NearInSql(Near),
    MatchInSql(Match),
}

pub(super) fn metric() -> impl Strategy<Value = Metric> {
    prop_oneof![Just(Metric::L2), Just(Metric::Cosine), Just(Metric::Dot)]
}

fn condition() -> impl Strategy<Value = Condition> {
    let some = |of: std::ops::Range<i64>| prop::collection::vec(of, 1..4);
    let simple = prop_oneof![
        3 => (0..10i64).prop_map(Condition::AtLeast),
        2 => (0..10i64, 0..5i64).prop_map(|(least, more)| Condition::Between(least, least + more)),
        2 => some(0..10).prop_map(Condition::OneOf),
        1 => Just(Condition::NoNumber),
        1 => prop::collection::vec(0..WORDS.len(), 1..3).prop_map(Condition::Words),
        2 => some(0..IDS + 2).prop_map(Condition::Ids),
    ];
    simple.prop_recursive(1, 2, 2, |inner| {
        let two = (inner.clone().prop_map(Box::new), inner.prop_map(Box::new));
        prop_oneof![
            two.clone().prop_map(|(a, b)| Condition::Either(a, b)),
            two.prop_map(|(a, b)| Condition::Both(a, b)),
        ]
    })
}

fn near() -> impl Strategy<Value = Near> {
    let value = || prop_oneof![Just(-1.0f32), Just(0.5), Just(2.0)];
    let to = [value(), value(), value(), value()];
    (metric(), to, 1..6usize, prop::option::of(condition()), any::<bool>())
        .prop_map(|(metric, to, k, filter, exactly)| Near { metric, to, k, filter, exactly })
}

fn matching() -> impl Strategy<Value = Match> {
    let words = subsequence((0..WORDS.len()).collect::<Vec<_>>(), 1..4);
    (words, any::<bool>(), 1..6usize, prop::option::of(condition())).prop_map(|(words, all, k, filter)| Match {
        words,
        all,
        k,
        filter,
    })
}

pub(super) fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        5 => near().prop_map(Question::Near),
        5 => matching().prop_map(Question::Match),
        4 => (near(), matching(), 1..8usize).prop_map(|(near, words, k)| Question::Hybrid(near, words, k)),
        4 => prop::collection::vec(0..IDS + 2, 1..6).prop_map(Question::Get),
        2 => prop::option::of(condition()).prop_map(Question::Rows),
        1 => prop::option::of(condition()).prop_map(Question::Groups),
        1 => near().prop_map(Question::NearInSql),
        1 => matching().prop_map(Question::MatchInSql),
    ]
}

/// Asks a snapshot, and returns how many rows the answer has.
pub(super) async fn check(at: &TableSnapshot, rows: &Rows, keyed: bool, question: &Question) -> usize {
    match question {
        Question::Near(near) => {
            check_near(at, rows, near).await;
            near.all(rows).len().min(near.k)
        }
        Question::Match(words) => {
            check_match(at, rows, words).await;
            words.all(rows).len().min(words.k)
        }
        Question::Hybrid(near, words, k) => {
            check_hybrid(at, rows, near, words, *k).await;
            near.all(rows).len().min(near.k).min(*k)
        }
        Question::Get(ids) => check_get(at, rows, keyed, ids).await,
        Question::Rows(condition) => {
            let query = format!("select * from t{}", filtered(condition.as_ref()));
            let mut found = rows_of(&in_sql(at, &query).await);
            let is_kept = |id: i64, row: &Document| condition.as_ref().is_none_or(|condition| condition.keeps(id, row));
            let mut expected: Rows = rows.iter().filter(|(id, row)| is_kept(*id, row)).cloned().collect();
            let key = |(id, row): &(i64, Document)| (*id, format!("{row:?}"));
            found.sort_by_key(key);
            expected.sort_by_key(key);
            assert_eq!(found, expected, "{query}");
            found.len()
        }
        Question::Groups(condition) => check_groups(at, rows, condition.as_ref()).await,
        Question::NearInSql(near) => {
            let (to, k, metric) = (near.to, near.k, near.metric);
            let search = format!("vector_search('t', 'vector', '{to:?}', {k}, '{metric}'{})", argument(&near.filter));
            let answer = in_sql(at, &format!("select * from {search} order by _distance")).await;
            check_best(&search, &scored(&answer, "_distance"), near.all(rows), k, Best::Lowest);
            answer.num_rows()
        }
        Question::MatchInSql(words) => {
            // SQL knows searches for any of the words.
            let any = Match { all: false, ..words.clone() };
            let (text, k) = (text_of(&any.words), any.k);
            let search = format!("text_search('t', 'words', '{text}', {k}{})", argument(&any.filter));
            let answer = in_sql(at, &format!("select * from {search} order by _score desc")).await;
            check_best(&search, &scored(&answer, "_score"), any.all(rows), k, Best::Highest);
            answer.num_rows()
        }
    }
}

/// Each row once, in the order of the keys.
async fn check_get(at: &TableSnapshot, rows: &Rows, keyed: bool, ids: &[i64]) -> usize {
    let answer = at.get(&keys(ids), None).await;
    if !keyed {
        assert!(matches!(answer, Err(Error::NotSupported(_))), "{answer:?}");
        return 0;
    }
    let found = rows_of(&answer.unwrap());
    let first = ids.iter().enumerate().filter(|(n, id)| !ids[..*n].contains(id));
    let expected: Rows = first.filter_map(|(_, id)| rows.iter().find(|(other, _)| other == id)).cloned().collect();
    assert_eq!(found, expected, "{ids:?}");
    found.len()
}

async fn check_groups(at: &TableSnapshot, rows: &Rows, condition: Option<&Condition>) -> usize {
    let query = format!(
        "select n, count(*), count(words), min(id), max(words) from t{} group by n order by n nulls last",
        filtered(condition)
    );
    let found = sql(&at.provider(), &query).await;
    let kept = |id: &i64, row: &Document| condition.is_none_or(|condition| condition.keeps(*id, row));
    let rows: Vec<&(i64, Document)> = rows.iter().filter(|(id, row)| kept(id, row)).collect();
    let mut numbers: Vec<Option<i64>> = rows.iter().map(|(_, row)| row.n).collect();
    numbers.sort_by_key(|n| (n.is_none(), *n));
    numbers.dedup();
    let group = |n: &Option<i64>| {
        let of_group = || rows.iter().filter(|(_, row)| row.n == *n);
        let texts: Vec<String> = of_group().filter_map(|(_, row)| row.text()).collect();
        let least = of_group().map(|(id, _)| *id).min().unwrap();
        let greatest = texts.iter().max().cloned().unwrap_or_else(|| "null".to_owned());
        let n = n.map_or_else(|| "null".to_owned(), |n| n.to_string());
        vec![n, of_group().count().to_string(), texts.len().to_string(), least.to_string(), greatest]
    };
    let expected: Vec<Vec<String>> = numbers.iter().map(group).collect();
    assert_eq!(found, expected, "{query}");
    found.len()
}

fn filtered(condition: Option<&Condition>) -> String {
    condition.map_or_else(String::new, |condition| format!(" where {condition}"))
}

/// A filter as the last argument of a search in SQL.
fn argument(filter: &Option<Condition>) -> String {
    filter.as_ref().map_or_else(String::new, |filter| format!(", '{}'", filter.to_string().replace('\'', "''")))
}

async fn in_sql(at: &TableSnapshot, query: &str) -> RecordBatch {
    let session = SessionContext::new();
    register_tables(&session, [("t", at.clone())]).unwrap();
    let answer = async { session.sql(query).await?.collect().await };
    let batches = answer.await.unwrap_or_else(|e| panic!("{query}: {e}"));
    match batches.first() {
        Some(first) => concat_batches(first.schema_ref(), &batches).unwrap(),
        None => {
            let schema = session.sql(query).await.unwrap().schema().as_arrow().clone();
            RecordBatch::new_empty(Arc::new(schema))
        }
    }
}
