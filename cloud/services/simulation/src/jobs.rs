//! Jobs: a number of simulated machines, each of which plays one roast until the cloud has received
//! all of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRef;
use contract::topic::TopicKind;
use contract::{Ack, ChainId, DeviceId, EpochMs, KeyId, MachineId, OrgId, Origin, SiteId};
use http_stack::error::{ApiError, Issue};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trust::{Algorithm, FileKey, Signer as _};
use utoipa::ToSchema;

use crate::bus::BrokerConnection;
use crate::gateway::{ChainWriter, SignedRoast};
use crate::request::{SimRoastRequest, at};
use crate::{Registry, SimulationConfig};
use service::clock::Clock;
use service::metrics::follow;
use service::tasks;

/// The number of ended jobs of an organisation that are still listed; a new job removes the others.
const SHOWN: usize = 100;
/// A frame that is not acknowledged within this time is sent again.
const RESEND_AFTER: Duration = Duration::from_secs(5);
/// How long the publisher waits, after the last moment, until the cloud reports the roast as
/// complete.
const COMPLETION_TIMEOUT: Duration = Duration::from_mins(5);
/// The maximum number of unacknowledged frames of one machine; later frames wait.
const IN_FLIGHT: usize = 256;
const SPEED_MAX: f64 = 10_000.0;
/// The maximum number of points of all machines of one job.
const POINTS_MAX: f64 = 2_000_000.0;
/// The longest playing time of a job, s.
const LONGEST_S: f64 = 86_400.0;

/// A request to the publisher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PublishRequest {
    pub org_id: String,
    pub site_id: String,
    /// How many machines. `machineId` is the name of a single machine; several are named
    /// `machineId` with the suffix `-1`, `-2`, ….
    #[serde(default = "one")]
    pub machines: usize,
    /// How many times faster than a real roast.
    #[serde(default = "real_time")]
    pub speed: f64,
    #[serde(flatten)]
    pub roast: SimRoastRequest,
}

const fn one() -> usize {
    1
}

const fn real_time() -> f64 {
    1.0
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    pub telemetry_sent: u64,
    pub events_sent: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sent_ts: Option<EpochMs>,
    pub frames_acked: u64,
    /// The machines of which the cloud has the complete roast.
    pub complete: usize,
    /// The machines that stopped before the cloud had the complete roast.
    pub incomplete: usize,
    /// The session ids of the roasts in ingestion.
    pub sessions: Vec<String>,
}

/// A job as the API returns it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct JobStatus {
    pub id: String,
    pub stats: Stats,
    pub request: PublishRequest,
    pub running: bool,
}

struct PublishJob {
    org: OrgId,
    request: PublishRequest,
    stats: Stats,
    /// `None` while its machines play.
    ended: Option<Instant>,
    stop: CancellationToken,
}

/// Removes the jobs of an organisation that ended first, beyond the number that is shown.
fn remove_old(all: &mut BTreeMap<String, PublishJob>, org: &OrgId) {
    let own = all.iter().filter(|(_, job)| job.org == *org);
    let mut ended: Vec<_> = own.filter_map(|(id, job)| Some((job.ended?, id.clone()))).collect();
    ended.sort();
    for (_, id) in ended.iter().take(ended.len().saturating_sub(SHOWN)) {
        all.remove(id);
    }
}

/// All jobs of this process.
#[derive(Clone)]
pub struct Jobs(Arc<JobsInner>);

struct JobsInner {
    allowed: bool,
    machines_max: usize,
    bus: Option<BrokerConnection>,
    registry: Arc<dyn Registry>,
    clock: Clock,
    tracker: TaskTracker,
    stop: CancellationToken,
    all: Mutex<BTreeMap<String, PublishJob>>,
}

impl FromRef<Jobs> for Clock {
    fn from_ref(jobs: &Jobs) -> Self {
        jobs.0.clock.clone()
    }
}

/// One machine of a job, ready to play.
struct Player {
    jobs: Jobs,
    bus: BrokerConnection,
    job: String,
    origin: Origin,
    chain: ChainId,
    signed: SignedRoast,
    started: EpochMs,
    speed: f64,
    stop: CancellationToken,
}

