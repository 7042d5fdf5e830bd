//! `/health` (the process is running) and `/ready` (the service can do its work: each dependency
//! answers in time).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::tasks::Tasks;

/// A dependency that has not answered within this time is unhealthy.
const CHECK_TIME_MAX: Duration = Duration::from_secs(2);

type CheckFuture = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;
type Check = Arc<dyn Fn() -> CheckFuture + Send + Sync>;

/// A service's health: its name, its start time, and the dependencies to check.
#[derive(Clone)]
pub struct Health {
    service: &'static str,
    clock: Clock,
    started: Instant,
    checks: Vec<(&'static str, Check)>,
    /// What operators should know of a dependency that is healthy, by its name.
    notes: Vec<(&'static str, &'static str)>,
}

#[derive(Serialize)]
struct CheckResult {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    /// How long the check took, in ms.
    latency: f64,
}

impl Health {
    /// Creates the health of a service that starts now and has no dependencies yet.
    #[must_use]
    pub fn new(service: &'static str, clock: Clock) -> Self {
        Self { service, clock, started: Instant::now(), checks: Vec::new(), notes: Vec::new() }
    }

    /// Returns the name of the service.
    #[must_use]
    pub const fn service(&self) -> &'static str {
        self.service
    }

    /// Adds a dependency that the service needs; `/ready` calls `ask` to check it.
    #[must_use]
    pub fn with_check<F, A>(mut self, name: &'static str, ask: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push((name, Arc::new(move || Box::pin(ask()))));
        self
    }

    /// Adds the check that no long-lived task has had to give up.
    #[must_use]
    pub fn with_tasks(self, tasks: &Tasks) -> Self {
        let tasks = tasks.clone();
        self.with_check("tasks", move || {
            let failure = tasks.failure().map(str::to_owned);
            async move { failure.map_or(Ok(()), Err) }
        })
    }

    /// Adds a message to the check `name`, which `/ready` shows while the dependency is healthy.
    #[must_use]
    pub fn with_note(mut self, name: &'static str, note: &'static str) -> Self {
        self.notes.push((name, note));
        self
    }

    fn note_of(&self, name: &str) -> Option<String> {
        let note = self.notes.iter().find(|(of, _)| *of == name);
        note.map(|(_, note)| (*note).to_owned())
    }

    pub(crate) fn health(&self) -> Json<serde_json::Value> {
        Json(serde_json::json!({
            "status": "healthy",
            "service": self.service,
            "timestamp": (self.clock)(),
            "uptime": self.started.elapsed().as_secs_f64(),
        }))
    }

    pub(crate) async fn ready(&self) -> (StatusCode, Json<serde_json::Value>) {
        let pending = self.checks.iter().map(|(name, check)| {
            let (answer, note) = (check(), self.note_of(name));
            async move {
                let start = Instant::now();
                let result = match tokio::time::timeout(CHECK_TIME_MAX, answer).await {
                    Ok(result) => result,
                    Err(_) => Err(format!("no answer within {} s", CHECK_TIME_MAX.as_secs())),
                };
                let latency = start.elapsed().as_secs_f64() * 1000.0;
                let status = if result.is_ok() { "healthy" } else { "unhealthy" };
                let message = result.err().or(note);
                (*name, CheckResult { status, message, latency })
            }
        });
        // At once: one after the other, two slow dependencies could exceed the prober's timeout.
        let mut checks = serde_json::Map::new();
        let mut ready = true;
        for (name, checked) in join_all(pending).await {
            ready &= checked.status == "healthy";
            checks.insert(name.to_owned(), serde_json::to_value(checked).unwrap_or_default());
        }
        let (code, status) = if ready {
            (StatusCode::OK, "healthy")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "unhealthy")
        };
        let body = serde_json::json!({
            "status": status,
            "timestamp": (self.clock)(),
            "uptime": self.started.elapsed().as_secs_f64(),
            "checks": checks,
        });
        (code, Json(body))
    }
}

#[cfg(test)]
mod tests {
    use contract::EpochMs;

    use super::*;

    #[tokio::test]
    async fn a_note_is_shown_while_its_dependency_is_healthy() {
        let health = Health::new("test", Arc::new(|| EpochMs(0)))
            .with_check("mqtt", || async { Ok(()) })
            .with_check("database", || async { Err("away".to_owned()) })
            .with_note("mqtt", "needs no password")
            .with_note("database", "not shown");
        let (code, Json(body)) = health.ready().await;
        assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
        let check =
            |name: &str| (&body["checks"][name]["status"], &body["checks"][name]["message"]);
        assert_eq!(check("mqtt"), (&"healthy".into(), &"needs no password".into()));
        assert_eq!(check("database"), (&"unhealthy".into(), &"away".into()));
    }
}
