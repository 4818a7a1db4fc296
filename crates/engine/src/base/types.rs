//! Which columns a table can store: what Lance can write and read back. Lance takes some types into a schema and fails
//! on the first rows, or on later ones, or never ends, so they are refused here, or exchanged for a type that it can
//! store, before a table exists that cannot be flushed.

use std::collections::HashSet;
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Schema};
use lance_core::datatypes::Schema as LanceSchema;

use crate::error::{Error, Result, without_location};

/// Checks every column of a table to be made.
///
/// # Errors
/// [`Error::InvalidOptions`] or [`Error::NotSupported`] that names the column.
pub(super) fn check_types(schema: &Schema) -> Result<()> {
    for field in schema.fields() {
        let name = field.name();
        check_field(name, field)?;
        let alone = Schema::new(vec![field.as_ref().clone()]);
        let lances = LanceSchema::try_from(&alone).map_err(|e| cannot_store(name, field, &without_location(&e)))?;
        refuse_special_columns(&lances)?;
    }
    Ok(())
}

/// Blob and JSON columns: Lance writes both in another form than it is given, which the write path here does not do.
///
/// # Errors
/// [`Error::NotSupported`] that names the column.
pub(super) fn refuse_special_columns(schema: &LanceSchema) -> Result<()> {
    let special = |field: &&lance_core::datatypes::Field| field.is_blob() || field.logical_type.to_string() == "json";
    match schema.fields_pre_order().find(special) {
        Some(field) => Err(Error::NotSupported(format!(
            "column `{}` is a blob or JSON extension type; use plain Binary or Utf8",
            field.name
        ))),
        None => Ok(()),
    }
}

/// The column as a table stores it. Keys of dictionaries have at least 32 bits: Lance puts the dictionaries of many
/// batches into one, and if it has more values than a small key can number, writes what it cannot read.
pub(super) fn stored(field: &Field) -> Field {
    field.clone().with_data_type(stored_type(field.data_type()))
}

fn stored_type(data_type: &DataType) -> DataType {
    let inside = |field: &FieldRef| Arc::new(stored(field));
    match data_type {
        DataType::Dictionary(key, values) => match key.as_ref() {
            DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => {
                DataType::Dictionary(Box::new(DataType::Int32), values.clone())
            }
            _ => data_type.clone(),
        },
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inside).collect()),
        DataType::List(item) => DataType::List(inside(item)),
        DataType::LargeList(item) => DataType::LargeList(inside(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(inside(item), *size),
        DataType::Map(entries, sorted) => DataType::Map(inside(entries), *sorted),
        other => other.clone(),
    }
}

fn check_field(path: &str, field: &Field) -> Result<()> {
    let refused = |reason: &str| Err(cannot_store(path, field, reason));
    match field.data_type() {
        DataType::Struct(fields) => {
            if fields.is_empty() {
                return refused("a struct needs at least one field");
            }
            let mut names = HashSet::new();
            if let Some(twice) = fields.iter().find(|field| !names.insert(field.name())) {
                return refused(&format!("two of its fields have the name `{}`", twice.name()));
            }
            fields.iter().try_for_each(|field| check_field(&format!("{path}.{}", field.name()), field))
        }
        DataType::FixedSizeList(item, _) if !is_fixed_width(item.data_type()) => {
            refused("the items of a fixed-size list must be single values of a fixed width; use a List")
        }
        DataType::Dictionary(_, values) if **values == DataType::Null => {
            refused("a dictionary needs values; use the type Null")
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            check_field(&format!("{path}.{}", item.name()), item)
        }
        DataType::Map(entries, _) => check_field(&format!("{path}.{}", entries.name()), entries),
        _ => Ok(()),
    }
}

fn is_fixed_width(data_type: &DataType) -> bool {
    match data_type {
        DataType::FixedSizeList(item, _) => is_fixed_width(item.data_type()),
        DataType::Boolean | DataType::FixedSizeBinary(_) => true,
        other => other.is_primitive(),
    }
}

fn cannot_store(path: &str, field: &Field, reason: &str) -> Error {
    let data_type = field.data_type();
    Error::InvalidOptions(format!("Lance cannot store column `{path}` of type {data_type}: {reason}"))
}
