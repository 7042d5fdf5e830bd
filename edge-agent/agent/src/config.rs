//! The agent's configuration: one TOML file. `docs/reference/configuration.md` explains it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;

use contract::{DeviceId, Digest, EventKind, KeyId, MachineId, OrgId, Origin, SiteId};
use driver::ConnectionSettings;
use firmware_profiles::{Checked, Writes};
use serde::{Deserialize, Serialize};
use service::config::{Config, Mistakes};
use service::log::LogConfig;
use service::mqtt::BrokerSettings;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeConfig {
    pub identity: IdentityConfig,
    pub machine: MachineConfig,
    pub sampling: SamplingConfig,
    pub journal: JournalConfig,
    /// The cloud's MQTT broker. Without one the agent sends nothing: it stores the samples and
    /// shows them on its local page.
    pub uplink: BrokerSettings,
    pub local: LocalConfig,
    pub artisan: ArtisanConfig,
    pub compatibility: CompatibilityConfig,
    pub log: LogConfig,
}

/// The identity of this gateway: its organisation, site, device and signing key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityConfig {
    pub org: String,
    pub site: String,
    pub device: String,
    /// The private key: PKCS#8 PEM, mode 0600. `simcorp-edge key create` creates it.
    pub key_file: PathBuf,
    /// The socket of `simcorp-signer`, which uses a key in a PKCS#11 token. Replaces `key_file`:
    /// only one of the two may be set.
    pub signer_socket: PathBuf,
}

impl IdentityConfig {
    /// Returns whether the key is used through the socket of `simcorp-signer`.
    #[must_use]
    pub fn uses_signer_socket(&self) -> bool {
        !self.signer_socket.as_os_str().is_empty()
    }
}

/// The roaster that this gateway measures.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineConfig {
    pub id: String,
    /// The machine's id before it was renamed: what was learned under it is used. Empty: none.
    pub previous_id: String,
    pub driver: DriverKind,
    pub simulated: SimulatedConfig,
    pub replay: ReplayConfig,
    pub profile: ProfileConfig,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    #[default]
    Simulated,
    Replay,
    Profile,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimulatedConfig {
    /// `drum-15kg`, `sample-250g` or `air-5kg`.
    pub preset: String,
    pub seed: u64,
    /// Seconds until the first charge.
    pub charge_after_s: u64,
    /// Simulated seconds per second.
    pub speed: u64,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        Self { preset: "drum-15kg".to_owned(), seed: 1, charge_after_s: 5, speed: 1 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplayConfig {
    /// An Artisan `.alog` recording.
    pub file: PathBuf,
    /// Recorded seconds per second.
    pub speed: f64,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self { file: PathBuf::new(), speed: 1.0 }
    }
}

/// A machine that the agent reads according to a profile, and the machine's address at this site.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProfileConfig {
    /// The id of a profile that is built into the agent; `simcorp-edge profile list` lists them.
    pub id: String,
    /// The file of a profile of your own, instead of `id`.
    pub file: PathBuf,
    /// Files of public keys (PEM). If any is set, `file` is accepted only with a signature beside
    /// it that one of these keys made.
    pub trusted_keys: Vec<PathBuf>,
    /// The machine's host name or address, if it differs from the profile's default.
    pub host: Option<String>,
    pub port: Option<u16>,
    /// The serial line, such as `/dev/serial/by-id/…`.
    pub device: Option<PathBuf>,
    pub baud: Option<u32>,
    pub timeout_ms: Option<u64>,
    /// The profile as loaded the first time. The profile that the agent reads the machine with and
    /// the profile digest in the frames must come from the same text, even if the file changes
    /// meanwhile.
    #[serde(skip)]
    loaded: OnceLock<Checked>,
}

impl ProfileConfig {
    /// Returns the profile's name for messages: its id, or the path of its file.
    #[must_use]
    pub fn name(&self) -> String {
        if self.file.as_os_str().is_empty() {
            self.id.clone()
        } else {
            self.file.display().to_string()
        }
    }

    /// Returns the machine's address, baud rate and timeout; a field that is `None` is not
    /// configured.
    #[must_use]
    pub fn connection_settings(&self) -> ConnectionSettings {
        ConnectionSettings {
            host: self.host.clone(),
            port: self.port,
            device: self.device.clone(),
            baud: self.baud,
            timeout_ms: self.timeout_ms,
        }
    }

    /// Returns the profile. The first successful call reads and checks it; later calls return the
    /// same one.
    ///
    /// # Errors
    /// A sentence that says why: the id is unknown, the file is unreadable, the profile is invalid,
    /// or no key of `trusted_keys` signed it.
    pub fn load(&self) -> Result<Checked, String> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded.clone());
        }
        let loaded = self.read()?;
        Ok(self.loaded.get_or_init(|| loaded).clone())
    }

    fn read(&self) -> Result<Checked, String> {
        if self.file.as_os_str().is_empty() {
            let entry = firmware_profiles::shipped(&self.id)
                .ok_or("is not a profile that this agent has; see: simcorp-edge profile list")?;
            return firmware_profiles::check(entry.text).map_err(|e| e.to_string());
        }
        let text = crate::profiles::read(&self.file)?;
        if !self.trusted_keys.is_empty() {
            crate::profiles::verify(&self.file, &text, &self.trusted_keys)?;
        }
        firmware_profiles::check(&text).map_err(|e| e.to_string())
    }
}

