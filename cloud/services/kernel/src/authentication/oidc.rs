//! Authenticates people by the tokens of an OIDC issuer (for example Clerk): discovers the issuer's
//! keys, caches them, fetches them again when a token's key is unknown, and maps claims to a
//! caller.
//!
//! Only signatures with the issuer's public keys are accepted. The type of the key must determine
//! the algorithm, never the token alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cache::Cache;
use contract::{Actor, ActorKind, EpochMs, OrgId};
use http_stack::auth::{Caller, Role};
use http_stack::error::ApiError;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use service::config::Mistakes;
use service::metrics::follow;

/// The tolerated difference between clocks, ms.
const LEEWAY_MS: i64 = 60_000;
const KEYS_FRESH_MS: i64 = 30 * 60_000;
/// The least time between two fetches of the keys because of an unknown key, ms; shorter after a
/// failure.
const REFETCH_INTERVAL_MS: i64 = 60_000;
const REFETCH_AFTER_FAILURE_MS: i64 = 10_000;
/// How long the issuer's last keys stay valid while it does not answer, ms.
const STALE_MS: i64 = 24 * 3_600_000;
const KEYS_BYTES_MAX: usize = 256 * 1024;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(4);
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The accepted algorithms. None of them uses a shared secret as its key.
const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

/// `[auth.oidc]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OidcConfig {
    /// `https://…`; tokens name it as `iss`.
    pub issuer: String,
    /// Tokens must name it in `aud`.
    pub audience: String,
    /// Parties to which the token may have been issued (`azp`). If empty, any party is accepted.
    pub authorized_parties: Vec<String>,
    /// The claim that holds the role: viewer, operator, approver or admin, perhaps after a colon
    /// (`org:admin`). Without it a person is a viewer.
    pub role_claim: String,
}

impl OidcConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require_private_url("auth.oidc.issuer", &self.issuer);
        mistakes.require(
            !self.audience.is_empty(),
            "auth.oidc.audience",
            "is required: without it a token that the issuer made for any other application is valid",
        );
    }
}

/// Where the cache has the keys, by their issuer.
const CACHE_NAMESPACE: &str = "jwks";

#[derive(Deserialize)]
struct CachedKeySet {
    fetched: EpochMs,
    set: JwkSet,
}

struct KeySetState {
    set: Option<Arc<JwkSet>>,
    fetched: EpochMs,
    /// The keys are not fetched again before this time.
    next_fetch: EpochMs,
}

/// Verifies the tokens of one issuer.
#[derive(Clone)]
pub struct Oidc {
    config: OidcConfig,
    http: reqwest::Client,
    keys: Arc<Mutex<KeySetState>>,
    /// Shares the keys that one instance fetched with all instances.
    cache: Cache,
    /// Only one task at a time queries the issuer.
    fetch_lock: Arc<tokio::sync::Mutex<()>>,
}

impl Oidc {
    /// Creates the client of the issuer. Sends nothing yet.
    ///
    /// # Errors
    /// When no HTTP client can be created.
    #[allow(clippy::disallowed_methods)] // the client is created here, with its limits
    pub fn new(config: OidcConfig, cache: Cache) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .timeout(RESPONSE_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let keys = KeySetState { set: None, fetched: EpochMs(0), next_fetch: EpochMs(0) };
        Ok(Self {
            config,
            http,
            keys: Arc::new(Mutex::new(keys)),
            cache,
            fetch_lock: Arc::default(),
        })
    }

    /// Returns the caller that this token authenticates.
    ///
    /// # Errors
    /// 401 when it is not the issuer's or is not valid at `now`; 503 when the issuer's keys are not
    /// available.
    pub async fn authenticate(&self, token: &str, now: EpochMs) -> Result<Caller, ApiError> {
        let wrong = |why: &str| {
            tracing::debug!(why, "rejected a token");
            ApiError::unauthorized()
        };
        if token.len() > TOKEN_BYTES_MAX {
            return Err(wrong("too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| wrong("not a JWT"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(wrong("algorithm is not accepted"));
        }
        let key_id = header.kid.as_deref().unwrap_or_default();
        let jwk = self.key(key_id, now).await?.ok_or_else(|| wrong("unknown key"))?;
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature)
        {
            return Err(wrong("the key is not for signatures"));
        }
        let key = DecodingKey::from_jwk(&jwk).map_err(|_| wrong("unusable key"))?;
        let mut validation = Validation::new(header.alg);
        // Times are checked below, against the clock that was passed in.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        validation.set_issuer(&[&self.config.issuer]);
        validation.required_spec_claims.insert("iss".to_owned());
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key, &validation)
            .map_err(|error| wrong(&error.to_string()))?
            .claims;
        self.check(&claims, now).map_err(wrong)?;
        caller_of(&claims, &self.config.role_claim).map_err(wrong)
    }

