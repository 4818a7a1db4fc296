//! Looking keys up in an SSTable's `_pk_index/`. It reads the pages of Lance's B-tree as `pk_index` writes them and
//! compares whole keys, for every type of key in the same way.

use std::fmt;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_row::{RowConverter, Rows, SortField};
use arrow_schema::DataType;
use lance::dataset::mem_wal::util::pk_index_path;
use lance_core::cache::LanceCache;
use lance_index::scalar::btree::BTREE_LOOKUP_NAME;
use lance_index::scalar::lance_format::LanceIndexStore;
use lance_index::scalar::{IndexReader, IndexStore};

use super::check::PAGES_NAME;
use super::key_columns::plain_keys;
use super::pk_index::{PAGE_ROWS, index_values};
use crate::error::{Error, Result, without_location};
use crate::lance_store::LanceStore;

/// Keys as the indexes of a table's SSTables know them.
pub(crate) struct IndexKeys {
    converter: RowConverter,
    data_type: DataType,
    rows: Rows,
}

impl IndexKeys {
    /// The keys of these rows, which have the key columns in the table's types.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`] if a key column is missing; [`Error::Arrow`] or [`Error::Lance`] for a type that is no key.
    pub(crate) fn of(batch: &RecordBatch, primary_key: &[String]) -> Result<Self> {
        let values = index_values(&plain_keys(batch, primary_key)?)?;
        let failed = || Error::arrow("encoding the keys of an index");
        let data_type = values.data_type().clone();
        let converter = RowConverter::new(vec![SortField::new(data_type.clone())]).map_err(failed())?;
        let rows = converter.convert_columns(&[values]).map_err(failed())?;
        Ok(Self { converter, data_type, rows })
    }

    fn key(&self, number: usize) -> Option<&[u8]> {
        (number < self.rows.num_rows()).then(|| self.rows.row(number).data())
    }

    fn encode(&self, column: &ArrayRef) -> Result<Rows, String> {
        let found = column.data_type();
        if *found != self.data_type || column.null_count() > 0 {
            return Err(format!("it holds {found}, the table's keys are {}", self.data_type));
        }
        self.converter.convert_columns(&[Arc::clone(column)]).map_err(|e| e.to_string())
    }
}

/// The least and the greatest key of every page, in order; `None` for an index of one page, where it is not needed.
pub(crate) struct PageRanges {
    pages: usize,
    ends: Option<(Rows, Rows)>,
}

impl PageRanges {
    /// The pages that may have one of these keys, each with the numbers of the keys.
    pub(crate) fn pages_of(&self, keys: &IndexKeys, numbers: &[usize]) -> Vec<(usize, Vec<usize>)> {
        let Some((least, greatest)) = &self.ends else {
            return vec![(0, numbers.to_vec())];
        };
        let mut pages: Vec<(usize, Vec<usize>)> = Vec::new();
        let mut of_key: Vec<(usize, usize)> = numbers
            .iter()
            .filter_map(|number| {
                let key = keys.key(*number)?;
                let page = partition(self.pages, |page| greatest.row(page).data() < key);
                (page < self.pages && least.row(page).data() <= key).then_some((page, *number))
            })
            .collect();
        of_key.sort_unstable();
        for (page, number) in of_key {
            match pages.last_mut().filter(|(last, _)| *last == page) {
                Some((_, numbers)) => numbers.push(number),
                None => pages.push((page, vec![number])),
            }
        }
        pages
    }

    /// The memory that it holds, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.ends.as_ref().map_or(0, |(least, greatest)| least.size() + greatest.size())
    }
}

/// The keys of one page in order, and where their rows are.
pub(crate) struct KeyPage {
    keys: Rows,
    positions: ArrayRef,
}

impl KeyPage {
    /// For each of these keys that the page has, its number and the position of its row in the SSTable.
    pub(crate) fn find(&self, keys: &IndexKeys, numbers: &[usize]) -> Vec<(usize, u64)> {
        let positions = self.positions.as_primitive::<UInt64Type>().values();
        let found = numbers.iter().filter_map(|number| {
            let key = keys.key(*number)?;
            let at = partition(self.keys.num_rows(), |row| self.keys.row(row).data() < key);
            let is_it = at < self.keys.num_rows() && self.keys.row(at).data() == key;
            Some((*number, *positions.get(at).filter(|_| is_it)?))
        });
        found.collect()
    }

    /// The memory that it holds, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.keys.size() + self.positions.get_array_memory_size()
    }
}

