//! The keeper: the one thread that owns recorder, key and journal. It makes frames of samples,
//! signs and keeps them, and answers the uplink's questions about what is kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use contract::{Ack, ChainId, EpochMs, EventKind, Origin};
use tokio::sync::{mpsc, oneshot};
use trust::{CONTENT_FRAME, CONTENT_RECEIPT, Signer};

use crate::board::{Ahead, Board, Part};
use crate::clock::Clock;
use crate::journal::{Journal, JournalError, Message, Outgoing, Room};
use crate::recorder::{Cut, Recorder, Sample};
use crate::signing::Signing;

/// Frames held in memory while the disk does not take them: about ten minutes. Past it the newest
/// is given up and counted, so that what was measured first is kept first.
const UNKEPT_MAX: usize = 600;
/// Frames that waited for the key and are signed at once, and for how long: a slow token must not
/// keep samples waiting.
const CATCH_UP_MAX: usize = 50;
const CATCH_UP_MS_MAX: u64 = 150;
const RECEIPTS_MAX: usize = 5;
/// The quota is looked after, and the journal counted, at most this often.
const LOOK_AFTER_EVERY_MS: u64 = 1_000;
/// A restart sooner than this goes on with the roast that was running.
const RESUME_WITHIN_MS: i64 = 30 * 60 * 1000;

/// What the keeper is asked to do.
pub enum Job {
    Sample(Sample),
    Mark {
        kind: EventKind,
        note: Option<String>,
        done: oneshot::Sender<bool>,
    },
    Ack(Ack),
    Unsent {
        after: i64,
        before: i64,
        room: Room,
        /// Chains that are passed over.
        except: Vec<ChainId>,
        answer: oneshot::Sender<Vec<Outgoing>>,
    },
    NewestUnsent {
        answer: oneshot::Sender<Option<Outgoing>>,
    },
    RunningFrom {
        answer: oneshot::Sender<Option<i64>>,
    },
    Receipts {
        limit: usize,
        answer: oneshot::Sender<Vec<(Origin, Vec<u8>)>>,
    },
    /// Keep what waits, and end.
    Stop,
}

pub struct Keeper {
    pub recorder: Recorder,
    pub journal: Journal,
    signing: Signing,
    pub board: Board,
    pub clock: Clock,
    /// Frames as they are kept, for the live lane; a full lane is no loss, the backlog has them.
    pub live: mpsc::Sender<Outgoing>,
    pub frame_ms: u64,
    unkept: VecDeque<Cut>,
    looked_ms: u64,
    /// When the last sample came.
    sampled_ms: u64,
}

impl Keeper {
    pub fn new(
        recorder: Recorder,
        journal: Journal,
        signer: Arc<dyn Signer>,
        board: Board,
        clock: Clock,
        live: mpsc::Sender<Outgoing>,
        frame_ms: u64,
    ) -> Self {
        let unkept = VecDeque::new();
        Self {
            recorder,
            journal,
            signing: Signing::new(signer),
            board,
            clock,
            live,
            frame_ms,
            unkept,
            looked_ms: 0,
            sampled_ms: 0,
        }
    }

    /// Goes on with a roast that was running a short while ago.
    ///
    /// # Errors
    /// When the journal does not answer.
    pub fn resume(&mut self) -> Result<(), JournalError> {
        // A gateway without a clock chip may wake in the past: its own journal knows better.
        let newest = self.journal.newest_ms()?;
        let now = newest.map_or(self.clock.wall(), |ms| self.clock.wall().max(EpochMs(ms)));
        let fresh = newest.is_some_and(|ms| now.0 - ms < RESUME_WITHIN_MS);
        let roast = self.journal.running_roast()?.filter(|_| fresh);
        self.journal.abandon_roasts(roast.as_ref().map(|roast| &roast.session))?;
        if let Some(roast) = roast {
            tracing::info!(session = %roast.session, "going on with a running roast");
            self.recorder.resume(roast, self.clock.mono_ms(), now);
        }
        Ok(())
    }

    /// Works until [`Job::Stop`]. Runs on a thread of its own.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        let idle_ms = self.frame_ms.clamp(200, 60_000);
        loop {
            match jobs.recv_timeout(Duration::from_millis(idle_ms)) {
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(job) => self.work(job),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Samples have ceased: what waits is kept now, however busy the uplink is with asking.
            let now = self.clock.mono_ms();
            self.board.beat(Part::Keeper, now);
            if now.saturating_sub(self.sampled_ms) > 2 * idle_ms {
                self.sampled_ms = now;
                let cut = self.recorder.flush();
                self.take(cut);
            }
        }
        let cut = self.recorder.flush();
        self.take(cut);
        if !self.unkept.is_empty() {
            tracing::error!(
                frames = self.unkept.len(),
                "stopping with frames the disk did not take"
            );
        }
    }

