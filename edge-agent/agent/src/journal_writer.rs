//! The journal writer: the only thread that owns the recorder, the key and the journal. It turns
//! samples into frames, signs and stores the frames, and reads the journal for the uplink.
//!
//! A frame that cannot be stored waits in memory, and so does the whole journal while the disk cannot
//! be opened ([`disk_fallback`]). Both are bounded. At the bound samples are dropped and counted
//! before they get a number, so that the chain never has a hole.

mod disk_fallback;
mod origins;

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use contract::{Ack, ChainId, EpochMs, EventKind, Origin};
use tokio::sync::{mpsc, oneshot, watch};
use trust::{CONTENT_FRAME, CONTENT_RECEIPT};

use crate::agent_state::{AgentState, ForecastSummary, WatchedThread};
use crate::clock::GatewayClock;
use crate::journal::{FetchLimit, Journal, JournalError, OutgoingFrame, StoredMessage};
use crate::journal_opener::JournalOpening;
use crate::recorder::{CompletedFrame, Recorder, Sample};
use crate::restart;
use crate::signing::BackoffSigner;

use disk_fallback::DiskFallback;

/// How many frames are held in memory while they cannot be stored: about ten minutes. Beyond it new
/// samples are dropped and counted, so that earlier samples are stored first.
const PENDING_FRAMES_MAX: usize = 600;
/// How many unsigned frames are signed in one round of maintenance.
const SIGN_PENDING_MAX: usize = 50;
/// How long one such round may go on signing frames, in ms: a slow PKCS#11 token must not delay
/// samples.
const SIGN_PENDING_MS_MAX: u64 = 150;
const RECEIPTS_MAX: usize = 5;
/// The shortest time between two rounds of maintenance (late signatures, quota, totals), in ms.
const MAINTENANCE_INTERVAL_MS: u64 = 1_000;

/// A command to the thread that owns the journal.
pub enum JournalCommand {
    /// Records a sample.
    Sample(Sample),
    /// Records an event by a person.
    RecordEvent { kind: EventKind, note: Option<String>, done: oneshot::Sender<ManualEventResult> },
    /// Applies an acknowledgement from the cloud.
    Ack(Ack),
    /// Returns unsent frames with journal ids between `after` and `before`, both exclusive.
    ReadUnsent {
        after: i64,
        before: i64,
        room: FetchLimit,
        /// Chains to skip.
        except: Vec<ChainId>,
        answer: oneshot::Sender<Vec<OutgoingFrame>>,
    },
    /// Returns the newest unsent frame.
    ReadNewestUnsent { answer: oneshot::Sender<Option<OutgoingFrame>> },
    /// Returns the journal id of the running roast's first frame.
    ReadRunningRoastStart { answer: oneshot::Sender<Option<i64>> },
    /// Returns receipts of closed roasts that the cloud has not confirmed as complete.
    ReadReceipts { limit: usize, answer: oneshot::Sender<Vec<(Origin, Vec<u8>)>> },
    /// Stores the pending samples, and stops the thread.
    Stop,
}

/// What became of an event that a person reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManualEventResult {
    Recorded,
    /// The event does not apply now: for example a DROP without a roast.
    NotApplicable,
    /// The disk cannot be used, and memory is full.
    NoRoom,
}

/// Owns the recorder, the key and the journal; see the module.
pub struct JournalWriter {
    pub recorder: Recorder,
    pub journal: Journal,
    signing: BackoffSigner,
    pub state: AgentState,
    pub clock: GatewayClock,
    /// Sends stored frames to the live lane. If this channel is full, no frame is lost: the backlog
    /// lane sends it.
    pub live: mpsc::Sender<OutgoingFrame>,
    pub frame_ms: u64,
    /// The machines whose frames are sent; see [`JournalWriter::publish_origins`].
    origins: watch::Sender<Vec<Origin>>,
    /// Frames that are not stored yet, oldest first.
    pending: VecDeque<CompletedFrame>,
    disk: DiskFallback,
    /// The journal on disk was found to be damaged.
    found_damage: Cell<bool>,
    /// When the last round of maintenance ended, on the monotonic clock, in ms.
    last_maintenance_ms: u64,
    /// When the last sample was received, on the monotonic clock, in ms.
    last_sample_ms: u64,
}

impl JournalWriter {
    pub fn new(
        recorder: Recorder,
        journal: Journal,
        opening: JournalOpening,
        state: AgentState,
        live: mpsc::Sender<OutgoingFrame>,
        frame_ms: u64,
    ) -> Self {
        Self {
            origins: watch::Sender::new(vec![recorder.origin().clone()]),
            recorder,
            journal,
            signing: BackoffSigner::new(opening.signer.clone()),
            state,
            clock: opening.clock,
            live,
            frame_ms,
            pending: VecDeque::new(),
            disk: DiskFallback::new(opening),
            found_damage: Cell::new(false),
            last_maintenance_ms: 0,
            last_sample_ms: 0,
        }
    }

