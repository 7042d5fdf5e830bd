//! What the sweeps over the sessions of all organisations find, and in which order.

use contract::*;
use ingestion::IngestStore;
use ingestion::store::PublishAfter;

use crate::{CHAIN, NOW, commit, frame, origin, told};
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
    let first = store.open_receipts_of("acme", (i64::MIN, ""), 2).await.unwrap();
    let last = (first[1].started_ms, first[1].session_id.clone());
    assert_eq!(ids(first), ["S-1", "S-2"]);
    let rest = store.open_receipts_of("acme", (last.0, &last.1), 2).await.unwrap();
    assert_eq!(ids(rest), ["S-3"]);
    assert_eq!(ids(store.newest_open_receipts_of("acme", 2).await.unwrap()), ["S-3", "S-2"]);
    assert!(store.open_receipts_of("zeta", (i64::MIN, ""), 2).await.unwrap().is_empty());
}

async fn a_roast_is_published_only_once_it_was_seen_closed(store: &IngestStore) {
    let chain = ChainId([0; 16]);
    let no = store.chain_no(&origin(), chain, "", NOW).await.unwrap();
    for mut message in [told(0, true, false), told(3, false, true)] {
        message.frame.chain = chain;
        store.commit(&[no], &[message], NOW).await.unwrap();
    }
    let wait = PublishAfter { closed_before: NOW, silent_since: NOW, closed_long_before: NOW };
    let due = async || store.unpublished_sessions(&wait, (i64::MIN, ""), 10).await.unwrap().len();
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

on_both!(
    open_receipts_are_found_by_organisation,
    a_roast_is_published_only_once_it_was_seen_closed,
    an_event_is_removed_when_its_session_has_a_mission_and_was_told_often,
);
