//! A pool of signing threads, each with its own PKCS#11 session. A caller never waits longer than
//! the limit, whatever the token does. A session that failed is closed and opened again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::KeyId;
use trust::socket::SignRefusal;
use trust::{PublicKey, Purpose};

use crate::config::SignerConfig;
use crate::token::{Session, Token, TokenError};

/// The limit of requests that wait for a session. Beyond it a request is refused as busy.
const WAITING_MAX: usize = 32;
const SESSIONS: usize = 2;
/// After this many late signatures in a row every session hangs in the token's module.
const OVERDUE_MAX: usize = 20;

struct SignRequest {
    message: Vec<u8>,
    answer: SyncSender<Result<Vec<u8>, SignRefusal>>,
}

pub struct SigningPool {
    requests: SyncSender<SignRequest>,
    public: PublicKey,
    key_id: KeyId,
    purposes: Vec<Purpose>,
    /// The number of requests in a row that exceeded their time limit.
    overdue: AtomicUsize,
    /// Whether the token has rejected the PIN: one more try may lock it permanently.
    pin_rejected: Arc<AtomicBool>,
}

impl SigningPool {
    /// Starts the signing threads. The key must exist.
    ///
    /// # Errors
    /// Returns what is wrong with module, token, PIN or key.
    pub fn start(config: &SignerConfig, key_id: KeyId) -> Result<Self, TokenError> {
        let token = Arc::new(Token::open(config)?);
        let public = token.session()?.public_key()?;
        let (requests, waiting) = sync_channel(WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let locked = Arc::<AtomicBool>::default();
        let sessions = if config.token.sessions == 0 { SESSIONS } else { config.token.sessions };
        for _ in 0..sessions {
            let (token, waiting) = (Arc::clone(&token), Arc::clone(&waiting));
            let locked = Arc::clone(&locked);
            std::thread::spawn(move || run_worker(&token, &waiting, &locked));
        }
        let purposes = config.key.purposes.clone();
        let overdue = AtomicUsize::default();
        Ok(Self { requests, public, key_id, purposes, overdue, pin_rejected: locked })
    }

    #[must_use]
    pub const fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a message if this key may sign it.
    ///
    /// # Errors
    /// Returns the refusal for the caller.
    pub fn sign(&self, message: Vec<u8>, limit: Duration) -> Result<Vec<u8>, SignRefusal> {
        let purpose = Purpose::classify(&message, &self.key_id, &self.public);
        if !purpose.is_some_and(|purpose| self.purposes.contains(&purpose)) {
            tracing::warn!(?purpose, bytes = message.len(), "refused to sign");
            return Err(SignRefusal::ForbiddenPurpose);
        }
        if self.pin_rejected.load(Ordering::Relaxed) {
            return Err(SignRefusal::TokenUnavailable);
        }
        let (answer, receiver) = sync_channel(1);
        match self.requests.try_send(SignRequest { message, answer }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => return Err(SignRefusal::Busy),
            Err(TrySendError::Disconnected(_)) => return Err(SignRefusal::TokenUnavailable),
        }
        match receiver.recv_timeout(limit) {
            Ok(answer) => {
                self.overdue.store(0, Ordering::Relaxed);
                answer
            }
            Err(RecvTimeoutError::Timeout) => {
                let overdue = self.overdue.fetch_add(1, Ordering::Relaxed) + 1;
                tracing::error!(overdue, "the token does not answer in time");
                if overdue >= OVERDUE_MAX {
                    // A thread inside the module cannot be stopped; only a new process helps.
                    tracing::error!("exiting, so that systemd restarts the signer");
                    std::process::exit(1);
                }
                Err(SignRefusal::TokenTimeout)
            }
            Err(RecvTimeoutError::Disconnected) => Err(SignRefusal::TokenUnavailable),
        }
    }
}

fn run_worker(token: &Token, waiting: &Mutex<Receiver<SignRequest>>, locked: &AtomicBool) {
    let mut session: Option<Session> = None;
    loop {
        let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(SignRequest { message, answer }) = next else { return };
        // Tries a second time with a new session: a token that was removed and reinserted has lost
        // the old one.
        let mut signed = Err(SignRefusal::TokenUnavailable);
        let tries = if locked.load(Ordering::Relaxed) { 0 } else { 2 };
        for _ in 0..tries {
            let mut current = match session.take().map_or_else(|| token.session(), Ok) {
                Ok(session) => session,
                Err(error) => {
                    tracing::error!(%error, "cannot open a session with the token");
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
                // The session is dropped, which frees the token's resources.
                Err(error) => tracing::warn!(%error, "a session failed; opening a new one"),
            }
        }
        // The caller may have given up.
        let _ = answer.send(signed);
    }
}
