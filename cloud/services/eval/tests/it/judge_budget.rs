//! The judge's budget: shared by all instances, and counted by day and organisation.

use ::database::sqlx::query_scalar;
use ::database::{StoreError, on};
use contract::{EpochMs, OrgId};
use eval::EvalStore;
use eval::judge::budget::BudgetUsedUp;
use service_testbed::NOW;

use crate::org;

const DAY_MS: i64 = 86_400_000;

/// Returns the store of another instance, or of this one after a restart.
fn restarted(store: &EvalStore) -> EvalStore {
    EvalStore::new(store.database().clone())
}

pub async fn instances_share_the_budget_of_a_day(store: &EvalStore) {
    let (acme, calm) = (org("budget"), org("budget-other"));
    let midnight = EpochMs((NOW.0.div_euclid(DAY_MS) + 1) * DAY_MS);
    let take = async |store: &EvalStore, org: &OrgId, now: EpochMs| {
        store.take_judge_question(org, now, 2).await
    };
    let (noon, other) = (midnight.plus_ms(-DAY_MS / 2), restarted(store));
    assert_eq!(take(store, &acme, noon).await.unwrap(), None);
    assert_eq!(take(&other, &acme, noon).await.unwrap(), None);
    let used_up = |is_first| Some(BudgetUsedUp { until: midnight, is_first });
    assert_eq!(take(store, &acme, noon).await.unwrap(), used_up(true));
    assert_eq!(take(&other, &acme, midnight.plus_ms(-1)).await.unwrap(), used_up(false));
    assert_eq!(take(&restarted(store), &acme, noon).await.unwrap(), used_up(false));
    assert_eq!(take(store, &calm, noon).await.unwrap(), None, "it has a budget of its own");
    // An operator raises the budget: what was refused has not been counted.
    assert_eq!(store.take_judge_question(&acme, noon, 3).await.unwrap(), None);
    assert_eq!(store.take_judge_question(&acme, noon, 3).await.unwrap(), used_up(false));

    assert_eq!(take(store, &acme, midnight).await.unwrap(), None);
    assert_eq!(take(store, &acme, midnight.plus_ms(DAY_MS)).await.unwrap(), None);
    let days: Result<i64, StoreError> = on!(store.database(), pool => query_scalar(
        "SELECT count(*) FROM judge_questions WHERE org_id = $1")
        .bind(acme.as_str()).fetch_one(pool).await)
    .map_err(StoreError::query("counting days"));
    assert_eq!(days.unwrap(), 2, "the day before yesterday is forgotten");
}

pub async fn instances_that_ask_at_once_stay_within_the_budget(store: &EvalStore) {
    let acme = org("budget-at-once");
    let questions = (0..12).map(|_| {
        let (store, acme) = (restarted(store), acme.clone());
        tokio::spawn(async move { store.take_judge_question(&acme, NOW, 5).await.unwrap() })
    });
    let (mut taken, mut first_refused) = (0, 0);
    for question in questions.collect::<Vec<_>>() {
        match question.await.unwrap() {
            None => taken += 1,
            Some(used_up) => first_refused += usize::from(used_up.is_first),
        }
    }
    assert_eq!((taken, first_refused), (5, 1));
}
