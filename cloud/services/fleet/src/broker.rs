//! What the broker lets gateways do: Mosquitto's dynamic security is told over the bus itself, so that
//! a gateway is let in as soon as it has enrolled, and cut off as soon as it is revoked.
//!
//! The registry is the truth; the broker's list is made to follow it. One instance does so at a time.
//! After each new connection everything is compared, between them what has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::topic::Kind;
use contract::{KeyId, OrgId, Origin};
use database::StoreError;
use rumqttc::{AsyncClient, PublishOptions, QoS};
use serde_json::{Value, json};
use service::mqtt::{Bounds, Broker, BrokerError, Link, News};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::device::{Device, certificate_name};
use crate::store::FleetStore;
use crate::{Clock, FleetConfig};

const CONTROL: &str = "$CONTROL/dynamic-security/v1";
const RESPONSE: &str = "$CONTROL/dynamic-security/v1/response";
const BOUNDS: Bounds = Bounds { in_flight: 16, receive: 64, packet: 1024 * 1024 };
/// Messages to and from the broker that wait.
const QUEUE: usize = 64;
const WAIT_MAX: Duration = Duration::from_secs(5);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Everything once more, in case somebody else has changed the broker's list.
const COMPARE_EVERY: Duration = Duration::from_hours(1);
const LEASE: &str = "fleet-broker";
const LEASE_MS: i64 = 30_000;
/// A transaction is committed after its time.
const OVERLAP_MS: i64 = 120_000;
/// The plugin's words, which differ from command to command.
const NO_ROLE: [&str; 2] = ["Role not found", "Role does not exist"];
const NOT_THERE: [&str; 3] = ["Client not found", "Role not found", "Role does not exist"];
const AT_ONCE: usize = 50;
const NAMES_AT_ONCE: usize = 200;
/// Keys before the present one whose names are removed.
const KEYS_BEFORE: usize = 8;

/// Whether the broker's list is the registry's.
#[derive(Clone)]
pub struct Told(Arc<Mutex<Result<(), String>>>);

impl Told {
    /// # Errors
    /// Why not, in a sentence.
    pub fn is_current(&self) -> Result<(), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, now: Result<(), String>) {
        let current = if now.is_ok() { 1.0 } else { 0.0 };
        metrics::gauge!("simcorp_fleet_broker_current").set(current);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// Why the broker was not told.
#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no connection to the broker")]
    Down,
    #[error(
        "the broker does not answer on $CONTROL/dynamic-security: is the plugin loaded, and may we?"
    )]
    Silent,
    #[error("the broker refuses {command}: {problem}")]
    Refused { command: String, problem: String },
}

/// Keeps telling, until `stop`.
pub fn start(
    (config, mqtt): (&FleetConfig, &Broker),
    store: FleetStore,
    changed: Arc<Notify>,
    clock: Clock,
    (tracker, stop): (&TaskTracker, &CancellationToken),
) -> Result<Told, BrokerError> {
    let options = mqtt.options(&format!("simcorp-fleet-{}", config.instance), BOUNDS)?;
    let topics = || vec![RESPONSE.to_owned()];
    let link = Link::new(options, QUEUE, topics, (WAIT_MAX, trust::spread));
    let client = link.client();
    let told = Told(Arc::new(Mutex::new(Err("not connected yet".to_owned()))));
    let (news_out, news) = mpsc::channel(QUEUE);
    tracker.spawn(poll(link, news_out, stop.clone()));
    let holder = format!("fleet-{}-{}", config.instance, std::process::id());
    let told_before = HashMap::new();
    let teller = Teller { client, news, store, clock, holder, told: told_before, asked: 0 };
    tracker.spawn(teller.run(changed, told.clone(), stop.clone()));
    Ok(told)
}

async fn poll(mut link: Link, news: mpsc::Sender<News>, stop: CancellationToken) {
    while let Some(told) = link.next(&stop).await {
        if news.send(told).await.is_err() {
            return;
        }
    }
}

struct Teller {
    client: AsyncClient,
    news: mpsc::Receiver<News>,
    store: FleetStore,
    clock: Clock,
    holder: String,
    /// The last change of each gateway that the broker was told of, since everything was compared.
    told: HashMap<(OrgId, KeyId), i64>,
    /// Counts what was asked, so that a late answer is not taken for another's.
    asked: u64,
}

