//! `fencepost create`.

use serde_json::json;

use crate::args::CreateArgs;
use crate::columns;
use crate::error::{CliError, Result};
use crate::{input, output, table};

/// Creates an empty table.
pub(crate) async fn run(args: CreateArgs) -> Result<()> {
    let schema = match (&args.columns, &args.like) {
        (Some(text), _) => columns::parse(text)?,
        (None, Some(file)) => input::schema_of(file, args.format)?,
        (None, None) => return Err(CliError::usage("--columns or --like is needed")),
    };
    let (schema, options) = table::plan(schema, &args.layout)?;
    let table = table::create(&args.table, schema, options).await?;

    let schema = table.schema();
    let shards = table.shard_ids().await?;
    let columns: Vec<String> =
        schema.fields().iter().map(|f| format!("{}:{}", f.name(), columns::type_name(f.data_type()))).collect();
    let url = table.store().url().to_string();
    let key = match table.primary_key() {
        [] => "append-only (no primary key)".to_string(),
        key => format!("primary key ({})", key.join(", ")),
    };
    let text =
        format!("created {url}: {}, {key}, {}", output::plural(columns.len() as u64, "column"), table.sharding());
    let value = json!({
        "url": url,
        "columns": columns,
        "primary_key": table.primary_key(),
        "sharding": table.sharding().to_string(),
        "shards": shards.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    output::result(args.output.output, &text, &value)
}
