//! What the sweeps over the sessions of all organisations find, and in which order.

use contract::*;
use ingestion::IngestStore;
use ingestion::store::{OrgCursor, PendingSession, PublishAfter};

use crate::{CHAIN, NOW, commit, due, first, frame, origin, told};

async fn open_receipts_are_found_by_organisation(store: &IngestStore) {
    let sessions: &[(&str, &[i64])] = &[("acme", &[1, 2, 3]), ("beta", &[9]), ("zeta", &[])];
    for (org, starts) in sessions {
        let origin: Origin = format!("{org}/leipzig/r-1").parse().unwrap();
        let no = store.chain_no(&origin, CHAIN, "kid", NOW).await.unwrap();
        for start in *starts {
            let receipt = Receipt {
                origin: origin.clone(),
                session: SessionId::new(format!("S-{start}")).unwrap(),
                chain: CHAIN,
                first_frame: 2,
                last_frame: 5,
                first_seq: 15,
                last_seq: 44,
                started: NOW.plus_ms(*start),
                ended: NOW.plus_ms(4_400),
                digest: Digest([0; 32]),
            };
            store.store_receipt(no, &receipt, b"signed", NOW.plus_ms(10_000)).await.unwrap();
        }
    }
    assert_eq!(store.orgs_with_open_receipts().await.unwrap(), ["acme", "beta"]);
    let ids = |open: Vec<ingestion::store::OpenReceipt>| -> Vec<String> {
        open.into_iter().map(|open| open.session_id).collect()
    };
    let mut cursors = ["acme", "beta", "zeta"].map(|org| OrgCursor::first(org.to_owned()));
    let found = store.open_receipts(&cursors, 2).await.unwrap();
    let last = found.iter().rfind(|open| open.org_id == "acme").unwrap();
    (cursors[0].started_ms, cursors[0].session_id) = (last.started_ms, last.session_id.clone());
    assert_eq!(ids(found), ["S-1", "S-2", "S-9"]);
    assert_eq!(ids(store.open_receipts(&cursors, 2).await.unwrap()), ["S-3", "S-9"]);
    let newest = store.newest_open_receipts(&cursors, 2).await.unwrap();
    assert_eq!(ids(newest), ["S-9", "S-3", "S-2"]);
    assert!(store.open_receipts(&cursors[2..], 2).await.unwrap().is_empty());
    assert!(store.open_receipts(&[], 2).await.unwrap().is_empty());
}

async fn a_roast_is_published_only_once_it_was_seen_closed(store: &IngestStore) {
    let chain = ChainId([0; 16]);
    let no = store.chain_no(&origin(), chain, "", NOW).await.unwrap();
    for mut message in [told(0, true, false), told(3, false, true)] {
        message.frame.chain = chain;
        store.commit(&[no], &[message], NOW).await.unwrap();
    }
    let wait = PublishAfter { closed_before: NOW, silent_since: NOW, closed_long_before: NOW };
    let due = async || due(store.unpublished_sessions(&wait, &first(), 10).await.unwrap()).len();
    assert_eq!(due().await, 0);
    store.mark_closed_seen(NOW).await.unwrap();
    assert_eq!(due().await, 1);
}

async fn an_event_is_removed_when_its_session_has_a_mission_and_was_told_often(
    store: &IngestStore,
) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let event: ops::SessionClosed = serde_json::from_value(serde_json::json!({
        "type": "session.closed", "version": 1, "emittedAt": NOW, "orgId": "acme",
        "siteId": "leipzig", "machineId": "r-1", "sessionId": "S-1",
    }))
    .unwrap();
    assert!(store.enqueue_session_closed(&origin().org, &event, NOW).await.unwrap());
    for n in 0..3 {
        assert_eq!(store.take_due(NOW.plus_ms(n * 10), (1, 1), 10).await.unwrap().len(), 1);
    }
    assert_eq!(store.remove_handled_sessions(3).await.unwrap(), 0, "it has no mission");
    database::on!(store.database(), pool => database::sqlx::query(
        "INSERT INTO missions (org_id, mission_id, idempotency_key, goal, status, urgency, body, \
         max_attempts, created_ms, updated_ms) VALUES ('acme', 'm-1', \
         'generate-roast-report:POST_ROAST_V1:S-1', 'generate-roast-report', 'PENDING', 1, '{}', \
         5, 0, 0)")
        .execute(pool).await.map(drop))
    .unwrap();
    assert_eq!(store.remove_handled_sessions(4).await.unwrap(), 0, "its dispatcher may be away");
    assert_eq!(store.remove_handled_sessions(3).await.unwrap(), 1);
    assert_eq!(store.outbox_len().await.unwrap(), 0);
}

/// Runs a statement of the same text on both databases.
async fn run(store: &IngestStore, sql: String) {
    database::on!(store.database(), pool => database::sqlx::query(database::sqlx::AssertSqlSafe(sql))
        .execute(pool).await.map(drop))
    .unwrap();
}

