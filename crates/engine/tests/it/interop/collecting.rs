//! What Lance makes of a shard after our collection: it opens, replays, takes over, flushes and goes on.

use super::model::Model;
use super::place::Place;
use crate::support::{config, keys, rows};

#[tokio::test]
async fn lance_opens_replays_and_takes_over_a_collected_shard() {
    for (keyed, merged, replayed) in
        [(true, true, true), (true, false, true), (false, true, false), (true, true, false), (false, false, true)]
    {
        let place = Place::new(keyed).await;
        let mut model = Model::new(keyed);
        // Two of our tenures, so that there is a fence in the middle of the collected log.
        for tenure in 0..2 {
            let ours = place.ours(config()).await;
            for round in 0..3 {
                let pairs = [(1, round), (10 * tenure + round, 7)];
                ours.put(rows(&pairs)).await.unwrap();
                model.put(&pairs);
                ours.flush().await.unwrap();
            }
            if keyed {
                ours.delete(keys(&[10 * tenure])).await.unwrap();
                model.delete(&[10 * tenure]);
            }
            ours.flush().await.unwrap();
            if replayed {
                ours.put(rows(&[(50 + tenure, 5)])).await.unwrap();
                model.put(&[(50 + tenure, 5)]);
            }
        }
        if merged {
            assert!(place.merge().await > 0);
        }
        let entries = async || {
            let path = place.entry_file(1).await;
            path.parent().unwrap().read_dir().unwrap().count()
        };
        let before = entries().await;
        place.collect_garbage().await.unwrap();
        assert!(entries().await < before);
        assert_eq!(place.seen().await, model.rows());

        let theirs = place.theirs().await;
        assert_eq!(theirs.seen().await, model.rows(), "{keyed} {merged} {replayed}");
        theirs.put(&[(1, 99), (70, 70)]).await;
        model.put(&[(1, 99), (70, 70)]);
        assert_eq!(theirs.seen().await, model.rows());
        theirs.flush().await;
        theirs.put(&[(71, 71)]).await;
        model.put(&[(71, 71)]);
        theirs.die().await;
        let again = place.theirs().await;
        assert_eq!(again.seen().await, model.rows());
        let tail = again.lance.tailer().await.next_position().await.unwrap();
        assert!(place.entry_file(tail - 1).await.exists() && !place.entry_file(tail).await.exists());
        again.die().await;

        // And back, collected once more.
        let ours = place.ours(config()).await;
        assert_eq!(place.seen().await, model.rows());
        ours.close().await.unwrap();
        fencepost::wal::adopt(&place.shard().await).await.unwrap();
        place.merge().await;
        place.collect_garbage().await.unwrap();
        assert_eq!(place.seen().await, model.rows());
        assert_eq!(place.base().await, model.rows());
    }
}
