//! Rows of a MemTable by its B-trees: the ranges of values that a filter allows a column. What it does not understand
//! restricts nothing; the filter is evaluated again above.

use std::ops::Bound;

use arrow_array::ArrayRef;
use arrow_schema::Schema;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};

use crate::error::Result;
use crate::memtable::{MemTableSnapshot, ValueRange};

/// An index is worth it if it leaves at most one in this many rows.
const WORTH: usize = 4;

/// The rows that can match a filter, as the MemTable's indexes know them, in row order; `None` if they do not know, or
/// if most rows can.
///
/// # Errors
/// Those of the index.
pub(super) fn rows_by_index(memtable: &MemTableSnapshot, filter: &Expr) -> Result<Option<Vec<u32>>> {
    let mut found: Option<Vec<u32>> = None;
    for (column, ranges) in split_conjunction(filter).into_iter().filter_map(|part| ranges(part, memtable.schema())) {
        let Some(rows) = memtable.in_ranges(&column, &ranges)? else {
            continue;
        };
        found = Some(match found {
            Some(mut both) => {
                both.retain(|row| rows.binary_search(row).is_ok());
                both
            }
            None => rows,
        });
    }
    Ok(found.filter(|rows| rows.len() <= memtable.rows() / WORTH))
}

/// The values of a column for which a condition on it can be true.
fn ranges(condition: &Expr, schema: &Schema) -> Option<(String, Vec<ValueRange>)> {
    match condition {
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, op, value) = match (left.as_ref(), right.as_ref()) {
                (Expr::Column(column), Expr::Literal(value, _)) => (&column.name, *op, value),
                (Expr::Literal(value, _), Expr::Column(column)) => (&column.name, op.swap()?, value),
                _ => return None,
            };
            let value = value_of(value, column, schema)?;
            let (from, to) = match op {
                Operator::Eq => (Bound::Included(value.clone()), Bound::Included(value)),
                Operator::Lt => (Bound::Unbounded, Bound::Excluded(value)),
                Operator::LtEq => (Bound::Unbounded, Bound::Included(value)),
                Operator::Gt => (Bound::Excluded(value), Bound::Unbounded),
                Operator::GtEq => (Bound::Included(value), Bound::Unbounded),
                _ => return None,
            };
            Some((column.clone(), vec![ValueRange { from, to }]))
        }
        Expr::Between(Between { expr, negated: false, low, high }) => {
            match (expr.as_ref(), low.as_ref(), high.as_ref()) {
                (Expr::Column(column), Expr::Literal(low, _), Expr::Literal(high, _)) => {
                    let from = Bound::Included(value_of(low, &column.name, schema)?);
                    let to = Bound::Included(value_of(high, &column.name, schema)?);
                    Some((column.name.clone(), vec![ValueRange { from, to }]))
                }
                _ => None,
            }
        }
        Expr::InList(InList { expr, list, negated: false }) => {
            let Expr::Column(column) = expr.as_ref() else {
                return None;
            };
            let one = |value: &Expr| match value {
                // Nothing equals a null.
                Expr::Literal(value, _) if value.is_null() => Some(None),
                Expr::Literal(value, _) => {
                    let value = value_of(value, &column.name, schema)?;
                    Some(Some(ValueRange { from: Bound::Included(value.clone()), to: Bound::Included(value) }))
                }
                _ => None,
            };
            let values: Option<Vec<Option<ValueRange>>> = list.iter().map(one).collect();
            Some((column.name.clone(), values?.into_iter().flatten().collect()))
        }
        _ => None,
    }
}

/// A literal of the column's very type, which is not null.
fn value_of(value: &ScalarValue, column: &str, schema: &Schema) -> Option<ArrayRef> {
    let field = schema.field_with_name(column).ok()?;
    let same = !value.is_null() && value.data_type() == *field.data_type();
    if same { value.to_array().ok() } else { None }
}
