//! The load generator: publishes signed, chained frames of many machines at a steady rate and
//! collects their acknowledgements.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use contract::topic::{self, TopicKind};
use contract::{
    Ack, ChainId, Channel, ClockQuality, Column, DeviceId, Digest, EpochMs, Frame, KeyId,
    MachineId, OrgId, Origin, SiteId,
};
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, NetworkOptions, PublishOptions, QoS,
};
use serde_json::json;
use tokio::sync::mpsc;
use trust::{Algorithm, CONTENT_FRAME, FileKey, Signer as _};

/// The organisation of the load.
pub const ORG: &str = "org";
const SITE: &str = "bench";
/// All machines share the key of one gateway. The work is the same as with one key per machine,
/// since keys are looked up by name and signatures are checked one by one.
const DEVICE: &str = "generator";

/// The position of one machine in its chain.
struct Machine {
    origin: Origin,
    chain: ChainId,
    number: u64,
    seq: u64,
    previous: Option<Digest>,
}

/// The machines of the load, and their frames that are not acknowledged yet.
pub struct LoadGenerator {
    machines: Vec<Machine>,
    key: FileKey,
    started: Instant,
    wall: i64,
    sent: SentFrames,
}

/// The frames without an acknowledgement, by chain and number.
type SentFrames = Arc<Mutex<HashMap<(ChainId, u64), SentFrame>>>;

#[derive(Clone, Copy)]
struct SentFrame {
    at: Instant,
    samples: u64,
}

/// The acknowledgements that were received.
#[derive(Default)]
pub struct Acknowledgements {
    /// Milliseconds from publish to acknowledgement.
    pub ack_ms: Vec<f64>,
    pub acked_samples: u64,
    pub refused: u64,
}

#[allow(clippy::disallowed_methods)] // a measurement reads the clock
impl LoadGenerator {
    pub fn new(machines: usize) -> anyhow::Result<Self> {
        let kid = KeyId::new(&DeviceId::new(DEVICE)?, &SiteId::new(SITE)?);
        let key = FileKey::generate(kid, Algorithm::EdDsa)?;
        let make = |i| {
            let machine = MachineId::new(format!("m{i:05}"))?;
            let origin = Origin { org: OrgId::new(ORG)?, site: SiteId::new(SITE)?, machine };
            let chain = ChainId(trust::random()?);
            anyhow::Ok(Machine { origin, chain, number: 1, seq: 0, previous: None })
        };
        let machines = (0..machines).map(make).collect::<anyhow::Result<_>>()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let wall = i64::try_from(now.as_millis())?;
        Ok(Self { machines, key, started: Instant::now(), wall, sent: Arc::default() })
    }

    /// Returns the device description that `simcorp device add` reads.
    pub fn device_description(&self) -> String {
        let machines: Vec<_> = self.machines.iter().map(|m| m.origin.machine.clone()).collect();
        json!({
            "orgId": ORG, "siteId": SITE, "machines": machines,
            "kid": self.key.key_id(), "publicKey": self.key.public_key().to_pem(),
        })
        .to_string()
    }

