//! What a query's filters say about single columns: the few values that a column can have where they all hold. Readers
//! leave out by it what cannot hold a wanted row: SSTables by key, shards by the column that rows are spread by. It
//! reads expressions only; it knows no sources, and what it does not understand restricts nothing.

use std::collections::{HashMap, HashSet};

use arrow_array::{ArrayRef, RecordBatch, UInt64Array, new_empty_array};
use arrow_ord::sort::sort;
use arrow_schema::{DataType, SchemaRef};
use arrow_select::take::take;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use datafusion::logical_expr_common::casts::try_cast_literal_to_type;

/// The most values of a column, and the most combinations of values, that are worth asking for one by one.
pub(crate) const MAX_VALUES: usize = 1_000;

/// How deep `AND` and `OR` may be nested in each other; what is deeper restricts nothing.
pub(super) const MAX_DEPTH: usize = 32;

/// For some columns, every value that they have in the rows for which all filters are true. Other values do not
/// occur in such rows, null neither; the rows need not exist.
#[derive(Debug, Clone)]
pub(crate) struct Candidates {
    schema: SchemaRef,
    sets: Sets,
}

/// By column. Values of a dictionary are held as plain ones.
type Sets = HashMap<String, HashSet<ScalarValue>>;

impl Candidates {
    /// What a conjunction of filters on a table of this schema allows.
    pub(crate) fn of(filters: &[Expr], schema: &SchemaRef) -> Self {
        let mut sets = Sets::new();
        for filter in filters {
            narrow(&mut sets, sets_of(filter, schema, 0));
        }
        Self { schema: SchemaRef::clone(schema), sets }
    }

    /// The values that the column can have: each once, ascending, of the column's type, at most [`MAX_VALUES`]. Empty
    /// if no row can match. `None` if the filters leave it open.
    pub(crate) fn values(&self, column: &str) -> Option<ArrayRef> {
        let set = self.sets.get(column)?;
        let data_type = self.schema.field_with_name(column).ok()?.data_type();
        if set.is_empty() {
            return Some(new_empty_array(data_type));
        }
        let values = ScalarValue::iter_to_array(set.iter().cloned()).ok()?;
        let values = sort(&values, None).ok()?;
        match values.data_type() == data_type {
            true => Some(values),
            // A dictionary; its key type may be too small for this many values.
            false => arrow_cast::cast(&values, data_type).ok().filter(|cast| cast.logical_null_count() == 0),
        }
    }

    /// The rows of these columns that can match: every combination of their values, under their names and in their
    /// order, at most [`MAX_VALUES`]. `None` if the filters leave a column open, if there are more, or without columns.
    pub(crate) fn combinations(&self, columns: &[String]) -> Option<RecordBatch> {
        let values = columns.iter().map(|column| self.values(column)).collect::<Option<Vec<_>>>()?;
        let rows = values.iter().try_fold(1usize, |rows, values| rows.checked_mul(values.len()))?;
        if rows > MAX_VALUES || columns.is_empty() {
            return None;
        }
        // Like the digits of a number: the last column changes with every row.
        let mut repeated = rows;
        let mut combined = Vec::with_capacity(columns.len());
        for (column, values) in columns.iter().zip(&values) {
            repeated = repeated.checked_div(values.len()).unwrap_or(0);
            let index = |row: usize| row.checked_div(repeated)?.checked_rem(values.len());
            let indices: UInt64Array = (0..rows).map(|row| index(row).map(|index| index as u64)).collect();
            combined.push((column, take(values, &indices, None).ok()?));
        }
        RecordBatch::try_from_iter(combined).ok()
    }
}

