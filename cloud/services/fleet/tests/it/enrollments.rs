//! Enrolment tokens: used once, by one key, in time.

use contract::{EpochMs, OrgId};
use fleet::FleetStore;
use fleet::store::{Enrollment, EnrollmentError, NewEnrollment, SpendResult};
use service_testbed::NOW;
use trust::{EnrollmentToken, PublicKey};

use crate::{ADA, Gateway, by, new_key};

const HOUR_MS: i64 = 3_600_000;

fn new_token() -> EnrollmentToken {
    EnrollmentToken::generate("https://fleet.example:4019", [7; 32]).unwrap()
}

/// Stores a new token, valid for a day from `now`.
async fn create(store: &FleetStore, gateway: &Gateway, now: EpochMs) -> EnrollmentToken {
    let token = new_token();
    let new = NewEnrollment {
        key_id: gateway.key_id.clone(),
        site_id: gateway.site.clone(),
        machines: gateway.machines.clone(),
        replaces: false,
        compromised: false,
        expires_at: now.plus_ms(24 * HOUR_MS),
    };
    let made = store.add_enrollment(&gateway.org, &token, new, by(now)).await.unwrap();
    assert_eq!((made.id, made.created_by), (token.id.clone(), ADA.clone()));
    token
}

/// Spends a token for a key, and commits unless it is refused.
async fn spend(
    store: &FleetStore,
    token: &EnrollmentToken,
    key: &PublicKey,
    now: EpochMs,
) -> SpendResult {
    let mut tx = store.begin().await.unwrap();
    let spent = FleetStore::spend(&mut tx, token, key, now).await.unwrap();
    if spent.is_ok() {
        tx.commit().await.unwrap();
    }
    spent
}

pub async fn a_token_enrols_one_key(store: &FleetStore) {
    let (gateway, key, other) = (Gateway::new("token", "gw-1"), new_key(), new_key());
    let token = create(store, &gateway, NOW).await;
    assert!(store.token_exists(&token).await.unwrap());
    let spent = spend(store, &token, &key, NOW.plus_ms(1)).await.unwrap();
    assert_eq!(spent.spent_at, Some(NOW.plus_ms(1)));
    assert_eq!((spent.org_id, spent.key_id), (gateway.org.clone(), gateway.key_id.clone()));
    assert_eq!(spent.machines, gateway.machines);
    let refused = spend(store, &token, &other, NOW.plus_ms(2)).await;
    assert_eq!(refused, Err(EnrollmentError::UsedByOtherKey));
    // The gateway may not have received the response: the same key may repeat it for an hour.
    let hour = NOW.plus_ms(1 + HOUR_MS);
    let again = spend(store, &token, &key, hour).await.unwrap();
    assert_eq!(again.spent_at, Some(NOW.plus_ms(1)));
    let late = spend(store, &token, &key, hour.plus_ms(1)).await;
    assert_eq!(late, Err(EnrollmentError::Unknown));
    let withdrawn = store.withdraw_enrollment(&gateway.org, &token.id, by(hour)).await.unwrap();
    assert!(!withdrawn, "it was spent");
}

pub async fn a_token_is_spent_when_its_transaction_is_committed(store: &FleetStore) {
    let (gateway, first, second) = (Gateway::new("rollback", "gw-1"), new_key(), new_key());
    let token = create(store, &gateway, NOW).await;
    let mut tx = store.begin().await.unwrap();
    assert!(FleetStore::spend(&mut tx, &token, &first, NOW).await.unwrap().is_ok());
    drop(tx);
    let spent = spend(store, &token, &second, NOW).await.unwrap();
    assert_eq!(spent.spent_by, Some(second.to_pem()));
}

pub async fn an_expired_a_withdrawn_and_an_unknown_token_are_refused(store: &FleetStore) {
    let (gateway, key) = (Gateway::new("refused", "gw-1"), new_key());
    let expires = NOW.plus_ms(24 * HOUR_MS);
    let expired = create(store, &gateway, NOW).await;
    let late = spend(store, &expired, &key, expires.plus_ms(1)).await;
    assert_eq!(late, Err(EnrollmentError::Unknown));
    assert!(spend(store, &expired, &key, expires).await.is_ok(), "its last millisecond");

    let withdrawn = create(store, &gateway, NOW).await;
    let rival = OrgId::new("rival").unwrap();
    assert!(!store.withdraw_enrollment(&rival, &withdrawn.id, by(NOW)).await.unwrap());
    assert!(store.withdraw_enrollment(&gateway.org, &withdrawn.id, by(NOW)).await.unwrap());
    assert!(!store.withdraw_enrollment(&gateway.org, &withdrawn.id, by(NOW)).await.unwrap());
    let refused = spend(store, &withdrawn, &key, NOW).await;
    assert_eq!(refused, Err(EnrollmentError::Unknown));

    // The id of a stored token with the secret of another.
    let (stored, other) = (create(store, &gateway, NOW).await.reveal(), new_token().reveal());
    let (head, _) = stored.rsplit_once('.').unwrap();
    let (_, secret) = other.rsplit_once('.').unwrap();
    let forged = EnrollmentToken::parse(&format!("{head}.{secret}")).unwrap();
    assert!(!store.token_exists(&forged).await.unwrap());
    let refused = spend(store, &forged, &key, NOW).await;
    assert_eq!(refused, Err(EnrollmentError::Unknown));
}

pub async fn enrolments_are_listed_newest_first_in_pages(store: &FleetStore) {
    let gateway = Gateway::new("listed", "gw-1");
    let older = create(store, &gateway, NOW).await;
    let newer = create(store, &gateway, NOW.plus_ms(1)).await;
    let page = async |before: Option<(i64, String)>| {
        let found = store.enrollments(&gateway.org, before, 1).await.unwrap();
        found.into_iter().next().map(|Enrollment { created_at, id, .. }| (created_at.0, id))
    };
    let first = page(None).await;
    assert_eq!(first, Some((NOW.0 + 1, newer.id)));
    let second = page(first).await;
    assert_eq!(second, Some((NOW.0, older.id)));
    assert_eq!(page(second).await, None);
    let rival = store.enrollments(&OrgId::new("rival").unwrap(), None, 10).await.unwrap();
    assert_eq!(rival, []);
}
