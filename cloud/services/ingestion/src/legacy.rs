//! Upstream Sim-Corp's JSON messages, stored beside frames: one point or event a row, numbered on
//! arrival.
//!
//! Its publishers do not mark the start of a roast, so a session opens with the first point that is
//! not part of the one before ([`roast`]): once elapsed time starts over, or after half an hour
//! without a sample in event time; or with a CHARGE. Silence alone neither closes a session nor
//! deletes it.
//!
//! A field that cannot be read costs only itself, and a time that cannot be right is replaced
//! ([`stamp`]); what the publisher said is returned as it came ([`crate::published`]).

pub mod roast;
pub mod stamp;
#[cfg(test)]
mod tests;

use ::database::StoreError;
use contract::envelope::{self, EnvelopeError, Payload, PayloadKind, ReceivedEnvelope};
use contract::point::{FieldError, RoastEvent, TelemetryPoint};
use contract::{
    ChainId, Channel, ClockQuality, Column, EpochMs, EventKind, EventSource, Frame, KeyId,
    MachineEvent, Origin, Refusal, SessionId,
};

use self::roast::{Known, LastSample, RoastOfEvent};
use self::stamp::{
    AHEAD_MAX_MS, EVENT_LATE_MAX_MS, FAST_MAX_MS, POINT_LATE_MAX_MS, ROUNDED_S, STOPPED_AFTER_MS,
    STOPPED_LONG_MS, Stamp, TimeBefore,
};
use crate::keys::KeyCache;
use crate::published::{
    FROM_ARRIVAL, PublishedEvent, PublishedMessage, PublishedSamples, SampleContext, TIME_SOURCE,
};
use crate::store::{ChainNo, IngestStore, SessionRow};
use crate::verified_frame::{Numbering, Opening, Repeats, Trust, VerifiedFrame};

/// The chain of all upstream messages of a machine, which have no numbers.
pub const CHAIN: ChainId = ChainId([0; 16]);
/// How long a message whose time says nothing is recognised when it arrives again.
const REPEATED_WITHIN_MS: i64 = 60_000;
/// A session that begins up to this long after its CHARGE is the CHARGE's own.
const CHARGE_EARLY_MS: i64 = 30_000;

/// Why a message is not stored.
#[derive(Debug, thiserror::Error)]
pub enum LegacyError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("a {0} of a roast of which nothing was received")]
    NoSession(EventKind),
}

/// A message that may be stored.
pub struct LegacyMessage {
    pub frame: VerifiedFrame,
    /// What of the message is not stored as it came, and why.
    pub problems: Vec<FieldError>,
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
) -> Result<LegacyMessage, LegacyError> {
    let received = envelope::decode(bytes, expect, origin)?;
    let own = match &received.payload {
        Payload::Telemetry(point) => point.ts,
        Payload::Event(event) => event.ts,
    };
    let own = received.ts_known.then_some(own);
    let signed_at = own.unwrap_or(now);
    let trust = verify(store, keys, origin, &received, signed_at, accept_unsigned).await?;
    let no = store.chain_no(origin, CHAIN, "", now).await?;
    let last = store.newest_frame(&origin.org, no.chain).await?;
    let kid = received.kid.as_deref();
    let arrival =
        Arrival { store, origin, no, now, own, kid, last: last.as_ref().map(LastSample::of) };
    let (stamp, content) = match &received.payload {
        Payload::Telemetry(point) => {
            let elapsed_s = received.elapsed_known.then_some(point.elapsed_seconds);
            arrival.place_point(point, elapsed_s).await?
        }
        Payload::Event(event) => arrival.place_event(event).await?,
    };
    let mut problems = received.problems;
    if let Some(problem) = stamp.problem(own) {
        problems.push(FieldError { field: "ts".to_owned(), problem });
    }
    let frame = Frame {
        origin: origin.clone(),
        chain: CHAIN,
        number: 1, // assigned when it is stored
        previous: None,
        boot_id: 0,
        first_seq: 0, // assigned when it is stored
        mono_ms: 0,
        wall: stamp.at,
        clock: ClockQuality::Unknown,
        profile_digest: None,
        offsets_ms: if content.events.is_empty() { vec![0] } else { Vec::new() },
        columns: content.columns,
        events: content.events,
    };
    let frame = VerifiedFrame {
        frame,
        digest: trust::sha256_digest(received.raw_payload.to_string().as_bytes()),
        signed: bytes.to_vec(),
        kid: received.kid.unwrap_or_default(),
        trust,
        numbering: content.numbering,
        published: Some(content.published),
        received: now,
    };
    Ok(LegacyMessage { frame, problems })
}

