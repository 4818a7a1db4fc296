//! Counting what is done and how long each time took. A histogram keeps the slow ones apart from the many, in a few
//! KiB however many there are.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// Significant digits of the histogram: a latency is told within 1%.
const DIGITS: u8 = 2;

/// One kind of work since its writer was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OperationStats {
    /// How often it was done.
    pub count: u64,
    /// Rows in it.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time that it took, added up.
    pub time: Duration,
    /// Time that it took once.
    pub latency: Latency,
}

/// How long something took, of all the times that it was done. Zero if it never was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    p50: Duration,
    p99: Duration,
    p99_9: Duration,
    max: Duration,
}

impl Latency {
    /// Half of the times it took no longer than this; told within 1%.
    pub fn p50(&self) -> Duration {
        self.p50
    }

    /// 99 of 100 times it took no longer than this; told within 1%.
    pub fn p99(&self) -> Duration {
        self.p99
    }

    /// 999 of 1,000 times it took no longer than this; told within 1%.
    pub fn p99_9(&self) -> Duration {
        self.p99_9
    }

    /// The longest time, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }
}

/// Counts one kind of work. Shared between the task that does it and those that ask.
#[derive(Debug, Default)]
pub struct Meter {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    count: u64,
    rows: u64,
    bytes: u64,
    time: Duration,
    max: Duration,
    /// In microseconds; made with the first record.
    histogram: Option<Histogram<u32>>,
}

impl Meter {
    /// Counts that it was done once.
    pub fn record(&self, rows: usize, bytes: usize, took: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.count += 1;
        state.rows += rows as u64;
        state.bytes += bytes as u64;
        state.time += took;
        state.max = state.max.max(took);
        if state.histogram.is_none() {
            // It grows with what is recorded.
            state.histogram = Histogram::new(DIGITS).ok();
        }
        if let Some(histogram) = &mut state.histogram {
            // It refuses only what it cannot grow to: nothing below many years.
            let _ = histogram.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// What was recorded so far.
    pub fn stats(&self) -> OperationStats {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |quantile: f64| match &state.histogram {
            // A bucket's upper end may lie beyond the longest.
            Some(histogram) => Duration::from_micros(histogram.value_at_quantile(quantile)).min(state.max),
            None => Duration::ZERO,
        };
        let latency = Latency { p50: at(0.5), p99: at(0.99), p99_9: at(0.999), max: state.max };
        OperationStats { count: state.count, rows: state.rows, bytes: state.bytes, time: state.time, latency }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_percent_and_the_longest_is_exact() {
        let meter = Meter::default();
        assert_eq!(meter.stats(), OperationStats::default());
        for millis in 1..=1000 {
            meter.record(2, 30, Duration::from_millis(millis));
        }
        meter.record(0, 0, Duration::from_nanos(3_600_000_000_001));
        let stats = meter.stats();
        assert_eq!((stats.count, stats.rows, stats.bytes), (1001, 2000, 30_000));
        assert_eq!(stats.time, Duration::from_millis(500_500) + Duration::from_nanos(3_600_000_000_001));
        let near = |found: Duration, millis: f64| (found.as_secs_f64() * 1000.0 / millis - 1.0).abs() < 0.01;
        assert!(near(stats.latency.p50(), 501.0), "{stats:?}");
        assert!(near(stats.latency.p99(), 991.0), "{stats:?}");
        assert!(near(stats.latency.p99_9(), 1000.0), "{stats:?}");
        assert_eq!(stats.latency.max(), Duration::from_nanos(3_600_000_000_001));
    }

    #[test]
    fn nothing_is_longer_than_the_longest() {
        let meter = Meter::default();
        meter.record(1, 1, Duration::from_micros(100_001));
        let latency = meter.stats().latency;
        assert!(latency.p50() <= latency.max() && latency.p99_9() <= latency.max());
    }
}
