//! A table's rows on their way in and out: the user's batches, the storage schema that log, MemTable and SSTables
//! share, and the primary key. Knows nothing of where rows are kept.

use std::borrow::Cow;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_buffer::BooleanBuffer;
use arrow_schema::{DataType, Field, FieldRef, Schema, SchemaRef};

use crate::base::BaseTable;
use crate::error::{Error, Result};
use crate::evolution;
use crate::key::{KeyEncoder, Keys};
use crate::sstable::{relabel, storage_schema};

/// The column that marks a deletion, last in the storage schema.
pub(crate) const TOMBSTONE: &str = "_tombstone";

/// The schemas of a table and the way between them. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RowFormat {
    pub(crate) user: SchemaRef,
    pub(crate) storage: SchemaRef,
    /// `None` for a table without a primary key.
    pub(crate) keys: Option<KeyEncoder>,
    pub(crate) primary_key: Arc<[String]>,
    /// The tombstone column of a put of one row.
    one_live: ArrayRef,
}

/// The tombstone column of rows that are none.
fn live(rows: usize) -> ArrayRef {
    Arc::new(BooleanArray::new(BooleanBuffer::new_unset(rows), None))
}

impl RowFormat {
    pub(crate) fn of(base: &BaseTable) -> Result<Self> {
        let user = Arc::clone(base.schema());
        let primary_key: Arc<[String]> = base.primary_key().into();
        let keys = match primary_key.is_empty() {
            true => None,
            false => Some(KeyEncoder::try_new(&user, &primary_key)?),
        };
        Ok(Self { storage: storage_schema(base.dataset()), user, keys, primary_key, one_live: live(1) })
    }

    /// The user's batch with the table's columns in the table's order: what a WAL-only log holds.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] that names the column: unknown, missing, of another type, or null where it may not be.
    pub(crate) fn check_put(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = self.columns_by_name(batch, &self.user)?;
        let columns = self.user.fields().iter().zip(&columns).map(|(to, column)| in_stored_form(column, to));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        for (field, column) in self.user.fields().iter().zip(&columns) {
            if !field.is_nullable()
                && let Some(nulls) = column.logical_nulls().filter(|nulls| nulls.null_count() > 0)
            {
                let row = nulls.iter().position(|valid| !valid).unwrap_or_default();
                let what = match self.primary_key.contains(field.name()) {
                    true => "primary-key column",
                    false => "non-nullable column",
                };
                return Err(Error::InvalidBatch(format!(
                    "the {what} `{}` is null in row {row} (counted from 0)",
                    field.name()
                )));
            }
        }
        labelled(&self.user, columns, batch.num_rows())
    }

    /// A checked batch as rows of the storage schema. One that was checked when the table had fewer columns has nulls in
    /// those that were added since.
    pub(crate) fn to_storage(&self, checked: &RecordBatch) -> Result<RecordBatch> {
        let rows = checked.num_rows();
        let checked = match checked.num_columns() < self.user.fields().len() {
            true => &evolution::with_nulls(checked, &self.user)?,
            false => checked,
        };
        let mut columns = checked.columns().to_vec();
        columns.push(if rows == 1 { Arc::clone(&self.one_live) } else { live(rows) });
        labelled(&self.storage, columns, rows)
    }

    /// A batch of keys with the table's types.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] for other columns than the key's or a null in a key; [`Error::NotSupported`] without a
    /// primary key.
    pub(crate) fn check_keys(&self, keys: &RecordBatch) -> Result<RecordBatch> {
        self.encode_keys(keys).map(|(keys, _)| keys.into_owned())
    }

