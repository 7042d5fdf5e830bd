//! The dates and durations of sessions, whatever the clocks of gateways say.

use contract::*;
use ingestion::IngestStore;
use ingestion::verified_frame::VerifiedFrame;

use crate::{CHAIN, NOW, commit, due, first, frame, name, origin};

/// Frames of a gateway that started in 1970, and whose clock was set with the sixth.
fn waking(n: u64) -> VerifiedFrame {
    let mut verified = frame(n, 0.0);
    let f = &mut verified.frame;
    f.boot_id = 77;
    if n < 6 {
        f.clock = ClockQuality::FreeRunning;
        f.wall = EpochMs((n as i64 - 1) * 1000);
        for event in &mut f.events {
            event.at = EpochMs(event.at.0 - NOW.0);
        }
    }
    verified
}

async fn dates_are_put_right_in_any_order(store: &IngestStore) {
    let no = name(store).await;
    let boot = 77;
    let offset = NOW.0 - 1000; // of frame(n): wall is NOW + (n-1) s, mono n s
    // First frames whose time is not known, then the one with the time, then more frames without
    // one.
    commit(store, &[waking(1), waking(2), waking(4), waking(5)]).await;
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 0, "the time is not known yet");
    let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
    assert!(session.started_ms < 10_000, "in 1970");
    commit(store, &[waking(6)]).await;
    store.note_offset(no.chain, boot, offset).await.unwrap();
    store.note_offset(no.chain, boot, 5).await.unwrap();
    assert_eq!(store.undated_boots().await.unwrap(), [(no.chain, boot)]);
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 4);
    commit(store, &[waking(3)]).await;
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 0, "dated when it was stored");
    assert_eq!(store.undated_boots().await.unwrap(), []);
    // All is as if the clock had been right from the start; the signed bytes are unchanged.
    let frames = store.frames_of_range(&origin().org, no.chain, 0, 1 << 40, 100).await.unwrap();
    let starts: Vec<i64> = frames.iter().map(|f| f.t0_ms - NOW.0).collect();
    assert_eq!(starts, [0, 1000, 2000, 3000, 4000, 5000]);
    let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
    assert_eq!(session.started_ms, NOW.0 + 1500);
    assert_eq!(session.ended_ms, Some(NOW.0 + 4400));
    let events = store.events_of(&origin().org, "S-1").await.unwrap();
    let at: Vec<i64> = events.iter().map(|event| event.at_ms - NOW.0).collect();
    assert_eq!(at, [1500, 3300, 4400]);
    let digests = store.digests(no.chain, 1, 2).await.unwrap();
    assert_eq!(digests, [waking(1).digest.0.to_vec(), waking(2).digest.0.to_vec()]);
}

/// Frame `n` with its dates moved by `shift_ms`, with other events: (kind, sample, elapsed seconds,
/// session).
fn shifted(n: u64, shift_ms: i64, events: &[(EventKind, u64, f64, &str)]) -> VerifiedFrame {
    let mut verified = frame(n, 0.0);
    let sample = frame(2, 0.0).frame.events.remove(0);
    let event = |(kind, seq, elapsed_s, session): &(EventKind, u64, f64, &str)| MachineEvent {
        kind: *kind,
        seq: *seq,
        at: NOW.plus_ms(*seq as i64 * 100 + shift_ms),
        elapsed_s: *elapsed_s,
        session: SessionId::new(*session).unwrap(),
        ..sample.clone()
    };
    verified.frame.events = events.iter().map(event).collect();
    verified.frame.wall = verified.frame.wall.plus_ms(shift_ms);
    verified.frame.clock = ClockQuality::FreeRunning;
    verified.received = NOW.plus_ms(n as i64 * 1000);
    verified
}

const DAY_MS: i64 = 86_400_000;