    fn work(&mut self, job: Job) {
        match job {
            Job::Sample(sample) => {
                metrics::counter!("simcorp_edge_samples_total").increment(1);
                self.sampled_ms = self.clock.mono_ms();
                let at = sample.wall.0;
                self.board.update(|state| {
                    state.samples += 1;
                    state.last_sample_ms = Some(at);
                });
                let cut = self.recorder.push(sample);
                self.take(cut);
            }
            Job::Mark { kind, note, done } => {
                let marked = self.recorder.mark(kind, note);
                let _ = done.send(marked.is_ok());
                self.take(marked.unwrap_or_default());
            }
            Job::Ack(ack) => self.apply(&ack),
            Job::Unsent { after, before, room, except, answer } => {
                let unsent = self.journal.unsent(after, before, room, &except);
                let _ = answer.send(self.heard(unsent).unwrap_or_default());
            }
            Job::NewestUnsent { answer } => {
                let newest = self.journal.newest_unsent();
                let _ = answer.send(self.heard(newest).flatten());
            }
            Job::RunningFrom { answer } => {
                let from = self.journal.running_from();
                let _ = answer.send(self.heard(from).flatten());
            }
            Job::Receipts { limit, answer } => {
                let receipts = self.journal.open_receipts(limit);
                let _ = answer.send(self.heard(receipts).unwrap_or_default());
            }
            Job::Stop => {}
        }
    }

    /// Keeps a cut frame after those that still wait for the disk.
    fn take(&mut self, cut: Option<Cut>) {
        if let Some(cut) = cut {
            // The next frame links to this one whether or not the disk has taken it yet.
            self.recorder.chained(trust::digest(&cut.frame.encode()));
            self.board.add(&cut.frame, self.clock.mono_ms());
            let session = cut.running.as_ref();
            let (name, started) =
                (session.map(|r| r.session.to_string()), session.map(|r| r.started.0));
            let outlook = self.recorder.outlook().as_ref().map(Ahead::of);
            self.board.update(|state| {
                state.session = name;
                state.session_started_ms = started;
                state.ahead = outlook;
            });
            if cut.closed.is_some() {
                let kept = self.journal.keep_learned(self.recorder.learned());
                self.heard(kept);
            }
            if self.unkept.len() >= UNKEPT_MAX {
                metrics::counter!("simcorp_edge_frames_lost_total").increment(1);
                self.board.update(|state| state.frames_lost += 1);
            } else {
                self.unkept.push_back(cut);
            }
        }
        while let Some(cut) = self.unkept.pop_front() {
            self.board.beat(Part::Keeper, self.clock.mono_ms());
            match self.keep(&cut) {
                Ok(outgoing) => {
                    if let Some(outgoing) = outgoing {
                        let _ = self.live.try_send(outgoing);
                    }
                    self.board.update(|state| state.journal_error = None);
                }
                Err(problem) => {
                    self.complain(&problem);
                    self.unkept.push_front(cut);
                    break;
                }
            }
        }
        self.look_after();
    }

    /// `None` when the frame is kept and waits for the key.
    fn keep(&mut self, cut: &Cut) -> Result<Option<Outgoing>, String> {
        let payload = cut.frame.encode();
        let digest = trust::digest(&payload);
        let now = self.clock.mono_ms();
        let signed = self.signing.sign(CONTENT_FRAME, payload.clone(), now);
        self.tell_of_key();
        let message = signed.as_deref().map_or(Message::Unsigned(&payload), Message::Signed);
        let (closed, running) = (cut.closed.as_ref(), cut.running.as_ref());
        let kept = self.journal.append(&cut.frame, digest, message, closed, running);
        let outgoing = kept.map_err(|e| e.to_string())?;
        let frame = cut.frame.number;
        for event in &cut.frame.events {
            tracing::info!(
                session = %event.session, kind = %event.kind, elapsed_s = event.elapsed_s,
                source = event.source.as_str(), frame, chain = %cut.frame.chain,
                "marked"
            );
        }
        tracing::debug!(frame, samples = cut.frame.sample_count(), "kept");
        if cut.withdrawn {
            let running = cut.running.as_ref().map(|roast| &roast.session);
            self.heard(self.journal.abandon_roasts(running));
        }
        if cut.closed.is_some() {
            let signed = self.sign_receipts();
            self.heard(signed);
            self.tell_of_key();
        }
        Ok(outgoing)
    }

