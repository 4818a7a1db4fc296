//! Whether a table is there for everybody, and where it comes from: keys of the dataset's config.

use uuid::Uuid;

use super::BaseTable;
use crate::error::{Error, Result};

/// Absent: the table is ready.
pub(super) const STATE_KEY: &str = "fencepost.state";
/// Of a clone: the URLs of its source and of that one's sources, the nearest first, with spaces in between.
pub(super) const ORIGINS_KEY: &str = "fencepost.origins";
/// Of a clone: the checkpoint of its source that it was made of.
pub(super) const CHECKPOINT_KEY: &str = "fencepost.origin_checkpoint";

/// What may be done with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableState {
    /// Everything.
    Ready,
    /// It is a clone that is not finished: only that.
    Cloning,
    /// It is being deleted: only that.
    Deleting,
}

impl TableState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Cloning => "cloning",
            Self::Deleting => "deleting",
        }
    }
}

impl BaseTable {
    /// What may be done with the table.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a state that this Fencepost does not know.
    pub(crate) fn state(&self) -> Result<TableState> {
        let states = [TableState::Ready, TableState::Cloning, TableState::Deleting];
        match self.dataset.config().get(STATE_KEY).map(|text| text.split(' ').next().unwrap_or_default()) {
            None => Ok(TableState::Ready),
            Some(text) => states.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
                let place = self.store.describe(None);
                Error::NotSupported(format!(
                    "the table at {place} is `{text}`, which a newer Fencepost knows; use that"
                ))
            }),
        }
    }

    /// Fails unless the table is there for everybody.
    ///
    /// # Errors
    /// [`Error::TableNotReady`].
    pub(super) fn check_ready(&self) -> Result<()> {
        let reason = match self.state()? {
            TableState::Ready => return Ok(()),
            TableState::Cloning => {
                let source = self.origins().first().cloned().unwrap_or_default();
                format!("it is a clone of {source} that was not finished; run the same clone again, or delete it")
            }
            TableState::Deleting => {
                "it was deleted, and what is left of it stops whoever has stalled since before; choose another place, \
                or delete it with `--purge`, which asserts that nobody has"
                    .to_owned()
            }
        };
        Err(Error::TableNotReady { url: self.store.describe(None), reason })
    }

    /// Says that the table is being deleted, by whoever has this token, and by nobody else any more.
    pub(crate) async fn become_deleting(&self, token: Uuid) -> Result<Self> {
        let text = format!("{} {}", TableState::Deleting.as_str(), token.as_hyphenated());
        let latest = self.in_any_state().await?;
        let mut dataset = latest.dataset.clone();
        let committed = dataset.update_config([(STATE_KEY, text.as_str())]).await;
        let latest = latest.in_any_state().await?;
        match committed {
            _ if latest.deleter() == Some(token) => Ok(latest),
            Err(e) => Err(Error::lance(format!("marking {} as deleted", self.store.describe(None)))(e)),
            Ok(_) => Err(latest.deleted_by_another()),
        }
    }

    /// Takes back what [`become_deleting`](Self::become_deleting) said, if nobody has said it since. Lance refuses the change if somebody
    /// does at the same moment.
    pub(crate) async fn become_undeleted(&self, token: Uuid, state: TableState) -> Result<()> {
        let latest = self.in_any_state().await?;
        if latest.deleter() != Some(token) {
            return Err(latest.deleted_by_another());
        }
        let mut dataset = latest.dataset.clone();
        let committed = dataset.update_config([(STATE_KEY, state.as_str())]).await;
        match (latest.in_any_state().await?.state()?, committed) {
            (now, _) if now == state => Ok(()),
            (_, Err(e)) => Err(Error::lance(format!("taking back the deletion of {}", self.store.describe(None)))(e)),
            (_, Ok(_)) => Err(latest.deleted_by_another()),
        }
    }

    fn deleter(&self) -> Option<Uuid> {
        let (state, token) = self.dataset.config().get(STATE_KEY)?.split_once(' ')?;
        (state == TableState::Deleting.as_str()).then(|| Uuid::try_parse(token).ok()).flatten()
    }

    fn deleted_by_another(&self) -> Error {
        Error::NotSupported(format!(
            "the table at {} is being deleted by somebody else; run the deletion again",
            self.store.describe(None)
        ))
    }

    /// Commits another state.
    pub(crate) async fn become_state(&self, state: TableState) -> Result<Self> {
        let latest = self.in_any_state().await?;
        if latest.state()? == state {
            return Ok(latest);
        }
        let mut dataset = latest.dataset.clone();
        let committed = dataset.update_config([(STATE_KEY, state.as_str())]).await;
        // Of two who do it at once one is refused, and a lost answer looks the same: what the table says now counts.
        let latest = latest.in_any_state().await?;
        match committed {
            _ if latest.state()? == state => Ok(latest),
            Err(e) => Err(Error::lance(format!("marking {} as {}", self.store.describe(None), state.as_str()))(e)),
            Ok(_) => Err(Error::Corrupt {
                url: self.store.describe(None),
                reason: format!("its config lost the `{STATE_KEY}` that was just committed"),
            }),
        }
    }

    /// Where it was cloned from, and where that was: URLs, the nearest first. Empty: it is no clone.
    pub(crate) fn origins(&self) -> Vec<String> {
        let origins = self.dataset.config().get(ORIGINS_KEY);
        origins.map(|urls| urls.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
    }

    /// The checkpoint of its source that it was cloned from.
    pub(crate) fn origin_checkpoint(&self) -> Option<Uuid> {
        self.dataset.config().get(CHECKPOINT_KEY).and_then(|id| Uuid::try_parse(id).ok())
    }

    /// The table id; `None` for a table that Lance made and nobody adopted.
    pub(crate) fn table_id(&self) -> Option<Uuid> {
        self.table_id
    }
}
