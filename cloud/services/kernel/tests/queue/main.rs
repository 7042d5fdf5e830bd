//! Checks of mission storage that must hold on every database: the same on SQLite and PostgreSQL.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may break

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use contract::mission::{LastError, MissionRecord, MissionStatus, NewMission};
use contract::{Actor, ActorKind, EpochMs, OrgId};
use database::sqlx;
use database::{Database, DatabaseConfig};
use kernel::KernelStore;
use kernel::governor::{Gate, GovernorConfig, RateLimit};
use kernel::missions::{self, CreateMission, CreateOutcome};
use kernel::store::{AttemptFailure, MissionFilter, Transition};
use serde_json::json;
use service::secret::Secret;
use service_client::ServiceClient;
use testbed::{FakeService, Postgres, ReceivedRequest};

const NOW: EpochMs = EpochMs(1_760_000_000_000);
const LEASE_MS: u32 = 30_000;

fn org(name: &str) -> OrgId {
    OrgId::new(name).unwrap()
}

fn person() -> Actor {
    Actor { kind: ActorKind::User, id: "ada".to_owned(), display: None, org: None }
}

async fn open(url: String) -> KernelStore {
    let config = DatabaseConfig { url: url.into(), pool_max: 16, ..DatabaseConfig::default() };
    let database = Database::open(&config).await.unwrap();
    database.migrate_up().await.unwrap();
    KernelStore::new(database)
}

/// Runs the same check on both databases.
macro_rules! on_both {
    ($name:ident, $check:ident) => {
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("kernel.db");
                $check(open(format!("sqlite:{}", path.display())).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                let cluster = Postgres::start().await.unwrap();
                $check(open(cluster.url()).await).await;
            }
        }
    };
}

mod audit;
mod gauges;
mod traces;

fn mission(body: serde_json::Value) -> NewMission {
    serde_json::from_value(body).unwrap()
}

/// Allows missions of a goal, without a rate limit.
async fn allow(store: &KernelStore, org: &OrgId, goal: &str) {
    let before = store.governor_config(org).await.unwrap();
    let mut config = before.config.clone();
    config.policy.allowed_goals.push(goal.to_owned());
    let set = store.set_governor_config(org, &before, config, &person(), NOW).await.unwrap();
    assert!(set.is_some());
}

/// Creates a mission, without an eval service: none of these policies asks for one.
async fn create(
    store: &KernelStore,
    org: &OrgId,
    body: serde_json::Value,
    (id, key): (&str, &str),
    now: EpochMs,
) -> CreateOutcome {
    let eval = ServiceClient::new("eval", "http://127.0.0.1:1", &Secret::default()).unwrap();
    let (mission, actor) = (mission(body), person());
    let new = CreateMission { org, mission: &mission, id, key, actor: &actor, now };
    missions::create(store, &eval, new).await.unwrap()
}

/// Creates a mission, with its id as its key.
async fn make(
    store: &KernelStore,
    org: &OrgId,
    body: serde_json::Value,
    id: &str,
) -> MissionRecord {
    let made = create(store, org, body, (id, id), NOW).await;
    assert!(made.new, "{id}");
    made.mission
}

fn done(moved: Transition) -> MissionRecord {
    match moved {
        Transition::Done(mission) => *mission,
        other => panic!("{other:?}"),
    }
}