/// The clock of a gateway is set back by two weeks, or ahead, between two roasts.
async fn sample_numbers_order_roasts_whatever_their_dates(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    let chain = name(store).await.chain;
    let running = async || {
        store.running_sessions([chain]).await.unwrap().remove(&chain).map(|s| s.session_id)
    };
    let abandoned = async || -> Vec<String> {
        let silent = (NOW.plus_ms(-1), NOW.plus_ms(-1));
        let found = due(store.abandoned_sessions(silent, &first(), 10).await.unwrap());
        found.into_iter().map(|session| session.session_id).collect()
    };
    for (roast, shift_ms) in (2..).zip([-14 * DAY_MS, 30 * DAY_MS, 0, -NOW.0]) {
        let (n, session) = (roast + 4, format!("S-{roast}"));
        let charge = [(EventKind::Charge, n * 10 - 5, 0.0, session.as_str())];
        commit(store, &[shifted(n, shift_ms, &charge)]).await;
        assert_eq!(running().await.as_deref(), Some(session.as_str()));
        let before: Vec<String> = (2..roast).map(|n| format!("S-{n}")).collect();
        let mut ended = abandoned().await;
        ended.sort();
        assert_eq!(ended, before, "only roasts before {session} have ended");
    }
}

/// A frame of a roast across a restart. The clock is 300 days ahead in the first boot and never set;
/// the second boot counts the roast on, and has a right clock after it.
fn restarted(n: u64) -> VerifiedFrame {
    let events: &[_] = match n {
        2 => &[(EventKind::Charge, 15, 0.0, "S-1")],
        4 => &[(EventKind::Fc, 33, 1.8, "S-1")],
        5 => &[(EventKind::Drop, 44, 2.9, "S-1")],
        _ => &[],
    };
    let mut verified = shifted(n, if n < 6 { 300 * DAY_MS } else { 0 }, events);
    let frame = &mut verified.frame;
    (frame.boot_id, frame.mono_ms) = if n < 4 { (1, n * 1000) } else { (2, (n - 3) * 1000) };
    if n == 6 {
        frame.clock = ClockQuality::Synchronised;
    }
    verified
}

/// Checks that all times of session `S-1` are those that its gateway measured.
async fn check_times(store: &IngestStore, case: &str) {
    let (org, no) = (origin().org, name(store).await);
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    assert_eq!((session.status.as_str(), session.duration_s()), ("CLOSED", Some(2.9)), "{case}");
    let ended = session.ended().unwrap();
    assert_eq!(ended.0 - session.started_ms, 2_900, "{case}");
    assert_eq!(session.ended_ms, Some(ended.0), "{case}");
    let near = |at: i64, expected: i64| (at - NOW.0 - expected).abs() <= 5_000;
    assert!(near(session.started_ms, 1_500), "{case}: {}", EpochMs(session.started_ms));
    for frame in store.frames_of_range(&org, no.chain, 15, 44, 100).await.unwrap() {
        for i in (0..frame.len()).filter(|i| (15..=44).contains(&frame.seq_at(*i))) {
            let expected = (frame.seq_at(i) - 15) * 100;
            assert_eq!(session.elapsed_ms(&frame, i), expected, "{case}: {}", frame.number);
        }
        assert!(near(frame.t0_ms, (frame.number - 1) * 1000), "{case}: {}", frame.number);
    }
    let events = store.events_of(&org, "S-1").await.unwrap();
    let at: Vec<i64> = events.iter().map(|event| event.at_ms - session.started_ms).collect();
    assert_eq!(at, [0, 1_800, 2_900], "{case}");
    store.make_curve(&org, &session, false, NOW).await.unwrap();
    let curve = store.curve(&org, "S-1").await.unwrap().unwrap();
    assert_eq!(curve.t0_ms, session.started_ms, "{case}");
    assert_eq!(curve.offsets_ms, (0..30).map(|i| i * 100).collect::<Vec<_>>(), "{case}");
}

async fn a_roast_across_a_restart_keeps_its_times_while_the_clock_was_ahead(store: &IngestStore) {
    for n in [6, 5, 2, 4, 1, 3] {
        commit(store, &[restarted(n)]).await;
    }
    check_times(store, "as it arrived").await;
    let chain = name(store).await.chain;
    // The second boot is dated by its clock, the first one by the arrival of its frames.
    store.note_offset(chain, 2, NOW.0 + 2_000).await.unwrap();
    assert_eq!(store.correct_dates(chain, 2).await.unwrap(), 2);
    check_times(store, "one boot is dated").await;
    store.note_estimate(chain, 1, NOW.0 - 700).await.unwrap();
    assert_eq!(store.correct_dates(chain, 1).await.unwrap(), 3);
    check_times(store, "both boots are dated").await;
}

