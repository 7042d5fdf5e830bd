//! Tests that each port tells the metrics of its own service, by upstream Sim-Corp's names.

use std::collections::BTreeSet;

use crate::support::{PATIENCE, Stack, client};
use serde_json::json;
use testbed::wait_for;

/// Returns the values of the label `service` in Prometheus's text.
fn services(text: &str) -> BTreeSet<&str> {
    let values = text.split("service=\"").skip(1);
    values.filter_map(|rest| rest.split('"').next()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_port_tells_its_own_service_s_metrics_by_upstream_s_names() -> anyhow::Result<()> {
    let names = ["kernel", "ingestion", "eval"];
    let stack = Stack::start(&names, &["broker.embedded=false".to_owned()]).await?;
    // What the kernel counts in the database, at its start and periodically.
    let expected = [
        "simcorp_missions_active{agent_id=\"report-agent\"} 0",
        "simcorp_missions_active{agent_id=\"eval-agent\"} 0",
        "simcorp_missions_active{agent_id=\"other\"} 0",
        "simcorp_governance_circuit_breaker_events_unresolved 0",
    ];
    let counted = || async {
        let answer = client().get(stack.url("kernel", "/metrics")).send().await;
        let Ok(answer) = answer else { return false };
        let text = answer.text().await.unwrap_or_default();
        expected.iter().all(|line| text.lines().any(|shown| shown == *line))
    };
    wait_for("the counts of the kernel", PATIENCE, counted).await?;

    let mission = json!({"goal": "generate-roast-report", "params": {"sessionId": "S-1"},
        "context": {"orgId": "org"}, "signals": {"session": {"telemetryPoints": 600,
        "durationSec": 600, "hasBT": true, "closeReason": "DROP"}}});
    assert_eq!(stack.post(("kernel", "/missions"), &mission).await?.0, 201);
    let claim = json!({"agentName": "roast-report-agent", "goals": ["generate-roast-report"]});
    let (_, claimed) = stack.post(("kernel", "/missions/claim"), &claim).await?;
    let path = format!("/missions/{}/complete", claimed["missionId"].as_str().unwrap());
    let done = json!({"leaseId": claimed["leaseId"], "summary": {}});
    assert_eq!(stack.post(("kernel", &path), &done).await?.0, 200);
    stack.get("kernel", "/api/readiness/score").await?;

    let mut texts = Vec::new();
    for name in names {
        let text = client().get(stack.url(name, "/metrics")).send().await?.text().await?;
        assert!(text.contains("simcorp_http_requests_in_progress{"), "{name}: {text}");
        texts.push(text);
    }
    let told: Vec<BTreeSet<&str>> = texts.iter().map(|text| services(text)).collect();
    for own in &told {
        assert_eq!(own.len(), 1, "{told:?}");
    }
    let all: BTreeSet<&str> = told.iter().flatten().copied().collect();
    assert_eq!(all.len(), names.len(), "{told:?}");

    let has = |text: &str, name: &str, labels: &[&str]| {
        let mut lines = text.lines().filter(|line| line.starts_with(name));
        lines.any(|line| labels.iter().all(|label| line.contains(label)))
    };
    let [kernel, others @ ..] = texts.as_slice() else { unreachable!() };
    let labels = ["agent_id=\"report-agent\"", "status=\"success\"", "state=\"DONE\""];
    assert!(has(kernel, "simcorp_missions_completed_total", &labels), "{kernel}");
    let labels = ["agent_id=\"report-agent\"", "status=\"PENDING\""];
    assert!(has(kernel, "simcorp_missions_queued_total", &labels), "{kernel}");
    for name in [
        "simcorp_governance_readiness_technical_score",
        "simcorp_governance_days_since_phase_start",
        "simcorp_governance_current_phase_info{phase=\"L3\"} 1",
        "simcorp_missions_active{",
        "simcorp_governance_circuit_breaker_events_unresolved",
        "simcorp_process_resident_memory_bytes",
    ] {
        assert!(has(kernel, name, &[]), "{name}: {kernel}");
        assert!(others.iter().all(|text| !has(text, name, &[])), "{name} is counted twice");
    }
    Ok(())
}
