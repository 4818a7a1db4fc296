//! The settings for writers that a table keeps, in its MemWAL index, where Lance keeps them too. What they mean is told
//! by `crate::defaults`.

use super::BaseTable;
use crate::config::WriterConfig;
use crate::defaults;
use crate::error::{Error, Result};

/// How often others may commit to the table while this is tried.
const MAX_ROUNDS: usize = 32;

impl BaseTable {
    /// The settings for writers as this version has them.
    ///
    /// # Errors
    /// [`Error::InvalidOptions`] for a value that cannot be read.
    pub(crate) fn writer_config(&self) -> Result<WriterConfig> {
        defaults::read(&self.writer_defaults, &self.store.describe(None))
    }

    /// Stores the settings of `config` for writers. Settings that are not known here stay as they are.
    pub(crate) async fn set_writer_defaults(&self, config: &WriterConfig) -> Result<Self> {
        let wanted = defaults::write(config);
        for _ in 0..MAX_ROUNDS {
            let base = self.refreshed().await?;
            let mut next = base.writer_defaults.as_ref().clone();
            next.retain(|key, _| !defaults::is_known(key));
            next.extend(wanted.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            if next == *base.writer_defaults {
                return Ok(base);
            }
            let set = next.clone();
            let latest =
                base.change_details("storing the writers' settings of", |all| all.writer_config_defaults = set).await?;
            if *latest.writer_defaults == next {
                return Ok(latest);
            }
        }
        Err(Error::NotSupported(format!(
            "the table at {} was committed to {MAX_ROUNDS} times while its settings for writers were stored; try again",
            self.store.describe(None)
        )))
    }
}
