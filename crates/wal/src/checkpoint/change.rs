//! What happens to a checkpoint after it was made: its lifetime changes, or it is given up.

use std::time::Duration;

use uuid::Uuid;

use super::{Checkpoint, create::listed_as, expiry, extension, read_object, with_our_fields};
use crate::adopt::inherit;
use crate::error::{Error, Result};
use crate::ids::ShardId;
use crate::manifest::ManifestStore;
use crate::mutants::{Mutant, is_on};
use crate::shard::Shard;

/// Sets a checkpoint's lifetime anew, counted from now; `None`: until it is deleted.
///
/// # Errors
/// [`Error::NoCheckpoint`] if it is not listed or has expired: what it held may be gone; [`Error::InvalidArgument`] for
/// the pin of a clone; [`Error::CommitUnknown`],
/// after which it may be called again.
pub async fn refresh(shard: &Shard, id: Uuid, lifetime: Option<Duration>) -> Result<Checkpoint> {
    let manifests = ManifestStore::new(shard.clone());
    let expires_at_ms = expiry(shard, lifetime);
    let committed = manifests.commit(None, |manifest| {
        let manifests = &manifests;
        async move {
            let mut next = inherit(shard, manifests, manifest).await?;
            let now = shard.store().surroundings().now();
            // Schedule 26: one that a collector has dropped, or may be dropping, does not come back.
            let found = extension(&mut next).checkpoints.iter_mut().find(|c| c.id == id);
            match found {
                Some(checkpoint) if checkpoint.is_pin => return Err(pin_of_a_clone(shard, id)),
                Some(checkpoint) if checkpoint.is_live(now) => checkpoint.expires_at_ms = expires_at_ms,
                Some(_) => return Err(Error::NoCheckpoint { shard: shard.id(), id, state: "has expired" }),
                None if is_on(Mutant::RefreshWithoutLook) => {
                    let again = listed_as(&read_object(shard, id).await?, expires_at_ms);
                    extension(&mut next).checkpoints.push(again);
                }
                None => return Err(Error::NoCheckpoint { shard: shard.id(), id, state: "is not listed" }),
            }
            Ok(next)
        }
    });
    let committed = committed.await?.manifest;
    let refreshed = committed.checkpoints().iter().find(|c| c.id == id).cloned();
    refreshed.ok_or(Error::NoCheckpoint { shard: shard.id(), id, state: "is not listed" })
}

fn pin_of_a_clone(shard: &Shard, id: Uuid) -> Error {
    let shard = shard.id();
    Error::InvalidArgument(format!("checkpoint {id} of shard {shard} is the pin of a clone; delete the clone"))
}

/// Deletes a checkpoint. What only it held goes with the next garbage collection: unlike one that expires, a checkpoint
/// that is deleted protects nothing any more, whoever reads it at the moment.
///
/// # Errors
/// [`Error::NoCheckpoint`] if it is not listed; [`Error::InvalidArgument`] for the pin of a clone;
/// [`Error::CommitUnknown`], after which it may be called again.
pub async fn delete(shard: &Shard, id: Uuid) -> Result<()> {
    let manifests = ManifestStore::new(shard.clone());
    let committed = manifests.commit(None, |manifest| {
        let manifests = &manifests;
        async move {
            let mut next = inherit(shard, manifests, manifest).await?;
            let checkpoints = &mut extension(&mut next).checkpoints;
            match checkpoints.iter().find(|c| c.id == id) {
                None => return Err(Error::NoCheckpoint { shard: shard.id(), id, state: "is not listed" }),
                Some(c) if c.is_pin => return Err(pin_of_a_clone(shard, id)),
                Some(_) => checkpoints.retain(|c| c.id != id),
            }
            Ok(next)
        }
    });
    committed.await?;
    // Unlisted now; if this fails, garbage collection finds it.
    let path = shard.checkpoint_path(id);
    if let Err(error) = shard.store().delete(&path).await {
        tracing::debug!(%path, %error, "a checkpoint's object is left to garbage collection");
    }
    Ok(())
}

/// Gives up the pins that a clone's shard has on another shard. One that has none is left as it is.
///
/// # Errors
/// Errors of committing; [`Error::CommitUnknown`], after which it may be called again.
pub async fn release(shard: &Shard, clone: ShardId) -> Result<()> {
    let manifests = ManifestStore::new(shard.clone());
    let name = clone.to_string();
    let is_its = |c: &Checkpoint| c.is_pin && c.name.as_deref() == Some(name.as_str());
    // The shard may be gone with its table, and without it the pin.
    let Some(latest) = manifests.latest().await? else {
        return Ok(());
    };
    // Also if another engine wrote the latest manifest: the next claim takes the pin up again.
    if !with_our_fields(&manifests, latest).await?.checkpoints().iter().any(is_its) {
        return Ok(());
    }
    let committed = manifests.commit(None, |manifest| {
        let (manifests, is_its) = (&manifests, &is_its);
        async move {
            let mut next = inherit(shard, manifests, manifest).await?;
            extension(&mut next).checkpoints.retain(|c| !is_its(c));
            Ok(next)
        }
    });
    committed.await.map(|_| ())
}