/// What holds where `expr` is true.
fn sets_of(expr: &Expr, schema: &SchemaRef, depth: usize) -> Sets {
    if depth > MAX_DEPTH {
        return Sets::new();
    }
    match expr {
        Expr::BinaryExpr(BinaryExpr { op: Operator::And, .. }) => {
            let mut sets = Sets::new();
            for operand in operands(expr, Operator::And) {
                narrow(&mut sets, sets_of(operand, schema, depth + 1));
            }
            sets
        }
        Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => {
            let mut operands = operands(expr, Operator::Or).into_iter().filter(|operand| !is_never_true(operand));
            let mut sets = operands.next().map(|first| sets_of(first, schema, depth + 1)).unwrap_or_default();
            for operand in operands {
                if sets.is_empty() {
                    break;
                }
                widen(&mut sets, sets_of(operand, schema, depth + 1));
            }
            sets
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => match (left.as_ref(), right.as_ref()) {
            (column, Expr::Literal(value, _)) | (Expr::Literal(value, _), column) => one_of(column, [value], schema),
            _ => Sets::new(),
        },
        Expr::InList(InList { expr: column, list, negated: false }) if list.len() <= MAX_VALUES => {
            match list.iter().map(literal).collect::<Option<Vec<_>>>() {
                Some(values) => one_of(column, values, schema),
                None => Sets::new(),
            }
        }
        // `flag` and `NOT flag`, which is what the optimizer makes of `flag = true` and `flag = false`.
        Expr::Column(_) => one_of(expr, [&ScalarValue::Boolean(Some(true))], schema),
        Expr::Not(column) => one_of(column, [&ScalarValue::Boolean(Some(false))], schema),
        _ => Sets::new(),
    }
}

/// A literal that makes an `OR` no truer. The optimizer leaves `i = 1 OR NULL` of `i IN (1, NULL)`.
fn is_never_true(expr: &Expr) -> bool {
    matches!(expr, Expr::Literal(ScalarValue::Boolean(None | Some(false)) | ScalarValue::Null, _))
}

/// The operands of a chain of the same operator, without recursion: a query may have thousands of them.
pub(super) fn operands(expr: &Expr, operator: Operator) -> Vec<&Expr> {
    let mut found = Vec::new();
    let mut open = vec![expr];
    while let Some(expr) = open.pop() {
        match expr {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) if *op == operator => open.extend([&**right, &**left]),
            other => found.push(other),
        }
    }
    found
}

fn literal(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Some(value),
        _ => None,
    }
}

/// The column equals one of these literals.
fn one_of<'a>(column: &Expr, literals: impl IntoIterator<Item = &'a ScalarValue>, schema: &SchemaRef) -> Sets {
    let Expr::Column(column) = column else {
        return Sets::new();
    };
    let Ok(field) = schema.field_with_name(&column.name) else {
        return Sets::new();
    };
    let values = literals.into_iter().map(|literal| as_value(literal, field.data_type()));
    // A null equals nothing, so it adds no value; one literal that is not understood leaves the column open.
    match values.collect::<Option<Vec<_>>>() {
        Some(values) => Sets::from([(column.name.clone(), values.into_iter().flatten().collect())]),
        None => Sets::new(),
    }
}

/// The value of a column that equals this literal; `Some(None)` if the literal is null. `None` if it cannot be told.
fn as_value(literal: &ScalarValue, column: &DataType) -> Option<Option<ScalarValue>> {
    let literal = match literal {
        ScalarValue::Dictionary(_, value) => value.as_ref(),
        plain => plain,
    };
    let column = match column {
        DataType::Dictionary(_, values) => values.as_ref(),
        plain => plain,
    };
    if literal.is_null() {
        return Some(None);
    }
    let found = literal.data_type();
    if !equals_by_identity(column) {
        None
    } else if found == *column {
        Some(Some(literal.clone()))
    } else if (found.is_integer() && column.is_integer())
        || (found.is_string() && column.is_string())
        || (found.is_binary() && column.is_binary())
    {
        try_cast_literal_to_type(literal, column).filter(|value| !value.is_null()).map(Some)
    } else {
        // Between other types it depends on the coercion what "equal" means: the text '05' may equal the number 5.
        None
    }
}

/// Whether equal values of the type are the same bytes. Not so for floats (0.0 and -0.0).
fn equals_by_identity(data_type: &DataType) -> bool {
    use DataType::{Boolean, Date32, Date64, Decimal128, Decimal256, Duration, Time32, Time64, Timestamp};
    data_type.is_integer()
        || data_type.is_string()
        || data_type.is_binary()
        || matches!(data_type, Boolean | Date32 | Date64 | Time32(_) | Time64(_) | Timestamp(..) | Duration(_))
        || matches!(data_type, Decimal128(..) | Decimal256(..))
}

/// Both hold.
fn narrow(sets: &mut Sets, other: Sets) {
    for (column, values) in other {
        match sets.get_mut(&column) {
            Some(set) => set.retain(|value| values.contains(value)),
            None => drop(sets.insert(column, values)),
        }
    }
}

/// One of them holds: only a column that both restrict is still restricted.
fn widen(sets: &mut Sets, mut other: Sets) {
    sets.retain(|column, set| match other.remove(column) {
        Some(values) => {
            set.extend(values);
            set.len() <= MAX_VALUES
        }
        None => false,
    });
}

#[cfg(test)]
#[path = "predicate_tests.rs"]
mod tests;
