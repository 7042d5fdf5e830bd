//! `/api/*`: what governance measures, finds and proposes.

use axum::Json;
use axum::extract::{Path, State as Extract};
use contract::{EpochMs, OrgId};
use serde::Deserialize;
use serde_json::{Value, json};
use service::auth::{Caller, Role};
use service::error::{ApiError, Issue};
use service::extract::Body;
use service::query::Params;
use utoipa::ToSchema;

use super::State;
use crate::governance::breaker::{BreakerAction, BreakerEvent, Rule, Severity};
use crate::governance::cycle::{self, Approval, EVENTS_TOLD, Proposal, Report};
use crate::governance::metrics::{AutonomyMetrics, Fact};
use crate::governance::readiness::{self, Measured, Readiness, THRESHOLD, assess};
use crate::store::{Kind, Record, RecordFilter};

const DAY_MS: i64 = 86_400_000;
const COVERAGE_DAYS: i64 = 30;

fn new_id() -> Result<String, ApiError> {
    trust::random_id().map_err(ApiError::internal)
}

impl State {
    async fn keep<T: serde::Serialize>(
        &self,
        org: &OrgId,
        kind: Kind,
        at: EpochMs,
        body: &T,
    ) -> Result<(), ApiError> {
        let id = new_id()?;
        let record = Record { kind, id: &id, at, status: "kept", once: None, body };
        self.store.keep_record(org, &record).await?;
        Ok(())
    }

    /// Share of the roasts of the last 30 days that eval has evaluated.
    async fn coverage(&self, org: &OrgId, now: EpochMs) -> Result<Option<f64>, ApiError> {
        let roasts = self.store.roasts_since(org, now.plus(-COVERAGE_DAYS * DAY_MS)).await?;
        let days = COVERAGE_DAYS.to_string();
        let path = ["evaluations", "coverage"];
        let told = self.eval.get::<Value>(org, &path, &[("days", &days)]).await;
        let evaluated = told.ok().flatten().and_then(|told| told["sessionsEvaluated"].as_f64());
        Ok(evaluated.map(|n| if roasts > 0 { (n / roasts as f64).min(1.0) } else { 0.0 }))
    }

    async fn readiness(&self, org: &OrgId) -> Result<(AutonomyMetrics, Readiness), ApiError> {
        let now = (self.clock)();
        let (_, state) = self.store.autonomy_state(org, now).await?;
        let metrics = self.store.autonomy(org, (now.plus(-30 * DAY_MS), now)).await?;
        let measured = Measured { eval_coverage: self.coverage(org, now).await? };
        let readiness = assess(&state, &metrics, &measured, now);
        metrics::gauge!("simcorp_governance_readiness_score").set(readiness.overall.score);
        Ok((metrics, readiness))
    }
}

#[derive(Deserialize, ToSchema)]
pub struct Happened {
    pub what: Fact,
    /// How often; 1.
    #[serde(default = "once")]
    pub n: i64,
}

const fn once() -> i64 {
    1
}

/// Tell what happened to commands: what metrics, circuit breaker and readiness are made of. For
/// services.
#[utoipa::path(post, path = "/api/governance/facts", tag = "governance", request_body = Happened,
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400), (status = 403)))]
pub async fn tell(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
    Body(happened): Body<Happened>,
) -> Result<Json<Value>, ApiError> {
    caller.need(Role::Admin)?;
    let org = caller.org(params.get("orgId"))?;
    if !(1..=1_000).contains(&happened.n) {
        return Err(ApiError::Issues(vec![Issue::new("n", "not between 1 and 1000")]));
    }
    state.store.count_fact(&org, happened.what, happened.n, (state.clock)()).await?;
    Ok(Json(json!({"ok": true})))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewIncident {
    pub title: String,
    pub severity: Severity,
    /// It was brought about by what an agent did.
    #[serde(default)]
    pub from_autonomous_action: bool,
    #[serde(default)]
    pub details: Option<String>,
}

/// Report an incident. A critical one trips the circuit breaker.
#[utoipa::path(post, path = "/api/incidents", tag = "governance", request_body = NewIncident,
    params(("orgId" = Option<String>, Query)),
    responses((status = 201, body = Object), (status = 400), (status = 403)))]
