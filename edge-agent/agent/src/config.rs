//! The agent's configuration: one TOML file. `docs/reference/edge-config.md` explains each field.

use std::net::SocketAddr;
use std::path::PathBuf;

use contract::{Channel, DeviceId, KeyId, MachineId, OrgId, Origin, SiteId};
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
}

/// The roaster beside it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    pub id: String,
    pub driver: DriverKind,
    pub simulated: Simulated,
    pub replay: Replay,
    pub modbus: Modbus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverKind {
    #[default]
    Simulated,
    Replay,
    Modbus,
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

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Modbus {
    pub host: String,
    pub port: u16,
    pub unit: u8,
    /// A read that takes longer has failed.
    pub timeout_ms: u64,
    pub channels: Vec<ModbusChannel>,
    /// Registers that are the machine's own word on what happens.
    pub marks: Vec<ModbusMark>,
}

impl Default for Modbus {
    fn default() -> Self {
        Self {
            host: String::new(),
            port: 502,
            unit: 1,
            timeout_ms: 300,
            channels: Vec::new(),
            marks: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModbusChannel {
    /// `btC`, `etC`, `gasPct`, `fanPct`, `drumRpm`, `ambientC`, or a name of your own.
    pub name: String,
    /// PDU address, from 0.
    pub address: u16,
    pub table: ModbusTable,
    pub kind: ModbusKind,
    /// The raw value is divided by this.
    pub divisor: Option<f64>,
    /// True when the value is in °F.
    pub fahrenheit: bool,
    /// True when the low word comes first.
    pub low_word_first: bool,
    /// A raw value that means "no reading".
    pub missing: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModbusTable {
    #[default]
    Holding,
    Input,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModbusKind {
    #[default]
    U16,
    I16,
    U32,
    I32,
    F32,
}

impl ModbusKind {
    #[must_use]
    pub const fn words(self) -> u16 {
        match self {
            Self::U16 | Self::I16 => 1,
            Self::U32 | Self::I32 | Self::F32 => 2,
        }
    }
}

/// When the register takes `value`, the machine says that `event` happened.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModbusMark {
    /// `CHARGE`, `FC`, `DROP`, …
    pub event: String,
    pub address: u16,
    pub value: u16,
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

    #[must_use]
    pub fn infers_marks(&self) -> bool {
        let tells = match self.machine.driver {
            DriverKind::Simulated | DriverKind::Replay => true,
            DriverKind::Modbus => !self.machine.modbus.marks.is_empty(),
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
            !self.identity.key_file.as_os_str().is_empty(),
            "identity.key_file",
            "is not set; make a key with: simcorp-edge key create",
        );
        let s = &self.sampling;
        mistakes.require(
            (20..=60_000).contains(&s.period_ms),
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
        match self.machine.driver {
            DriverKind::Simulated => self.machine.simulated.check(mistakes),
            DriverKind::Replay => self.machine.replay.check(mistakes),
            DriverKind::Modbus => self.machine.modbus.check(self, mistakes),
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

impl Modbus {
    fn check(&self, config: &EdgeConfig, mistakes: &mut Mistakes) {
        mistakes.require(!self.host.is_empty(), "machine.modbus.host", "is not set");
        mistakes.require(!self.channels.is_empty(), "machine.modbus.channels", "has no channel");
        mistakes.require(
            self.timeout_ms >= 10 && self.timeout_ms <= config.sampling.period_ms,
            "machine.modbus.timeout_ms",
            "not between 10 and the sampling period",
        );
        for (i, channel) in self.channels.iter().enumerate() {
            let field = |name: &str| format!("machine.modbus.channels[{i}].{name}");
            let parsed = Channel::parse(&channel.name);
            mistakes.require(
                parsed.as_ref().is_some_and(|c| *c != Channel::Ror),
                &field("name"),
                "not a channel's name (rorCPerMin is computed, never read)",
            );
            let twice = self.channels[..i].iter().any(|other| other.name == channel.name);
            mistakes.require(!twice, &field("name"), "comes twice");
            mistakes.require(
                channel.divisor.is_none_or(|d| d.is_finite() && d != 0.0),
                &field("divisor"),
                "is 0",
            );
        }
        for (i, mark) in self.marks.iter().enumerate() {
            mistakes.require(
                contract::EventKind::parse(&mark.event).is_some(),
                &format!("machine.modbus.marks[{i}].event"),
                "not CHARGE, TP, DRY_END, FC, FC_END, SC, SC_END, DROP, COOL_END or NOTE",
            );
        }
    }
}