/// Checks the signature of a message, if it has one, and that its key may sign for the machine.
async fn verify(
    store: &IngestStore,
    keys: &KeyCache,
    origin: &Origin,
    received: &ReceivedEnvelope,
    signed_at: EpochMs,
    accept_unsigned: bool,
) -> Result<Trust, LegacyError> {
    let (sig, kid) = match (&received.sig, &received.kid) {
        (None, None) if accept_unsigned => return Ok(Trust::Unsigned),
        (None, None) => return Err(Refusal::Unsigned.into()),
        (Some(sig), Some(kid)) => (sig, kid),
        _ => return Err(Refusal::BadSignature.into()),
    };
    let kid: KeyId = kid.parse().map_err(|_| Refusal::UnknownKey)?;
    let key = keys.find(store, &origin.org, &kid).await?.ok_or(Refusal::UnknownKey)?;
    let speaks = key.site == origin.site.as_str()
        && key.machines.iter().any(|machine| machine == origin.machine.as_str());
    if !speaks {
        return Err(Refusal::WrongOrigin.into());
    }
    trust::jws::verify(sig, kid.as_str(), &key.public, &received.raw_payload, signed_at)
        .map_err(|_| Refusal::BadSignature)?;
    Ok(Trust::Verified)
}

/// What a message is stored as, beside its time.
struct Content {
    columns: Vec<Column>,
    /// Empty for a point.
    events: Vec<MachineEvent>,
    numbering: Numbering,
    published: PublishedMessage,
}

/// A message at its arrival.
struct Arrival<'a> {
    store: &'a IngestStore,
    origin: &'a Origin,
    no: ChainNo,
    now: EpochMs,
    /// The message's own time, if it could be read.
    own: Option<EpochMs>,
    kid: Option<&'a str>,
    /// The machine's newest sample.
    last: Option<LastSample>,
}

