//! What the journal writer does while the disk cannot be used: it continues with a journal in
//! memory, and moves to disk when the journal there can be opened.
//!
//! The chain has no hole at the change: the frames in memory and those that follow on disk are of
//! one chain, and samples that memory has no room for are dropped before they are numbered.
//!
//! A stop waits [`STOP_WAIT_MAX`] for a journal that is just being opened. A salvage takes longer: then
//! the journal in memory is saved in a file beside it. If the disk takes no file either, the stop
//! waits [`LAST_WAIT_MAX`] for the disk, and then counts the frames as lost.

use std::time::Duration;

use service::backoff::Backoff;

use super::{JournalWriter, PENDING_FRAMES_MAX};
use crate::journal::{Journal, JournalError, MEMORY_BYTES_MAX};
use crate::journal_opener::{JournalOpener, JournalOpening, OpenerStart, retry_waits};
use crate::recorder::Sample;

/// How long the stop waits for a journal on disk that is just being opened.
const STOP_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long the stop waits for the disk once more, after the journal in memory could not be saved. With
/// [`STOP_WAIT_MAX`] and what the tasks take it is less than the 30 s that systemd waits.
const LAST_WAIT_MAX: Duration = Duration::from_secs(6);

/// How the journal on disk is opened, and the thread that does it now, if any.
pub struct DiskFallback {
    opening: JournalOpening,
    opener: Option<JournalOpener>,
    /// The waits after a journal that could be opened and then not used: each attempt reads all of
    /// it.
    waits: Backoff,
    /// Why the disk cannot be used.
    problem: String,
    /// Whether the journal in memory is at its bound.
    memory_is_full: bool,
    /// Whether samples are being dropped, because nothing has room for them.
    dropping: bool,
}

impl DiskFallback {
    pub fn new(opening: JournalOpening) -> Self {
        Self {
            opening,
            opener: None,
            waits: retry_waits(),
            problem: String::new(),
            memory_is_full: false,
            dropping: false,
        }
    }
}

impl JournalWriter {
    /// Begins to open the journal on disk, after it could not be used because of `problem`. The
    /// writer's journal must be in memory.
    pub fn start_opening(&mut self, problem: &JournalError) {
        self.start_opening_after(Duration::ZERO, problem);
    }

    fn start_opening_after(&mut self, wait: Duration, problem: &JournalError) {
        self.disk.problem = problem.to_string();
        let found_damaged = matches!(problem, JournalError::Damaged { .. });
        let start = OpenerStart { wait, found_damaged };
        match JournalOpener::start(self.disk.opening.clone(), start) {
            Ok(opener) => self.disk.opener = Some(opener),
            Err(error) => self.disk.problem = format!("{problem}; and no thread: {error}"),
        }
        self.report_memory();
    }

    /// Leaves a journal that is damaged: continues in memory, while it is salvaged.
    pub(super) fn leave_damaged_journal(&mut self, problem: &JournalError) {
        let memory = Journal::in_memory().and_then(|memory| {
            memory.continue_chain(self.recorder.position(), self.recorder.origin())?;
            Ok(memory)
        });
        match memory {
            Ok(memory) => {
                if let Err(error) = Journal::mark_chain_in_memory(&self.disk.opening.folder) {
                    tracing::error!(
                        %error,
                        "if the agent ends before the journal moves to disk, the next start uses \
                         frame numbers again"
                    );
                }
                // Closes the damaged file, which another thread now opens.
                self.journal = memory;
                self.start_opening(problem);
            }
            Err(error) => self.report_error(&error.to_string()),
        }
    }

    /// Moves from memory to disk, if the journal on disk has been opened.
    pub(super) fn move_to_disk(&mut self) {
        let result = self.disk.opener.as_ref().and_then(JournalOpener::poll);
        self.use_opened(result);
    }

    /// Moves from memory to disk at the stop, if the journal on disk is open soon.
    pub(super) fn move_to_disk_at_stop(&mut self) {
        self.wait_for_disk(STOP_WAIT_MAX);
    }

    fn wait_for_disk(&mut self, limit: Duration) {
        let result = self.disk.opener.as_ref().and_then(|opener| opener.wait(limit));
        self.use_opened(result);
    }