on_both!(life, a_mission_lives_and_is_counted);
async fn a_mission_lives_and_is_counted(store: KernelStore) {
    let acme = org("acme");
    allow(&store, &acme, "tidy").await;
    let tidy = |priority: &str| json!({"goal": "tidy", "priority": priority});
    make(&store, &acme, tidy("LOW"), "low").await;
    make(&store, &acme, tidy("MEDIUM"), "first").await;
    make(&store, &acme, tidy("HIGH"), "urgent").await;
    let again = create(&store, &acme, tidy("HIGH"), ("x", "first"), NOW).await;
    assert_eq!((again.new, again.mission.mission_id.as_str()), (false, "first"));

    let goals = ["tidy".to_owned()];
    let take = async |lease: &'static str, at: EpochMs| {
        store.claim(Some(&acme), "w", &goals, (lease, LEASE_MS), at).await.unwrap()
    };
    let urgent = take("l1", NOW).await.unwrap();
    assert_eq!((urgent.mission_id.as_str(), urgent.attempts), ("urgent", 1));
    assert_eq!(urgent.lease_expires_at, Some(NOW.plus_ms(30_000)));
    let first = take("l2", NOW).await.unwrap();
    assert_eq!(first.mission_id, "first");
    // A worker with other goals, or of another organisation, gets no mission.
    let none = store.claim(None, "w", &["sing".to_owned()], ("l", LEASE_MS), NOW).await.unwrap();
    assert!(none.is_none());
    assert!(
        store.claim(Some(&org("other")), "w", &[], ("l", LEASE_MS), NOW).await.unwrap().is_none()
    );

    let beat = |lease: &'static str, at: EpochMs| {
        store.heartbeat(&acme, "urgent", (lease, Some("w")), LEASE_MS, at)
    };
    let later = NOW.plus_ms(20_000);
    assert_eq!(
        done(beat("l1", later).await.unwrap()).lease_expires_at,
        Some(later.plus_ms(30_000))
    );
    assert!(matches!(beat("wrong", later).await.unwrap(), Transition::Conflict(_)));
    assert!(
        matches!(beat("l1", NOW.plus_ms(60_000)).await.unwrap(), Transition::Conflict(_)),
        "revived"
    );

    // `first` had no heartbeat: the next worker claims it, and the old lease is invalid.
    let late = NOW.plus_ms(31_000);
    let taken = take("l4", late).await.unwrap();
    assert_eq!((taken.mission_id.as_str(), taken.attempts), ("first", 2));
    assert_eq!(take("l3", late).await.unwrap().mission_id, "low");
    let old = store.complete(&acme, "first", Some("l2"), None, late).await.unwrap();
    assert!(matches!(old, Transition::Conflict(_)));
    let summary = json!({"reportId": "R-1"}).as_object().cloned();
    let ended = store.complete(&acme, "first", Some("l4"), summary.as_ref(), late).await.unwrap();
    let ended = done(ended);
    assert_eq!((ended.status, ended.lease_id.clone()), (MissionStatus::Done, None));
    assert_eq!(ended.result_meta.unwrap()["reportId"], "R-1");
    let twice = store.complete(&acme, "first", Some("l4"), None, late).await.unwrap();
    assert!(matches!(twice, Transition::Conflict(why) if why.contains("DONE")));

    counts_are_true(&store, &acme).await;
    let all = MissionFilter { limit: 10, ..MissionFilter::default() };
    assert_eq!(store.missions(&acme, &all).await.unwrap().len(), 3);
    assert!(store.missions(&org("other"), &all).await.unwrap().is_empty());
    let running = MissionFilter { statuses: vec![MissionStatus::Running], ..all.clone() };
    assert_eq!(store.missions(&acme, &running).await.unwrap().len(), 2);
    // Pages follow each other without a gap.
    let mut seen = Vec::new();
    let mut page = MissionFilter { limit: 1, ..MissionFilter::default() };
    while let Some(one) = store.missions(&acme, &page).await.unwrap().pop() {
        page.after = Some((one.created_at.0, one.mission_id.clone()));
        seen.push(one.mission_id);
    }
    assert_eq!(seen, ["urgent", "low", "first"]);
}

/// Checks that the counters equal a full count.
async fn counts_are_true(store: &KernelStore, org: &OrgId) {
    let all = MissionFilter { limit: 1_000_000, ..MissionFilter::default() };
    let mut found: BTreeMap<String, i64> = BTreeMap::new();
    for mission in store.missions(org, &all).await.unwrap() {
        *found.entry(mission.status.as_str().to_owned()).or_default() += 1;
    }
    let mut counted = store.counts(Some(org)).await.unwrap();
    counted.retain(|what, n| *n != 0 && MissionStatus::parse(what).is_some());
    assert_eq!(counted, found);
}

