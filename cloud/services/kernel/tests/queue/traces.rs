//! Checks of traces and cards.

use kernel::store::{CardKind, TraceFilter};
use serde_json::Value;

use super::*;

on_both!(pages, a_page_of_large_traces_ends_early_and_says_that_there_is_more);
async fn a_page_of_large_traces_ends_early_and_says_that_there_is_more(store: KernelStore) {
    let acme = org("acme");
    for n in 0..12 {
        let trace: kernel::trace::Trace = serde_json::from_value(json!({
            "traceId": format!("t-{n:02}"), "agentId": "a", "missionId": "m", "entries": [],
            "mission": {"notes": "x".repeat(1_000_000)},
            "startedAt": NOW.plus_ms(n * 1_000).to_string(),
        }))
        .unwrap();
        store.upsert_trace(&acme, &trace, NOW).await.unwrap();
    }
    let read = async |after| {
        let filter = TraceFilter { limit: 100, after, ..TraceFilter::default() };
        store.traces(&acme, &filter).await.unwrap()
    };
    let first = read(None).await;
    assert_eq!((first.traces.len(), first.may_continue), (9, true));
    let last = first.traces.last().unwrap();
    let second = read(Some((last.started_at.0, last.trace_id.clone()))).await;
    assert_eq!((second.traces.len(), second.may_continue), (3, false));
}

on_both!(kept, traces_and_cards_belong_to_one_organisation);
async fn traces_and_cards_belong_to_one_organisation(store: KernelStore) {
    let (acme, other) = (org("acme"), org("other"));
    let trace = |id: &str, s: i64, status: &str| {
        serde_json::from_value::<kernel::trace::Trace>(json!({
            "traceId": id, "agentId": "scribe", "missionId": "m", "mission": {"goal": "t_dy 100%"},
            "status": status, "startedAt": NOW.plus_ms(s * 1000).to_string(), "entries": [{
                "missionId": "m", "loopId": "l", "step": "ACT", "startedAt": NOW.to_string(),
                "toolCalls": [{"toolName": "t", "output": 7}]}]
        }))
        .unwrap()
    };
    store.upsert_trace(&acme, &trace("1", 1, "ERROR"), NOW).await.unwrap();
    store.upsert_trace(&acme, &trace("2", 2, "SUCCESS"), NOW).await.unwrap();
    let list = async |filter: TraceFilter| {
        let filter = TraceFilter { limit: 10, ..filter };
        store.traces(&acme, &filter).await.unwrap().traces.len()
    };
    let all = store.traces(&acme, &TraceFilter { limit: 10, ..Default::default() }).await.unwrap();
    let all = all.traces;
    assert_eq!((all.len(), all[0].trace_id.as_str()), (2, "2"));
    assert_eq!(json!(all[0].entries[0].tool_calls[0].output), json!({"value": 7}));
    assert_eq!(list(TraceFilter { status: Some("ERROR".into()), ..Default::default() }).await, 1);
    assert_eq!(list(TraceFilter { text: Some("T_DY 100%".into()), ..Default::default() }).await, 2);
    assert_eq!(list(TraceFilter { text: Some("t%dy".into()), ..Default::default() }).await, 0);
    assert!(
        store
            .traces(&other, &TraceFilter { limit: 10, ..Default::default() })
            .await
            .unwrap()
            .traces
            .is_empty()
    );
    let card = json!({"id": "scribe", "name": "Scribe"});
    store.upsert_card(&acme, CardKind::Agent, ("scribe", &card), &person(), NOW).await.unwrap();
    let read = async |org, kind| store.card::<Value>(org, kind, "scribe").await.unwrap();
    assert_eq!(read(&acme, CardKind::Agent).await, Some(card));
    assert_eq!(read(&acme, CardKind::Tool).await, None);
    assert_eq!(read(&other, CardKind::Agent).await, None);
}

on_both!(deep, a_stored_trace_that_cannot_be_read_is_left_out_of_the_list);
async fn a_stored_trace_that_cannot_be_read_is_left_out_of_the_list(store: KernelStore) {
    let acme = org("acme");
    let stored = async |id: &str, s: i64, notes: Value| {
        let trace: kernel::trace::Trace = serde_json::from_value(json!({
            "traceId": id, "agentId": "a", "missionId": id, "entries": [],
            "mission": {"notes": notes}, "startedAt": NOW.plus_ms(s * 1_000).to_string(),
        }))
        .unwrap();
        store.upsert_trace(&acme, &trace, NOW).await.unwrap();
    };
    // JSON that is nested deeper than 128 levels can be written, and not read again.
    let deep = (0..200).fold(json!(1), |inner, _| Value::Array(vec![inner]));
    stored("before", 1, json!("readable")).await;
    stored("deep", 2, deep).await;
    stored("after", 3, json!("readable")).await;
    let list = async |filter: TraceFilter| {
        let page = store.traces(&acme, &TraceFilter { limit: 10, ..filter }).await.unwrap();
        page.traces.into_iter().map(|trace| trace.trace_id).collect::<Vec<_>>()
    };
    assert_eq!(list(TraceFilter::default()).await, ["after", "before"]);
    let of_deep = TraceFilter { mission: Some("deep".to_owned()), ..TraceFilter::default() };
    assert!(list(of_deep).await.is_empty());
}