impl Teller {
    async fn run(mut self, changed: Arc<Notify>, told: Told, stop: CancellationToken) {
        let mut ready = false;
        let mut compared: Option<Instant> = None;
        let mut seen_ms = 0;
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                news = self.news.recv() => match news {
                    Some(News::Ready) => (ready, compared) = (true, None),
                    Some(News::Down(_)) => {
                        ready = false;
                        told.set(Err(TellError::Down.to_string()));
                        continue;
                    }
                    Some(News::Refused) => {
                        ready = false;
                        told.set(Err(TellError::Silent.to_string()));
                        continue;
                    }
                    Some(News::Message { .. }) => continue, // to somebody who has given up
                    None => return,
                },
                () = changed.notified() => {}
                _ = look.tick() => {}
            }
            if !ready {
                continue;
            }
            let done = self.pass(&mut compared, &mut seen_ms).await;
            if let Err(error) = &done {
                tracing::warn!(%error, "the broker does not know what gateways may; trying again");
                compared = None;
            }
            if let Err(TellError::Down) = done {
                ready = false;
            }
            told.set(done.map_err(|error| error.to_string()));
        }
    }

    /// Tells what has changed, or what differs where everything is compared. Nothing while another
    /// instance does.
    async fn pass(
        &mut self,
        compared: &mut Option<Instant>,
        seen_ms: &mut i64,
    ) -> Result<(), TellError> {
        if !self.holds_lease().await? {
            *compared = None;
            return Ok(());
        }
        let all = compared.is_none_or(|at| at.elapsed() > COMPARE_EVERY);
        if all {
            self.told.clear();
        }
        let since = if all { 0 } else { *seen_ms - OVERLAP_MS };
        let mut devices = self.store.changed_since(since).await?;
        devices.retain(|(device, changed)| self.told.get(&key_of(device)) != Some(changed));
        let known = if all { Some(self.list().await?) } else { None };
        if let Some(known) = &known {
            self.forget_strangers(&devices, known).await?;
        }
        for some in devices.chunks(AT_ONCE) {
            // Somebody else may have taken over while we were slow, with a newer list.
            if !self.holds_lease().await? {
                *compared = None;
                return Ok(());
            }
            let differ: Vec<&Device> = some
                .iter()
                .map(|(device, _)| device)
                .filter(|device| known.as_ref().is_none_or(|known| known.differs(device)))
                .collect();
            self.tell(&differ).await?;
            for (device, changed) in some {
                self.told.insert(key_of(device), *changed);
                *seen_ms = (*seen_ms).max(*changed);
            }
        }
        if all {
            *compared = Some(Instant::now());
            tracing::info!(gateways = devices.len(), "the broker knows what each gateway may");
        }
        Ok(())
    }

    async fn holds_lease(&self) -> Result<bool, TellError> {
        let now = (self.clock)();
        let lease = self.store.database().lease(LEASE, &self.holder, LEASE_MS, now).await?;
        Ok(lease.is_some())
    }

    async fn tell(&mut self, devices: &[&Device]) -> Result<(), TellError> {
        let mut commands = Vec::new();
        let mut remove = |name: &str| {
            // Cuts its connection too.
            commands.push(json!({"command": "deleteClient", "username": name}));
            commands.push(json!({"command": "deleteRole", "rolename": name}));
        };
        for device in devices {
            if device.revoked_at.is_some() {
                device.certificate_name.iter().for_each(|name| remove(name));
            }
            // A key that was replaced has a certificate of another name, which may still be good.
            let present = device.key_number;
            for number in (1..present).rev().take(KEYS_BEFORE) {
                remove(&certificate_name(&device.org_id, &device.key_id, number));
            }
        }
        self.ask(commands, &NOT_THERE).await?;
        let known: Vec<(&Device, &str)> = devices
            .iter()
            .filter(|device| device.revoked_at.is_none())
            .filter_map(|device| Some((*device, device.certificate_name.as_deref()?)))
            .collect();
        let role = |command: &str, (device, name): &(&Device, &str)| {
            let acls: Vec<Value> = rights(device).iter().map(Right::json).collect();
            json!({"command": command, "rolename": name, "acls": acls,
                "textdescription": format!("{} of {}", device.key_id, device.org_id)})
        };
        let modify = known.iter().map(|one| role("modifyRole", one)).collect();
        let unknown = self.ask(modify, &NO_ROLE).await?;
        let create =
            unknown.iter().filter_map(|i| known.get(*i)).map(|one| role("createRole", one));
        self.ask(create.collect(), &[]).await?;
        let client = |command: &str, name: &str| json!({"command": command, "username": name, "roles": [{"rolename": name}]});
        let create = known.iter().map(|(_, name)| client("createClient", name)).collect();
        let there = self.ask(create, &["Client already exists"]).await?;
        let there = || there.iter().filter_map(|i| known.get(*i));
        let modify = there().map(|(_, name)| client("modifyClient", name));
        let enable = there().map(|(_, name)| json!({"command": "enableClient", "username": name}));
        self.ask(modify.chain(enable).collect(), &[]).await?;
        Ok(())
    }

    /// What the broker knows.
    async fn list(&mut self) -> Result<Listed, TellError> {
        let mut listed = Listed::default();
        for role in self.pages("listRoles", "roles").await? {
            let rights = role["acls"].as_array().into_iter().flatten().filter_map(Right::read);
            let name = role["rolename"].as_str().unwrap_or_default().to_owned();
            listed.roles.insert(name, rights.collect());
        }
        for client in self.pages("listClients", "clients").await? {
            let roles = client["roles"].as_array().into_iter().flatten();
            let roles = roles.filter_map(|role| Some(role["rolename"].as_str()?.to_owned()));
            let disabled = client["disabled"] == true;
            let name = client["username"].as_str().unwrap_or_default().to_owned();
            listed.clients.insert(name, (roles.collect(), disabled));
        }
        Ok(listed)
    }

    async fn pages(&mut self, command: &str, of: &str) -> Result<Vec<Value>, TellError> {
        let mut all = Vec::new();
        loop {
            let list = json!({"command": command, "verbose": true, "count": NAMES_AT_ONCE,
                "offset": all.len()});
            let mut answers = self.exchange(vec![list]).await?;
            let answer = answers.first_mut().map(Value::take).unwrap_or_default();
            if let Some(problem) = answer["error"].as_str() {
                let (command, problem) = (command.to_owned(), problem.to_owned());
                return Err(TellError::Refused { command, problem });
            }
            let page = answer["data"][of].as_array().cloned().unwrap_or_default();
            let done = page.len() < NAMES_AT_ONCE;
            all.extend(page);
            if done {
                return Ok(all);
            }
        }
    }

    /// Removes gateways that the broker knows and the registry does not.
    async fn forget_strangers(
        &mut self,
        devices: &[(Device, i64)],
        known: &Listed,
    ) -> Result<(), TellError> {
        let ours: BTreeSet<&str> =
            devices.iter().filter_map(|(device, _)| device.certificate_name.as_deref()).collect();
        let names: BTreeSet<&String> = known.clients.keys().chain(known.roles.keys()).collect();
        let strangers: Vec<&String> = names
            .into_iter()
            .filter(|name| name.starts_with("gw-") && !ours.contains(name.as_str()))
            .collect();
        for some in strangers.chunks(AT_ONCE) {
            let remove = some.iter().flat_map(|name| {
                [
                    json!({"command": "deleteClient", "username": name}),
                    json!({"command": "deleteRole", "rolename": name}),
                ]
            });
            tracing::warn!(gateways = ?some, "the broker knew gateways that are not registered");
            self.ask(remove.collect(), &NOT_THERE).await?;
        }
        Ok(())
    }

    /// Sends commands; answers the places of those that were refused for one of the `expected`
    /// reasons.
    async fn ask(
        &mut self,
        commands: Vec<Value>,
        expected: &[&str],
    ) -> Result<Vec<usize>, TellError> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.exchange(commands).await?;
        let mut refused = Vec::new();
        for (i, answer) in answers.iter().enumerate() {
            match answer["error"].as_str() {
                None => {}
                Some(problem) if expected.contains(&problem) => refused.push(i),
                Some(problem) => {
                    let command = answer["command"].as_str().unwrap_or_default().to_owned();
                    return Err(TellError::Refused { command, problem: problem.to_owned() });
                }
            }
        }
        Ok(refused)
    }

    /// One message of commands, and its answers in their order.
    async fn exchange(&mut self, mut commands: Vec<Value>) -> Result<Vec<Value>, TellError> {
        self.asked += 1;
        let mark = format!("{}-{}", self.holder, self.asked);
        let wanted = commands.len();
        for command in &mut commands {
            command["correlationData"] = mark.as_str().into();
        }
        let body = json!({ "commands": commands }).to_string();
        let options = PublishOptions::new(QoS::AtLeastOnce);
        self.client
            .try_publish(CONTROL, body.into_bytes(), options)
            .map_err(|_| TellError::Down)?;
        let end = Instant::now() + ANSWER_TIME_MAX;
        loop {
            let news = tokio::time::timeout_at(end, self.news.recv()).await;
            match news.map_err(|_| TellError::Silent)? {
                Some(News::Message { payload, .. }) => {
                    let mut answer: Value = serde_json::from_slice(&payload).unwrap_or_default();
                    let answers = answer["responses"].as_array_mut().map(std::mem::take);
                    let answers = answers.unwrap_or_default();
                    let ours = |answer: &Value| answer["correlationData"] == mark.as_str();
                    if answers.len() == wanted && answers.iter().all(ours) {
                        return Ok(answers);
                    }
                }
                Some(News::Ready) => {}
                Some(News::Refused) => return Err(TellError::Silent),
                Some(News::Down(_)) | None => return Err(TellError::Down),
            }
        }
    }
}

