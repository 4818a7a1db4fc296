//! The number of buckets of a table, and how it changes: one commit of the MemWAL index, which nobody's merge, nobody's abandonment and no
//! second attempt can come in between. Which shards belong to which layout is told here, too; how they are made is
//! `crate::reshard`'s.

use std::cmp::Ordering;

use fencepost_wal::{ShardFieldEntry, ShardId, ShardManifest, ShardStatus};
use uuid::Uuid;

use super::{BaseTable, shard_ids};
use crate::error::{Error, Result};

/// The split or join that is under way: `{spec id} {buckets} {token}`; or `none {spec id}`, the number of the last one. A number is never given
/// twice: a shard that an attempt has left, or makes after it was given up, is of no layout that ever comes to be.
pub(super) const RESHARDING_KEY: &str = "fencepost.resharding";
const NONE: &str = "none";

/// A split or a join that was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resharding {
    /// The number of the spec that the table is to have. No shard of another attempt has it.
    pub(crate) spec_id: u32,
    /// Its number of buckets.
    pub(crate) buckets: u32,
    /// Random: one attempt is not taken for another.
    pub(crate) token: Uuid,
}

impl BaseTable {
    /// The number of the sharding spec.
    pub(crate) fn spec_id(&self) -> u32 {
        self.spec.id()
    }

    /// Whether a shard is one of this version's layout. Those of an earlier one are sealed for good; those of a later one, or of one that never
    /// came to be, are nobody's yet. Of shards that no split has made or left nothing is told here.
    pub(crate) fn is_of_layout(&self, manifest: &ShardManifest) -> bool {
        let (ours, its) = (self.spec_id(), manifest.shard_spec_id);
        match its.cmp(&ours) {
            Ordering::Equal => true,
            Ordering::Greater => manifest.origin().is_none() || manifest.table_id().is_none(),
            Ordering::Less => manifest.status == ShardStatus::Active || self.spec.layout() == 0,
        }
    }

    /// The split or join that is under way.
    pub(crate) fn resharding(&self) -> Option<Resharding> {
        let mut words = self.dataset.config().get(RESHARDING_KEY)?.split(' ');
        let (spec_id, buckets, token) = (words.next()?, words.next()?, words.next()?);
        Some(Resharding {
            spec_id: spec_id.parse().ok()?,
            buckets: buckets.parse().ok()?,
            token: Uuid::try_parse(token).ok()?,
        })
    }

    /// The highest number that an attempt has had.
    pub(crate) fn last_attempt(&self) -> u32 {
        let text = self.dataset.config().get(RESHARDING_KEY).map_or("", String::as_str);
        let number = text.strip_prefix(NONE).unwrap_or(text).split_whitespace().next();
        number.and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Begins an attempt in the layout of this version. `None`: somebody else has begun one, or has switched; look again.
    pub(crate) async fn begin_resharding(&self, attempt: Resharding) -> Result<Option<Self>> {
        let text = format!("{} {} {}", attempt.spec_id, attempt.buckets, attempt.token.as_hyphenated());
        let latest = self.with_resharding(&text).await?;
        // What this attempt does it does after this look, so what came in between is seen here.
        let is_ours = latest.resharding() == Some(attempt) && latest.spec_id() == self.spec_id();
        Ok((is_ours && attempt.spec_id > latest.spec_id()).then_some(latest))
    }

    /// Ends an attempt, whether it came to its switch or not. A switch that is prepared for an earlier version fails from then on. False: it is not
    /// under way (any more), and what is is somebody else's.
    pub(crate) async fn end_resharding(&self, attempt: Resharding) -> Result<(Self, bool)> {
        let latest = self.refreshed().await?;
        if latest.resharding() != Some(attempt) {
            return Ok((latest, false));
        }
        let latest = latest.with_resharding(&format!("{NONE} {}", attempt.spec_id)).await?;
        match latest.resharding() == Some(attempt) {
            true => Err(Error::NotSupported(format!(
                "the split or join of {} could not be ended, because others commit to it; try again",
                self.store.describe(None)
            ))),
            false => Ok((latest, true)),
        }
    }

    /// Commits the key on top of this version. Lance refuses it if somebody else has changed that since, and a lost answer looks the same: what
    /// the table says now counts.
    async fn with_resharding(&self, text: &str) -> Result<Self> {
        let mut dataset = self.dataset.clone();
        let committed = dataset.update_config([(RESHARDING_KEY, text)]).await;
        let latest = self.refreshed().await?;
        match committed {
            Err(e) if latest.version() == self.version() => {
                Err(Error::lance(format!("beginning or ending to reshard {}", self.store.describe(None)))(e))
            }
            _ => Ok(latest),
        }
    }

    /// The entries of a shard's manifest that say which bucket it has in the layout of an attempt.
    pub(crate) fn bucket_entries(&self, bucket: u32) -> Vec<ShardFieldEntry> {
        self.spec.bucket_entries(bucket)
    }

    /// The id of a bucket's shard in the layout of an attempt.
    ///
    /// # Errors
    /// [`Error::NotSupported`] for a table that was not adopted.
    pub(crate) fn id_in_attempt(&self, attempt: Resharding, bucket: u32) -> Result<ShardId> {
        let value = crate::sharding::ShardValue::Bucket(bucket);
        let derived = self.table_id.and_then(|id| shard_ids::shard_id_for(id, attempt.spec_id, &value));
        derived.ok_or_else(|| self.not_adopted(&value))
    }

    /// The switch: on top of exactly this version, the table has the attempt's buckets, and nothing of the new shards is merged. `None`:
    /// somebody has committed meanwhile.
    pub(crate) async fn switch(&self, attempt: Resharding) -> Result<Option<Self>> {
        if self.resharding() != Some(attempt) || self.spec_id() >= attempt.spec_id {
            return Ok(None);
        }
        let doing = format!("giving {} buckets to", attempt.buckets);
        let latest = self
            .change_details(&doing, |details| {
                details.sharding_specs =
                    details.sharding_specs.iter().map(|spec| shard_ids::rebucketed(spec, &attempt)).collect();
                details.num_shards = attempt.buckets;
                // By the old shards' names.
                details.compacted_sstables = Vec::new();
                details.index_catchup = Vec::new();
                details.inline_snapshots = None;
            })
            .await?;
        // Also if the answer was lost.
        Ok((latest.spec_id() == attempt.spec_id).then_some(latest))
    }
}
