//! The linter of machine profiles. Each rule prevents a mistake that happened at a real roaster, or
//! could happen there.

mod control;
mod machine;
mod reading;
mod safety;

use std::fmt;

use crate::condition::Condition;
use crate::document::Profile;

/// One mistake in a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The short name of the rule, which `docs/reference/profiles.md` explains.
    pub rule: &'static str,
    /// The location in the profile: `control burner`, `channel btC`, `timing`.
    pub location: String,
    /// A sentence that says what is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.location, self.message, self.rule)
    }
}

/// Returns all mistakes in a profile, in the order of the file.
#[must_use]
pub fn lint(profile: &Profile) -> Vec<Finding> {
    let mut findings = Findings { entries: Vec::new() };
    machine::check(profile, &mut findings);
    reading::check(profile, &mut findings);
    control::check(profile, &mut findings);
    safety::check(profile, &mut findings);
    findings.entries
}

struct Findings {
    entries: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, rule: &'static str, at: impl Into<String>, sentence: impl Into<String>) {
        self.entries.push(Finding { rule, location: at.into(), message: sentence.into() });
    }

    /// Adds a finding unless `holds`.
    fn require(&mut self, holds: bool, rule: &'static str, at: &str, sentence: &str) {
        if !holds {
            self.add(rule, at, sentence);
        }
    }
}

/// Returns whether the profile has a channel with this name, read or derived.
fn has_channel(profile: &Profile, name: &str) -> bool {
    profile.channels.iter().any(|c| c.name == name)
        || profile.derived.iter().any(|d| d.name == name)
}

/// Returns why this profile cannot evaluate a condition; `None` if it can.
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