pub async fn report_incident(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
    Body(new): Body<NewIncident>,
) -> Result<(axum::http::StatusCode, Json<Value>), ApiError> {
    caller.need(Role::Operator)?;
    let org = caller.org(params.get("orgId"))?;
    let details = new.details.as_deref().unwrap_or_default();
    let fits = (1..=200).contains(&new.title.len()) && details.len() <= 4_000;
    if !fits || new.title.contains('\0') || details.contains('\0') {
        let problem = "title: 1 to 200 bytes; details: at most 4000; no NUL";
        return Err(ApiError::Issues(vec![Issue::new("title", problem)]));
    }
    let now = (state.clock)();
    let id = new_id()?;
    let body = json!({"id": id, "timestamp": now, "title": new.title, "severity": new.severity,
                      "fromAutonomousAction": new.from_autonomous_action,
                      "details": details, "reportedBy": caller.actor});
    let record =
        Record { kind: Kind::Incident, id: &id, at: now, status: "kept", once: None, body: &body };
    state.store.keep_record(&org, &record).await?;
    state.store.count_fact(&org, Fact::Incident, 1, now).await?;
    if new.severity == Severity::Critical {
        state.store.count_fact(&org, Fact::IncidentCritical, 1, now).await?;
    }
    if new.from_autonomous_action {
        state.store.count_fact(&org, Fact::IncidentAutonomous, 1, now).await?;
    }
    metrics::counter!("simcorp_governance_incidents_total", "severity" => new.severity.as_str())
        .increment(1);
    if new.severity == Severity::Critical {
        // What cannot wait does not wait for the next look.
        crate::governance::watch::look(&state.store, &org, now).await?;
    }
    Ok((axum::http::StatusCode::CREATED, Json(body)))
}

/// Incidents, the newest first.
#[utoipa::path(get, path = "/api/incidents", tag = "governance",
    params(("limit" = Option<i64>, Query), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Object>), (status = 400), (status = 403)))]
pub async fn incidents(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let filter = RecordFilter { limit: params.limit(50, 200)?, ..RecordFilter::default() };
    Ok(Json(state.store.records(&org, Kind::Incident, filter).await?))
}

fn time(params: &Params, name: &str) -> Result<Option<EpochMs>, ApiError> {
    let read = |text: &str| {
        let time: Option<EpochMs> = serde_json::from_value(text.into()).ok();
        let time = time.filter(|time| time.is_plausible());
        time.ok_or_else(|| ApiError::Invalid(format!("{name}: not a time with its offset")))
    };
    params.get(name).map(read).transpose()
}

/// What happened to commands; the last 24 hours unless `start` and `end` say otherwise.
#[utoipa::path(get, path = "/api/metrics/current", tag = "governance",
    params(("start" = Option<String>, Query), ("end" = Option<String>, Query), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = AutonomyMetrics), (status = 400), (status = 403)))]
pub async fn metrics_current(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<AutonomyMetrics>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let now = (state.clock)();
    let end = time(&params, "end")?.unwrap_or(now);
    let start = time(&params, "start")?.unwrap_or(end.plus(-DAY_MS));
    if start > end {
        return Err(ApiError::Invalid("start: after end".to_owned()));
    }
    let metrics = state.store.autonomy(&org, (start, end)).await?;
    state.keep(&org, Kind::Metrics, now, &metrics).await?;
    Ok(Json(metrics))
}

/// What happened to commands in the last seven days.
#[utoipa::path(get, path = "/api/metrics/weekly", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = AutonomyMetrics), (status = 403)))]
pub async fn metrics_weekly(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<AutonomyMetrics>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let now = (state.clock)();
    let metrics = state.store.autonomy(&org, (now.plus(-7 * DAY_MS), now)).await?;
    state.keep(&org, Kind::Metrics, now, &metrics).await?;
    Ok(Json(metrics))
}

