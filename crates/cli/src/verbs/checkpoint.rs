//! `fencepost checkpoint`: pinning a moment of a table, and giving it up again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fencepost::{CheckpointOptions, CheckpointScope, Error, Table, TableCheckpoint};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::args::{
    CheckpointCreateArgs, CheckpointDeleteArgs, CheckpointListArgs, CheckpointRefreshArgs, CheckpointVerb, Scope,
};
use crate::error::Result;
use crate::output::plural;
use crate::{output, table};

pub(crate) async fn run(verb: CheckpointVerb) -> Result<()> {
    match verb {
        CheckpointVerb::Create(args) => create(args).await,
        CheckpointVerb::List(args) => list(args).await,
        CheckpointVerb::Refresh(args) => refresh(args).await,
        CheckpointVerb::Delete(args) => delete(args).await,
    }
}

async fn create(args: CheckpointCreateArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let source = match &args.source {
        Some(source) => Some(table.find_checkpoint(source).await?.id),
        None => None,
    };
    let scope = match args.scope {
        Scope::All => CheckpointScope::All,
        Scope::Durable => CheckpointScope::Durable,
    };
    let options = CheckpointOptions { scope, name: args.name, lifetime: args.lifetime, source };
    let made = table.checkpoint(&options).await?;
    output::result(args.output.output, &format!("made {}", to_text(&made)), &to_json(&made))
}

async fn list(args: CheckpointListArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let found = table.checkpoints(args.name.as_deref()).await?;
    let mut text: Vec<String> = found.iter().map(to_text).collect();
    // Nobody can use them, and they hold something: whoever looks for what holds it has to see them.
    let unfinished = table.unfinished_checkpoints().await?;
    text.extend(unfinished.iter().map(|(id, parts)| {
        format!("checkpoint {id}: not finished, {} (`fencepost checkpoint delete` gives it up)", plural(*parts, "part"))
    }));
    let text = if text.is_empty() { "no checkpoints".to_string() } else { text.join("\n") };
    let unfinished = unfinished.iter().map(|(id, parts)| json!({ "id": id.to_string(), "unfinished_parts": parts }));
    let value: Vec<Value> = found.iter().map(to_json).chain(unfinished).collect();
    output::result(args.output.output, &text, &json!(value))
}

async fn refresh(args: CheckpointRefreshArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let found = table.find_checkpoint(&args.checkpoint).await?;
    let refreshed = table.refresh_checkpoint(found.id, args.lifetime).await?;
    output::result(args.output.output, &format!("refreshed {}", to_text(&refreshed)), &to_json(&refreshed))
}

async fn delete(args: CheckpointDeleteArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let id = id_of(&table, &args.checkpoint).await?;
    table.delete_checkpoint(id).await?;
    output::result(args.output.output, &format!("deleted checkpoint {id}"), &json!({ "id": id.to_string() }))
}

/// The id behind what was given. What is left of one that was not finished is found by its id only.
async fn id_of(table: &Table, wanted: &str) -> Result<Uuid, Error> {
    match Uuid::try_parse(wanted) {
        Ok(id) => Ok(id),
        Err(_) => Ok(table.find_checkpoint(wanted).await?.id),
    }
}

pub(super) fn to_text(checkpoint: &TableCheckpoint) -> String {
    let name = checkpoint.name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"));
    let expires = match checkpoint.expires_at_ms {
        Some(at) => format!("expires in {}", left(at)),
        None => "does not expire".to_string(),
    };
    let log = if checkpoint.needs_log() { "needs its log" } else { "needs no log" };
    let shards = plural(checkpoint.shards.len() as u64, "shard");
    format!("checkpoint {}{name}: {shards}, base version {}, {log}, {expires}", checkpoint.id, checkpoint.base_version)
}

/// The time until a moment, in its largest unit.
fn left(at_ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms);
    let seconds = at.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

pub(super) fn to_json(checkpoint: &TableCheckpoint) -> Value {
    let shards = checkpoint.shards.iter().map(|shard| {
        json!({
            "shard_id": shard.shard_id.to_string(),
            "id": shard.id.to_string(),
            "replay_after": shard.replay_after.get(),
            "tail": shard.tail.get(),
        })
    });
    json!({
        "id": checkpoint.id.to_string(),
        "name": checkpoint.name,
        "created_at_ms": checkpoint.created_at_ms,
        "expires_at_ms": checkpoint.expires_at_ms,
        "base_version": checkpoint.base_version,
        "needs_log": checkpoint.needs_log(),
        "shards": shards.collect::<Vec<_>>(),
    })
}
