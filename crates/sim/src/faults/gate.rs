//! Stopping a process between two instructions: an operation waits at a gate until the test opens it.
//!
//! A gate owns two facts, how many operations arrived and whether it is open. What happens to an operation before and
//! after the gate is the store's business.

use std::sync::Arc;

use tokio::sync::watch;

/// The test's handle on operations that are stalled. Dropping it does not open the gate: what waits there waits for ever.
#[derive(Debug, Clone)]
#[must_use = "operations that reach the gate wait until it is released"]
pub struct Gate {
    state: Arc<GateState>,
}

impl Gate {
    /// Waits until an operation stands at the gate (at once, if one ever did).
    pub async fn reached(&self) {
        self.reached_times(1).await;
    }

    /// Waits until `n` operations have arrived, counted from the beginning.
    pub async fn reached_times(&self, n: u64) {
        let mut arrived = self.state.arrived.subscribe();
        // The sender lives in `self`, so the wait cannot end with an error.
        let _ = arrived.wait_for(|count| *count >= n).await;
    }

    /// How many operations have arrived so far.
    pub fn arrivals(&self) -> u64 {
        *self.state.arrived.borrow()
    }

    /// Opens the gate for good: whatever waits there goes on, whatever arrives later does not stop.
    pub fn release(&self) {
        self.state.open.send_replace(true);
    }

    pub(super) fn new() -> Self {
        let state = GateState { arrived: watch::Sender::new(0), open: watch::Sender::new(false) };
        Self { state: Arc::new(state) }
    }

    /// What an operation does: announces itself and waits.
    pub(super) async fn pass(&self) {
        let mut open = self.state.open.subscribe();
        self.state.arrived.send_modify(|count| *count += 1);
        // The sender lives in `self`, so the wait cannot end with an error.
        let _ = open.wait_for(|open| *open).await;
    }
}

#[derive(Debug)]
struct GateState {
    arrived: watch::Sender<u64>,
    open: watch::Sender<bool>,
}
