//! Typed identities, so that a machine's identity can never be used where a site's is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest identity accepted, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{kind} is empty")]
    Empty {
        /// The field that the identity is for.
        kind: &'static str,
    },
    /// The text is longer than [`ID_BYTES_MAX`], or a key's name longer than its two parts may be.
    #[error("{kind} is longer than {ID_BYTES_MAX} bytes")]
    TooLong {
        /// The field that the identity is for.
        kind: &'static str,
    },
    /// The text has a character that is not allowed.
    #[error("{kind} contains {found:?}; letters, digits and . _ - : @ are allowed")]
    Character {
        /// The field that the identity is for.
        kind: &'static str,
        /// The first such character.
        found: char,
    },
    /// The text does not have the form that its kind requires.
    #[error("{kind} is not {expected}")]
    Form {
        /// The field that the identity is for.
        kind: &'static str,
        /// The required form, in words.
        expected: &'static str,
    },
}

/// Checks that a text is an identity. MQTT's `/ + #` and every character that a path, a URL or a
/// shell could misread are refused, so an identity can be a topic level, a file name and a label
/// without escaping.
fn check(kind: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { kind });
    }
    if text.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong { kind });
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-:@".contains(c);
    match text.chars().find(|c| !allowed(*c)) {
        Some(found) => Err(IdError::Character { kind, found }),
        None if text.chars().all(|c| c == '.') => {
            Err(IdError::Form { kind, expected: "a name (only dots)" })
        }
        None => Ok(()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
        pub struct $name(Box<str>);

        impl $name {
            /// Creates an identity from a text, after checking it.
            ///
            /// # Errors
            /// When the text is empty, too long or has a character outside `A–Z a–z 0–9 . _ - : @`.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check($kind, &text)?;
                Ok(Self(text.into_boxed_str()))
            }

            /// Returns the identity as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }
    };
}

text_id!(
    /// An organisation: the tenant that every row belongs to.
    OrgId, "orgId"
);
text_id!(
    /// A place where machines stand.
    SiteId, "siteId"
);
text_id!(
    /// One roaster.
    MachineId, "machineId"
);
text_id!(
    /// One gateway with a signing key.
    DeviceId, "deviceId"
);
text_id!(
    /// One session: a roast as it is stored.
    SessionId, "sessionId"
);

impl SessionId {
    /// Creates `S-<org>-<site>-<machine>-<YYYYMMDDTHHMMSS>-<6 hex>`, upstream Sim-Corp's form.
    /// `salt` distinguishes two roasts that began in the same second. An origin that is too long
    /// for the form is truncated.
    #[must_use]
    pub fn compose(origin: &Origin, started: crate::EpochMs, salt: u32) -> Self {
        let mut head = format!("S-{}-{}-{}", origin.org, origin.site, origin.machine);
        head.truncate(ID_BYTES_MAX - 23); // ids are ASCII, so any cut is a character boundary
        let text = format!("{head}-{}-{:06x}", started.compact(), salt & 0x00ff_ffff);
        Self(text.into_boxed_str())
    }
}

/// Where a sample comes from: organisation, site, machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Origin {
    /// The organisation that owns the machine.
    #[serde(rename = "orgId")]
    pub org: OrgId,
    /// The place where the machine stands.
    #[serde(rename = "siteId", with = "crate::upstream_id")]
    pub site: SiteId,
    /// The machine.
    #[serde(rename = "machineId", with = "crate::upstream_id")]
    pub machine: MachineId,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.org, self.site, self.machine)
    }
}

impl std::str::FromStr for Origin {
    type Err = IdError;

    /// Reads `org/site/machine`.
    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut parts = text.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        Ok(Self {
            org: OrgId::new(next())?,
            site: SiteId::new(next())?,
            machine: MachineId::new(next())?,
        })
    }
}

/// The identity of a signing key: `device:{device}@{site}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
pub struct KeyId(Box<str>);

impl KeyId {
    /// Creates the identity of the key of `device` at `site`.
    #[must_use]
    pub fn new(device: &DeviceId, site: &SiteId) -> Self {
        Self(format!("device:{device}@{site}").into_boxed_str())
    }

    /// Returns the identity as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for KeyId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        const KIND: &str = "kid";
        let form = || IdError::Form { kind: KIND, expected: "device:{device}@{site}" };
        if text.len() > 2 * ID_BYTES_MAX + 8 {
            return Err(IdError::TooLong { kind: KIND });
        }
        let (device, site) =
            text.strip_prefix("device:").and_then(|rest| rest.rsplit_once('@')).ok_or_else(form)?;
        check(KIND, device)?;
        check(KIND, site)?;
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for KeyId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> String {
        id.0.into()
    }
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = String))]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let form = || IdError::Form { kind: $kind, expected: concat!($len, " bytes in hex") };
                if text.len() != 2 * $len || !text.is_ascii() {
                    return Err(form());
                }
                let mut bytes = [0; $len];
                let (digits, _) = text.as_bytes().as_chunks::<2>();
                for (byte, digits) in bytes.iter_mut().zip(digits) {
                    let digits = std::str::from_utf8(digits).map_err(|_| form())?;
                    *byte = u8::from_str_radix(digits, 16).map_err(|_| form())?;
                }
                Ok(Self(bytes))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

byte_id!(
    /// The identity of one journal's unbroken sequence of frames. A new journal is a new chain, so
    /// frame numbers that start again can never be mistaken for a replay.
    ChainId, "chain", 16
);
byte_id!(
    /// A SHA-256 digest.
    Digest, "digest", 32
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EpochMs;

    #[test]
    fn ids_refuse_what_a_topic_or_a_path_could_misread() {
        for bad in ["", "a/b", "a+b", "#", "a b", "..", "é", &"x".repeat(129)] {
            assert!(MachineId::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            OrgId::new("a/b").unwrap_err().to_string(),
            "orgId contains '/'; letters, digits and . _ - : @ are allowed"
        );
    }

    #[test]
    fn key_ids_have_a_device_and_a_site() {
        assert!("device:gw-1@leipzig".parse::<KeyId>().is_ok());
        for bad in ["gw-1@leipzig", "device:gw-1", "device:@x", "device:../../x@y"] {
            assert!(bad.parse::<KeyId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn session_ids_always_fit() {
        let long = "m".repeat(ID_BYTES_MAX);
        let origin = Origin {
            org: OrgId::new(long.clone()).unwrap(),
            site: SiteId::new(long.clone()).unwrap(),
            machine: MachineId::new(long).unwrap(),
        };
        let id = SessionId::compose(&origin, EpochMs(1_759_698_495_000), u32::MAX);
        assert!(SessionId::new(id.as_str()).is_ok());
        assert!(id.as_str().ends_with("-20251005T210815-ffffff"), "{id}");
    }
}
