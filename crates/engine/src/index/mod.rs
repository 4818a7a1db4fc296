//! What a secondary index is: its name, its column, and how it finds rows. The same description makes the index of a
//! MemTable, of an SSTable and of the base table.

mod dataset;

use std::fmt;
use std::str::FromStr;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use lance_index::scalar::InvertedIndexParams;
use lance_index::scalar::inverted::tokenizer::document_tokenizer::LanceTokenizer;
use lance_linalg::distance::DistanceType;

pub(crate) use self::dataset::{build, can_be_trained, of_dataset, params};
use crate::error::{Error, Result};

/// A secondary index of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexConfig {
    /// Its name, unique in the table.
    pub name: String,
    /// The top-level column that it is on.
    pub column: String,
    /// How it finds rows.
    pub kind: IndexKind,
}

/// The kinds of secondary indexes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum IndexKind {
    /// Values in order, for equality and ranges: integers, floats, decimals, dates and times, booleans, strings, binary.
    BTree,
    /// Words, ranked by BM25: a string column.
    FullText(FullTextConfig),
    /// Nearest neighbours: a fixed size list of f32 or f16.
    Vector(VectorConfig),
}

/// How text becomes words. The default is Lance's: words are split at blanks and punctuation, made lower case, stemmed in
/// English and folded to ASCII; stop words and words of more than 40 bytes are left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FullTextConfig {
    pub(crate) params: InvertedIndexParams,
}

impl FullTextConfig {
    /// Lance's own description, of which there is more than the methods here set.
    pub fn of_lance(params: InvertedIndexParams) -> Self {
        Self { params }
    }

    /// What splits text: `simple`, `whitespace`, `raw`, `ngram`, or another of Lance's `base_tokenizer`s.
    pub fn with_tokenizer(self, name: impl Into<String>) -> Self {
        Self { params: self.params.base_tokenizer(name.into()) }
    }

    /// The language of stems and stop words, for example `English`.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] for a language that Lance does not know.
    pub fn with_language(self, language: &str) -> Result<Self> {
        let params = self.params.language(language);
        let params = params.map_err(|e| Error::InvalidOptions(format!("full-text language `{language}`: {e}")))?;
        Ok(Self { params })
    }

    /// Whether words are cut down to their stems.
    pub fn with_stemming(self, stem: bool) -> Self {
        Self { params: self.params.stem(stem) }
    }

    /// Also stop words are words.
    pub fn keeping_stop_words(self) -> Self {
        Self { params: self.params.remove_stop_words(false) }
    }

    /// What splits text with these settings.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] for settings that Lance refuses.
    pub(crate) fn tokenizer(&self) -> Result<Box<dyn LanceTokenizer>> {
        self.params.build().map_err(|e| Error::InvalidOptions(format!("full-text settings: {e}")))
    }
}

/// How far two vectors are apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Metric {
    /// The square of the Euclidean distance, as Lance has it.
    #[default]
    L2,
    /// 1 minus the cosine of the angle; in 0 to 2.
    Cosine,
    /// 1 minus the dot product; may be negative.
    Dot,
}

impl Metric {
    pub(crate) fn of_lance(metric: DistanceType) -> Option<Self> {
        match metric {
            DistanceType::L2 => Some(Self::L2),
            DistanceType::Cosine => Some(Self::Cosine),
            DistanceType::Dot => Some(Self::Dot),
            _ => None,
        }
    }

    pub(crate) fn to_lance(self) -> DistanceType {
        match self {
            Self::L2 => DistanceType::L2,
            Self::Cosine => DistanceType::Cosine,
            Self::Dot => DistanceType::Dot,
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L2 => "l2",
            Self::Cosine => "cosine",
            Self::Dot => "dot",
        })
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "l2" | "euclidean" => Ok(Self::L2),
            "cosine" => Ok(Self::Cosine),
            "dot" => Ok(Self::Dot),
            _ => Err(Error::InvalidOptions(format!("`{text}` is no metric; use l2, cosine or dot"))),
        }
    }
}

/// A vector index: exact search of few vectors, a graph of more ([HNSW](https://arxiv.org/abs/1603.09320)).
#[derive(Debug, Clone, PartialEq)]
pub struct VectorConfig {
    /// How far two vectors are apart.
    pub metric: Metric,
    /// Up to this many rows of a MemTable are searched exactly, without a graph. Default 8,192.
    pub exact_rows: usize,
    /// Neighbours of a node of the graph on each level (M). Default 20.
    pub num_edges: usize,
    /// Candidates that are looked at when a node is put into the graph. Default 150.
    pub ef_construction: usize,
}

impl Default for VectorConfig {
    fn default() -> Self {
        Self { metric: Metric::default(), exact_rows: 8192, num_edges: 20, ef_construction: 150 }
    }
}

impl VectorConfig {
    /// The defaults, with this metric.
    pub fn new(metric: Metric) -> Self {
        Self { metric, ..Self::default() }
    }
}

impl IndexConfig {
    /// A B-tree named `{column}_idx`, as Lance names it.
    pub fn btree(column: impl Into<String>) -> Self {
        Self::named_after(column.into(), IndexKind::BTree)
    }

