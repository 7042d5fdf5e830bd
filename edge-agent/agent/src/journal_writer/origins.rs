//! The machines whose frames are sent. The uplink listens to the acknowledgements for each.

use contract::Origin;
use tokio::sync::watch;

use super::JournalWriter;

impl JournalWriter {
    /// Returns the machines whose frames are sent, and their changes.
    pub fn watch_origins(&self) -> watch::Receiver<Vec<Origin>> {
        self.origins.subscribe()
    }

    /// Publishes the machines whose frames are sent: the current one first, then those with frames that
    /// the cloud does not have. The journal on disk may name more of them than the one in memory did.
    pub fn publish_origins(&self) {
        let current = self.recorder.origin();
        let unsent = self.ok_or_log(self.journal.unsent_origins()).unwrap_or_default();
        let others = unsent.into_iter().filter(|other| other != current);
        let origins: Vec<Origin> = std::iter::once(current.clone()).chain(others).collect();
        self.origins.send_if_modified(|published| {
            let changed = *published != origins;
            *published = origins;
            changed
        });
    }
}
