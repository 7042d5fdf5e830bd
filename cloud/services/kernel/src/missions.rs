//! Creation of missions: a mission is created once for its idempotency key, in the state that the
//! governor decides.

use contract::mission::{Action, MissionRecord};
use database::StoreError;
use service_client::ServiceClient;

use crate::governor;
use crate::promotion::promotion_blocker;
use crate::store::KernelStore;

pub use crate::store::CreateMission;

/// The result of creating a mission.
#[derive(Debug)]
pub struct CreateOutcome {
    pub mission: MissionRecord,
    /// False if a mission with this key or id existed; that mission is unchanged.
    pub new: bool,
}

/// Creates a mission, or returns the existing one with its key or id. The governor decides, eval is
/// asked, and a rate-limit token is taken only for a new mission.
///
/// # Errors
/// When the database does not answer. If eval does not answer, the mission waits for it.
pub async fn create(
    store: &KernelStore,
    eval: &ServiceClient,
    new: CreateMission<'_>,
) -> Result<CreateOutcome, StoreError> {
    let CreateMission { org, mission, key, now, .. } = new;
    if let Some(mission) = store.mission_by_key(org, key).await? {
        return Ok(CreateOutcome { mission, new: false });
    }
    let config = store.governor_config(org).await?.config;
    let mut decision = governor::decide(&config, mission, now);
    if let Some(session) = governor::session_requiring_promotion(&config, mission) {
        let blocker = promotion_blocker(eval, org, session).await;
        decision = governor::apply_promotion_blocker(decision, blocker);
    }
    // From here to the commit no other service is asked: the transaction locks rows of buckets.
    let mut tx = store.database().begin().await?;
    let goal = &mission.goal.title;
    if decision.action == Action::Allow
        && let Some(limit) = config.rate_limits.get(goal)
    {
        let of_machine = (governor::bucket_name(mission, org.as_str()), *limit);
        for (bucket, limit) in [of_machine, governor::org_bucket(goal, org.as_str(), limit)] {
            if let Some(next) = store.take_token(&mut tx, org, (&bucket, &limit), now).await? {
                decision = governor::rate_limited(goal, &bucket, next, now);
                break;
            }
        }
    }
    if let Some(mission) = store.insert_mission(&mut tx, &new, &decision).await? {
        tx.commit().await?;
        return Ok(CreateOutcome { mission, new: true });
    }
    // Another instance was faster. Rolling back the transaction returns the token.
    drop(tx);
    Ok(CreateOutcome { mission: existing(store, &new).await?, new: false })
}

async fn existing(
    store: &KernelStore,
    new: &CreateMission<'_>,
) -> Result<MissionRecord, StoreError> {
    let found = match store.mission_by_key(new.org, new.key).await? {
        Some(mission) => Some(mission),
        None => store.mission(new.org, new.id).await?,
    };
    found.ok_or_else(|| {
        StoreError::row("creating a mission", "it conflicts, but no mission has its key or id")
    })
}
