//! What a session is made of: its bounds, its events, its samples.

use contract::*;
use ingestion::IngestStore;
use ingestion::store::{Outcome, SessionFilter};
use ingestion::verified_frame::VerifiedFrame;

use crate::{NOW, commit, due, first, frame, name, origin, told};

async fn a_roast_is_the_same_in_any_order_of_arrival(store: &IngestStore) {
    for n in [5, 4, 6, 2, 1, 3] {
        commit(store, &[frame(n, 0.0)]).await;
    }
    let org = origin().org;
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!((session.first_seq, session.last_seq), (Some(15), Some(44)));
    assert_eq!(session.started_ms, NOW.0 + 1500);
    assert_eq!(session.ended_ms, Some(NOW.0 + 4400));
    assert_eq!((session.fc_s, session.drop_s), (Some(1.8), Some(2.9)));
    assert_eq!(session.status, "CLOSED");
    let totals = store.totals(&org, &session).await.unwrap();
    assert_eq!((totals.points, totals.verified, totals.max_bt_c), (30, 30, Some(154.4)));
    let kinds: Vec<_> =
        store.events_of(&org, "S-1").await.unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["CHARGE", "FC", "DROP"]);
    let listed =
        store.sessions(&org, &SessionFilter { limit: 10, ..SessionFilter::default() }).await;
    assert_eq!(listed.unwrap().len(), 1);
}

async fn a_sample_taken_before_drop_and_sent_after_it_belongs_to_the_roast(store: &IngestStore) {
    let org = origin().org;
    for (second, drop) in [(0, false), (1, false), (3, true), (2, false)] {
        commit(store, &[told(second, second == 0, drop)]).await;
    }
    let points = async || {
        let session = store.session(&org, "S-1").await.unwrap().unwrap();
        assert_eq!((session.status.as_str(), session.drop_s), ("CLOSED", Some(3.0)));
        store.totals(&org, &session).await.unwrap().points
    };
    assert_eq!(points().await, 3);
    // Its curve was final until the very last sample came; samples of the cooling afterwards are
    // not part of it.
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    store.make_curve(&org, &session, true, NOW).await.unwrap();
    let curveless = async || {
        due(store.sessions_without_curve(NOW.plus_ms(60_000), &first(), 10).await.unwrap()).len()
    };
    assert_eq!(curveless().await, 0);
    commit(store, &[told(50, false, false)]).await;
    assert_eq!((points().await, curveless().await), (3, 0));
    // The samples before it come with it: a second too much is better than one too few.
    commit(store, &[told(3, false, false)]).await;
    assert_eq!((points().await, curveless().await), (5, 1));
    // Too late to be a message out of order; it is stored, and changes no session.
    commit(store, &[told(70, false, false)]).await;
    commit(store, &[VerifiedFrame { digest: Digest([7; 32]), ..told(1, false, false) }]).await;
    assert_eq!(points().await, 5);
}

/// Two instances have read the first messages of a roast at once: each says that it opens the roast.
async fn a_roast_that_two_instances_open_keeps_all_its_samples(store: &IngestStore) {
    for second in 0..3 {
        commit(store, &[told(second, second < 2, false)]).await;
    }
    let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
    assert_eq!((session.first_seq, session.last_seq), (Some(1), None), "it runs");
    commit(store, &[told(3, false, true)]).await;
    let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
    assert_eq!(store.totals(&origin().org, &session).await.unwrap().points, 3);
}

/// A gateway, or the thief of its key, sends further events of a session whose receipt is complete.
async fn a_complete_session_is_not_rewritten(store: &IngestStore) {
    let frames: Vec<_> = (1..=5).map(|n| frame(n, 0.0)).collect();
    commit(store, &frames).await;
    let org = origin().org;
    let complete = contract::session::Completeness::Complete;
    store.set_completeness("acme", "S-1", complete, None).await.unwrap();
    let read = async || {
        let row = store.session(&org, "S-1").await.unwrap().unwrap();
        (row.started_ms, row.ended_ms, row.drop_s, row.first_seq, row.last_seq, row.completeness)
    };
    let before = read().await;
    let mut forged = frame(6, 0.0);
    let mut charge = frame(2, 0.0).frame.events.remove(0);
    let mut drop = frame(5, 0.0).frame.events.remove(0);
    (charge.seq, charge.at) = (51, NOW.plus_ms(5_100));
    (drop.seq, drop.at, drop.elapsed_s) = (59, NOW.plus_ms(5_900), 50.0);
    forged.frame.events = vec![charge, drop];
    assert_eq!(commit(store, &[forged]).await.0, [Outcome::Stored], "its samples are kept");
    assert_eq!(read().await, before);
    let events = store.events_of(&org, "S-1").await.unwrap();
    assert_eq!(events.len(), 3, "{events:?}");
}

