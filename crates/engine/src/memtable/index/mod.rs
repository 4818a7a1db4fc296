//! The secondary indexes of a MemTable. They follow its rows: a background task brings them up to date beside the PUTs
//! of later rows, and whoever asks one first lets it catch up with the rows of his snapshot, or searches the rest
//! exactly. So an acknowledged row is found by every index, no append waits for one, and a replay indexes a row once.
//!
//! An index never forgets a row. Which of the rows it names are the newest of their keys at a moment is the primary-key
//! index's to say.

mod btree;
mod text;
mod vector;

use std::sync::Arc;

use arrow_array::{Float32Array, RecordBatch};
use arrow_schema::Schema;
use parking_lot::RwLock;

use self::btree::BTree;
pub(crate) use self::btree::ValueRange;
use self::text::Text;
pub(crate) use self::text::{count_words, query_words, text_at};
pub(crate) use self::vector::Nearby;
use self::vector::Vectors;
use super::batch_store::BatchView;
use crate::error::{Error, Result};
use crate::index::{FullTextConfig, IndexConfig, IndexKind, Metric};

/// The secondary indexes that a shard's MemTables have. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct IndexSet {
    configs: Arc<[IndexConfig]>,
}

impl IndexSet {
    /// These indexes, on columns of the storage schema.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if one cannot be on its column, or two have one name.
    pub(crate) fn try_new(configs: Vec<IndexConfig>, schema: &Schema) -> Result<Self> {
        for (n, config) in configs.iter().enumerate() {
            config.validate(schema)?;
            if configs.iter().take(n).any(|earlier| earlier.name == config.name) {
                return Err(Error::InvalidOptions(format!("two indexes are named `{}`", config.name)));
            }
        }
        Ok(Self { configs: configs.into() })
    }

    /// Refuses rows that an index could never find.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] that names index, column and row.
    pub(crate) fn check_rows(&self, batch: &RecordBatch) -> Result<()> {
        self.configs.iter().try_for_each(|config| config.check_rows(batch))
    }

    /// The indexes.
    pub(crate) fn configs(&self) -> &[IndexConfig] {
        &self.configs
    }
}

/// The indexes of one MemTable.
pub(crate) struct Indexes {
    list: Vec<Index>,
}

struct Index {
    config: IndexConfig,
    column: usize,
    kind: Kind,
}

enum Kind {
    BTree(RwLock<UpTo<BTree>>),
    Text(RwLock<UpTo<Text>>),
    /// Its rows that have been handed over.
    Vector(Vectors, RwLock<u32>),
}

/// An index of the rows below a number.
struct UpTo<T> {
    rows: u32,
    index: T,
}

