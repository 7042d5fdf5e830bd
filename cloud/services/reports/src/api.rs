//! The report worker's HTTP API: its status, and reports as HTML pages.

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse as _, Response};
use contract::EventKind;
use contract::annotations::RoastReport;
use contract::point::TelemetryPoint;
use http_stack::auth::{Caller, Role};
use http_stack::error::ApiError;
use http_stack::query::Params;
use mission_worker::{SharedStats, WorkerStats};
use roast::analysis::Marks;
use roast::plot;
use roast::recording::Recording;
use roast::sample::Sample;
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::{ServiceClients, page};

#[derive(Clone)]
pub struct State {
    pub clients: ServiceClients,
    pub status: SharedStats,
}

#[derive(utoipa::OpenApi)]
#[openapi(info(title = "Sim-Corp reports", description = "Reports about sessions."))]
struct Doc;

pub fn routes(state: State) -> (axum::Router, utoipa::openapi::OpenApi) {
    use utoipa::OpenApi as _;
    let (router, openapi) = OpenApiRouter::with_openapi(Doc::openapi())
        .routes(routes!(status))
        .routes(routes!(report_page))
        .with_state(state)
        .split_for_parts();
    (router, openapi)
}

/// Returns what the workers of this process have done so far.
#[utoipa::path(get, path = "/status", tag = "reports",
    responses((status = 200, body = WorkerStats)))]
async fn status(
    Extract(state): Extract<State>,
    caller: Caller,
) -> Result<Json<WorkerStats>, ApiError> {
    caller.require_role(Role::Viewer)?;
    Ok(Json(state.status.snapshot()))
}

/// Returns a session's report as a printable page with the curve drawn. Returns 404 if there is no
/// report yet.
#[utoipa::path(get, path = "/reports/session/{sessionId}", tag = "reports",
    params(("sessionId" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, content_type = "text/html", body = String), (status = 404),
              (status = 503)))]
async fn report_page(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let org = caller.resolve_org(params.get("orgId"))?;
    let ingestion = &state.clients.ingestion;
    let latest = ["sessions", id.as_str(), "reports", "latest"];
    let report: Option<RoastReport> = ingestion.get(&org, &latest, &[]).await?;
    let report = report.ok_or(ApiError::NotFound("report"))?;
    let points: Vec<TelemetryPoint> = ingestion
        .get(&org, &["sessions", id.as_str(), "telemetry"], &[("limit", "100000")])
        .await?
        .unwrap_or_default();
    let html = page::html(&report, &curve(&points, &report)).map_err(ApiError::internal)?;
    let policy = HeaderValue::from_static(
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    );
    Ok(([(header::CONTENT_SECURITY_POLICY, policy)], Html(html)).into_response())
}

/// Draws the curve with the event times that the report's analysis uses.
fn curve(points: &[TelemetryPoint], report: &RoastReport) -> String {
    #[allow(clippy::cast_possible_truncation)] // seconds of a roast, as ms
    let ms = |seconds: f64| (seconds * 1000.0).round() as i64;
    let samples = points.iter().map(Sample::from_point).collect();
    let mut recording = Recording { samples, ..Recording::default() };
    let report = &report.report;
    // The analysis counts from CHARGE, which an override may have moved.
    let charge = report.overrides.iter().find(|one| one.event_type == EventKind::Charge);
    let charged = charge.map_or(0.0, |one| one.elapsed_seconds);
    for (kind, name) in [
        (EventKind::Charge, "chargeSeconds"),
        (EventKind::Tp, "tpSeconds"),
        (EventKind::DryEnd, "dryEndSeconds"),
        (EventKind::Fc, "fcSeconds"),
        (EventKind::Drop, "dropSeconds"),
    ] {
        let Some(seconds) = report.analysis.get(name).and_then(Value::as_f64) else { continue };
        let at = ms(charged + seconds);
        let index = recording.samples.partition_point(|sample| sample.t_ms < at);
        if let Some(last) = recording.samples.len().checked_sub(1) {
            recording.marks.push((kind, index.min(last)));
        }
    }
    plot::svg(&recording, &Marks::of(&recording, &[]), None)
}
