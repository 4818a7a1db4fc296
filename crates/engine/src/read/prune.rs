//! Leaving out the shards that cannot hold a row that a query wants. It looks at filters and at what shards hold, never
//! at rows.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{Schema, SchemaRef};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{ColumnarValue, Expr, Volatility};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::predicate::Candidates;
use super::source::unqualified;
use crate::base::BaseTable;
use crate::error::Result;
use crate::sharding::{Router, ShardValue};

/// Which shards of a table can hold a row for which all filters of a query are true.
///
/// A shard that cannot is left out altogether: it is no source, and it hides nothing. That is exact where it is done.
/// In a table without a key nothing is hidden. In one with a key the sharding column is part of the key, so a row that
/// the shard would hide has the same value there, and belongs to it: no filter lets it through either. A table that
/// Lance made with another key is not pruned.
#[derive(Debug, Default)]
pub(crate) struct ShardPruning {
    /// The values of the sharding column, or their buckets, that can match; `None`: all.
    wanted: Option<HashSet<ShardValue>>,
    /// The filters on nothing but the sharding column, and the schema of that column alone.
    conditions: Vec<Arc<dyn PhysicalExpr>>,
    column: Option<SchemaRef>,
}

impl ShardPruning {
    /// What a conjunction of filters says about the shards of a table with these columns.
    pub(crate) fn of(filters: &[Expr], base: &BaseTable, schema: &SchemaRef) -> Result<Self> {
        let sharding = base.sharding();
        let Some(column) = sharding.column().filter(|_| !sharding.divides_key(base.primary_key())) else {
            return Ok(Self::default());
        };
        let Ok(field) = schema.field_with_name(column) else {
            return Ok(Self::default());
        };
        let router = Router::try_new(sharding, schema)?;
        let wanted = Candidates::of(filters, schema).values(column).map(|values| router.values(&values)).transpose()?;
        let alone: SchemaRef = Arc::new(Schema::new(vec![field.clone()]));
        let conditions = filters.iter().flat_map(split_conjunction).filter_map(|filter| condition(filter, &alone));
        Ok(Self { wanted, conditions: conditions.collect(), column: Some(alone) })
    }

    /// Whether a shard can hold such a row.
    pub(crate) fn may_hold(&self, value: &ShardValue) -> bool {
        match value {
            ShardValue::All | ShardValue::Unknown => true,
            ShardValue::Bucket(_) => self.is_wanted(value),
            ShardValue::Identity(scalar) => self.is_wanted(value) && self.can_match(scalar),
        }
    }

    fn is_wanted(&self, value: &ShardValue) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.contains(value))
    }

    /// Whether no condition on the sharding column is false or null for this value of it. One that fails says nothing:
    /// the shard may have no rows.
    fn can_match(&self, value: &ScalarValue) -> bool {
        let row = || {
            let column = value.to_array().ok()?;
            RecordBatch::try_new(Arc::clone(self.column.as_ref()?), vec![column]).ok()
        };
        let Some(row) = row().filter(|_| !self.conditions.is_empty()) else {
            return true;
        };
        let refuses = |condition: &Arc<dyn PhysicalExpr>| {
            let answer = match condition.evaluate(&row) {
                Ok(ColumnarValue::Scalar(answer)) => Some(answer),
                Ok(ColumnarValue::Array(answers)) => ScalarValue::try_from_array(&answers, 0).ok(),
                Err(_) => None,
            };
            matches!(answer, Some(ScalarValue::Boolean(None | Some(false))))
        };
        !self.conditions.iter().any(refuses)
    }
}

/// A filter that can be evaluated on a value of the only column: it is about nothing else, and has one answer.
fn condition(filter: &Expr, column: &SchemaRef) -> Option<Arc<dyn PhysicalExpr>> {
    let name = column.fields().first()?.name();
    let columns = filter.column_refs();
    if columns.is_empty() || columns.iter().any(|found| found.name != *name) {
        return None;
    }
    // `now()` and its like are no mystery to the plan, but would have another answer here.
    let changes = |expr: &Expr| match expr {
        Expr::ScalarFunction(call) => call.func.signature().volatility != Volatility::Immutable,
        Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) | Expr::OuterReferenceColumn(..) => true,
        _ => false,
    };
    if filter.exists(|expr| Ok(changes(expr))).unwrap_or(true) {
        return None;
    }
    let schema = DFSchema::try_from(Arc::clone(column)).ok()?;
    create_physical_expr(&unqualified(filter.clone()).ok()?, &schema, &ExecutionProps::new()).ok()
}
