//! The agent's configuration: one TOML file. `docs/reference/edge-config.md` explains each field.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::OnceLock;

use contract::{DeviceId, Digest, EventKind, KeyId, MachineId, OrgId, Origin, SiteId};
use driver::Site;
use firmware_profiles::{Checked, Writes};
use serde::{Deserialize, Serialize};
use service::config::{Config, Mistakes};
use service::log::LogConfig;
use service::mqtt::Broker;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdgeConfig {
    pub identity: Identity,
    pub machine: Machine,
    pub sampling: Sampling,
    pub journal: JournalConfig,
    /// The cloud's broker. Without one everything is kept and shown here.
    pub uplink: Broker,
    pub local: LocalConfig,
    pub artisan: ArtisanConfig,
    pub log: LogConfig,
}

/// Who this gateway is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Identity {
    pub org: String,
    pub site: String,
    pub device: String,
    /// Private key, PKCS#8 PEM, mode 0600. `simcorp-edge key create` makes one.
    pub key_file: PathBuf,
    /// The socket of `simcorp-signer`, whose key is in a token. Instead of `key_file`.
    pub signer_socket: PathBuf,
}

impl Identity {
    #[must_use]
    pub fn has_signer(&self) -> bool {
        !self.signer_socket.as_os_str().is_empty()
    }
}

/// The roaster beside it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    pub id: String,
    pub driver: DriverKind,
    pub simulated: Simulated,
    pub replay: Replay,
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
pub struct Simulated {
    /// `drum-15kg`, `sample-250g` or `air-5kg`.
    pub preset: String,
    pub seed: u64,
    /// Seconds until the first charge.
    pub charge_after_s: u64,
    /// Simulated seconds a second.
    pub speed: u64,
}

impl Default for Simulated {
    fn default() -> Self {
        Self { preset: "drum-15kg".to_owned(), seed: 1, charge_after_s: 5, speed: 1 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// An Artisan `.alog` recording.
    pub file: PathBuf,
    /// Recorded seconds a second.
    pub speed: f64,
}

impl Default for Replay {
    fn default() -> Self {
        Self { file: PathBuf::new(), speed: 1.0 }
    }
}

/// A machine that is read by its profile, and where it is at this site.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProfileConfig {
    /// One of those that the agent carries; `simcorp-edge profile list` names them.
    pub id: String,
    /// Or a file of your own.
    pub file: PathBuf,
    /// PEM public keys. With any, a file counts only with a signature of one of them beside it.
    pub trusted_keys: Vec<PathBuf>,
    /// Where the machine is, when not at its maker's default.
    pub host: Option<String>,
    pub port: Option<u16>,
    /// The serial line, such as `/dev/serial/by-id/…`.
    pub device: Option<PathBuf>,
    pub baud: Option<u32>,
    pub timeout_ms: Option<u64>,
    /// What was loaded first: what is read by and what frames say of it must be one text, whatever
    /// happens to the file meanwhile.
    #[serde(skip)]
    loaded: OnceLock<Checked>,
}

impl ProfileConfig {
    /// As it is named in messages.
    #[must_use]
    pub fn name(&self) -> String {
        if self.file.as_os_str().is_empty() {
            self.id.clone()
        } else {
            self.file.display().to_string()
        }
    }

    /// This site's addresses.
    #[must_use]
    pub fn site(&self) -> Site {
        Site {
            host: self.host.clone(),
            port: self.port,
            device: self.device.clone(),
            baud: self.baud,
            timeout_ms: self.timeout_ms,
        }
    }

    /// Reads and checks the profile, once.
    ///
    /// # Errors
    /// In a sentence: unknown, unreadable, wrong, or not signed by whom it should be.
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
                .ok_or("is not one that the agent carries; see: simcorp-edge profile list")?;
            return firmware_profiles::check(entry.text).map_err(|e| e.to_string());
        }
        let text = crate::profiles::read(&self.file)?;
        if !self.trusted_keys.is_empty() {
            crate::profiles::verify(&self.file, &text, &self.trusted_keys)?;
        }
        firmware_profiles::check(&text).map_err(|e| e.to_string())
    }
}

