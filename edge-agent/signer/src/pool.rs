//! Threads that sign, each with a session of its own. Who asks waits no longer than the limit,
//! whatever the token does; a session that failed is closed and opened anew.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::KeyId;
use trust::socket::Refusal;
use trust::{PublicKey, Purpose};

use crate::config::SignerConfig;
use crate::token::{Session, Token, TokenError};

/// Requests that wait for a session. Past it one is told that we are busy.
const WAITING_MAX: usize = 32;
const SESSIONS: usize = 2;
/// Signatures in a row that did not come in time: every session hangs in the token's module.
const OVERDUE_MAX: usize = 20;

struct Job {
    message: Vec<u8>,
    answer: SyncSender<Result<Vec<u8>, Refusal>>,
}

pub struct Pool {
    jobs: SyncSender<Job>,
    public: PublicKey,
    key_id: KeyId,
    purposes: Vec<Purpose>,
    /// Requests in a row whose asker has given up while the token works on them.
    overdue: AtomicUsize,
    /// The token has refused the PIN: one more try may lock it for good.
    locked: Arc<AtomicBool>,
}

impl Pool {
    /// Opens the sessions; the key must be there.
    ///
    /// # Errors
    /// What is wrong with module, token, PIN or key.
    pub fn start(config: &SignerConfig, key_id: KeyId) -> Result<Self, TokenError> {
        let token = Arc::new(Token::open(config)?);
        let public = token.session()?.public_key()?;
        let (jobs, waiting) = sync_channel(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let locked = Arc::<AtomicBool>::default();
        let sessions = if config.token.sessions == 0 { SESSIONS } else { config.token.sessions };
        for _ in 0..sessions {
            let (token, waiting) = (Arc::clone(&token), Arc::clone(&waiting));
            let locked = Arc::clone(&locked);
            std::thread::spawn(move || work(&token, &waiting, &locked));
        }
        let purposes = config.key.purposes.clone();
        let overdue = AtomicUsize::default();
        Ok(Self { jobs, public, key_id, purposes, overdue, locked })
    }

    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs what this key may sign.
    ///
    /// # Errors
    /// Why not, for whoever asked.
    pub fn sign(&self, message: Vec<u8>, limit: Duration) -> Result<Vec<u8>, Refusal> {
        let purpose = Purpose::of(&message, &self.key_id, &self.public);
        if !purpose.is_some_and(|purpose| self.purposes.contains(&purpose)) {
            tracing::warn!(?purpose, bytes = message.len(), "refused to sign");
            return Err(Refusal::Purpose);
        }
        if self.locked.load(Ordering::Relaxed) {
            return Err(Refusal::Token);
        }
        let (answer, answered) = sync_channel(1);
        match self.jobs.try_send(Job { message, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(Refusal::Busy),
            Err(TrySendError::Disconnected(_)) => return Err(Refusal::Token),
        }
        match answered.recv_timeout(limit) {
            Ok(answer) => {
                self.overdue.store(0, Ordering::Relaxed);
                answer
            }
            Err(RecvTimeoutError::Timeout) => {
                let overdue = self.overdue.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::error!(overdue, "the token does not answer in time");
                if overdue >= OVERDUE_MAX {
                    // A thread inside the module cannot be freed; a new process has new ones.
                    tracing::error!("giving up, to be started anew");
                    std::process::exit(1);
                }
                Err(Refusal::Slow)
            }
            Err(RecvTimeoutError::Disconnected) => Err(Refusal::Token),
        }
    }
}

fn work(token: &Token, waiting: &Mutex<Receiver<Job>>, locked: &AtomicBool) {
    let mut session: Option<Session> = None;
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { message, answer }) = next else { return };
        // Once more with a fresh session: a token that was pulled and put back has forgotten ours.
        let mut signed = Err(Refusal::Token);
        let tries = if locked.load(Ordering::Relaxed) { 0 } else { 2 };
        for _ in 0..tries {
            let mut current = match session.take().map_or_else(|| token.session(), Ok) {
                Ok(session) => session,
                Err(error) => {
                    tracing::error!(%error, "no session with the token");
                    if matches!(error, TokenError::WrongPin) {
                        locked.store(true, Ordering::Relaxed);
                    }
                    break;
                }
            };
            match current.sign(&message) {
                Ok(signature) => {
                    session = Some(current);
                    signed = Ok(signature);
                    break;
                }
                // Dropped, and with it what the token holds for it.
                Err(error) => tracing::warn!(%error, "a session failed and is opened anew"),
            }
        }
        // Nobody may be waiting any more.
        let _ = answer.send(signed);
    }
}
