//! Checks that a changed audit log is found.

use kernel::audit_checkpoint::{AuditCheckpoint, CheckpointFile, CheckpointSigner, check_against};

use super::*;

on_both!(audit_pages, a_page_in_the_middle_of_the_audit_log_is_not_taken_for_its_end);
async fn a_page_in_the_middle_of_the_audit_log_is_not_taken_for_its_end(store: KernelStore) {
    let acme = org("acme");
    for goal in ["a", "b", "c", "d"] {
        allow(&store, &acme, goal).await;
    }
    let mut numbers = Vec::new();
    for after in 0..5 {
        let page = store.database().audit_log(&acme, after, 1).await.unwrap();
        numbers.extend(page.iter().map(|entry| entry.n));
    }
    assert_eq!(numbers, [1, 2, 3, 4]);
}

on_both!(checkpoints, a_checkpoint_proves_that_the_audit_log_was_cut_or_rewritten);
async fn a_checkpoint_proves_that_the_audit_log_was_cut_or_rewritten(store: KernelStore) {
    let (database, acme) = (store.database(), org("acme"));
    for goal in ["a", "b", "c"] {
        allow(&store, &acme, goal).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let signer = CheckpointSigner::open_or_create(&folder.path().join("key.pem")).unwrap();
    let again = CheckpointSigner::open_or_create(&folder.path().join("key.pem")).unwrap();
    assert_eq!(signer.public_key().to_pem(), again.public_key().to_pem());
    let head = database.audit_heads().await.unwrap().remove(0);
    assert_eq!((head.org.as_str(), head.n), ("acme", 3));
    let checkpoint = signer.sign(&head, NOW).unwrap();
    let file = CheckpointFile::new(folder.path().join("checkpoints.jsonl"));
    let forged = AuditCheckpoint { n: 2, ..checkpoint.clone() };
    file.append(&[checkpoint.clone(), forged]).unwrap();
    assert_eq!(file.read(again.public_key()).unwrap(), (vec![checkpoint.clone()], 1));
    let torn = CheckpointFile::new(folder.path().join("torn.jsonl"));
    std::fs::write(folder.path().join("torn.jsonl"), b"{\"orgId\": \"\xff").unwrap();
    torn.append(std::slice::from_ref(&checkpoint)).unwrap();
    assert_eq!(torn.read(again.public_key()).unwrap(), (vec![checkpoint.clone()], 1));
    allow(&store, &acme, "d").await;
    check_against(database, &checkpoint).await.unwrap();

    let execute = async |sql: &'static str| database::on!(database, pool => sqlx::raw_sql(sql).execute(pool).await.map(drop));
    // What the database itself refuses.
    assert!(execute("DELETE FROM audit").await.is_err());
    assert!(execute("UPDATE audit SET actor = '{}'").await.is_err());
    if database.is_postgres() {
        assert!(execute("TRUNCATE audit").await.is_err());
        execute("ALTER TABLE audit DISABLE TRIGGER ALL").await.unwrap();
    } else {
        execute("DROP TRIGGER audit_not_changed; DROP TRIGGER audit_not_deleted").await.unwrap();
    }
    // Its owner can remove the triggers. Cut off at the end:
    execute("DELETE FROM audit WHERE n > 2").await.unwrap();
    let cut = database.audit_log(&acme, 0, 100).await.unwrap_err().to_string();
    assert!(cut.contains("ends at entry 2, but entry 4 was written"), "{cut}");
    let cut = database.audit_log(&acme, 3, 100).await.unwrap_err().to_string();
    assert!(cut.contains("ends at entry 2, but entry 4 was written"), "{cut}");
    let missing = check_against(database, &checkpoint).await.unwrap_err().to_string();
    assert!(missing.contains("entry 3 of acme") && missing.contains("truncated"), "{missing}");
    // Cut off with its head, and filled again by a chain that is right in itself:
    execute("DELETE FROM audit; DELETE FROM audit_heads").await.unwrap();
    for goal in ["e", "f", "g"] {
        allow(&store, &acme, goal).await;
    }
    assert_eq!(database.audit_log(&acme, 0, 100).await.unwrap().len(), 3);
    let rewritten = check_against(database, &checkpoint).await.unwrap_err().to_string();
    assert!(rewritten.contains("the log was rewritten"), "{rewritten}");
}