/// The first of `0..n` for which this is false; it must be true for all before and for none behind.
fn partition(n: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut start, mut end) = (0, n);
    while start < end {
        let middle = start + (end - start) / 2;
        match is_before(middle) {
            true => start = middle + 1,
            false => end = middle,
        }
    }
    start
}

/// The index of an SSTable of ours, as files.
pub(crate) struct KeyIndexFiles<'s> {
    store: &'s LanceStore,
    rel_dir: &'s str,
    index: LanceIndexStore,
}

impl<'s> KeyIndexFiles<'s> {
    /// `metadata` keeps what was read of the files' footers.
    pub(crate) async fn of(store: &'s LanceStore, rel_dir: &'s str, metadata: &Arc<LanceCache>) -> Result<Self> {
        let folder = pk_index_path(&store.path(Some(rel_dir)));
        let index = LanceIndexStore::new(store.object_store().await?, folder, Arc::clone(metadata));
        Ok(Self { store, rel_dir, index })
    }

    /// # Errors
    /// [`Error::Corrupt`] if the index is missing or does not hold such keys; [`Error::Lance`] if it cannot be read.
    pub(crate) async fn ranges(&self, keys: &IndexKeys) -> Result<PageRanges> {
        let rows = self.open(PAGES_NAME).await?.num_rows();
        let pages = rows.div_ceil(PAGE_ROWS);
        if pages <= 1 {
            return Ok(PageRanges { pages, ends: None });
        }
        let lookup = self.open(BTREE_LOOKUP_NAME).await?;
        let ends = lookup.read_range(0..lookup.num_rows(), None).await.map_err(self.failed(BTREE_LOOKUP_NAME))?;
        let damaged = |reason| self.damaged(BTREE_LOOKUP_NAME, reason);
        let [least, greatest, ..] = ends.columns() else {
            return Err(damaged(format!("it has {} columns", ends.num_columns())));
        };
        if ends.num_rows() != pages {
            return Err(damaged(format!("it knows {} pages, there are {pages}", ends.num_rows())));
        }
        let ends = (keys.encode(least).map_err(damaged)?, keys.encode(greatest).map_err(damaged)?);
        Ok(PageRanges { pages, ends: Some(ends) })
    }

    /// # Errors
    /// As [`ranges`](Self::ranges).
    pub(crate) async fn page(&self, keys: &IndexKeys, page: usize) -> Result<KeyPage> {
        let file = self.open(PAGES_NAME).await?;
        let rows = (page * PAGE_ROWS).min(file.num_rows())..((page + 1) * PAGE_ROWS).min(file.num_rows());
        let batch = file.read_range(rows, None).await.map_err(self.failed(PAGES_NAME))?;
        let damaged = |reason| self.damaged(PAGES_NAME, reason);
        let [values, positions] = batch.columns() else {
            return Err(damaged(format!("it has {} columns instead of 2", batch.num_columns())));
        };
        if positions.as_primitive_opt::<UInt64Type>().is_none() {
            return Err(damaged(format!("its positions are {}", positions.data_type())));
        }
        Ok(KeyPage { keys: keys.encode(values).map_err(damaged)?, positions: Arc::clone(positions) })
    }

    async fn open(&self, file: &str) -> Result<Arc<dyn IndexReader>> {
        match self.index.open_index_file(file).await {
            Err(error @ lance::Error::NotFound { .. }) => {
                let why = without_location(&error);
                Err(self.damaged(file, format!("it is missing, although its SSTable was written with it ({why})")))
            }
            opened => opened.map_err(self.failed(file)),
        }
    }

    fn path(&self, file: &str) -> String {
        self.store.describe(Some(&format!("{}/_pk_index/{file}", self.rel_dir)))
    }

    fn failed(&self, file: &str) -> impl FnOnce(lance::Error) -> Error {
        Error::lance(format!("reading {}", self.path(file)))
    }

    fn damaged(&self, file: &str, reason: String) -> Error {
        Error::Corrupt { url: self.path(file), reason: format!("{reason}; restore it from a copy") }
    }
}

impl fmt::Debug for IndexKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IndexKeys").field("keys", &self.rows.num_rows()).finish_non_exhaustive()
    }
}

impl fmt::Debug for PageRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageRanges").field("pages", &self.pages).finish_non_exhaustive()
    }
}

impl fmt::Debug for KeyPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPage").field("keys", &self.keys.num_rows()).finish_non_exhaustive()
    }
}
