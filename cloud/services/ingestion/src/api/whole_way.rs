//! Tests of messages the whole way on SQLite: arbitrary frames, receipts and JSON messages, valid and
//! hostile, from their bytes to what clients read.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // as the store does

mod arbitrary;

use std::cell::Cell;
use std::panic;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use contract::envelope::PayloadKind;
use contract::{Actor, ActorKind, ChainId, Channel, EpochMs, Frame, OrgId, Origin, Receipt};
use http_stack::auth::{Caller, Role};
use proptest::prelude::ProptestConfig;
use proptest::sample::Index;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Value, json};
use service::clock::Clock;
use tower::ServiceExt as _;
use trust::{Algorithm, CONTENT_FRAME, CONTENT_RECEIPT, FileKey};

use self::arbitrary::{Delivery, NUMBER_MAX, delivery};
use super::tests::state_of;
use crate::clock_correction::{self, ClockCorrection};
use crate::keys::KeyCache;
use crate::legacy::{self, LegacyError};
use crate::receipts::{CurveSweep, Reconciler};
use crate::session_closed::SessionSweeps;
use crate::store::{ArrivedFrame, FrameRow, IngestStore, Outcome};
use crate::verified_frame::{TrustedKey, VerifiedFrame};
use crate::verify::UnverifiedMessage;
use crate::{dry_run, row_json};

const NOW: EpochMs = EpochMs(1_760_000_000_000);
const HOUR_MS: i64 = 3_600_000;
const CHAIN: ChainId = ChainId([9; 16]);
/// No elapsed time is longer: the largest number as milliseconds is less.
const SECONDS_MAX: f64 = 1e13;

