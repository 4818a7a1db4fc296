//! `fencepost adopt`: a table that Lance made or wrote to comes into Fencepost's care. Fences nobody.

use serde_json::json;

use crate::args::AdoptArgs;
use crate::error::Result;
use crate::output::plural;
use crate::{output, table};

/// Adopts and says what was done.
pub(crate) async fn run(args: AdoptArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let adoption = table.adopt().await?;
    let mut lines = vec![match adoption.table_id_given {
        true => "the table has an id now, from which new shards get their names".to_string(),
        false => "the table has its id already".to_string(),
    }];
    lines.extend(adoption.shards.iter().map(|shard| {
        let done = match shard.adopted {
            true => format!("adopted, {} added", plural(shard.fences_added, "fence")),
            false => "nothing to adopt".to_string(),
        };
        format!("shard {} ({}): {done}", shard.shard_id, shard.value)
    }));
    let shards = adoption.shards.iter().map(|shard| {
        json!({
            "shard_id": shard.shard_id.to_string(),
            "value": output::shard_value(&shard.value),
            "adopted": shard.adopted,
            "fences_added": shard.fences_added,
        })
    });
    let value = json!({ "table_id_given": adoption.table_id_given, "shards": shards.collect::<Vec<_>>() });
    output::result(args.output.output, &lines.join("\n"), &value)
}
