//! Synchronises the broker's access list with the device registry. It sends commands to Mosquitto's
//! dynamic security plugin over MQTT itself, so that the broker accepts a gateway as soon as it has
//! enrolled, and disconnects it as soon as it is revoked.
//!
//! The registry is authoritative, and the broker's list follows it.
//! One instance at a time synchronises; a lease ensures this.
//! After each new connection to the broker, all gateways are compared; in between, only the changed
//! ones are sent.

mod acl;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use contract::{KeyId, OrgId};
use database::StoreError;
use rumqttc::{AsyncClient, PublishOptions, QoS};
use serde_json::{Value, json};
use service::mqtt::{
    BrokerError, BrokerSettings, ConnectionBounds, ConnectionEvent, MqttConnection,
};
use service::tasks::{self, Panicked, Tasks};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use acl::{AclEntry, BrokerSnapshot, acl_entries};

use crate::FleetConfig;
use crate::device::{Device, certificate_name};
use crate::store::FleetStore;
use service::clock::Clock;

const CONTROL: &str = "$CONTROL/dynamic-security/v1";
const RESPONSE: &str = "$CONTROL/dynamic-security/v1/response";
const BOUNDS: ConnectionBounds =
    ConnectionBounds { in_flight: 16, receive: 64, packet: 1024 * 1024 };
/// The maximum number of queued messages to and from the broker.
const QUEUE: usize = 64;
const WAIT_MAX: Duration = Duration::from_secs(5);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How often the registry is read for changes, in case another instance of this service made them:
/// only changes by this instance wake the task at once.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// How often all gateways are compared again, in case another client changed the broker's list.
const COMPARE_EVERY: Duration = Duration::from_hours(1);
const LEASE: &str = "fleet-broker";
const LEASE_MS: i64 = 30_000;
/// How far back, ms, changes are read again: a transaction commits later than the time that it
/// recorded.
const OVERLAP_MS: i64 = 120_000;
/// The plugin's error texts for a missing role, which differ from command to command. `modifyRole`
/// gets one of them for a role that must be created.
const NO_ROLE: [&str; 2] = ["Role not found", "Role does not exist"];
/// The plugin's error texts for a missing client or role. A removal that gets one of them has
/// nothing left to remove.
const NOT_FOUND_TEXTS: [&str; 3] = ["Client not found", "Role not found", "Role does not exist"];
/// The number of gateways whose commands share one message, so that its size stays below the
/// connection's packet limit. Before each such group the lease is renewed.
const GATEWAYS_PER_MESSAGE: usize = 50;
/// The number of roles or clients that one list command reads.
const NAMES_PER_PAGE: usize = 200;
/// The number of previous keys of a gateway whose names are removed from the broker: their
/// certificates may still be valid. The limit bounds the number of commands per gateway.
const OLD_KEYS_REMOVED: usize = 8;

/// Whether the broker's list agrees with the registry.
#[derive(Clone)]
pub struct AclSyncStatus(Arc<Mutex<Result<(), String>>>);

