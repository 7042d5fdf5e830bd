//! Saturation: whether golden cases still distinguish good roasts from bad ones.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State as Extract};
use http_stack::OrgRequest;
use http_stack::error::ApiError;

use super::State;
use crate::golden::GoldenCase;
use crate::saturation::{RECENT_MS, Saturation, Summary, saturation, summary as summarize};
use crate::store::CaseFilter;

/// Cases that are counted at once.
const CASES_MAX: i64 = 1_000;

impl State {
    async fn saturations(&self, request: &OrgRequest) -> Result<Vec<Saturation>, ApiError> {
        let now = request.now();
        let OrgRequest { org, .. } = request;
        let filter = CaseFilter { limit: CASES_MAX, ..CaseFilter::default() };
        let cases = self.store.cases(org, &filter).await?;
        let histories = self.store.histories(org, None, now.plus_ms(-RECENT_MS)).await?;
        let histories: BTreeMap<_, _> = histories.into_iter().collect();
        let of = |case: &GoldenCase| {
            saturation(case, &histories.get(&case.id).copied().unwrap_or_default(), now)
        };
        Ok(cases.iter().map(of).collect())
    }
}

/// Lists how saturated each case is.
#[utoipa::path(get, path = "/saturation/golden-cases", tag = "saturation",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Saturation>), (status = 403)))]
pub async fn list(
    Extract(state): Extract<State>,
    request: OrgRequest,
) -> Result<Json<Vec<Saturation>>, ApiError> {
    Ok(Json(state.saturations(&request).await?))
}

/// Returns how saturated one case is.
#[utoipa::path(get, path = "/saturation/golden-cases/{id}", tag = "saturation",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Saturation), (status = 403), (status = 404)))]
pub async fn one(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    request: OrgRequest,
) -> Result<Json<Saturation>, ApiError> {
    let (org, now) = (&request.org, request.now());
    let (_, case) = state.case(org, &id).await?;
    let history = state.store.histories(org, Some(&id), now.plus_ms(-RECENT_MS)).await?;
    let history = history.into_iter().next().map(|(_, history)| history).unwrap_or_default();
    Ok(Json(saturation(&case, &history, now)))
}

/// Returns how saturated all cases are together.
#[utoipa::path(get, path = "/saturation/summary", tag = "saturation",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Summary), (status = 403)))]
pub async fn summary(
    Extract(state): Extract<State>,
    request: OrgRequest,
) -> Result<Json<Summary>, ApiError> {
    let cases = state.saturations(&request).await?;
    Ok(Json(summarize(&cases, request.now())))
}