async fn latest(
    state: &State,
    caller: &Caller,
    params: &Params,
    kind: Kind,
    id: Option<&str>,
) -> Result<Json<Value>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let filter = RecordFilter { id, limit: 1, ..RecordFilter::default() };
    let found: Vec<Value> = state.store.records(&org, kind, filter).await?;
    // As the reference: what is not there is `null`.
    Ok(Json(found.into_iter().next().unwrap_or(Value::Null)))
}

/// The metrics that were last looked at, or `null`.
#[utoipa::path(get, path = "/api/metrics/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<AutonomyMetrics>), (status = 403)))]
pub async fn metrics_latest(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    latest(&state, &caller, &params, Kind::Metrics, None).await
}

/// Whether agents are ready for more.
#[utoipa::path(get, path = "/api/readiness/current", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Readiness), (status = 403)))]
pub async fn readiness_current(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Readiness>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let (_, readiness) = state.readiness(&org).await?;
    state.keep(&org, Kind::Readiness, readiness.timestamp, &readiness).await?;
    Ok(Json(readiness))
}

/// The readiness that was last looked at, or `null`.
#[utoipa::path(get, path = "/api/readiness/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Readiness>), (status = 403)))]
pub async fn readiness_latest(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    latest(&state, &caller, &params, Kind::Readiness, None).await
}

/// The readiness score, 0 to 1.
#[utoipa::path(get, path = "/api/readiness/score", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 403)))]
pub async fn readiness_score(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let (_, readiness) = state.readiness(&org).await?;
    let overall = &readiness.overall;
    Ok(Json(json!({"score": overall.score, "ready": overall.ready,
                   "blockers": overall.blockers, "threshold": THRESHOLD})))
}

/// Declare what cannot be measured, by the names of the checklist: `{"RUNBOOKS_COMPLETE": true}`.
#[utoipa::path(put, path = "/api/readiness/declared", tag = "governance", request_body = Object,
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400), (status = 403)))]
pub async fn declare(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
    Body(said): Body<std::collections::BTreeMap<String, bool>>,
) -> Result<Json<Value>, ApiError> {
    caller.need_person()?;
    caller.need(Role::Admin)?;
    let org = caller.org(params.get("orgId"))?;
    let unknown = said.keys().find(|name| !readiness::declarable().any(|known| known == **name));
    if let Some(name) = unknown {
        return Err(ApiError::Issues(vec![Issue::new(name, "not an item that is declared")]));
    }
    let doing = ("readiness.declare", (state.clock)());
    let change = |s: &mut crate::governance::State| s.known.declared.extend(said.clone());
    let after = state.store.change_autonomy(&org, &caller.actor, doing, change).await?;
    Ok(Json(json!(after.known.declared)))
}

/// The circuit breaker's last 20 events.
#[utoipa::path(get, path = "/api/circuit-breaker/events", tag = "circuit breaker",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<BreakerEvent>), (status = 403)))]
pub async fn events(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<BreakerEvent>>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let filter = RecordFilter { limit: 20, ..RecordFilter::default() };
    Ok(Json(state.store.records(&org, Kind::Event, filter).await?))
}

/// Events that nobody has resolved.
#[utoipa::path(get, path = "/api/circuit-breaker/events/unresolved", tag = "circuit breaker",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<BreakerEvent>), (status = 403)))]
pub async fn unresolved(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<BreakerEvent>>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let filter = RecordFilter { status: Some("open"), limit: 100, id: None };
    Ok(Json(state.store.records(&org, Kind::Event, filter).await?))
}

