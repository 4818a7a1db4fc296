//! Columns that were added to a table after rows were written: which changes of a table's columns rows can follow that are
//! not in its base table yet, and how they do. A column is the same one if its field id is; its name alone says nothing,
//! because a column may be dropped and another one added under its name.
//!
//! Only nullable columns may be added: rows that were written before have nulls there.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, new_null_array};
use arrow_schema::{Field, FieldRef, Schema, SchemaRef};
use lance::Dataset;
use lance_core::datatypes::{Field as LanceField, LANCE_FIELD_ID_KEY};

use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::rows::{TOMBSTONE, with_columns};

/// The columns that a version of the table has and an earlier one had not.
///
/// # Errors
/// [`Error::SchemaChanged`] if anything but that has changed, or one of them holds no nulls.
pub(crate) fn added_columns(before: &BaseTable, now: &BaseTable) -> Result<Vec<String>> {
    let place = now.lance_store().describe(None);
    let changed = |reason: String| Error::SchemaChanged { place: place.clone(), reason };
    let (old, new) = (&before.dataset().schema().fields, &now.dataset().schema().fields);
    for field in old {
        let Some(same) = new.iter().find(|other| other.id == field.id) else {
            let reason = match new.iter().any(|other| other.name == field.name) {
                true => {
                    format!("column `{}` was replaced by another one of that name, or got another type", field.name)
                }
                false => format!("column `{}` was dropped", field.name),
            };
            return Err(changed(reason));
        };
        if same.name != field.name {
            return Err(changed(format!("column `{}` is called `{}` now", field.name, same.name)));
        }
        if same.data_type() != field.data_type() {
            let (from, to) = (field.data_type(), same.data_type());
            return Err(changed(format!("column `{}` is {to} now and was {from}", field.name)));
        }
        if field.nullable && !same.nullable {
            return Err(changed(format!("column `{}` may not be null any more", field.name)));
        }
    }
    if before.primary_key() != now.primary_key() {
        let (from, to) = (before.primary_key().join(", "), now.primary_key().join(", "));
        return Err(changed(format!("the primary key is ({to}) now and was ({from})")));
    }
    let is_new = |field: &&LanceField| !old.iter().any(|other| other.id == field.id);
    let added: Vec<&LanceField> = new.iter().filter(is_new).collect();
    match added.iter().find(|field| !field.nullable) {
        Some(field) => Err(changed(format!("column `{}` was added and may not be null", field.name))),
        None => Ok(added.into_iter().map(|field| field.name.clone()).collect()),
    }
}

/// Which of these columns of the table an SSTable has. Those that it has not were added later.
///
/// # Errors
/// [`Error::SchemaChanged`] if it has a column under another name or id, or one that it has not may not be null.
pub(crate) fn columns_of(
    sstable: &Dataset,
    base: &BaseTable,
    wanted: &[String],
    place: impl Fn() -> String,
) -> Result<Vec<String>> {
    let (found, now) = (&sstable.schema().fields, &base.dataset().schema().fields);
    let changed = |reason: String| Error::SchemaChanged { place: place(), reason };
    let newest = found.iter().filter(|field| field.name != TOMBSTONE).map(|field| field.id).max().unwrap_or(-1);
    let mut present = Vec::with_capacity(wanted.len());
    for name in wanted {
        let its = found.iter().find(|field| field.name == *name);
        let Some(column) = now.iter().find(|field| field.name == *name) else {
            // No column of the table: what every SSTable has.
            present.push(name.clone());
            continue;
        };
        match its {
            Some(its) if its.id == column.id => present.push(name.clone()),
            Some(its) => return Err(changed(another_of_that_name(name, its.id, column.id))),
            None => {
                if let Some(old) = found.iter().find(|field| field.id == column.id && field.name != TOMBSTONE) {
                    return Err(changed(renamed(&old.name, name)));
                }
                if !was_added_later(column.id, newest) {
                    return Err(changed(format!(
                        "they do not have column `{name}`, which is older than others that they have"
                    )));
                }
                if !column.nullable {
                    return Err(changed(added_without_nulls(name)));
                }
            }
        }
    }
    Ok(present)
}

/// Rows of the log under the columns of `wanted`: what was added since they were written is null. `storage` has the
/// table's field ids, and `is_nullable` says whether a column of the table is. What misses other columns stays as it is.
///
/// # Errors
/// [`Error::SchemaChanged`] if they have a column that the table has not, or has under another name or id, or do not
/// have one that was added and may not be null.
pub(crate) fn of_log(
    batch: &RecordBatch,
    wanted: &SchemaRef,
    storage: &SchemaRef,
    is_nullable: impl Fn(&Field) -> bool,
) -> Result<RecordBatch> {
    let found = batch.schema_ref().fields();
    let changed = |reason: String| Error::SchemaChanged { place: "the log".to_owned(), reason };
    let mut newest = -1;
    for field in found {
        let Ok(now) = storage.field_with_name(field.name()) else {
            let same_id = |now: &&FieldRef| field_id(now).is_some() && field_id(now) == field_id(field);
            return Err(changed(match storage.fields().iter().find(same_id) {
                Some(now) => renamed(field.name(), now.name()),
                None => format!("they have a column `{}`, which the table does not have", field.name()),
            }));
        };
        if let (Some(its), Some(id)) = (field_id(field), field_id(now))
            && its != id
        {
            return Err(changed(another_of_that_name(field.name(), its, id)));
        }
        newest = newest.max(field_id(now).unwrap_or(newest));
    }
    let mut misses_some = false;
    for missing in wanted.fields().iter().filter(|field| batch.column_by_name(field.name()).is_none()) {
        let id = storage.field_with_name(missing.name()).ok().and_then(field_id);
        if !id.is_some_and(|id| was_added_later(id, newest)) {
            return Ok(batch.clone());
        }
        if !is_nullable(missing) {
            return Err(changed(added_without_nulls(missing.name())));
        }
        misses_some = true;
    }
    match misses_some {
        true => with_nulls(batch, wanted),
        false => Ok(batch.clone()),
    }
}

/// The columns of `schema`, in its order: those that the batch has not are null, whatever they may be. Other columns of
/// the batch are left out.
pub(crate) fn with_nulls(batch: &RecordBatch, schema: &Schema) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let column = |field: &FieldRef| -> (FieldRef, ArrayRef) {
        match batch.schema_ref().column_with_name(field.name()) {
            Some((n, found)) => (Arc::new(found.clone()), Arc::clone(batch.column(n))),
            None => {
                let nullable = field.as_ref().clone().with_nullable(true);
                (Arc::new(nullable), new_null_array(field.data_type(), rows))
            }
        }
    };
    let (fields, columns): (Vec<FieldRef>, Vec<ArrayRef>) = schema.fields().iter().map(column).unzip();
    with_columns(&Arc::new(Schema::new(fields)), columns, rows)
}

/// Whether a column that rows do not have was added after they were written: Lance numbers columns in the order in which
/// they come.
fn was_added_later(id: i32, newest_of_theirs: i32) -> bool {
    id > newest_of_theirs
}

fn field_id(field: &Field) -> Option<i32> {
    field.metadata().get(LANCE_FIELD_ID_KEY)?.parse().ok()
}

fn another_of_that_name(name: &str, its: i32, now: i32) -> String {
    format!(
        "their column `{name}` (field {its}) is not the table's (field {now}): it was replaced by another one of that \
         name, or got another type"
    )
}

fn renamed(before: &str, now: &str) -> String {
    format!("their column `{before}` is called `{now}` now")
}

fn added_without_nulls(name: &str) -> String {
    format!("column `{name}` was added since, and may not be null")
}