    /// Signs what waited for the key, oldest first, for a bounded time; frames before receipts,
    /// since a receipt speaks of frames.
    fn catch_up(&mut self) -> Result<(), JournalError> {
        let began = self.clock.mono_ms();
        let waiting = self.journal.unsigned_frames(CATCH_UP_MAX)?;
        let mut signed = Vec::new();
        for frame in &waiting {
            let now = self.clock.mono_ms();
            if now.saturating_sub(began) > CATCH_UP_MS_MAX {
                break;
            }
            match self.signing.sign(CONTENT_FRAME, frame.text.clone(), now) {
                Some(message) => signed.push((frame.key, message)),
                None => break,
            }
        }
        self.journal.frames_signed(&signed)?;
        if !signed.is_empty()
            && let Some(newest) = self.journal.newest_unsent()?
        {
            // Out of turn on the live lane: the uplink sees that frames came without passing it,
            // and looks for them.
            let _ = self.live.try_send(newest);
        }
        if signed.len() == waiting.len() && waiting.len() < CATCH_UP_MAX {
            self.sign_receipts()?;
        }
        Ok(())
    }

    /// Without its receipt the cloud never calls a roast complete.
    fn sign_receipts(&mut self) -> Result<(), JournalError> {
        for receipt in self.journal.unsigned_receipts(RECEIPTS_MAX)? {
            let now = self.clock.mono_ms();
            let Some(message) = self.signing.sign(CONTENT_RECEIPT, receipt.text, now) else {
                break;
            };
            self.journal.receipt_signed(&receipt.key, &message)?;
            tracing::info!(session = receipt.key, "roast closed, receipt signed");
        }
        Ok(())
    }

    fn tell_of_key(&self) {
        let problem = self.signing.problem();
        self.board.update(|state| {
            if state.key_error.as_deref() != problem {
                if let Some(problem) = problem {
                    tracing::error!(problem, "the key cannot be used; frames wait for it");
                } else {
                    tracing::info!("the key can be used again");
                }
                state.key_error = problem.map(str::to_owned);
            }
        });
    }

    fn apply(&mut self, ack: &Ack) {
        let applied = self.journal.apply(ack);
        self.heard(applied);
        self.look_after();
        for refused in &ack.refused {
            metrics::counter!("simcorp_edge_frames_refused_total", "reason" => refused.reason.as_str())
                .increment(1);
        }
        if let Some(refused) = ack.refused.iter().find(|r| r.reason.is_final())
            && ack.chain == self.recorder.chain()
        {
            // The cloud has another history under our numbers: this disk was restored from a copy.
            // What was refused stays here for a person; what comes now begins a chain of its own.
            match trust::random::<16>().map(ChainId) {
                Ok(chain) => {
                    tracing::error!(
                        frame = refused.frame, reason = refused.reason.as_str(), new_chain = %chain,
                        "the cloud has other content under this journal's numbers; a new chain begins"
                    );
                    self.recorder.start_chain(chain);
                    let started = self
                        .journal
                        .start_chain(chain, self.recorder.origin())
                        .and_then(|()| self.journal.abandon_roasts(None));
                    self.heard(started);
                }
                Err(error) => tracing::error!(%error, "cannot begin a new chain"),
            }
        }
    }

    fn look_after(&mut self) {
        let now = self.clock.mono_ms();
        if now.saturating_sub(self.looked_ms) < LOOK_AFTER_EVERY_MS {
            return;
        }
        if !self.signing.rests(now) {
            let caught_up = self.catch_up();
            self.heard(caught_up);
            self.tell_of_key();
        }
        // After the work, so that a slow token leaves the most of each second to samples.
        self.looked_ms = self.clock.mono_ms();
        let freed = self.journal.keep_quota();
        if let Some(lost) = self.heard(freed)
            && lost > 0
        {
            metrics::counter!("simcorp_edge_frames_lost_total").increment(lost);
            tracing::error!(frames = lost, "the quota took frames that the cloud does not have");
            self.board.update(|state| state.frames_lost += lost);
        }
        let totals = self.journal.totals();
        if let Some(totals) = self.heard(totals) {
            {
                metrics::gauge!("simcorp_edge_unsent_frames").set(totals.unsent_frames as f64);
                metrics::gauge!("simcorp_edge_journal_bytes").set(totals.bytes as f64);
            }
            self.board.update(|state| state.journal = totals);
        }
    }

    /// The value, or a complaint.
    fn heard<T>(&self, result: Result<T, JournalError>) -> Option<T> {
        result.map_err(|error| self.complain(&error.to_string())).ok()
    }

    /// Says what is wrong with the disk, once until it changes.
    fn complain(&self, problem: &str) {
        metrics::counter!("simcorp_edge_journal_errors_total").increment(1);
        self.board.update(|state| {
            if state.journal_error.as_deref() != Some(problem) {
                tracing::error!(
                    problem,
                    "the journal does not take what was measured; kept in memory"
                );
                state.journal_error = Some(problem.to_owned());
            }
        });
    }
}
