//! Golden cases and runs on both databases, the routes, and the worker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

mod cases;
mod judge_budget;
mod routes;
mod runs;
mod worker;

use std::sync::LazyLock;

use contract::{Actor, ActorKind, EpochMs, OrgId};
use eval::EvalStore;
use eval::golden::{GoldenCase, NewCase};
use eval::run::{EvalRun, Outcome};
use eval::store::ChangedBy;
use http_stack::start::Context;
use serde_json::json;
use service_testbed::on_both_databases;
use tempfile::TempDir;

static ADA: LazyLock<Actor> = LazyLock::new(|| Actor {
    kind: ActorKind::User,
    id: "ada".to_owned(),
    display: None,
    org: None,
});

fn by(now: EpochMs) -> ChangedBy<'static> {
    ChangedBy { actor: &ADA, now }
}

fn org(name: &str) -> OrgId {
    OrgId::new(name).unwrap()
}

fn golden_case(id: &str, machine: &str, created_at: EpochMs) -> GoldenCase {
    GoldenCase { id: id.to_owned(), created_at, case: NewCase::named("Huila", machine) }
}

/// Returns a run of the case `golden-1` by the roast `session`.
fn run(id: &str, session: &str, outcome: Outcome, run_at: EpochMs) -> EvalRun {
    serde_json::from_value(json!({
        "id": id, "sessionId": session, "goldenCaseId": "golden-1", "runAt": run_at,
        "outcome": outcome, "passedGates": ["fc_timing"], "failedGates": [],
        "agentRejected": false, "detailedMetrics": {"fcSecondsError": 12.5}, "metrics": [],
        "humanReviewed": false, "commands": [], "artifacts": [],
    }))
    .unwrap()
}

/// Opens a new SQLite file, which is removed with the folder.
async fn open_sqlite() -> (TempDir, EvalStore) {
    let (folder, database) = service_testbed::open_sqlite().await;
    (folder, EvalStore::new(database))
}

/// Returns the action and the details of each entry in an organisation's audit log, oldest first.
async fn audited(store: &EvalStore, org: &OrgId) -> Vec<(String, serde_json::Value)> {
    let log = store.database().audit_log(org, 0, 100).await.unwrap();
    log.into_iter().map(|entry| (entry.action, entry.details)).collect()
}

/// What the service is started with.
fn context(store: &EvalStore) -> Context {
    Context { database: Some(store.database().clone()), ..service_testbed::context() }
}

on_both_databases!(
    eval::EvalStore::new;
    cases::a_case_is_stored_as_it_was_written,
    cases::a_change_replaces_only_the_version_that_was_read,
    cases::archived_cases_are_listed_apart,
    cases::cases_are_listed_newest_first_in_pages_and_by_machine,
    runs::a_run_is_stored_once_for_its_key,
    runs::a_set_of_runs_is_stored_whole_or_not_at_all,
    runs::a_review_overrides_the_outcome_of_the_gates,
    runs::runs_are_listed_newest_first_by_roast_or_by_case,
    runs::the_runs_of_a_roast_are_counted_by_outcome,
    runs::only_automatic_evaluations_count_as_coverage,
    runs::the_history_of_a_case_separates_recent_runs,
    runs::one_instance_at_a_time_judges_a_run,
    runs::an_attempt_that_does_not_count_uses_up_no_try,
    runs::the_runs_of_each_organisation_are_judged_in_turn,
    judge_budget::instances_share_the_budget_of_a_day,
    judge_budget::instances_that_ask_at_once_stay_within_the_budget,
);
