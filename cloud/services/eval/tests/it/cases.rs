//! Golden cases: stored, changed, archived, listed.

use eval::EvalStore;
use eval::golden::{BaselineCommand, Expectation, GoldenCase, NewCase};
use eval::store::CaseFilter;
use serde_json::json;
use service_testbed::NOW;

use crate::{audited, by, golden_case, org};

pub async fn a_case_is_stored_as_it_was_written(store: &EvalStore) {
    let (acme, rival) = (org("stored"), org("rival"));
    let case = GoldenCase {
        case: NewCase {
            target_first_crack_seconds: Some(480.1),
            target_fc_temp_c: Some(196.04),
            max_ror_spikes: Some(3),
            expectation: Expectation::ShouldReject,
            reject_reason_expected: Some("trop chaud: 250 °C".to_owned()),
            baseline_commands: vec![BaselineCommand {
                command_type: "SET_GAS".to_owned(),
                target_value: Some(60.0),
                timestamp_seconds: 120.0,
                reasoning: None,
            }],
            tags: vec!["regression".to_owned()],
            metadata: json!({"cup": {"score": 84.5}}).as_object().cloned(),
            ..NewCase::named("Huila", "r-1")
        },
        ..golden_case("golden-1", "r-1", NOW)
    };
    store.add_case(&acme, &case, by(NOW)).await.unwrap();
    assert_eq!(store.case(&acme, "golden-1").await.unwrap(), Some((1, case.clone())));
    assert_eq!(store.case(&acme, "golden-2").await.unwrap(), None);
    assert_eq!(store.case(&rival, "golden-1").await.unwrap(), None);
    let created = ("golden-case.create".to_owned(), json!({ "case": case }));
    assert_eq!(audited(store, &acme).await, [created]);
}

pub async fn a_change_replaces_only_the_version_that_was_read(store: &EvalStore) {
    let (acme, rival) = (org("changed"), org("rival"));
    let first = golden_case("golden-1", "r-1", NOW);
    store.add_case(&acme, &first, by(NOW)).await.unwrap();
    let second = golden_case("golden-1", "r-2", NOW);
    assert!(store.change_case(&acme, 1, &second, by(NOW.plus_ms(1))).await.unwrap());
    // Another caller had read version 1 too.
    let late = golden_case("golden-1", "r-3", NOW);
    assert!(!store.change_case(&acme, 1, &late, by(NOW.plus_ms(2))).await.unwrap());
    assert!(!store.change_case(&acme, 3, &late, by(NOW.plus_ms(2))).await.unwrap());
    assert!(!store.change_case(&rival, 2, &late, by(NOW.plus_ms(2))).await.unwrap());
    assert_eq!(store.case(&acme, "golden-1").await.unwrap(), Some((2, second.clone())));
    let log = audited(store, &acme).await;
    assert_eq!(log.len(), 2, "a change that was not made is not in the log");
    let changed = ("golden-case.change".to_owned(), json!({"version": 2, "case": second}));
    assert_eq!(log[1], changed);
    assert_eq!(audited(store, &rival).await, []);
}

pub async fn archived_cases_are_listed_apart(store: &EvalStore) {
    let acme = org("archived");
    let mut case = golden_case("golden-1", "r-1", NOW);
    store.add_case(&acme, &case, by(NOW)).await.unwrap();
    let listed = async |archived| {
        let filter = CaseFilter { archived, limit: 10, ..CaseFilter::default() };
        store.cases(&acme, &filter).await.unwrap()
    };
    assert_eq!((listed(false).await, listed(true).await), (vec![case.clone()], vec![]));
    case.case.archived = true;
    assert!(store.change_case(&acme, 1, &case, by(NOW)).await.unwrap());
    assert_eq!((listed(false).await, listed(true).await), (vec![], vec![case.clone()]));
    case.case.archived = false;
    assert!(store.change_case(&acme, 2, &case, by(NOW)).await.unwrap());
    assert_eq!((listed(false).await, listed(true).await), (vec![case], vec![]));
}

pub async fn cases_are_listed_newest_first_in_pages_and_by_machine(store: &EvalStore) {
    let acme = org("listed");
    // Two of them are of the same millisecond.
    for (id, machine, ms) in
        [("golden-a", "r-1", 0), ("golden-b", "r-2", 0), ("golden-c", "r-1", 1)]
    {
        let case = golden_case(id, machine, NOW.plus_ms(ms));
        store.add_case(&acme, &case, by(NOW)).await.unwrap();
    }
    let listed = async |machine: Option<&str>, after: Option<(i64, &str)>, limit| {
        let filter = CaseFilter {
            machine: machine.map(str::to_owned),
            after: after.map(|(ms, id)| (ms, id.to_owned())),
            limit,
            ..CaseFilter::default()
        };
        let found = store.cases(&acme, &filter).await.unwrap();
        found.into_iter().map(|case| case.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(None, None, 2).await, ["golden-c", "golden-b"]);
    assert_eq!(listed(None, Some((NOW.0, "golden-b")), 2).await, ["golden-a"]);
    assert_eq!(listed(None, Some((NOW.0, "golden-a")), 2).await, Vec::<String>::new());
    assert_eq!(listed(Some("r-1"), None, 10).await, ["golden-c", "golden-a"]);
    assert_eq!(listed(Some("r-9"), None, 10).await, Vec::<String>::new());
    let all = CaseFilter { limit: 10, ..CaseFilter::default() };
    assert_eq!(store.cases(&org("rival"), &all).await.unwrap(), []);
}
