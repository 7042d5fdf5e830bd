//! What several fuzz targets share: a runtime, connections in memory, and zip archives.

mod connection;
mod zip;

use tokio::runtime::{Builder, Runtime};

pub use connection::MemoryServer;
pub use zip::zip;

/// Returns a runtime of one thread.
///
/// # Panics
/// When the system has no resources for it.
#[must_use]
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}