/// The clock chip of a gateway keeps the local time of a zone with a half hour.
async fn a_clock_that_is_not_set_is_dated_by_an_estimate_until_it_is_set(store: &IngestStore) {
    const ZONE_MS: i64 = 19_800_000;
    let local = |n: u64| {
        let events = frame(n, 0.0).frame.events;
        let mut verified = shifted(n, -ZONE_MS, &[]);
        verified.frame.events = events;
        for event in &mut verified.frame.events {
            event.at = event.at.plus_ms(-ZONE_MS);
        }
        verified
    };
    let (org, no) = (origin().org, name(store).await);
    let boot = -1; // u64::MAX as a signed number
    let started = async || {
        let session = store.session(&org, "S-1").await.unwrap().unwrap();
        let marked = if session.start_estimated == 1 { "estimated" } else { "stated" };
        (session.started_ms - NOW.0, marked)
    };
    let codes = async || -> Vec<i64> {
        database::on!(store.database(), pool => database::sqlx::query_scalar(
            "SELECT DISTINCT CAST(clock AS BIGINT) FROM frames ORDER BY 1")
            .fetch_all(pool).await)
        .unwrap()
    };
    commit(store, &(1..=5).map(local).collect::<Vec<_>>()).await;
    assert_eq!((started().await, codes().await), ((1_500 - ZONE_MS, "stated"), vec![1]));
    store.note_estimate(no.chain, boot, NOW.0 + 2_000).await.unwrap(); // three seconds late
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 5);
    store.note_estimate(no.chain, boot, NOW.0 + 9_000).await.unwrap();
    commit(store, &[local(6)]).await;
    assert_eq!((started().await, codes().await), ((4_500, "estimated"), vec![4]));
    assert_eq!(store.undated_boots().await.unwrap(), []);
    check_times(store, "estimated").await;
    store.note_offset(no.chain, boot, NOW.0 - 1_000).await.unwrap();
    assert_eq!(store.correct_dates(no.chain, boot).await.unwrap(), 6);
    store.note_estimate(no.chain, boot, NOW.0 - 9_000).await.unwrap();
    assert_eq!((started().await, codes().await), ((1_500, "stated"), vec![3]));
    check_times(store, "set").await;
}

async fn an_estimate_that_another_instance_has_replaced_dates_no_frame(store: &IngestStore) {
    let (no, boot, other) = (name(store).await, -1, IngestStore::new(store.database().clone()));
    commit(store, &[shifted(1, -19_800_000, &[])]).await;
    store.note_estimate(no.chain, boot, NOW.0 + 9_000).await.unwrap();
    other.note_offset(no.chain, boot, NOW.0 - 1_000).await.unwrap();
    // Its cache still holds the estimate.
    commit(store, &[shifted(2, -19_800_000, &[])]).await;
    store.correct_dates(no.chain, boot).await.unwrap();
    let frames = store.frames_of_range(&origin().org, no.chain, 0, 19, 10).await.unwrap();
    let dates: Vec<_> = frames.iter().map(|frame| frame.sample_at(0)).collect();
    assert_eq!(dates, [NOW, NOW.plus_ms(1_000)]);
}

/// A clock in 2106, even if the gateway says that it is synchronised.
async fn no_date_is_stored_in_the_future(store: &IngestStore) {
    let leap_ms = 4_294_967_296_000 - NOW.0;
    let (org, no) = (origin().org, name(store).await);
    let receipt = Receipt {
        origin: origin(),
        session: SessionId::new("S-2").unwrap(),
        chain: CHAIN,
        first_frame: 7,
        last_frame: 8,
        first_seq: 65,
        last_seq: 75,
        started: NOW.plus_ms(leap_ms),
        ended: NOW.plus_ms(leap_ms + 1_000),
        digest: Digest([0; 32]),
    };
    store.store_receipt(no, &receipt, b"signed", NOW).await.unwrap();
    let session = store.session(&org, "S-2").await.unwrap().unwrap();
    assert_eq!((session.ended(), session.duration_s()), (Some(NOW), Some(1.0)));
    for n in [1, 2, 3, 4, 5] {
        let mut leapt = shifted(n, leap_ms, &[]);
        leapt.frame.events = frame(n, 0.0).frame.events;
        for event in &mut leapt.frame.events {
            event.at = event.at.plus_ms(leap_ms);
        }
        leapt.frame.clock = ClockQuality::Synchronised;
        commit(store, &[leapt]).await;
    }
    check_times(store, "in 2106").await;
}

