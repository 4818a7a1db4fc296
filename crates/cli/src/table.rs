//! From arguments to the engine: stores, tables, layouts and writer settings. The verbs reach the engine's set-up
//! only through here.

use std::sync::Arc;

use arrow_schema::{Field, Schema, SchemaRef};
use fencepost::{Sharding, Store, Table, TableOptions, WriterConfig};

use crate::args::{AbandonArgs, LayoutArgs, StorageArgs, TableArgs};
use crate::error::{CliError, Exit, Result};

/// The store behind a URL or path.
pub(crate) fn open_store(url: &str, storage: &StorageArgs) -> Result<Store> {
    Ok(Store::open(url, &storage.options())?)
}

/// The store of a table, which need not be there.
pub(crate) fn store(args: &TableArgs) -> Result<Store> {
    open_store(&args.url, &args.storage)
}

/// Opens the table.
pub(crate) async fn open(args: &TableArgs) -> Result<Table> {
    Ok(opened(args).await?)
}

async fn opened(args: &TableArgs) -> Result<Table, fencepost::Error> {
    let store = Store::open(&args.url, &args.storage.options())?;
    match wal_store(args)? {
        Some(wal_store) => Table::open_with_wal_store(store, wal_store).await,
        None => Table::open(store).await,
    }
}

/// The WAL store that was given.
pub(crate) fn wal_store(args: &TableArgs) -> Result<Option<Store>, fencepost::Error> {
    let options = args.wal_store.wal_store_options.iter().cloned().collect();
    args.wal_store.wal_store_url.as_ref().map(|url| Ok(Store::open(url, &options)?)).transpose()
}

/// Opens the table if there is one.
pub(crate) async fn open_if_there(args: &TableArgs) -> Result<Option<Table>> {
    match opened(args).await {
        Ok(table) => Ok(Some(table)),
        Err(fencepost::Error::TableNotFound { .. }) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Creates the table.
pub(crate) async fn create(args: &TableArgs, schema: SchemaRef, options: TableOptions) -> Result<Table> {
    let store = store(args)?;
    Ok(match wal_store(args)? {
        Some(wal_store) => Table::create_with_wal_store(store, wal_store, schema, options).await?,
        None => Table::create(store, schema, options).await?,
    })
}

/// The schema and options of a new table: the columns of its key hold no nulls.
pub(crate) fn plan(schema: Schema, layout: &LayoutArgs) -> Result<(SchemaRef, TableOptions)> {
    let primary_key: Vec<String> = layout.primary_key.iter().map(|name| name.trim().to_string()).collect();
    for name in &primary_key {
        if schema.column_with_name(name).is_none() {
            let known: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
            return Err(CliError::usage(format!("--primary-key: there is no column `{name}`"))
                .help(format!("the columns are: {}", known.join(", "))));
        }
    }
    let sharding = match &layout.shard_by {
        None => Sharding::Unsharded,
        Some(text) => parse_sharding(text)?,
    };
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|f| {
            let is_key = primary_key.contains(f.name());
            f.as_ref().clone().with_nullable(f.is_nullable() && !is_key)
        })
        .collect();
    Ok((Arc::new(Schema::new(fields)), TableOptions { primary_key, sharding }))
}

/// Refuses layout options that an existing table contradicts.
pub(crate) fn check_layout(table: &Table, layout: &LayoutArgs) -> Result<()> {
    let differs = |what: &str, is: String| {
        CliError::new(Exit::Table, format!("the table exists already, and its {what} is {is}"))
            .help("leave the option out, or create another table")
    };
    if !layout.primary_key.is_empty() && layout.primary_key != table.primary_key() {
        let key = table.primary_key();
        let key = if key.is_empty() { "none".to_string() } else { key.join(",") };
        return Err(differs("primary key", key));
    }
    match &layout.shard_by {
        Some(text) if parse_sharding(text)?.to_string() != table.sharding().to_string() => {
            Err(differs("sharding", table.sharding().to_string()))
        }
        _ => Ok(()),
    }
}

/// Settings of a writer, those that the table keeps among them; `memtable_rows` makes SSTables come sooner. Whatever the
/// table says, what a command reports as written is durable.
pub(crate) async fn writer_config(table: &Table, memtable_rows: Option<usize>) -> Result<WriterConfig> {
    let mut config = table.writer_config().await?;
    config.durable = true;
    if let Some(rows) = memtable_rows {
        config.memtable.get_or_insert_default().max_rows = rows;
    }
    Ok(config)
}

/// Settings of a writer that may have to give up a lost WAL store.
pub(crate) async fn writer_config_of(table: &Table, abandon: &AbandonArgs) -> Result<WriterConfig> {
    let mut config = writer_config(table, None).await?;
    config.open.abandon_wal_store = abandon.abandon_wal_store;
    Ok(config)
}

/// With a MemTable, whatever the table says: there is none without one that could flush.
pub(crate) fn flushing(mut config: WriterConfig) -> WriterConfig {
    config.memtable.get_or_insert_default();
    config
}

fn parse_sharding(text: &str) -> Result<Sharding> {
    text.parse().map_err(|e| {
        CliError::usage(format!("--shard-by: {e}"))
            .help("write unsharded, bucket(COLUMN,N) such as \"bucket(id,4)\", or identity(COLUMN)")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::columns;

    fn layout(key: &[&str], shard_by: Option<&str>) -> LayoutArgs {
        LayoutArgs { primary_key: key.iter().map(|k| k.to_string()).collect(), shard_by: shard_by.map(str::to_string) }
    }

    #[test]
    fn key_columns_hold_no_nulls() {
        let schema = columns::parse("a:int64,b:string").unwrap();
        let (schema, options) = plan(schema, &layout(&["b"], Some("bucket(b,2)"))).unwrap();
        let nullable: Vec<bool> = schema.fields().iter().map(|f| f.is_nullable()).collect();
        assert_eq!(nullable, [true, false]);
        assert_eq!(options.primary_key, ["b"]);
        assert_eq!(options.sharding.to_string(), "bucket(b,2)");
    }

    #[test]
    fn layouts_that_make_no_sense_are_usage_errors() {
        let schema = || columns::parse("a:int64").unwrap();
        let unknown = plan(schema(), &layout(&["x"], None)).err().unwrap();
        assert_eq!(unknown.exit(), Some(Exit::Usage));
        assert!(unknown.to_string().contains("no column `x`"));
        assert_eq!(plan(schema(), &layout(&[], Some("hash(a)"))).err().unwrap().exit(), Some(Exit::Usage));
    }
}