on_both!(failures, failures_double_the_wait_and_a_poison_mission_is_quarantined);
async fn failures_double_the_wait_and_a_poison_mission_is_quarantined(store: KernelStore) {
    let acme = org("acme");
    allow(&store, &acme, "tidy").await;
    make(&store, &acme, json!({"goal": "tidy", "maxAttempts": 3}), "m").await;
    let error = LastError { error: "the dust was thick".to_owned(), details: None };
    let failure = |retryable| AttemptFailure { error: error.clone(), retryable };
    let mut now = NOW;
    for (attempt, wait) in [(1, 2_000), (2, 4_000)] {
        let got = store.claim(None, "w", &[], ("l", LEASE_MS), now).await.unwrap().unwrap();
        assert_eq!(got.attempts, attempt);
        let failed = store.fail(&acme, "m", Some("l"), &failure(true), now).await.unwrap();
        let failed = done(failed);
        assert_eq!(failed.status, MissionStatus::Retry);
        assert_eq!(failed.next_retry_at, Some(now.plus_ms(wait)));
        assert_eq!(failed.last_error.unwrap().error, "the dust was thick");
        let early = store.claim(None, "w", &[], ("l", LEASE_MS), now.plus_ms(wait - 1)).await;
        assert!(early.unwrap().is_none());
        now = now.plus_ms(wait);
    }
    store.claim(None, "w", &[], ("l", LEASE_MS), now).await.unwrap().unwrap();
    let last = done(store.fail(&acme, "m", Some("l"), &failure(true), now).await.unwrap());
    assert_eq!((last.status, last.next_retry_at), (MissionStatus::Failed, None));

    // A mission that loses every worker is quarantined until a person approves it.
    make(&store, &acme, json!({"goal": "tidy", "maxAttempts": 2}), "poison").await;
    for _ in 0..2 {
        store.claim(None, "w", &[], ("l", LEASE_MS), now).await.unwrap().unwrap();
        now = now.plus_ms(31_000);
    }
    assert!(store.claim(None, "w", &[], ("l", LEASE_MS), now).await.unwrap().is_none());
    assert_eq!(store.quarantine_poison(now).await.unwrap(), 1);
    let parked = store.mission(&acme, "poison").await.unwrap().unwrap();
    assert_eq!(parked.status, MissionStatus::Quarantined);
    assert_eq!(parked.governance.unwrap().reasons[0].code, "POISON_MISSION");
    let freed = store.approve(&acme, "poison", Some("mended"), &person(), now).await.unwrap();
    let freed = done(freed);
    assert_eq!((freed.status, freed.attempts), (MissionStatus::Pending, 0));
    let gone = done(store.cancel(&acme, "poison", &person(), now).await.unwrap());
    assert_eq!(gone.status, MissionStatus::Canceled);
    let again = store.cancel(&acme, "poison", &person(), now).await.unwrap();
    assert!(matches!(again, Transition::Conflict(_)));
    let other = store.cancel(&org("other"), "m", &person(), now).await.unwrap();
    assert!(matches!(other, Transition::NotFound));
    counts_are_true(&store, &acme).await;
}

on_both!(governed, the_governor_decides_once_and_its_tokens_refill);
async fn the_governor_decides_once_and_its_tokens_refill(store: KernelStore) {
    let acme = org("acme");
    let before = store.governor_config(&acme).await.unwrap();
    assert_eq!((before.version, &before.config), (0, &GovernorConfig::default()));
    let mut config = before.config.clone();
    let limit = RateLimit { capacity: 2.0, refill_per_sec: 0.5 };
    config.rate_limits.insert("tidy".to_owned(), limit);
    config.policy.allowed_goals.push("tidy".to_owned());
    let set = store.set_governor_config(&acme, &before, config.clone(), &person(), NOW).await;
    assert_eq!(set.unwrap().unwrap().version, 1);
    let late = store.set_governor_config(&acme, &before, config, &person(), NOW).await.unwrap();
    assert_eq!(late, None, "the second to change one version changes nothing");

    let tidy = json!({"goal": "tidy", "context": {"siteId": "s", "machineId": "m"}});
    for id in ["a", "b"] {
        assert_eq!(make(&store, &acme, tidy.clone(), id).await.status, MissionStatus::Pending);
    }
    // Creating the same mission again takes no token.
    create(&store, &acme, tidy.clone(), ("a", "a"), NOW).await;
    let third = make(&store, &acme, tidy.clone(), "c").await;
    assert_eq!(third.status, MissionStatus::Retry);
    assert_eq!(third.next_retry_at, Some(NOW.plus_ms(2_000)));
    let other = json!({"goal": "tidy", "context": {"siteId": "s", "machineId": "other"}});
    assert_eq!(make(&store, &acme, other, "d").await.status, MissionStatus::Pending);
    let now = NOW.plus_ms(2_000);
    let fourth = create(&store, &acme, tidy, ("e", "e"), now).await;
    assert_eq!(fourth.mission.status, MissionStatus::Pending, "a token is back");
    let blocked = make(&store, &acme, json!({"goal": "sing"}), "f").await;
    assert_eq!(blocked.status, MissionStatus::Blocked);
    let doubted = make(&store, &acme, json!({"goal": "generate-roast-report"}), "g").await;
    assert_eq!(doubted.status, MissionStatus::Quarantined);
    done(store.retry_now(&acme, "c", &person(), NOW).await.unwrap());
    let counts = store.counts(Some(&acme)).await.unwrap();
    assert_eq!((counts["rate_limited"], counts["BLOCKED"]), (1, 1));

    // The audit log has all changes, in order.
    let log = store.database().audit_log(&acme, 0, 100).await.unwrap();
    let actions: Vec<_> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert_eq!(actions, ["governor.configure", "mission.retryNow"]);
    assert_eq!(log[0].actor["id"], "ada");
    let rest = store.database().audit_log(&acme, 1, 100).await.unwrap();
    assert_eq!(rest, log[1..]);
    assert!(store.database().audit_log(&org("other"), 0, 100).await.unwrap().is_empty());
}