    fn check(&self, claims: &Map<String, Value>, now: EpochMs) -> Result<(), &'static str> {
        #[allow(clippy::cast_possible_truncation)] // seconds; too large a number saturates
        let ms = |name: &str| claims.get(name)?.as_f64().map(|s| (s * 1000.0) as i64);
        let expires = ms("exp").ok_or("no exp")?;
        if now.0 >= expires.saturating_add(LEEWAY_MS) {
            return Err("expired");
        }
        if claims.contains_key("nbf") {
            let from = ms("nbf").ok_or("nbf is not a number")?;
            if now.0.saturating_add(LEEWAY_MS) < from {
                return Err("not yet valid");
            }
        }
        let audience = &self.config.audience;
        let audience_matches = match claims.get("aud") {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(several)) => several.iter().any(|one| one == audience),
            _ => false,
        };
        if !audience_matches {
            return Err("wrong audience");
        }
        let party = claims.get("azp").and_then(Value::as_str);
        let parties = &self.config.authorized_parties;
        if !parties.is_empty() && !party.is_some_and(|azp| parties.iter().any(|p| p == azp)) {
            return Err("wrong authorized party");
        }
        Ok(())
    }

    async fn key(&self, id: &str, now: EpochMs) -> Result<Option<Jwk>, ApiError> {
        if self.current_keys(now).0.is_none() {
            self.load_shared_keys(now).await;
        }
        let (set, fresh, may_fetch) = self.current_keys(now);
        let cached_key = set.as_ref().and_then(|set| set.find(id)).cloned();
        if (cached_key.is_some() && fresh) || !may_fetch {
            return self.or_unavailable(cached_key, set.is_some());
        }
        // On a task of its own: if the request is cancelled, the issuer's answer is still stored. A
        // known key is accepted in the meantime.
        let fetching = tokio::spawn(follow(self.clone().fetch(now)));
        if cached_key.is_some() {
            return Ok(cached_key);
        }
        if let Err(error) = fetching.await {
            return Err(ApiError::internal(error));
        }
        let (set, ..) = self.current_keys(now);
        self.or_unavailable(set.as_ref().and_then(|set| set.find(id)).cloned(), set.is_some())
    }

    fn or_unavailable(&self, key: Option<Jwk>, any: bool) -> Result<Option<Jwk>, ApiError> {
        if any || key.is_some() {
            return Ok(key);
        }
        Err(ApiError::Unavailable(format!("{} does not provide its keys", self.config.issuer)))
    }

    /// Returns the valid keys, whether they are fresh, and whether the issuer may be queried.
    fn current_keys(&self, now: EpochMs) -> (Option<Arc<JwkSet>>, bool, bool) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.ms_since(keys.fetched);
        let counts = keys.set.clone().filter(|_| age < STALE_MS);
        // Further ahead than any wait: the clock has been set back since.
        let set_back = keys.next_fetch.ms_since(now) > STALE_MS.min(10 * REFETCH_INTERVAL_MS);
        (counts, (0..KEYS_FRESH_MS).contains(&age), now >= keys.next_fetch || set_back)
    }

    async fn fetch(self, now: EpochMs) {
        let _one = self.fetch_lock.lock().await;
        // Another task may have fetched the keys in the meantime.
        if !self.current_keys(now).2 {
            return;
        }
        let downloaded = self.download_keys().await;
        if let Ok(set) = &downloaded {
            self.store_shared_keys(set, now).await;
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match downloaded {
            Ok(set) => {
                *keys = KeySetState {
                    set: Some(Arc::new(set)),
                    fetched: now,
                    next_fetch: now.plus_ms(REFETCH_INTERVAL_MS),
                };
            }
            Err(error) => {
                let timeout_ms = i64::try_from(RESPONSE_TIMEOUT.as_millis()).unwrap_or(0);
                let pause_ms =
                    timeout_ms.saturating_mul(2).saturating_add(REFETCH_AFTER_FAILURE_MS);
                keys.next_fetch = now.plus_ms(pause_ms);
                tracing::warn!(error, issuer = self.config.issuer, "could not fetch issuer keys");
            }
        }
    }

    /// Loads the keys that another instance has fetched from the cache, if they are fresh.
    async fn load_shared_keys(&self, now: EpochMs) {
        let Some(bytes) = self.cache.get(CACHE_NAMESPACE, &self.config.issuer).await else {
            return;
        };
        let Ok(cached) = serde_json::from_slice::<CachedKeySet>(&bytes) else { return };
        let age = now.ms_since(cached.fetched);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if (0..KEYS_FRESH_MS).contains(&age) && keys.set.is_none() {
            keys.set = Some(Arc::new(cached.set));
            keys.fetched = cached.fetched;
        }
    }

    async fn store_shared_keys(&self, set: &JwkSet, fetched: EpochMs) {
        let serialized = serde_json::to_vec(&json!({"fetched": fetched, "set": set}));
        let ttl = Duration::from_millis(KEYS_FRESH_MS.unsigned_abs());
        if let Ok(bytes) = serialized {
            self.cache.put(CACHE_NAMESPACE, &self.config.issuer, bytes.into(), ttl).await;
        }
    }

    async fn download_keys(&self) -> Result<JwkSet, String> {
        let base = self.config.issuer.trim_end_matches('/');
        let discovery = self.read(&format!("{base}/.well-known/openid-configuration")).await;
        let jwks_uri = discovery.ok().and_then(|bytes| {
            let body: Value = serde_json::from_slice(&bytes).ok()?;
            // A document that names another issuer is ignored.
            (body["issuer"].as_str()? == self.config.issuer).then_some(())?;
            body["jwks_uri"].as_str().map(str::to_owned)
        });
        let address = jwks_uri.unwrap_or_else(|| format!("{base}/.well-known/jwks.json"));
        let bytes = self.read(&address).await?;
        serde_json::from_slice(&bytes).map_err(|error| format!("{address}: {error}"))
    }

    async fn read(&self, address: &str) -> Result<Vec<u8>, String> {
        let to_message = |error: reqwest::Error| error.to_string();
        let mut answer = self.http.get(address).send().await.map_err(to_message)?;
        answer.error_for_status_ref().map_err(to_message)?;
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(to_message)? {
            bytes.extend_from_slice(&part);
            if bytes.len() > KEYS_BYTES_MAX {
                return Err(format!("{address}: more than {KEYS_BYTES_MAX} bytes"));
            }
        }
        Ok(bytes)
    }
}