    /// As [`check_keys`](Self::check_keys), with the bytes of each key.
    ///
    /// # Errors
    /// As [`check_keys`](Self::check_keys).
    pub(crate) fn encode_keys<'k>(&self, keys: &'k RecordBatch) -> Result<(Cow<'k, RecordBatch>, Keys)> {
        let Some(encoder) = &self.keys else {
            return Err(Error::NotSupported(
                "rows of a table without a primary key cannot be deleted; create the table with a primary key".into(),
            ));
        };
        let fields = keys.schema_ref().fields();
        if let Some(other) = fields.iter().find(|f| !self.primary_key.contains(f.name())) {
            return Err(Error::InvalidBatch(format!(
                "column `{}` is not part of the primary key ({}); pass the key columns only",
                other.name(),
                self.primary_key.join(", ")
            )));
        }
        let is_seen = |(n, field): &(usize, &FieldRef)| fields.iter().take(*n).any(|seen| seen.name() == field.name());
        if let Some((_, twice)) = fields.iter().enumerate().find(is_seen) {
            return Err(Error::InvalidBatch(format!("column `{}` appears twice", twice.name())));
        }
        let in_table = |field: &FieldRef| self.user.field_with_name(field.name()).ok();
        let differs = |field: &FieldRef| in_table(field).is_some_and(|to| field.data_type() != to.data_type());
        let keys = match fields.iter().any(differs) {
            false => Cow::Borrowed(keys),
            true => {
                let columns = fields.iter().zip(keys.columns()).map(|(field, column)| match in_table(field) {
                    Some(to) => in_stored_form(column, to),
                    None => Ok(Arc::clone(column)),
                });
                let columns = columns.collect::<Result<Vec<_>>>()?;
                Cow::Owned(with_columns(&unlabelled(keys.schema_ref(), &columns), columns, keys.num_rows())?)
            }
        };
        let encoded = encoder.encode(&keys)?;
        Ok((keys, encoded))
    }

    /// Checked keys as tombstones of the storage schema.
    pub(crate) fn tombstones(&self, keys: &RecordBatch) -> Result<RecordBatch> {
        let rows = keys.num_rows();
        let columns: Vec<ArrayRef> = self
            .storage
            .fields()
            .iter()
            .map(|field| match keys.column_by_name(field.name()) {
                Some(column) => Arc::clone(column),
                None if field.name() == TOMBSTONE => {
                    Arc::new(BooleanArray::new(BooleanBuffer::new_set(rows), None)) as ArrayRef
                }
                None => new_null_array(field.data_type(), rows),
            })
            .collect();
        labelled(&self.storage, columns, rows)
    }

    /// A batch from the log, written by a writer of either mode, as rows of the storage schema. Columns that were added
    /// to the table since are null.
    ///
    /// # Errors
    /// [`Error::SchemaChanged`] if the columns were changed in another way; [`Error::InvalidBatch`].
    pub(crate) fn log_rows(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        if Arc::ptr_eq(batch.schema_ref(), &self.storage) {
            return Ok(batch.clone());
        }
        let is_nullable = |field: &Field| self.user.field_with_name(field.name()).is_ok_and(Field::is_nullable);
        match batch.schema_ref().index_of(TOMBSTONE) {
            Ok(_) => {
                let batch = evolution::of_log(batch, &self.storage, &self.storage, is_nullable)?;
                let columns = self.columns_by_name(&batch, &self.storage)?;
                labelled(&self.storage, columns, batch.num_rows())
            }
            Err(_) => {
                self.to_storage(&self.check_put(&evolution::of_log(batch, &self.user, &self.storage, is_nullable)?)?)
            }
        }
    }

    fn columns_by_name(&self, batch: &RecordBatch, schema: &SchemaRef) -> Result<Vec<ArrayRef>> {
        let given = batch.schema_ref().fields();
        if given.len() == schema.fields().len() && given.iter().zip(schema.fields()).all(|(a, b)| a.name() == b.name())
        {
            return Ok(batch.columns().to_vec());
        }
        let known = || self.user.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ");
        let found = batch.schema_ref();
        for (n, field) in found.fields().iter().enumerate() {
            if schema.index_of(field.name()).is_err() {
                return Err(Error::InvalidBatch(format!(
                    "column `{}` is unknown; the table has the columns {}",
                    field.name(),
                    known()
                )));
            }
            if found.fields().iter().take(n).any(|earlier| earlier.name() == field.name()) {
                return Err(Error::InvalidBatch(format!("column `{}` appears twice", field.name())));
            }
        }
        let column = |name: &String| match batch.column_by_name(name) {
            Some(column) => Ok(Arc::clone(column)),
            None => {
                Err(Error::InvalidBatch(format!("column `{name}` is missing; the table has the columns {}", known())))
            }
        };
        schema.fields().iter().map(|field| column(field.name())).collect()
    }
}

/// The column in the table's type if it has the same values in another form. Lance stores strings and bytes without
/// views, and so does a table that was created with them: DataFusion, which makes views of everything, can write what
/// it has read. And a table's dictionaries have keys of 32 bits or more, whatever a batch needs.
fn in_stored_form(column: &ArrayRef, to: &Field) -> Result<ArrayRef> {
    match differ_in_form_only(column.data_type(), to.data_type()) {
        true => arrow_cast::cast(column, to.data_type())
            .map_err(|e| Error::InvalidBatch(format!("column `{}`: {e}", to.name()))),
        false => Ok(Arc::clone(column)),
    }
}

/// Whether the types differ, but only in views in the first where the second has none, and in keys of dictionaries.
fn differ_in_form_only(from: &DataType, to: &DataType) -> bool {
    fn same(from: &DataType, to: &DataType, differ: &mut bool) -> bool {
        use DataType::{
            Binary, BinaryView, Dictionary, FixedSizeList, LargeBinary, LargeList, LargeUtf8, List, Map, Struct, Utf8,
            Utf8View,
        };
        match (from, to) {
            (Utf8View, Utf8 | LargeUtf8) | (BinaryView, Binary | LargeBinary) => {
                *differ = true;
                true
            }
            (List(a), List(b)) | (LargeList(a), LargeList(b)) => same(a.data_type(), b.data_type(), differ),
            (FixedSizeList(a, n), FixedSizeList(b, m)) => n == m && same(a.data_type(), b.data_type(), differ),
            (Map(a, s), Map(b, t)) => s == t && same(a.data_type(), b.data_type(), differ),
            (Struct(a), Struct(b)) => {
                let mut fields = a.iter().zip(b);
                a.len() == b.len()
                    && fields.all(|(a, b)| a.name() == b.name() && same(a.data_type(), b.data_type(), differ))
            }
            (Dictionary(k, a), Dictionary(l, b)) => {
                *differ |= k != l;
                same(a, b, differ)
            }
            _ => from == to,
        }
    }
    let mut differ = false;
    same(from, to, &mut differ) && differ
}

/// A batch of these columns under a schema of the same shape, whose nested fields may differ in nullability and metadata.
fn labelled(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let mut pairs = schema.fields().iter().zip(&columns);
    match pairs.all(|(field, column)| field.data_type() == column.data_type()) {
        true => with_columns(schema, columns, rows),
        false => relabel(&with_columns(&unlabelled(schema, &columns), columns, rows)?, schema),
    }
}

/// The columns under the names of `schema`, with their own types, all nullable.
fn unlabelled(schema: &Schema, columns: &[ArrayRef]) -> SchemaRef {
    let fields = schema.fields().iter().zip(columns);
    let fields = fields.map(|(f, c)| f.as_ref().clone().with_data_type(c.data_type().clone()).with_nullable(true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A batch of these columns.
pub(crate) fn with_columns(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| Error::InvalidBatch(e.to_string()))
}
