//! Curves, and what retention does with frames whose curve is made or is not.

use contract::*;
use ingestion::IngestStore;
use ingestion::store::Outcome;

use crate::{CHAIN, NOW, commit, due, first, frame, name, origin, seqs};

async fn the_row_of_a_closed_roast_agrees_with_its_frames(store: &IngestStore) {
    // The second arrives without its extra channel and with another one.
    let mut frames: Vec<_> = (1..=5).map(|n| frame(n, 0.0)).collect();
    frames[2].frame.columns.pop();
    commit(store, &frames).await;
    let org = origin().org;
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert!(store.curve(&org, "S-1").await.unwrap().is_none());
    assert_eq!(
        due(store.sessions_without_curve(NOW.plus_ms(60_000), &first(), 10).await.unwrap()).len(),
        1
    );
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    assert!(
        due(store.sessions_without_curve(NOW.plus_ms(60_000), &first(), 10).await.unwrap())
            .is_empty()
    );

    let no = name(store).await;
    let frames = store.frames_of_range(&org, no.chain, 15, 44, 100).await.unwrap();
    let curve = store.curve(&org, "S-1").await.unwrap().unwrap();
    assert_eq!((curve.first_seq, curve.len()), (15, 30));
    let told = frames.iter().flat_map(|f| (0..f.len()).map(move |i| (f, i)));
    for (frame, i) in told.filter(|(f, i)| (15..=44).contains(&f.seq_at(*i))) {
        let at = usize::try_from(frame.seq_at(i) - 15).unwrap();
        assert_eq!(curve.sample_at(at), frame.sample_at(i));
        for channel in Channel::STANDARD {
            assert_eq!(curve.value(&channel, at), frame.value(&channel, i), "{channel:?}");
        }
    }
    let extras: serde_json::Value = serde_json::from_str(&curve.extras.unwrap()).unwrap();
    let inlet = extras["inletC"].as_array().unwrap();
    assert_eq!(inlet.len(), 30);
    assert_eq!((&inlet[4], &inlet[5], &inlet[15]), (&1.5.into(), &().into(), &1.5.into()));
    let quality: serde_json::Value = serde_json::from_str(&curve.quality.unwrap()).unwrap();
    // Sample 3 of each frame is a spike: sequence numbers 23, 33 and 43.
    assert_eq!(quality["btC"], serde_json::json!([[8, 2], [18, 2], [28, 2]]));
    assert!(store.curve(&OrgId::new("rival").unwrap(), "S-1").await.unwrap().is_none());
}

/// The receipt arrives before the frames: a curve of a part of them is not final.
async fn a_curve_of_a_part_is_made_again(store: &IngestStore) {
    commit(store, &(1..=4).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let org = origin().org;
    let receipt = Receipt {
        origin: origin(),
        session: SessionId::new("S-1").unwrap(),
        chain: CHAIN,
        first_frame: 2,
        last_frame: 5,
        first_seq: 15,
        last_seq: 44,
        started: NOW.plus_ms(1_500),
        ended: NOW.plus_ms(4_400),
        digest: Digest([0; 32]),
    };
    let no = name(store).await;
    assert!(!store.store_receipt(no, &receipt, b"signed", NOW).await.unwrap());
    let curve = async || {
        let session = store.session(&org, "S-1").await.unwrap().unwrap();
        store.make_curve(&org, &session, false, NOW).await.unwrap();
        let left =
            due(store.sessions_without_curve(NOW.plus_ms(60_000), &first(), 10).await.unwrap())
                .len();
        (store.curve(&org, "S-1").await.unwrap().unwrap().len(), left)
    };
    assert_eq!(curve().await, (25, 1));
    commit(store, &[frame(5, 0.0)]).await;
    assert_eq!(curve().await, (30, 0));
}

async fn a_roast_gets_its_curve_although_its_gateway_sends_and_lacks_a_frame_for_ever(
    store: &IngestStore,
) {
    commit(store, &[frame(1, 0.0), frame(2, 0.0), frame(3, 0.0), frame(5, 0.0)]).await;
    // The gateway has just sent.
    let quiet = NOW.plus_ms(-15 * 60_000);
    let due = async || due(store.sessions_without_curve(quiet, &first(), 10).await.unwrap()).len();
    assert_eq!(due().await, 0);
    store.mark_closed_seen(NOW.plus_ms(-7 * 3_600_000)).await.unwrap();
    assert_eq!(due().await, 1);
}

async fn retention_takes_frames_and_never_a_roast_without_its_curve(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let (org, later) = (origin().org, NOW.plus_ms(60 * 86_400_000));
    assert_eq!(store.database().drop_frames(later).await.unwrap(), database::Dropped::default());
    assert_eq!(seqs(store).await.len(), 50, "a server whose clock has leapt drops nothing");
    let alive = "UPDATE chains SET seen_ms = $1";
    database::on!(store.database(), pool => database::sqlx::query(alive)
        .bind(later.0 + 1).execute(pool).await.map(drop))
    .unwrap();
    assert_eq!(store.database().drop_frames(later).await.unwrap(), database::Dropped::default());
    assert_eq!(seqs(store).await.len(), 50, "a roast without its curve keeps its frames");
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    assert_eq!(
        store.database().drop_frames(NOW).await.unwrap(),
        database::Dropped::default(),
        "its time has not come"
    );
    store.database().drop_frames(later).await.unwrap();
    assert_eq!(seqs(store).await, Vec::<i64>::new());
    assert_eq!(store.curve(&org, "S-1").await.unwrap().unwrap().len(), 30);
    let again = [frame(3, 0.0)];
    assert_eq!(commit(store, &again).await.0, [Outcome::Duplicate], "its number stays taken");
}

async fn one_old_roast_without_a_curve_does_not_keep_all_frames(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let (org, later) = (origin().org, NOW.plus_ms(60 * 86_400_000));
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    let rival: Origin = "rival/leipzig/r-1".parse().unwrap();
    let no = store.chain_no(&rival, CHAIN, "kid", later.plus_ms(1)).await.unwrap();
    let receipt = Receipt {
        origin: rival,
        session: SessionId::new("S-1970").unwrap(),
        chain: CHAIN,
        first_frame: 1,
        last_frame: 2,
        first_seq: 0,
        last_seq: 10,
        started: EpochMs(0),
        ended: EpochMs(1_000),
        digest: Digest([0; 32]),
    };
    store.store_receipt(no, &receipt, b"signed", later).await.unwrap();
    store.database().drop_frames(later).await.unwrap();
    assert_eq!(seqs(store).await, Vec::<i64>::new());
}

async fn a_roast_that_loses_its_samples_without_a_curve_is_counted(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let later = NOW.plus_ms(200 * 86_400_000);
    database::on!(store.database(), pool => database::sqlx::query("UPDATE chains SET seen_ms = $1")
        .bind(later.0 + 1).execute(pool).await.map(drop))
    .unwrap();
    assert_eq!(store.database().drop_frames(later).await.unwrap().roasts, 1);
    assert_eq!(seqs(store).await, Vec::<i64>::new());
    assert_eq!(store.database().drop_frames(later).await.unwrap().roasts, 0, "once");
}

on_both!(
    the_row_of_a_closed_roast_agrees_with_its_frames,
    a_curve_of_a_part_is_made_again,
    retention_takes_frames_and_never_a_roast_without_its_curve,
    one_old_roast_without_a_curve_does_not_keep_all_frames,
    a_roast_that_loses_its_samples_without_a_curve_is_counted,
    a_roast_gets_its_curve_although_its_gateway_sends_and_lacks_a_frame_for_ever,
);
