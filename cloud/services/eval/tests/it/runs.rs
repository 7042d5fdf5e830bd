//! Runs: stored once, reviewed, counted, judged.

use contract::OrgId;
use eval::EvalStore;
use eval::run::{EvalRun, Judgement, Outcome};
use eval::saturation::History;
use eval::store::{PendingJudgement, RunFilter};
use serde_json::json;
use service_testbed::NOW;

use crate::{audited, by, org, run};

/// Stores a run, which must be new, and which no language model judges.
async fn add(store: &EvalStore, org: &OrgId, run: &EvalRun, once: Option<&str>) {
    assert!(store.add_run(org, run, once, false).await.unwrap(), "{}", run.id);
}

pub async fn a_run_is_stored_once_for_its_key(store: &EvalStore) {
    let (acme, other) = (org("once"), org("once-other"));
    let first = run("eval-1", "S-1", Outcome::Pass, NOW);
    let again = run("eval-2", "S-1", Outcome::Fail, NOW.plus_ms(1));
    let once = Some("auto-evaluator:S-1:golden-1");
    add(store, &acme, &first, once).await;
    assert!(!store.add_run(&acme, &again, once, false).await.unwrap());
    assert_eq!(store.run(&acme, "eval-1").await.unwrap(), Some(first));
    assert_eq!(store.run(&acme, "eval-2").await.unwrap(), None);
    assert_eq!(store.run(&other, "eval-1").await.unwrap(), None);
    // A key is an organisation's own, and a run that a caller requests has none.
    add(store, &other, &again, once).await;
    add(store, &acme, &again, None).await;
    add(store, &acme, &run("eval-3", "S-1", Outcome::Fail, NOW), None).await;
}

pub async fn a_set_of_runs_is_stored_whole_or_not_at_all(store: &EvalStore) {
    let acme = org("set");
    let runs = ["eval-1", "eval-2"].map(|id| run(id, "S-1", Outcome::Pass, NOW));
    let with_a_repeated_id = [runs[0].clone(), runs[1].clone(), runs[0].clone()];
    assert!(store.add_runs(&acme, &with_a_repeated_id, false).await.is_err());
    assert_eq!(store.run(&acme, "eval-1").await.unwrap(), None);
    store.add_runs(&acme, &runs, false).await.unwrap();
    for stored in runs {
        assert_eq!(store.run(&acme, &stored.id).await.unwrap(), Some(stored));
    }
}

pub async fn a_review_overrides_the_outcome_of_the_gates(store: &EvalStore) {
    let (acme, rival) = (org("reviewed"), org("rival"));
    let failed = run("eval-1", "S-1", Outcome::Fail, NOW);
    add(store, &acme, &failed, None).await;
    let review = async |org: &OrgId, id: &str, outcome, notes: Option<&str>| {
        let decision = (outcome, notes.map(str::to_owned));
        store.review(org, id, decision, by(NOW.plus_ms(60_000))).await.unwrap()
    };
    assert_eq!(review(&rival, "eval-1", Outcome::Pass, None).await, None);
    assert_eq!(review(&acme, "eval-2", Outcome::Pass, None).await, None);
    let reviewed = review(&acme, "eval-1", Outcome::Pass, Some("the probe was loose")).await;
    let expected = EvalRun {
        human_reviewed: true,
        human_outcome: Some(Outcome::Pass),
        human_notes: Some("the probe was loose".to_owned()),
        reviewed_by: Some("ada".to_owned()),
        reviewed_at: Some(NOW.plus_ms(60_000)),
        ..failed
    };
    assert_eq!((expected.outcome, expected.effective_outcome()), (Outcome::Fail, Outcome::Pass));
    assert_eq!(reviewed.as_ref(), Some(&expected));
    assert_eq!(store.run(&acme, "eval-1").await.unwrap(), reviewed);
    assert_eq!(store.outcomes(&acme, "S-1").await.unwrap(), [(Outcome::Pass, 1)]);
    // The last review counts.
    let again = review(&acme, "eval-1", Outcome::Warn, None).await.unwrap();
    assert_eq!((again.human_outcome, again.human_notes), (Some(Outcome::Warn), None));
    assert_eq!(store.outcomes(&acme, "S-1").await.unwrap(), [(Outcome::Warn, 1)]);
    let entry = |outcome: &str, notes: Option<&str>| {
        let details = json!({"outcome": outcome, "gates": "FAIL", "notes": notes});
        ("evaluation.review".to_owned(), details)
    };
    let log = [entry("PASS", Some("the probe was loose")), entry("WARN", None)];
    assert_eq!(audited(store, &acme).await, log);
}

