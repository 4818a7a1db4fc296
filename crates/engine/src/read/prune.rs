//! Leaving out the shards that cannot hold a row that a query wants. It looks at filters and at what shards hold, never
//! at rows.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder};
use arrow_schema::{Schema, SchemaRef};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::execution::context::ExecutionProps;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{ColumnarValue, Expr, Volatility};
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};

use super::Snapshot;
use super::predicate::Candidates;
use super::source::unqualified;
use crate::error::{Error, Result};
use crate::sharding::{Router, ShardValue};

/// Which shards of a table can hold a row for which all filters of a query are true.
///
/// A shard that cannot is left out altogether: it is no source, and it hides nothing. That is exact where it is done.
/// In a table without a key nothing is hidden. In one with a key the sharding column is part of the key, so a row of
/// the base table that the shard hides has the shard's value too: no filter lets it through, and [`rows`](Self::rows)
/// keeps it from filters that fail on it. A table that Lance made with another key is not pruned.
#[derive(Debug, Default)]
pub(crate) struct ShardPruning {
    by: Option<By>,
}

#[derive(Debug)]
struct By {
    router: Router,
    /// The shards of the values of the sharding column that can match; `None`: all.
    wanted: Option<HashSet<ShardValue>>,
    /// The filters on nothing but the sharding column, and the schema of that column alone.
    conditions: Vec<Arc<dyn PhysicalExpr>>,
    column: SchemaRef,
}

impl ShardPruning {
    /// What a conjunction of filters, and the values that it leaves to columns, say about a table's shards.
    pub(crate) fn of(filters: &[Expr], candidates: &Candidates, snapshot: &Snapshot) -> Result<Self> {
        let (sharding, schema) = (snapshot.base.sharding(), &snapshot.format.user);
        let Some(column) = sharding.column().filter(|_| !sharding.divides_key(&snapshot.format.primary_key)) else {
            return Ok(Self::default());
        };
        let field = schema.field_with_name(column).map_err(Error::arrow("choosing shards"))?;
        let router = Router::try_new(sharding, schema)?;
        let wanted = candidates.values(column).map(|values| router.values(&values)).transpose()?;
        let column: SchemaRef = Arc::new(Schema::new(vec![field.clone()]));
        let conditions = filters.iter().flat_map(split_conjunction).filter_map(|filter| condition(filter, &column));
        Ok(Self { by: Some(By { router, wanted, conditions: conditions.collect(), column }) })
    }

    /// Whether a shard can hold such a row.
    pub(crate) fn may_hold(&self, value: &ShardValue) -> bool {
        self.by.as_ref().is_none_or(|by| by.may_hold(value))
    }

    /// Which rows of a batch belong to shards that can. The batch has the sharding column.
    pub(crate) fn rows(&self, batch: &RecordBatch) -> Result<BooleanBuffer> {
        let Some(by) = self.by.as_ref().filter(|_| batch.num_rows() > 0) else {
            return Ok(BooleanBuffer::new_set(batch.num_rows()));
        };
        let mut wanted = BooleanBufferBuilder::new(batch.num_rows());
        wanted.append_n(batch.num_rows(), false);
        for (value, rows) in by.router.groups(batch)? {
            if by.may_hold(&value) {
                rows.into_iter().filter_map(|row| usize::try_from(row).ok()).for_each(|row| wanted.set_bit(row, true));
            }
        }
        Ok(wanted.finish())
    }
}

impl By {
    fn may_hold(&self, value: &ShardValue) -> bool {
        let is_wanted = || self.wanted.as_ref().is_none_or(|wanted| wanted.contains(value));
        match value {
            ShardValue::All | ShardValue::Unknown => true,
            ShardValue::Bucket(_) => is_wanted(),
            ShardValue::Identity(scalar) => is_wanted() && self.can_match(scalar),
        }
    }

    /// Whether no condition on the sharding column is false or null for this value of it. One that fails says nothing:
    /// the shard may have no rows.
    fn can_match(&self, value: &ScalarValue) -> bool {
        if self.conditions.is_empty() {
            return true;
        }
        let row =
            value.to_array().ok().and_then(|value| RecordBatch::try_new(Arc::clone(&self.column), vec![value]).ok());
        let Some(row) = row else {
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
