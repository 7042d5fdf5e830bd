//! Opens the journal on a thread of its own, and again after a failure, while the journal writer
//! keeps samples in memory: a disk may be full or read-only, and the salvage of a large damaged
//! journal takes minutes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel,
};
use std::time::Duration;

use service::backoff::Backoff;
use trust::Signer;

use crate::clock::GatewayClock;
use crate::journal::salvage::OwnKey;
use crate::journal::{Journal, JournalError};

/// The wait between two attempts.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(1);

/// Returns the waits between attempts to use the disk.
pub const fn retry_waits() -> Backoff {
    Backoff::new(RETRY_MIN, RETRY_MAX)
}

/// What is needed to open the journal.
#[derive(Clone)]
pub struct JournalOpening {
    pub folder: PathBuf,
    pub quota_mb: u64,
    pub signer: Arc<dyn Signer>,
    pub clock: GatewayClock,
}

impl JournalOpening {
    /// Opens the journal, or salvages it if it is damaged.
    fn attempt(&self, start: OpenerStart) -> Result<Journal, JournalError> {
        let key = OwnKey::of(&*self.signer);
        let (folder, now) = (&self.folder, self.clock.wall());
        let opened = if start.found_damaged {
            Journal::reopen_or_salvage(folder, self.quota_mb, &key, now)
        } else {
            Journal::open_or_salvage(folder, self.quota_mb, &key, now)
        };
        opened.map(|(journal, _)| journal)
    }

    /// Attempts it until it succeeds, or until the receiver of the results is gone.
    fn run(
        &self,
        start: OpenerStart,
        results: &SyncSender<Result<Journal, JournalError>>,
        stopped: &Receiver<()>,
    ) {
        let (mut wait, mut waits) = (start.wait, retry_waits());
        loop {
            if !matches!(stopped.recv_timeout(wait), Err(RecvTimeoutError::Timeout)) {
                return;
            }
            let opened = self.attempt(start);
            let done = opened.is_ok();
            if results.send(opened).is_err() || done {
                return;
            }
            wait = waits.next(trust::jitter());
        }
    }
}

/// How the opener starts.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenerStart {
    /// The wait before the first attempt.
    pub wait: Duration,
    /// The journal was found damaged while it was used: all of it is checked.
    pub found_damaged: bool,
}

/// The thread that opens the journal. It ends when this value is dropped.
pub struct JournalOpener {
    results: Receiver<Result<Journal, JournalError>>,
    _stop: Sender<()>,
}

impl JournalOpener {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(opening: JournalOpening, start: OpenerStart) -> std::io::Result<Self> {
        let (sender, results) = sync_channel(1);
        let (stop, stopped) = channel();
        std::thread::Builder::new()
            .name("journal-opener".to_owned())
            .spawn(move || opening.run(start, &sender, &stopped))?;
        Ok(Self { results, _stop: stop })
    }

    /// Returns the result of the next attempt, if there is one now;
    /// [`JournalError::OpenerPanicked`] if there will be none.
    pub fn poll(&self) -> Option<Result<Journal, JournalError>> {
        match self.results.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(JournalError::OpenerPanicked)),
        }
    }

    /// Returns the result of the next attempt; waits for it at most `limit`.
    pub fn wait(&self, limit: Duration) -> Option<Result<Journal, JournalError>> {
        self.results.recv_timeout(limit).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trust::{Algorithm, FileKey, PublicKey, SignError};

    struct PanickingSigner(contract::KeyId);

    impl Signer for PanickingSigner {
        fn key_id(&self) -> &contract::KeyId {
            &self.0
        }
        fn public_key(&self) -> Result<PublicKey, SignError> {
            panic!("no key")
        }
        fn sign(&self, _: &[u8]) -> Result<Vec<u8>, SignError> {
            panic!("no key")
        }
    }

    #[test]
    fn a_panic_while_the_journal_is_opened_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let opening = JournalOpening {
            folder: folder.path().to_owned(),
            quota_mb: 16,
            signer: Arc::new(PanickingSigner("device:gw@leipzig".parse().unwrap())),
            clock: GatewayClock::start(),
        };
        let opener = JournalOpener::start(opening, OpenerStart::default()).unwrap();
        assert!(opener.wait(Duration::from_secs(20)).is_none());
        assert!(matches!(opener.poll(), Some(Err(JournalError::OpenerPanicked))));
    }

    #[test]
    fn the_journal_is_opened_after_the_wait_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let kid = "device:gw@leipzig".parse().unwrap();
        let opening = JournalOpening {
            folder: folder.path().to_owned(),
            quota_mb: 16,
            signer: Arc::new(FileKey::generate(kid, Algorithm::EdDsa).unwrap()),
            clock: GatewayClock::start(),
        };
        let in_a_minute = OpenerStart { wait: Duration::from_mins(1), ..OpenerStart::default() };
        let later = JournalOpener::start(opening.clone(), in_a_minute).unwrap();
        assert!(later.wait(Duration::from_millis(100)).is_none());
        let now = JournalOpener::start(opening, OpenerStart::default()).unwrap();
        assert!(now.wait(Duration::from_secs(20)).is_some_and(|opened| opened.is_ok()));
    }
}
