//! The table id: a random UUID in the dataset's config, from which the ids of shards derive. A table that Fencepost
//! creates has it from its first commit; one that Lance made gets it when it is adopted.

use lance::Dataset;
use uuid::Uuid;

use super::BaseTable;
use crate::error::{Error, Result};
use crate::lance_store::LanceStore;

/// The key of the dataset's config that holds the table id.
pub(super) const TABLE_ID_KEY: &str = "fencepost.table_id";

/// The table id; `None` if the table has none.
pub(super) fn table_id(store: &LanceStore, dataset: &Dataset) -> Result<Option<Uuid>> {
    let Some(text) = dataset.config().get(TABLE_ID_KEY) else {
        return Ok(None);
    };
    Uuid::parse_str(text).map(Some).map_err(|e| Error::Corrupt {
        url: store.describe(None),
        reason: format!("its config has `{TABLE_ID_KEY}` = `{text}`, which is not a UUID: {e}"),
    })
}

impl BaseTable {
    /// Whether the ids of new shards can be derived.
    pub(crate) fn has_table_id(&self) -> bool {
        self.table_id.is_some()
    }

    /// The latest version of the table, with a table id: the one that it has, or a fresh one.
    ///
    /// # Errors
    /// Lance's, if the config cannot be changed.
    pub(crate) async fn with_table_id(&self) -> Result<Self> {
        let latest = self.refreshed().await?;
        if latest.has_table_id() {
            return Ok(latest);
        }
        let mut dataset = latest.dataset.clone();
        let committed = dataset.update_config([(TABLE_ID_KEY, Uuid::new_v4().to_string().as_str())]).await;
        // Lance refuses the second of two changes of one key, so of two who adopt at once one wins. A lost answer
        // looks the same: what the table says now counts.
        let latest = latest.refreshed().await?;
        match (latest.has_table_id(), committed) {
            (true, _) => Ok(latest),
            (false, Err(e)) => Err(Error::lance(format!("giving {} a table id", self.store.describe(None)))(e)),
            (false, Ok(_)) => Err(Error::Corrupt {
                url: self.store.describe(None),
                reason: format!("its config lost the `{TABLE_ID_KEY}` that was just committed"),
            }),
        }
    }
}
