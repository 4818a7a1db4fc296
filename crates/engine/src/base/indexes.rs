//! The base table's own indexes: which merged generations they cover, and bringing them up to date after a merge.
//! Lance derives in every commit what an index covers (`index_catchup` of the MemWAL index); nothing here adds to that
//! record.

use std::collections::{BTreeMap, BTreeSet};

use fencepost_wal::{Generation, ShardId};
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt};
use lance_index::is_system_index;
use lance_index::optimize::OptimizeOptions;

use super::{BaseTable, mem_wal_details};
use crate::error::{Error, Result};
use crate::index;

/// Up to which generation of each shard the base table's indexes cover what was merged. Until an index covers a
/// generation, a search by that index needs the generation's SSTable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IndexCoverage {
    by_index: BTreeMap<String, BTreeMap<ShardId, Generation>>,
}

impl IndexCoverage {
    /// The indexes that do not cover a merged generation yet. An index of which Lance's record says nothing covers
    /// nothing.
    pub(crate) fn lagging_behind(&self, shard: ShardId, generation: Generation) -> Vec<String> {
        let lags = |covered: &BTreeMap<ShardId, Generation>| covered.get(&shard).is_none_or(|upto| *upto < generation);
        self.by_index.iter().filter(|(_, covered)| lags(covered)).map(|(name, _)| name.clone()).collect()
    }

    /// For each index the highest generation of a shard that it covers; zero for none.
    pub(crate) fn of_shard(&self, shard: ShardId) -> BTreeMap<String, Generation> {
        let covered = |covered: &BTreeMap<ShardId, Generation>| covered.get(&shard).copied().unwrap_or_default();
        self.by_index.iter().map(|(name, upto)| (name.clone(), covered(upto))).collect()
    }
}

impl BaseTable {
    /// What the indexes of this version cover.
    pub(crate) async fn index_coverage(&self) -> Result<IndexCoverage> {
        let details = mem_wal_details(&self.store, &self.dataset).await?.unwrap_or_default();
        let covered = |name: &String| {
            let progress = details.index_catchup.iter().find(|progress| progress.index_name == *name);
            let generations = progress.into_iter().flat_map(|progress| &progress.caught_up_generations);
            generations.map(|upto| (ShardId::from_uuid(upto.shard_id), Generation::new(upto.generation))).collect()
        };
        let names = self.index_names().await.map_err(self.failed_with_indexes("reading"))?;
        Ok(IndexCoverage { by_index: names.into_iter().map(|name| (name.clone(), covered(&name))).collect() })
    }

    /// Adds what the indexes do not cover to them, in one commit, if there is anything. Returns the names of those
    /// that cover the whole table then. One of vectors waits for the first vector.
    pub(crate) async fn optimize_indexes(&self) -> Result<Vec<String>> {
        let mut optimized = self.clone();
        let mut names = self.index_names().await.map_err(self.failed_with_indexes("reading"))?;
        for index in self.secondary_indexes().await? {
            let can_be_trained = index::can_be_trained(&self.dataset, &index).await;
            if !can_be_trained.map_err(self.failed_with_indexes("optimizing"))? {
                names.remove(&index.name);
            }
        }
        let options = OptimizeOptions::default().index_names(names.into_iter().collect());
        let done = optimized.dataset.optimize_indices(&options).await;
        done.map_err(self.failed_with_indexes("optimizing"))?;
        let covering = async {
            let mut covering = Vec::new();
            for name in optimized.index_names().await? {
                if optimized.dataset.unindexed_fragments(&name).await?.is_empty() {
                    covering.push(name);
                }
            }
            Ok(covering)
        };
        covering.await.map_err(self.failed_with_indexes("reading"))
    }

    /// Each once, in order, without Lance's own.
    async fn index_names(&self) -> lance::Result<BTreeSet<String>> {
        let indexes = self.dataset.load_indices().await?;
        Ok(indexes.iter().filter(|index| !is_system_index(index)).map(|index| index.name.clone()).collect())
    }

    fn failed_with_indexes(&self, what: &str) -> impl FnOnce(lance::Error) -> Error {
        Error::lance(format!("{what} the indexes of {}", self.store.describe(None)))
    }
}
