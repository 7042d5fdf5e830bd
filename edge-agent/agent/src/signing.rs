//! Signs with the gateway's key, with a backoff: after a failure the key is not used for a while,
//! so that a PKCS#11 token that does not answer costs the journal writer a bounded part of its
//! time. Has no side effects apart from the use of the key and a failure counter.

use std::sync::Arc;
use std::time::Duration;

use service::backoff::Backoff;
use trust::Signer;

/// How long a key is not used after its first failure. Each further failure doubles the
/// pause, up to the maximum.
const BACKOFF_MIN: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A key, and its pause after failures.
pub struct BackoffSigner {
    signer: Arc<dyn Signer>,
    /// The last error; `None` once the key has signed again.
    problem: Option<String>,
    backoff: Backoff,
    retry_at_ms: u64,
}

impl BackoffSigner {
    pub fn new(signer: Arc<dyn Signer>) -> Self {
        Self {
            signer,
            problem: None,
            backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
            retry_at_ms: 0,
        }
    }

    /// Signs a message. Returns `None` if signing fails or the key is in its pause.
    pub fn sign(&mut self, content: &str, text: Vec<u8>, mono_ms: u64) -> Option<Vec<u8>> {
        if self.is_backing_off(mono_ms) {
            return None;
        }
        match trust::sign_message(&*self.signer, content, text) {
            Ok(message) => {
                self.problem = None;
                self.backoff.reset();
                Some(message)
            }
            Err(error) => {
                metrics::counter!("simcorp_edge_key_failures_total").increment(1);
                self.problem = Some(error.to_string());
                let pause = self.backoff.next(trust::jitter());
                let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                self.retry_at_ms = mono_ms.saturating_add(pause_ms);
                None
            }
        }
    }

    /// Returns whether the key is in its pause at `mono_ms`.
    pub const fn is_backing_off(&self, mono_ms: u64) -> bool {
        mono_ms < self.retry_at_ms
    }

    /// Returns the last error, if the key has not signed since.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use trust::{Algorithm, CONTENT_FRAME, FileKey, PublicKey, SignError};

    struct Flaky {
        key: FileKey,
        works: AtomicBool,
        asked: AtomicUsize,
    }

    impl Signer for Flaky {
        fn key_id(&self) -> &contract::KeyId {
            self.key.key_id()
        }
        fn public_key(&self) -> Result<PublicKey, SignError> {
            Signer::public_key(&self.key)
        }
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.works.load(Ordering::Relaxed) {
                return self.key.sign(message);
            }
            Err(SignError { key_id: self.key.key_id().clone(), problem: "wedged".to_owned() })
        }
    }

    #[test]
    fn a_failing_key_is_retried_rarely_and_used_again_when_it_recovers() {
        let kid = "device:gw@leipzig".parse().unwrap();
        let key = FileKey::generate(kid, Algorithm::EdDsa).unwrap();
        let flaky = Arc::new(Flaky { key, works: false.into(), asked: 0.into() });
        let mut signing = BackoffSigner::new(Arc::clone(&flaky) as Arc<dyn Signer>);
        let sign =
            |signing: &mut BackoffSigner, ms| signing.sign(CONTENT_FRAME, vec![1], ms).is_some();
        for second in 0..120 {
            assert!(!sign(&mut signing, second * 1000));
        }
        let asked = flaky.asked.load(Ordering::Relaxed);
        assert!((7..=13).contains(&asked), "asked {asked} times in two minutes");
        assert_eq!(signing.problem(), Some("device:gw@leipzig cannot sign: wedged"));
        flaky.works.store(true, Ordering::Relaxed);
        assert!(sign(&mut signing, 200_000) && sign(&mut signing, 200_001));
        assert_eq!(signing.problem(), None);
    }
}
