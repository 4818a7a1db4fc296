//! How often and how patiently a store request is tried again, and which errors are worth it.

use std::time::Duration;

use object_store::Error as StoreError;

/// Limits of the retries of one store request.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Attempts in all, the first included. Default 8.
    pub max_attempts: usize,
    /// Pause before the second attempt; doubles with each further one. Default 50 ms.
    pub base_delay: Duration,
    /// Longest pause. Default 5 s.
    pub max_delay: Duration,
    /// How long one attempt may take before its outcome counts as unknown and it is sent again. Default 30 s.
    pub attempt_timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 8,
            base_delay: Duration::from_millis(50),
            max_delay: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// The pause before attempt `attempt` (0 is the first).
    fn delay(&self, attempt: usize) -> Duration {
        let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(20);
        self.base_delay.saturating_mul(1 << doublings).min(self.max_delay)
    }

    /// Counts the attempts of one request.
    pub(crate) fn start(&self) -> Attempts<'_> {
        Attempts { policy: self, done: 0 }
    }
}

/// The attempts made so far of one request.
pub(crate) struct Attempts<'a> {
    policy: &'a RetryPolicy,
    done: usize,
}

impl Attempts<'_> {
    /// Waits before the next attempt; `false` if the limit is reached.
    pub(crate) async fn again(&mut self) -> bool {
        self.done += 1;
        if self.done >= self.policy.max_attempts {
            return false;
        }
        tokio::time::sleep(self.policy.delay(self.done)).await;
        true
    }

    pub(crate) fn made(&self) -> usize {
        self.done
    }
}

/// Whether the same request may succeed if it is sent again.
pub(crate) fn is_transient(error: &StoreError) -> bool {
    !matches!(
        error,
        StoreError::NotFound { .. }
            | StoreError::InvalidPath { .. }
            | StoreError::NotSupported { .. }
            | StoreError::NotImplemented { .. }
            | StoreError::AlreadyExists { .. }
            | StoreError::Precondition { .. }
            | StoreError::NotModified { .. }
            | StoreError::PermissionDenied { .. }
            | StoreError::Unauthenticated { .. }
            | StoreError::UnknownConfigurationKey { .. }
    ) && !is_refusal(error)
}

/// Whether a server refused a request for good, in a place where `object_store` hides the status (a LIST with wrong
/// credentials). It decides nothing but how often we ask.
fn is_refusal(error: &StoreError) -> bool {
    status_of(error).is_some_and(|status| (400..500).contains(&status) && !matches!(status, 408 | 425 | 429))
}

/// The HTTP status behind an error. `object_store` keeps it only in the text of the cause.
pub(crate) fn status_of(error: &StoreError) -> Option<u16> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if let Some(status) = text.strip_prefix("Server returned non-2xx status code: ").and_then(|rest| rest.get(..3))
        {
            return status.parse().ok();
        }
        cause = error.source();
    }
    None
}
