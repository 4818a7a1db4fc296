//! From the table's sharding to its shards: the sharding spec as Lance keeps it in the MemWAL index, the ids that
//! derive from it, and the field values that a shard's manifest repeats. Which row goes where is `crate::sharding`'s,
//! which shards there are `crate::shards`'.

use std::collections::HashMap;

use arrow_schema::DataType;
use datafusion::scalar::ScalarValue;
use fencepost_wal::{ShardFieldEntry, ShardId, ShardManifest};
use lance::Dataset;
use lance_index::mem_wal::{MemWalIndexDetails, ShardingField, ShardingSpec};
use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid};

use super::layout::Resharding;
use crate::error::{Error, Result};
use crate::lance_store::LanceStore;
use crate::sharding::{MAX_BUCKETS, ShardValue, Sharding, from_bytes, result_type, text, to_bytes, type_of_result};

/// The one field of Lance's sharding specs.
const SHARDING_FIELD: &str = "bucket";

const UNSHARDED_TRANSFORM: &str = "unsharded";
const BUCKET_TRANSFORM: &str = "bucket";
const IDENTITY_TRANSFORM: &str = "identity";
const NUM_BUCKETS_PARAMETER: &str = "num_buckets";
const COLUMN_PARAMETER: &str = "column";
/// Ours: the layout from which the ids of shards derive. Lance takes no notice of it.
const LAYOUT_PARAMETER: &str = "fencepost.layout";

/// The spec of a table whose shards are chosen by its writers: there is none.
const MANUAL_SPEC: u32 = 0;

/// The entry of a shard manifest that tells null from "no value is told", which is how Lance leaves the shards that
/// its writers make. Its value is the name of the sharding field.
const NULL_ENTRY: &str = "fencepost.null";

/// What the MemWAL index says about the shards of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableSpec {
    pub(crate) sharding: Sharding,
    /// The number of the sharding spec, which each shard manifest repeats.
    id: u32,
    /// The name of the sharding field, under which shard manifests hold its value.
    field_id: String,
    /// The type of an identity sharding's values.
    value_type: DataType,
    /// Counts how often the table was split or joined; 0: never.
    layout: u32,
}

impl TableSpec {
    /// The number of the sharding spec.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Counts the splits and joins, roughly; 0: there was none.
    pub(super) fn layout(&self) -> u32 {
        self.layout
    }

    /// The id of the shard of a value in a table of this layout; see [`shard_id_for`].
    pub(super) fn shard_id(&self, table_id: Uuid, value: &ShardValue) -> Option<ShardId> {
        shard_id_for(table_id, self.layout, value)
    }

    /// The first manifest of the shard of a value.
    pub(super) fn first_manifest(&self, id: ShardId, value: &ShardValue) -> ShardManifest {
        let entry = |field_id: &str, value| vec![ShardFieldEntry { field_id: field_id.to_owned(), value }];
        let entries = match value {
            ShardValue::All | ShardValue::Unknown => vec![],
            ShardValue::Bucket(bucket) => self.bucket_entries(*bucket),
            ShardValue::Identity(value) => match to_bytes(value) {
                Some(bytes) => entry(&self.field_id, bytes),
                None => entry(NULL_ENTRY, self.field_id.clone().into_bytes()),
            },
        };
        ShardManifest::first(id, self.id, entries)
    }

    /// The entries of the manifest of a bucket's shard.
    pub(super) fn bucket_entries(&self, bucket: u32) -> Vec<ShardFieldEntry> {
        vec![ShardFieldEntry { field_id: self.field_id.clone(), value: bucket.to_le_bytes().to_vec() }]
    }

