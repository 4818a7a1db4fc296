//! Whether a query failed because what its snapshot names is gone.

use std::error::Error as StdError;

use object_store::Error as StoreError;

/// Whether a query of a snapshot failed because an object that it needs has been collected since, an SSTable that is merged
/// by now, say. Nothing is lost: take a newer snapshot and ask again.
pub fn is_collected(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let in_store = matches!(error.downcast_ref::<StoreError>(), Some(StoreError::NotFound { .. }));
        // A shared one hides the error that it shares from who asks for its source.
        let in_lance = error.downcast_ref::<lance::Error>().map(lance::Error::find_root);
        let in_lance = matches!(in_lance, Some(lance::Error::NotFound { .. } | lance::Error::DatasetNotFound { .. }));
        if in_store || in_lance {
            return true;
        }
        cause = error.source();
    }
    false
}