/// Say that what an event told has been seen to. A person's word.
#[utoipa::path(post, path = "/api/circuit-breaker/events/{id}/resolve", tag = "circuit breaker",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 403), (status = 404)))]
pub async fn resolve(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    caller.need_person()?;
    caller.need(Role::Approver)?;
    let org = caller.org(params.get("orgId"))?;
    let now = (state.clock)();
    let who = (&caller.actor, "breaker.resolve", now);
    let found = state
        .store
        .change_record(&org, (Kind::Event, &id, "open"), who, |event: &mut BreakerEvent| {
            event.resolved = true;
            event.resolved_at = Some(now);
            Some("resolved")
        })
        .await?;
    let event = found.ok_or(ApiError::NotFound("unresolved event"))?;
    if event.action == BreakerAction::PauseCommandType {
        let filter = RecordFilter { status: Some("open"), limit: 100, id: None };
        let open: Vec<BreakerEvent> = state.store.records(&org, Kind::Event, filter).await?;
        if !open.iter().any(|event| event.action == BreakerAction::PauseCommandType) {
            let doing = ("breaker.unpause", now);
            let go_on = |s: &mut crate::governance::State| s.known.paused.clear();
            state.store.change_autonomy(&org, &caller.actor, doing, go_on).await?;
        }
    }
    Ok(Json(json!({"success": true, "id": id})))
}

/// The circuit breaker's rules.
#[utoipa::path(get, path = "/api/circuit-breaker/rules", tag = "circuit breaker",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Rule>), (status = 403)))]
pub async fn rules(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Rule>>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    Ok(Json(state.store.breaker_rules(&org).await?))
}

/// The rules that are enabled.
#[utoipa::path(get, path = "/api/circuit-breaker/rules/enabled", tag = "circuit breaker",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Rule>), (status = 403)))]
pub async fn rules_enabled(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Rule>>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let mut rules = state.store.breaker_rules(&org).await?;
    rules.retain(|rule| rule.enabled);
    Ok(Json(rules))
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RulePatch {
    #[serde(default)]
    pub enabled: Option<bool>,
    #[serde(default)]
    pub condition: Option<String>,
    #[serde(default)]
    pub window: Option<String>,
    #[serde(default)]
    pub action: Option<BreakerAction>,
    #[serde(default)]
    pub alert_severity: Option<Severity>,
}

/// Change a rule; what is not named stays.
#[utoipa::path(patch, path = "/api/circuit-breaker/rules/{name}", tag = "circuit breaker",
    request_body = RulePatch, params(("name" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400), (status = 403), (status = 404)))]
pub async fn change_rule(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(name): Path<String>,
    params: Params,
    Body(patch): Body<RulePatch>,
) -> Result<Json<Value>, ApiError> {
    caller.need(Role::Admin)?;
    let org = caller.org(params.get("orgId"))?;
    let rules = state.store.breaker_rules(&org).await?;
    let found = rules.into_iter().find(|rule| rule.name == name);
    let before = found.ok_or(ApiError::NotFound("rule"))?;
    let rule = Rule {
        enabled: patch.enabled.unwrap_or(before.enabled),
        condition: patch.condition.unwrap_or(before.condition),
        window: patch.window.unwrap_or(before.window),
        action: patch.action.unwrap_or(before.action),
        alert_severity: patch.alert_severity.unwrap_or(before.alert_severity),
        name: before.name,
    };
    rule.check().map_err(|error| ApiError::Issues(vec![Issue::new("", error)]))?;
    state.store.set_breaker_rule(&org, &rule, &caller.actor, (state.clock)()).await?;
    Ok(Json(json!({"success": true, "name": name})))
}

