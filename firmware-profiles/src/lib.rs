//! Machine profiles: what a roaster's controller offers, at which addresses, in which form, and
//! which writes are allowed. There is one TOML file per controller generation, in `machines/`.
//!
//! A profile is data. It never makes a machine do anything: drivers read it, and the linter checks
//! it. Every frame carries the profile's digest, so that a curve can be traced to the profile it
//! was read with. Nothing in this crate opens a port.

// Arithmetic on outside values is checked or saturating; an exception states its bound.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

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

/// The size limit of a profile, in bytes.
pub const FILE_BYTES_MAX: usize = 64 * 1024;
/// The JSON Schema of the TOML file, for editors.
pub const SCHEMA: &str = include_str!("../profile.schema.json");
/// The content type of a profile in its signature.
pub const CONTENT_PROFILE: &str = "application/vnd.simcorp.profile+toml";

/// Why a text is not a usable profile.
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

/// A profile without findings, and the digest of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    pub profile: Profile,
    /// The SHA-256 digest of the file's bytes.
    pub digest: Digest,
}

/// Parses a profile without running the linter.
///
/// # Errors
/// When the text is too large, is not TOML, or has an unknown field.
pub fn parse(text: &str) -> Result<Profile, ProfileError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(ProfileError::TooLarge);
    }
    toml::from_str(text)
        .map_err(|error| ProfileError::Toml(error.to_string().trim_end().to_owned()))
}

/// Parses a profile and checks that a driver may use it.
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
    /// Checks that `profile.schema.json` matches the types. With `UPDATE=1` in its environment it
    /// regenerates the file: `UPDATE=1 cargo nextest run -p firmware-profiles`.
    #[test]
    fn the_published_schema_matches_the_types() {
        let schema = schemars::schema_for!(super::Profile);
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/profile.schema.json");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(file, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), text);
    }
}
