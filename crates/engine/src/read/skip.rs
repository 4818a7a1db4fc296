//! Whether an SSTable can have a row for which a filter is true, by the statistics of its columns. What is left out still
//! hides older rows: hiding goes by its keys.

use std::cmp::Ordering;

use arrow_schema::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::InList;
use datafusion::logical_expr::{Between, BinaryExpr, Expr, Operator};

use super::predicate::{MAX_DEPTH, operands};
use crate::base::BaseTable;
use crate::sstable::{ColumnStatistics, Statistics};

/// Asks the statistics of one SSTable.
pub(super) struct Skip<'s> {
    pub(super) statistics: &'s Statistics,
    pub(super) schema: &'s SchemaRef,
    /// Knows the ids of the columns.
    pub(super) base: &'s BaseTable,
}

impl Skip<'_> {
    /// Whether there can be a row for which `filter` is true. "No" is certain; what is not understood answers "yes".
    pub(super) fn may_match(&self, filter: &Expr) -> bool {
        self.at_depth(filter, 0)
    }

    fn at_depth(&self, filter: &Expr, depth: usize) -> bool {
        if depth > MAX_DEPTH {
            return true;
        }
        match filter {
            Expr::BinaryExpr(BinaryExpr { op: Operator::And, .. }) => {
                operands(filter, Operator::And).into_iter().all(|operand| self.at_depth(operand, depth + 1))
            }
            Expr::BinaryExpr(BinaryExpr { op: Operator::Or, .. }) => {
                operands(filter, Operator::Or).into_iter().any(|operand| self.at_depth(operand, depth + 1))
            }
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match (left.as_ref(), right.as_ref()) {
                (column, Expr::Literal(value, _)) => self.compares(column, *op, value),
                (Expr::Literal(value, _), column) => match op.swap() {
                    Some(op) => self.compares(column, op, value),
                    None => true,
                },
                _ => true,
            },
            Expr::Between(Between { expr, negated: false, low, high }) => match (low.as_ref(), high.as_ref()) {
                (Expr::Literal(low, _), Expr::Literal(high, _)) => {
                    self.compares(expr, Operator::GtEq, low) && self.compares(expr, Operator::LtEq, high)
                }
                _ => true,
            },
            Expr::InList(InList { expr, list, negated: false }) => list.iter().any(|value| match value {
                Expr::Literal(value, _) => self.compares(expr, Operator::Eq, value),
                _ => true,
            }),
            Expr::IsNull(column) => self.column(column).is_none_or(|column| column.nulls > 0),
            Expr::IsNotNull(column) => self.column(column).is_none_or(|column| column.nulls < column.rows),
            _ => true,
        }
    }

    fn column(&self, column: &Expr) -> Option<ColumnStatistics> {
        let Expr::Column(column) = column else {
            return None;
        };
        let data_type = self.schema.field_with_name(&column.name).ok()?.data_type();
        // Not by `field`, which takes a name with dots for a path.
        let field = self.base.dataset().schema().fields.iter().find(|field| field.name == column.name)?;
        self.statistics.column(field.id, data_type)
    }

    fn compares(&self, column: &Expr, op: Operator, value: &ScalarValue) -> bool {
        let Some(column) = self.column(column) else {
            return true;
        };
        if !matches!(op, Operator::Eq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq) {
            return true;
        }
        // A null compares with nothing.
        if column.nulls == column.rows {
            return false;
        }
        let Some((least, greatest)) = &column.ends else {
            return true;
        };
        if value.is_null() || value.data_type() != least.data_type() {
            return true;
        }
        let (Some(least), Some(greatest)) = (least.partial_cmp(value), greatest.partial_cmp(value)) else {
            return true;
        };
        match op {
            Operator::Eq => least != Ordering::Greater && greatest != Ordering::Less,
            Operator::Lt => least == Ordering::Less,
            Operator::LtEq => least != Ordering::Greater,
            Operator::Gt => greatest == Ordering::Greater,
            _ => greatest != Ordering::Less,
        }
    }
}