/// Look at the week now: report, and perhaps a proposal to go further.
#[utoipa::path(post, path = "/api/governance/run-cycle", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Report), (status = 403)))]
pub async fn run_cycle(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Report>, ApiError> {
    caller.need(Role::Approver)?;
    let org = caller.org(params.get("orgId"))?;
    let now = (state.clock)();
    let (month, readiness) = state.readiness(&org).await?;
    let (_, autonomy) = state.store.autonomy_state(&org, now).await?;
    let week = state.store.autonomy(&org, (now.plus(-7 * DAY_MS), now)).await?;
    let told = i64::try_from(EVENTS_TOLD).unwrap_or(10);
    let filter = RecordFilter { limit: told, ..RecordFilter::default() };
    let events: Vec<BreakerEvent> = state.store.records(&org, Kind::Event, filter).await?;
    let quiet = events.iter().all(|event| event.resolved);
    let mut expansion = None;
    if readiness.overall.ready && quiet {
        expansion = cycle::propose(&autonomy, &month, &readiness, (new_id()?, now));
    }
    if let Some(proposal) = &expansion {
        let record = Record {
            kind: Kind::Proposal,
            id: &proposal.proposal_id,
            at: now,
            status: "pending",
            once: Some("pending"),
            body: proposal,
        };
        if !state.store.keep_record(&org, &record).await? {
            expansion = None; // one waits already
        }
    }
    let mut report = Report {
        id: new_id()?,
        week_start: now.plus(-7 * DAY_MS),
        week_end: now,
        generated_at: now,
        metrics: week,
        recommendations: readiness.recommendations.clone(),
        next_actions: readiness.next_actions.clone(),
        readiness,
        expansion,
        circuit_breaker_events: events,
        summary: String::new(),
    };
    report.summary = cycle::summary(&autonomy, &report);
    let record = Record {
        kind: Kind::Report,
        id: &report.id,
        at: now,
        status: "kept",
        once: None,
        body: &report,
    };
    state.store.keep_record(&org, &record).await?;
    let doing = ("governance.cycle", now);
    let proposed = report.expansion.is_some();
    let note = |s: &mut crate::governance::State| {
        s.known.last_report = Some(now);
        if proposed {
            s.known.last_expansion = Some(now);
        }
    };
    state.store.change_autonomy(&org, &caller.actor, doing, note).await?;
    Ok(Json(report))
}

/// Reports, the newest first.
#[utoipa::path(get, path = "/api/governance/reports", tag = "governance",
    params(("limit" = Option<i64>, Query, description = "0 to 100; 10"), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Report>), (status = 400), (status = 403)))]
pub async fn reports(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Report>>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let filter = RecordFilter { limit: params.limit(10, 100)?, ..RecordFilter::default() };
    Ok(Json(state.store.records(&org, Kind::Report, filter).await?))
}

/// The newest report, or `null`.
#[utoipa::path(get, path = "/api/governance/reports/latest", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Report>), (status = 403)))]
pub async fn report_latest(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    latest(&state, &caller, &params, Kind::Report, None).await
}

/// One report, or `null`.
#[utoipa::path(get, path = "/api/governance/reports/{id}", tag = "governance",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Option<Report>), (status = 403)))]
pub async fn report(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    latest(&state, &caller, &params, Kind::Report, Some(&id)).await
}

/// Where the organisation stands.
#[utoipa::path(get, path = "/api/governance/state", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 403)))]
pub async fn state(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let now = (state.clock)();
    let (_, found) = state.store.autonomy_state(&org, now).await?;
    let known = &found.known;
    let mut body = json!({"currentPhase": found.phase, "phaseStartDate": found.since,
        "commandWhitelist": known.whitelist, "daysSincePhaseStart": found.days(now),
        "commandsPaused": !known.paused.is_empty()});
    for (name, time) in
        [("lastReportDate", known.last_report), ("lastExpansionDate", known.last_expansion)]
    {
        if let Some(time) = time {
            body[name] = json!(time);
        }
    }
    Ok(Json(body))
}

/// Proposals that wait.
#[utoipa::path(get, path = "/api/governance/proposals", tag = "governance",
    params(("orgId" = Option<String>, Query)),
    responses((status = 200, body = Vec<Proposal>), (status = 403)))]
