//! The linter: each rule is something that went wrong at a real roaster, or would have.

mod control;
mod machine;
mod reading;
mod safety;

use std::fmt;

use crate::condition::Condition;
use crate::document::Profile;

/// One thing that is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule's short name, which `docs/reference/profiles.md` explains.
    pub rule: &'static str,
    /// Where: `control burner`, `channel btC`, `timing`.
    pub location: String,
    /// What is wrong and what to do, in a sentence.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.location, self.message, self.rule)
    }
}

/// Everything that is wrong with a profile, in the order of the file.
#[must_use]
pub fn lint(profile: &Profile) -> Vec<Finding> {
    let mut findings = Findings { found: Vec::new() };
    machine::check(profile, &mut findings);
    reading::check(profile, &mut findings);
    control::check(profile, &mut findings);
    safety::check(profile, &mut findings);
    findings.found
}

struct Findings {
    found: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, rule: &'static str, at: impl Into<String>, sentence: impl Into<String>) {
        self.found.push(Finding { rule, location: at.into(), message: sentence.into() });
    }

    /// A finding unless `holds`.
    fn require(&mut self, holds: bool, rule: &'static str, at: &str, sentence: &str) {
        if !holds {
            self.add(rule, at, sentence);
        }
    }
}

/// The channels of a profile by name, read and derived.
fn has_channel(profile: &Profile, name: &str) -> bool {
    profile.channels.iter().any(|c| c.name == name)
        || profile.derived.iter().any(|d| d.name == name)
}

/// Why a condition cannot be judged by this profile, if it cannot.
fn unknown_reference(profile: &Profile, condition: Option<&Condition>) -> Option<String> {
    match condition {
        None => {
            Some("is neither a state's name nor a comparison such as `drumRpm >= 20`".to_owned())
        }
        Some(Condition::State(name)) => (!profile.states.iter().any(|s| s.name == *name))
            .then(|| format!("names {name}, which is no [[state]] here")),
        Some(Condition::Compare { channel, .. }) => (!has_channel(profile, channel))
            .then(|| format!("compares {channel}, which is no [[channel]] here")),
    }
}
