//! The names of sites and machines that upstream Sim-Corp takes and an identity may not have, such as
//! `Loring S35`: encoded as identities, and returned to clients as they came.
//!
//! The rule: `@`, then the name, in which each byte that is not one of `A–Z a–z 0–9 . _ -` is `:` and
//! two hexadecimal digits. `Loring S35` is `@Loring:20S35`. A name that is an identity is not encoded.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{IdError, MachineId, SiteId};

/// The first character of an encoded name.
const MARK: char = '@';

/// Returns the identity that a name has in topics, paths and storage: the name itself if it is one.
///
/// # Errors
/// When the name is empty, has a control character or one that no topic level may have (`/ + #`), or
/// is too long once it is encoded.
pub fn identity<T: TryFrom<String, Error = IdError>>(name: &str) -> Result<T, IdError> {
    match T::try_from(name.to_owned()) {
        Err(IdError::Character { .. }) if name.chars().all(is_level) => T::try_from(encode(name)),
        own => own,
    }
}

/// Returns the name that a client gave: the identity itself, unless it is an encoded name.
#[must_use]
pub fn spelling(id: &str) -> String {
    decode(id).unwrap_or_else(|| id.to_owned())
}

/// Returns the text of a query or path with which data of a name is found: its identity, or the text
/// itself if it can be no name.
#[must_use]
pub fn searched(name: &str) -> String {
    identity::<MachineId>(name).map_or_else(|_| name.to_owned(), String::from)
}

/// Returns whether a topic level may have a character, and a person can see it.
fn is_level(c: char) -> bool {
    !c.is_control() && !"/+#".contains(c)
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

fn encode(name: &str) -> String {
    let mut id = String::from(MARK);
    for byte in name.bytes() {
        if is_plain(byte) {
            id.push(char::from(byte));
        } else {
            let _ = write!(id, ":{byte:02X}");
        }
    }
    id
}

/// Returns the name of an encoded name; `None` for every other identity.
fn decode(id: &str) -> Option<String> {
    let mut rest = id.strip_prefix(MARK)?.as_bytes();
    let mut name = Vec::with_capacity(rest.len());
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b':' {
            let (digits, after) = rest.split_at_checked(2)?;
            name.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            name.push(*first);
        }
    }
    let name = String::from_utf8(name).ok()?;
    // Only what `identity` makes: another id that looks like it stays as it is.
    let encoded = identity::<MachineId>(&name).is_ok_and(|made| made.as_str() == id);
    encoded.then_some(name)
}

/// An identity that clients may know under an encoded name.
pub trait Named: Sized {
    /// Returns the identity as text.
    fn as_str(&self) -> &str;
    /// Returns the identity of a name.
    ///
    /// # Errors
    /// As [`identity`].
    fn of_name(name: &str) -> Result<Self, IdError>;
}

impl Named for MachineId {
    fn as_str(&self) -> &str {
        Self::as_str(self)
    }
    fn of_name(name: &str) -> Result<Self, IdError> {
        identity(name)
    }
}

impl Named for SiteId {
    fn as_str(&self) -> &str {
        Self::as_str(self)
    }
    fn of_name(name: &str) -> Result<Self, IdError> {
        identity(name)
    }
}

/// Writes the name of an identity. For `#[serde(with)]`.
///
/// # Errors
/// When the serializer fails.
pub fn serialize<T: Named, S: Serializer>(id: &T, serializer: S) -> Result<S::Ok, S::Error> {
    match decode(Named::as_str(id)) {
        Some(name) => name.serialize(serializer),
        None => Named::as_str(id).serialize(serializer),
    }
}

/// Reads an identity or a name. For `#[serde(with)]`.
///
/// # Errors
/// When the value is not a text, or the text can be no name.
pub fn deserialize<'de, T: Named, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let name = String::deserialize(deserializer)?;
    T::of_name(&name).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Origin;

    #[test]
    fn names_are_encoded_as_identities_and_read_back() {
        for (name, id) in [
            ("Loring S35", "@Loring:20S35"),
            ("Röster 2", "@R:C3:B6ster:202"),
            ("a:b c@d", "@a:3Ab:20c:40d"),
            ("Probat (hall 2)", "@Probat:20:28hall:202:29"),
        ] {
            let made: MachineId = identity(name).unwrap();
            assert_eq!((made.as_str(), spelling(id).as_str()), (id, name));
            assert_eq!((searched(name).as_str(), searched(id).as_str()), (id, id));
            assert_eq!(identity::<SiteId>(name).unwrap().as_str(), id);
        }
        for id in ["r-1", "@", "@r-1", "@Loring:20", "a:20b", "@a:2ab", "@a:2Fb", "@a:ZZ b"] {
            assert_eq!(spelling(id), if id == "@Loring:20" { "Loring " } else { id }, "{id}");
        }
        assert_eq!(identity::<MachineId>("r-1").unwrap().as_str(), "r-1", "as it is");
    }

    #[test]
    fn what_no_topic_level_may_have_is_no_name() {
        let long = "ä".repeat(22);
        for bad in ["", "a/b", "a + b", "#", "a\u{0}b", "a\nb", "..", &"x".repeat(129), &long] {
            assert!(identity::<MachineId>(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn clients_read_and_write_the_name() {
        let text = r#"{"orgId":"org","siteId":"Halle 1","machineId":"Loring S35"}"#;
        let origin: Origin = serde_json::from_str(text).unwrap();
        assert_eq!(origin.to_string(), "org/@Halle:201/@Loring:20S35");
        assert_eq!(serde_json::to_string(&origin).unwrap(), text);
        // The name of an organisation decides who may see what.
        assert!(serde_json::from_str::<Origin>(&text.replace("org\"", "o g\"")).is_err());
    }
}