    /// Publishes `rate` points per second for `time`: one frame per machine every `frame_ms`,
    /// spread evenly. Returns the points sent and the time taken.
    pub async fn send(
        &mut self,
        client: &AsyncClient,
        rate: u64,
        frame_ms: u64,
        time: Duration,
    ) -> anyhow::Result<(u64, Duration)> {
        let count = self.machines.len();
        let samples = usize::try_from((rate * frame_ms / 1000 / count as u64).max(1))?;
        let gap = Duration::from_secs_f64(samples as f64 / rate as f64);
        let start = Instant::now();
        let (mut points, mut due) = (0, start);
        'load: loop {
            for i in 0..count {
                if start.elapsed() > time {
                    break 'load;
                }
                let wait = due.saturating_duration_since(Instant::now());
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                due += gap;
                let (topic, bytes, key) = self.next_frame(i, samples, frame_ms)?;
                let sent = SentFrame { at: Instant::now(), samples: samples as u64 };
                self.sent.lock().unwrap_or_else(PoisonError::into_inner).insert(key, sent);
                client.publish(topic, bytes, PublishOptions::new(QoS::AtLeastOnce)).await?;
                points += samples as u64;
            }
        }
        Ok((points, start.elapsed()))
    }

    fn next_frame(
        &mut self,
        i: usize,
        samples: usize,
        frame_ms: u64,
    ) -> anyhow::Result<(String, Vec<u8>, (ChainId, u64))> {
        let elapsed = u64::try_from(self.started.elapsed().as_millis())?;
        let machine = &mut self.machines[i];
        let step = u32::try_from(frame_ms)? / u32::try_from(samples)?.max(1);
        let curve = |channel, base: f64, slope: f64| {
            let values = (0..samples).map(|j| {
                let t = (machine.seq + j as u64) as f64;
                Some(((base + (t * slope) % 60.0) * 10.0).round() / 10.0)
            });
            Column { channel, values: values.collect(), quality: Vec::new() }
        };
        let frame = Frame {
            origin: machine.origin.clone(),
            chain: machine.chain,
            number: machine.number,
            previous: machine.previous,
            boot_id: 1,
            first_seq: machine.seq,
            mono_ms: elapsed,
            wall: EpochMs(self.wall + i64::try_from(elapsed)?),
            clock: ClockQuality::Synchronised,
            profile_digest: None,
            offsets_ms: (0..samples).map(|j| u32::try_from(j).unwrap_or(0) * step).collect(),
            columns: vec![
                curve(Channel::Bt, 150.0, 0.13),
                curve(Channel::Et, 190.0, 0.07),
                curve(Channel::Ror, 8.0, 0.01),
                curve(Channel::Gas, 20.0, 0.005),
                curve(Channel::Fan, 30.0, 0.004),
                curve(Channel::Drum, 50.0, 0.001),
                curve(Channel::Ambient, 24.0, 0.0),
            ],
            events: Vec::new(),
        };
        let payload = frame.encode();
        machine.previous = Some(trust::sha256_digest(&payload));
        machine.number += 1;
        machine.seq += samples as u64;
        let signed = trust::sign_message(&self.key, CONTENT_FRAME, payload)?;
        Ok((TopicKind::LiveFrame.topic(&frame.origin), signed, (frame.chain, frame.number)))
    }

    /// Connects a publisher, and a listener that records all acknowledgements.
    pub async fn connect(
        &self,
        port: u16,
    ) -> anyhow::Result<(AsyncClient, Arc<Mutex<Acknowledgements>>)> {
        let (client, events) = connect(port, "simcorp-bench-publisher");
        tokio::spawn(poll_publisher(events));
        let (listener, events) = connect(port, "simcorp-bench-listener");
        let answers = Arc::new(Mutex::new(Acknowledgements::default()));
        let (ready, mut readied) = mpsc::channel(1);
        let chains = self.machines.iter().map(|machine| machine.chain).collect();
        let sent = (chains, self.sent.clone());
        tokio::spawn(receive_acks(listener, events, sent, answers.clone(), ready));
        tokio::time::timeout(Duration::from_secs(10), readied.recv()).await?;
        Ok((client, answers))
    }

    pub fn unacknowledged(&self) -> usize {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// Connects a client to the broker on loopback.
pub fn connect(port: u16, name: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(name, ("127.0.0.1", port));
    options.set_keep_alive(30).set_clean_start(true).set_outgoing_inflight_upper_limit(2_000);
    // Without this, Nagle's algorithm delays each small message by 40 ms.
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    AsyncClient::builder(options).capacity(2_000).build()
}

async fn poll_publisher(mut events: EventLoop) {
    loop {
        if let Err(error) = events.poll().await {
            eprintln!("simcorp-bench: publisher: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[allow(clippy::disallowed_methods)] // a measurement reads the clock
async fn receive_acks(
    client: AsyncClient,
    mut events: EventLoop,
    (chains, sent): (HashSet<ChainId>, SentFrames),
    answers: Arc<Mutex<Acknowledgements>>,
    ready: mpsc::Sender<()>,
) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                let _ = client.try_subscribe("roaster/+/+/+/acks", QoS::AtMostOnce);
            }
            Ok(Event::Incoming(Incoming::SubAck(_))) => {
                let _ = ready.try_send(());
            }
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                let now = Instant::now();
                let known = std::str::from_utf8(&publish.topic)
                    .ok()
                    .and_then(|t| topic::parse_topic(t).ok());
                let Ok(ack) = serde_json::from_slice::<Ack>(&publish.payload) else { continue };
                if known.is_none() || !chains.contains(&ack.chain) {
                    continue;
                }
                let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                answers.refused += ack.refused.len() as u64;
                for frame in ack.acked.iter().flat_map(|range| range.first..=range.last) {
                    if let Some(sent) = sent.remove(&(ack.chain, frame)) {
                        answers.ack_ms.push(now.duration_since(sent.at).as_secs_f64() * 1000.0);
                        answers.acked_samples += sent.samples;
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                eprintln!("simcorp-bench: listener: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trust::SignedMessage;

    use super::*;

    #[test]
    fn each_machine_publishes_a_signed_chain_of_frames() {
        let mut load = LoadGenerator::new(2).unwrap();
        let mut next = |machine| {
            let (topic, bytes, key) = load.next_frame(machine, 3, 1_000).unwrap();
            let signed = SignedMessage::parse(&bytes).unwrap();
            signed.verify(load.key.public_key()).unwrap();
            assert_eq!(signed.content(), CONTENT_FRAME);
            let frame = Frame::decode(signed.payload()).unwrap();
            assert_eq!(topic, TopicKind::LiveFrame.topic(&frame.origin));
            assert_eq!(key, (frame.chain, frame.number));
            (frame, trust::sha256_digest(signed.payload()))
        };
        let (first, digest) = next(0);
        let (other, _) = next(1);
        let (second, _) = next(0);
        assert_eq!((first.number, first.previous, first.first_seq), (1, None, 0));
        assert_eq!((other.number, other.previous, other.first_seq), (1, None, 0));
        assert_eq!((second.number, second.previous, second.first_seq), (2, Some(digest), 3));
        assert_eq!((first.chain, &first.origin), (second.chain, &second.origin));
        assert_ne!((first.chain, &first.origin), (other.chain, &other.origin));
        // Three points of seven channels, spread over the frame's second.
        assert_eq!(second.offsets_ms, [0, 333, 666]);
        let values: Vec<usize> = second.columns.iter().map(|column| column.values.len()).collect();
        assert_eq!(values, [3; 7]);
    }

    #[test]
    fn the_description_of_the_gateway_names_all_machines() {
        let load = LoadGenerator::new(2).unwrap();
        let described: serde_json::Value =
            serde_json::from_str(&load.device_description()).unwrap();
        let expected = json!({
            "orgId": "org", "siteId": "bench", "machines": ["m00000", "m00001"],
            "kid": "device:generator@bench", "publicKey": load.key.public_key().to_pem(),
        });
        assert_eq!(described, expected);
    }
}
