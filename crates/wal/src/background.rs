//! A task that works beside its owner.

use std::future::Future;

use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A task that its owner started. Dropping the handle stops it where it stands; anybody can wait for its end.
#[derive(Debug)]
pub struct BackgroundTask {
    task: JoinHandle<()>,
    /// Its sender goes with the task.
    ended: watch::Receiver<()>,
}

impl BackgroundTask {
    /// Starts it.
    pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        let (alive, ended) = watch::channel(());
        let task = tokio::spawn(async move {
            // Declared first, dropped last: when it is gone, so is everything that the work held.
            let _alive = alive;
            work.await;
        });
        Self { task, ended }
    }

    /// Stops it at the next point where it waits.
    pub fn stop(&self) {
        self.task.abort();
    }

    /// Waits until it has ended, however it did.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

impl Drop for BackgroundTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}
