//! From the table's sharding to its shards: the sharding spec as Lance keeps it in the MemWAL index, the ids that
//! derive from it, and the field values that a shard's manifest repeats. Which row goes where is `crate::sharding`'s.

use std::collections::HashMap;

use fencepost_wal::ShardId;
use lance::Dataset;
use lance_index::mem_wal::{MemWalIndexDetails, ShardingField, ShardingSpec};
use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid};

use crate::error::{Error, Result};
use crate::lance_store::LanceStore;
use crate::sharding::Sharding;

/// The one field of Lance's sharding specs.
const SHARDING_FIELD: &str = "bucket";

const UNSHARDED_TRANSFORM: &str = "unsharded";
const BUCKET_TRANSFORM: &str = "bucket";
const NUM_BUCKETS_PARAMETER: &str = "num_buckets";

/// The id of a shard: a version 5 UUID in the namespace of the table id, of the name `bucket=3` or `unsharded`. Every
/// process finds the same shards without listing, and no two tables share one.
pub(super) fn shard_id_for(table_id: Uuid, bucket: Option<u32>) -> ShardId {
    let name = match bucket {
        Some(bucket) => format!("{SHARDING_FIELD}={bucket}"),
        None => UNSHARDED_TRANSFORM.to_owned(),
    };
    // By hand: uuid's own `v5` feature would set its feature for Lance too, and rebuild everything.
    let digest = Sha1::new().chain_update(table_id.as_bytes()).chain_update(name).finalize();
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    ShardId::from_uuid(Builder::from_sha1_bytes(bytes).into_uuid())
}

/// The ids of all shards of a table, in bucket order.
pub(crate) fn shard_ids(table_id: Uuid, sharding: &Sharding) -> Vec<ShardId> {
    match sharding {
        Sharding::Unsharded => vec![shard_id_for(table_id, None)],
        Sharding::Bucket { buckets, .. } => (0..*buckets).map(|bucket| shard_id_for(table_id, Some(bucket))).collect(),
    }
}

/// A bucket as a shard manifest's `shard_field_entries` hold it: the spec's field, and the `int32` value in Arrow's
/// little-endian bytes.
pub(crate) fn bucket_field_entry(bucket: u32) -> (String, Vec<u8>) {
    (SHARDING_FIELD.to_owned(), bucket.to_le_bytes().to_vec())
}

/// The sharding spec of a new table, as Lance's own `initialize_mem_wal` writes it.
pub(super) fn new_spec(dataset: &Dataset, sharding: &Sharding) -> Result<ShardingSpec> {
    let (transform, source_ids, parameters) = match sharding {
        Sharding::Unsharded => (UNSHARDED_TRANSFORM, vec![], HashMap::new()),
        Sharding::Bucket { column, buckets } => {
            let field = dataset.schema().field(column);
            let field = field.ok_or_else(|| Error::InvalidOptions(format!("column `{column}` is not in the table")))?;
            let parameters = HashMap::from([(NUM_BUCKETS_PARAMETER.to_owned(), buckets.to_string())]);
            (BUCKET_TRANSFORM, vec![field.id], parameters)
        }
    };
    let field = ShardingField {
        field_id: SHARDING_FIELD.to_owned(),
        source_ids,
        transform: Some(transform.to_owned()),
        expression: None,
        result_type: "int32".to_owned(),
        parameters,
    };
    Ok(ShardingSpec { spec_id: 1, fields: vec![field] })
}

/// The id and the meaning of the table's sharding spec.
pub(super) fn parse_spec(
    store: &LanceStore,
    dataset: &Dataset,
    details: &MemWalIndexDetails,
) -> Result<(u32, Sharding)> {
    let unsupported = |what: String| {
        Error::NotSupported(format!(
            "the table at {} is sharded {what}; Fencepost reads unsharded tables and bucket(column, n)",
            store.describe(None)
        ))
    };
    let [spec] = details.sharding_specs.as_slice() else {
        return Err(unsupported(format!("by {} specs", details.sharding_specs.len())));
    };
    let [field] = spec.fields.as_slice() else {
        return Err(unsupported(format!("by {} fields", spec.fields.len())));
    };
    let sharding = match field.transform.as_deref() {
        Some(UNSHARDED_TRANSFORM) => Sharding::Unsharded,
        Some(BUCKET_TRANSFORM) => {
            let buckets = field.parameters.get(NUM_BUCKETS_PARAMETER).and_then(|n| n.parse().ok());
            let buckets = buckets.filter(|n| *n > 0 && i32::try_from(*n).is_ok());
            let column = match field.source_ids.as_slice() {
                [id] => dataset.schema().fields.iter().find(|f| f.id == *id),
                _ => None,
            };
            let (Some(buckets), Some(column)) = (buckets, column) else {
                return Err(unsupported("by a bucket transform without a column or a count".to_owned()));
            };
            Sharding::Bucket { column: column.name.clone(), buckets }
        }
        other => return Err(unsupported(format!("by the transform `{}`", other.unwrap_or("none")))),
    };
    Ok((spec.spec_id, sharding))
}
