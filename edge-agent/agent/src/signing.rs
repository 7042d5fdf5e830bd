//! The key as the keeper uses it: a token that does not answer is left alone for a while, so that it
//! costs the keeper a bounded part of its time. Pure but for the key itself.

use std::sync::Arc;

use trust::Signer;

/// A key that failed rests this long, then twice as long, up to the longest.
const REST_MS_MIN: u64 = 2_000;
const REST_MS_MAX: u64 = 30_000;

pub struct Signing {
    signer: Arc<dyn Signer>,
    /// What is wrong with it.
    problem: Option<String>,
    rest_ms: u64,
    rests_until_ms: u64,
}

impl Signing {
    pub fn new(signer: Arc<dyn Signer>) -> Self {
        Self { signer, problem: None, rest_ms: REST_MS_MIN, rests_until_ms: 0 }
    }

    /// The signed message; `None` when the key cannot be used now.
    pub fn sign(&mut self, content: &str, text: Vec<u8>, mono_ms: u64) -> Option<Vec<u8>> {
        if self.rests(mono_ms) {
            return None;
        }
        match trust::sign(&*self.signer, content, text) {
            Ok(message) => {
                self.problem = None;
                self.rest_ms = REST_MS_MIN;
                Some(message)
            }
            Err(error) => {
                metrics::counter!("simcorp_edge_key_failures_total").increment(1);
                self.problem = Some(error.to_string());
                self.rests_until_ms = mono_ms + self.rest_ms;
                self.rest_ms = (self.rest_ms * 2).min(REST_MS_MAX);
                None
            }
        }
    }

    pub const fn rests(&self, mono_ms: u64) -> bool {
        mono_ms < self.rests_until_ms
    }

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
    fn a_wedged_key_is_asked_seldom_and_used_again() {
        let kid = "device:gw@leipzig".parse().unwrap();
        let key = FileKey::generate(kid, Algorithm::EdDsa).unwrap();
        let flaky = Arc::new(Flaky { key, works: false.into(), asked: 0.into() });
        let mut signing = Signing::new(Arc::clone(&flaky) as Arc<dyn Signer>);
        let sign = |signing: &mut Signing, ms| signing.sign(CONTENT_FRAME, vec![1], ms).is_some();
        for second in 0..120 {
            assert!(!sign(&mut signing, second * 1000));
        }
        let asked = flaky.asked.load(Ordering::Relaxed);
        assert!((5..=10).contains(&asked), "asked {asked} times in two minutes");
        assert_eq!(signing.problem(), Some("device:gw@leipzig cannot sign: wedged"));
        flaky.works.store(true, Ordering::Relaxed);
        assert!(sign(&mut signing, 200_000) && sign(&mut signing, 200_001));
        assert_eq!(signing.problem(), None);
    }
}
