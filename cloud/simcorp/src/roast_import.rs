//! `simcorp roast import`: uploads recordings as sessions of a machine, so that its history is
//! available on the first day.
//!
//! The command signs the frames with a temporary key that exists only while it runs. The key's
//! device is named `device:import-…`, so that imported sessions can be distinguished from what a
//! gateway measured. The session id is derived from the identity of the roast in the file, or else
//! from the file: a roast that is imported twice is stored once, and a later save of it corrects its
//! metadata and events.

use std::path::Path;

use anyhow::{Context as _, bail};
use contract::session::RoastSession;
use contract::{
    Ack, ChainId, Channel, ClockQuality, Column, DeviceId, EpochMs, EventKind, EventSource, Frame,
    KeyId, MachineEvent, MachineId, Origin, RejectedFrame, SessionId, SiteId,
};
use roast::analysis::Marks;
use roast::machine_model::MachineModel;
use roast::sample::Sample;
use serde_json::json;
use trust::{Algorithm, CONTENT_FRAME, FileKey};

use crate::config::CloudConfig;
use crate::recordings::{self, AnalyzedRecording, ImportArgs, analyze_next};
use crate::remote::OperatorClient;
use crate::roast_metadata::{self, RecordingSave};

/// Samples per frame, and frames per request: what ingestion accepts at once.
const SAMPLES_PER_FRAME: usize = 240;
const FRAMES_PER_REQUEST: usize = 32;
/// 2000-01-01: an earlier date in a file is that of a computer whose clock was not set.
const EARLIEST_MS: i64 = 946_684_800_000;
const IMPORTED_EVENTS: [EventKind; 8] = [
    EventKind::Charge,
    EventKind::Tp,
    EventKind::DryEnd,
    EventKind::Fc,
    EventKind::FcEnd,
    EventKind::Sc,
    EventKind::ScEnd,
    EventKind::Drop,
];

pub async fn run(
    config: &CloudConfig,
    org: Option<String>,
    args: ImportArgs,
) -> anyhow::Result<()> {
    let at = match &args.at {
        None => None,
        Some(_) if args.files.len() > 1 => bail!("--at is the start of one file: give only one"),
        Some(text) => Some(EpochMs::parse_iso(text).context("--at: not as 2026-05-18T19:32:48Z")?),
    };
    // Before anything is sent: a file that `roast analyze` refuses is refused here with its error.
    for file in &args.files {
        recordings::read(file)?;
    }
    let remote = OperatorClient::connect(config, org).await?;
    let origin = Origin {
        org: remote.org.clone(),
        site: SiteId::new(args.site)?,
        machine: MachineId::new(args.machine)?,
    };
    let name = format!("import-{}", &trust::random_id()?[..12]);
    let key_id = KeyId::new(&DeviceId::new(name)?, &origin.site);
    let key = FileKey::generate(key_id, Algorithm::EdDsa)?;
    let id = trust::Signer::key_id(&key).to_string();
    let device = json!({"siteId": origin.site, "machines": [origin.machine], "kid": id,
                        "publicKey": key.public_key().to_pem()});
    remote.post(&remote.fleet, &["devices"], &device).await?;
    let mut learned = MachineModel::default();
    let mut result = Ok(());
    for file in &args.files {
        result = import_file(&remote, &origin, &key, (file, at), &mut learned).await;
        if result.is_err() {
            break;
        }
    }
    // Revoked on success and on failure: the key must not be used again.
    remote.post(&remote.fleet, &["devices", &id, "revoke"], &json!({})).await?;
    result
}

async fn import_file(
    remote: &OperatorClient,
    origin: &Origin,
    key: &FileKey,
    (file, at): (&Path, Option<EpochMs>),
    learned: &mut MachineModel,
) -> anyhow::Result<()> {
    let shown = file.display();
    let analyzed = analyze_next(file, learned)?;
    let recording = &analyzed.recording;
    let marks = Marks::of(recording, &analyzed.marks);
    let charge = marks.ms(EventKind::Charge);
    let charge = charge.with_context(|| format!("{shown}: no CHARGE, so no start of the roast"))?;
    let dated = at.or(recording.started.filter(|at| at.0 >= EARLIEST_MS));
    let begins = if let Some(at) = dated {
        at
    } else {
        let length_ms = recording.samples.last().map_or(0, |last| last.t_ms);
        modified_at(file)?.minus_ms(length_ms)
    };
    let digest = trust::sha256_digest(&std::fs::read(file)?);
    let roast_id = recording.roast_id.as_str();
    let identity = match roast_digest(origin, roast_id).filter(|_| dated.is_some()) {
        Some(roast) => RoastIdentity::new(origin, begins, roast),
        None => RoastIdentity::new(origin, begins.plus_ms(charge), digest.0),
    };
    let frames = frames(origin, &analyzed, &marks, (begins, charge), &identity);
    let refused = send(remote, key, &frames).await?;
    let stored: Option<RoastSession> =
        remote.ingestion.get(&origin.org, &["sessions", identity.session.as_str()], &[]).await?;
    let stored = match (stored, &refused) {
        (Some(stored), None) => stored,
        // The roast is there from an earlier import, whose frames are not changed.
        (Some(stored), Some(refused)) if refused.reason.is_final() => stored,
        (_, Some(refused)) => {
            bail!("{shown}: ingestion rejected frame {}: {}", refused.frame, refused.reason)
        }
        (None, None) => bail!("{shown}: it was sent, but its session is missing"),
    };
    let save = RecordingSave { recording, begins, file: digest };
    let moved = roast_metadata::write(remote, &stored, &save, refused.is_some()).await?;
    let samples: usize = frames.iter().map(Frame::sample_count).sum();
    println!("{shown}: {}, {samples} samples", identity.session);
    if !moved.is_empty() {
        let kinds: Vec<&str> = moved.iter().map(|kind| kind.as_str()).collect();
        println!("{shown}: imported before; corrected {}", kinds.join(", "));
    }
    Ok(())
}