    /// What a shard holds, as its manifest says.
    pub(super) fn value_of(&self, manifest: &ShardManifest) -> ShardValue {
        // As Lance reads them: the last one counts.
        let entry = |name: &str| {
            let mut entries = manifest.shard_field_entries.iter().rev();
            entries.find(|entry| entry.field_id == name).map(|entry| entry.value.as_slice())
        };
        let told = || match &self.sharding {
            Sharding::Unsharded => Some(ShardValue::All),
            Sharding::Manual => None,
            Sharding::Bucket { buckets, .. } => {
                let bucket = u32::from_le_bytes(entry(&self.field_id)?.try_into().ok()?);
                (bucket < *buckets).then_some(ShardValue::Bucket(bucket))
            }
            Sharding::Identity { .. } => {
                let value = match (entry(&self.field_id), entry(NULL_ENTRY)) {
                    (Some(bytes), _) => from_bytes(&self.value_type, bytes)?,
                    (None, Some(field)) if field == self.field_id.as_bytes() => {
                        ScalarValue::try_new_null(&self.value_type).ok()?
                    }
                    (None, _) => return None,
                };
                Some(ShardValue::Identity(value))
            }
        };
        // The entries of another spec mean something else. An unsharded table has only one meaning.
        let known = manifest.shard_spec_id == self.id || self.sharding == Sharding::Unsharded;
        known.then(told).flatten().unwrap_or(ShardValue::Unknown)
    }

    /// The shards that a table of this spec has from the start.
    pub(super) fn fixed_values(&self) -> Vec<ShardValue> {
        match &self.sharding {
            Sharding::Unsharded => vec![ShardValue::All],
            Sharding::Bucket { buckets, .. } => (0..*buckets).map(ShardValue::Bucket).collect(),
            Sharding::Identity { .. } | Sharding::Manual => vec![],
        }
    }
}

/// The id of the shard of a value: a version 5 UUID in the namespace of the table id, of the name `unsharded`,
/// `bucket=3`, `identity=eu` or `identity is null`, with `layout 2: ` in front of it after a split or a join. Every process finds the same shards without listing, and no two
/// tables share one. `None` for [`ShardValue::Unknown`].
pub(crate) fn shard_id_for(table_id: Uuid, layout: u32, value: &ShardValue) -> Option<ShardId> {
    let name = match value {
        ShardValue::All => UNSHARDED_TRANSFORM.to_owned(),
        ShardValue::Bucket(bucket) => format!("bucket={bucket}"),
        ShardValue::Identity(value) => match text(value) {
            Some(text) => format!("identity={text}"),
            None => "identity is null".to_owned(),
        },
        ShardValue::Unknown => return None,
    };
    match layout {
        0 => Some(shard_id_of_name(table_id, &name)),
        layout => Some(shard_id_of_name(table_id, &format!("layout {layout}: {name}"))),
    }
}

/// The id that derives from a table id and a name.
pub(crate) fn shard_id_of_name(table_id: Uuid, name: &str) -> ShardId {
    // By hand: uuid's own `v5` feature would set its feature for Lance too, and rebuild everything.
    let digest = Sha1::new().chain_update(table_id.as_bytes()).chain_update(name).finalize();
    let mut bytes = [0; 16];
    bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
    ShardId::from_uuid(Builder::from_sha1_bytes(bytes).into_uuid())
}

/// The sharding spec of a new table, as Lance's own `initialize_mem_wal` writes it.
pub(super) fn new_spec(dataset: &Dataset, sharding: &Sharding) -> Result<ShardingSpec> {
    let source = sharding.column().map(|column| {
        let field = dataset.schema().field(column);
        field.ok_or_else(|| Error::InvalidOptions(format!("column `{column}` is not in the table")))
    });
    let source = source.transpose()?;
    let (transform, parameters, value_type) = match sharding {
        Sharding::Manual => return Err(Error::InvalidOptions("a manual sharding has no spec".into())),
        Sharding::Unsharded => (UNSHARDED_TRANSFORM, HashMap::new(), "int32"),
        Sharding::Bucket { buckets, .. } => {
            (BUCKET_TRANSFORM, HashMap::from([(NUM_BUCKETS_PARAMETER.to_owned(), buckets.to_string())]), "int32")
        }
        Sharding::Identity { column } => {
            let named = source.and_then(|field| result_type(&field.data_type()));
            let named =
                named.ok_or_else(|| Error::InvalidOptions(format!("values of column `{column}` cannot be shards")))?;
            (IDENTITY_TRANSFORM, HashMap::new(), named)
        }
    };
    let field = ShardingField {
        field_id: SHARDING_FIELD.to_owned(),
        source_ids: source.map(|field| field.id).into_iter().collect(),
        transform: Some(transform.to_owned()),
        expression: None,
        result_type: value_type.to_owned(),
        parameters,
    };
    Ok(ShardingSpec { spec_id: 1, fields: vec![field] })
}