/// How often the agent samples the machine, and how many samples it signs together.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// The time between two samples, in ms.
    pub period_ms: u64,
    /// The age in ms at which a frame is completed, signed and stored. A power cut loses at most
    /// this much.
    pub frame_ms: u64,
    /// Whether to infer CHARGE and DROP from the bean temperature. If unset, they are inferred only
    /// for a machine that does not report them.
    pub infer_marks: Option<bool>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { period_ms: 1000, frame_ms: 1000, infer_marks: None }
    }
}

/// Where the samples are stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    pub folder: PathBuf,
    /// The journal's maximum size. Beyond it the agent deletes the oldest acknowledged frames, then
    /// the oldest frames of past roasts: unsent, not signed yet, refused; never those of the running
    /// roast.
    pub quota_mb: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { folder: "/var/lib/simcorp-edge".into(), quota_mb: 512 }
    }
}

/// The web page and API that the gateway itself serves.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalConfig {
    pub listen: SocketAddr,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 4004)) }
    }
}

/// What the agent shows to Artisan of the machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArtisanConfig {
    /// The address of a Modbus server that shows the registers of a Modbus machine as the agent
    /// last read them. Off if not set. It has no login, because Modbus has none.
    pub modbus: Option<SocketAddr>,
    /// Whether Artisan may write through that server to the controls that the profile permits.
    pub writes: bool,
    /// The address of a WebSocket server that sends the newest sample as JSON, for Artisan's
    /// WebSocket device. Off if not set. It has no login either.
    pub websocket: Option<SocketAddr>,
}

/// What the agent sends for programs that were written for upstream Sim-Corp.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompatibilityConfig {
    /// Whether live samples and events are also published as JSON on upstream's topics, which the
    /// broker must permit.
    pub json_telemetry: bool,
}

impl EdgeConfig {
    /// Returns the machine's full name. Always `Some` for a configuration that passed
    /// [`Config::check`]; `None` if one of the ids in it is invalid.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        Some(Origin {
            org: OrgId::new(self.identity.org.clone()).ok()?,
            site: SiteId::new(self.identity.site.clone()).ok()?,
            machine: MachineId::new(self.machine.id.clone()).ok()?,
        })
    }

    /// Returns the name that the machine `origin` had before it was renamed; `None` if none is
    /// configured.
    #[must_use]
    pub fn previous_origin(&self, origin: &Origin) -> Option<Origin> {
        let machine = MachineId::new(self.machine.previous_id.clone()).ok()?;
        Some(Origin { machine, ..origin.clone() })
    }

    /// Returns the signing key's id. Always `Some` for a configuration that passed
    /// [`Config::check`]; `None` if an id in it is invalid.
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        let device = DeviceId::new(self.identity.device.clone()).ok()?;
        Some(KeyId::new(&device, &SiteId::new(self.identity.site.clone()).ok()?))
    }

    /// Returns the digest of the machine's profile. `None` if the machine is not read with a
    /// profile, or if the profile cannot be loaded.
    #[must_use]
    pub fn profile_digest(&self) -> Option<Digest> {
        let by_profile = self.machine.driver == DriverKind::Profile;
        by_profile.then(|| self.machine.profile.load().ok()).flatten().map(|checked| checked.digest)
    }

    /// Returns whether CHARGE and DROP are inferred from the bean temperature.
    #[must_use]
    pub fn infers_events(&self) -> bool {
        let reports_events = match self.machine.driver {
            DriverKind::Simulated | DriverKind::Replay => true,
            DriverKind::Profile => self.machine.profile.load().is_ok_and(|checked| {
                let marks = |kind| {
                    let mut states = checked.profile.states.iter();
                    states.any(|s| s.mark.as_deref().and_then(EventKind::parse) == Some(kind))
                };
                marks(EventKind::Charge) && marks(EventKind::Drop)
            }),
        };
        self.sampling.infer_marks.unwrap_or(!reports_events)
    }
}

