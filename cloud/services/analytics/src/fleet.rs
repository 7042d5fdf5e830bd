//! What a fleet has done: roasts of the last days, by machine. From the summaries that ingestion
//! holds; no curve is read.

use std::collections::BTreeMap;

use contract::session::{Completeness, RoastSessionSummary};
use contract::{EpochMs, OrgId};
use serde::Serialize;
use service::query::cursor;
use service_client::{ServiceClient, ServiceClientError};
use utoipa::ToSchema;

/// Roasts that are counted at most; with more the answer says that it is cut.
const ROASTS_MAX: usize = 20_000;
const PAGE: &str = "500";

/// Roasts that were counted together.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    pub roasts: u64,
    /// Of which every sample is here.
    pub complete: u64,
    pub running: u64,
    pub roasts_per_day: f64,
    /// Means, s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_crack_seconds: Option<f64>,
    /// Share of the points whose signature was verified, 0..1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_roast_at: Option<EpochMs>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OfMachine {
    pub site_id: String,
    pub machine_id: String,
    #[serde(flatten)]
    pub counted: Counted,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Fleet {
    pub since: EpochMs,
    #[serde(flatten)]
    pub all: Counted,
    pub machines: Vec<OfMachine>,
    /// There were more roasts than are counted.
    pub cut: bool,
}

/// Reads the roasts that began since, the newest first; `true`: there are more.
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
        after = Some(cursor(started.0, &id));
    }
}

#[derive(Default)]
struct Sum {
    counted: Counted,
    durations: (f64, u64),
    cracks: (f64, u64),
    points: (u64, u64),
}

impl Sum {
    fn add(&mut self, roast: &RoastSessionSummary) {
        let counted = &mut self.counted;
        counted.roasts += 1;
        counted.complete += u64::from(roast.completeness == Completeness::Complete);
        counted.running += u64::from(roast.ended_at.is_none());
        counted.last_roast_at = counted.last_roast_at.max(Some(roast.started_at));
        for (sum, value) in
            [(&mut self.durations, roast.duration_seconds), (&mut self.cracks, roast.fc_seconds)]
        {
            if let Some(value) = value {
                sum.0 += value;
                sum.1 += 1;
            }
        }
        self.points.0 += roast.verified_points;
        self.points.1 += roast.telemetry_points;
    }

    fn told(self, days: f64) -> Counted {
        let mean = |(sum, n): (f64, u64)| (n > 0).then(|| (sum / n as f64 * 10.0).round() / 10.0);
        let (verified, points) = self.points;
        Counted {
            roasts_per_day: (self.counted.roasts as f64 / days * 100.0).round() / 100.0,
            duration_seconds: mean(self.durations),
            first_crack_seconds: mean(self.cracks),
            verified_share: (points > 0).then(|| verified as f64 / points as f64),
            ..self.counted
        }
    }
}

/// Counts roasts, together and by machine.
#[must_use]
pub fn count(roasts: &[RoastSessionSummary], cut: bool, since: EpochMs, days: f64) -> Fleet {
    let mut all = Sum::default();
    let mut machines: BTreeMap<(String, String), Sum> = BTreeMap::new();
    for roast in roasts {
        all.add(roast);
        let origin = &roast.origin;
        let name = (origin.site.to_string(), origin.machine.to_string());
        machines.entry(name).or_default().add(roast);
    }
    let of = |((site_id, machine_id), sum): ((String, String), Sum)| OfMachine {
        site_id,
        machine_id,
        counted: sum.told(days),
    };
    Fleet { since, all: all.told(days), machines: machines.into_iter().map(of).collect(), cut }
}
