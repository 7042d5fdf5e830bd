//! Recoveries: what a gateway with an expired certificate is told, and what people decide.

use contract::{EpochMs, OrgId};
use fleet::FleetStore;
use fleet::store::{ChangedBy, RecoveryDecision, gateway};
use service_testbed::NOW;
use trust::PublicKey;

use crate::{ADA, Gateway, by, new_key};

const DAY_MS: i64 = 86_400_000;

/// Requests a recovery as the gateway does.
async fn request(
    store: &FleetStore,
    of: &Gateway,
    key: &PublicKey,
    now: EpochMs,
) -> RecoveryDecision {
    let actor = gateway(&of.org, &of.key_id);
    let by = ChangedBy { actor: &actor, now };
    let mut tx = store.begin().await.unwrap();
    let subject = (&of.org, &of.key_id, key);
    let decision = FleetStore::request_recovery(&mut tx, subject, by).await.unwrap();
    tx.commit().await.unwrap();
    decision
}

/// Decides as Ada; returns the state that is stored then, or `None` if there is nothing to decide.
async fn decide(store: &FleetStore, of: &Gateway, approve: bool, now: EpochMs) -> Option<String> {
    let id = of.key_id.as_str();
    let decided = store.decide_recovery(&of.org, id, approve, by(now)).await.unwrap()?;
    assert_eq!((decided.decided_at, decided.decided_by), (Some(now), Some(ADA.clone())));
    Some(decided.state)
}

pub async fn a_gateway_waits_for_a_person_and_may_use_the_approval_for_a_day(store: &FleetStore) {
    let (of, key) = (Gateway::new("approved", "gw-1"), new_key());
    assert_eq!(decide(store, &of, true, NOW).await, None, "nothing was requested");
    let at = |ms: i64| NOW.plus_ms(ms);
    let waiting = RecoveryDecision::Waiting { since: NOW };
    assert_eq!(request(store, &of, &key, NOW).await, waiting);
    assert_eq!(request(store, &of, &key, at(1_000)).await, waiting);
    let listed = store.recoveries(&of.org).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].asked_at, listed[0].seen_at), (NOW, at(1_000)));
    assert_eq!((listed[0].state.as_str(), &listed[0].key_id), ("waiting", &of.key_id));
    let rival = OrgId::new("rival").unwrap();
    assert_eq!(store.recoveries(&rival).await.unwrap(), []);
    let other = store.decide_recovery(&rival, of.key_id.as_str(), true, by(NOW)).await;
    assert_eq!(other.unwrap(), None);

    assert_eq!(decide(store, &of, true, at(2_000)).await.as_deref(), Some("approved"));
    assert_eq!(store.recoveries(&of.org).await.unwrap(), [], "nothing waits");
    // The first use starts the day in which the gateway may repeat its request.
    assert_eq!(request(store, &of, &key, at(3_000)).await, RecoveryDecision::Approved);
    assert_eq!(decide(store, &of, false, at(4_000)).await, None, "it was used");
    assert_eq!(request(store, &of, &key, at(3_000 + DAY_MS)).await, RecoveryDecision::Approved);
    let next = at(3_001 + DAY_MS);
    assert_eq!(request(store, &of, &key, next).await, RecoveryDecision::Waiting { since: next });
    assert_eq!(of.audited(store).await, ["recovery.ask", "recovery.approve", "recovery.ask"]);
}

pub async fn a_refusal_holds_for_a_week_and_may_be_changed(store: &FleetStore) {
    let (of, key) = (Gateway::new("denied", "gw-1"), new_key());
    request(store, &of, &key, NOW).await;
    assert_eq!(decide(store, &of, false, NOW).await.as_deref(), Some("refused"));
    let week = NOW.plus_ms(7 * DAY_MS);
    assert_eq!(request(store, &of, &key, week).await, RecoveryDecision::Refused);
    let next = week.plus_ms(1);
    assert_eq!(request(store, &of, &key, next).await, RecoveryDecision::Waiting { since: next });
    assert_eq!(decide(store, &of, false, next).await.as_deref(), Some("refused"));
    assert_eq!(decide(store, &of, true, next).await.as_deref(), Some("approved"));
    assert_eq!(request(store, &of, &key, next).await, RecoveryDecision::Approved);
}

pub async fn an_approval_is_for_one_key(store: &FleetStore) {
    let (of, first, second) = (Gateway::new("one-key", "gw-1"), new_key(), new_key());
    request(store, &of, &first, NOW).await;
    decide(store, &of, true, NOW).await;
    let later = NOW.plus_ms(1_000);
    let waiting = RecoveryDecision::Waiting { since: later };
    assert_eq!(request(store, &of, &second, later).await, waiting);
}