impl Jobs {
    pub fn new(
        config: &SimulationConfig,
        bus: Option<BrokerConnection>,
        registry: Arc<dyn Registry>,
        clock: Clock,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self(Arc::new(JobsInner {
            allowed: config.publish.unwrap_or(false),
            machines_max: config.machines_max,
            bus,
            registry,
            clock,
            tracker,
            stop,
            all: Mutex::default(),
        }))
    }

    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<String, PublishJob>) -> T) -> T {
        change(&mut self.0.all.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, job: &str, change: impl FnOnce(&mut Stats)) {
        self.with(|all| {
            if let Some(job) = all.get_mut(job) {
                change(&mut job.stats);
            }
        });
    }

    /// Lists the jobs of an organisation.
    pub fn list(&self, org: &OrgId) -> Vec<JobStatus> {
        self.with(|all| {
            let own = all.iter().filter(|(_, job)| job.org == *org);
            own.map(|(id, job)| JobStatus {
                id: id.clone(),
                stats: job.stats.clone(),
                request: job.request.clone(),
                running: job.ended.is_none(),
            })
            .collect()
        })
    }

    /// Stops a job. Returns `false` if the organisation has no job with this id.
    pub fn stop(&self, org: &OrgId, id: &str) -> bool {
        self.with(|all| {
            let own = all.get(id).filter(|job| job.org == *org);
            own.inspect(|job| job.stop.cancel()).is_some()
        })
    }

    /// Starts a job: signs the roasts, registers the key of their gateway and starts the machines.
    pub async fn start(&self, org: &OrgId, request: PublishRequest) -> Result<JobStatus, ApiError> {
        if !self.0.allowed {
            return Err(ApiError::Forbidden(
                "simulated machines are disabled; set simulation.publish to enable them".to_owned(),
            ));
        }
        let bus = self.0.bus.clone().filter(BrokerConnection::is_connected);
        let bus = bus.ok_or_else(|| ApiError::Unavailable("no broker is connected".to_owned()))?;
        let origins = self.origins(org, &request)?;
        let id = trust::random_id().map_err(ApiError::internal)?;
        let site = origins[0].site.clone();
        let device = DeviceId::new(format!("sim-{}", &id[..12])).map_err(ApiError::internal)?;
        let kid = KeyId::new(&device, &site);
        let key = FileKey::generate(kid, Algorithm::EdDsa).map_err(ApiError::internal)?;
        let key = Arc::new(key);
        let machines: Vec<String> = origins.iter().map(|o| o.machine.to_string()).collect();
        let now = (self.0.clock)();
        let stop = self.0.stop.child_token();
        // The job's machines count towards the limit from here; any failure below removes the job.
        self.with(|all| {
            remove_old(all, org);
            let (org, request, stop) = (org.clone(), request.clone(), stop.clone());
            let job = PublishJob { org, request, stats: Stats::default(), ended: None, stop };
            all.insert(id.clone(), job);
        });
        let signing = {
            let (request, origins, key) = (request.clone(), origins.clone(), key.clone());
            tokio::task::spawn_blocking(move || sign(&request, &origins, key.as_ref(), now)).await
        };
        let signed = signing.map_err(ApiError::internal).flatten();
        let kid = key.key_id().clone();
        let registry = self.0.registry.clone();
        let started = match signed {
            Ok(signed) => registry
                .add(org, &kid, &site, &machines, key.public_key())
                .await
                .map_err(ApiError::Conflict)
                .map(|()| signed),
            Err(error) => Err(error),
        };
        let signed = started.inspect_err(|_| {
            self.with(|all| all.remove(&id));
        })?;
        let players: Vec<Player> = origins
            .into_iter()
            .zip(signed)
            .map(|(origin, (chain, started, signed))| Player {
                jobs: self.clone(),
                bus: bus.clone(),
                job: id.clone(),
                origin,
                chain,
                signed,
                started,
                speed: request.speed,
                stop: stop.clone(),
            })
            .collect();
        let (jobs, org, job) = (self.clone(), org.clone(), id.clone());
        self.0.tracker.spawn(follow(async move {
            let mut playing = tokio::task::JoinSet::new();
            for player in players {
                let (bus, origin) = (player.bus.clone(), player.origin.clone());
                playing.spawn(follow(async move {
                    if let Err(panicked) = tasks::isolate("simulated-machine", player.play()).await
                    {
                        tracing::error!(error = %panicked, %origin, "a simulated machine ended");
                        bus.stop_listening(&origin).await;
                    }
                }));
            }
            while playing.join_next().await.is_some() {}
            jobs.with(|all| {
                if let Some(job) = all.get_mut(&job) {
                    job.ended = Some(Instant::now());
                }
            });
            if let Err(error) = registry.revoke(&org, &kid).await {
                tracing::warn!(error, %kid, "a simulated gateway's key is still trusted");
            }
        }));
        Ok(JobStatus { id, stats: Stats::default(), request, running: true })
    }

    /// Checks a request and returns the origins of its machines, or all problems together.
    fn origins(&self, org: &OrgId, request: &PublishRequest) -> Result<Vec<Origin>, ApiError> {
        let mut issues = Vec::new();
        for (field, problem) in request.roast.problems() {
            issues.push(Issue::new(field, problem));
        }
        let playing: usize = self.with(|all| {
            all.values().filter(|job| job.ended.is_none()).map(|job| job.request.machines).sum()
        });
        let total = playing.saturating_add(request.machines);
        if request.machines == 0 || total > self.0.machines_max {
            let most = self.0.machines_max;
            let problem = format!("not between 1 and {most}, of which {playing} are playing");
            issues.push(Issue::new("machines", problem));
        }
        let points = request.roast.points_max() * request.machines as f64;
        if points > POINTS_MAX {
            issues.push(Issue::new("machines", format!("more than {POINTS_MAX} points in total")));
        }
        if request.roast.target_drop_seconds / request.speed > LONGEST_S {
            issues.push(Issue::new("speed", "the roasts would last longer than a day"));
        }
        if !(0.01..=SPEED_MAX).contains(&request.speed) {
            issues.push(Issue::new("speed", format!("not between 0.01 and {SPEED_MAX}")));
        }
        let site = SiteId::new(request.site_id.clone());
        if let Err(error) = &site {
            issues.push(Issue::new("siteId", error));
        }
        let names: Result<Vec<MachineId>, _> = match request.machines {
            1 => MachineId::new(request.roast.machine_id.clone()).map(|id| vec![id]),
            n => (1..=n.min(self.0.machines_max))
                .map(|i| MachineId::new(format!("{}-{i}", request.roast.machine_id)))
                .collect(),
        };
        if let Err(error) = &names {
            issues.push(Issue::new("machineId", error));
        }
        match (site, names) {
            (Ok(site), Ok(names)) if issues.is_empty() => Ok(names
                .into_iter()
                .map(|machine| Origin { org: org.clone(), site: site.clone(), machine })
                .collect()),
            _ => Err(ApiError::Issues(issues)),
        }
    }
}

