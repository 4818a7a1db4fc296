//! The base table's own indexes: bringing them up to date after a merge. Lance derives in every commit which merged
//! generations an index covers (`index_catchup` of the MemWAL index); nothing here adds to that record.

use lance::index::{DatasetIndexExt, DatasetIndexInternalExt};
use lance_index::is_system_index;
use lance_index::optimize::OptimizeOptions;

use super::BaseTable;
use crate::error::{Error, Result};

impl BaseTable {
    /// Adds what the indexes do not cover to them, in one commit, if there is anything. Returns the names of those
    /// that cover the whole table then.
    pub(crate) async fn optimize_indexes(&self) -> Result<Vec<String>> {
        let failed = || Error::lance(format!("optimizing the indexes of {}", self.store.describe(None)));
        let mut dataset = self.dataset.clone();
        dataset.optimize_indices(&OptimizeOptions::default()).await.map_err(failed())?;
        let indexes = dataset.load_indices().await.map_err(failed())?;
        let mut names: Vec<String> =
            indexes.iter().filter(|index| !is_system_index(index)).map(|index| index.name.clone()).collect();
        names.sort();
        names.dedup();
        let mut covering = Vec::with_capacity(names.len());
        for name in names {
            if dataset.unindexed_fragments(&name).await.map_err(failed())?.is_empty() {
                covering.push(name);
            }
        }
        Ok(covering)
    }
}
