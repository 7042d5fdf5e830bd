//! Checks of the counts that the kernel publishes as metrics.

use contract::mission::{EVAL_GOAL, REPORT_GOAL};
use kernel::store::{GovernanceRecord, RecordKind};

use super::*;

const GOALS: [&str; 2] = [REPORT_GOAL, EVAL_GOAL];

on_both!(running, running_missions_are_counted_by_goal_over_all_organisations);
async fn running_missions_are_counted_by_goal_over_all_organisations(store: KernelStore) {
    let (acme, other) = (org("acme"), org("other"));
    for owner in [&acme, &other] {
        allow(&store, owner, "tidy").await;
    }
    let report = || {
        json!({"goal": REPORT_GOAL, "params": {"sessionId": "S-1"}, "signals": {
        "session": {"telemetryPoints": 600, "durationSec": 600, "hasBT": true,
                    "closeReason": "DROP"}}})
    };
    make(&store, &acme, report(), "r-1").await;
    make(&store, &acme, report(), "r-2").await;
    make(&store, &other, report(), "r-3").await;
    make(&store, &other, json!({"goal": EVAL_GOAL}), "e-1").await;
    make(&store, &acme, json!({"goal": "tidy"}), "t-1").await;
    assert_eq!(store.running_of_goals(&GOALS).await.unwrap(), BTreeMap::new(), "none is claimed");

    // One report is left waiting.
    for (owner, goal, lease) in [
        (&acme, REPORT_GOAL, "l-1"),
        (&other, REPORT_GOAL, "l-2"),
        (&other, EVAL_GOAL, "l-3"),
        (&acme, "tidy", "l-4"),
    ] {
        let goals = [goal.to_owned()];
        let taken = store.claim(Some(owner), "w", &goals, (lease, LEASE_MS), NOW).await.unwrap();
        assert!(taken.is_some(), "{goal}");
    }
    let expected = BTreeMap::from([(REPORT_GOAL.to_owned(), 2), (EVAL_GOAL.to_owned(), 1)]);
    assert_eq!(store.running_of_goals(&GOALS).await.unwrap(), expected);
}

on_both!(events, unresolved_events_are_counted_over_all_organisations);
async fn unresolved_events_are_counted_over_all_organisations(store: KernelStore) {
    assert_eq!(store.open_events().await.unwrap(), 0);
    let body = json!({});
    for (owner, kind, id, status) in [
        ("acme", RecordKind::Event, "e-1", "open"),
        ("acme", RecordKind::Event, "e-2", "resolved"),
        ("other", RecordKind::Event, "e-1", "open"),
        ("acme", RecordKind::Incident, "i-1", "open"),
    ] {
        let record = GovernanceRecord { kind, id, at: NOW, status, unique_key: None, body: &body };
        store.insert_record_with_facts(&org(owner), &record, &[]).await.unwrap();
    }
    assert_eq!(store.open_events().await.unwrap(), 2);
}
