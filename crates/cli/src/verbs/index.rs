//! `fencepost index`: the secondary indexes of a table.

use fencepost::{FullTextConfig, IndexConfig, IndexKind, VectorConfig};
use serde_json::{Value, json};

use crate::args::{IndexCreateArgs, IndexDropArgs, IndexListArgs, IndexVerb, Kind};
use crate::error::Result;
use crate::{output, table};

pub(crate) async fn run(verb: IndexVerb) -> Result<()> {
    match verb {
        IndexVerb::Create(args) => create(args).await,
        IndexVerb::List(args) => list(args).await,
        IndexVerb::Drop(args) => drop_one(args).await,
    }
}

async fn create(args: IndexCreateArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    let index = match args.kind {
        Kind::Btree => IndexConfig::btree(args.column),
        Kind::Text => IndexConfig::full_text(args.column, FullTextConfig::default()),
        Kind::Vector => IndexConfig::vector(args.column, VectorConfig::new(args.metric)),
    };
    let index = match args.name {
        Some(name) => index.with_name(name),
        None => index,
    };
    table.create_index(&index).await?;
    output::result(args.output.output, &format!("made {}", to_text(&index)), &to_json(&index))
}

async fn list(args: IndexListArgs) -> Result<()> {
    let indexes = table::open(&args.table).await?.indexes().await?;
    let text: Vec<String> = indexes.iter().map(to_text).collect();
    let text = if text.is_empty() { "no indexes".to_owned() } else { text.join("\n") };
    output::result(args.output.output, &text, &json!(indexes.iter().map(to_json).collect::<Vec<_>>()))
}

async fn drop_one(args: IndexDropArgs) -> Result<()> {
    let table = table::open(&args.table).await?;
    table.drop_index(&args.name).await?;
    output::result(args.output.output, &format!("dropped index `{}`", args.name), &json!({ "name": args.name }))
}

fn kind(index: &IndexConfig) -> &'static str {
    match index.kind {
        IndexKind::BTree => "btree",
        IndexKind::FullText(_) => "text",
        IndexKind::Vector(_) => "vector",
        _ => "other",
    }
}

fn to_text(index: &IndexConfig) -> String {
    let metric = match &index.kind {
        IndexKind::Vector(vector) => format!(", {}", vector.metric),
        _ => String::new(),
    };
    format!("index `{}` on `{}`: {}{metric}", index.name, index.column, kind(index))
}

fn to_json(index: &IndexConfig) -> Value {
    let metric = match &index.kind {
        IndexKind::Vector(vector) => Some(vector.metric.to_string()),
        _ => None,
    };
    json!({ "name": index.name, "column": index.column, "kind": kind(index), "metric": metric })
}