impl Arrival<'_> {
    /// Finds the session of a point. `elapsed_s` is what its publisher said.
    async fn place_point(
        &self,
        point: &TelemetryPoint,
        elapsed_s: Option<f64>,
    ) -> Result<(Stamp, Content), LegacyError> {
        let mut stamp = match self.stopped(elapsed_s) {
            Some(own) => Stamp::of_stopped(own, self.now),
            None => self.stamp_of_point(),
        };
        let session = self.newest_session().await?;
        let known = Known { session: session.as_ref(), last: self.last };
        let begins = known.point_opens(&stamp, elapsed_s);
        let fresh = elapsed_s.is_some_and(|elapsed_s| known.is_fresh(elapsed_s));
        if begins && stamp.restamped {
            // A roast that is played again must not get the times of the first.
            stamp = Stamp::of_arrival(self.own, self.now);
        }
        let started = begun(stamp.at, elapsed_s);
        let newest_id = session.as_ref().map(|session| session.session_id.clone());
        let opens = begins.then(|| Opening {
            session: self.session_id(started),
            started,
            after: newest_id.clone(),
        });
        let session_id = opens.as_ref().map(|opening| opening.session.to_string()).or(newest_id);
        let context = SampleContext {
            batch_id: point.batch_id.clone(),
            kid: self.kid.map(str::to_owned),
            session_id,
            restamped: stamp.restamped,
            moved_ms: stamp.moved_ms,
            stopped_ms: stamp.stopped.map(|own| own.0),
        };
        let repeats = self.repeats(&stamp, elapsed_s, session.as_ref().filter(|_| !fresh));
        let mut samples = PublishedSamples::of_one(elapsed_s, context);
        if stamp.stopped.is_none() {
            samples.first_of_time = self.last_with_own_time().map(|last| last.first_of_time);
        }
        let content = Content {
            columns: columns_of(point),
            events: Vec::new(),
            numbering: Numbering::Arrival { opens, repeats },
            published: PublishedMessage::Sample(samples, point.extras.clone()),
        };
        Ok((stamp, content))
    }

    /// Finds the session of an event.
    async fn place_event(&self, event: &RoastEvent) -> Result<(Stamp, Content), LegacyError> {
        let elapsed_s = event.elapsed_seconds();
        let charge = event.kind == EventKind::Charge;
        let beside = self.last.filter(|last| last.restamped && last.own() == self.own);
        let mut stamp = match beside.filter(|_| self.own.is_some()) {
            Some(last) => Stamp::beside(last.at),
            None => self.stamp_of_event(charge),
        };
        // A late event belongs to the session that ran at its time.
        let then = stamp.at.plus_ms(if charge { CHARGE_EARLY_MS } else { 0 });
        let newest = self.newest_session().await?;
        let after = newest.as_ref().map(|session| session.session_id.clone());
        let session = self.store.session_at(self.no, then).await?.or(newest);
        let known = Known { session: session.as_ref(), last: self.last };
        let fresh = charge && stamp.restamped && elapsed_s.is_some_and(|s| known.is_fresh(s));
        let charged = match &session {
            Some(session) if charge => {
                self.store.charged_at(&self.origin.org, &session.session_id).await?
            }
            _ => None,
        };
        let roast = if fresh {
            stamp = Stamp::of_arrival(self.own, self.now);
            RoastOfEvent::Opens
        } else {
            RoastOfEvent::find(&known, (event.kind, stamp.at), elapsed_s, charged)
        };
        let repeats = self.repeats(&stamp, elapsed_s, session.as_ref().filter(|_| !fresh));
        let (opens, id, since_start_s) = match (roast, &session) {
            (RoastOfEvent::Known, Some(session)) => {
                let id = SessionId::new(session.session_id.clone());
                let id = id.map_err(|_| LegacyError::NoSession(event.kind))?;
                let since_start_ms = stamp.at.ms_since(EpochMs(session.started_ms)).max(0);
                (None, id, elapsed_s.unwrap_or(since_start_ms as f64 / 1000.0))
            }
            (RoastOfEvent::Opens, before) => {
                let started = begun_after(before.as_ref(), stamp.at, elapsed_s);
                let id = self.session_id(started);
                let since_start_s = stamp.at.ms_since(started) as f64 / 1000.0;
                (Some(Opening { session: id.clone(), started, after }), id, since_start_s)
            }
            (RoastOfEvent::Missing | RoastOfEvent::Known, _) => {
                return Err(LegacyError::NoSession(event.kind));
            }
        };
        let content = Content {
            columns: Vec::new(),
            events: vec![event_of(event, stamp.at, id, since_start_s)],
            numbering: Numbering::Arrival { opens, repeats },
            published: PublishedMessage::Event(self.published_event(event, &stamp)),
        };
        Ok((stamp, content))
    }

    /// Returns the stamp of a point. Those that run ahead follow each other by 1 ms.
    fn stamp_of_point(&self) -> Stamp {
        let before = TimeBefore { moved_ms: self.moved_ms(), reached: self.reached(1) };
        Stamp::new(self.own, self.now, before, POINT_LATE_MAX_MS)
    }

    /// Returns the stamp of an event. One that runs ahead may overtake the points before it: it gets
    /// the latest possible time, so that they are still taken for earlier ones. A CHARGE lies at the
    /// point before, so that all later ones belong to its roast.
    fn stamp_of_event(&self, charge: bool) -> Stamp {
        let moved_ms = self.moved_ms();
        let ahead = moved_ms.is_some() || self.reached(0).is_some();
        let latest = ahead.then(|| self.now.plus_ms(AHEAD_MAX_MS));
        let reached = if charge { self.reached(0) } else { latest };
        Stamp::new(self.own, self.now, TimeBefore { moved_ms, reached }, EVENT_LATE_MAX_MS)
    }

    fn moved_ms(&self) -> Option<i64> {
        self.last.and_then(|last| last.moved_ms)
    }

    /// Returns the time `step_ms` after the last point, if that ran ahead.
    fn reached(&self, step_ms: i64) -> Option<EpochMs> {
        let at = self.last?.at.plus_ms(step_ms);
        (at > self.now).then(|| at.min(self.now.plus_ms(AHEAD_MAX_MS)))
    }

    /// Returns the machine's newest sample if its publisher gave it the time of this message.
    fn last_with_own_time(&self) -> Option<LastSample> {
        self.last.filter(|last| self.own.is_some() && last.own() == self.own)
    }

    /// Returns the own time of a point if it stands still: it is that of the point before, which
    /// arrived earlier. A point that says the same elapsed time as well is the point before, sent
    /// again.
    ///
    /// A publisher that rounds its times to seconds says each of them for up to a second. The
    /// first point with this time tells whether more time has passed, at whatever rate points arrive:
    /// by its elapsed time, or by its arrival if the elapsed times say nothing.
    fn stopped(&self, elapsed_s: Option<f64>) -> Option<EpochMs> {
        let last = self.last_with_own_time()?;
        let both_s = elapsed_s.zip(last.elapsed_s);
        let repeated = both_s.is_some_and(|(s, last_s)| s > 0.0 && s.total_cmp(&last_s).is_eq());
        let first = last.first_of_time;
        let since_first_ms = self.now.ms_since(EpochMs(first.received_ms));
        let stands = match elapsed_s.zip(first.elapsed_s) {
            Some((s, first_s)) if s > first_s => {
                s - first_s >= ROUNDED_S && since_first_ms >= STOPPED_AFTER_MS
            }
            _ => {
                self.now.ms_since(last.received) >= STOPPED_AFTER_MS
                    || since_first_ms >= STOPPED_LONG_MS
            }
        };
        self.own.filter(|_| (stands || last.stopped.is_some()) && !repeated)
    }

    /// Returns the newest session by its samples, but not one that a wrong clock has put into the
    /// future.
    async fn newest_session(&self) -> Result<Option<SessionRow>, StoreError> {
        let latest = self.now.plus_ms(FAST_MAX_MS);
        let newest = self.store.newest_session(self.no).await?;
        Ok(newest.filter(|session| session.started_ms <= latest.0))
    }

    /// Returns the id of a roast. Instances that read its first messages at the same time may compute
    /// starts that differ by milliseconds: [`Opening::after`] makes them one session.
    fn session_id(&self, started: EpochMs) -> SessionId {
        let salt = u32::try_from(started.0.rem_euclid(1 << 24)).unwrap_or(0);
        SessionId::compose(self.origin, started, salt)
    }

    /// Returns how a repeated message is recognised: one whose time was replaced, only within the
    /// roast `session`, because the same roast may be played again.
    fn repeats(
        &self,
        stamp: &Stamp,
        elapsed_s: Option<f64>,
        session: Option<&SessionRow>,
    ) -> Repeats {
        if !stamp.restamped {
            return Repeats::SameTime;
        }
        if self.own.is_none() && elapsed_s.is_none() {
            return Repeats::Unrecognisable;
        }
        let after_last = self.last.map_or(0, |last| last.number.saturating_add(1));
        // Neither its own nor its elapsed time distinguishes such a point from the one before.
        let says_nothing = stamp.stopped.is_some() && elapsed_s.is_none_or(|s| s <= 0.0);
        let within_ms = if says_nothing { STOPPED_AFTER_MS } else { REPEATED_WITHIN_MS };
        Repeats::Since {
            number: session.map_or(after_last, |session| session.first_seq.unwrap_or(0)),
            received: self.now.plus_ms(within_ms.saturating_neg()),
        }
    }

    fn published_event(&self, event: &RoastEvent, stamp: &Stamp) -> PublishedEvent {
        let mut payload = event.payload.clone().unwrap_or_default();
        if stamp.restamped {
            payload.insert(TIME_SOURCE.to_owned(), FROM_ARRIVAL.into());
        }
        PublishedEvent {
            payload,
            batch_id: event.batch_id.clone(),
            kid: self.kid.map(str::to_owned),
        }
    }
}

