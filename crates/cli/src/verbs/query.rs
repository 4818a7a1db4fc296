//! `fencepost query`: SQL over what storage holds now, or what a checkpoint has. Reads only; fences nobody.

use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use futures::StreamExt;

use crate::args::QueryArgs;
use crate::error::Result;
use crate::{output, table};

/// What the table is called in SQL.
pub(super) const TABLE_NAME: &str = "t";

/// Runs the query and prints its rows as they come.
pub(crate) async fn run(args: QueryArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let context = SessionContext::new();
    let snapshot = match &args.at {
        Some(checkpoint) => table.snapshot_at(table.find_checkpoint(checkpoint).await?.id).await?,
        None => table.snapshot().await?,
    };
    fencepost::register_tables(&context, [(TABLE_NAME, snapshot)])?;
    let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let frame = context.sql_with_options(&args.sql, read_only).await?;
    let mut batches = frame.execute_stream().await?;
    let mut sink = output::rows(args.output.output, batches.schema());
    while let Some(batch) = batches.next().await {
        if !sink.write(&batch?)? {
            break;
        }
    }
    sink.finish()
}
