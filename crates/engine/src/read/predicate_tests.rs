#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int8Type, Int32Type};
use arrow_array::{
    Array, BooleanArray, DictionaryArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow_cast::display::array_value_to_string;
use arrow_schema::{Field, Schema, TimeUnit};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_expr::create_physical_expr;
use datafusion::prelude::{SessionContext, col, lit};
use proptest::prelude::*;

use super::*;

fn dictionary() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8))
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("i", DataType::Int32, true),
        Field::new("big", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("b", DataType::Boolean, true),
        Field::new("f", DataType::Float64, true),
        Field::new("d", dictionary(), true),
        Field::new("day", DataType::Date32, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("fsb", DataType::FixedSizeBinary(2), true),
        Field::new("large", DataType::LargeBinary, true),
        Field::new("dec", DataType::Decimal128(10, 2), true),
    ]))
}

/// A column's values as text, `?` if the filters leave it open.
fn shown(filters: &[Expr], column: &str) -> String {
    let Some(values) = Candidates::of(filters, &schema()).values(column) else {
        return "?".into();
    };
    assert_eq!(values.data_type(), schema().field_with_name(column).unwrap().data_type());
    let texts = (0..values.len()).map(|row| array_value_to_string(&values, row).unwrap());
    texts.collect::<Vec<_>>().join(" ")
}