type PreparedRoast = (ChainId, EpochMs, SignedRoast);

/// Simulates and signs the roast of each machine.
fn sign(
    request: &PublishRequest,
    origins: &[Origin],
    key: &FileKey,
    now: EpochMs,
) -> Result<Vec<PreparedRoast>, ApiError> {
    let roast = &request.roast;
    let seed = roast.seed_or(now);
    let one = |(n, origin): (i64, &Origin)| {
        let simulated = roast
            .simulate(seed.wrapping_add(n))
            .map_err(|(field, problem)| ApiError::Issues(vec![Issue::new(field, problem)]))?;
        // The roast ends when its playback ends: played fast, it must not end in the future.
        let length = simulated.length_s();
        let started = at(now, length / request.speed - length);
        let id = ChainId(trust::random().map_err(ApiError::internal)?);
        let mut chain = ChainWriter::new(origin.clone(), id);
        let salt = u32::from_be_bytes(trust::random().map_err(ApiError::internal)?);
        // A frame covers about one second of real time.
        let frame_s = request.speed.max(roast.sample_interval_seconds);
        let signed = chain
            .sign(&simulated, (started, salt & 0xff_ffff), frame_s, key)
            .map_err(ApiError::internal)?;
        Ok((id, started, signed))
    };
    (0..).zip(origins).map(one).collect()
}

impl Player {
    /// Plays until the cloud has the complete roast, the job is stopped, or the time is up.
    async fn play(self) {
        let Some(mut acks) = self.bus.listen(&self.origin).await else {
            tracing::warn!(origin = %self.origin, "the simulated machine is playing already");
            self.jobs.note(&self.job, |stats| {
                stats.incomplete = stats.incomplete.saturating_add(1);
            });
            return;
        };
        let session = self.signed.session.to_string();
        self.jobs.note(&self.job, |stats| stats.sessions.push(session));
        let complete = tokio::select! {
            () = self.stop.cancelled() => false,
            complete = self.deliver(&mut acks) => complete,
        };
        self.bus.stop_listening(&self.origin).await;
        self.jobs.note(&self.job, |stats| {
            let ended = if complete { &mut stats.complete } else { &mut stats.incomplete };
            *ended = ended.saturating_add(1);
        });
        let result = if complete { "complete" } else { "incomplete" };
        metrics::counter!("simcorp_simulated_roasts_total", "result" => result).increment(1);
    }

