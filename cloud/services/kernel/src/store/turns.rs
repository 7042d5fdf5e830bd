//! The turns of the organisations at the mission queue. A worker of all organisations serves one
//! after the other, so that many missions of one do not delay those of the others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use contract::mission::Priority;
use tokio::time::Instant;

use super::lane::{PENDING, RETRY, RUNNING};
use super::queue::in_goals;

/// How often the database is asked which organisations wait. Between two times, an organisation
/// that is not listed is served when no listed one has a mission.
const LIST_EVERY: Duration = Duration::from_millis(500);
/// The maximum number of sets of goals with turns of their own. At this bound all begin anew.
const SETS_MAX: usize = 64;

/// The turns of each set of goals that workers ask for.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<Vec<String>, Rotation>>);

#[derive(Debug, Default)]
struct Rotation {
    /// The organisation whose turn is next is the first.
    orgs: VecDeque<String>,
    listed: Option<Instant>,
}

impl Turns {
    fn sets(&self) -> MutexGuard<'_, HashMap<Vec<String>, Rotation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the waiting organisations must be listed again, and notes that the caller
    /// does it.
    pub(super) fn is_list_due(&self, goals: &[String], now: Instant) -> bool {
        let mut sets = self.sets();
        if sets.len() >= SETS_MAX && !sets.contains_key(goals) {
            sets.clear();
        }
        let rotation = sets.entry(goals.to_vec()).or_default();
        let due = rotation.listed.is_none_or(|at| now.duration_since(at) >= LIST_EVERY);
        if due {
            rotation.listed = Some(now);
        }
        due
    }

    /// Adds the organisations that wait and have no turn yet.
    pub(super) fn add(&self, goals: &[String], waiting: Vec<String>) {
        let mut sets = self.sets();
        let Some(rotation) = sets.get_mut(goals) else { return };
        for org in waiting {
            if !rotation.orgs.contains(&org) {
                rotation.orgs.push_back(org);
            }
        }
    }

    /// Returns the organisation whose turn it is; its next turn is after all others.
    pub(super) fn next(&self, goals: &[String]) -> Option<String> {
        let mut sets = self.sets();
        let orgs = &mut sets.get_mut(goals)?.orgs;
        let org = orgs.pop_front()?;
        orgs.push_back(org.clone());
        Some(org)
    }

    /// Takes the turn of an organisation that has no mission.
    pub(super) fn remove(&self, goals: &[String], org: &str) {
        if let Some(rotation) = self.sets().get_mut(goals) {
            rotation.orgs.retain(|other| other != org);
        }
    }
}

/// Returns the statement that lists the organisations with a mission that a worker of these goals
/// may claim at $1. It goes from one organisation to the next, and looks into an index for each
/// urgency and lane, however many missions an organisation has. No `EXISTS`: PostgreSQL may answer it
/// by reading the missions of all organisations first.
pub(super) fn waiting_sql(goals: usize) -> String {
    let of_goals = in_goals(goals, 2);
    let mut looks = Vec::new();
    for urgency in 0..Priority::ALL.len() {
        for lane in [PENDING, RETRY, RUNNING] {
            let due = if lane == PENDING { "" } else { " AND due_ms <= $1" };
            looks.push(format!(
                "(SELECT 1 FROM missions m WHERE m.org_id = o.org_id AND urgency = {urgency} \
                 AND lane = {lane} AND attempts < max_attempts{due}{of_goals} LIMIT 1) IS NOT NULL"
            ));
        }
    }
    format!(
        "WITH RECURSIVE o (org_id) AS ( \
         SELECT MIN(org_id) FROM missions WHERE lane IS NOT NULL \
         UNION ALL \
         SELECT (SELECT MIN(n.org_id) FROM missions n WHERE n.lane IS NOT NULL AND n.org_id > o.org_id) \
         FROM o WHERE o.org_id IS NOT NULL) \
         SELECT o.org_id FROM o WHERE o.org_id IS NOT NULL AND CAST($1 AS bigint) IS NOT NULL \
         AND ({})",
        looks.join(" OR ")
    )
}

#[cfg(test)]
mod tests {
    use ::database::Pool;
    use ::database::sqlx::{AssertSqlSafe, query_scalar, raw_sql};
    use testbed::Postgres;

    use super::*;

    #[tokio::test]
    async fn waiting_organisations_are_found_by_an_index_on_postgresql() {
        let cluster = Postgres::start().await.unwrap();
        let database = service_testbed::open_database(cluster.url()).await;
        let Pool::Postgres(pool) = database.pool() else { panic!("PostgreSQL") };
        // 50 organisations with 1 200 missions each, of ten goals, in all urgencies and lanes.
        raw_sql(
            "INSERT INTO missions (org_id, mission_id, idempotency_key, goal, status, urgency, \
             lane, due_ms, body, max_attempts, created_ms, updated_ms) \
             SELECT 'org-' || n % 50, 'm-' || n, 'k-' || n, 'goal-' || (n / 50) % 10, 'PENDING', \
             (n / 500) % 3, (n / 1500) % 3, n, '{}', 5, 0, 0 FROM generate_series(1, 60000) AS n; \
             ANALYZE missions",
        )
        .execute(pool)
        .await
        .unwrap();
        let waiting = async |sql: String| -> Vec<String> {
            query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await.unwrap()
        };
        for (goals, index) in
            [(0, "missions_claimable_of_org on"), (1, "missions_claimable_of_org_by_goal on")]
        {
            let sql = waiting_sql(goals).replace("$1", "60000").replace("$2", "'goal-3'");
            let plan = waiting(format!("EXPLAIN {sql}")).await.join("\n");
            assert!(plan.contains(index), "{plan}");
            assert!(!plan.contains("Seq Scan on missions"), "{plan}");
            assert_eq!(waiting(sql).await.len(), 50);
        }
    }

    #[test]
    fn each_organisation_has_a_turn_before_one_has_another() {
        let (turns, now, goals) = (Turns::default(), Instant::now(), ["tidy".to_owned()]);
        assert!(turns.is_list_due(&goals, now));
        assert!(!turns.is_list_due(&goals, now), "one caller lists");
        assert!(turns.is_list_due(&[], now), "other goals have their own turns");
        turns.add(&goals, vec!["a".to_owned(), "b".to_owned()]);
        turns.add(&goals, vec!["b".to_owned(), "c".to_owned()]);
        let next = || turns.next(&goals).unwrap_or_default();
        assert_eq!([next(), next(), next(), next()], ["a", "b", "c", "a"]);
        turns.remove(&goals, "c");
        assert_eq!([next(), next(), next()], ["b", "a", "b"]);
        assert!(turns.is_list_due(&goals, now + LIST_EVERY));
        for n in 0..1_000 {
            turns.is_list_due(&[n.to_string()], now);
        }
        assert!(turns.sets().len() <= SETS_MAX);
    }
}
