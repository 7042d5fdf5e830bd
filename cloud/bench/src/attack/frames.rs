//! A registered gateway that sends what its key allows it to sign, and what it does not.

use std::time::Duration;

use contract::topic::TopicKind;
use contract::{
    ChainId, Channel, ClockQuality, Column, DeviceId, Digest, EpochMs, EventKind, EventSource,
    Frame, KeyId, MachineEvent, MachineId, OrgId, Origin, Receipt, SessionId, SiteId,
};
use rumqttc::{AsyncClient, PublishOptions, QoS};
use serde_json::json;
use service::shutdown::CancellationToken;
use trust::{Algorithm, CONTENT_FRAME, CONTENT_RECEIPT, FileKey, Signer as _};

use super::{HOSTILE_ORG, SentCounts};
use crate::load::{ORG, connect};

/// The machine of most hostile frames, and one that roasts without end.
const TRAP: &str = "trap";
const ROASTER: &str = "roaster";
/// The kind of the frames of that roast, and of the requests for it.
pub const RUNNING_ROAST: &str = "sessions of a running roast";
/// The session of that roast.
pub const RUNNING_SESSION: &str = "S-hostile-running";
/// The samples of one of its frames.
const RUNNING_SAMPLES: usize = 400;
const SITE: &str = "lair";
/// The pause between two messages, so that the attack is one of content and not of volume.
const PAUSE: Duration = Duration::from_millis(40);
/// 2026-11-27; a fixed time suffices, because the hostile frames claim many times.
const NOW: EpochMs = EpochMs(1_795_000_000_000);

/// A gateway of the hostile tenant.
pub struct HostileGateway {
    key: FileKey,
    trap: Chain,
    roaster: Chain,
}

/// The chain of one machine.
struct Chain {
    origin: Origin,
    id: ChainId,
    number: u64,
    seq: u64,
    previous: Option<Digest>,
}

impl Chain {
    fn new(machine: &str) -> anyhow::Result<Self> {
        Ok(Self {
            origin: Origin {
                org: OrgId::new(HOSTILE_ORG)?,
                site: SiteId::new(SITE)?,
                machine: MachineId::new(machine)?,
            },
            id: ChainId(trust::random()?),
            number: 1,
            seq: 0,
            previous: None,
        })
    }

    fn topic(&self, kind: TopicKind) -> String {
        kind.topic(&self.origin)
    }

    /// Returns the next frame, with `names` extra channels of `samples` nulls, and `events`.
    fn frame(&self, names: usize, samples: usize, events: Vec<MachineEvent>) -> Frame {
        let column = |n: usize| Column {
            channel: Channel::Extra(format!("x{}_{n}", self.number).into()),
            values: vec![None; samples],
            quality: Vec::new(),
        };
        self.frame_of((0..names).map(column).collect(), samples, events)
    }

    /// Returns the next frame, with these columns of `samples` samples, and `events`.
    fn frame_of(&self, columns: Vec<Column>, samples: usize, events: Vec<MachineEvent>) -> Frame {
        Frame {
            origin: self.origin.clone(),
            chain: self.id,
            number: self.number,
            previous: self.previous,
            boot_id: 1,
            first_seq: self.seq,
            mono_ms: self.number * 1_000,
            wall: NOW,
            clock: ClockQuality::Unknown,
            profile_digest: None,
            offsets_ms: (0..samples).map(|i| u32::try_from(i).unwrap_or(0)).collect(),
            columns,
            events,
        }
    }

    fn event(
        &self,
        kind: EventKind,
        elapsed_s: f64,
        seq: u64,
        at: i64,
    ) -> anyhow::Result<MachineEvent> {
        Ok(MachineEvent {
            kind,
            seq,
            at: EpochMs(at),
            elapsed_s,
            session: SessionId::new(format!("S-{HOSTILE_ORG}-{}-{seq:x}", self.number))?,
            source: EventSource::Machine,
            bt_c: None,
            note: None,
        })
    }