    /// Sends the frames as they become due, then the receipt. Returns whether the cloud reported
    /// the roast as complete within [`COMPLETION_TIMEOUT`] after its end.
    async fn deliver(&self, acks: &mut mpsc::Receiver<Ack>) -> bool {
        let begun = Instant::now();
        let mut waiting = self.signed.frames.clone();
        let mut sent: BTreeMap<u64, Instant> = BTreeMap::new();
        let mut receipt_sent: Option<Instant> = None;
        let mut tick = tokio::time::interval(Duration::from_millis(200));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let length = Duration::from_secs_f64(
            self.signed.frames.values().last().map_or(0.0, |frame| frame.until_s) / self.speed,
        );
        loop {
            tokio::select! {
                ack = acks.recv() => {
                    let Some(ack) = ack else { return false };
                    if ack.chain != self.chain {
                        continue;
                    }
                    let before = waiting.len();
                    for range in &ack.acked {
                        waiting.retain(|n, _| !(range.first..=range.last).contains(n));
                    }
                    for range in &ack.need {
                        sent.retain(|n, _| !(range.first..=range.last).contains(n));
                    }
                    let acked = before.saturating_sub(waiting.len()) as u64;
                    self.jobs.note(&self.job, |stats| {
                        stats.frames_acked = stats.frames_acked.saturating_add(acked);
                    });
                    let of_ours = |v: &&contract::ReceiptVerdict| v.session_id == self.signed.session;
                    if ack.receipts.iter().find(of_ours).is_some_and(|verdict| verdict.complete) {
                        return true;
                    }
                }
                _ = tick.tick() => {}
            }
            let now = Instant::now();
            let played = now.saturating_duration_since(begun);
            let played_s = played.as_secs_f64() * self.speed;
            let has_rested = |at: &Instant| now.saturating_duration_since(*at) > RESEND_AFTER;
            for (number, frame) in waiting.iter().take(IN_FLIGHT) {
                let due = frame.until_s <= played_s;
                let rested = sent.get(number).is_none_or(has_rested);
                if !due || !rested {
                    continue;
                }
                if !self.bus.send(&self.origin, TopicKind::LiveFrame, frame.bytes.clone()).await {
                    break; // the next tick tries again
                }
                if sent.insert(*number, now).is_none() {
                    self.jobs.note(&self.job, |stats| {
                        stats.telemetry_sent = stats.telemetry_sent.saturating_add(frame.points);
                        stats.events_sent = stats.events_sent.saturating_add(frame.events);
                        stats.last_sent_ts = Some(at(self.started, frame.until_s));
                    });
                }
            }
            let receipt_due = receipt_sent.as_ref().is_none_or(has_rested);
            if waiting.is_empty() && receipt_due {
                let receipt = self.signed.receipt.clone();
                if self.bus.send(&self.origin, TopicKind::Receipt, receipt).await {
                    receipt_sent = Some(now);
                }
            }
            if played > length.saturating_add(COMPLETION_TIMEOUT) {
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_that_ended_first_are_removed() {
        let body = serde_json::json!({"orgId": "acme", "siteId": "leipzig"});
        let request: PublishRequest = serde_json::from_value(body).unwrap();
        let (acme, rival) = (OrgId::new("acme").unwrap(), OrgId::new("rival").unwrap());
        let begin = Instant::now();
        let job = |org: &OrgId, ended| PublishJob {
            org: org.clone(),
            request: request.clone(),
            stats: Stats::default(),
            ended,
            stop: CancellationToken::new(),
        };
        let mut all = BTreeMap::new();
        all.insert("0-running".to_owned(), job(&acme, None));
        all.insert("0-rival".to_owned(), job(&rival, Some(begin)));
        // Ids are random: the job that ended first has the last one.
        for n in 0..SHOWN as u64 + 2 {
            let ended = begin + Duration::from_secs(n);
            all.insert(format!("{:04}", 9_000 - n), job(&acme, Some(ended)));
        }
        remove_old(&mut all, &acme);
        assert_eq!(all.len(), SHOWN + 2);
        assert!(all.contains_key("0-running") && all.contains_key("0-rival"));
        assert!(!all.contains_key("9000") && !all.contains_key("8999") && all.contains_key("8998"));
    }
}
