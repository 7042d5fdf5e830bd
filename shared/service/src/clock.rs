//! The wall clock as services receive it.

use std::sync::Arc;

use contract::EpochMs;

/// Returns the current wall-clock time. Passed in, so that tests control it.
pub type Clock = Arc<dyn Fn() -> EpochMs + Send + Sync>;