pub async fn runs_are_listed_newest_first_by_roast_or_by_case(store: &EvalStore) {
    let acme = org("listed-runs");
    for (id, session, case, ms) in [
        ("eval-a", "S-1", "golden-1", 0),
        ("eval-b", "S-2", "golden-1", 0),
        ("eval-c", "S-1", "golden-2", 1),
    ] {
        let new = run(id, session, Outcome::Pass, NOW.plus_ms(ms));
        add(store, &acme, &EvalRun { golden_case_id: case.to_owned(), ..new }, None).await;
    }
    let listed = async |org: &OrgId, filter: RunFilter| {
        let found = store.runs(org, &filter).await.unwrap();
        found.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    let all = RunFilter { limit: 2, ..RunFilter::default() };
    assert_eq!(listed(&acme, all.clone()).await, ["eval-c", "eval-b"]);
    let next = RunFilter { after: Some((NOW.0, "eval-b".to_owned())), ..all.clone() };
    assert_eq!(listed(&acme, next).await, ["eval-a"]);
    let of_roast = RunFilter { session: Some("S-1".to_owned()), ..all.clone() };
    assert_eq!(listed(&acme, of_roast).await, ["eval-c", "eval-a"]);
    let of_case = RunFilter { case: Some("golden-1".to_owned()), ..all.clone() };
    assert_eq!(listed(&acme, of_case).await, ["eval-b", "eval-a"]);
    assert_eq!(listed(&org("rival"), all).await, Vec::<String>::new());
}

pub async fn the_runs_of_a_roast_are_counted_by_outcome(store: &EvalStore) {
    let acme = org("counted");
    for (n, outcome) in [Outcome::Pass, Outcome::NeedsReview, Outcome::Pass].iter().enumerate() {
        add(store, &acme, &run(&format!("eval-{n}"), "S-1", *outcome, NOW), None).await;
    }
    add(store, &acme, &run("eval-9", "S-2", Outcome::Fail, NOW), None).await;
    let mut counts = store.outcomes(&acme, "S-1").await.unwrap();
    counts.sort_by_key(|(outcome, _)| outcome.as_str());
    assert_eq!(counts, [(Outcome::NeedsReview, 1), (Outcome::Pass, 2)]);
    assert_eq!(store.outcomes(&acme, "S-3").await.unwrap(), []);
    assert_eq!(store.outcomes(&org("rival"), "S-1").await.unwrap(), []);
}

pub async fn only_automatic_evaluations_count_as_coverage(store: &EvalStore) {
    let acme = org("coverage");
    for (id, session, once, ms) in [
        ("eval-1", "S-1", Some("S-1:golden-1"), 0),
        ("eval-2", "S-1", Some("S-1:golden-2"), 0),
        ("eval-3", "S-2", Some("S-2:golden-1"), -1),
        ("eval-4", "S-3", None, 0),
    ] {
        add(store, &acme, &run(id, session, Outcome::Pass, NOW.plus_ms(ms)), once).await;
    }
    let since = async |ms: i64| store.evaluated_since(&acme, NOW.plus_ms(ms)).await.unwrap();
    assert_eq!((since(-1).await, since(0).await, since(1).await), (2, 1, 0));
    assert_eq!(store.evaluated_since(&org("rival"), NOW.plus_ms(-1)).await.unwrap(), 0);
}

pub async fn the_history_of_a_case_separates_recent_runs(store: &EvalStore) {
    let acme = org("history");
    for (id, outcome, ms) in [
        ("eval-1", Outcome::Pass, -1),
        ("eval-2", Outcome::Pass, 0),
        ("eval-3", Outcome::Fail, 5),
        ("eval-4", Outcome::Fail, 9),
    ] {
        add(store, &acme, &run(id, "S-1", outcome, NOW.plus_ms(ms)), None).await;
    }
    let other = run("eval-5", "S-1", Outcome::Warn, NOW.plus_ms(-2));
    let other = EvalRun { golden_case_id: "golden-2".to_owned(), ..other };
    add(store, &acme, &other, None).await;
    let first = History {
        total: 4,
        passed: 2,
        recent: 3,
        recent_passed: 1,
        recent_outcomes: 2,
        first: Some(NOW.plus_ms(-1)),
        last: Some(NOW.plus_ms(9)),
    };
    let second = History {
        total: 1,
        first: Some(NOW.plus_ms(-2)),
        last: Some(NOW.plus_ms(-2)),
        ..History::default()
    };
    let first = ("golden-1".to_owned(), first);
    let mut all = store.histories(&acme, None, NOW).await.unwrap();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(all, [first.clone(), ("golden-2".to_owned(), second)]);
    assert_eq!(store.histories(&acme, Some("golden-1"), NOW).await.unwrap(), [first]);
    assert_eq!(store.histories(&acme, Some("golden-3"), NOW).await.unwrap(), []);
    assert_eq!(store.histories(&org("rival"), None, NOW).await.unwrap(), []);
}

fn judgement(model: &str) -> Judgement {
    Judgement {
        plan_clarity: 80.0,
        physics_plausibility: 70.5,
        constraint_respect: 100.0,
        safety_score: 0.0,
        safety_warnings: vec!["too hot".to_owned()],
        physics_violations: Vec::new(),
        constraint_violations: Vec::new(),
        model_id: model.to_owned(),
        evaluated_at: NOW,
        reasoning: None,
    }
}

/// Leases a run to judge at `now` until `until`, both in ms after [`NOW`].
async fn claim(store: &EvalStore, now: i64, until: i64) -> Option<PendingJudgement> {
    store.claim_run_to_judge(NOW.plus_ms(now), NOW.plus_ms(until)).await.unwrap()
}

pub async fn one_instance_at_a_time_judges_a_run(store: &EvalStore) {
    let acme = org("judged");
    let warned = run("eval-1", "S-1", Outcome::Warn, NOW);
    assert!(store.add_run(&acme, &warned, None, true).await.unwrap());
    add(store, &acme, &run("eval-2", "S-1", Outcome::Pass, NOW), None).await;
    assert!(claim(store, -1, 9).await.is_none(), "it is not due");
    let first = claim(store, 0, 10).await.unwrap();
    assert_eq!((&first.org, &first.run), (&acme, &warned));
    assert_eq!((first.tries, first.lease), (1, NOW.plus_ms(10)));
    assert!(claim(store, 9, 19).await.is_none(), "it is leased");
    let second = claim(store, 10, 20).await.unwrap();
    assert_eq!((&second.run, second.tries), (&warned, 2));

    store.store_judgement(&first, Some(judgement("slow"))).await.unwrap();
    let stored = async || store.run(&acme, "eval-1").await.unwrap().unwrap();
    assert_eq!(stored().await.lm_judge, None, "the first instance has lost the run");
    // A person reviews the run while the model answers: neither result is lost.
    store.review(&acme, "eval-1", (Outcome::Pass, None), by(NOW)).await.unwrap().unwrap();
    store.store_judgement(&second, Some(judgement("quick"))).await.unwrap();
    let run = stored().await;
    assert_eq!((run.lm_judge, run.human_outcome), (Some(judgement("quick")), Some(Outcome::Pass)));
    assert!(claim(store, 1_000, 2_000).await.is_none(), "a judged run is not judged again");
}

pub async fn an_attempt_that_does_not_count_uses_up_no_try(store: &EvalStore) {
    let acme = org("postponed");
    let warned = run("eval-1", "S-1", Outcome::Warn, NOW);
    assert!(store.add_run(&acme, &warned, None, true).await.unwrap());
    let at = |ms: i64| NOW.plus_ms(ms);
    let waiting = claim(store, 0, 10).await.unwrap();
    store.postpone_judgement(&waiting, at(50), false).await.unwrap();
    assert!(claim(store, 49, 59).await.is_none(), "it is postponed");
    let waiting = claim(store, 50, 60).await.unwrap();
    assert_eq!(waiting.tries, 1);
    store.postpone_judgement(&waiting, at(100), true).await.unwrap();
    // The lease has ended: the instance may not move the run any more.
    store.postpone_judgement(&waiting, at(0), true).await.unwrap();
    assert!(claim(store, 99, 109).await.is_none());
    let waiting = claim(store, 100, 110).await.unwrap();
    assert_eq!(waiting.tries, 2);
    store.store_judgement(&waiting, None).await.unwrap();
    assert!(claim(store, 1_000, 2_000).await.is_none(), "the model is not asked again");
    assert_eq!(store.run(&acme, "eval-1").await.unwrap(), Some(warned));
}

pub async fn the_runs_of_each_organisation_are_judged_in_turn(store: &EvalStore) {
    let (flood, calm) = (org("turns-flood"), org("turns-later"));
    for n in 0..4 {
        let waiting = run(&format!("eval-{n}"), "S-1", Outcome::Warn, NOW.plus_ms(n));
        assert!(store.add_run(&flood, &waiting, None, true).await.unwrap());
    }
    let waiting = run("eval-9", "S-1", Outcome::Warn, NOW.plus_ms(9));
    assert!(store.add_run(&calm, &waiting, None, true).await.unwrap());
    let mut order = Vec::new();
    while let Some(claimed) = claim(store, 1_000, 2_000).await {
        order.push(claimed.run.id.clone());
        store.store_judgement(&claimed, None).await.unwrap();
    }
    assert_eq!(order.len(), 5);
    let turn = order.iter().position(|id| id == "eval-9").unwrap();
    assert!(turn <= 1, "not behind all runs of another organisation: {order:?}");
    order.remove(turn);
    assert_eq!(order, ["eval-0", "eval-1", "eval-2", "eval-3"], "the oldest of each first");
}
