//! How far agents may go on their own: what happened ([`metrics`]), what stops them when it goes
//! wrong ([`breaker`]), whether they are ready for more ([`readiness`]), and the weekly look at all
//! of it ([`cycle`]). Pure; rules and weights are the reference's (its contract §4.10).
//!
//! No phase lets a command through without a person: phases say for which command types of agents a
//! high autonomy level counts.

pub mod breaker;
pub mod cycle;
pub mod metrics;
pub mod readiness;
pub mod watch;

use std::collections::BTreeMap;

use contract::EpochMs;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, ToSchema,
)]
pub enum Phase {
    #[default]
    L3,
    #[serde(rename = "L3+")]
    L3Plus,
    L4,
    #[serde(rename = "L4+")]
    L4Plus,
    L5,
}

impl Phase {
    pub const ALL: [Self; 5] = [Self::L3, Self::L3Plus, Self::L4, Self::L4Plus, Self::L5];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::L3 => "L3",
            Self::L3Plus => "L3+",
            Self::L4 => "L4",
            Self::L4Plus => "L4+",
            Self::L5 => "L5",
        }
    }

    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == word)
    }

    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| *phase > self)
    }
}

/// Where an organisation stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub phase: Phase,
    pub since: EpochMs,
    pub known: Known,
}

/// The rest of a [`State`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    /// Command types of agents for which a high autonomy level counts.
    pub whitelist: Vec<String>,
    /// What people declare of their process, by the reference's names.
    pub declared: BTreeMap<String, bool>,
    pub last_report: Option<EpochMs>,
    pub last_expansion: Option<EpochMs>,
}

impl State {
    #[must_use]
    pub fn new(now: EpochMs) -> Self {
        Self { phase: Phase::L3, since: now, known: Known::default() }
    }

    #[must_use]
    pub fn days(&self, now: EpochMs) -> i64 {
        now.since(self.since).max(0) / 86_400_000
    }
}