    /// Saves the journal in memory at the stop, if it has not moved to disk. Returns how many frames
    /// that the cloud does not have are lost.
    pub(super) fn save_memory_at_stop(&mut self) -> i64 {
        if !self.journal.is_in_memory() {
            return 0;
        }
        let totals = self.journal.totals().unwrap_or_default();
        if totals.frames == 0 {
            return 0;
        }
        let frames = totals.unsent_frames.saturating_add(totals.unsigned_frames);
        match self.journal.save_memory(&self.disk.opening.folder) {
            Ok(()) => {
                tracing::info!(
                    frames,
                    "saved the frames in memory beside the journal; the next start sends them"
                );
                return 0;
            }
            Err(error) => tracing::warn!(%error, "the frames in memory cannot be saved yet"),
        }
        self.wait_for_disk(LAST_WAIT_MAX);
        if self.journal.is_in_memory() { frames } else { 0 }
    }

    fn use_opened(&mut self, result: Option<Result<Journal, JournalError>>) {
        match result {
            None => {}
            Some(Err(problem @ JournalError::OpenerPanicked)) => {
                let wait = self.disk.waits.next(trust::jitter());
                self.start_opening_after(wait, &problem);
            }
            Some(Err(problem)) => {
                self.disk.problem = problem.to_string();
                self.report_memory();
            }
            Some(Ok(journal)) => {
                self.disk.opener = None;
                if let Err(problem) = self.continue_on_disk(journal) {
                    let wait = self.disk.waits.next(trust::jitter());
                    self.start_opening_after(wait, &problem);
                }
            }
        }
    }

    /// Moves the content of the journal in memory into `disk`, and continues there.
    fn continue_on_disk(&mut self, mut disk: Journal) -> Result<(), JournalError> {
        let learned = disk.learned_about(self.recorder.origin())?;
        disk.take_over(&self.journal)?;
        if learned.roasts > self.recorder.learned().roasts {
            self.recorder.set_learned(learned);
        }
        // From here on the disk has this chain's numbers: staying in memory after a later error
        // would use them for frames that the disk does not know.
        self.journal = disk;
        let saved = self.journal.save_learned(self.recorder.learned());
        self.disk.waits.reset();
        self.disk.problem.clear();
        self.disk.memory_is_full = false;
        tracing::info!("the disk can be used: the journal moved from memory to disk");
        self.state.update(|state| state.journal_error = None);
        self.ok_or_log(saved);
        self.publish_origins();
        if let Ok(Some(newest)) = self.journal.newest_unsent() {
            // Its id does not follow the last one, so the uplink reads the journal again.
            let _ = self.live.try_send(newest);
        }
        Ok(())
    }

    /// Measures whether the journal in memory is at its bound.
    pub(super) fn measure_memory(&mut self) {
        self.disk.memory_is_full =
            self.journal.is_in_memory() && self.journal.is_over_quota().unwrap_or(false);
        if self.journal.is_in_memory() {
            self.report_memory();
        }
    }

    /// Returns whether there is room for another sample.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < PENDING_FRAMES_MAX && !self.disk.memory_is_full
    }

    /// Shows a sample and drops it, because nothing has room for it. It gets no number, so the
    /// chain has no hole.
    pub(super) fn drop_sample(&mut self, sample: &Sample) {
        metrics::counter!("simcorp_edge_samples_dropped_total").increment(1);
        self.state.show_dropped_sample(&sample.reading.values, sample.wall.0, sample.mono_ms);
        self.state.update(|state| {
            state.samples_dropped = state.samples_dropped.saturating_add(1);
        });
        if !std::mem::replace(&mut self.disk.dropping, true) {
            tracing::error!("the disk cannot be used and memory is full: dropping samples");
        }
    }

    /// Records that samples are stored again after some were dropped.
    pub(super) fn end_dropping(&mut self) {
        if std::mem::replace(&mut self.disk.dropping, false) {
            tracing::info!("samples are recorded again");
        }
    }

    /// Publishes that the journal is in memory, and why.
    fn report_memory(&self) {
        let megabytes = MEMORY_BYTES_MAX / (1024 * 1024);
        let problem = &self.disk.problem;
        let rest = if self.has_room() {
            format!("samples are kept in memory, at most {megabytes} MB")
        } else {
            "memory is full, and samples are dropped".to_owned()
        };
        self.publish_problem(&format!("{problem}; {rest}"));
    }
}
