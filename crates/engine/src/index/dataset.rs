//! Secondary indexes of Lance datasets, of the base table and of SSTables: which there are, in our words, and making them.

use std::sync::Arc;

use arrow_schema::Schema;
use lance::Dataset;
use lance::dataset::CommitBuilder;
use lance::dataset::transaction::{Operation, Transaction};
use lance::index::vector::{VectorIndexParams, has_vectors_to_train};
use lance::index::{DatasetIndexExt, DatasetIndexInternalExt};
use lance_index::metrics::NoOpMetricsCollector;
use lance_index::scalar::{BuiltinIndexType, InvertedIndexParams, ScalarIndexParams};
use lance_index::vector::hnsw::builder::HnswBuildParams;
use lance_index::vector::ivf::IvfBuildParams;
use lance_index::{IndexParams, IndexType, is_system_index, pb, pbold};
use lance_table::format::IndexMetadata;
use prost::Message;

use super::{FullTextConfig, IndexConfig, IndexKind, Metric, VectorConfig};
use crate::error::{Error, Result};
use crate::lance_store::{LanceStore, quoted};

/// Rows per partition of a base table's vector index; one partition is one graph.
const PARTITION_ROWS: usize = 1 << 20;

/// The indexes of a dataset that are of one of our kinds and on a top-level column, each once, in the order of their names.
/// Indexes of other kinds, which Lance may have, are passed over.
///
/// # Errors
/// [`Error::Lance`] if their descriptions cannot be read.
pub(crate) async fn of_dataset(dataset: &Dataset) -> Result<Vec<IndexConfig>> {
    let failed = || Error::lance(format!("reading the indexes of {}", dataset.uri()));
    let found = dataset.load_indices().await.map_err(failed())?;
    let schema = Schema::from(dataset.schema());
    let mut configs: Vec<IndexConfig> = Vec::new();
    for index in found.iter().filter(|index| !is_system_index(index)) {
        let [field] = index.fields.as_slice() else {
            continue;
        };
        let Some(column) = dataset.schema().fields.iter().find(|column| column.id == *field) else {
            continue;
        };
        if configs.iter().any(|known| known.name == index.name) {
            continue;
        }
        let Some(kind) = kind_of(dataset, &column.name, index).await.map_err(failed())? else {
            continue;
        };
        let config = IndexConfig { name: index.name.clone(), column: column.name.clone(), kind };
        if config.validate(&schema).is_ok() {
            configs.push(config);
        }
    }
    configs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(configs)
}

async fn kind_of(dataset: &Dataset, column: &str, index: &IndexMetadata) -> lance::Result<Option<IndexKind>> {
    let Some(details) = &index.index_details else {
        return Ok(None);
    };
    let decoding = |e: prost::DecodeError| lance::Error::invalid_input(format!("details of {}: {e}", index.name));
    let (_, kind) = details.type_url.rsplit_once('.').unwrap_or(("", &details.type_url));
    match kind {
        "BTreeIndexDetails" => Ok(Some(IndexKind::BTree)),
        "InvertedIndexDetails" => {
            let details = pbold::InvertedIndexDetails::decode(details.value.as_slice()).map_err(decoding)?;
            let params = InvertedIndexParams::try_from(&details)?;
            Ok(Some(IndexKind::FullText(FullTextConfig::of_lance(params))))
        }
        "VectorIndexDetails" => {
            // Lance writes details since 14; an older index knows its metric itself.
            let metric = match details.value.is_empty() {
                false => {
                    let details = pb::VectorIndexDetails::decode(details.value.as_slice()).map_err(decoding)?;
                    pb::VectorMetricType::try_from(details.metric_type).ok().map(Into::into)
                }
                true => {
                    Some(dataset.open_vector_index(column, &index.uuid, &NoOpMetricsCollector).await?.metric_type())
                }
            };
            Ok(metric.and_then(Metric::of_lance).map(|metric| IndexKind::Vector(VectorConfig::new(metric))))
        }
        _ => Ok(None),
    }
}

/// Makes indexes of a dataset, in one commit. One on a column without any value is left out: it has nothing to find, and
/// Lance cannot train it.
///
/// # Errors
/// [`Error::Lance`] that names the index.
pub(crate) async fn build(
    store: &LanceStore,
    dataset: &mut Dataset,
    indexes: &[IndexConfig],
    has_values: impl Fn(&IndexConfig) -> bool,
) -> Result<()> {
    let rows =
        dataset.count_rows(None).await.map_err(Error::lance(format!("counting the rows of {}", dataset.uri())))?;
    let mut made = Vec::new();
    for index in indexes.iter().filter(|index| has_values(index)) {
        let failed = Error::lance(format!("making index `{}` of {}", index.name, dataset.uri()));
        let (index_type, params) = params(index, rows);
        let column = quoted(&index.column);
        let columns = [column.as_str()];
        let builder = dataset.create_index_builder(&columns, index_type, params.as_ref());
        made.push(builder.name(index.name.clone()).execute_uncommitted().await.map_err(failed)?);
    }
    if made.is_empty() {
        return Ok(());
    }
    let failed = Error::lance(format!("adding indexes to {}", dataset.uri()));
    let operation = Operation::CreateIndex { new_indices: made, removed_indices: vec![] };
    let transaction = Transaction::new(dataset.version().version, operation, None);
    let committed = CommitBuilder::new(Arc::new(dataset.clone()))
        .with_session(Arc::clone(store.session()))
        .with_commit_handler(Arc::clone(store.commit_handler()))
        .execute(transaction)
        .await;
    *dataset = committed.map_err(failed)?;
    Ok(())
}

/// Whether Lance can make an index of a dataset's rows: one of vectors has to be trained, which takes a vector at least.
///
/// # Errors
/// Lance's.
pub(crate) async fn can_be_trained(dataset: &Dataset, index: &IndexConfig) -> lance::Result<bool> {
    match index.kind {
        IndexKind::Vector(_) => has_vectors_to_train(dataset, &quoted(&index.column), 1).await,
        IndexKind::BTree | IndexKind::FullText(_) => Ok(dataset.count_rows(None).await? > 0),
    }
}

/// What Lance needs to know to make an index of so many rows.
pub(crate) fn params(index: &IndexConfig, rows: usize) -> (IndexType, Box<dyn IndexParams>) {
    match &index.kind {
        IndexKind::BTree => (IndexType::BTree, Box::new(ScalarIndexParams::for_builtin(BuiltinIndexType::BTree))),
        IndexKind::FullText(config) => (IndexType::Inverted, Box::new(config.params.clone())),
        IndexKind::Vector(config) => {
            let (metric, partitions) = (config.metric.to_lance(), (rows / PARTITION_ROWS).max(1));
            let params = match rows <= config.exact_rows {
                // All vectors in one partition: exact.
                true => VectorIndexParams::ivf_flat(1, metric),
                false => {
                    let graph = HnswBuildParams::default();
                    let graph = graph.num_edges(config.num_edges).ef_construction(config.ef_construction);
                    VectorIndexParams::ivf_hnsw(metric, IvfBuildParams::new(partitions), graph)
                }
            };
            (IndexType::Vector, Box::new(params))
        }
    }
}
