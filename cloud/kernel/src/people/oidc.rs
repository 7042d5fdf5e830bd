//! People by the tokens of an OIDC issuer (Clerk is one): discovery, its keys kept and fetched again
//! when one is unknown, claims to a caller.
//!
//! Only signatures with the issuer's public keys count; a key's own kind says which algorithm, never
//! the token alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cache::Cache;
use contract::{Actor, ActorKind, EpochMs, OrgId};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use service::auth::{Caller, Role};
use service::config::Mistakes;
use service::error::ApiError;

/// Clocks differ by so much at most, ms.
const LEEWAY_MS: i64 = 60_000;
const KEYS_LAST_MS: i64 = 30 * 60_000;
/// An unknown key asks for the keys again at most so often; after a failure sooner.
const AGAIN_MS: i64 = 60_000;
const AGAIN_AFTER_FAILURE_MS: i64 = 10_000;
/// While the issuer does not answer its last keys count for so long.
const STALE_MS: i64 = 24 * 3_600_000;
const KEYS_BYTES_MAX: usize = 256 * 1024;
const ANSWER_TIME_MAX: Duration = Duration::from_secs(4);
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// No key of these is a shared secret.
const ALGORITHMS: [Algorithm; 5] =
    [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

/// `[auth.oidc]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OidcConfig {
    /// `https://…`; tokens name it as `iss`.
    pub issuer: String,
    /// Tokens must name it in `aud`; empty: not asked.
    pub audience: String,
    /// Who may have asked for the token (`azp`); empty: anybody.
    pub authorized_parties: Vec<String>,
    /// The claim that holds the role: viewer, operator, approver or admin, perhaps after a colon
    /// (`org:admin`). Without it a person may look.
    pub role_claim: String,
}

impl OidcConfig {
    pub fn check(&self, mistakes: &mut Mistakes) {
        let loopback = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
        let fits = self.issuer.starts_with("https://")
            || loopback.iter().any(|start| self.issuer.starts_with(start));
        mistakes.require(fits, "auth.oidc.issuer", "does not begin with https://");
    }
}

/// In the cache: the keys, by their issuer.
const SHARED: &str = "jwks";

#[derive(Deserialize)]
struct Told {
    fetched: EpochMs,
    set: JwkSet,
}

struct Keys {
    set: Option<Arc<JwkSet>>,
    fetched: EpochMs,
    /// Not again before.
    again: EpochMs,
}

/// An issuer's tokens.
#[derive(Clone)]
pub struct Oidc {
    config: OidcConfig,
    http: reqwest::Client,
    keys: Arc<Mutex<Keys>>,
    /// What one instance was told counts for all.
    cache: Cache,
    /// One asks the issuer at a time.
    asking: Arc<tokio::sync::Mutex<()>>,
}

impl Oidc {
    /// # Errors
    /// When the system gives no HTTP client.
    #[allow(clippy::disallowed_methods)] // this is where it is made, with its limits
    pub fn new(config: OidcConfig, cache: Cache) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .timeout(ANSWER_TIME_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let keys = Keys { set: None, fetched: EpochMs(0), again: EpochMs(0) };
        Ok(Self { config, http, keys: Arc::new(Mutex::new(keys)), cache, asking: Arc::default() })
    }

    /// Who shows this token.
    ///
    /// # Errors
    /// 401 when it is not the issuer's, or not now; 503 when the issuer's keys cannot be had.
    pub async fn caller(&self, token: &str, now: EpochMs) -> Result<Caller, ApiError> {
        let wrong = |why: &str| {
            tracing::debug!(why, "refused a token");
            ApiError::unauthorized()
        };
        if token.len() > TOKEN_BYTES_MAX {
            return Err(wrong("too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| wrong("no JWT"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(wrong("algorithm"));
        }
        let key_id = header.kid.as_deref().unwrap_or_default();
        let jwk = self.key(key_id, now).await?.ok_or_else(|| wrong("unknown key"))?;
        let key = DecodingKey::from_jwk(&jwk).map_err(|_| wrong("key"))?;
        let mut validation = Validation::new(header.alg);
        // Times are checked below, by the clock that was passed in.
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
        #[allow(clippy::cast_possible_truncation)] // seconds; far off saturates
        let ms = |name: &str| claims.get(name)?.as_f64().map(|s| (s * 1000.0) as i64);
        let expires = ms("exp").ok_or("no exp")?;
        if now.0 >= expires.saturating_add(LEEWAY_MS) {
            return Err("expired");
        }
        if ms("nbf").is_some_and(|from| now.0.saturating_add(LEEWAY_MS) < from) {
            return Err("not yet");
        }
        let audience = &self.config.audience;
        let named = match claims.get("aud") {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(several)) => several.iter().any(|one| one == audience),
            _ => false,
        };
        if !audience.is_empty() && !named {
            return Err("audience");
        }
        let party = claims.get("azp").and_then(Value::as_str);
        let parties = &self.config.authorized_parties;
        if !parties.is_empty() && !party.is_some_and(|azp| parties.iter().any(|p| p == azp)) {
            return Err("authorized party");
        }
        Ok(())
    }

    async fn key(&self, id: &str, now: EpochMs) -> Result<Option<Jwk>, ApiError> {
        if self.kept(now).0.is_none() {
            self.share(now).await;
        }
        let (set, fresh, may_ask) = self.kept(now);
        let known = set.as_ref().and_then(|set| set.find(id)).cloned();
        if (known.is_some() && fresh) || !may_ask {
            return self.or_away(known, set.is_some());
        }
        // On a task of its own: whoever asks may lose patience, the issuer's answer still counts. A
        // key that is known opens meanwhile.
        let fetching = tokio::spawn(self.clone().fetch(now));
        if known.is_some() {
            return Ok(known);
        }
        if let Err(error) = fetching.await {
            return Err(ApiError::internal(error));
        }
        let (set, ..) = self.kept(now);
        self.or_away(set.as_ref().and_then(|set| set.find(id)).cloned(), set.is_some())
    }

    fn or_away(&self, key: Option<Jwk>, any: bool) -> Result<Option<Jwk>, ApiError> {
        if any || key.is_some() {
            return Ok(key);
        }
        Err(ApiError::Unavailable(format!("{} does not tell its keys", self.config.issuer)))
    }

    /// The keys that count, whether they are fresh, and whether the issuer may be asked.
    fn kept(&self, now: EpochMs) -> (Option<Arc<JwkSet>>, bool, bool) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.since(keys.fetched);
        let counts = keys.set.clone().filter(|_| age < STALE_MS);
        // Further ahead than we ever wait: the clock was set back since.
        let set_back = keys.again.since(now) > STALE_MS.min(10 * AGAIN_MS);
        (counts, (0..KEYS_LAST_MS).contains(&age), now >= keys.again || set_back)
    }

