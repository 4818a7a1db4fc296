//! The rows of an SSTable that belong to the shard which lists it: those of one bucket, if the SSTable was written before its
//! shard was split.

use arrow_array::{BooleanArray, RecordBatch};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder};
use arrow_schema::Schema;
use arrow_select::filter::filter_record_batch;
use fencepost_wal::RowFilter;

use super::{Router, ShardValue, Sharding};
use crate::error::{Error, Result};

/// Chooses rows by the bucket of their sharding column.
#[derive(Debug, Clone)]
pub(crate) struct PartOfRows {
    column: String,
    router: Router,
    bucket: ShardValue,
}

impl PartOfRows {
    /// What a filter means in a table of this sharding; its schema must have the sharding column.
    ///
    /// # Errors
    /// [`Error::NotSupported`] if the table is not sharded by buckets, so that the filter means nothing.
    pub(crate) fn of(filter: RowFilter, sharding: &Sharding, schema: &Schema) -> Result<Self> {
        let Sharding::Bucket { column, .. } = sharding else {
            return Err(Error::NotSupported(format!(
                "an SSTable has rows of bucket {} of {}, and the table is sharded `{sharding}`",
                filter.bucket, filter.buckets
            )));
        };
        let sharding = Sharding::Bucket { column: column.clone(), buckets: filter.buckets };
        let router = Router::try_new(&sharding, schema)?;
        Ok(Self { column: column.clone(), router, bucket: ShardValue::Bucket(filter.bucket) })
    }

    /// The column that batches must have.
    pub(crate) fn column(&self) -> &str {
        &self.column
    }

    /// Which rows of a batch belong to the shard.
    pub(crate) fn mask(&self, batch: &RecordBatch) -> Result<BooleanBuffer> {
        let mut mask = BooleanBufferBuilder::new(batch.num_rows());
        mask.append_n(batch.num_rows(), false);
        let groups = self.router.groups(batch)?;
        let ours = groups.into_iter().filter(|(value, _)| *value == self.bucket).flat_map(|(_, rows)| rows);
        ours.filter_map(|row| usize::try_from(row).ok()).for_each(|row| mask.set_bit(row, true));
        Ok(mask.finish())
    }

    /// The rows of a batch that belong to the shard.
    pub(crate) fn choose(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mask = BooleanArray::new(self.mask(batch)?, None);
        filter_record_batch(batch, &mask).map_err(Error::arrow("choosing the rows of a shard"))
    }
}
