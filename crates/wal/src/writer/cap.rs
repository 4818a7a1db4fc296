//! The cap on PUTs per second: a token bucket on tokio's clock.

use std::time::Duration;

use tokio::time::Instant;

use super::WalConfig;

/// Holds as many tokens as PUTs may run at once, and gains one every `between`.
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
