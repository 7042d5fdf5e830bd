//! What is stored of frames, once, in any order, and how they are read.

use contract::*;
use ingestion::IngestStore;
use ingestion::store::Outcome;
use ingestion::verified_frame::VerifiedFrame;
use proptest::prelude::*;

use crate::{NOW, commit, frame, name, open, origin, seqs};

async fn twice_changes_nothing(store: &IngestStore) {
    let frames: Vec<_> = (1..=3).map(|n| frame(n, 0.0)).collect();
    assert_eq!(commit(store, &frames).await.0, [Outcome::Stored; 3]);
    assert_eq!(commit(store, &frames).await.0, [Outcome::Duplicate; 3]);
    let doubled = [frame(4, 0.0), frame(4, 0.0)];
    assert_eq!(commit(store, &doubled).await.0, [Outcome::Stored, Outcome::Duplicate]);
    assert_eq!(seqs(store).await, (0..40).collect::<Vec<_>>());
}

async fn a_used_number_with_other_content_is_refused(store: &IngestStore) {
    commit(store, &[frame(1, 0.0), frame(2, 0.0)]).await;
    let forged = [frame(2, 7.0)];
    assert_eq!(commit(store, &forged).await.0, [Outcome::Refused(Refusal::SequenceReused)]);
    let mut unlinked = frame(3, 0.0);
    unlinked.frame.previous = Some(Digest([1; 32]));
    assert_eq!(commit(store, &[unlinked]).await.0, [Outcome::Refused(Refusal::BrokenChain)]);
    let no = name(store).await;
    let kept = store.frames_of_range(&origin().org, no.chain, 10, 19, 10).await.unwrap();
    assert_eq!(kept[0].value(&Channel::Bt, 0), Some(151.0), "the first one stays");
    assert_eq!(seqs(store).await.len(), 20);
}

async fn holes_are_known_and_filled(store: &IngestStore) {
    let (outcomes, gaps) = commit(store, &[frame(6, 0.0), frame(1, 0.0), frame(3, 0.0)]).await;
    assert_eq!(outcomes, [Outcome::Stored; 3], "in any order");
    assert_eq!(gaps, [(2, 2), (4, 5)]);
    let (_, gaps) = commit(store, &[frame(5, 0.0), frame(2, 0.0)]).await;
    assert_eq!(gaps, [(4, 4)]);
    let (_, gaps) = commit(store, &[frame(4, 0.0)]).await;
    assert_eq!(gaps, []);
    assert_eq!(seqs(store).await, (0..60).collect::<Vec<_>>());
}

async fn another_tenant_sees_nothing(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let (rival, no) = (OrgId::new("rival").unwrap(), name(store).await);
    assert!(store.session(&rival, "S-1").await.unwrap().is_none());
    assert!(store.events_of(&rival, "S-1").await.unwrap().is_empty());
    assert!(store.machines(&rival).await.unwrap().is_empty());
    assert!(store.frames_of_range(&rival, no.chain, 0, 100, 10).await.unwrap().is_empty());
    assert!(store.frames_after(Some(&rival), 0, 10).await.unwrap().is_empty());
    assert!(store.events_after(Some(&rival), 0, 10).await.unwrap().is_empty());
    assert_eq!(store.frames_after(Some(&origin().org), 0, 10).await.unwrap().len(), 5);
}