    /// Continues a roast that was running a short time ago (see `restart::charge_ms`), and abandons
    /// all others that were running.
    ///
    /// # Errors
    /// When the journal cannot be read or written.
    pub fn resume(&mut self) -> Result<(), JournalError> {
        let newest = self.journal.newest_ms()?.map(EpochMs);
        let roast = self.journal.running_roast()?.zip(newest).and_then(|(roast, newest)| {
            let charge_ms = restart::charge_ms(&roast, newest, &self.clock.read())?;
            Some((roast, charge_ms))
        });
        self.journal.abandon_roasts(roast.as_ref().map(|(roast, _)| &roast.session))?;
        if let Some((roast, charge_ms)) = roast {
            tracing::info!(session = %roast.session, "continuing a running roast");
            self.recorder.resume(roast, charge_ms);
        }
        Ok(())
    }

    /// Executes commands until [`JournalCommand::Stop`], or until all senders are gone. Runs on its own
    /// thread.
    pub fn run(mut self, commands: &Receiver<JournalCommand>) {
        let idle_ms = self.frame_ms.clamp(200, 60_000);
        loop {
            match commands.recv_timeout(Duration::from_millis(idle_ms)) {
                Ok(JournalCommand::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(command) => self.execute(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // If no samples arrive any more, the pending ones are stored now, even while the uplink
            // sends many requests.
            self.move_to_disk();
            let now = self.clock.mono_ms();
            self.state.heartbeat(WatchedThread::JournalWriter, now);
            if now.saturating_sub(self.last_sample_ms) > idle_ms.saturating_mul(2) {
                self.last_sample_ms = now;
                let completed = self.recorder.flush();
                self.store_pending(completed);
            }
        }
        let completed = self.recorder.flush();
        self.store_pending(completed);
        self.move_to_disk_at_stop();
        // What was learned since the end of the last roast.
        let saved = self.journal.save_learned(self.recorder.learned());
        self.ok_or_log(saved);
        let in_memory = self.save_memory_at_stop();
        if !self.pending.is_empty() || in_memory > 0 {
            tracing::error!(
                frames = self.pending.len(),
                in_memory,
                "stopping; these frames could not be stored and are lost"
            );
        }
    }

    /// Executes one command.
    fn execute(&mut self, command: JournalCommand) {
        match command {
            JournalCommand::Sample(sample) => {
                self.last_sample_ms = self.clock.mono_ms();
                if !self.has_room() {
                    self.drop_sample(&sample);
                    self.store_pending(None);
                    return;
                }
                self.end_dropping();
                metrics::counter!("simcorp_edge_samples_total").increment(1);
                let at = sample.wall.0;
                self.state.update(|state| {
                    state.samples = state.samples.saturating_add(1);
                    state.last_sample_ms = Some(at);
                });
                let completed = self.recorder.push(sample);
                self.store_pending(completed);
            }
            JournalCommand::RecordEvent { done, .. } if !self.has_room() => {
                let _ = done.send(ManualEventResult::NoRoom);
            }
            JournalCommand::RecordEvent { kind, note, done } => {
                let marked = self.recorder.record_manual_event(kind, note);
                let _ = done.send(match marked {
                    Ok(_) => ManualEventResult::Recorded,
                    Err(_) => ManualEventResult::NotApplicable,
                });
                self.store_pending(marked.unwrap_or_default());
            }
            JournalCommand::Ack(ack) => self.apply_ack(&ack),
            JournalCommand::ReadUnsent { after, before, room, except, answer } => {
                let unsent = self.journal.unsent(after, before, room, &except);
                let _ = answer.send(self.ok_or_log(unsent).unwrap_or_default());
            }
            JournalCommand::ReadNewestUnsent { answer } => {
                let newest = self.journal.newest_unsent();
                let _ = answer.send(self.ok_or_log(newest).flatten());
            }
            JournalCommand::ReadRunningRoastStart { answer } => {
                let from = self.journal.running_roast_first_id();
                let _ = answer.send(self.ok_or_log(from).flatten());
            }
            JournalCommand::ReadReceipts { limit, answer } => {
                let receipts = self.journal.open_receipts(limit);
                let _ = answer.send(self.ok_or_log(receipts).unwrap_or_default());
            }
            JournalCommand::Stop => {}
        }
    }

    /// Appends a completed frame to the pending ones, and stores all of them in order until storing
    /// one fails.
    fn store_pending(&mut self, completed: Option<CompletedFrame>) {
        if let Some(completed) = completed {
            self.state.add_frame(&completed.frame, self.clock.mono_ms());
            let session = completed.running.as_ref();
            let (name, started) =
                (session.map(|r| r.session.to_string()), session.map(|r| r.started.0));
            let outlook = self.recorder.outlook().as_ref().map(ForecastSummary::from_outlook);
            let begun_before = self.recorder.begun_before().map(|charge| charge.0);
            self.state.update(|state| {
                state.session = name;
                state.session_started_ms = started;
                state.begun_before_ms = begun_before;
                state.ahead = outlook;
            });
            if completed.closed.is_some() {
                let saved = self.journal.save_learned(self.recorder.learned());
                self.ok_or_log(saved);
            }
            // A frame that has its number is never dropped: the next one links to it.
            self.pending.push_back(completed);
        }
        while let Some(completed) = self.pending.pop_front() {
            self.state.heartbeat(WatchedThread::JournalWriter, self.clock.mono_ms());
            match self.store_frame(&completed) {
                Ok(outgoing) => {
                    if let Some(outgoing) = outgoing {
                        let _ = self.live.try_send(outgoing);
                    }
                    if !self.journal.is_in_memory() {
                        self.state.update(|state| state.journal_error = None);
                    }
                }
                Err(problem) => {
                    self.pending.push_front(completed);
                    if matches!(problem, JournalError::Damaged { .. })
                        && !self.journal.is_in_memory()
                    {
                        self.leave_damaged_journal(&problem);
                        if self.journal.is_in_memory() {
                            continue;
                        }
                    }
                    let rest =
                        if self.has_room() { "" } else { "; memory is full, samples are dropped" };
                    self.report_error(&format!("{problem}{rest}"));
                    break;
                }
            }
        }
        self.maintain();
    }

    /// Signs and stores a frame. Returns `None` if the frame was stored without a signature,
    /// because the key cannot be used now.
    fn store_frame(
        &mut self,
        completed: &CompletedFrame,
    ) -> Result<Option<OutgoingFrame>, JournalError> {
        let now = self.clock.mono_ms();
        let signed = self.signing.sign(CONTENT_FRAME, completed.payload.clone(), now);
        self.report_key_state();
        let message = signed
            .as_deref()
            .map_or(StoredMessage::Unsigned(&completed.payload), StoredMessage::Signed);
        let (closed, running) = (completed.closed.as_ref(), completed.running.as_ref());
        let outgoing =
            self.journal.append(&completed.frame, completed.digest, message, closed, running)?;
        let frame = completed.frame.number;
        for event in &completed.frame.events {
            tracing::info!(
                session = %event.session, kind = %event.kind, elapsed_s = event.elapsed_s,
                source = event.source.as_str(), frame, chain = %completed.frame.chain,
                "event recorded"
            );
        }
        tracing::debug!(frame, samples = completed.frame.sample_count(), "frame stored");
        if completed.withdrawn {
            let running = completed.running.as_ref().map(|roast| &roast.session);
            self.ok_or_log(self.journal.abandon_roasts(running));
        }
        if completed.closed.is_some() {
            let signed = self.sign_receipts();
            self.ok_or_log(signed);
            self.report_key_state();
        }
        Ok(outgoing)
    }

    /// Signs stored frames and receipts that have no signature yet, oldest frames first, for a
    /// bounded time. Receipts come after frames, because a receipt is about frames.
    fn sign_pending(&mut self) -> Result<(), JournalError> {
        let began = self.clock.mono_ms();
        let waiting = self.journal.unsigned_frames(SIGN_PENDING_MAX)?;
        let mut signed = Vec::new();
        for frame in &waiting {
            let now = self.clock.mono_ms();
            if now.saturating_sub(began) > SIGN_PENDING_MS_MAX {
                break;
            }
            match self.signing.sign(CONTENT_FRAME, frame.text.clone(), now) {
                Some(message) => signed.push((frame.key, message)),
                None => break,
            }
        }
        self.journal.store_signed_frames(&signed)?;
        if !signed.is_empty()
            && let Some(newest) = self.journal.newest_unsent()?
        {
            // This frame's id does not follow the last one on the live lane. From that the uplink
            // knows that it did not receive some frames, and reads them from the journal.
            let _ = self.live.try_send(newest);
        }
        if signed.len() == waiting.len() && waiting.len() < SIGN_PENDING_MAX {
            self.sign_receipts()?;
        }
        Ok(())
    }

    /// Signs the receipts of closed roasts that have no signature yet. Without its receipt the
    /// cloud never confirms a roast as complete.
    fn sign_receipts(&mut self) -> Result<(), JournalError> {
        for receipt in self.journal.unsigned_receipts(RECEIPTS_MAX)? {
            let now = self.clock.mono_ms();
            let Some(message) = self.signing.sign(CONTENT_RECEIPT, receipt.text, now) else {
                break;
            };
            self.journal.store_signed_receipt(&receipt.key, &message)?;
            tracing::info!(session = receipt.key, "roast closed, receipt signed");
        }
        Ok(())
    }

    /// Publishes whether the key works in the agent's state, and logs each change.
    fn report_key_state(&self) {
        let problem = self.signing.problem();
        self.state.update(|state| {
            if state.key_error.as_deref() != problem {
                if let Some(problem) = problem {
                    tracing::error!(problem, "the key cannot be used; frames are signed later");
                } else {
                    tracing::info!("the key can be used again");
                }
                state.key_error = problem.map(str::to_owned);
            }
        });
    }

    /// Applies an acknowledgement from the cloud. Starts a new chain if the cloud has other content
    /// under this chain's numbers.
    fn apply_ack(&mut self, ack: &Ack) {
        let applied = self.journal.apply_ack(ack);
        self.ok_or_log(applied);
        self.maintain();
        for refused in &ack.refused {
            metrics::counter!("simcorp_edge_frames_refused_total", "reason" => refused.reason.as_str())
                .increment(1);
        }
        if let Some(refused) = ack.refused.iter().find(|r| r.reason.is_final())
            && ack.chain == self.recorder.chain()
        {
            // The cloud has another history under this chain's numbers: this disk was restored from
            // a copy. The refused frames stay in the journal for a person to examine; new frames
            // start a new chain.
            match trust::random::<16>().map(ChainId) {
                Ok(chain) => {
                    tracing::error!(
                        frame = refused.frame, reason = refused.reason.as_str(), new_chain = %chain,
                        "the cloud has other content under our frame numbers; starting a new chain"
                    );
                    self.recorder.start_chain(chain);
                    let started = self.journal.start_chain(chain, self.recorder.origin());
                    self.ok_or_log(started);
                }
                Err(error) => tracing::error!(%error, "cannot start a new chain"),
            }
        }
    }

    /// Signs what is still unsigned, enforces the quota and updates the totals, at most once in
    /// each [`MAINTENANCE_INTERVAL_MS`].
    fn maintain(&mut self) {
        let now = self.clock.mono_ms();
        if now.saturating_sub(self.last_maintenance_ms) < MAINTENANCE_INTERVAL_MS {
            return;
        }
        if self.found_damage.take() && !self.journal.is_in_memory() {
            let source = rusqlite::Error::InvalidParameterName("a damaged page".to_owned());
            let problem = JournalError::Damaged { doing: "reading the journal", source };
            self.leave_damaged_journal(&problem);
        }
        if !self.signing.is_backing_off(now) {
            let caught_up = self.sign_pending();
            self.ok_or_log(caught_up);
            self.report_key_state();
        }
        // Taken after the signing, so that a slow PKCS#11 token leaves most of each second to
        // samples.
        self.last_maintenance_ms = self.clock.mono_ms();
        let freed = self.journal.enforce_quota();
        if let Some(lost) = self.ok_or_log(freed)
            && lost > 0
        {
            metrics::counter!("simcorp_edge_frames_lost_total").increment(lost);
            tracing::error!(frames = lost, "deleted unacknowledged frames for the quota");
            self.state.update(|state| {
                state.frames_lost = state.frames_lost.saturating_add(lost);
            });
        }
        self.measure_memory();
        let totals = self.journal.totals();
        if let Some(totals) = self.ok_or_log(totals) {
            {
                metrics::gauge!("simcorp_edge_unsent_frames").set(totals.unsent_frames as f64);
                metrics::gauge!("simcorp_edge_journal_bytes").set(totals.bytes as f64);
            }
            self.state.update(|state| state.journal = totals);
        }
    }

    /// Returns the value; reports an error and returns `None` instead if there is one.
    fn ok_or_log<T>(&self, result: Result<T, JournalError>) -> Option<T> {
        let report = |error: JournalError| {
            if matches!(error, JournalError::Damaged { .. }) {
                self.found_damage.set(true);
            }
            self.report_error(&error.to_string());
        };
        result.map_err(report).ok()
    }

    /// Counts a journal error and publishes it.
    fn report_error(&self, problem: &str) {
        metrics::counter!("simcorp_edge_journal_errors_total").increment(1);
        self.publish_problem(problem);
    }

    /// Publishes a problem of the journal in the agent's state. Logs it only if it differs from the
    /// last one.
    fn publish_problem(&self, problem: &str) {
        self.state.update(|state| {
            if state.journal_error.as_deref() != Some(problem) {
                tracing::error!(problem, "the journal cannot be used; new frames stay in memory");
                state.journal_error = Some(problem.to_owned());
            }
        });
    }
}

#[cfg(test)]
mod tests;