/// How often is measured, and how much goes into one signature.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    pub period_ms: u64,
    /// A frame is signed and kept when it is this old; a power cut loses at most this.
    pub frame_ms: u64,
    /// Find CHARGE and DROP in the bean temperature. Unset: only when the machine does not tell.
    pub infer_marks: Option<bool>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { period_ms: 1000, frame_ms: 1000, infer_marks: None }
    }
}

/// Where the samples are kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalConfig {
    pub folder: PathBuf,
    /// Past it the oldest acknowledged frames go, then the oldest of past roasts; never the
    /// running roast.
    pub quota_mb: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self { folder: "/var/lib/simcorp-edge".into(), quota_mb: 512 }
    }
}

/// The page and API on the gateway itself.
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

/// What Artisan may see of the machine, through us.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArtisanConfig {
    /// Where a Modbus machine's registers are shown as we have read them. Off when not set. It has
    /// no login, as Modbus has none.
    pub modbus: Option<SocketAddr>,
    /// Whether Artisan may move there what the profile lets be moved.
    pub writes: bool,
    /// Where the newest sample is shown as JSON, for Artisan's WebSocket device. Off when not set; no
    /// login either.
    pub websocket: Option<SocketAddr>,
}

impl EdgeConfig {
    /// The machine's full name. `None` until [`Config::check`] has found nothing wrong.
    #[must_use]
    pub fn origin(&self) -> Option<Origin> {
        Some(Origin {
            org: OrgId::new(self.identity.org.clone()).ok()?,
            site: SiteId::new(self.identity.site.clone()).ok()?,
            machine: MachineId::new(self.machine.id.clone()).ok()?,
        })
    }

    /// The signing key's name, likewise.
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        let device = DeviceId::new(self.identity.device.clone()).ok()?;
        Some(KeyId::new(&device, &SiteId::new(self.identity.site.clone()).ok()?))
    }

    /// The digest of the machine's profile, where it is read by one.
    #[must_use]
    pub fn profile_digest(&self) -> Option<Digest> {
        let by_profile = self.machine.driver == DriverKind::Profile;
        by_profile.then(|| self.machine.profile.load().ok()).flatten().map(|checked| checked.digest)
    }

    #[must_use]
    pub fn infers_marks(&self) -> bool {
        let tells = match self.machine.driver {
            DriverKind::Simulated | DriverKind::Replay => true,
            DriverKind::Profile => self.machine.profile.load().is_ok_and(|checked| {
                let marks = |kind| {
                    let mut states = checked.profile.states.iter();
                    states.any(|s| s.mark.as_deref().and_then(EventKind::parse) == Some(kind))
                };
                marks(EventKind::Charge) && marks(EventKind::Drop)
            }),
        };
        self.sampling.infer_marks.unwrap_or(!tells)
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
        mistakes.require(
            !self.identity.key_file.as_os_str().is_empty() || self.identity.has_signer(),
            "identity.key_file",
            "is not set; make a key with: simcorp-edge key create",
        );
        mistakes.require(
            self.identity.key_file.as_os_str().is_empty() || !self.identity.has_signer(),
            "identity.key_file",
            "is set beside signer_socket; there is one key",
        );
        let s = &self.sampling;
        mistakes.require(
            // No machine is asked more often; a simulated one tests what follows.
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
            "is set, and the machine is none that speaks Modbus",
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
            "is on, and artisan.modbus is not set, machine.profile.trusted_keys names nobody who \
             signs the profile, or the profile lets nothing be written: it says so after a \
             bring-up at the machine by two people (writes = \"enabled\")",
        );
        match self.machine.driver {
            DriverKind::Simulated => self.machine.simulated.check(mistakes),
            DriverKind::Replay => self.machine.replay.check(mistakes),
            DriverKind::Profile => self.machine.profile.check(self, mistakes),
        }
        self.log.check(mistakes);
    }
}

impl Simulated {
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

impl Replay {
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
            mistakes.add(field, "say either id (see: simcorp-edge profile list) or file");
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
                    "is less than the profile's timing.poll_ms, which is what the line can carry",
                );
                let timeout_ms = self.timeout_ms.unwrap_or(checked.profile.timing.timeout_ms);
                mistakes.require(
                    (10..=config.sampling.period_ms).contains(&timeout_ms),
                    "machine.profile.timeout_ms",
                    "not between 10 and the sampling period (the profile's own counts when this is not set)",
                );
            }
        }
    }
}