on_both!(invented, missions_of_invented_machines_are_limited_too);
async fn missions_of_invented_machines_are_limited_too(store: KernelStore) {
    let acme = org("acme");
    let before = store.governor_config(&acme).await.unwrap();
    let mut config = before.config.clone();
    let limit = RateLimit { capacity: 1.0, refill_per_sec: 0.005 };
    config.rate_limits.insert("tidy".to_owned(), limit);
    config.policy.allowed_goals.push("tidy".to_owned());
    store.set_governor_config(&acme, &before, config, &person(), NOW).await.unwrap().unwrap();
    let of = |n: usize| json!({"goal": "tidy", "context": {"machineId": format!("m-{n}")}});
    for n in 0..100 {
        let mission = make(&store, &acme, of(n), &format!("id-{n}")).await;
        assert_eq!(mission.status, MissionStatus::Pending);
    }
    let further = make(&store, &acme, of(100), "id-100").await;
    assert_eq!(further.status, MissionStatus::Retry);
    assert_eq!(further.next_retry_at, Some(NOW.plus_ms(2_000)));
}

on_both!(fair, a_flood_of_one_organisation_does_not_delay_the_others);
async fn a_flood_of_one_organisation_does_not_delay_the_others(store: KernelStore) {
    let (flood, calm, third) = (org("acme"), org("beta"), org("zeta"));
    for org in [&flood, &calm, &third] {
        allow(&store, org, "tidy").await;
    }
    for n in 0..30 {
        let urgent = json!({"goal": "tidy", "priority": "HIGH"});
        make(&store, &flood, urgent, &format!("flood-{n}")).await;
    }
    for (org, id) in [(&calm, "calm"), (&third, "third")] {
        make(&store, org, json!({"goal": "tidy", "priority": "LOW"}), id).await;
    }
    make(&store, &calm, json!({"goal": "tidy", "priority": "HIGH"}), "calm-urgent").await;
    let goals = ["tidy".to_owned()];
    let take = async || {
        let claimed = store.claim(None, "w", &goals, ("l", LEASE_MS), NOW).await.unwrap();
        claimed.unwrap().mission_id
    };
    let mut order = Vec::new();
    for _ in 0..6 {
        let mission = take().await;
        order.push(if mission.starts_with("flood") { "flood".to_owned() } else { mission });
    }
    // In turn, and of each organisation the most urgent first.
    assert_eq!(order, ["flood", "calm-urgent", "third", "flood", "calm", "flood"]);
    for _ in 3..30 {
        assert!(take().await.starts_with("flood"));
    }
    assert!(store.claim(None, "w", &goals, ("l", LEASE_MS), NOW).await.unwrap().is_none());
    // What comes now is served although no organisation has a turn.
    make(&store, &calm, json!({"goal": "tidy"}), "late").await;
    assert_eq!(take().await, "late");
}

