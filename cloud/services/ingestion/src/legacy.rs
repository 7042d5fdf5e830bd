//! Upstream Sim-Corp's JSON messages, stored beside frames: one point or event a row, numbered on
//! arrival.
//!
//! Its publishers do not mark the start of a roast, so a session opens with the first point that is
//! not part of the one before: after a DROP once elapsed time starts over, or after [`IDLE_MS`]
//! without a sample in event time. Silence alone neither closes a session nor deletes it.

use ::database::StoreError;
use contract::envelope::{self, EnvelopeError, Payload, PayloadKind};
use contract::point::{ExtraValue, RoastEvent, TelemetryPoint};
use contract::{
    ChainId, Channel, ClockQuality, Column, EpochMs, EventSource, Frame, KeyId, MachineEvent,
    Origin, Refusal, SessionId,
};

use crate::keys::KeyCache;
use crate::store::{IngestStore, SessionRow};
use crate::verified_frame::{Numbering, Trust, VerifiedFrame};

/// The chain of all upstream messages of a machine, which have no numbers.
pub const CHAIN: ChainId = ChainId([0; 16]);
/// Half an hour of event time without a sample ends a session that has no DROP.
const IDLE_MS: i64 = 30 * 60 * 1000;
/// If elapsed time goes back by more than this, it has started over.
const RESTART_S: f64 = 5.0;

/// Why a message is not stored.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("an event before any telemetry belongs to no session")]
    NoSession,
}

/// Parses and verifies one message, and finds the session that it belongs to or opens.
pub async fn read(
    store: &IngestStore,
    keys: &KeyCache,
    origin: &Origin,
    expect: PayloadKind,
    bytes: &[u8],
    accept_unsigned: bool,
    now: EpochMs,
) -> Result<VerifiedFrame, LegacyError> {
    let received = envelope::decode(bytes, expect, origin)?;
    let ts = match &received.payload {
        Payload::Telemetry(point) => point.ts,
        Payload::Event(event) => event.ts,
    };
    let trust = match (&received.sig, &received.kid) {
        (None, None) if accept_unsigned => Trust::Unsigned,
        (None, None) => return Err(Refusal::Unsigned.into()),
        (Some(sig), Some(kid)) => {
            let kid: KeyId = kid.parse().map_err(|_| Refusal::UnknownKey)?;
            let key = keys.find(store, &origin.org, &kid).await?.ok_or(Refusal::UnknownKey)?;
            let speaks = key.site == origin.site.as_str()
                && key.machines.iter().any(|m| m == origin.machine.as_str());
            if !speaks {
                return Err(Refusal::WrongOrigin.into());
            }
            trust::jws::verify(sig, kid.as_str(), &key.public, &received.raw_payload, ts)
                .map_err(|_| Refusal::BadSignature)?;
            Trust::Verified
        }
        _ => return Err(Refusal::BadSignature.into()),
    };
    let no = store.chain_no(origin, CHAIN, "", now).await?;
    let newest = store.newest_session(no.machine).await?;
    let last = store.newest_frame(&origin.org, no.chain).await?;
    let last_at = last.map(|frame| frame.sample_at(0));
    let (columns, events, offsets_ms, opens) = match received.payload {
        Payload::Telemetry(point) => {
            let opens = session_opened_by(origin, &point, newest.as_ref(), last_at);
            (columns_of(&point), Vec::new(), vec![0], opens)
        }
        Payload::Event(event) => {
            // A late event belongs to the session that ran at its time.
            let then = store.session_at(no.machine, event.ts).await?;
            let session = then.or(newest).ok_or(LegacyError::NoSession)?;
            (Vec::new(), vec![event_of(&event, &session)?], Vec::new(), None)
        }
    };
    let digest = trust::sha256_digest(received.raw_payload.to_string().as_bytes());
    let frame = Frame {
        origin: origin.clone(),
        chain: CHAIN,
        number: 1, // assigned when it is stored
        previous: None,
        boot_id: 0,
        first_seq: 0, // assigned when it is stored
        mono_ms: 0,
        wall: ts,
        clock: ClockQuality::Unknown,
        profile_digest: None,
        offsets_ms,
        columns,
        events,
    };
    let numbering = Numbering::Arrival { opens };
    let kid = received.kid.unwrap_or_default();
    Ok(VerifiedFrame {
        frame,
        digest,
        signed: bytes.to_vec(),
        kid,
        trust,
        numbering,
        received: now,
    })
}

/// Returns the session that begins with `point`, if one does.
#[allow(clippy::cast_possible_truncation)] // seconds of a roast, as milliseconds
fn session_opened_by(
    origin: &Origin,
    point: &TelemetryPoint,
    newest: Option<&SessionRow>,
    last_at: Option<EpochMs>,
) -> Option<(SessionId, EpochMs)> {
    let started = point.ts.plus_ms(((point.elapsed_seconds * 1000.0) as i64).saturating_neg());
    let belongs = newest.is_some_and(|session| {
        let since_start_s = point.ts.ms_since(EpochMs(session.started_ms)) as f64 / 1000.0;
        let restarted = point.elapsed_seconds + RESTART_S < since_start_s;
        let idle = last_at.is_some_and(|last| point.ts.ms_since(last) > IDLE_MS);
        !restarted && !idle
    });
    // The same start gives the same session id on every instance.
    let salt = u32::try_from(started.0.rem_euclid(1 << 24)).unwrap_or(0);
    (!belongs).then(|| (SessionId::compose(origin, started, salt), started))
}

fn columns_of(point: &TelemetryPoint) -> Vec<Column> {
    let standard = [
        (Channel::Bt, point.bt_c),
        (Channel::Et, point.et_c),
        (Channel::Ror, point.ror_c_per_min),
        (Channel::Gas, point.gas_pct),
        (Channel::Fan, point.fan_pct),
        (Channel::Drum, point.drum_rpm),
        (Channel::Ambient, point.ambient_c),
    ];
    let extras = point.extras.iter().filter_map(|(name, value)| match value {
        ExtraValue::Number(value) => Some((Channel::parse(name)?, Some(*value))),
        ExtraValue::Text(_) => None, // only in the stored message
    });
    let present = standard.into_iter().filter(|(_, value)| value.is_some()).chain(extras);
    present
        .map(|(channel, value)| Column { channel, values: vec![value], quality: Vec::new() })
        .collect()
}

fn event_of(event: &RoastEvent, session: &SessionRow) -> Result<MachineEvent, LegacyError> {
    let since_start_ms = event.ts.ms_since(EpochMs(session.started_ms)).max(0);
    Ok(MachineEvent {
        kind: event.kind,
        seq: 0, // assigned when it is stored
        at: event.ts,
        elapsed_s: event.elapsed_seconds().unwrap_or(since_start_ms as f64 / 1000.0),
        session: SessionId::new(session.session_id.clone()).map_err(|_| LegacyError::NoSession)?,
        source: match event.payload.as_ref().and_then(|p| p.get("source")?.as_str()) {
            Some("inference") => EventSource::Inferred,
            _ => EventSource::Machine,
        },
        bt_c: event.number("btC"),
        note: None,
    })
}
