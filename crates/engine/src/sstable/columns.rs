//! Reading whole columns of an SSTable without a query plan: for readers that need all of its keys.

use arrow_array::RecordBatch;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use lance::Dataset;
use lance::dataset::fragment::FragReadConfig;

use crate::error::{Error, Result};

/// Rows of a batch.
const BATCH_ROWS: u32 = 8192;

/// Batches that are decoded ahead.
const BATCHES_AHEAD: usize = 2;

/// Streams these top-level columns, in the dataset's order, of the rows that are not deleted.
pub(crate) fn columns(dataset: &Dataset, names: &[String]) -> BoxStream<'static, Result<RecordBatch>> {
    let mut schema = dataset.schema().clone();
    schema.fields.retain(|field| names.contains(&field.name));
    let (fragments, uri) = (dataset.get_fragments(), dataset.uri().to_owned());
    let opened = stream::iter(fragments).then(move |fragment| {
        let schema = schema.clone();
        async move {
            let reader = fragment.open(&schema, FragReadConfig::default()).await?;
            let batches = reader.read_all(BATCH_ROWS).await?;
            Ok::<_, lance::Error>(batches.buffered(BATCHES_AHEAD))
        }
    });
    opened.try_flatten().map_err(move |error| Error::lance(format!("reading columns of {uri}"))(error)).boxed()
}
