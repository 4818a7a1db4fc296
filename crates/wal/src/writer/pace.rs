//! When the next PUT may start although a place in the window is free: the cap on PUTs per second, and the distance
//! in time that PUTs keep in a crowd. On tokio's clock.

use std::time::Duration;

use tokio::time::Instant;

use super::WalConfig;

/// The cap on PUTs per second: holds as many tokens as PUTs may run at once, and gains one every `between`.
#[derive(Debug)]
pub(super) struct Cap {
    between: Duration,
    /// How far `paid_until` may be ahead of the clock: a full bucket but for the token that is taken.
    slack: Duration,
    paid_until: Instant,
}

impl Cap {
    /// The cap that a config asks for; the bucket is full.
    pub(super) fn new(config: &WalConfig) -> Option<Self> {
        let between = Duration::from_secs_f64(1.0 / config.max_puts_per_second?);
        let others = u32::try_from(config.max_in_flight.saturating_sub(1)).unwrap_or(u32::MAX);
        Some(Self { between, slack: between.saturating_mul(others), paid_until: Instant::now() })
    }

    /// When the next PUT may start; not in the future if it may start now.
    pub(super) fn ready_at(&self) -> Instant {
        self.paid_until.checked_sub(self.slack).unwrap_or(self.paid_until)
    }

    /// Counts a PUT.
    pub(super) fn take(&mut self) {
        self.paid_until = self.paid_until.max(Instant::now()) + self.between;
    }
}

/// Keeps PUTs apart when more appends are under way than PUTs may run. Each append that found a free place would be sent
/// at once otherwise: those that come first take all places with small groups at nearly the same moment, and the many
/// behind them wait a whole PUT's time until all places become free, at nearly the same moment again. Apart by a
/// PUT's time divided by their number, the places become free one after the other, and an append waits for a fraction.
#[derive(Debug)]
pub(super) struct Spacing {
    places: u32,
    /// What a PUT takes, as far as seen; outliers count little.
    put_time: Option<Duration>,
    last_start: Instant,
}

impl Spacing {
    pub(super) fn new(config: &WalConfig) -> Self {
        let places = u32::try_from(config.max_in_flight).unwrap_or(u32::MAX).max(1);
        Self { places, put_time: None, last_start: Instant::now() }
    }

    pub(super) fn started(&mut self) {
        self.last_start = Instant::now();
    }

    pub(super) fn took(&mut self, sample: Duration) {
        let known = self.put_time.unwrap_or(sample);
        self.put_time = Some(match sample.checked_sub(known) {
            Some(more) => known + (more / 8).min(known / 8 + Duration::from_micros(100)),
            None => known - (known - sample) / 8,
        });
    }

    /// When the next PUT may start, with so many appends under way.
    pub(super) fn ready_at(&self, appends: usize) -> Instant {
        match appends > self.places as usize {
            true => self.last_start + self.put_time.unwrap_or_default() / self.places,
            false => self.last_start,
        }
    }
}
