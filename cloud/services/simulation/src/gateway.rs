//! A simulated gateway: turns a simulated roast into the signed frames and the receipt that a real
//! gateway makes of a real roast.

use std::collections::BTreeMap;

use contract::{
    ChainId, Channel, ClockQuality, Column, Digest, EpochMs, EventSource, Frame, MachineEvent,
    Origin, Receipt, SessionId,
};
use trust::{CONTENT_FRAME, CONTENT_RECEIPT, SignError, Signer};

use crate::request::{Moment, SimRoast, at};

/// The current end of a machine's chain of frames.
#[derive(Debug, Clone)]
pub struct ChainWriter {
    pub origin: Origin,
    id: ChainId,
    number: u64,
    seq: u64,
    previous: Option<Digest>,
}

/// One signed frame, ready to be sent.
#[derive(Debug, Clone)]
pub struct SignedFrame {
    /// The time of its last moment, s since CHARGE.
    pub until_s: f64,
    pub points: u64,
    pub events: u64,
    pub bytes: Vec<u8>,
}

/// One signed roast, ready to be sent.
#[derive(Debug, Clone)]
pub struct SignedRoast {
    pub session: SessionId,
    /// The frames by frame number.
    pub frames: BTreeMap<u64, SignedFrame>,
    pub receipt: Vec<u8>,
}

impl ChainWriter {
    /// Creates the chain of a machine that has sent nothing yet.
    #[must_use]
    pub const fn new(origin: Origin, id: ChainId) -> Self {
        Self { origin, id, number: 1, seq: 0, previous: None }
    }

    #[must_use]
    pub const fn id(&self) -> ChainId {
        self.id
    }

    /// Signs a roast that began at `started`, in frames of `frame_s` seconds.
    ///
    /// # Errors
    /// If the key fails to sign.
    pub fn sign(
        &mut self,
        roast: &SimRoast,
        (started, salt): (EpochMs, u32),
        frame_s: f64,
        key: &dyn Signer,
    ) -> Result<SignedRoast, SignError> {
        let session = SessionId::compose(&self.origin, started, salt);
        let (first_frame, first_seq) = (self.number, self.seq);
        let (mut frames, mut digests) = (BTreeMap::new(), Vec::new());
        let mut events = roast.events.iter().peekable();
        let mut rest = roast.moments.as_slice();
        while let Some(first) = rest.first() {
            let until = first.t_s + frame_s.max(0.001);
            let count = rest.iter().take_while(|m| m.t_s < until).count().clamp(1, 4_000);
            let (now, after) = rest.split_at(count);
            rest = after;
            let mut frame_events = Vec::new();
            let end = if rest.is_empty() { f64::MAX } else { rest[0].t_s };
            while let Some((kind, t_s)) = events.next_if(|(_, t_s)| *t_s < end) {
                let nearest = now.iter().rposition(|m| m.t_s <= *t_s).unwrap_or(0);
                frame_events.push(MachineEvent {
                    kind: *kind,
                    seq: self.seq.saturating_add(nearest as u64),
                    at: at(started, *t_s),
                    elapsed_s: *t_s,
                    session: session.clone(),
                    source: EventSource::Machine,
                    bt_c: Some(now[nearest].bt_c),
                    note: None,
                });
            }
            let marked = frame_events.len() as u64;
            let frame = self.frame(now, frame_events, started);
            let payload = frame.encode();
            let digest = trust::sha256_digest(&payload);
            digests.extend(digest.0);
            let framed = SignedFrame {
                until_s: now.last().map_or(first.t_s, |moment| moment.t_s),
                points: count as u64,
                events: marked,
                bytes: trust::sign_message(key, CONTENT_FRAME, payload)?,
            };
            frames.insert(self.number, framed);
            self.previous = Some(digest);
            self.number = self.number.saturating_add(1);
            self.seq = self.seq.saturating_add(count as u64);
        }
        let receipt = Receipt {
            origin: self.origin.clone(),
            chain: self.id,
            session: session.clone(),
            first_frame,
            last_frame: self.number.saturating_sub(1).max(first_frame),
            first_seq,
            last_seq: self.seq.saturating_sub(1).max(first_seq),
            started,
            ended: at(started, roast.length_s()),
            digest: trust::sha256_digest(&digests),
        };
        let receipt = trust::sign_message(key, CONTENT_RECEIPT, receipt.encode())?;
        Ok(SignedRoast { session, frames, receipt })
    }

    fn frame(&self, moments: &[Moment], events: Vec<MachineEvent>, started: EpochMs) -> Frame {
        let first = moments.first().map_or(0.0, |moment| moment.t_s);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // ascending seconds
        let ms = |t_s: f64| ((t_s - first) * 1000.0).round() as u32;
        let column = |channel, value: fn(&Moment) -> Option<f64>| Column {
            channel,
            values: moments.iter().map(value).collect(),
            quality: Vec::new(),
        };
        let columns = [
            column(Channel::Bt, |m| Some(m.bt_c)),
            column(Channel::Et, |m| Some(m.et_c)),
            column(Channel::Ror, |m| m.ror_c_per_min),
            column(Channel::Gas, |m| m.gas_pct),
            column(Channel::Fan, |m| m.fan_pct),
        ];
        let known = |column: &Column| column.values.iter().any(Option::is_some);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let mono = (first * 1000.0) as u64;
        Frame {
            origin: self.origin.clone(),
            chain: self.id,
            number: self.number,
            previous: self.previous,
            boot_id: 1,
            first_seq: self.seq,
            mono_ms: mono,
            wall: at(started, first),
            clock: ClockQuality::Synchronised,
            profile_digest: None,
            offsets_ms: moments.iter().map(|m| ms(m.t_s)).collect(),
            columns: columns.into_iter().filter(known).collect(),
            events,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::SimRoastRequest;
    use contract::{DeviceId, KeyId, SiteId};
    use trust::{Algorithm, FileKey};

    #[test]
    fn frames_follow_each_other_and_hold_the_whole_roast() {
        let kid = KeyId::new(&DeviceId::new("sim").unwrap(), &SiteId::new("s").unwrap());
        let key = FileKey::generate(kid, Algorithm::EdDsa).unwrap();
        let origin: Origin = "org/s/m".parse().unwrap();
        let mut chain = ChainWriter::new(origin, ChainId([7; 16]));
        let roast = SimRoastRequest::default().simulate(1).unwrap();
        let started = EpochMs(1_760_000_000_000);
        let (mut number, mut seq, mut before, mut events) = (1, 0, None, 0);
        for n in 0..2 {
            let started = started.plus_ms(n * 3_600_000);
            let salt = u32::try_from(n).unwrap();
            let signed = chain.sign(&roast, (started, salt), 10.0, &key).unwrap();
            for (at, framed) in &signed.frames {
                let parsed = trust::SignedMessage::parse(&framed.bytes).unwrap();
                let frame = Frame::decode(parsed.payload()).unwrap();
                assert_eq!((*at, frame.number, frame.first_seq), (number, number, seq));
                assert_eq!(frame.previous, before);
                before = Some(trust::sha256_digest(parsed.payload()));
                number += 1;
                seq += frame.offsets_ms.len() as u64;
                events += frame.events.len();
            }
            let receipt = trust::SignedMessage::parse(&signed.receipt).unwrap();
            let receipt = Receipt::decode(receipt.payload()).unwrap();
            assert_eq!(receipt.sample_count(), roast.moments.len() as u64);
        }
        assert_eq!(events, 2 * roast.events.len());
    }
}
