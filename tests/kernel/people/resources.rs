//! One of each resource of an organisation, and the requests of a caller of another.

use std::collections::BTreeMap;

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};

use super::Cloud;

/// Replaces the parameters in an API path with ids.
pub(super) fn filled(path: &str, ids: &BTreeMap<&str, &str>) -> String {
    let mut path = path.to_owned();
    for (name, id) in ids {
        path = path.replace(&format!("{{{name}}}"), id);
    }
    path
}

/// Creates one of each resource in organisation acme; returns the ids that the server generates.
pub(super) async fn create_resources(
    cloud: &Cloud,
    ada: &str,
) -> anyhow::Result<BTreeMap<&'static str, String>> {
    cloud.database.query(
        "simcorp",
        "INSERT INTO machines (org_id, site_id, machine_id, created_ms) VALUES ('acme', 's', 'm', 0);
         INSERT INTO chains (org_id, machine_no, chain, kid, seen_ms) SELECT 'acme', machine_no, '\\x01', 'k', 0 FROM machines;
         INSERT INTO sessions (org_id, session_id, machine_no, chain_no, started_ms, ended_ms, status, first_seq, last_seq, drop_s)
         SELECT 'acme', 'S-secret', machine_no, chain_no, 1760000000000, 1760000600000, 'CLOSED', 0, 600, 600 FROM chains;",
    )?;
    let mission = json!({"missionId": "M-secret", "goal": "generate-roast-report",
                         "params": {"sessionId": "S-secret"}});
    let trace = json!({"traceId": "T-secret", "agentId": "a-secret", "missionId": "M-secret",
        "mission": {"goal": "g"}, "startedAt": "2025-10-05T21:08:15.000Z", "entries": []});
    let agent = json!({"id": "a-secret", "name": "n", "role": "r", "version": "1"});
    let tool = json!({"id": "t-secret", "name": "n", "version": "1"});
    let report = json!({"reportId": "R-secret", "analysis": {}, "markdown": "# x"});
    let key = json!({"name": "key-secret", "role": "viewer"});
    let note = json!({"text": "note-secret"});
    let profile =
        json!({"profile": {"profileId": "P-secret", "name": "profile-secret", "targets": {}}});
    let session = "/sessions/S-secret";
    for (service, method, path, body) in [
        ("kernel", Method::POST, "/missions".to_owned(), &mission),
        ("kernel", Method::POST, "/traces".to_owned(), &trace),
        ("kernel", Method::POST, "/agents".to_owned(), &agent),
        ("kernel", Method::POST, "/tools".to_owned(), &tool),
        ("kernel", Method::POST, "/keys".to_owned(), &key),
        ("ingestion", Method::PUT, format!("{session}/meta"), &json!({"beanName": "bean-secret"})),
        ("ingestion", Method::POST, format!("{session}/notes"), &note),
        ("ingestion", Method::POST, format!("{session}/reports"), &report),
        ("ingestion", Method::POST, "/profiles".to_owned(), &profile),
    ] {
        let (status, answer) = cloud.ask((service, method, &path), ada, Some(body)).await?;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
    }
    let case = json!({"name": "case-secret", "machineId": "m", "targetDropSeconds": 600,
                      "dropSecondsErrorTolerance": 10});
    let asking = ("eval", Method::POST, "/golden-cases");
    let (_, case) = cloud.ask(asking, ada, Some(&case)).await?;
    let case = case["id"].as_str().context("a case")?.to_owned();
    let run = json!({"sessionId": "S-secret", "goldenCaseId": case, "notes": "run-secret",
                     "analysis": {"dropSeconds": 600}, "telemetry": []});
    let asking = ("eval", Method::POST, "/evaluations/run");
    let (status, run) = cloud.ask(asking, ada, Some(&run)).await?;
    assert_eq!((status, &run["outcome"]), (201, &json!("PASS")), "{run}");
    let run = run["id"].as_str().context("a run")?.to_owned();
    let incident = json!({"title": "incident-secret", "severity": "critical"});
    let asking = ("kernel", Method::POST, "/api/incidents");
    let (status, answer) = cloud.ask(asking, ada, Some(&incident)).await?;
    assert_eq!(status, 201, "{answer}");
    // A critical incident does not wait for the circuit breaker's next run: the breaker has already
    // acted.
    let asking = ("kernel", Method::GET, "/api/circuit-breaker/events/unresolved");
    let (_, events) = cloud.ask(asking, ada, None).await?;
    let event = events[0]["id"].as_str().context("an event")?.to_owned();
    let settings = json!({"orgId": "acme", "siteId": "s", "machineId": "machine-secret",
                          "config": {"fcBtThresholdC": 299.125}});
    let asking = ("inference", Method::POST, "/config");
    let (status, answer) = cloud.ask(asking, ada, Some(&settings)).await?;
    assert_eq!((status, &answer["minFirstCrackSeconds"]), (200, &json!(300.0)), "{answer}");
    let device = json!({"siteId": "s", "machines": ["m"], "kid": "device:gw-secret@s",
        "publicKey": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"});
    let asking = ("fleet", Method::POST, "/devices");
    let (status, answer) = cloud.ask(asking, ada, Some(&device)).await?;
    assert_eq!(status, 201, "{answer}");
    let enrollment = json!({"siteId": "s", "device": "gw2-secret", "machines": ["m"]});
    let asking = ("fleet", Method::POST, "/enrollments");
    let (status, enrollment) = cloud.ask(asking, ada, Some(&enrollment)).await?;
    assert_eq!(status, 201, "{enrollment}");
    let enrollment = enrollment["id"].as_str().context("an enrolment")?.to_owned();
    let created = [("case", case), ("run", run), ("event", event), ("enrollment", enrollment)];
    Ok(BTreeMap::from(created))
}

/// Returns the id of Acme's resource for `{id}` in a path.
pub(super) fn id_of<'i>(path: &str, created: &'i BTreeMap<&str, String>, key: &'i str) -> &'i str {
    match path.split('/').nth(1) {
        Some("missions") => "M-secret",
        Some("agents") => "a-secret",
        Some("tools") => "t-secret",
        Some("keys") => key,
        Some("devices" | "recoveries") => "device:gw-secret@s",
        Some("enrollments") => created["enrollment"].as_str(),
        Some("golden-cases" | "saturation") => created["case"].as_str(),
        Some("evaluations") => created["run"].as_str(),
        Some("api") => created["event"].as_str(),
        _ => "S-secret",
    }
}

/// Returns the body that Eve sends, where a body is required.
pub(super) fn sent(method: &Method, path: &str) -> Option<Value> {
    match (method, path) {
        (&Method::GET | &Method::DELETE, _) => None,
        (_, "/missions") => Some(json!({"goal": "g", "context": {"orgId": "acme"}})),
        (_, "/missions/claim") => Some(json!({"agentName": "eve"})),
        (_, "/missions/{id}/heartbeat") => Some(json!({"leaseId": "x"})),
        (_, "/missions/{id}/fail") => Some(json!({"error": "x"})),
        (_, "/agents") => Some(json!({"id": "e", "name": "n", "role": "r", "version": "1"})),
        (_, "/tools") => Some(json!({"id": "e", "name": "n", "version": "1"})),
        (_, "/traces") => Some(json!({"traceId": "e", "agentId": "e", "missionId": "e",
                        "mission": {"goal": "g"}, "startedAt": "2025-10-05T21:08:15.000Z",
                        "entries": []})),
        (_, "/keys") => Some(json!({"name": "e", "role": "viewer"})),
        (_, "/policy/check") => {
            Some(json!({"agentId": "a", "tool": "t", "action": "a", "resource": "r"}))
        }
        (_, "/profiles") => Some(json!({"profile": {"name": "e", "targets": {}}})),
        (_, "/api/governance/facts") => Some(json!({"what": "failed"})),
        (_, "/api/incidents") => Some(json!({"title": "t", "severity": "low"})),
        (_, "/governor/commands/check") => {
            Some(json!({"commandType": "SET_POWER", "proposedBy": "USER"}))
        }
        (_, "/golden-cases") | (&Method::PUT, "/golden-cases/{id}") => {
            Some(json!({"name": "e", "machineId": "m"}))
        }
        (_, "/golden-cases/from-success") => Some(
            json!({"sessionId": "e", "machineId": "m", "name": "e", "analysis": {"dropSeconds": 1}}),
        ),
        (_, "/golden-cases/from-failure") => {
            Some(json!({"sessionId": "e", "machineId": "m", "name": "e", "failureMode": "f",
                        "analysis": {"dropSeconds": 1}}))
        }
        (_, "/golden-cases/{id}/reference-solution") => {
            Some(json!({"sessionId": "e", "achievedAt": "2025-10-05T21:08:15.000Z"}))
        }
        (_, "/evaluations/run") => {
            Some(json!({"sessionId": "e", "goldenCaseId": "e", "analysis": {}, "telemetry": []}))
        }
        (_, "/evaluations/run-multi-trial") => Some(json!({"goldenCaseId": "e", "trials": []})),
        (_, "/evaluations/{id}/review") => Some(json!({"outcome": "PASS"})),
        (_, "/config") => {
            Some(json!({"orgId": "acme", "siteId": "s", "machineId": "m", "config": {}}))
        }
        (_, "/publish/start") => Some(json!({"orgId": "acme", "siteId": "s", "machineId": "m"})),
        (_, "/replay") => Some(json!({"type": "session.closed", "version": 1,
            "emittedAt": "2025-10-05T21:08:15.000Z", "orgId": "acme", "siteId": "s",
            "machineId": "m", "sessionId": "S-secret", "reportKind": "POST_ROAST_V1"})),
        (_, "/devices") => Some(json!({"siteId": "s", "machines": ["m"], "kid": "device:e@s",
            "publicKey": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n"})),
        (_, "/devices/{id}/machines") => Some(json!({"machines": ["m"]})),
        (_, "/enrollments") => Some(json!({"siteId": "s", "device": "e", "machines": ["m"]})),
        (_, "/publish/stop") => Some(json!({"sessionId": "e"})),
        (_, "/profiles/import") => Some(json!({"profiles": []})),
        (_, path) if path.ends_with("/alias") => Some(json!({"successor": "e"})),
        (_, path) if path.ends_with("/new-version") => Some(json!({"profile": {"name": "e"}})),
        (_, path) if path.ends_with("/overrides") => Some(json!([])),
        (_, path) if path.ends_with("/reports") => Some(json!({"analysis": {}, "markdown": "# x"})),
        _ => Some(json!({})),
    }
}