/// CHARGE is detected in the frame after that of its sample, and the clock is set in between.
async fn a_clock_set_between_charge_and_its_detection_changes_no_time(store: &IngestStore) {
    const STEP_MS: i64 = -3_600_000;
    let at = |seq: i64| NOW.plus_ms(seq * 100 + STEP_MS);
    let mut frames: Vec<_> = (1..=5).map(|n| frame(n, 0.0)).collect();
    let charge = frames[1].frame.events.remove(0);
    frames[2].frame.events.push(charge);
    for verified in &mut frames[2..] {
        verified.frame.wall = verified.frame.wall.plus_ms(STEP_MS);
        for event in &mut verified.frame.events {
            event.at = at(event.seq as i64);
        }
    }
    commit(store, &frames).await;
    let (org, no) = (origin().org, name(store).await);
    let session = store.session(&org, "S-1").await.unwrap().unwrap();
    for frame in store.frames_of_range(&org, no.chain, 15, 44, 100).await.unwrap() {
        for i in (0..frame.len()).filter(|i| (15..=44).contains(&frame.seq_at(*i))) {
            assert_eq!(session.elapsed_ms(&frame, i), (frame.seq_at(i) - 15) * 100);
        }
    }
    assert_eq!(session.duration_s(), Some(2.9));
}

/// Earlier versions stored such rows.
async fn a_duration_stored_by_dates_that_contradict_each_other_is_not_shown(store: &IngestStore) {
    commit(store, &(1..=5).map(|n| frame(n, 0.0)).collect::<Vec<_>>()).await;
    for shift_ms in [25_919_959_000_i64, -2 * 25_919_959_000] {
        database::on!(store.database(), pool => database::sqlx::query(
            "UPDATE sessions SET started_ms = started_ms + $1")
            .bind(shift_ms).execute(pool).await.map(drop))
        .unwrap();
        let session = store.session(&origin().org, "S-1").await.unwrap().unwrap();
        assert_eq!(session.duration_s(), Some(2.9));
        assert_eq!(session.ended(), Some(EpochMs(session.started_ms + 2_900)));
    }
}

/// A gateway's clock was set during the roast: the receipt's two dates are of two clocks.
async fn a_receipt_whose_dates_are_decades_apart_measures_nothing(store: &IngestStore) {
    let no = name(store).await;
    for (started, ended) in [(EpochMs(0), NOW), (NOW, EpochMs(253_402_207_200_000))] {
        let receipt = Receipt {
            origin: origin(),
            session: SessionId::new(format!("S-{}", started.0)).unwrap(),
            chain: CHAIN,
            first_frame: 2,
            last_frame: 5,
            first_seq: 15,
            last_seq: 44,
            started,
            ended,
            digest: Digest([0; 32]),
        };
        store.store_receipt(no, &receipt, b"signed", NOW).await.unwrap();
        let session = store.session(&origin().org, receipt.session.as_str()).await.unwrap();
        let session = session.unwrap();
        assert_eq!((session.started_ms, session.duration_s()), (NOW.0, Some(0.0)), "{started}");
    }
}

on_both!(
    dates_are_put_right_in_any_order,
    sample_numbers_order_roasts_whatever_their_dates,
    a_roast_across_a_restart_keeps_its_times_while_the_clock_was_ahead,
    a_clock_that_is_not_set_is_dated_by_an_estimate_until_it_is_set,
    an_estimate_that_another_instance_has_replaced_dates_no_frame,
    no_date_is_stored_in_the_future,
    a_clock_set_between_charge_and_its_detection_changes_no_time,
    a_duration_stored_by_dates_that_contradict_each_other_is_not_shown,
    a_receipt_whose_dates_are_decades_apart_measures_nothing,
);
