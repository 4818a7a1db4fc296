//! `fencepost get`: the rows of some keys, as storage holds them now. Reads only; fences nobody.

use crate::args::GetArgs;
use crate::error::{CliError, Result};
use crate::{input, output, table};

/// Looks the keys up and prints their rows in the order of the keys.
pub(crate) async fn run(args: GetArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    if table.primary_key().is_empty() {
        return Err(CliError::usage(format!("the table at {} has no primary key", table.store().url()))
            .help("use `fencepost query T \"select * from t where ...\"`"));
    }
    let keys = input::keys(&args.keys, &table.schema(), table.primary_key())?;
    let snapshot = table.snapshot().await?;
    let columns: Option<Vec<&str>> = args.columns.as_ref().map(|columns| columns.iter().map(String::as_str).collect());
    let rows = snapshot.get(&keys, columns.as_deref()).await?;
    let mut sink = output::rows(args.output.output, rows.schema());
    sink.write(&rows)?;
    sink.finish()
}
