//! The dispatcher: creates missions when a roast ends, one for each goal.
//!
//! Events arrive at least once, because the publisher resends an event until the dispatcher
//! acknowledges it. Exactly one mission per goal results, because its idempotency key consists of
//! goal, report kind and session id. The dispatcher must acknowledge only when the kernel has the
//! missions.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api;
mod bus;
mod config;

use http_stack::start::{Context, Service, StartError, check_mqtt_flag};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use contract::mission::{CloseReason, MissionRecord, MissionSignals, NewMission, SessionSignals};
use contract::ops::SessionClosed;
use contract::{EpochMs, OrgId, mission};
use serde::Serialize;
use serde_json::Map;
use service::clock::Clock;
use service::health::Health;
use service_client::{ServiceClient, ServiceClientError};

pub use config::DispatcherConfig;

const ERRORS_KEPT: usize = 20;

/// What has been done so far, for `GET /status`.
#[derive(Debug, Clone, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    events_received: u64,
    missions_created: u64,
    missions_deduped: u64,
    parse_errors: u64,
    validation_errors: u64,
    kernel_errors: u64,
}

#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
struct LastError {
    at: EpochMs,
    message: String,
    /// The organisation to which the error belongs; no other organisation may see it.
    #[serde(skip)]
    org: Option<OrgId>,
}

#[derive(Default)]
struct DispatchStats {
    counters: Counters,
    errors: VecDeque<LastError>,
}

/// Creates missions for roasts that have ended.
#[derive(Clone)]
pub(crate) struct MissionDispatcher {
    kernel: ServiceClient,
    goals: Arc<[String]>,
    max_attempts: u32,
    clock: Clock,
    stats: Arc<Mutex<DispatchStats>>,
}

/// Starts the service: the MQTT tasks run on the context's tasks.
///
/// # Errors
/// When the broker's configuration is wrong, or no HTTP client can be created.
pub fn start(config: &DispatcherConfig, context: &Context) -> Result<Service, StartError> {
    let work = MissionDispatcher {
        kernel: context.client("kernel", &config.kernel_url)?,
        goals: config.goals.clone().into(),
        max_attempts: config.max_attempts,
        clock: context.clock.clone(),
        stats: Arc::default(),
    };
    let (tasks, stop) = (&context.tasks, &context.stop);
    let connected = bus::start(config, &context.mqtt, work.clone(), tasks, stop)?;
    let health = check_mqtt_flag(Health::new("dispatcher", context.clock.clone()), connected);
    let routes = api::routes(config.clone(), context.mqtt.url(), work);
    Ok(Service::new(context, "dispatcher", routes, health))
}

impl MissionDispatcher {
    fn with_stats<T>(&self, change: impl FnOnce(&mut DispatchStats) -> T) -> T {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn record_error(
        &self,
        org: Option<&OrgId>,
        message: String,
        count: impl FnOnce(&mut Counters),
    ) {
        let at = (self.clock)();
        self.with_stats(|seen| {
            count(&mut seen.counters);
            seen.errors.push_front(LastError { at, message, org: org.cloned() });
            seen.errors.truncate(ERRORS_KEPT);
        });
    }

    /// Creates the missions of a closed session; returns `Ok` only when the kernel has all of them.
    pub(crate) async fn dispatch(&self, event: &SessionClosed) -> Result<(), ServiceClientError> {
        self.with_stats(|seen| increment(&mut seen.counters.events_received));
        for goal in self.goals.iter() {
            let mission = mission_of(event, goal, self.max_attempts);
            let org = &event.origin.org;
            match self.kernel.post::<_, MissionRecord>(Some(org), &["missions"], &mission).await {
                Ok(answer) => {
                    let new = answer.is_some_and(|answer| answer.status == 201);
                    let result = if new { "created" } else { "known" };
                    metrics::counter!("simcorp_dispatched_total", "result" => result).increment(1);
                    self.with_stats(|seen| {
                        let counters = &mut seen.counters;
                        increment(if new {
                            &mut counters.missions_created
                        } else {
                            &mut counters.missions_deduped
                        });
                    });
                    tracing::info!(session = %event.session_id, goal, result, "dispatched a roast");
                }
                Err(error) => {
                    metrics::counter!("simcorp_dispatched_total", "result" => "failed")
                        .increment(1);
                    tracing::warn!(%error, session = %event.session_id, goal,
                        "the kernel did not accept a mission; the roast's end is resent");
                    self.record_error(Some(org), error.to_string(), |counters| {
                        increment(&mut counters.kernel_errors);
                    });
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// Adds one to a counter.
const fn increment(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

fn mission_of(event: &SessionClosed, goal: &str, max_attempts: u32) -> NewMission {
    let (session, kind) = (event.session_id.as_str(), event.report_kind.as_str());
    let text = |text: &str| serde_json::Value::from(text);
    let pairs = |pairs: &[(&str, &str)]| -> Map<String, serde_json::Value> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect()
    };
    let reason = event.reason.unwrap_or(match event.drop_seconds {
        Some(_) => CloseReason::Drop,
        None => CloseReason::Silence,
    });
    NewMission {
        mission_id: None,
        idempotency_key: Some(format!("{goal}:{kind}:{session}")),
        goal: mission::Goal { title: goal.to_owned(), description: None, desired_outcome: None },
        subject_id: Some(session.to_owned()),
        params: pairs(&[("sessionId", session), ("reportKind", kind)]),
        context: pairs(&[
            ("orgId", event.origin.org.as_str()),
            ("siteId", event.origin.site.as_str()),
            ("machineId", event.origin.machine.as_str()),
        ]),
        constraints: Vec::new(),
        requested_by: Some("dispatcher".to_owned()),
        signals: Some(MissionSignals {
            session: SessionSignals {
                session_id: Some(session.to_owned()),
                close_reason: Some(reason),
                duration_sec: event.duration_sec.or(event.drop_seconds),
                telemetry_points: event.telemetry_points,
                has_bt: event.has_bt,
                has_et: event.has_et,
                last_telemetry_delta_sec: event.last_telemetry_delta_sec,
            },
        }),
        priority: mission::Priority::Medium,
        max_attempts: Some(max_attempts),
        created_at: None,
    }
}
