//! Versions of the base table that stay: Lance's tags, which its cleanup respects. Who needs one is said by its name.

use std::collections::HashMap;

use lance::dataset::refs::TagContents;

use super::BaseTable;
use crate::error::{Error, Result};

impl BaseTable {
    /// Tags this version, and opens the tag: had the version been cleaned up in between, this would fail. The name is the
    /// caller's alone; a tag of it that is there is one whose answer was lost. `None`: somebody has given it up again meanwhile.
    ///
    /// # Errors
    /// Lance's; [`Error::Corrupt`] if the tag names another version.
    pub(crate) async fn keep(&self, tag: &str) -> Result<Option<Self>> {
        let failed = || Error::lance(format!("tagging a version of {}", self.store.describe(None)));
        match self.dataset.tags().create(tag, self.version()).await {
            Ok(()) | Err(lance::Error::RefConflict { .. }) => {}
            Err(error) => return Err(failed()(error)),
        }
        match self.at_tag(tag).await? {
            Some(kept) if kept.version() != self.version() => Err(Error::Corrupt {
                url: self.store.describe(None),
                reason: format!("its tag `{tag}` names version {}, and {} was tagged", kept.version(), self.version()),
            }),
            kept => Ok(kept),
        }
    }

    /// The version that a tag names; `None` if there is no such tag.
    pub(crate) async fn at_tag(&self, tag: &str) -> Result<Option<Self>> {
        let failed = || Error::lance(format!("opening the tag `{tag}` of {}", self.store.describe(None)));
        match self.dataset.checkout_version(tag).await {
            Ok(dataset) => Ok(Some(Self::of(&self.store, dataset, self.wal_store.clone()).await?)),
            Err(lance::Error::RefNotFound { .. }) => Ok(None),
            Err(error) => Err(failed()(error)),
        }
    }

    /// Gives a tag up, or finds it gone.
    pub(crate) async fn release(&self, tag: &str) -> Result<()> {
        match self.dataset.tags().delete(tag).await {
            Ok(()) | Err(lance::Error::RefNotFound { .. }) => Ok(()),
            Err(error) => {
                Err(Error::lance(format!("deleting the tag `{tag}` of {}", self.store.describe(None)))(error))
            }
        }
    }

    /// Every tag.
    pub(crate) async fn tags(&self) -> Result<HashMap<String, TagContents>> {
        let tags = self.dataset.tags().list().await;
        tags.map_err(Error::lance(format!("listing the tags of {}", self.store.describe(None))))
    }
}
