//! Machine profiles: what a roaster's controller offers, where, in which form, and what may be
//! asked of it. One TOML file a controller generation, in `machines/`.
//!
//! A profile is data. It never makes a machine do anything; drivers read it, the linter judges it,
//! and its digest travels in every frame, so that a curve can be traced to the words it was read
//! by. Nothing here opens a port.

pub mod address;
mod catalogue;
pub mod condition;
mod document;
pub mod encoding;
mod lint;
mod scaling;

pub use catalogue::{SHIPPED, ShippedProfile, shipped};
pub use condition::{Condition, ForbidRule, Operator, SafeStep};
pub use document::{
    BringUp, Channel, Control, Derived, Fuel, Gap, Limits, LineFormat, Machine, Map, MaskWrite,
    Parity, Profile, Remote, Role, SafeState, Serial, State, Term, Timing, Transport, Unit, Writes,
};
pub use lint::{Finding, lint};

use contract::Digest;

/// The largest profile that is read, in bytes.
pub const FILE_BYTES_MAX: usize = 64 * 1024;
/// JSON Schema of the TOML file, for editors.
pub const SCHEMA: &str = include_str!("../profile.schema.json");
/// The signed content type of a profile.
pub const CONTENT_PROFILE: &str = "application/vnd.simcorp.profile+toml";

/// Why a text is not a profile that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("larger than {} KiB", FILE_BYTES_MAX / 1024)]
    TooLarge,
    #[error("{0}")]
    Toml(String),
    #[error("{}", sentences(.0))]
    Findings(Vec<Finding>),
}

fn sentences(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A profile without findings, and the digest of its text.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    pub profile: Profile,
    /// SHA-256 of the file's bytes.
    pub digest: Digest,
}

/// Reads a profile; what the linter finds is left to the caller.
///
/// # Errors
/// When it is too large, no TOML, or has a field that no profile has.
pub fn parse(text: &str) -> Result<Profile, ProfileError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(ProfileError::TooLarge);
    }
    toml::from_str(text)
        .map_err(|error| ProfileError::Toml(error.to_string().trim_end().to_owned()))
}

/// Reads a profile that a driver may use.
///
/// # Errors
/// As [`parse`], or when the linter finds anything.
pub fn check(text: &str) -> Result<Checked, ProfileError> {
    let profile = parse(text)?;
    let findings = lint(&profile);
    if findings.is_empty() {
        Ok(Checked { profile, digest: trust::sha256_digest(text.as_bytes()) })
    } else {
        Err(ProfileError::Findings(findings))
    }
}

#[cfg(test)]
mod tests {
    /// `UPDATE=1 cargo nextest run -p firmware-profiles` writes it anew.
    #[test]
    fn the_published_schema_is_this_one() {
        let schema = schemars::schema_for!(super::Profile);
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/profile.schema.json");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(file, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), text);
    }
}
