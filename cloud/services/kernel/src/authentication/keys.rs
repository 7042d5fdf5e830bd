//! API keys: `sck_<id>_<secret>`. The secret is 32 random bytes, so storing a plain digest of it is
//! sufficient. It is shown once, when the key is created.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contract::{Actor, ActorKind, EpochMs, OrgId};
use http_stack::auth::{Caller, Role};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

const PREFIX: &str = "sck_";

/// A whole API key, as a caller presents it.
pub struct ApiKeyToken {
    id: String,
    secret: SecretString,
}

impl ApiKeyToken {
    /// Generates a new key.
    ///
    /// # Errors
    /// When the system's random number generator fails.
    pub fn generate() -> std::io::Result<Self> {
        let id: [u8; 6] = trust::random()?;
        let secret: [u8; 32] = trust::random()?;
        let id = id.iter().fold(String::new(), |id, byte| format!("{id}{byte:02x}"));
        Ok(Self { id, secret: URL_SAFE_NO_PAD.encode(secret).into() })
    }

    /// Returns whether a bearer token begins like an API key.
    #[must_use]
    pub fn has_key_prefix(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
        let fits = id.len() == 12 && secret.len() == 43 && text.is_ascii();
        fits.then(|| Self { id: id.to_owned(), secret: secret.to_owned().into() })
    }

    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the digest of the secret, which is what is stored.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        trust::sha256_digest(self.secret.expose_secret().as_bytes()).0
    }

    /// Returns the whole key as text, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, self.secret.expose_secret())
    }
}

/// An API key as stored.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKey {
    pub id: String,
    /// Absent if the key is valid for all organisations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub org_id: Option<OrgId>,
    pub name: String,
    pub kind: ActorKind,
    pub role: Role,
    #[serde(skip)]
    pub digest: Vec<u8>,
    pub created_at: EpochMs,
    pub expires_at: EpochMs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<EpochMs>,
}

impl ApiKey {
    /// Returns whether `token` has this key's secret and the key is neither revoked nor expired.
    #[must_use]
    pub fn accepts(&self, token: &ApiKeyToken, now: EpochMs) -> bool {
        let same = trust::constant_time_eq(&self.digest, &token.digest());
        same && self.revoked_at.is_none() && now < self.expires_at
    }

    /// Returns the caller that this key authenticates.
    #[must_use]
    pub fn caller(&self) -> Caller {
        let actor = Actor {
            kind: self.kind,
            id: format!("key:{}", self.id),
            display: Some(self.name.clone()),
            org: self.org_id.clone(),
        };
        Caller { actor, org: self.org_id.clone(), role: self.role }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_key_is_valid_with_its_own_secret_until_it_expires() {
        let token = ApiKeyToken::generate().unwrap();
        let shown = ApiKeyToken::parse(&token.reveal()).unwrap();
        assert!(ApiKeyToken::has_key_prefix(&token.reveal()) && shown.id() == token.id());
        let now = EpochMs(1_000);
        let key = ApiKey {
            id: token.id().to_owned(),
            org_id: None,
            name: "reports".to_owned(),
            kind: ActorKind::System,
            role: Role::Operator,
            digest: token.digest().to_vec(),
            created_at: EpochMs(0),
            expires_at: EpochMs(2_000),
            revoked_at: None,
        };
        assert!(key.accepts(&shown, now));
        assert!(!key.accepts(&shown, EpochMs(2_000)), "expired");
        assert!(!key.accepts(&ApiKeyToken::generate().unwrap(), now), "another's");
        assert!(!ApiKey { revoked_at: Some(now), ..key }.accepts(&shown, now), "revoked");
        for bad in ["", "sck_", "sck_x_y", "sck_0123456789ab_short", "sck_0123456789ab_é"] {
            assert!(ApiKeyToken::parse(bad).is_none(), "{bad}");
        }
    }
}
