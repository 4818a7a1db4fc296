//! How a writer groups, limits and sends appends.

use std::sync::Arc;
use std::time::Duration;

use super::admission::Admission;
use crate::error::{Error, Result};
use crate::gc::GcConfig;

/// How a [`WalWriter`](crate::WalWriter) groups, limits and sends appends.
#[derive(Debug, Clone)]
pub struct WalConfig {
    /// Largest entry in bytes, as encoded. An append that is larger is spread over several entries; a single row
    /// that is larger is refused. Default 10 MiB.
    pub max_buffer_bytes: usize,
    /// Longest time that a non-durable append waits before it is sent. Durable appends do not wait for it: they are
    /// sent as soon as a PUT may start. Default 100 ms.
    pub flush_interval: Duration,
    /// How long a durable append waits for company before it is sent, even when a PUT may start: 0 to
    /// `flush_interval`. What waits that long is sent in one PUT; a full buffer, a flush and a close do not wait.
    /// Default 0: at once, so that an append takes one PUT's time.
    pub linger: Duration,
    /// Bytes (estimated, in memory) that may be accepted and not yet released; appends wait beyond it, and one that
    /// is larger by itself is refused. Released when an entry landed, or, with a MemTable, when it was flushed.
    /// Default 1 GiB.
    pub max_unflushed_bytes: usize,
    /// PUTs that may run at once, 1 to 32. Default 4. A durable append that finds one of them free is sent at once;
    /// while all are under way, appends gather and leave together with the next. Once more appends wait than PUTs may
    /// run, PUTs start evenly, a `max_in_flight`th of a PUT's time apart. Appends are acknowledged in order.
    pub max_in_flight: usize,
    /// Most PUTs of entries per second, 0.001 to 100,000; `None`, the default, for no cap. Appends that come faster
    /// gather, as they do while all PUTs are under way. In any span of `t` seconds at most `t` times this many are
    /// sent, and `max_in_flight` more. Retries, which a store in trouble causes, are not counted; neither are the few
    /// requests of opening, flushing and closing.
    ///
    /// It bounds the bill. What a shard costs if it is written to all the time, in US dollars per 30 days:
    ///
    /// | PUTs per second | PUTs in 30 days | S3 Standard | S3 Express One Zone |
    /// |---:|---:|---:|---:|
    /// | 0.1 | 259,200 | 1.30 | 0.29 |
    /// | 1 | 2,592,000 | 12.96 | 2.93 |
    /// | 10 | 25,920,000 | 129.60 | 29.29 |
    /// | 50 | 129,600,000 | 648.00 | 146.45 |
    /// | 100 | 259,200,000 | 1,296.00 | 292.90 |
    /// | 1,000 | 2,592,000,000 | 12,960.00 | 2,928.96 |
    ///
    /// At $0.005 (Standard) and $0.00113 (Express One Zone) per 1,000 PUTs, Amazon's list prices for us-east-1 in
    /// 2025 (<https://aws.amazon.com/s3/pricing/>). Express One Zone also charges for each byte that is uploaded.
    /// Prices differ and change: check your region. Without the cap a shard sends at most `max_in_flight` PUTs in the
    /// time that one takes: 4 in 30 ms are 133 per second.
    pub max_puts_per_second: Option<f64>,
    /// Garbage collection of the writer's own shard beside it, safe as it is; `None` for none. Default every 10
    /// minutes. A writer that is started from a [`Tenure`](crate::Tenure) by [`start`](crate::WalWriter::start) leaves it
    /// to its caller.
    pub gc: Option<GcConfig>,
    /// While an append waits for memory, a warning is logged each time that this much has passed. Default 30 s.
    pub backpressure_log_interval: Duration,
    /// Who is asked before an append is queued; `None`, the default: nobody.
    pub admission: Option<Arc<dyn Admission>>,
}

impl Default for WalConfig {
    fn default() -> Self {
        Self {
            max_buffer_bytes: 10 << 20,
            flush_interval: Duration::from_millis(100),
            linger: Duration::ZERO,
            max_unflushed_bytes: 1 << 30,
            max_in_flight: 4,
            max_puts_per_second: None,
            gc: Some(GcConfig::default()),
            backpressure_log_interval: Duration::from_secs(30),
            admission: None,
        }
    }
}

impl WalConfig {
    /// Checks the limits of each field. A writer does it before it claims anything.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], naming the field and its limits.
    pub fn validate(&self) -> Result<()> {
        let invalid = |what: String| Err(Error::InvalidArgument(what));
        if self.max_buffer_bytes < 4 << 10 || self.max_buffer_bytes > crate::MAX_ENTRY_BYTES {
            return invalid(format!("max_buffer_bytes is {}; use 4 KiB to 256 MiB", self.max_buffer_bytes));
        }
        if self.max_in_flight == 0 || self.max_in_flight as u64 > crate::MAX_IN_FLIGHT {
            return invalid(format!("max_in_flight is {}; use 1 to {}", self.max_in_flight, crate::MAX_IN_FLIGHT));
        }
        if self.max_unflushed_bytes == 0 || self.max_unflushed_bytes > u32::MAX as usize {
            return invalid(format!("max_unflushed_bytes is {}; use 1 byte to 4 GiB - 1", self.max_unflushed_bytes));
        }
        if self.flush_interval.is_zero() {
            return invalid("flush_interval is zero; use a positive time".into());
        }
        if self.backpressure_log_interval.is_zero() {
            return invalid("backpressure_log_interval is zero; use a positive time".into());
        }
        if self.linger > self.flush_interval {
            return invalid(format!(
                "linger is {:?}, longer than flush_interval ({:?}): durable appends would wait longer than others; use \
                 a shorter linger or a longer flush_interval",
                self.linger, self.flush_interval
            ));
        }
        if let Some(most) = self.max_puts_per_second
            && !(0.001..=100_000.0).contains(&most)
        {
            return invalid(format!("max_puts_per_second is {most}; use 0.001 to 100,000, or None for no cap"));
        }
        self.gc.as_ref().map_or(Ok(()), GcConfig::validate)
    }
}