    /// Returns the next frame of a roast that begins with the first one and never ends.
    fn running_frame(&self) -> anyhow::Result<Frame> {
        let mut events = Vec::new();
        if self.number == 1 {
            let charge = self.event(EventKind::Charge, 0.0, self.seq, NOW.0)?;
            events.push(MachineEvent { session: SessionId::new(RUNNING_SESSION)?, ..charge });
        }
        let values = (0..RUNNING_SAMPLES).map(|i| Some(150.0 + (i % 60) as f64));
        let bean = Column { channel: Channel::Bt, values: values.collect(), quality: Vec::new() };
        Ok(self.frame_of(vec![bean], RUNNING_SAMPLES, events))
    }

    /// Signs a frame. An accepted frame moves the chain on; one that is refused leaves it.
    fn sign(&mut self, key: &FileKey, frame: &Frame, accepted: bool) -> anyhow::Result<Vec<u8>> {
        let payload = frame.encode();
        if accepted {
            self.previous = Some(trust::sha256_digest(&payload));
            self.number += 1;
            self.seq += frame.offsets_ms.len() as u64;
        }
        Ok(trust::sign_message(key, CONTENT_FRAME, payload)?)
    }

    /// Returns a signed receipt that fits no roast.
    fn receipt(&self, key: &FileKey) -> anyhow::Result<Vec<u8>> {
        let receipt = Receipt {
            origin: self.origin.clone(),
            session: SessionId::new(format!("S-never-{}", self.number))?,
            chain: self.id,
            first_frame: 1,
            last_frame: self.number + 100_000,
            first_seq: 0,
            last_seq: self.seq + 10_000_000,
            started: NOW,
            ended: NOW.plus_ms(600_000),
            digest: Digest([7; 32]),
        };
        Ok(trust::sign_message(key, CONTENT_RECEIPT, receipt.encode())?)
    }
}

impl HostileGateway {
    pub fn new() -> anyhow::Result<Self> {
        let kid = KeyId::new(&DeviceId::new("hostile")?, &SiteId::new(SITE)?);
        Ok(Self {
            key: FileKey::generate(kid, Algorithm::EdDsa)?,
            trap: Chain::new(TRAP)?,
            roaster: Chain::new(ROASTER)?,
        })
    }

    /// Returns the device description that `simcorp device add` reads.
    pub fn description(&self) -> String {
        json!({
            "orgId": HOSTILE_ORG, "siteId": SITE, "machines": [TRAP, ROASTER],
            "kid": self.key.key_id(), "publicKey": self.key.public_key().to_pem(),
        })
        .to_string()
    }