/// Maps upstream's claims to a caller: `sub` or `user_id`; `org_id`, `orgId` or `org`; `name` or
/// `email`.
fn caller_of(claims: &Map<String, Value>, role_claim: &str) -> Result<Caller, &'static str> {
    let text = |names: &[&str]| {
        let found = names.iter().find_map(|name| claims.get(*name)?.as_str());
        found.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let id = text(&["sub", "user_id"]).ok_or("no subject (sub)")?;
    let org = text(&["org_id", "orgId", "org"]).ok_or("no organisation (org_id)")?;
    let org = OrgId::new(org).map_err(|_| "the organisation is not a valid id")?;
    let role_name = if role_claim.is_empty() { None } else { text(&[role_claim]) };
    let role =
        role_name.as_deref().and_then(|role_name| Role::parse(role_name.rsplit(':').next()?));
    let actor = Actor {
        kind: ActorKind::User,
        id,
        display: text(&["name", "email"]),
        org: Some(org.clone()),
    };
    Ok(Caller { actor, org: Some(org), role: role.unwrap_or(Role::Viewer) })
}

#[cfg(test)]
mod tests {
    use service::config::{self, Config, Sources};

    use super::*;

    impl Config for OidcConfig {
        fn check(&self, mistakes: &mut Mistakes) {
            Self::check(self, mistakes);
        }
    }

    #[test]
    fn an_issuer_without_an_audience_is_refused_at_the_start() {
        let load = |set: &[&str]| {
            let set = set.iter().map(|&set| set.to_owned()).collect();
            config::load::<OidcConfig>(&Sources { set, ..Sources::default() }, std::iter::empty())
        };
        let error = load(&["issuer=https://issuer.example"]).unwrap_err().to_string();
        assert!(error.contains("audience: is required"), "{error}");
        let error = load(&["issuer=https://issuer.example", "audience="]).unwrap_err().to_string();
        assert!(error.contains("audience: is required"), "{error}");
        assert!(load(&["issuer=https://issuer.example", "audience=simcorp"]).is_ok());
    }

    #[test]
    fn claims_become_a_caller() {
        let of = |body: Value| caller_of(body.as_object().unwrap(), "org_role");
        let ada = of(serde_json::json!({"sub": "u1", "org_id": "acme", "email": "ada@acme",
                                        "org_role": "org:approver"}))
        .unwrap();
        assert_eq!((ada.role, ada.org.as_ref().unwrap().as_str()), (Role::Approver, "acme"));
        assert_eq!(ada.actor.display.as_deref(), Some("ada@acme"));
        let other = of(serde_json::json!({"user_id": "u2", "org": "acme", "org_role": "king"}));
        assert_eq!(other.unwrap().role, Role::Viewer);
        assert!(of(serde_json::json!({"sub": "u1"})).is_err());
        assert!(of(serde_json::json!({"sub": "u1", "org": "a/b"})).is_err());
    }
}