    async fn fetch(self, now: EpochMs) {
        let _one = self.asking.lock().await;
        // Somebody else may have asked meanwhile.
        if !self.kept(now).2 {
            return;
        }
        let found = self.ask().await;
        if let Ok(set) = &found {
            self.tell(set, now).await;
        }
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(set) => {
                *keys = Keys { set: Some(Arc::new(set)), fetched: now, again: now.plus(AGAIN_MS) };
            }
            Err(error) => {
                let patience = i64::try_from(ANSWER_TIME_MAX.as_millis()).unwrap_or(0);
                keys.again = now.plus(AGAIN_AFTER_FAILURE_MS + 2 * patience);
                tracing::warn!(error, issuer = self.config.issuer, "no keys from the issuer");
            }
        }
    }

    /// Takes over what another instance was told, if it is fresh.
    async fn share(&self, now: EpochMs) {
        let Some(bytes) = self.cache.get(SHARED, &self.config.issuer).await else { return };
        let Ok(told) = serde_json::from_slice::<Told>(&bytes) else { return };
        let age = now.since(told.fetched);
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if (0..KEYS_LAST_MS).contains(&age) && keys.set.is_none() {
            keys.set = Some(Arc::new(told.set));
            keys.fetched = told.fetched;
        }
    }

    async fn tell(&self, set: &JwkSet, fetched: EpochMs) {
        let told = serde_json::to_vec(&json!({"fetched": fetched, "set": set}));
        let keep = Duration::from_millis(KEYS_LAST_MS.unsigned_abs());
        if let Ok(bytes) = told {
            self.cache.put(SHARED, &self.config.issuer, bytes.into(), keep).await;
        }
    }

    async fn ask(&self) -> Result<JwkSet, String> {
        let base = self.config.issuer.trim_end_matches('/');
        let discovery = self.read(&format!("{base}/.well-known/openid-configuration")).await;
        let told = discovery.ok().and_then(|bytes| {
            let body: Value = serde_json::from_slice(&bytes).ok()?;
            // A document of another issuer is nobody's.
            (body["issuer"].as_str()? == self.config.issuer).then_some(())?;
            body["jwks_uri"].as_str().map(str::to_owned)
        });
        let address = told.unwrap_or_else(|| format!("{base}/.well-known/jwks.json"));
        let bytes = self.read(&address).await?;
        serde_json::from_slice(&bytes).map_err(|error| format!("{address}: {error}"))
    }

    async fn read(&self, address: &str) -> Result<Vec<u8>, String> {
        let told = |error: reqwest::Error| error.to_string();
        let mut answer = self.http.get(address).send().await.map_err(told)?;
        answer.error_for_status_ref().map_err(told)?;
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(told)? {
            bytes.extend_from_slice(&part);
            if bytes.len() > KEYS_BYTES_MAX {
                return Err(format!("{address}: more than {KEYS_BYTES_MAX} bytes"));
            }
        }
        Ok(bytes)
    }
}

/// The reference's claims: `sub` or `user_id`; `org_id`, `orgId` or `org`; `name` or `email`.
fn caller_of(claims: &Map<String, Value>, role_claim: &str) -> Result<Caller, &'static str> {
    let text = |names: &[&str]| {
        let found = names.iter().find_map(|name| claims.get(*name)?.as_str());
        found.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let id = text(&["sub", "user_id"]).ok_or("nobody (sub)")?;
    let org = text(&["org_id", "orgId", "org"]).ok_or("no organisation (org_id)")?;
    let org = OrgId::new(org).map_err(|_| "an organisation that is no identity")?;
    let word = if role_claim.is_empty() { None } else { text(&[role_claim]) };
    let role = word.as_deref().and_then(|word| Role::parse(word.rsplit(':').next()?));
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
    use super::*;

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
