//! How much autonomy agents have: what happened ([`metrics`]), the rules that stop agents when
//! something goes wrong ([`breaker`]), whether agents are ready for more ([`readiness`]), and the
//! weekly review of all of it ([`weekly_review`]). Pure functions; rules and weights are upstream's
//! (its contract §4.10).
//!
//! In every phase a command needs a person's approval. A phase determines the command types of
//! agents for which a high autonomy level counts.

pub mod breaker;
pub mod breaker_watch;
pub mod metrics;
pub mod readiness;
pub mod weekly_review;

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
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == name)
    }

    #[must_use]
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|phase| *phase > self)
    }
}

/// An organisation's autonomy state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AutonomyState {
    pub phase: Phase,
    pub since: EpochMs,
    pub known: AutonomyDetails,
}

/// The part of a [`AutonomyState`] that is stored as JSON.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AutonomyDetails {
    /// Command types of agents for which a high autonomy level counts.
    pub whitelist: Vec<String>,
    /// What people declare about their process, by upstream's names.
    pub declared: BTreeMap<String, bool>,
    pub last_report: Option<EpochMs>,
    pub last_expansion: Option<EpochMs>,
}

impl AutonomyState {
    #[must_use]
    pub fn new(now: EpochMs) -> Self {
        Self { phase: Phase::L3, since: now, known: AutonomyDetails::default() }
    }

    #[must_use]
    pub fn days(&self, now: EpochMs) -> i64 {
        now.ms_since(self.since).max(0) / 86_400_000
    }
}