/// A chain with many open sessions has one that runs, and takes no place of another's.
async fn the_newest_running_session_of_each_chain_is_found(store: &IngestStore) {
    let mut second = frame(3, 0.0);
    let mut charge = frame(2, 0.0).frame.events.remove(0);
    (charge.seq, charge.at) = (25, NOW.plus_ms(2_500));
    charge.session = SessionId::new("S-2").unwrap();
    second.frame.events = vec![charge];
    commit(store, &[frame(1, 0.0), frame(2, 0.0), second]).await;
    let chain = name(store).await.chain;
    let running = store.running_sessions([chain, chain + 1, chain]).await.unwrap();
    assert_eq!(running.len(), 1);
    assert_eq!(running[&chain].session_id, "S-2");
    assert!(store.running_sessions([]).await.unwrap().is_empty());
    let many = store.running_sessions(chain..chain + 1_000).await.unwrap();
    assert_eq!(many.len(), 1, "more chains than one statement has selects");
}

/// The end of the session is not known: it ends where the next session of its chain begins.
async fn a_roast_without_an_end_does_not_take_the_next_one(store: &IngestStore) {
    let mut frames: Vec<_> = (1..=8).map(|n| frame(n, 0.0)).collect();
    frames[4].frame.events.clear();
    let mut next = frames[1].frame.events[0].clone();
    (next.session, next.seq) = (SessionId::new("S-2").unwrap(), 61);
    next.at = NOW.plus_ms(6_100);
    frames[6].frame.events.push(next);
    commit(store, &frames).await;
    let org = origin().org;
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!(store.sample_range(&session).await.unwrap(), (15, 60));
    assert_eq!(store.totals(&org, &session).await.unwrap().points, 46);
}

/// An agent that was started in mid-roast sends CHARGE, FC and DROP together when the roast ends. Its
/// CHARGE is an estimate before its first sample.
async fn a_roast_that_began_before_its_agent_is_stored_and_marked(store: &IngestStore) {
    let mut frames: Vec<_> = (1..=5).map(|n| frame(n, 0.0)).collect();
    let mut events: Vec<MachineEvent> =
        frames.iter_mut().flat_map(|verified| verified.frame.events.drain(..)).collect();
    for event in &mut events {
        event.source = EventSource::Inferred;
        event.elapsed_s = event.at.ms_since(NOW.plus_ms(-60_000)) as f64 / 1000.0;
    }
    let charge = &mut events[0];
    (charge.seq, charge.at, charge.elapsed_s) = (0, NOW.plus_ms(-60_000), 0.0);
    charge.note = Some(contract::event::BEGUN_BEFORE_NOTE.to_owned());
    frames[4].frame.events = events;
    commit(store, &frames).await;
    let (org, no) = (origin().org, name(store).await);
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!((session.status.as_str(), session.begun_before), ("CLOSED", 1));
    assert_eq!((session.first_seq, session.last_seq), (Some(0), Some(44)));
    assert!((session.started_ms - NOW.0 + 60_000).abs() <= 5_000, "{}", session.started_ms);
    assert_eq!((session.fc_s, session.duration_s()), (Some(63.3), Some(64.4)));
    let stored = store.frames_of_range(&org, no.chain, 0, 44, 100).await.unwrap();
    assert_eq!(session.elapsed_ms(&stored[0], 0), 60_000, "its first samples are missing");
}

on_both!(
    a_roast_that_began_before_its_agent_is_stored_and_marked,
    a_roast_is_the_same_in_any_order_of_arrival,
    a_sample_taken_before_drop_and_sent_after_it_belongs_to_the_roast,
    a_roast_that_two_instances_open_keeps_all_its_samples,
    a_complete_session_is_not_rewritten,
    the_newest_running_session_of_each_chain_is_found,
    a_roast_without_an_end_does_not_take_the_next_one,
);
