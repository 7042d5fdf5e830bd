//! Circuit-breaker rules: a condition over a window, and the action to take when it holds.

use contract::EpochMs;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::metrics::AutonomyMetrics;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerAction {
    /// Reverts the phase to L3, empties the whitelist, and lowers the policy's autonomy level to
    /// L3.
    RevertToL3,
    /// Pauses commands until the event is resolved.
    PauseCommandType,
    /// Only alerts people.
    AlertOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Critical,
    High,
    Medium,
    Low,
}

impl Severity {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    pub name: String,
    pub enabled: bool,
    /// For example `errorRate > 0.05`.
    pub condition: String,
    /// For example `5m`; the units are s, m, h and d.
    pub window: String,
    pub action: BreakerAction,
    pub alert_severity: Severity,
}

/// Returns the rules of an organisation that has changed none.
#[must_use]
pub fn defaults() -> Vec<Rule> {
    use BreakerAction::{AlertOnly, PauseCommandType, RevertToL3};
    use Severity::{Critical, High, Medium};
    let rule = |name: &str, condition: &str, window: &str, action, alert_severity| Rule {
        name: name.to_owned(),
        enabled: true,
        condition: condition.to_owned(),
        window: window.to_owned(),
        action,
        alert_severity,
    };
    vec![
        rule("High Error Rate", "errorRate > 0.05", "5m", RevertToL3, Critical),
        rule(
            "Repeated Command Failures",
            "commandType.failures >= 3",
            "5m",
            PauseCommandType,
            High,
        ),
        rule(
            "Critical Incident Detected",
            "incident.severity === \"critical\"",
            "1m",
            RevertToL3,
            Critical,
        ),
        rule("High Rollback Rate", "rollbackRate > 0.1", "15m", AlertOnly, Medium),
    ]
}

/// A parsed condition.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    value: fn(&AutonomyMetrics) -> f64,
    compare: Compare,
    limit: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Above,
    AtLeast,
    Below,
    AtMost,
}

/// Why a rule is invalid and could never hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    #[error(
        "condition: not VALUE COMPARISON NUMBER, VALUE being errorRate, rollbackRate, successRate, \
         incidents.critical, commandType.failures, constraintViolations, emergencyAborts, or \
         incident.severity === \"critical\""
    )]
    Condition,
    #[error("window: not a number followed by s, m, h or d, from 1 minute to 90 days")]
    Window,
}

impl Condition {
    /// Parses a condition.
    ///
    /// # Errors
    /// [`RuleError::Condition`]
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [name, compare, limit] = parts[..] else { return Err(RuleError::Condition) };
        if (name, compare, limit) == ("incident.severity", "===", "\"critical\"") {
            let value = |m: &AutonomyMetrics| m.incidents.critical as f64;
            return Ok(Self { value, compare: Compare::Above, limit: 0.0 });
        }
        let value: fn(&AutonomyMetrics) -> f64 = match name {
            "errorRate" => |m| m.rates.error_rate,
            "rollbackRate" => |m| m.rates.rollback_rate,
            "successRate" => |m| m.rates.success_rate,
            "incidents.critical" => |m| m.incidents.critical as f64,
            "commandType.failures" => |m| m.commands.failed as f64,
            "constraintViolations" => |m| m.safety.constraint_violations as f64,
            "emergencyAborts" => |m| m.safety.emergency_aborts as f64,
            _ => return Err(RuleError::Condition),
        };
        let compare = match compare {
            ">" => Compare::Above,
            ">=" => Compare::AtLeast,
            "<" => Compare::Below,
            "<=" => Compare::AtMost,
            _ => return Err(RuleError::Condition),
        };
        let limit = limit.parse::<f64>().ok().filter(|limit| limit.is_finite());
        Ok(Self { value, compare, limit: limit.ok_or(RuleError::Condition)? })
    }

    /// Returns whether the condition holds. `<` and `<=` never hold while no command has ended: a
    /// low success rate means nothing then.
    #[must_use]
    pub fn holds(&self, metrics: &AutonomyMetrics) -> bool {
        let value = (self.value)(metrics);
        let idle = metrics.commands.ended() == 0;
        match self.compare {
            Compare::Above => value > self.limit,
            Compare::AtLeast => value >= self.limit,
            Compare::Below => !idle && value < self.limit,
            Compare::AtMost => !idle && value <= self.limit,
        }
    }
}

