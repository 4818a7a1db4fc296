//! What a search is asked for.

use datafusion::logical_expr::Expr;

use crate::index::{FullTextConfig, Metric};

/// The rows whose vectors are nearest to one.
#[derive(Debug, Clone)]
pub struct VectorQuery {
    pub(super) column: String,
    pub(super) vector: Vec<f32>,
    pub(super) k: usize,
    pub(super) metric: Option<Metric>,
    pub(super) filter: Option<Expr>,
    pub(super) columns: Option<Vec<String>>,
    pub(super) exact: bool,
    pub(super) effort: Option<usize>,
    pub(super) partitions: Option<usize>,
}

impl VectorQuery {
    /// The `k` rows whose vectors in `column` are nearest to `vector`.
    pub fn new(column: impl Into<String>, vector: Vec<f32>, k: usize) -> Self {
        Self {
            column: column.into(),
            vector,
            k,
            metric: None,
            filter: None,
            columns: None,
            exact: false,
            effort: None,
            partitions: None,
        }
    }

    /// How far two vectors are apart. Default: as the base table's index on the column has it, L2 without one.
    pub fn with_metric(self, metric: Metric) -> Self {
        Self { metric: Some(metric), ..self }
    }

    /// Only rows for which this is true; the `k` nearest of them.
    pub fn with_filter(self, filter: Expr) -> Self {
        Self { filter: Some(filter), ..self }
    }

    /// The columns of the answer; default all.
    pub fn with_columns<S: Into<String>>(self, columns: impl IntoIterator<Item = S>) -> Self {
        Self { columns: Some(columns.into_iter().map(Into::into).collect()), ..self }
    }

    /// Every vector is looked at, whatever indexes there are.
    pub fn exactly(self) -> Self {
        Self { exact: true, ..self }
    }

    /// Candidates that are kept while a graph is searched (`ef`). Default: at least 200, and twice as many as are wanted.
    pub fn with_effort(self, ef: usize) -> Self {
        Self { effort: Some(ef), ..self }
    }

    /// Partitions of an IVF index of the base table that are searched (`nprobes`). Default: Lance's.
    pub fn with_partitions(self, nprobes: usize) -> Self {
        Self { partitions: Some(nprobes), ..self }
    }
}

/// The rows whose texts match best.
#[derive(Debug, Clone)]
pub struct TextQuery {
    pub(super) column: String,
    pub(super) text: String,
    pub(super) k: usize,
    pub(super) all_words: bool,
    pub(super) filter: Option<Expr>,
    pub(super) columns: Option<Vec<String>>,
    pub(super) config: Option<FullTextConfig>,
}

impl TextQuery {
    /// The `k` rows whose text in `column` ranks highest for the words of `text`, any of them.
    pub fn new(column: impl Into<String>, text: impl Into<String>, k: usize) -> Self {
        Self {
            column: column.into(),
            text: text.into(),
            k,
            all_words: false,
            filter: None,
            columns: None,
            config: None,
        }
    }

    /// Only texts that have every word.
    pub fn with_all_words(self) -> Self {
        Self { all_words: true, ..self }
    }

    /// Only rows for which this is true. Scores are those that the rows have without it.
    pub fn with_filter(self, filter: Expr) -> Self {
        Self { filter: Some(filter), ..self }
    }

    /// The columns of the answer; default all.
    pub fn with_columns<S: Into<String>>(self, columns: impl IntoIterator<Item = S>) -> Self {
        Self { columns: Some(columns.into_iter().map(Into::into).collect()), ..self }
    }

    /// How texts become words. Default: as the base table's index on the column has it, Lance's defaults without one.
    pub fn with_settings(self, config: FullTextConfig) -> Self {
        Self { config: Some(config), ..self }
    }
}

/// The rows that rank best by vector and text together.
#[derive(Debug, Clone)]
pub struct HybridQuery {
    pub(super) vector: VectorQuery,
    pub(super) text: TextQuery,
    pub(super) k: usize,
    pub(super) rank_constant: u32,
}

impl HybridQuery {
    /// The `k` best rows of both searches, of each of which its own `k` are the candidates. Columns are those of the vector
    /// search.
    pub fn new(vector: VectorQuery, text: TextQuery, k: usize) -> Self {
        Self { vector, text, k, rank_constant: 60 }
    }

    /// The constant of the fusion: the higher, the less it matters to be first. Default 60.
    pub fn with_rank_constant(self, rank_constant: u32) -> Self {
        Self { rank_constant, ..self }
    }
}
