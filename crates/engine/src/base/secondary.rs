//! The base table's secondary indexes: making and dropping one, and which of them writers maintain for rows that are not
//! merged yet.

use lance::index::DatasetIndexExt;

use super::{BaseTable, mem_wal_details};
use crate::error::{Error, Result};
use crate::index::{self, IndexConfig};
use crate::lance_store::quoted;

impl BaseTable {
    /// The indexes of this version that are of one of our kinds.
    pub(crate) async fn secondary_indexes(&self) -> Result<Vec<IndexConfig>> {
        index::of_dataset(&self.dataset).await
    }

    /// Those of them that MemTables and SSTables are to have too, as the MemWAL index says.
    pub(crate) async fn maintained_indexes(&self) -> Result<Vec<IndexConfig>> {
        let details = mem_wal_details(&self.store, &self.dataset).await?.unwrap_or_default();
        let mut indexes = self.secondary_indexes().await?;
        for name in details.maintained_indexes.iter().filter(|name| indexes.iter().all(|known| known.name != **name)) {
            // Reads rely on no index, so rows are found without it.
            tracing::warn!(index = %name, table = %self.store.describe(None), "a maintained index cannot be maintained");
        }
        indexes.retain(|index| details.maintain_all_indexes || details.maintained_indexes.contains(&index.name));
        Ok(indexes)
    }

    /// Makes an index in one commit. On a table without rows, or of vectors without any, it is only declared; what is merged
    /// fills it when indexes are optimized.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if it cannot be on its column, or the name is taken.
    pub(crate) async fn create_index(&self, index: &IndexConfig) -> Result<()> {
        index.validate(&self.schema)?;
        let place = self.store.describe(None);
        let failed = || Error::lance(format!("making index `{}` of {place}", index.name));
        let mut dataset = self.dataset.clone();
        let taken = dataset.load_indices_by_name(&index.name).await.map_err(failed())?;
        if !taken.is_empty() {
            return Err(Error::InvalidOptions(format!(
                "the table at {place} has an index `{}` already; drop it, or choose another name",
                index.name
            )));
        }
        let (_, rows) = self.version_and_rows().await?;
        let train = rows > 0 && index::can_be_trained(&dataset, index).await.map_err(failed())?;
        let (index_type, params) = index::params(index, usize::try_from(rows).unwrap_or(usize::MAX));
        let column = quoted(&index.column);
        let columns = [column.as_str()];
        let builder = dataset.create_index_builder(&columns, index_type, params.as_ref());
        builder.name(index.name.clone()).train(train).await.map_err(failed())?;
        Ok(())
    }

    /// Drops an index, whatever its kind, in one commit.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] if there is none of this name.
    pub(crate) async fn drop_index(&self, name: &str) -> Result<()> {
        let place = self.store.describe(None);
        let failed = || Error::lance(format!("dropping index `{name}` of {place}"));
        let mut dataset = self.dataset.clone();
        let found = dataset.load_indices_by_name(name).await.map_err(failed())?;
        if found.is_empty() || found.iter().any(lance_index::is_system_index) {
            return Err(Error::InvalidOptions(format!("the table at {place} has no index `{name}`")));
        }
        dataset.drop_index(name).await.map_err(failed())
    }
}