on_both!(crowd, a_crowd_of_workers_does_each_mission_once);
async fn a_crowd_of_workers_does_each_mission_once(store: KernelStore) {
    const MISSIONS: usize = 200;
    let acme = org("acme");
    allow(&store, &acme, "tidy").await;
    for i in 0..MISSIONS {
        make(&store, &acme, json!({"goal": "tidy"}), &format!("m-{i}")).await;
    }
    let (clock, store) = (Arc::new(AtomicI64::new(NOW.0)), Arc::new(store));
    let mut workers = tokio::task::JoinSet::new();
    for w in 0..8 {
        let (clock, store) = (clock.clone(), store.clone());
        let acme = acme.clone();
        workers.spawn(async move {
            let mut mine = Vec::new();
            let name = format!("w-{w}");
            loop {
                let now = EpochMs(clock.fetch_add(1, Ordering::Relaxed));
                let lease = format!("{:x}", now.0);
                let taken = store.claim(Some(&acme), &name, &[], (&lease, LEASE_MS), now).await;
                let Some(mission) = taken.unwrap() else { return mine };
                let id = mission.mission_id;
                // Now and then a worker abandons its mission.
                if now.0 % 11 == 0 {
                    continue;
                }
                match store.complete(&acme, &id, Some(&lease), None, now).await.unwrap() {
                    Transition::Done(_) => mine.push(id),
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    let mut all: Vec<String> = workers.join_all().await.into_iter().flatten().collect();
    // Abandoned missions are available again when their leases have expired.
    let late = EpochMs(clock.load(Ordering::Relaxed)).plus_ms(i64::from(LEASE_MS));
    while let Some(left) = store.claim(None, "w", &[], ("last", LEASE_MS), late).await.unwrap() {
        assert_eq!(left.attempts, 2);
        done(store.complete(&acme, &left.mission_id, Some("last"), None, late).await.unwrap());
        all.push(left.mission_id);
    }
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!((count, all.len()), (MISSIONS, MISSIONS), "each once");
    counts_are_true(&store, &acme).await;
}

on_both!(promotion, eval_is_asked_once_for_each_key);
async fn eval_is_asked_once_for_each_key(store: KernelStore) {
    let acme = org("acme");
    let before = store.governor_config(&acme).await.unwrap();
    let mut config = before.config.clone();
    config.policy.allowed_goals.push("publish".to_owned());
    let gate = Gate { require_promotion: true, ..Gate::default() };
    config.gates.insert("publish".to_owned(), gate);
    store.set_governor_config(&acme, &before, config, &person(), NOW).await.unwrap().unwrap();

    let answer = |_: &ReceivedRequest| axum::Json(json!({"allowed": true, "evaluated": true}));
    let eval = FakeService::start(answer).await.unwrap();
    let client = ServiceClient::new("eval", &eval.url(), &Secret::default()).unwrap();

    let body = mission(json!({"goal": "publish", "params": {"sessionId": "s"}}));
    let actor = person();
    let create = async |id: &str, key: &str| {
        let new = CreateMission { org: &acme, mission: &body, id, key, actor: &actor, now: NOW };
        missions::create(&store, &client, new).await.unwrap()
    };
    let first = create("a", "key").await;
    assert_eq!((first.new, first.mission.status), (true, MissionStatus::Pending));
    let again = create("b", "key").await;
    assert_eq!((again.new, again.mission.mission_id.as_str()), (false, "a"));
    assert_eq!(eval.requests().len(), 1);
    create("c", "another key").await;
    assert_eq!(eval.requests().len(), 2);
}

on_both!(eval_turns, missions_that_wait_for_eval_take_turns_by_organisation);
async fn missions_that_wait_for_eval_take_turns_by_organisation(store: KernelStore) {
    for (name, count) in [("flood", 30), ("calm", 1)] {
        let owner = org(name);
        allow(&store, &owner, "tidy").await;
        for n in 0..count {
            let body = json!({"goal": "tidy", "context": {"orgId": name}});
            make(&store, &owner, body, &format!("{name}-{n}")).await;
        }
    }
    let wait = "UPDATE missions SET lane = 3, \
                due_ms = CASE WHEN org_id = 'calm' THEN 1000 ELSE 0 END";
    database::on!(store.database(), pool => sqlx::query(wait).execute(pool).await.map(drop))
        .unwrap();
    let asked = store.waiting_for_eval(NOW, 10).await.unwrap();
    let of_calm = asked.iter().filter(|(org, _)| org.as_str() == "calm").count();
    assert_eq!((asked.len(), of_calm), (10, 1));
}