/// Sends frames until one is refused, and returns that refusal.
async fn send(
    remote: &OperatorClient,
    key: &FileKey,
    frames: &[Frame],
) -> anyhow::Result<Option<RejectedFrame>> {
    for some in frames.chunks(FRAMES_PER_REQUEST) {
        let mut body = Vec::new();
        for frame in some {
            body.extend(trust::sign_message(key, CONTENT_FRAME, frame.encode())?);
        }
        let kind = ("application/cose", body);
        let answer = remote.ingestion.post_bytes(&remote.org, &["v1", "frames"], kind).await?;
        let acks: Vec<Ack> = answer.map_or_else(Vec::new, |answer| answer.body);
        let refused = acks.into_iter().flat_map(|ack| ack.refused).next();
        if refused.is_some() {
            return Ok(refused);
        }
    }
    Ok(None)
}

/// What makes an imported roast the same roast when it is imported again.
struct RoastIdentity {
    session: SessionId,
    chain: ChainId,
}

impl RoastIdentity {
    fn new(origin: &Origin, started: EpochMs, digest: [u8; 32]) -> Self {
        let mut chain = [0; 16];
        chain.copy_from_slice(&digest[..16]);
        let session = SessionId::compose(origin, started, salt(digest));
        Self { session, chain: ChainId(chain) }
    }
}

/// Returns a digest of the roast's own identity, which stays when its file is saved again; `None`
/// if it has none, which some programs write as zeros.
fn roast_digest(origin: &Origin, roast_id: &str) -> Option<[u8; 32]> {
    let unset = roast_id.trim().chars().all(|c| matches!(c, '0' | '-'));
    let text = format!("{origin}\n{}", roast_id.trim());
    (!unset).then(|| trust::sha256_digest(text.as_bytes()).0)
}

/// Returns when the file was last modified.
fn modified_at(file: &Path) -> anyhow::Result<EpochMs> {
    let at = std::fs::metadata(file)?.modified()?.duration_since(std::time::UNIX_EPOCH)?;
    Ok(EpochMs(i64::try_from(at.as_millis())?))
}

const fn salt(digest: [u8; 32]) -> u32 {
    u32::from_be_bytes([0, digest[16], digest[17], digest[18]])
}

/// Builds the frames of a recording whose first sample was at `begins` and whose CHARGE is `charge`
/// ms later. Deterministic: the same file and arguments give the same frames.
fn frames(
    origin: &Origin,
    analyzed: &AnalyzedRecording,
    marks: &Marks,
    (begins, charge): (EpochMs, i64),
    identity: &RoastIdentity,
) -> Vec<Frame> {
    let samples = &analyzed.recording.samples;
    let mut frames = Vec::new();
    let (mut previous, mut first_seq) = (None, 0_u64);
    for (number, part) in (1_u64..).zip(samples.chunks(SAMPLES_PER_FRAME)) {
        let next_seq = first_seq.saturating_add(part.len() as u64);
        let last_of_all = next_seq == samples.len() as u64;
        let from = part.first().map_or(0, |sample| sample.t_ms);
        // The first frame also has the CHARGE of a roast that began before its recording.
        let first_ms = if first_seq == 0 { i64::MIN } else { from };
        let last_ms = part.last().map_or(-1, |sample| sample.t_ms);
        let until = if last_of_all { i64::MAX } else { last_ms.saturating_add(1) };
        let events = IMPORTED_EVENTS.into_iter().filter_map(|kind| {
            let at_ms =
                marks.ms(kind).filter(|ms| *ms >= charge && (first_ms..until).contains(ms))?;
            if kind != EventKind::Charge && !marks.is_confident(kind) {
                return None;
            }
            let nearest = part.iter().rposition(|sample| sample.t_ms <= at_ms).unwrap_or(0);
            let in_file = analyzed.recording.mark_ms(kind).is_some();
            Some(MachineEvent {
                kind,
                seq: first_seq.saturating_add(nearest as u64),
                at: begins.plus_ms(at_ms),
                elapsed_s: at_ms.saturating_sub(charge) as f64 / 1000.0,
                session: identity.session.clone(),
                source: if in_file { EventSource::Person } else { EventSource::Inferred },
                bt_c: part[nearest].bt_c,
                note: None,
            })
        });
        let frame = Frame {
            origin: origin.clone(),
            chain: identity.chain,
            number,
            previous,
            boot_id: 1,
            first_seq,
            mono_ms: u64::try_from(from).unwrap_or(0),
            wall: begins.plus_ms(from),
            clock: ClockQuality::Unknown,
            profile_digest: None,
            offsets_ms: part
                .iter()
                .map(|s| u32::try_from(s.t_ms.saturating_sub(from)).unwrap_or(0))
                .collect(),
            columns: columns(part),
            events: events.collect(),
        };
        previous = Some(trust::sha256_digest(&frame.encode()));
        first_seq = next_seq;
        frames.push(frame);
    }
    frames
}

fn columns(part: &[Sample]) -> Vec<Column> {
    let column = |channel, value: fn(&Sample) -> Option<f64>| Column {
        channel,
        values: part.iter().map(value).collect(),
        quality: Vec::new(),
    };
    let all = [
        column(Channel::Bt, |s| s.bt_c),
        column(Channel::Et, |s| s.et_c),
        column(Channel::Gas, |s| s.gas_pct),
        column(Channel::Fan, |s| s.fan_pct),
    ];
    all.into_iter().filter(|column| column.values.iter().any(Option::is_some)).collect()
}