async fn the_newest_is_found(store: &IngestStore) {
    commit(store, &(1..=3).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let no = name(store).await;
    let newest = store.newest_frame(&origin().org, no.chain).await.unwrap().unwrap();
    assert_eq!(
        (newest.number, newest.value(&Channel::Bt, 9), newest.value(&Channel::Gas, 0)),
        (3, Some(152.9), None)
    );
    assert!(newest.extras.unwrap().contains("inletC"));
    assert_eq!(store.newest_arrivals(2).await.unwrap().0, [3, 2]);
    assert_eq!(store.machines(&origin().org).await.unwrap()[0].chain_no, no.chain);
}

/// PostgreSQL's text cannot hold a NUL: such a note must not stop a batch.
async fn a_note_with_a_nul_stops_nothing(store: &IngestStore) {
    let mut marked = frame(1, 0.0);
    let mut event = frame(2, 0.0).frame.events.remove(0);
    event.note = Some("a\0b".to_owned());
    marked.frame.events.push(event);
    assert_eq!(commit(store, &[marked]).await.0, [Outcome::Stored]);
    let events = store.events_of(&origin().org, "S-1").await.unwrap();
    assert_eq!(events[0].note.as_deref(), Some("a\u{fffd}b"));
}

/// Frame `n` of a roast of six frames, each with as many samples as a frame may have.
fn large(n: u64) -> VerifiedFrame {
    let samples = u32::try_from(contract::frame::SAMPLES_MAX).unwrap();
    let mut verified = frame(1, 0.0);
    let digest = |n: u64| Digest([u8::try_from(n).unwrap(); 32]);
    verified.digest = digest(n);
    let f = &mut verified.frame;
    f.number = n;
    f.previous = (n > 1).then(|| digest(n - 1));
    f.first_seq = (n - 1) * u64::from(samples);
    f.wall = NOW.plus_ms(f.first_seq as i64 * 100);
    f.mono_ms = 1000 + f.first_seq * 100;
    f.offsets_ms = (0..samples).map(|i| i * 100).collect();
    let values = vec![Some(150.0); contract::frame::SAMPLES_MAX];
    f.columns = vec![Column { channel: Channel::Bt, values, quality: vec![] }];
    let (mut charge, mut drop) = (frame(2, 0.0).frame.events, frame(5, 0.0).frame.events);
    charge[0].seq = 0;
    drop[0].seq = 6 * u64::from(samples) - 1;
    f.events = match n {
        1 => charge,
        6 => drop,
        _ => vec![],
    };
    verified
}

async fn large_frames_are_read_in_parts_and_none_is_lost(store: &IngestStore) {
    const SAMPLES: usize = 6 * contract::frame::SAMPLES_MAX;
    commit(store, &(1..=6).map(large).collect::<Vec<_>>()).await;
    let (org, no) = (origin().org, name(store).await);
    let read = store.frames_of_range(&org, no.chain, 0, 1 << 40, 2_000).await.unwrap();
    assert_eq!(read.len(), 4, "not more at once");
    let rest = ingestion::store::end_of(&read).unwrap();
    assert_eq!(store.frames_of_range(&org, no.chain, rest, 1 << 40, 2_000).await.unwrap().len(), 2);
    assert_eq!(store.frames_after(None, 0, 2_000).await.unwrap().len(), 4);
    let some = store.frames_between(None, (None, None), (1, 4), (10, 5_000)).await.unwrap();
    assert_eq!(some.len(), 1);
    assert_eq!(store.frames_at(Some(&org), &[2, 3, 4, 5, 6, 7]).await.unwrap().len(), 4);
    assert_eq!(store.newest_frames(&org, no.chain, 1_000).await.unwrap().len(), 1);
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!(store.totals(&org, &session).await.unwrap().points, SAMPLES as i64);
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    assert_eq!(store.curve(&org, "S-1").await.unwrap().unwrap().len(), SAMPLES);
}

/// Single precision holds no number of this size: an infinity would spread to totals and JSON.
async fn a_value_beyond_single_precision_is_stored_as_missing(store: &IngestStore) {
    let mut verified = frame(1, 0.0);
    verified.frame.columns[0].values[4] = Some(f64::MAX);
    assert_eq!(commit(store, &[verified]).await.0, [Outcome::Stored]);
    let no = name(store).await;
    let stored = store.frames_of_range(&origin().org, no.chain, 0, 9, 10).await.unwrap();
    let values = [3, 4, 5].map(|i| stored[0].value(&Channel::Bt, i));
    assert_eq!(values, [Some(150.3), None, Some(150.5)]);
}

/// A backup is restored, and another tenant's chain gets the number that is cached.
async fn a_number_that_names_another_chain_by_now_is_not_used(store: &IngestStore) {
    commit(store, &[frame(1, 0.0)]).await;
    let no = name(store).await;
    database::on!(store.database(), pool => database::sqlx::query(
        "UPDATE chains SET org_id = 'rival' WHERE chain_no = $1")
        .bind(no.chain).execute(pool).await.map(drop))
    .unwrap();
    let next = [frame(2, 0.0)];
    assert!(store.commit(&[no], &next, NOW).await.is_err(), "nothing is mixed");
    assert_eq!(seqs(store).await.len(), 10);
}

async fn an_invalid_row_is_distinguished_from_an_unavailable_database(store: &IngestStore) {
    let sql = if store.database().is_postgres() {
        "ALTER TABLE frames ADD CONSTRAINT odd CHECK (first_seq <> 10)"
    } else {
        "CREATE TRIGGER odd BEFORE INSERT ON frames WHEN NEW.first_seq = 10 \
         BEGIN SELECT RAISE(ABORT, 'odd'); END"
    };
    database::on!(store.database(), pool => database::sqlx::query(sql).execute(pool).await.map(drop))
        .unwrap();
    let no = name(store).await;
    let error = store.commit(&[no], &[frame(2, 0.0)], NOW).await.unwrap_err();
    assert!(error.is_about_data(), "{error}");
    commit(store, &[frame(1, 0.0)]).await;
    store.database().close().await;
    let error = store.commit(&[no], &[frame(3, 0.0)], NOW).await.unwrap_err();
    assert!(!error.is_about_data(), "{error}");
}

on_both!(
    twice_changes_nothing,
    a_used_number_with_other_content_is_refused,
    holes_are_known_and_filled,
    another_tenant_sees_nothing,
    the_newest_is_found,
    a_note_with_a_nul_stops_nothing,
    large_frames_are_read_in_parts_and_none_is_lost,
    a_value_beyond_single_precision_is_stored_as_missing,
    a_number_that_names_another_chain_by_now_is_not_used,
    an_invalid_row_is_distinguished_from_an_unavailable_database,
);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Batches of any frames, again and again, in any order: each sample is there once.
    #[test]
    fn any_delivery_stores_each_frame_once(
        deliveries in prop::collection::vec(prop::collection::vec(1..12_u64, 1..8), 1..10)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = open(format!("sqlite:{}", folder.path().join("t.db").display())).await;
            let mut sent = std::collections::BTreeSet::new();
            for batch in &deliveries {
                let frames: Vec<_> = batch.iter().map(|n| frame(*n, 0.0)).collect();
                commit(&store, &frames).await;
                sent.extend(batch.iter().copied());
            }
            let expected: Vec<i64> =
                sent.iter().flat_map(|n| (*n as i64 - 1) * 10..*n as i64 * 10).collect();
            assert_eq!(seqs(&store).await, expected);
        });
    }
}