    /// Returns the next hostile message: its kind, topic and bytes.
    fn next(&mut self, turn: u64) -> anyhow::Result<(&'static str, String, Vec<u8>)> {
        let Self { key, trap, roaster } = self;
        let live = trap.topic(TopicKind::LiveFrame);
        Ok(match turn % 11 {
            0 => {
                let elapsed_s = if turn.is_multiple_of(2) { -1e300 } else { 1e300 };
                let event = trap.event(EventKind::Fc, elapsed_s, trap.seq, NOW.0)?;
                let frame = trap.frame(1, 1, vec![event]);
                ("numbers beyond their meaning", live, trap.sign(key, &frame, false)?)
            }
            1 => {
                let event = trap.event(EventKind::Drop, 600.0, u64::MAX, NOW.0)?;
                let frame = trap.frame(1, 1, vec![event]);
                ("numbers beyond their meaning", live, trap.sign(key, &frame, false)?)
            }
            2 if turn % 55 == 2 => {
                let frame = trap.frame(32, 4_096, Vec::new());
                ("frames of 32 new names by 4096 samples", live, trap.sign(key, &frame, true)?)
            }
            2 | 3 => {
                let charge = |i: u64| {
                    trap.event(EventKind::Charge, 0.0, trap.seq + i, 1_000 + turn.cast_signed())
                };
                let events = (0..8).map(charge).collect::<anyhow::Result<_>>()?;
                let frame = trap.frame(1, 8, events);
                ("roasts of 1970 that never end", live, trap.sign(key, &frame, true)?)
            }
            4 => ("receipts that never fit", trap.topic(TopicKind::Receipt), trap.receipt(key)?),
            5 => ("noise in place of a frame", live, noise(turn, 4_000)?),
            6 => {
                let honest = format!("roaster/{ORG}/bench/m00001/frames/live");
                let frame = trap.frame(1, 1, Vec::new());
                ("frames on another tenant's topic", honest, trap.sign(key, &frame, false)?)
            }
            7 => {
                let text = r#"{"ts":"1e999","machineId":"trap","elapsedSeconds":-1e300,"btC":"NaN","extras":{"a":{"b":[1]}}}"#;
                (
                    "bad JSON of a publisher",
                    trap.topic(TopicKind::Telemetry),
                    text.as_bytes().to_vec(),
                )
            }
            8 => ("deep JSON of a publisher", trap.topic(TopicKind::Events), vec![b'['; 50_000]),
            9 => ("large noise", trap.topic(TopicKind::BacklogFrame), noise(turn, 200_000)?),
            _ => {
                let frame = roaster.running_frame()?;
                let topic = roaster.topic(TopicKind::LiveFrame);
                (RUNNING_ROAST, topic, roaster.sign(key, &frame, true)?)
            }
        })
    }
}

/// Returns bytes that mean nothing.
pub fn noise(turn: u64, bytes: usize) -> anyhow::Result<Vec<u8>> {
    let seed: [u8; 32] = trust::random()?;
    Ok((0..bytes).map(|i| seed[i % 32].wrapping_add((i as u64 ^ turn).to_le_bytes()[0])).collect())
}

/// Sends hostile messages until `stop`; returns how many of each kind.
pub async fn attack(
    mut gateway: HostileGateway,
    port: u16,
    only: String,
    stop: CancellationToken,
) -> anyhow::Result<SentCounts> {
    let (client, mut events): (AsyncClient, _) = connect(port, "hostile-gateway");
    tokio::spawn(async move {
        loop {
            // The broker may end the connection of such a client; it connects again.
            if events.poll().await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let mut sent = SentCounts::new();
    for turn in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let (kind, topic, bytes) = gateway.next(turn)?;
        if !kind.contains(&only) {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        client.publish(topic, bytes, PublishOptions::new(QoS::AtLeastOnce)).await?;
        *sent.entry(kind).or_default() += 1;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_running_roast_begins_once_and_its_chain_is_unbroken() {
        let mut roaster = Chain::new(ROASTER).unwrap();
        let gateway = HostileGateway::new().unwrap();
        let first = roaster.running_frame().unwrap();
        assert_eq!(first.events.len(), 1);
        assert_eq!(first.events[0].session.as_str(), RUNNING_SESSION);
        roaster.sign(&gateway.key, &first, true).unwrap();
        let second = roaster.running_frame().unwrap();
        assert!(second.events.is_empty());
        assert_eq!((second.number, second.first_seq), (2, RUNNING_SAMPLES as u64));
        assert_eq!(second.previous, Some(trust::sha256_digest(&first.encode())));
        assert!(Frame::decode(&second.encode()).is_ok());
    }

    #[test]
    fn every_kind_of_message_comes_within_a_few_turns() {
        let mut gateway = HostileGateway::new().unwrap();
        let kinds: BTreeSet<&str> = (0..22).map(|turn| gateway.next(turn).unwrap().0).collect();
        assert_eq!(kinds.len(), 10, "{kinds:?}");
        assert!(kinds.contains(RUNNING_ROAST));
    }
}
