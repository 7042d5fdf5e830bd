//! The store on SQLite and on PostgreSQL.

use std::collections::BTreeMap;

use contract::{Actor, ActorKind, OrgId, Origin};
use database::on;
use database::sqlx::query;
use inference::{InferenceStore, Settings};
use service_testbed::{NOW, Postgres, open_database, open_sqlite};

use crate::{origin, threshold};

async fn settings_belong_to_one_machine_and_each_change_is_audited(store: &InferenceStore) {
    let actor = Actor { kind: ActorKind::User, id: "ada".to_owned(), display: None, org: None };
    let save = async |of: &str, settings: Option<&Settings>| {
        store.save_settings(&origin(of), settings, &actor, NOW).await.unwrap()
    };
    let (first, second) = ("acme/leipzig/r-1", "acme/leipzig/r-2");
    let rival = "rival/leipzig/r-1";
    assert_eq!(store.settings(&origin(first)).await.unwrap(), None);
    assert!(save(first, Some(&threshold(190.0))).await);
    assert!(save(first, Some(&threshold(191.5))).await);
    assert!(save(second, Some(&threshold(192.0))).await);
    assert!(save(rival, Some(&threshold(193.0))).await);

    assert_eq!(store.settings(&origin(first)).await.unwrap(), Some(threshold(191.5)));
    assert_eq!(store.settings(&origin(rival)).await.unwrap(), Some(threshold(193.0)));
    let acme = OrgId::new("acme").unwrap();
    let listed = store.org_settings(&acme).await.unwrap();
    let wanted = [("acme|leipzig|r-1", 191.5), ("acme|leipzig|r-2", 192.0)];
    assert_eq!(listed, wanted.map(|(name, fc)| (name.to_owned(), threshold(fc))));
    let mut asked: Vec<_> = (0..250).map(|n| origin(&format!("acme/leipzig/m-{n}"))).collect();
    asked.extend([first, rival].map(origin));
    let all = store.settings_of(&asked).await.unwrap();
    let wanted = [(first, 191.5), (rival, 193.0)];
    assert_eq!(all, BTreeMap::from(wanted.map(|(of, fc)| (origin(of), threshold(fc)))));

    assert!(save(first, None).await);
    assert!(!save(first, None).await, "there is nothing to delete");
    assert_eq!(store.settings(&origin(first)).await.unwrap(), None);
    assert_eq!(store.settings(&origin(rival)).await.unwrap(), Some(threshold(193.0)));

    let log = store.database().audit_log(&acme, 0, 100).await.unwrap();
    let changes: Vec<_> =
        log.iter().map(|entry| (entry.action.as_str(), entry.subject.as_str())).collect();
    let set = "inference.set";
    assert_eq!(changes, [(set, first), (set, first), (set, second), ("inference.unset", first)]);
    assert_eq!(log[1].details["settings"]["fcBtThresholdC"], 191.5);
    assert_eq!(log[1].actor["id"], "ada");
}

async fn settings_follow_the_alias_of_a_machine(store: &InferenceStore) {
    let actor = Actor { kind: ActorKind::User, id: "ada".to_owned(), display: None, org: None };
    let (before, now) = (origin("acme/leipzig/drum-1"), origin("acme/leipzig/Drum-1"));
    let rival = origin("rival/leipzig/Drum-1");
    store.save_settings(&before, Some(&threshold(190.0)), &actor, NOW).await.unwrap();
    let of = async |machine: &Origin| {
        store.settings_of(std::slice::from_ref(machine)).await.unwrap().remove(machine)
    };
    assert_eq!(of(&now).await, None);
    for (machine, current) in [("drum-1", Some("Drum-1")), ("Drum-1", None)] {
        on!(store.database(), pool => query(
            "INSERT INTO machine_names (org_id, site_id, machine_id, successor_id, current_id, \
             updated_ms) VALUES ('acme', 'leipzig', $1, $2, $2, 0)")
            .bind(machine).bind(current).execute(pool).await.map(drop))
        .unwrap();
    }
    assert_eq!(of(&now).await, Some(threshold(190.0)));
    assert_eq!(of(&rival).await, None);
    store.save_settings(&now, Some(&threshold(192.0)), &actor, NOW).await.unwrap();
    assert_eq!(of(&now).await, Some(threshold(192.0)), "its own go before");
    assert_eq!(of(&before).await, Some(threshold(190.0)));
}

#[tokio::test]
async fn settings_belong_to_one_machine_on_sqlite() {
    let (_folder, database) = open_sqlite().await;
    let store = InferenceStore::new(database);
    settings_belong_to_one_machine_and_each_change_is_audited(&store).await;
    settings_follow_the_alias_of_a_machine(&store).await;
}

#[tokio::test]
async fn settings_belong_to_one_machine_on_postgresql() {
    let cluster = Postgres::start().await.unwrap();
    let store = InferenceStore::new(open_database(cluster.url()).await);
    settings_belong_to_one_machine_and_each_change_is_audited(&store).await;
    settings_follow_the_alias_of_a_machine(&store).await;
}