impl Config for EdgeConfig {
    fn check(&self, mistakes: &mut Mistakes) {
        let mut id = |field, result: Result<(), contract::IdError>| {
            if let Err(error) = result {
                mistakes.add(field, error.to_string());
            }
        };
        id("identity.org", OrgId::new(self.identity.org.clone()).map(drop));
        id("identity.site", SiteId::new(self.identity.site.clone()).map(drop));
        id("identity.device", DeviceId::new(self.identity.device.clone()).map(drop));
        id("machine.id", MachineId::new(self.machine.id.clone()).map(drop));
        if !self.machine.previous_id.is_empty() {
            id("machine.previous_id", MachineId::new(self.machine.previous_id.clone()).map(drop));
        }
        mistakes.require(
            !self.identity.key_file.as_os_str().is_empty() || self.identity.uses_signer_socket(),
            "identity.key_file",
            "is not set; create a key with: simcorp-edge key create",
        );
        mistakes.require(
            self.identity.key_file.as_os_str().is_empty() || !self.identity.uses_signer_socket(),
            "identity.key_file",
            "is set together with signer_socket; set only one of the two",
        );
        let s = &self.sampling;
        mistakes.require(
            // No real machine is polled faster than every 20 ms. A simulated machine may be, to
            // test the load on what follows.
            (if self.machine.driver == DriverKind::Simulated { 1 } else { 20 }..=60_000)
                .contains(&s.period_ms),
            "sampling.period_ms",
            "not between 20 and 60000",
        );
        mistakes.require(
            (20..=60_000).contains(&s.frame_ms),
            "sampling.frame_ms",
            "not between 20 and 60000",
        );
        mistakes.require(self.journal.quota_mb >= 16, "journal.quota_mb", "less than 16 MB");
        self.uplink.check("uplink", mistakes);
        mistakes.require(
            self.local.listen.ip().is_loopback(),
            "local.listen",
            "not a loopback address; the local page has no login",
        );
        let modbus = self.machine.driver == DriverKind::Profile
            && self
                .machine
                .profile
                .load()
                .is_ok_and(|checked| checked.profile.transport.station().is_some());
        mistakes.require(
            self.artisan.modbus.is_none() || modbus,
            "artisan.modbus",
            "is set, but the machine does not use Modbus; remove it",
        );
        let signed = !self.machine.profile.trusted_keys.is_empty();
        let allowed = modbus
            && self
                .machine
                .profile
                .load()
                .is_ok_and(|c| c.profile.machine.writes == Writes::Enabled);
        mistakes.require(
            !self.artisan.writes || (self.artisan.modbus.is_some() && allowed && signed),
            "artisan.writes",
            "is on, but artisan.modbus is not set, machine.profile.trusted_keys is empty, or the \
             profile does not allow writes; a profile allows them (writes = \"enabled\") after two \
             people have done a bring-up at the machine",
        );
        match self.machine.driver {
            DriverKind::Simulated => self.machine.simulated.check(mistakes),
            DriverKind::Replay => self.machine.replay.check(mistakes),
            DriverKind::Profile => self.machine.profile.check(self, mistakes),
        }
        self.log.check(mistakes);
    }
}

impl SimulatedConfig {
    fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(
            roast::twin::Preset::named(&self.preset).is_some(),
            "machine.simulated.preset",
            "not drum-15kg, sample-250g or air-5kg",
        );
        mistakes.require(
            (1..=600).contains(&self.speed),
            "machine.simulated.speed",
            "not between 1 and 600",
        );
    }
}

impl ReplayConfig {
    fn check(&self, mistakes: &mut Mistakes) {
        mistakes.require(!self.file.as_os_str().is_empty(), "machine.replay.file", "is not set");
        mistakes.require(
            self.speed >= 0.1 && self.speed <= 1000.0,
            "machine.replay.speed",
            "not between 0.1 and 1000",
        );
    }
}

impl ProfileConfig {
    fn check(&self, config: &EdgeConfig, mistakes: &mut Mistakes) {
        let (by_id, by_file) = (!self.id.is_empty(), !self.file.as_os_str().is_empty());
        if by_id == by_file {
            let field = if by_id { "machine.profile.file" } else { "machine.profile.id" };
            mistakes.add(field, "set either id (see: simcorp-edge profile list) or file");
            return;
        }
        let field = if by_id { "machine.profile.id" } else { "machine.profile.file" };
        match self.load() {
            Err(problem) => mistakes.add(field, problem),
            Ok(checked) => {
                let serial = checked.profile.transport.serial().is_some();
                mistakes.require(
                    !serial || self.device.is_some(),
                    "machine.profile.device",
                    "is not set, and this machine is on a serial line; see /dev/serial/by-id/",
                );
                mistakes.require(
                    !serial || config.sampling.period_ms >= checked.profile.timing.poll_ms,
                    "sampling.period_ms",
                    "is less than the profile's timing.poll_ms, the minimum for its serial line",
                );
                let timeout_ms = self.timeout_ms.unwrap_or(checked.profile.timing.timeout_ms);
                mistakes.require(
                    (10..=config.sampling.period_ms).contains(&timeout_ms),
                    "machine.profile.timeout_ms",
                    "not between 10 and sampling.period_ms (if not set, the profile's \
                     timing.timeout_ms is used)",
                );
            }
        }
    }
}