impl AclSyncStatus {
    /// Returns `Ok` if the broker's list agrees with the registry, and also while another instance
    /// holds the lease.
    ///
    /// # Errors
    /// The reason why it does not, as a sentence.
    pub fn is_current(&self) -> Result<(), String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, now: Result<(), String>) {
        let current = if now.is_ok() { 1.0 } else { 0.0 };
        metrics::gauge!("simcorp_fleet_broker_current").set(current);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// The reason why the broker was not updated.
#[derive(Debug, thiserror::Error)]
enum AclSyncError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no connection to the broker")]
    Down,
    #[error(
        "the broker does not answer on $CONTROL/dynamic-security; check that the plugin is loaded \
         and that this client may use it"
    )]
    NoResponse,
    #[error("the broker refuses {command}: {problem}")]
    Refused { command: String, problem: String },
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// Spawns the tasks that synchronise the broker until `stop`, and returns their status.
pub fn start(
    (config, mqtt): (&FleetConfig, &BrokerSettings),
    store: FleetStore,
    changed: Arc<Notify>,
    clock: Clock,
    (tasks, stop): (&Tasks, &CancellationToken),
) -> Result<AclSyncStatus, BrokerError> {
    let options = mqtt.options(&format!("simcorp-fleet-{}", config.instance), BOUNDS)?;
    let topics = || vec![RESPONSE.to_owned()];
    let link = MqttConnection::new(options, QUEUE, topics, (WAIT_MAX, trust::jitter));
    let client = link.client();
    let status =
        AclSyncStatus(Arc::new(Mutex::new(Err("not connected to the broker yet".to_owned()))));
    let (event_sender, events) = mpsc::channel(QUEUE);
    // The connection and the queue of its events outlive a run; each run connects anew.
    let until = stop.clone();
    tasks.spawn_restarting_with("fleet-mqtt", (link, event_sender), move |(link, events)| {
        Box::pin(poll(link, events, until.clone()))
    });
    let holder = format!("fleet-{}-{}", config.instance, std::process::id());
    let sync = BrokerAclSync {
        client,
        events,
        store,
        clock,
        holder,
        is_ready: false,
        synced_changes: HashMap::new(),
        request_count: 0,
    };
    // The queue outlives a run; each run begins with a full comparison.
    let parts = (changed, status.clone(), stop.clone());
    tasks.spawn_restarting_with("broker-sync", sync, move |sync| {
        let (changed, status, stop) = parts.clone();
        Box::pin(sync.run(changed, status, stop))
    });
    Ok(status)
}