/// The spec of a bucket sharding with another number of buckets.
pub(super) fn rebucketed(spec: &ShardingSpec, attempt: &Resharding) -> ShardingSpec {
    let mut spec = spec.clone();
    spec.spec_id = attempt.spec_id;
    for field in &mut spec.fields {
        field.parameters.insert(NUM_BUCKETS_PARAMETER.to_owned(), attempt.buckets.to_string());
        field.parameters.insert(LAYOUT_PARAMETER.to_owned(), attempt.spec_id.to_string());
    }
    spec
}

/// The meaning of the table's sharding specs.
pub(super) fn parse_spec(store: &LanceStore, dataset: &Dataset, details: &MemWalIndexDetails) -> Result<TableSpec> {
    let unsupported = |what: String| {
        Error::NotSupported(format!(
            "the table at {} is sharded {what}; Fencepost knows unsharded, bucket(column, n), identity(column), and \
             tables without a sharding spec",
            store.describe(None)
        ))
    };
    let (spec_id, field) = match details.sharding_specs.as_slice() {
        [] => {
            let (id, field_id, layout) = (MANUAL_SPEC, String::new(), 0);
            return Ok(TableSpec { sharding: Sharding::Manual, id, field_id, value_type: DataType::Null, layout });
        }
        [spec] => match spec.fields.as_slice() {
            [field] => (spec.spec_id, field),
            fields => return Err(unsupported(format!("by {} fields", fields.len()))),
        },
        specs => return Err(unsupported(format!("by {} specs", specs.len()))),
    };
    let column = || source_column(dataset, field);
    let (sharding, value_type) = match field.transform.as_deref() {
        Some(UNSHARDED_TRANSFORM) => (Sharding::Unsharded, DataType::Int32),
        Some(BUCKET_TRANSFORM) => {
            let buckets = field.parameters.get(NUM_BUCKETS_PARAMETER).and_then(|n| n.parse().ok());
            let buckets = buckets.filter(|n| (1..=MAX_BUCKETS).contains(n));
            let (Some(buckets), Some((column, _))) = (buckets, column()) else {
                return Err(unsupported(format!(
                    "by a bucket transform without a column of the table or a count of 1 to {MAX_BUCKETS}"
                )));
            };
            (Sharding::Bucket { column, buckets }, DataType::Int32)
        }
        Some(IDENTITY_TRANSFORM) => {
            let Some((column, data_type)) = column() else {
                return Err(unsupported("by an identity transform without a column of the table".to_owned()));
            };
            if type_of_result(&field.result_type).as_ref() != Some(&data_type) {
                return Err(unsupported(format!(
                    "by the values of `{column}` as {}, but that column is {data_type}",
                    field.result_type
                )));
            }
            (Sharding::Identity { column }, data_type)
        }
        other => return Err(unsupported(format!("by the transform `{}`", other.unwrap_or("none")))),
    };
    let layout = field.parameters.get(LAYOUT_PARAMETER).map(|text| text.parse().map_err(|_| text)).transpose();
    let layout = layout.map_err(|text| unsupported(format!("in a layout called `{text}`")))?.unwrap_or(0);
    Ok(TableSpec { sharding, id: spec_id, field_id: field.field_id.clone(), value_type, layout })
}

/// The top-level column that a sharding field is made of: by name if the field has one, otherwise by field id.
fn source_column(dataset: &Dataset, field: &ShardingField) -> Option<(String, DataType)> {
    let name = field.parameters.get(COLUMN_PARAMETER).filter(|name| !name.trim().is_empty());
    let columns = &dataset.schema().fields;
    let column = match (name, field.source_ids.as_slice()) {
        (Some(name), _) => columns.iter().find(|column| column.name == *name),
        (None, [id]) => columns.iter().find(|column| column.id == *id),
        _ => None,
    };
    column.map(|column| (column.name.clone(), column.data_type()))
}
