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

use super::HOSTILE_ORG;
use crate::load::{ORG, connect};

const MACHINE: &str = "trap";
const SITE: &str = "lair";
/// The pause between two messages, so that the attack is one of content and not of volume.
const PAUSE: Duration = Duration::from_millis(40);
/// 2026-11-27; a fixed time suffices, because the hostile frames claim many times.
const NOW: EpochMs = EpochMs(1_795_000_000_000);

/// A gateway of the hostile tenant.
pub struct HostileGateway {
    key: FileKey,
    origin: Origin,
    chain: ChainId,
    number: u64,
    seq: u64,
    previous: Option<Digest>,
}

impl HostileGateway {
    pub fn new() -> anyhow::Result<Self> {
        let kid = KeyId::new(&DeviceId::new("hostile")?, &SiteId::new(SITE)?);
        Ok(Self {
            key: FileKey::generate(kid, Algorithm::EdDsa)?,
            origin: Origin {
                org: OrgId::new(HOSTILE_ORG)?,
                site: SiteId::new(SITE)?,
                machine: MachineId::new(MACHINE)?,
            },
            chain: ChainId(trust::random()?),
            number: 1,
            seq: 0,
            previous: None,
        })
    }

    /// Returns the device description that `simcorp device add` reads.
    pub fn description(&self) -> String {
        json!({
            "orgId": HOSTILE_ORG, "siteId": SITE, "machines": [MACHINE],
            "kid": self.key.key_id(), "publicKey": self.key.public_key().to_pem(),
        })
        .to_string()
    }

    fn topic(&self, kind: TopicKind) -> String {
        kind.topic(&self.origin)
    }

    /// Returns a frame of the chain with `names` extra channels of `samples` nulls, and `events`.
    fn frame(&self, names: usize, samples: usize, events: Vec<MachineEvent>) -> Frame {
        let column = |n: usize| Column {
            channel: Channel::Extra(format!("x{}_{n}", self.number).into()),
            values: vec![None; samples],
            quality: Vec::new(),
        };
        Frame {
            origin: self.origin.clone(),
            chain: self.chain,
            number: self.number,
            previous: self.previous,
            boot_id: 1,
            first_seq: self.seq,
            mono_ms: self.number * 1_000,
            wall: NOW,
            clock: ClockQuality::Unknown,
            profile_digest: None,
            offsets_ms: (0..samples).map(|i| u32::try_from(i).unwrap_or(0)).collect(),
            columns: (0..names).map(column).collect(),
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

    /// Signs a frame. An accepted frame moves the chain on; one that is refused leaves it.
    fn sign(&mut self, frame: &Frame, accepted: bool) -> anyhow::Result<Vec<u8>> {
        let payload = frame.encode();
        if accepted {
            self.previous = Some(trust::sha256_digest(&payload));
            self.number += 1;
            self.seq += frame.offsets_ms.len() as u64;
        }
        Ok(trust::sign_message(&self.key, CONTENT_FRAME, payload)?)
    }

    fn receipt(&self) -> anyhow::Result<Vec<u8>> {
        let receipt = Receipt {
            origin: self.origin.clone(),
            session: SessionId::new(format!("S-never-{}", self.number))?,
            chain: self.chain,
            first_frame: 1,
            last_frame: self.number + 100_000,
            first_seq: 0,
            last_seq: self.seq + 10_000_000,
            started: NOW,
            ended: NOW.plus_ms(600_000),
            digest: Digest([7; 32]),
        };
        Ok(trust::sign_message(&self.key, CONTENT_RECEIPT, receipt.encode())?)
    }

    /// Returns the next hostile message: its kind, topic and bytes.
    fn next(&mut self, turn: u64) -> anyhow::Result<(&'static str, String, Vec<u8>)> {
        let live = self.topic(TopicKind::LiveFrame);
        Ok(match turn % 10 {
            0 => {
                let elapsed_s = if turn.is_multiple_of(20) { -1e300 } else { 1e300 };
                let event = self.event(EventKind::Fc, elapsed_s, self.seq, NOW.0)?;
                let frame = self.frame(1, 1, vec![event]);
                ("numbers beyond their meaning", live, self.sign(&frame, false)?)
            }
            1 => {
                let event = self.event(EventKind::Drop, 600.0, u64::MAX, NOW.0)?;
                let frame = self.frame(1, 1, vec![event]);
                ("numbers beyond their meaning", live, self.sign(&frame, false)?)
            }
            2 if turn % 50 == 2 => {
                let frame = self.frame(32, 4_096, Vec::new());
                ("frames of 32 new names by 4096 samples", live, self.sign(&frame, true)?)
            }
            2 | 3 => {
                let charge = |i: u64| {
                    self.event(EventKind::Charge, 0.0, self.seq + i, 1_000 + turn.cast_signed())
                };
                let events = (0..8).map(charge).collect::<anyhow::Result<_>>()?;
                let frame = self.frame(1, 8, events);
                ("roasts of 1970 that never end", live, self.sign(&frame, true)?)
            }
            4 => ("receipts that never fit", self.topic(TopicKind::Receipt), self.receipt()?),
            5 => ("noise in place of a frame", live, noise(turn, 4_000)?),
            6 => {
                let honest = format!("roaster/{ORG}/bench/m00001/frames/live");
                let frame = self.frame(1, 1, Vec::new());
                ("frames on another tenant's topic", honest, self.sign(&frame, false)?)
            }
            7 => {
                let text = r#"{"ts":"1e999","machineId":"trap","elapsedSeconds":-1e300,"btC":"NaN","extras":{"a":{"b":[1]}}}"#;
                (
                    "bad JSON of a publisher",
                    self.topic(TopicKind::Telemetry),
                    text.as_bytes().to_vec(),
                )
            }
            8 => ("deep JSON of a publisher", self.topic(TopicKind::Events), vec![b'['; 50_000]),
            _ => ("large noise", self.topic(TopicKind::BacklogFrame), noise(turn, 200_000)?),
        })
    }
}

fn noise(turn: u64, bytes: usize) -> anyhow::Result<Vec<u8>> {
    let seed: [u8; 32] = trust::random()?;
    Ok((0..bytes).map(|i| seed[i % 32].wrapping_add((i as u64 ^ turn).to_le_bytes()[0])).collect())
}

/// Sends hostile messages until `stop`; returns how many of each kind.
pub async fn attack(
    mut gateway: HostileGateway,
    port: u16,
    only: String,
    stop: CancellationToken,
) -> anyhow::Result<Vec<(&'static str, u64)>> {
    let (client, mut events): (AsyncClient, _) = connect(port, "hostile-gateway");
    tokio::spawn(async move {
        loop {
            // The broker may end the connection of such a client; it connects again.
            if events.poll().await.is_err() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    let mut sent = std::collections::BTreeMap::new();
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
    Ok(sent.into_iter().collect())
}