    /// A full-text index named `{column}_idx`.
    pub fn full_text(column: impl Into<String>, config: FullTextConfig) -> Self {
        Self::named_after(column.into(), IndexKind::FullText(config))
    }

    /// A vector index named `{column}_idx`.
    pub fn vector(column: impl Into<String>, config: VectorConfig) -> Self {
        Self::named_after(column.into(), IndexKind::Vector(config))
    }

    fn named_after(column: String, kind: IndexKind) -> Self {
        Self { name: format!("{column}_idx"), column, kind }
    }

    /// The same index under another name.
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// What kind it is, for messages.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self.kind {
            IndexKind::BTree => "B-tree",
            IndexKind::FullText(_) => "full-text",
            IndexKind::Vector(_) => "vector",
        }
    }

    /// Refuses an index that cannot be on its column.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] that names index and column.
    pub(crate) fn validate(&self, schema: &Schema) -> Result<()> {
        let Self { name, column, .. } = self;
        let kind = self.kind_name();
        let Ok(field) = schema.field_with_name(column) else {
            return Err(Error::InvalidOptions(format!("index `{name}`: the table has no column `{column}`")));
        };
        let wrong_type = |needs: &str| {
            let found = field.data_type();
            Error::InvalidOptions(format!("index `{name}`: a {kind} index needs {needs}; `{column}` is {found}"))
        };
        match &self.kind {
            IndexKind::BTree if !is_ordered(field.data_type()) => {
                Err(wrong_type("a column of numbers, dates or times, booleans, strings or binary"))
            }
            IndexKind::BTree => Ok(()),
            IndexKind::FullText(config) => match field.data_type() {
                DataType::Utf8 | DataType::LargeUtf8 => config.tokenizer().map(drop),
                _ => Err(wrong_type("a column of strings")),
            },
            IndexKind::Vector(config) => {
                if vector_dimension(field).is_none() {
                    return Err(wrong_type("a fixed size list of f32 or f16"));
                }
                match config.num_edges == 0 || config.ef_construction == 0 {
                    true => Err(Error::InvalidOptions(format!(
                        "index `{name}`: `num_edges` and `ef_construction` must be 1 or more"
                    ))),
                    false => Ok(()),
                }
            }
        }
    }

    /// Refuses rows that the index could never find.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] that names index, column and row.
    pub(crate) fn check_rows(&self, batch: &RecordBatch) -> Result<()> {
        let IndexKind::Vector(config) = &self.kind else {
            return Ok(());
        };
        let Some(vectors) = batch.column_by_name(&self.column).and_then(|column| column.as_fixed_size_list_opt())
        else {
            return Ok(());
        };
        let dimension = usize::try_from(vectors.value_length()).unwrap_or_default();
        let refuse = |row: usize, what: &str| {
            Err(Error::InvalidBatch(format!(
                "the vector in column `{}`, row {row} (counted from 0), {what}, so index `{}` could not find it; leave \
                 it null, or put a proper one",
                self.column, self.name
            )))
        };
        let values = vectors.values();
        let fault = |vector: ArrayRef| match vector.data_type() {
            _ if vector.null_count() > 0 => Some("has a null in it"),
            DataType::Float16 => config.fault(vector.as_primitive::<Float16Type>().values().iter().map(|v| v.to_f32())),
            DataType::Float32 => config.fault(vector.as_primitive::<Float32Type>().values().iter().copied()),
            _ => None,
        };
        for row in (0..vectors.len()).filter(|row| vectors.is_valid(*row)) {
            let start = usize::try_from(vectors.value_offset(row)).unwrap_or_default();
            if let Some(what) = fault(values.slice(start, dimension)) {
                return refuse(row, what);
            }
        }
        Ok(())
    }
}

impl VectorConfig {
    /// Why a vector could not be found.
    fn fault(&self, values: impl Iterator<Item = f32>) -> Option<&'static str> {
        let (mut finite, mut zero) = (true, true);
        for value in values {
            finite &= value.is_finite();
            zero &= value == 0.0;
        }
        match (finite, zero && self.metric == Metric::Cosine) {
            (false, _) => Some("has a value that is not finite"),
            (true, true) => Some("is zero and has no direction"),
            (true, false) => None,
        }
    }
}

/// The length of the vectors of a column that a vector index can be on.
pub(crate) fn vector_dimension(field: &Field) -> Option<usize> {
    match field.data_type() {
        DataType::FixedSizeList(item, length)
            if *length > 0 && matches!(item.data_type(), DataType::Float32 | DataType::Float16) =>
        {
            usize::try_from(*length).ok()
        }
        _ => None,
    }
}

/// What Lance's B-tree and `arrow_row` order alike.
fn is_ordered(data_type: &DataType) -> bool {
    let text = matches!(
        data_type,
        DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary
    );
    text || data_type.is_integer()
        || data_type.is_floating()
        || data_type.is_temporal()
        || matches!(data_type, DataType::Decimal128(..) | DataType::Decimal256(..))
}
