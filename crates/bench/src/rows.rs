//! The rows that every system writes, in the form that each takes.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use fencepost_sim::Rng;

use crate::Result;

/// How Lance is told the primary key of a dataset.
const LANCE_KEY: &str = "lance-schema:unenforced-primary-key";

/// The columns of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `id` (Int64, the key) and `text` of 100 random letters: 108 bytes.
    Text,
    /// `id`, `text` of some words, `vector` of so many 32-bit floats.
    Document { dimensions: usize },
}

/// Some rows: one batch for Fencepost and Lance, pairs of key and value for SlateDB.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub(crate) batch: RecordBatch,
    /// The same columns; its schema says which one is the key, as Lance wants it.
    pub(crate) lance: RecordBatch,
    pub(crate) pairs: Vec<(Bytes, Bytes)>,
}

impl Rows {
    pub(crate) fn len(&self) -> usize {
        self.batch.num_rows()
    }
}

impl Shape {
    pub(crate) fn schema(self) -> SchemaRef {
        self.schema_with_key(HashMap::new())
    }

    pub(crate) fn lance_schema(self) -> SchemaRef {
        self.schema_with_key(HashMap::from([(LANCE_KEY.to_owned(), "true".to_owned())]))
    }

    fn schema_with_key(self, metadata: HashMap<String, String>) -> SchemaRef {
        let mut fields = vec![
            Field::new("id", DataType::Int64, false).with_metadata(metadata),
            Field::new("text", DataType::Utf8, true),
        ];
        if let Self::Document { dimensions } = self {
            let item = Arc::new(Field::new("item", DataType::Float32, true));
            fields.push(Field::new("vector", DataType::FixedSizeList(item, dimensions as i32), true));
        }
        Arc::new(Schema::new(fields))
    }

    /// Rows with these ids.
    pub(crate) fn rows(self, ids: impl IntoIterator<Item = i64>) -> Result<Rows> {
        let ids: Vec<i64> = ids.into_iter().collect();
        let mut dice = Rng::new(ids.first().copied().unwrap_or_default() as u64);
        let texts: StringArray = ids.iter().map(|id| Some(self.text(*id, &mut dice))).collect();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(ids)), Arc::new(texts)];
        if let Self::Document { dimensions } = self {
            let count = columns.first().map_or(0, |ids| ids.len()) * dimensions;
            let values: Float32Array = (0..count).map(|_| dice.unit() as f32).collect();
            let item = Arc::new(Field::new("item", DataType::Float32, true));
            columns.push(Arc::new(FixedSizeListArray::try_new(item, dimensions as i32, Arc::new(values), None)?));
        }
        let batch = RecordBatch::try_new(self.schema(), columns.clone())?;
        let lance = RecordBatch::try_new(self.lance_schema(), columns)?;
        let pairs = pairs(&batch)?;
        Ok(Rows { batch, lance, pairs })
    }

    fn text(self, id: i64, dice: &mut Rng) -> String {
        match self {
            Self::Text => (0..100).map(|_| char::from(b'a' + (dice.unit() * 26.0) as u8 % 26)).collect(),
            Self::Document { .. } => format!("document {id} about topic {} and topic {}", id % 97, id % 1009),
        }
    }
}

/// A key of eight bytes, big end first, so that it sorts as the number does, and the other columns one behind the other.
fn pairs(batch: &RecordBatch) -> Result<Vec<(Bytes, Bytes)>> {
    let column = |name| batch.column_by_name(name).ok_or("a column is missing");
    let ids = column("id")?.as_primitive::<arrow_array::types::Int64Type>();
    let texts = column("text")?.as_string::<i32>();
    let vectors = batch.column_by_name("vector").map(|vectors| vectors.as_fixed_size_list());
    let pair = |row: usize| {
        let mut value = texts.value(row).as_bytes().to_vec();
        if let Some(vectors) = vectors {
            let floats = vectors.value(row);
            value.extend(floats.as_primitive::<Float32Type>().values().iter().flat_map(|x| x.to_le_bytes()));
        }
        (key(ids.value(row)), Bytes::from(value))
    };
    Ok((0..batch.num_rows()).map(pair).collect())
}

/// SlateDB's key of a row.
pub(crate) fn key(id: i64) -> Bytes {
    Bytes::copy_from_slice(&id.to_be_bytes())
}

/// Bytes of the rows themselves.
pub(crate) fn payload(rows: &[Rows]) -> usize {
    rows.iter().flat_map(|rows| &rows.pairs).map(|(key, value)| key.len() + value.len()).sum()
}
