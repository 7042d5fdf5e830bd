//! Enrolment tokens. A token lets one gateway enrol once. It holds the URL of the fleet service,
//! the fingerprint of its certificate authority, and a secret, in one text, so that an operator
//! does not have to type three.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret as _, SecretString};

const PREFIX: &str = "sce1";
const URL_BYTES_MAX: usize = 256;

/// An enrolment token: `sce1.URL.FINGERPRINT.ID.SECRET`, the first two in base64url.
pub struct EnrollmentToken {
    /// The URL of the fleet service, with `https://`.
    pub url: String,
    /// The SHA-256 of the certificate authority's certificate. The server at `url` must have a
    /// certificate by this authority.
    pub ca_fingerprint: [u8; 32],
    /// The public name of the token: 12 hex digits.
    pub id: String,
    secret: SecretString,
}

impl EnrollmentToken {
    /// Generates a new token with a random id and a random secret.
    ///
    /// # Errors
    /// When the system provides no random numbers.
    pub fn generate(url: &str, authority: [u8; 32]) -> std::io::Result<Self> {
        let id: [u8; 6] = crate::random()?;
        let secret: [u8; 32] = crate::random()?;
        let id = id.iter().fold(String::new(), |id, byte| format!("{id}{byte:02x}"));
        let secret = URL_SAFE_NO_PAD.encode(secret).into();
        Ok(Self { url: url.to_owned(), ca_fingerprint: authority, id, secret })
    }

    /// Parses a token as a person has pasted it; `None` if it is malformed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [PREFIX, url, authority, id, secret] = parts[..] else { return None };
        let url = String::from_utf8(URL_SAFE_NO_PAD.decode(url).ok()?).ok()?;
        let authority = URL_SAFE_NO_PAD.decode(authority).ok()?.try_into().ok()?;
        let fits = (1..=URL_BYTES_MAX).contains(&url.len())
            && url.starts_with("https://")
            && id.len() == 12
            && id.bytes().all(|b| b.is_ascii_hexdigit())
            && secret.len() == 43;
        fits.then(|| Self {
            url,
            ca_fingerprint: authority,
            id: id.to_owned(),
            secret: secret.to_owned().into(),
        })
    }

    /// Returns the digest of the secret, which is stored instead of it. The secret has 256 random
    /// bits, so a plain digest is enough.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        crate::sha256_digest(self.secret.expose_secret().as_bytes()).0
    }

    /// Returns the whole token as text, to be shown once.
    #[must_use]
    pub fn reveal(&self) -> String {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (url, authority) = (encode(self.url.as_bytes()), encode(&self.ca_fingerprint));
        format!("{PREFIX}.{url}.{authority}.{}.{}", self.id, self.secret.expose_secret())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_shown() {
        let token = EnrollmentToken::generate("https://fleet.example:4019", [7; 32]).unwrap();
        let (shown, digest) = (token.reveal(), token.digest());
        let read = EnrollmentToken::parse(&format!(" {shown}\n")).unwrap();
        assert_eq!((read.url, read.ca_fingerprint, read.id), (token.url, [7; 32], token.id));
        assert_eq!(EnrollmentToken::parse(&shown).unwrap().digest(), digest);
        for broken in
            [&shown[..shown.len() - 1], "sce1.a.b.c.d", "", &shown.replace("sce1", "sce2")]
        {
            assert!(EnrollmentToken::parse(broken).is_none(), "{broken}");
        }
        let plain = EnrollmentToken::generate("http://fleet.example", [7; 32]).unwrap().reveal();
        assert!(EnrollmentToken::parse(&plain).is_none(), "a secret over plain HTTP");
    }
}