/// Stores sessions that are to be closed, and as many that are to be published and lack a curve.
async fn store_unsettled(store: &IngestStore, org: &str, count: u32, started_ms: i64) {
    let origin: Origin = format!("{org}/leipzig/r-1").parse().unwrap();
    let no = store.chain_no(&origin, CHAIN, "kid", NOW).await.unwrap();
    for (status, ended) in [("ACTIVE", "NULL"), ("CLOSED", "1")] {
        let sql = format!(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
             INSERT INTO sessions (org_id, session_id, started_ms, ended_ms, first_seq, last_seq, \
             status, closed_seen_ms, machine_no, chain_no) \
             SELECT '{org}', '{status}-' || i, {started_ms} + i, {ended}, 1, 2, '{status}', \
             {}, {}, {} FROM n",
            if status == "CLOSED" { NOW.0.to_string() } else { "NULL".to_owned() },
            no.machine,
            no.chain,
        );
        run(store, sql).await;
    }
}

/// The sessions of the flood are older: by time alone they would all come first.
async fn a_tenant_with_many_sessions_delays_no_other_in_any_sweep(store: &IngestStore) {
    store_unsettled(store, "flood", 2_000, 0).await;
    store_unsettled(store, "calm", 1, 1_000_000).await;
    let orgs = store.orgs_with_unsettled_sessions().await.unwrap();
    assert_eq!(orgs, ["calm", "flood"]);
    let cursors: Vec<_> = orgs.into_iter().map(OrgCursor::first).collect();
    let counts = |found: Vec<PendingSession>| {
        ["calm", "flood"].map(|org| found.iter().filter(|row| row.org_id == org).count())
    };
    let later = NOW.plus_ms(60_000);
    let wait =
        PublishAfter { closed_before: later, silent_since: later, closed_long_before: later };
    let abandoned = due(store.abandoned_sessions((later, later), &cursors, 10).await.unwrap());
    assert_eq!(counts(abandoned), [1, 10], "to close");
    let unpublished = due(store.unpublished_sessions(&wait, &cursors, 10).await.unwrap());
    assert_eq!(counts(unpublished), [1, 10], "to publish");
    let curveless = due(store.sessions_without_curve(later, &cursors, 10).await.unwrap());
    let last = curveless.iter().rfind(|row| row.org_id == "flood").unwrap();
    let (org_id, session_id) = (last.org_id.clone(), last.session_id.clone());
    let next = [OrgCursor { org_id, started_ms: last.started_ms, session_id }];
    assert_eq!(counts(curveless), [1, 5], "without a curve");
    let page = store.sessions_without_curve(later, &next, 10).await.unwrap();
    assert_eq!((page.len(), page[0].started_ms), (10, next[0].started_ms + 1), "after the first");
}

async fn the_events_of_organisations_are_published_in_turn(store: &IngestStore) {
    for (org, count, due_ms) in [("flood", 200, 0), ("calm", 1, 1_000)] {
        let event = serde_json::json!({
            "type": "session.closed", "version": 1, "emittedAt": NOW, "orgId": org,
            "siteId": "leipzig", "machineId": "r-1", "sessionId": "S-1",
        });
        let sql = format!(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
             INSERT INTO outbox (org_id, session_id, made_ms, due_ms, body) \
             SELECT '{org}', 'S-' || i, 0, {due_ms} + i, '{event}' FROM n"
        );
        run(store, sql).await;
    }
    let events = store.take_due(NOW, (5_000, 60_000), 10).await.unwrap();
    let of_calm = events.iter().filter(|event| event.origin.org.as_str() == "calm").count();
    assert_eq!((events.len(), of_calm), (10, 1));
    let next = store.take_due(NOW, (5_000, 60_000), 500).await.unwrap();
    assert_eq!(next.len(), 191, "each is due once");
}

/// Each of 30 organisations has 20 events, and a pass publishes ten events.
async fn organisations_that_find_no_place_in_a_pass_have_one_in_the_next(store: &IngestStore) {
    for org in 0..30 {
        let event = serde_json::json!({
            "type": "session.closed", "version": 1, "emittedAt": NOW, "orgId": format!("org-{org}"),
            "siteId": "leipzig", "machineId": "r-1", "sessionId": "S-1",
        });
        let sql = format!(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20) \
             INSERT INTO outbox (org_id, session_id, made_ms, due_ms, body) \
             SELECT 'org-{org}', 'S-' || i, 0, 0, '{event}' FROM n"
        );
        run(store, sql).await;
    }
    let mut published = std::collections::BTreeSet::new();
    for pass in 0..3 {
        let now = NOW.plus_ms(pass * 1_000);
        let events = store.take_due(now, (60_000, 600_000), 10).await.unwrap();
        assert_eq!(events.len(), 10);
        published.extend(events.into_iter().map(|event| event.origin.org));
    }
    assert_eq!(published.len(), 30);
}

on_both!(
    a_tenant_with_many_sessions_delays_no_other_in_any_sweep,
    the_events_of_organisations_are_published_in_turn,
    organisations_that_find_no_place_in_a_pass_have_one_in_the_next,
    open_receipts_are_found_by_organisation,
    a_roast_is_published_only_once_it_was_seen_closed,
    an_event_is_removed_when_its_session_has_a_mission_and_was_told_often,
);