async fn poll(
    link: &mut MqttConnection,
    events: &mpsc::Sender<ConnectionEvent>,
    stop: CancellationToken,
) {
    link.reconnect();
    while let Some(event) = link.next(&stop).await {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

struct BrokerAclSync {
    client: AsyncClient,
    events: mpsc::Receiver<ConnectionEvent>,
    store: FleetStore,
    clock: Clock,
    holder: String,
    /// Whether the broker receives commands, by the last event of the connection.
    is_ready: bool,
    /// The last change of each gateway that was sent to the broker since the last full comparison.
    synced_changes: HashMap<(OrgId, KeyId), i64>,
    /// Counts the requests, so that a late response is not mistaken for that of a later request.
    request_count: u64,
}

impl BrokerAclSync {
    async fn run(&mut self, changed: Arc<Notify>, status: AclSyncStatus, stop: CancellationToken) {
        let mut compared: Option<Instant> = None;
        let mut seen_ms = 0;
        let mut interval = tokio::time::interval(SYNC_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                event = self.events.recv() => match event {
                    Some(ConnectionEvent::Ready) => (self.is_ready, compared) = (true, None),
                    Some(ConnectionEvent::Down(_)) => {
                        self.is_ready = false;
                        status.set(Err(AclSyncError::Down.to_string()));
                        continue;
                    }
                    Some(ConnectionEvent::SubscriptionRefused) => {
                        self.is_ready = false;
                        status.set(Err(AclSyncError::NoResponse.to_string()));
                        continue;
                    }
                    Some(ConnectionEvent::Message { .. }) => continue, // the request has timed out
                    None => return,
                },
                () = changed.notified() => {}
                _ = interval.tick() => {}
            }
            if !self.is_ready {
                continue;
            }
            let sync = self.sync_once(&mut compared, &mut seen_ms);
            let done = match tasks::isolate("sync-acl", sync).await {
                Ok(done) => done,
                Err(panicked) => Err(AclSyncError::from(panicked)),
            };
            if let Err(error) = &done {
                tracing::warn!(%error, "the broker's access list is not up to date; trying again");
                compared = None;
            }
            if let Err(AclSyncError::Down) = done {
                self.is_ready = false;
            }
            status.set(done.map_err(|error| error.to_string()));
        }
    }

    /// Sends the changed gateways to the broker; in a full comparison, those that differ. Does
    /// nothing while another instance holds the lease.
    async fn sync_once(
        &mut self,
        compared: &mut Option<Instant>,
        seen_ms: &mut i64,
    ) -> Result<(), AclSyncError> {
        if !self.holds_lease().await? {
            *compared = None;
            return Ok(());
        }
        let all = compared.is_none_or(|at| at.elapsed() > COMPARE_EVERY);
        if all {
            self.synced_changes.clear();
        }
        let since = if all { 0 } else { seen_ms.saturating_sub(OVERLAP_MS) };
        let mut devices = self.store.changed_since(since).await?;
        devices
            .retain(|(device, changed)| self.synced_changes.get(&key_of(device)) != Some(changed));
        let known = if all { Some(self.list().await?) } else { None };
        if let Some(known) = &known {
            self.remove_unregistered(&devices, known).await?;
        }
        for some in devices.chunks(GATEWAYS_PER_MESSAGE) {
            // Another instance may have acquired the lease meanwhile, and sent a newer list.
            if !self.holds_lease().await? {
                *compared = None;
                return Ok(());
            }
            let differ: Vec<&Device> = some
                .iter()
                .map(|(device, _)| device)
                .filter(|device| known.as_ref().is_none_or(|known| known.differs(device)))
                .collect();
            self.apply_acls(&differ).await?;
            for (device, changed) in some {
                self.synced_changes.insert(key_of(device), *changed);
                *seen_ms = (*seen_ms).max(*changed);
            }
        }
        if all {
            *compared = Some(Instant::now());
            tracing::info!(gateways = devices.len(), "the broker's access list is up to date");
        }
        Ok(())
    }

    async fn holds_lease(&self) -> Result<bool, AclSyncError> {
        let now = (self.clock)();
        let lease = self.store.database().lease(LEASE, &self.holder, LEASE_MS, now).await?;
        Ok(lease.is_some())
    }

    async fn apply_acls(&mut self, devices: &[&Device]) -> Result<(), AclSyncError> {
        let mut commands = Vec::new();
        let mut remove = |name: &str| {
            // This also closes the client's connection.
            commands.push(json!({"command": "deleteClient", "username": name}));
            commands.push(json!({"command": "deleteRole", "rolename": name}));
        };
        for device in devices {
            if device.revoked_at.is_some() {
                device.certificate_name.iter().for_each(|name| remove(name));
            }
            // A replaced key has a certificate with another name, which may still be valid.
            let present = device.key_number;
            for number in (1..present).rev().take(OLD_KEYS_REMOVED) {
                remove(&certificate_name(&device.org_id, &device.key_id, number));
            }
        }
        self.send_commands(commands, &NOT_FOUND_TEXTS).await?;
        let known: Vec<(&Device, &str)> = devices
            .iter()
            .filter(|device| device.revoked_at.is_none())
            .filter_map(|device| Some((*device, device.certificate_name.as_deref()?)))
            .collect();
        let role = |command: &str, (device, name): &(&Device, &str)| {
            let acls: Vec<Value> = acl_entries(device).iter().map(AclEntry::json).collect();
            json!({"command": command, "rolename": name, "acls": acls,
                "textdescription": format!("{} of {}", device.key_id, device.org_id)})
        };
        let modify = known.iter().map(|one| role("modifyRole", one)).collect();
        let unknown = self.send_commands(modify, &NO_ROLE).await?;
        let create =
            unknown.iter().filter_map(|i| known.get(*i)).map(|one| role("createRole", one));
        self.send_commands(create.collect(), &[]).await?;
        let client = |command: &str, name: &str| json!({"command": command, "username": name, "roles": [{"rolename": name}]});
        let create = known.iter().map(|(_, name)| client("createClient", name)).collect();
        let there = self.send_commands(create, &["Client already exists"]).await?;
        let there = || there.iter().filter_map(|i| known.get(*i));
        let modify = there().map(|(_, name)| client("modifyClient", name));
        let enable = there().map(|(_, name)| json!({"command": "enableClient", "username": name}));
        self.send_commands(modify.chain(enable).collect(), &[]).await?;
        Ok(())
    }

    /// Reads the gateways' roles and clients from the broker.
    async fn list(&mut self) -> Result<BrokerSnapshot, AclSyncError> {
        let mut listed = BrokerSnapshot::default();
        for role in self.pages("listRoles", "roles").await? {
            let rights = role["acls"].as_array().into_iter().flatten().filter_map(AclEntry::read);
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

    async fn pages(&mut self, command: &str, of: &str) -> Result<Vec<Value>, AclSyncError> {
        let mut all = Vec::new();
        loop {
            let list = json!({"command": command, "verbose": true, "count": NAMES_PER_PAGE,
                "offset": all.len()});
            let mut answers = self.exchange(vec![list]).await?;
            let answer = answers.first_mut().map(Value::take).unwrap_or_default();
            if let Some(problem) = answer["error"].as_str() {
                let (command, problem) = (command.to_owned(), problem.to_owned());
                return Err(AclSyncError::Refused { command, problem });
            }
            let page = answer["data"][of].as_array().cloned().unwrap_or_default();
            let done = page.len() < NAMES_PER_PAGE;
            all.extend(page);
            if done {
                return Ok(all);
            }
        }
    }

    /// Removes from the broker the gateways that are not in the registry.
    async fn remove_unregistered(
        &mut self,
        devices: &[(Device, i64)],
        known: &BrokerSnapshot,
    ) -> Result<(), AclSyncError> {
        let ours: BTreeSet<&str> =
            devices.iter().filter_map(|(device, _)| device.certificate_name.as_deref()).collect();
        let names: BTreeSet<&String> = known.clients.keys().chain(known.roles.keys()).collect();
        let strangers: Vec<&String> = names
            .into_iter()
            .filter(|name| name.starts_with("gw-") && !ours.contains(name.as_str()))
            .collect();
        for some in strangers.chunks(GATEWAYS_PER_MESSAGE) {
            let remove = some.iter().flat_map(|name| {
                [
                    json!({"command": "deleteClient", "username": name}),
                    json!({"command": "deleteRole", "rolename": name}),
                ]
            });
            tracing::warn!(gateways = ?some, "removing unregistered gateways from the broker");
            self.send_commands(remove.collect(), &NOT_FOUND_TEXTS).await?;
        }
        Ok(())
    }

    /// Sends commands. Returns the indices of the commands that the broker refused for one of the
    /// `expected` reasons.
    async fn send_commands(
        &mut self,
        commands: Vec<Value>,
        expected: &[&str],
    ) -> Result<Vec<usize>, AclSyncError> {
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
                    return Err(AclSyncError::Refused { command, problem: problem.to_owned() });
                }
            }
        }
        Ok(refused)
    }

    /// Sends one message of commands, and returns the responses in the order of the commands.
    async fn exchange(&mut self, mut commands: Vec<Value>) -> Result<Vec<Value>, AclSyncError> {
        self.request_count = self.request_count.saturating_add(1);
        let mark = format!("{}-{}", self.holder, self.request_count);
        let wanted = commands.len();
        for command in &mut commands {
            command["correlationData"] = mark.as_str().into();
        }
        let body = json!({ "commands": commands }).to_string();
        let options = PublishOptions::new(QoS::AtLeastOnce);
        self.client
            .try_publish(CONTROL, body.into_bytes(), options)
            .map_err(|_| AclSyncError::Down)?;
        let end = Instant::now() + ANSWER_TIME_MAX;
        loop {
            let event = tokio::time::timeout_at(end, self.events.recv()).await;
            match event.map_err(|_| AclSyncError::NoResponse)? {
                Some(ConnectionEvent::Message { payload, .. }) => {
                    let mut answer: Value = serde_json::from_slice(&payload).unwrap_or_default();
                    let answers = answer["responses"].as_array_mut().map(std::mem::take);
                    let answers = answers.unwrap_or_default();
                    let ours = |answer: &Value| answer["correlationData"] == mark.as_str();
                    if answers.len() == wanted && answers.iter().all(ours) {
                        return Ok(answers);
                    }
                }
                Some(ConnectionEvent::Ready) => {}
                Some(ConnectionEvent::SubscriptionRefused) => return Err(AclSyncError::NoResponse),
                Some(ConnectionEvent::Down(_)) | None => return Err(AclSyncError::Down),
            }
        }
    }
}

/// Returns the organisation and key id that identify a device.
fn key_of(device: &Device) -> (OrgId, KeyId) {
    (device.org_id.clone(), device.key_id.clone())
}