impl Indexes {
    /// Empty indexes for a MemTable with this schema.
    pub(super) fn new(set: &IndexSet, schema: &Schema) -> Self {
        // What a set has was validated; an index that cannot be made here is none that reads could use.
        let list = set.configs().iter().filter_map(|config| Index::try_new(config, schema).ok());
        Self { list: list.collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Indexes the rows of a view that are not indexed yet.
    pub(super) fn catch_up(&self, view: &BatchView) -> Result<()> {
        self.list.iter().try_for_each(|index| index.catch_up(view))
    }

    /// The memory of each, in bytes.
    pub(super) fn memory_bytes(&self) -> Vec<(&str, usize)> {
        self.list.iter().map(|index| (index.config.name.as_str(), index.memory_bytes())).collect()
    }

    fn on(&self, column: &str, wanted: impl Fn(&IndexKind) -> bool) -> Option<&Index> {
        self.list.iter().find(|index| index.config.column == column && wanted(&index.config.kind))
    }

    /// The rows of a view whose value in a column is in one of the ranges; `None` without a B-tree on it.
    pub(super) fn in_ranges(&self, view: &BatchView, column: &str, ranges: &[ValueRange]) -> Result<Option<Vec<u32>>> {
        let Some(index) = self.on(column, |kind| matches!(kind, IndexKind::BTree)) else {
            return Ok(None);
        };
        index.catch_up(view)?;
        match &index.kind {
            Kind::BTree(tree) => tree.read().index.in_ranges(ranges, row_number(view.rows())).map(Some),
            _ => Ok(None),
        }
    }

    /// The nearest rows of a view as far as the graph has them; see [`Vectors::nearest`]. `None` without such a graph.
    pub(super) fn nearest(
        &self,
        view: &BatchView,
        column: &str,
        metric: Metric,
        query: &Float32Array,
        count: usize,
    ) -> Result<Option<Nearby>> {
        let same = |kind: &IndexKind| matches!(kind, IndexKind::Vector(config) if config.metric == metric);
        match self.on(column, same).map(|index| &index.kind) {
            Some(Kind::Vector(vectors, _)) if vectors.rows() > 0 => {
                vectors.nearest(query, count, row_number(view.rows())).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// For each word the rows of a view that have it and how often, then for each row of a view with a text its length.
    /// `None` without a full-text index with the same settings.
    pub(super) fn text(
        &self,
        view: &BatchView,
        column: &str,
        config: &FullTextConfig,
        words: &[String],
    ) -> Result<Option<TextMatches>> {
        let same = |kind: &IndexKind| matches!(kind, IndexKind::FullText(found) if found == config);
        let Some(index) = self.on(column, same) else {
            return Ok(None);
        };
        index.catch_up(view)?;
        let Kind::Text(text) = &index.kind else {
            return Ok(None);
        };
        let end = row_number(view.rows());
        let text = text.read();
        let rows = words.iter().map(|word| {
            let postings = text.index.postings(word);
            let pairs =
                postings.into_iter().flat_map(|found| found.rows.iter().copied().zip(found.counts.iter().copied()));
            pairs.take_while(|(row, _)| *row < end).collect()
        });
        let rows = rows.collect();
        let lengths = (0..end).map(|row| text.index.length(row)).collect();
        Ok(Some(TextMatches { rows, lengths }))
    }
}

/// What a full-text index says about the words of a query.
pub(crate) struct TextMatches {
    /// For each word the rows that have it, in row order, and how often.
    pub(crate) rows: Vec<Vec<(u32, u32)>>,
    /// For each row how many words its text has; `None` without a text.
    pub(crate) lengths: Vec<Option<u32>>,
}

impl Index {
    fn try_new(config: &IndexConfig, schema: &Schema) -> Result<Self> {
        let failed = || Error::arrow(format!("making index `{}`", config.name));
        let column = schema.index_of(&config.column).map_err(failed())?;
        let field = schema.field(column);
        let kind = match &config.kind {
            IndexKind::BTree => Kind::BTree(RwLock::new(UpTo { rows: 0, index: BTree::new(field.data_type())? })),
            IndexKind::FullText(text) => Kind::Text(RwLock::new(UpTo { rows: 0, index: Text::new(text)? })),
            IndexKind::Vector(vector) => Kind::Vector(Vectors::new(field, vector), RwLock::new(0)),
        };
        Ok(Self { config: config.clone(), column, kind })
    }

    fn catch_up(&self, view: &BatchView) -> Result<()> {
        let end = row_number(view.rows());
        match &self.kind {
            Kind::BTree(tree) => {
                if tree.read().rows >= end {
                    return Ok(());
                }
                let mut tree = tree.write();
                for (first, column) in view.columns_from(tree.rows, self.column) {
                    tree.index.add(first, &column)?;
                    tree.rows = first + row_number(column.len());
                }
            }
            Kind::Text(text) => {
                if text.read().rows >= end {
                    return Ok(());
                }
                let mut text = text.write();
                for (first, column) in view.columns_from(text.rows, self.column) {
                    text.index.add(first, &column);
                    text.rows = first + row_number(column.len());
                }
            }
            Kind::Vector(vectors, handed_over) => {
                let mut handed_over = handed_over.write();
                for (first, column) in view.columns_from(*handed_over, self.column) {
                    vectors.add(&column)?;
                    *handed_over = first + row_number(column.len());
                }
            }
        }
        Ok(())
    }

    fn memory_bytes(&self) -> usize {
        match &self.kind {
            Kind::BTree(tree) => tree.read().index.memory_bytes(),
            Kind::Text(text) => text.read().index.memory_bytes(),
            Kind::Vector(vectors, _) => vectors.memory_bytes(),
        }
    }
}

/// Rows of a MemTable are numbered with 32 bits here: its limits are far below.
fn row_number(row: usize) -> u32 {
    u32::try_from(row).unwrap_or(u32::MAX)
}
