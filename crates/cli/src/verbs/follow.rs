//! `fencepost follow`: keeps up with a table and prints what a query answers whenever something has changed, with how far
//! behind that is. Reads only; fences nobody.

use std::time::Duration;

use arrow_array::RecordBatch;
use datafusion::execution::context::SQLOptions;
use datafusion::prelude::SessionContext;
use fencepost::{FollowerConfig, FollowerState, TableSnapshot, Written, is_collected};
use serde_json::{Value, json};

use crate::args::{FollowArgs, Output};
use crate::error::{CliError, Result};
use crate::{output, table};

/// What is asked if nothing else is.
const COUNT: &str = "select count(*) as rows from t";
/// How often a query may find its snapshot's objects collected before we give up.
const MAX_COLLECTED: usize = 16;

/// Follows until Ctrl-C, or until what was asked for is reached.
pub(crate) async fn run(args: FollowArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let defaults = FollowerConfig::default();
    let config = FollowerConfig {
        min_poll: defaults.min_poll.min(args.interval),
        max_poll: args.interval,
        max_bytes: args.max_bytes.unwrap_or(defaults.max_bytes),
        ..defaults
    };
    let follower = table.follow(config).await?;
    let until = args.until_position.into_iter().reduce(Written::and);
    let mut lines = 0;
    let mut number = 0;
    let mut collected = 0;
    loop {
        tokio::select! {
            changed = follower.changed_since(number) => drop(changed?),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let (state, snapshot) = follower.latest()?;
        let batches = match answer(&snapshot, args.sql.as_deref().unwrap_or(COUNT)).await {
            Ok(batches) => batches,
            Err(Failed::Collected(error)) if collected == MAX_COLLECTED => {
                return Err(error.help("garbage collection is faster than the query: give `gc` a longer --min-age"));
            }
            Err(Failed::Collected(_)) => {
                collected += 1;
                follower.refresh().await?;
                continue;
            }
            Err(Failed::Other(error)) => return Err(error),
        };
        (number, collected) = (state.number, 0);
        print(args.output.output, args.sql.is_some(), &state, &batches)?;
        lines += 1;
        let reached = match &until {
            Some(until) => follower.wait_for(until, Duration::ZERO).await.is_ok(),
            None => false,
        };
        // What is reached must have been printed.
        if (reached && follower.state().number == number) || args.changes == Some(lines) {
            follower.close().await;
            return Ok(());
        }
    }
}

enum Failed {
    /// The next snapshot will do.
    Collected(CliError),
    Other(CliError),
}

async fn answer(snapshot: &TableSnapshot, sql: &str) -> Result<Vec<RecordBatch>, Failed> {
    let answer = async {
        let context = SessionContext::new();
        context.register_table(super::query::TABLE_NAME, snapshot.provider())?;
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        context.sql_with_options(sql, read_only).await?.collect().await
    };
    answer.await.map_err(|error| match is_collected(&error) {
        true => Failed::Collected(error.into()),
        false => Failed::Other(error.into()),
    })
}

fn print(output: Output, is_query: bool, state: &FollowerState, batches: &[RecordBatch]) -> Result<()> {
    let rows = output::json_rows(batches)?;
    let count = || rows.pointer("/0/rows").and_then(Value::as_u64).unwrap_or_default();
    match (output, is_query) {
        (Output::Json, _) => output::line(&line(is_query, state, &rows, count()).to_string()),
        (Output::Table, false) => output::line(&format!("{:>14}  {}", output::plural(count(), "row"), stands(state))),
        (Output::Table, true) => {
            if let Some(first) = batches.first() {
                let mut sink = output::rows(output, first.schema());
                for batch in batches {
                    if !sink.write(batch)? {
                        break;
                    }
                }
                sink.finish()?;
            }
            output::line(&stands(state))
        }
    }
}

fn line(is_query: bool, state: &FollowerState, rows: &Value, count: u64) -> Value {
    let positions: serde_json::Map<String, Value> =
        state.shards.iter().map(|shard| (shard.shard.to_string(), json!(shard.position.get()))).collect();
    let mut line = json!({
        "base_version": state.base_version,
        "positions": positions,
        "positions_behind": state.positions_behind(),
        "seconds_behind": state.behind_for.as_secs_f64(),
        "is_full": state.is_full,
    });
    if let Some(line) = line.as_object_mut() {
        match is_query {
            true => line.insert("result".into(), rows.clone()),
            false => line.insert("rows".into(), json!(count)),
        };
    }
    line
}

fn stands(state: &FollowerState) -> String {
    let behind = match (state.is_up_to_date(), state.is_full) {
        (true, _) => "up to date".to_owned(),
        (false, full) => {
            let why = if full { ", its memory is full until a writer flushes" } else { "" };
            let behind = output::plural(state.positions_behind(), "position");
            format!("{behind} behind for {:.1} s{why}", state.behind_for.as_secs_f64())
        }
    };
    format!("base version {}, {}, {behind}", state.base_version, output::plural(state.shards.len() as u64, "shard"))
}