/// The filters that DataFusion leaves over after analysis and optimization.
async fn filters(condition: &str) -> Vec<Expr> {
    let sql = SessionContext::new();
    let rows = RecordBatch::new_empty(schema());
    sql.register_batch("t", rows).unwrap();
    let plan = sql.sql(&format!("select * from t where {condition}")).await.unwrap().into_optimized_plan().unwrap();
    let mut found = Vec::new();
    plan.apply(|node| {
        match node {
            LogicalPlan::Filter(filter) => found.push(filter.predicate.clone()),
            LogicalPlan::TableScan(scan) => found.extend(scan.filters.iter().cloned()),
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    })
    .unwrap();
    assert!(!found.is_empty(), "{condition} was optimized away:\n{plan}");
    found
}

#[tokio::test]
async fn conditions_of_sql_leave_the_values_that_they_name() {
    for (condition, column, values) in [
        ("i = 5", "i", "5"),
        ("5 = i", "i", "5"),
        ("i = 5", "big", "?"),
        ("i in (3, 1, 3, 2, 9, 8)", "i", "1 2 3 8 9"),
        ("i in (1, null)", "i", "1"),
        ("i = 1 or i = 2 or 7 = i", "i", "1 2 7"),
        ("i = 1 or big = 2", "i", "?"),
        ("(i = 1 and s = 'a') or (i = 2 and s = 'b')", "i", "1 2"),
        ("(i = 1 and s = 'a') or (i = 2 and s = 'b')", "s", "a b"),
        ("(i = 1 or i = 2) and (i = 2 or i = 3) and big > 4", "i", "2"),
        ("i in (1, 2, 3, 4, 5) and i in (4, 5, 6, 7, 8)", "i", "4 5"),
        ("i > 5", "i", "?"),
        ("i <> 5", "i", "?"),
        ("i not in (1, 2, 3, 4, 5)", "i", "?"),
        ("not (i = 5 and s = 'a')", "i", "?"),
        ("i = big", "i", "?"),
        ("i + 1 = 5 and s = 'x'", "s", "x"),
        ("big = 5", "big", "5"),
        ("big = -9223372036854775808", "big", "-9223372036854775808"),
        ("b", "b", "true"),
        ("b = false", "b", "false"),
        ("s = 'it''s'", "s", "it's"),
        ("s = ''", "s", ""),
        ("f = 0.0", "f", "?"),
        ("d = 'x' or d = 'a'", "d", "a x"),
        ("day = '2024-02-29'", "day", "2024-02-29"),
        ("at = '2024-02-29T12:00:00Z'", "at", "2024-02-29T12:00:00Z"),
        ("fsb = X'0a0b'", "fsb", "0a0b"),
        ("large = X'0a0b0c'", "large", "0a0b0c"),
        ("dec = 1.50", "dec", "1.50"),
    ] {
        let filters = filters(condition).await;
        assert_eq!(shown(&filters, column), values, "{column} where {condition}: {filters:?}");
    }
}

#[test]
fn a_null_equals_nothing_and_contradictions_leave_nothing() {
    let null = || lit(ScalarValue::Int32(None));
    for filters in [
        vec![col("i").eq(null())],
        vec![null().eq(col("i"))],
        vec![col("i").eq(lit(ScalarValue::Null))],
        vec![col("i").in_list(vec![null()], false)],
        vec![col("i").eq(lit(1)), col("i").eq(lit(2))],
    ] {
        let values = Candidates::of(&filters, &schema()).values("i").unwrap();
        assert_eq!((values.len(), values.data_type()), (0, &DataType::Int32), "{filters:?}");
    }
    assert_eq!(shown(&[col("i").eq(null()).or(col("i").eq(lit(3)))], "i"), "3");
}

#[test]
fn literals_of_other_types_count_only_where_equality_is_certain() {
    for (filter, column, values) in [
        (col("i").eq(lit(7i64)), "i", "7"),
        (col("i").eq(lit(1i64 << 40)), "i", "?"),
        (col("big").eq(lit(7u8)), "big", "7"),
        (col("s").eq(lit(ScalarValue::LargeUtf8(Some("x".into())))), "s", "x"),
        (col("s").eq(lit(ScalarValue::Utf8View(Some("x".into())))), "s", "x"),
        (col("s").eq(lit(5i64)), "s", "?"),
        (col("i").eq(lit("05")), "i", "?"),
        (col("day").eq(lit(3)), "day", "?"),
        (col("at").eq(lit(ScalarValue::TimestampMicrosecond(Some(0), None))), "at", "?"),
        (col("dec").eq(lit(ScalarValue::Decimal128(Some(15), 10, 1))), "dec", "?"),
        (col("fsb").eq(lit(ScalarValue::Binary(Some(vec![1])))), "fsb", "?"),
        (col("nosuch").eq(lit(1)), "nosuch", "?"),
    ] {
        assert_eq!(shown(std::slice::from_ref(&filter), column), values, "{filter}");
    }
}

#[test]
fn more_values_than_the_limit_restrict_nothing_and_long_chains_do_not_overflow_the_stack() {
    let equal = |n: i32| col("i").eq(lit(n));
    let list = |n: i32| col("i").in_list((0..n).map(lit).collect(), false);
    let count = |filter: Expr| Candidates::of(&[filter], &schema()).values("i").map(|values| values.len());
    assert_eq!(count(list(MAX_VALUES as i32)), Some(MAX_VALUES));
    assert_eq!(count(list(MAX_VALUES as i32 + 1)), None);
    assert_eq!(count(list(MAX_VALUES as i32 + 1).and(equal(1))), Some(1));
    let chain = |n: i32| (1..n).map(equal).fold(equal(0), Expr::or);
    assert_eq!(count(chain(MAX_VALUES as i32)), Some(MAX_VALUES));
    assert_eq!(count(chain(MAX_VALUES as i32 + 1)), None);
    let nested = |depth| (0..depth).fold(equal(1), |inner, _| inner.or(equal(2)).and(equal(1).or(equal(2))));
    assert_eq!(count(nested(10)), Some(2));
    assert_eq!(count(nested(1_000).and(equal(1))), Some(1), "what is too deep restricts nothing");
}

#[test]
fn values_that_a_dictionary_cannot_number_restrict_nothing() {
    let among = |n: usize| vec![col("d").in_list((0..n).map(|n| lit(format!("{n:03}"))).collect(), false)];
    assert_eq!(Candidates::of(&among(128), &schema()).values("d").unwrap().len(), 128);
    assert!(Candidates::of(&among(129), &schema()).values("d").is_none());
}

#[test]
fn combinations_are_all_pairs_within_the_limit() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let filters = [col("i").in_list(vec![lit(2), lit(1)], false), col("s").in_list(vec![lit("a"), lit("b")], false)];
    let candidates = Candidates::of(&filters, &schema());
    let rows = candidates.combinations(&names(&["s", "i"])).unwrap();
    assert_eq!(rows.schema().fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>(), ["s", "i"]);
    let (s, i) = (rows.column(0).as_string::<i32>(), rows.column(1).as_primitive::<Int32Type>());
    let pairs: Vec<_> = (0..rows.num_rows()).map(|row| (s.value(row), i.value(row))).collect();
    assert_eq!(pairs, [("a", 1), ("a", 2), ("b", 1), ("b", 2)]);
    assert!(candidates.combinations(&names(&["i", "big"])).is_none(), "a column is open");
    assert!(candidates.combinations(&[]).is_none());

    let many = |column: &str, n: i32| col(column).in_list((0..n).map(|n| lit(i64::from(n))).collect(), false);
    let count = |a, b| {
        let candidates = Candidates::of(&[many("i", a), many("big", b)], &schema());
        candidates.combinations(&names(&["i", "big"])).map(|rows| rows.num_rows())
    };
    assert_eq!(count(100, 10), Some(1_000));
    assert_eq!(count(100, 11), None);
    let never = Candidates::of(&[col("i").eq(lit(1)).and(col("i").eq(lit(2))), many("big", 3)], &schema());
    assert_eq!(never.combinations(&names(&["big", "i"])).unwrap().num_rows(), 0);
}

