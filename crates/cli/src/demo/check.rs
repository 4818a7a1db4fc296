//! The reader of the crash tests: proves what the writers said, by the same check as the demo.

use serde_json::json;

use super::checks::{SaidRows, visible};
use crate::args::CheckArgs;
use crate::error::Result;
use crate::{output, table};

/// Reads the table as a query does and fails if a row is lost, doubled, changed or invented.
pub(crate) async fn run(args: CheckArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let said = SaidRows { acknowledged: args.acknowledged, sent: args.sent };
    let found = visible(&table, args.seed).await?;
    found.prove(&said)?;
    let acknowledged: u64 = said.acknowledged.iter().map(|r| r.end.saturating_sub(r.start)).sum();
    output::json(&json!({ "rows": found.total(), "acknowledged": acknowledged }))
}