thread_local! {
    /// The panics of this thread, also those that were caught.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

fn origin(org: &str, machine: &str) -> Origin {
    format!("{org}/leipzig/{machine}").parse().unwrap()
}

/// Numbers the frames and links each to the one before.
fn chained(origin: &Origin, frames: Vec<(Option<u64>, Frame)>) -> Vec<Frame> {
    let (mut previous, mut next_seq, mut number) = (None, 0, 1);
    let link = |(first_seq, frame): (Option<u64>, Frame)| {
        let first_seq = first_seq.unwrap_or(next_seq);
        let frame = Frame { origin: origin.clone(), number, previous, first_seq, ..frame };
        previous = Some(trust::sha256_digest(&frame.encode()));
        next_seq = (first_seq + frame.sample_count() as u64).min(NUMBER_MAX);
        number += 1;
        frame
    };
    frames.into_iter().map(link).collect()
}

/// Checks that no time is negative or saturated, and that no number was infinite: JSON has null in
/// its place.
fn check_json(value: &Value) {
    const SECONDS: [&str; 6] = [
        "elapsedSeconds",
        "durationSeconds",
        "fcSeconds",
        "dropSeconds",
        "durationSec",
        "lastTelemetryDeltaSec",
    ];
    match value {
        Value::Array(items) => items.iter().for_each(check_json),
        Value::Object(fields) => {
            // Only the status of a machine has a null for a missing value.
            let is_status = fields.contains_key("lastSeenAt");
            for (name, value) in fields {
                if SECONDS.contains(&name.as_str()) {
                    let in_range = |s: f64| (0.0..SECONDS_MAX).contains(&s);
                    assert!(value.as_f64().is_some_and(in_range), "{name}: {value}");
                }
                if ["btC", "etC", "gasPct", "maxBtC"].contains(&name.as_str()) && !is_status {
                    assert!(value.is_number(), "{name}: {value}");
                }
                if name != "extras" {
                    check_json(value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Checks what a frame makes without a database.
fn check_dry_run(frame: &Frame) {
    let views = dry_run::frame_views(&frame.encode(), NOW).unwrap();
    assert!(views.points.len() >= frame.sample_count());
    for point in views.points {
        check_json(&json!(point));
    }
    for message in views.messages {
        check_json(&serde_json::from_str(&message).unwrap());
    }
    assert!(views.durations_s.iter().all(|s| (0.0..SECONDS_MAX).contains(s)));
}

/// Checks that a row has what its frame had, with values in single precision.
fn check_row(row: &FrameRow, frame: &Frame) {
    let numbers = [row.number, row.first_seq, row.mono_ms];
    let sent = [frame.number, frame.first_seq, frame.mono_ms].map(|n| i64::try_from(n).unwrap());
    assert_eq!(numbers, sent);
    assert_eq!(row.boot, Some(frame.boot_id.cast_signed()));
    let offsets: Vec<i32> = frame.offsets_ms.iter().map(|ms| *ms as i32).collect();
    assert_eq!(row.offsets_ms, offsets);
    for channel in Channel::STANDARD {
        for i in 0..frame.sample_count() {
            let sent = frame.value(&channel, i).map(|v| v as f32).filter(|v| v.is_finite());
            let sent = sent.map(|v| (f64::from(v) * 10_000.0).round() / 10_000.0);
            assert_eq!(row.value(&channel, i), sent, "{} {i}", channel.as_str());
        }
    }
}

/// The cloud's ingestion, and the gateway whose messages it receives.
struct Cloud {
    store: IngestStore,
    api: Router,
    gateway: FileKey,
    trusted: TrustedKey,
    keys: KeyCache,
    cases: Cell<u32>,
    _folder: tempfile::TempDir,
}

impl Cloud {
    async fn open() -> Self {
        let (folder, database) = service_testbed::open_sqlite().await;
        let store = IngestStore::new(database);
        let clock: Clock = Arc::new(|| NOW.plus_ms(HOUR_MS));
        let api = super::routes(state_of(&store, &clock)).0;
        let kid = "device:gw@leipzig".parse().unwrap();
        let gateway = FileKey::generate(kid, Algorithm::EdDsa).unwrap();
        let trusted = TrustedKey {
            public: gateway.public_key().clone(),
            previous: Vec::new(),
            site: "leipzig".to_owned(),
            machines: vec!["r-1".to_owned()],
        };
        Self {
            store,
            api,
            gateway,
            trusted,
            keys: KeyCache::default(),
            cases: Cell::new(0),
            _folder: folder,
        }
    }

    /// Delivers messages of a new organisation, ends its roasts, and checks what clients read.
    async fn deliver(&self, delivery: Delivery) {
        let panics = PANICS.get();
        self.cases.set(self.cases.get() + 1);
        let org = OrgId::new(format!("case-{}", self.cases.get())).unwrap();
        let origin = origin(org.as_str(), "r-1");
        let frames = chained(&origin, delivery.frames);
        let dates = ClockCorrection::default();
        for frame in &frames {
            check_dry_run(frame);
            self.refuse_damaged(frame, delivery.damage);
            self.store_frame(frame, &dates).await;
        }
        let mut quarantine = clock_correction::quarantine();
        clock_correction::pass(&self.store, &dates, &mut quarantine, true).await.unwrap();
        let _ = UnverifiedMessage::parse(origin.clone(), delivery.noise.clone());
        let _ = dry_run::frame_views(&delivery.noise, NOW);
        for (i, (kind, body)) in delivery.messages.iter().enumerate() {
            self.store_message(&org, *kind, body, NOW.plus_ms(i as i64 * 1_000)).await;
        }
        self.check_streams(&org).await;
        if let Some((honest, receipt)) = delivery.receipt {
            self.store_receipt(&frames, honest, Receipt { origin: origin.clone(), ..receipt })
                .await;
        }
        self.end_sessions().await;
        self.check_rows(&org, &frames).await;
        self.check_streams(&org).await;
        self.check_responses(&org).await;
        assert_eq!(PANICS.get(), panics, "a panic was caught");
    }

    fn signed(&self, content: &str, payload: Vec<u8>) -> Vec<u8> {
        trust::sign_message(&self.gateway, content, payload).unwrap()
    }

    fn verified(&self, origin: &Origin, bytes: Vec<u8>) -> Option<VerifiedFrame> {
        let message = UnverifiedMessage::parse(origin.clone(), bytes).ok()?;
        let verdict = message.signed.verify(&self.trusted.public);
        message.into_frame(Some(&self.trusted), verdict, NOW).ok()
    }

    fn refuse_damaged(&self, frame: &Frame, (at, bit): (Index, u8)) {
        let mut bytes = self.signed(CONTENT_FRAME, frame.encode());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // A flipped bit may leave what is signed as it was.
        if let Some(verified) = self.verified(&frame.origin, bytes) {
            assert_eq!(verified.frame, *frame);
        }
    }

    async fn store_frame(&self, frame: &Frame, dates: &ClockCorrection) {
        let bytes = self.signed(CONTENT_FRAME, frame.encode());
        let verified = self.verified(&frame.origin, bytes).unwrap();
        let kid = verified.kid.as_str();
        let no = self.store.chain_no(&frame.origin, frame.chain, kid, NOW).await.unwrap();
        dates.note(no.chain, &verified);
        let committed = self.store.commit(&[no], &[verified], NOW).await.unwrap();
        assert_eq!(committed.outcomes, [Outcome::Stored]);
    }

    async fn store_message(&self, org: &OrgId, kind: PayloadKind, body: &Value, now: EpochMs) {
        let origin = origin(org.as_str(), "r-2");
        let bytes = serde_json::to_vec(body).unwrap();
        let read = legacy::read(&self.store, &self.keys, &origin, kind, &bytes, true, now).await;
        match read {
            Ok(message) => {
                let no = self.store.chain_no(&origin, legacy::CHAIN, "", now).await.unwrap();
                let committed = self.store.commit(&[no], &[message.frame], now).await.unwrap();
                let outcome = committed.outcomes[0];
                assert!(matches!(outcome, Outcome::Stored | Outcome::Duplicate), "{outcome:?}");
            }
            Err(LegacyError::Store(error)) => panic!("{body}: {error}"),
            Err(_) => {} // it cannot be read, or belongs to no roast
        }
    }

    /// Stores a receipt, which is of all frames if it is `honest`, and checks it.
    async fn store_receipt(&self, frames: &[Frame], honest: bool, mut receipt: Receipt) {
        if honest && !frames.is_empty() {
            let digests = frames.iter().map(|frame| trust::sha256_digest(&frame.encode()).0);
            let digests: Vec<u8> = digests.flatten().collect();
            receipt.digest = trust::sha256_digest(&digests);
            (receipt.first_frame, receipt.last_frame) = (1, frames.len() as u64);
        }
        let origin = receipt.origin.clone();
        let bytes = self.signed(CONTENT_RECEIPT, receipt.encode());
        let message = UnverifiedMessage::parse(origin.clone(), bytes).unwrap();
        let verdict = message.signed.verify(&self.trusted.public);
        let (back, signed) = message.into_receipt(Some(&self.trusted), verdict).unwrap();
        assert_eq!(back, receipt);
        let kid = "device:gw@leipzig";
        let no = self.store.chain_no(&origin, receipt.chain, kid, NOW).await.unwrap();
        self.store.store_receipt(no, &receipt, &signed, NOW).await.unwrap();
        let clock: Clock = Arc::new(|| NOW);
        Reconciler::new(self.store.clone(), None, clock).pass().await.unwrap();
        let session = self.store.session(&origin.org, receipt.session.as_str()).await.unwrap();
        let complete = session.is_some_and(|session| session.completeness == "complete");
        assert_eq!(complete, honest && !frames.is_empty());
    }

    /// Lets time pass until all roasts have ended, have their curves and are announced.
    async fn end_sessions(&self) {
        for hours in [1, 30, 31, 40 * 24] {
            let now = NOW.plus_ms(hours * HOUR_MS);
            CurveSweep::default().pass(&self.store, now).await.unwrap();
            SessionSweeps::default().close_and_enqueue(&self.store, now).await.unwrap();
            for event in self.store.take_due(now, (5_000, HOUR_MS), 50).await.unwrap() {
                check_json(&json!(event));
            }
        }
    }

    async fn arrived(&self, org: &OrgId) -> Vec<ArrivedFrame> {
        self.store.frames_after(Some(org), 0, 1_000).await.unwrap()
    }

    async fn check_rows(&self, org: &OrgId, frames: &[Frame]) {
        let rows = self.arrived(org).await.into_iter().filter(|row| row.machine_id == "r-1");
        let mut rows: Vec<FrameRow> = rows.map(|row| row.frame).collect();
        rows.sort_by_key(|row| row.number);
        assert_eq!(rows.len(), frames.len());
        for (row, frame) in rows.iter().zip(frames) {
            check_row(row, frame);
        }
        let Some(last) = rows.last() else { return };
        let digests = self.store.digests(last.chain_no, 1, frames.len() as u64).await.unwrap();
        let sent = frames.iter().map(|frame| trust::sha256_digest(&frame.encode()).0.to_vec());
        assert_eq!(digests, sent.collect::<Vec<_>>());
    }

    async fn check_streams(&self, org: &OrgId) {
        let rows = self.arrived(org).await;
        let chains = rows.iter().map(|row| row.frame.chain_no);
        let running = self.store.running_sessions(chains).await.unwrap();
        let samples: usize = rows.iter().map(|row| row.frame.len()).sum();
        let frames = rows.into_iter().filter_map(|row| row_json::committed_frame(row, &running));
        let points: Vec<_> = frames.flat_map(|row| row.envelopes(0, usize::MAX)).collect();
        assert_eq!(points.len(), samples);
        let events = self.store.events_after(Some(org), 0, 1_000).await.unwrap().into_iter();
        let events = events.filter_map(|row| row_json::committed_event(&row.org_id, row.event));
        let events = events.flat_map(|row| row.envelopes(0, usize::MAX));
        for envelope in points.into_iter().chain(events) {
            check_json(&json!(envelope));
            let located = row_json::located_json(&envelope).unwrap();
            check_json(&serde_json::from_str(&located).unwrap());
        }
    }

    async fn check_responses(&self, org: &OrgId) {
        for path in ["/machines", "/telemetry?limit=1000", "/events?limit=1000"] {
            self.read(org, path).await;
        }
        let sessions = self.read(org, "/sessions?limit=500").await;
        for session in sessions.as_array().unwrap() {
            let time = |name: &str| session[name].as_str().and_then(EpochMs::parse_iso);
            let started = time("startedAt").unwrap();
            assert!(time("endedAt").is_none_or(|ended| ended >= started), "{session}");
            let id = session["sessionId"].as_str().unwrap();
            for part in ["", "/telemetry?limit=100000", "/events"] {
                self.read(org, &format!("/sessions/{id}{part}")).await;
            }
        }
    }

    /// Reads a route as a person of the organisation.
    async fn read(&self, org: &OrgId, path: &str) -> Value {
        let org = Some(org.clone());
        let actor =
            Actor { kind: ActorKind::User, id: "ada".to_owned(), display: None, org: org.clone() };
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(Caller { actor, org, role: Role::Viewer });
        let response = self.api.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        let value = serde_json::from_slice(&body).unwrap();
        check_json(&value);
        value
    }
}

/// Counts the panics of each thread: the sweeps catch those of a single session.
fn count_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICS.set(PANICS.get() + 1);
        before(info);
    }));
}

#[test]
fn any_messages_are_stored_and_read_back_without_a_wrong_number() {
    count_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cloud = runtime.block_on(Cloud::open());
    let config = ProptestConfig {
        cases: 24,
        max_shrink_iters: 60,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1),
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&delivery(), |delivery| {
        runtime.block_on(cloud.deliver(delivery));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}
