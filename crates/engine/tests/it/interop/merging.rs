//! Into the base table, and out of it with Lance alone: what either engine flushed, whoever owns the shard meanwhile.

use super::lance::{Lance, scan};
use super::model::Model;
use super::place::Place;
use crate::merge::merge;
use crate::support::{config, keys, rows};

impl Place {
    /// Merges from a process of its own.
    pub(crate) async fn merge(&self) -> u64 {
        merge(&self.table().await).await.sstables
    }

    /// The base table alone, as plain Lance opens it: `(id, v)`, sorted.
    pub(crate) async fn base(&self) -> Vec<(i64, Option<i64>)> {
        let Lance { dataset, .. } = self.lance().await;
        let mut found: Vec<_> = scan(&dataset).await.into_iter().map(|(id, v, _)| (id, v)).collect();
        found.sort_unstable();
        found
    }
}

/// Lance writes the older versions of a key into its SSTables, too, and hides them by a deletion vector.
#[tokio::test]
async fn what_lance_flushed_is_merged_while_lance_goes_on() {
    for keyed in [true, false] {
        let place = Place::new(keyed).await;
        let mut model = Model::new(keyed);
        let lance = place.theirs().await;
        for round in 0..3 {
            let pairs = [(1, round), (2, round), (1, 10 + round), (10 + round, 7)];
            lance.put(&pairs).await;
            model.put(&pairs);
            if keyed {
                lance.delete(&[2, 9 + round]).await;
                model.delete(&[2, 9 + round]);
            }
            lance.flush().await;
            assert_eq!(place.merge().await, 1);
            assert_eq!(place.base().await, model.rows());
            assert_eq!(place.seen().await, model.rows());
            assert_eq!(lance.seen().await, model.rows());
        }
        lance.put(&[(1, 99)]).await;
        model.put(&[(1, 99)]);
        lance.die().await;

        // We take over behind the merged generations, and number ours after them.
        let ours = place.ours(config()).await;
        ours.put(rows(&[(5, 5)])).await.unwrap();
        model.put(&[(5, 5)]);
        if keyed {
            ours.delete(keys(&[1])).await.unwrap();
            model.delete(&[1]);
        }
        assert_eq!(place.seen().await, model.rows());
        ours.close().await.unwrap();
        assert_eq!(place.merge().await, 1);
        assert_eq!(place.base().await, model.rows());
    }
}

/// After a merge Lance replays and numbers on as before, and its next SSTable is merged.
#[tokio::test]
async fn lance_takes_over_after_a_merge() {
    for keyed in [true, false] {
        let place = Place::new(keyed).await;
        let mut model = Model::new(keyed);
        let ours = place.ours(config()).await;
        for id in 0..6 {
            ours.put(rows(&[(id, id)])).await.unwrap();
            model.put(&[(id, id)]);
            if id % 2 == 1 {
                ours.flush().await.unwrap();
            }
        }
        ours.put(rows(&[(0, 50), (20, 20)])).await.unwrap();
        model.put(&[(0, 50), (20, 20)]);
        assert_eq!(place.merge().await, 3);
        let lance = place.theirs().await;
        assert_eq!(lance.seen().await, model.rows());
        if keyed {
            lance.delete(&[3]).await;
            model.delete(&[3]);
        }
        lance.close().await;
        assert_eq!(place.merge().await, 1);
        assert_eq!(place.base().await, model.rows());
        assert_eq!(place.seen().await, model.rows());
    }
}