pub async fn proposals(
    Extract(state): Extract<State>,
    caller: Caller,
    params: Params,
) -> Result<Json<Vec<Proposal>>, ApiError> {
    let org = caller.org(params.get("orgId"))?;
    let filter = RecordFilter { status: Some("pending"), limit: 20, id: None };
    Ok(Json(state.store.records(&org, Kind::Proposal, filter).await?))
}

#[derive(Deserialize, ToSchema)]
pub struct ApproveAs {
    /// tech-lead, ops-lead, product-lead or exec-sponsor; without it the first that is missing.
    #[serde(default, rename = "as")]
    pub role: Option<String>,
}

/// Approve a proposal, as one of the required people. With the last of them the phase changes. Who
/// approves is who asks; two approvals need two people.
#[utoipa::path(post, path = "/api/governance/proposals/{id}/approve", tag = "governance",
    request_body = ApproveAs, params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 400), (status = 403), (status = 404),
              (status = 409)))]
pub async fn approve(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
    Body(approval): Body<ApproveAs>,
) -> Result<Json<Value>, ApiError> {
    caller.need_person()?;
    caller.need(Role::Admin)?;
    let org = caller.org(params.get("orgId"))?;
    let now = (state.clock)();
    let mut refused = None;
    let who = (&caller.actor, "governance.approve", now);
    let change = |proposal: &mut Proposal| {
        let given = |role: &str| proposal.approvals.iter().any(|one| one.role == role);
        let missing = proposal.required_approvals.iter().find(|role| !given(role));
        let role = approval.role.clone().or_else(|| missing.cloned()).unwrap_or_default();
        let known = proposal.required_approvals.contains(&role);
        let twice = proposal.approvals.iter().any(|one| one.approved_by == caller.actor.id);
        refused = if !known || given(&role) {
            Some(format!("{role}: not one of the approvals that are missing"))
        } else if twice {
            Some("you have approved this already; another person must".to_owned())
        } else {
            None
        };
        if refused.is_some() {
            return None;
        }
        let approved_by = caller.actor.id.clone();
        proposal.approvals.push(Approval { role, approved_by, at: now });
        let done = proposal.approvals.len() >= proposal.required_approvals.len();
        Some(if done { "approved" } else { "pending" })
    };
    let found =
        state.store.change_record(&org, (Kind::Proposal, &id, "pending"), who, change).await?;
    let proposal = found.ok_or(ApiError::NotFound("pending proposal"))?;
    if let Some(problem) = refused {
        return Err(ApiError::Conflict(problem));
    }
    let done = proposal.approvals.len() >= proposal.required_approvals.len();
    if done {
        let doing = ("governance.expand", now);
        let expand = |s: &mut crate::governance::State| {
            // Something may have thrown it back since.
            if s.phase == proposal.expansion.current_phase {
                s.phase = proposal.expansion.target_phase;
                s.since = now;
                s.known.whitelist.extend(proposal.expansion.commands_to_whitelist.clone());
            }
        };
        state.store.change_autonomy(&org, &caller.actor, doing, expand).await?;
    }
    let missing = proposal.required_approvals.len() - proposal.approvals.len();
    Ok(Json(json!({"success": true, "id": id, "approvedBy": caller.actor.id,
                   "approved": done, "missingApprovals": missing})))
}

/// Reject a proposal. A person's word.
#[utoipa::path(post, path = "/api/governance/proposals/{id}/reject", tag = "governance",
    params(("id" = String, Path), ("orgId" = Option<String>, Query)),
    responses((status = 200, body = Object), (status = 403), (status = 404)))]
pub async fn reject(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    caller.need_person()?;
    caller.need(Role::Approver)?;
    let org = caller.org(params.get("orgId"))?;
    let who = (&caller.actor, "governance.reject", (state.clock)());
    let place = (Kind::Proposal, id.as_str(), "pending");
    let found: Option<Proposal> =
        state.store.change_record(&org, place, who, |_| Some("rejected")).await?;
    found.ok_or(ApiError::NotFound("pending proposal"))?;
    Ok(Json(json!({"success": true, "id": id})))
}
