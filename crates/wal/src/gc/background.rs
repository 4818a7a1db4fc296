//! A writer's own shard, collected beside it: a task that never stands in the way of an append, and ends with the
//! tenure.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{BaseProgress, GcOptions, collect};
use crate::background::BackgroundTask;
use crate::error::{Error, Result};
use crate::ids::ManifestVersion;
use crate::tenure::Tenure;

/// While nothing happens, up to this many runs in a row are left out.
const MAX_SKIPPED: u32 = 15;

/// How a writer has its shard collected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcConfig {
    /// Pause before each run; the first comes one interval after the writer was opened. A run costs three LISTs, a GET
    /// or two, and one more for each checkpoint. While a writer commits nothing and there is nothing to collect, runs
    /// become rarer, down to one in 16. Default 10 minutes.
    pub interval: Duration,
    /// How patient it is.
    pub options: GcOptions,
}

impl Default for GcConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(600), options: GcOptions::default() }
    }
}

impl GcConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        match self.interval.is_zero() {
            true => {
                Err(Error::InvalidArgument("the `interval` of gc is zero; use a positive time, or no gc at all".into()))
            }
            false => Ok(()),
        }
    }
}

/// What a writer's collector has done so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcStats {
    /// Runs that ended well.
    pub runs: u64,
    /// Runs that failed. What they left is the next one's.
    pub failures: u64,
    /// The last of those failures.
    pub last_failure: Option<String>,
    /// Objects that were deleted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The collector of a writer's shard. Dropping it stops it where it stands, which is harmless.
#[derive(Debug)]
pub struct BackgroundGc {
    task: BackgroundTask,
    stats: GcCounters,
}

/// Shared with the task.
type GcCounters = Arc<Mutex<GcStats>>;

impl BackgroundGc {
    /// Starts to collect the shard of a tenure until that ends. `base` says before each run what the base table has.
    pub fn start<F, B>(tenure: Tenure, config: GcConfig, base: B) -> Self
    where
        B: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<BaseProgress, String>> + Send + 'static,
    {
        let stats = GcCounters::default();
        let task = BackgroundTask::spawn(run(tenure, config, base, Arc::clone(&stats)));
        Self { task, stats }
    }

    /// What it has done so far.
    pub fn stats(&self) -> GcStats {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops it where it stands and waits until it has ended.
    pub async fn ended(&self) {
        self.task.stop();
        self.task.ended().await;
    }
}

async fn run<F, B>(tenure: Tenure, config: GcConfig, base: B, stats: GcCounters)
where
    B: Fn() -> F,
    F: Future<Output = Result<BaseProgress, String>>,
{
    let (mut known, mut skip, mut idle) = (ManifestVersion::ZERO, 0, 0);
    loop {
        tokio::select! {
            biased;
            () = tenure.stopped() => return,
            () = tokio::time::sleep(config.interval) => {}
        }
        let version = tenure.manifest().await.version;
        if version == known && skip > 0 {
            skip -= 1;
            continue;
        }
        let once = async {
            let base = base().await?;
            collect(tenure.shard(), &base, &config.options, |_| ()).await.map_err(|error| error.to_string())
        };
        let done = tokio::select! {
            biased;
            // Harmless anywhere: the next collector finds what is left.
            () = tenure.stopped() => return,
            done = once => done,
        };
        let mut stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing_to_do = match done {
            Ok(report) => {
                let freed = report.total();
                stats.runs += 1;
                stats.objects += freed.objects;
                stats.bytes += freed.bytes;
                tracing::debug!(shard = %tenure.shard().id(), objects = freed.objects, "garbage was collected");
                freed.objects == 0 && report.version.is_none()
            }
            Err(reason) => {
                stats.failures += 1;
                tracing::warn!(shard = %tenure.shard().id(), %reason, "garbage could not be collected");
                stats.last_failure = Some(reason);
                false
            }
        };
        idle = if nothing_to_do && version == known { (2 * idle + 1).min(MAX_SKIPPED) } else { 0 };
        (known, skip) = (version, idle);
    }
}
