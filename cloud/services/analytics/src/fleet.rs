//! Counts the fleet's roasts of the last days, by machine. It uses the session summaries that
//! ingestion stores, and reads no curve.

use std::collections::BTreeMap;

use contract::session::{Completeness, RoastSessionSummary};
use contract::{EpochMs, OrgId};
use http_stack::query::encode_cursor;
use serde::Serialize;
use service_client::{ServiceClient, ServiceClientError};
use utoipa::ToSchema;

/// The maximum number of roasts that are counted. If there are more, the response has `cut` set.
const ROASTS_MAX: usize = 20_000;
const PAGE: &str = "500";

/// The counts and means of a group of roasts.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoastCounts {
    pub roasts: u64,
    /// The number of roasts of which ingestion has every sample.
    pub complete: u64,
    /// Roasts that have not ended.
    pub running: u64,
    pub roasts_per_day: f64,
    /// The mean duration, s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// The mean time of first crack, s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_crack_seconds: Option<f64>,
    /// The share of the points whose signature was verified, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_share: Option<f64>,
    /// The start of the latest roast.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_roast_at: Option<EpochMs>,
}

/// The counts and means of one machine.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineCounts {
    pub site_id: String,
    pub machine_id: String,
    #[serde(flatten)]
    pub counted: RoastCounts,
}

/// The counts and means of a fleet, in total and by machine.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FleetStatistics {
    /// Roasts that began at or after this time are counted.
    pub since: EpochMs,
    #[serde(flatten)]
    pub all: RoastCounts,
    pub machines: Vec<MachineCounts>,
    /// Whether there were more roasts than are counted.
    pub cut: bool,
}

/// Reads the summaries of the roasts that began at or after `since`, newest first. The flag is true
/// if there are more.
///
/// # Errors
/// When ingestion does not answer.
pub async fn read(
    ingestion: &ServiceClient,
    org: &OrgId,
    since: EpochMs,
) -> Result<(Vec<RoastSessionSummary>, bool), ServiceClientError> {
    let mut roasts: Vec<RoastSessionSummary> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut query = vec![("limit", PAGE)];
        query.extend(after.as_deref().map(|after| ("cursor", after)));
        let page: Vec<RoastSessionSummary> =
            ingestion.get(org, &["sessions"], &query).await?.unwrap_or_default();
        let last = page.last().map(|last| (last.started_at, last.session_id.to_string()));
        let full = page.len().to_string() == PAGE;
        roasts.extend(page.into_iter().filter(|roast| roast.started_at >= since));
        let Some((started, id)) = last.filter(|(started, _)| full && *started >= since) else {
            return Ok((roasts, false));
        };
        if roasts.len() >= ROASTS_MAX {
            return Ok((roasts, true));
        }
        after = Some(encode_cursor(started.0, &id));
    }
}

#[derive(Default)]
struct Sum {
    counted: RoastCounts,
    durations: (f64, u64),
    cracks: (f64, u64),
    points: (u64, u64),
}

impl Sum {
    fn add(&mut self, roast: &RoastSessionSummary) {
        let counted = &mut self.counted;
        counted.roasts = counted.roasts.saturating_add(1);
        let complete = u64::from(roast.completeness == Completeness::Complete);
        counted.complete = counted.complete.saturating_add(complete);
        counted.running = counted.running.saturating_add(u64::from(roast.ended_at.is_none()));
        counted.last_roast_at = counted.last_roast_at.max(Some(roast.started_at));
        for (sum, value) in
            [(&mut self.durations, roast.duration_seconds), (&mut self.cracks, roast.fc_seconds)]
        {
            if let Some(value) = value {
                sum.0 += value;
                sum.1 = sum.1.saturating_add(1);
            }
        }
        let (verified, points) = self.points;
        self.points = (
            verified.saturating_add(roast.verified_points),
            points.saturating_add(roast.telemetry_points),
        );
    }

    fn finish(self, days: f64) -> RoastCounts {
        let mean = |(sum, n): (f64, u64)| (n > 0).then(|| (sum / n as f64 * 10.0).round() / 10.0);
        let (verified, points) = self.points;
        RoastCounts {
            roasts_per_day: (self.counted.roasts as f64 / days * 100.0).round() / 100.0,
            duration_seconds: mean(self.durations),
            first_crack_seconds: mean(self.cracks),
            verified_share: (points > 0).then(|| verified as f64 / points as f64),
            ..self.counted
        }
    }
}

/// Counts roasts, in total and by machine.
#[must_use]
pub fn count(
    roasts: &[RoastSessionSummary],
    truncated: bool,
    since: EpochMs,
    days: f64,
) -> FleetStatistics {
    let mut all = Sum::default();
    let mut machines: BTreeMap<(String, String), Sum> = BTreeMap::new();
    for roast in roasts {
        all.add(roast);
        let origin = &roast.origin;
        let name = (origin.site.to_string(), origin.machine.to_string());
        machines.entry(name).or_default().add(roast);
    }
    let of = |((site_id, machine_id), sum): ((String, String), Sum)| MachineCounts {
        site_id,
        machine_id,
        counted: sum.finish(days),
    };
    FleetStatistics {
        since,
        all: all.finish(days),
        machines: machines.into_iter().map(of).collect(),
        cut: truncated,
    }
}