const WINDOW_MS_MAX: i64 = 90 * 86_400_000;
const WINDOW_MS_MIN: i64 = 60_000;

impl Rule {
    /// Returns the window in ms; a shorter one than a minute becomes a minute.
    ///
    /// # Errors
    /// [`RuleError::Window`]
    pub fn window_ms(&self) -> Result<i64, RuleError> {
        let text = self.window.trim();
        let mut number = text.chars();
        let unit = number.next_back().ok_or(RuleError::Window)?;
        let number: i64 = number.as_str().parse().map_err(|_| RuleError::Window)?;
        let one = match unit {
            's' => 1_000,
            'm' => 60_000,
            'h' => 3_600_000,
            'd' => 86_400_000,
            _ => return Err(RuleError::Window),
        };
        let ms = number.checked_mul(one).ok_or(RuleError::Window)?;
        // Facts are counted by the minute.
        let ms = ms.max(if number > 0 { WINDOW_MS_MIN } else { 0 });
        if (WINDOW_MS_MIN..=WINDOW_MS_MAX).contains(&ms) { Ok(ms) } else { Err(RuleError::Window) }
    }

    /// Checks that the window and the condition are valid.
    ///
    /// # Errors
    /// [`RuleError`]
    pub fn check(&self) -> Result<(), RuleError> {
        self.window_ms()?;
        Condition::parse(&self.condition).map(drop)
    }
}

/// A circuit-breaker event: a rule whose condition held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BreakerEvent {
    pub id: String,
    pub timestamp: EpochMs,
    pub rule: Rule,
    pub metrics: AutonomyMetrics,
    pub action: BreakerAction,
    pub details: String,
    #[serde(default)]
    pub resolved: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved_at: Option<EpochMs>,
}

#[cfg(test)]
mod tests {
    use super::super::metrics::{Counts, Period};
    use super::*;

    fn metrics(counts: &[(&str, i64)]) -> AutonomyMetrics {
        let period = Period { start: EpochMs(0), end: EpochMs(1) };
        let counts: Counts = counts.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect();
        AutonomyMetrics::of(period, &counts)
    }

    #[test]
    fn every_default_rule_parses_and_can_trigger() {
        let bad = metrics(&[
            ("proposed", 10),
            ("approved", 10),
            ("succeeded", 6),
            ("failed", 4),
            ("rolled_back", 2),
            ("incident_critical", 1),
        ]);
        let idle = metrics(&[]);
        for rule in defaults() {
            rule.check().unwrap();
            let condition = Condition::parse(&rule.condition).unwrap();
            assert!(condition.holds(&bad), "{}", rule.name);
            assert!(!condition.holds(&idle), "{}", rule.name);
        }
        // Without commands there is no failure.
        assert!(!Condition::parse("successRate < 0.9").unwrap().holds(&idle));
        assert!(Condition::parse("successRate < 0.9").unwrap().holds(&bad));
    }

    #[test]
    fn a_rule_that_does_not_parse_is_refused() {
        for text in ["", "errorRate", "errorRate > x", "mood > 1", "errorRate = 1", "a > 1 b"] {
            assert!(Condition::parse(text).is_err(), "{text}");
        }
        let rule = |window: &str| Rule { window: window.to_owned(), ..defaults()[0].clone() };
        assert_eq!(rule("5m").window_ms(), Ok(300_000));
        assert_eq!(rule("10s").window_ms(), Ok(60_000));
        for wrong in ["", "m", "5", "-5m", "0m", "91d", "5y", "99999999999999999999d"] {
            assert!(rule(wrong).window_ms().is_err(), "{wrong}");
        }
    }
}