/// What the broker knows of gateways.
#[derive(Default)]
struct Listed {
    roles: BTreeMap<String, BTreeSet<Right>>,
    /// Its roles, and whether it is disabled.
    clients: BTreeMap<String, (Vec<String>, bool)>,
}

impl Listed {
    /// Whether the broker has to be told of this gateway.
    fn differs(&self, device: &Device) -> bool {
        let Some(name) = device.certificate_name.as_deref() else { return false };
        let before = (1..device.key_number).rev().take(KEYS_BEFORE);
        let mut before = before.map(|n| certificate_name(&device.org_id, &device.key_id, n));
        if before.any(|name| self.clients.contains_key(&name)) {
            return true;
        }
        if device.revoked_at.is_some() {
            return self.clients.contains_key(name) || self.roles.contains_key(name);
        }
        self.roles.get(name) != Some(&rights(device))
            || self.clients.get(name) != Some(&(vec![name.to_owned()], false))
    }
}

/// One thing that a gateway may on the bus.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    acl: String,
    topic: String,
}

impl Right {
    fn json(&self) -> Value {
        json!({"acltype": self.acl, "topic": self.topic, "allow": true})
    }

    /// `None`: something that is not allowed, and was never told by us.
    fn read(acl: &Value) -> Option<Self> {
        let text = |name: &str| Some(acl[name].as_str()?.to_owned());
        let right = Self { acl: text("acltype")?, topic: text("topic")? };
        (acl["allow"] == true).then_some(right)
    }
}

/// A gateway may speak for its machines, and hear what is answered to them.
fn rights(device: &Device) -> BTreeSet<Right> {
    const SPEAKS: [Kind; 5] =
        [Kind::LiveFrame, Kind::BacklogFrame, Kind::Receipt, Kind::Telemetry, Kind::Events];
    let mut rights = BTreeSet::new();
    for machine in &device.machines {
        let origin = Origin {
            org: device.org_id.clone(),
            site: device.site_id.clone(),
            machine: machine.clone(),
        };
        let mut may = |acl: &str, kind: Kind| {
            rights.insert(Right { acl: acl.to_owned(), topic: kind.topic(&origin) });
        };
        for kind in SPEAKS {
            may("publishClientSend", kind);
        }
        may("subscribeLiteral", Kind::Ack);
        may("publishClientReceive", Kind::Ack);
    }
    rights
}

/// Whose change it was.
fn key_of(device: &Device) -> (OrgId, KeyId) {
    (device.org_id.clone(), device.key_id.clone())
}