/// Rows of a few values and nulls, so that random conditions are often true.
fn rows() -> RecordBatch {
    let n = 3 * 4 * 3 * 4 * 3;
    let pick = |row: usize, below: usize, of: usize| (row / below) % of;
    let i: Int32Array = (0..n).map(|row| [None, Some(0), Some(1)][pick(row, 1, 3)]).collect();
    let big: Int64Array = (0..n).map(|row| [None, Some(0), Some(1), Some(2)][pick(row, 3, 4)]).collect();
    let b: BooleanArray = (0..n).map(|row| [None, Some(true), Some(false)][pick(row, 12, 3)]).collect();
    let s: StringArray = (0..n).map(|row| [None, Some(""), Some("a"), Some("b")][pick(row, 36, 4)]).collect();
    let d: DictionaryArray<Int8Type> = (0..n).map(|row| [None, Some("a"), Some("b")][pick(row, 144, 3)]).collect();
    let at = TimestampMicrosecondArray::from_iter((0..n).map(|row| Some(pick(row, 7, 3) as i64))).with_timezone("UTC");
    let columns: [(&str, ArrayRef); 6] = [
        ("i", Arc::new(i)),
        ("big", Arc::new(big)),
        ("b", Arc::new(b)),
        ("s", Arc::new(s)),
        ("d", Arc::new(d)),
        ("at", Arc::new(at)),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
}

fn literal(column: &'static str) -> BoxedStrategy<Expr> {
    let text = || prop::option::of(prop::sample::select(vec!["", "a", "b", "c"]).prop_map(str::to_owned));
    match column {
        "i" => prop::option::of(0i32..3).prop_map(|v| lit(ScalarValue::Int32(v))).boxed(),
        "big" => prop::option::of(0i64..4).prop_map(|v| lit(ScalarValue::Int64(v))).boxed(),
        "b" => prop::option::of(any::<bool>()).prop_map(|v| lit(ScalarValue::Boolean(v))).boxed(),
        "s" => text().prop_map(|v| lit(ScalarValue::Utf8(v))).boxed(),
        "d" => text()
            .prop_map(|v| lit(ScalarValue::Dictionary(Box::new(DataType::Int8), Box::new(ScalarValue::Utf8(v)))))
            .boxed(),
        _ => prop::option::of(0i64..4)
            .prop_map(|v| lit(ScalarValue::TimestampMicrosecond(v, Some("UTC".into()))))
            .boxed(),
    }
}

fn comparison() -> impl Strategy<Value = Expr> {
    prop::sample::select(vec!["i", "big", "b", "s", "d", "at"]).prop_flat_map(|column| {
        prop_oneof![
            4 => literal(column).prop_map(move |value| col(column).eq(value)),
            2 => literal(column).prop_map(move |value| value.eq(col(column))),
            3 => (prop::collection::vec(literal(column), 1..4), any::<bool>())
                .prop_map(move |(values, negated)| col(column).in_list(values, negated)),
            1 => literal(column).prop_map(move |value| col(column).not_eq(value)),
            1 => literal(column).prop_map(move |value| col(column).lt(value)),
            1 => Just(col(column).is_null()),
            1 => Just(lit(ScalarValue::Boolean(None))),
            1 => Just(col("b")),
            1 => Just(Expr::Not(Box::new(col("b")))),
        ]
    })
}

fn condition() -> impl Strategy<Value = Expr> {
    comparison().prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.and(b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.or(b)),
            inner.prop_map(|a| Expr::Not(Box::new(a))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_row_that_matches_has_only_candidate_values(filters in prop::collection::vec(condition(), 1..3)) {
        let rows = rows();
        let all = filters.iter().cloned().reduce(Expr::and).unwrap();
        let df_schema = DFSchema::try_from(rows.schema()).unwrap();
        let evaluated = create_physical_expr(&all, &df_schema, &ExecutionProps::new()).unwrap();
        let evaluated = evaluated.evaluate(&rows).unwrap().into_array(rows.num_rows()).unwrap();
        let matches = evaluated.as_boolean();
        let candidates = Candidates::of(&filters, &rows.schema());
        for field in rows.schema().fields() {
            let Some(values) = candidates.values(field.name()) else { continue };
            let text = |array: &ArrayRef, row| array.is_valid(row).then(|| array_value_to_string(array, row).unwrap());
            let allowed: HashSet<_> = (0..values.len()).map(|row| text(&values, row)).collect();
            prop_assert_eq!(allowed.len(), values.len(), "each value once");
            for row in (0..rows.num_rows()).filter(|row| matches.is_valid(*row) && matches.value(*row)) {
                let value = text(rows.column_by_name(field.name()).unwrap(), row);
                prop_assert!(allowed.contains(&value), "{} is {value:?} where {all}", field.name());
            }
        }
    }
}