/// Returns the time `elapsed_s` before `at`.
#[allow(clippy::cast_possible_truncation)] // seconds of a roast, as milliseconds
fn begun(at: EpochMs, elapsed_s: Option<f64>) -> EpochMs {
    at.plus_ms(((elapsed_s.unwrap_or(0.0) * 1000.0) as i64).saturating_neg())
}

/// Returns when a roast began that opens with an event: after the roast `before`, also if the
/// publisher's elapsed time never starts over.
fn begun_after(before: Option<&SessionRow>, at: EpochMs, elapsed_s: Option<f64>) -> EpochMs {
    let started = begun(at, elapsed_s);
    let free_from = before.map(|before| before.ended_ms.unwrap_or(before.started_ms));
    if free_from.is_some_and(|ms| started.0 <= ms) { at } else { started }
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
    let present = standard.into_iter().filter(|(_, value)| value.is_some());
    present
        .map(|(channel, value)| Column { channel, values: vec![value], quality: Vec::new() })
        .collect()
}

fn event_of(event: &RoastEvent, at: EpochMs, session: SessionId, elapsed_s: f64) -> MachineEvent {
    MachineEvent {
        kind: event.kind,
        seq: 0, // assigned when it is stored
        at,
        elapsed_s,
        session,
        source: match event.payload.as_ref().and_then(|p| p.get("source")?.as_str()) {
            Some("inference") => EventSource::Inferred,
            _ => EventSource::Machine,
        },
        bt_c: event.number("btC"),
        note: None,
    }
}
