//! `simcorp device`: enrols, registers, lists, recovers and revokes devices (gateways).

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use contract::{Actor, ActorKind, EpochMs, KeyId, MachineId, OrgId};
use fleet::FleetStore;
use fleet::device::{NewDevice, RegisterOutcome};
use fleet::store::ChangedBy;
use serde::Deserialize;
use serde_json::{Value, json};
use trust::PublicKey;

use crate::config::CloudConfig;
use crate::output::Output;
use crate::remote::OperatorClient;
use crate::serve;

#[derive(Subcommand)]
pub enum DeviceCommand {
    /// Create an enrolment token for one gateway and print it, for `simcorp-edge enroll`
    Enroll(EnrollArgs),
    /// Register a gateway's key without a certificate. FILE is the output of `simcorp-edge key
    /// show`; - reads it from standard input
    Add {
        /// The file with the registration data, or -
        file: PathBuf,
    },
    /// List the registered devices
    List,
    /// Show a device with its keys and certificates
    Show {
        /// The device's key id: device:NAME@SITE
        kid: String,
    },
    /// List the gateways that request a certificate after theirs has expired; with KID, approve
    /// that gateway's request
    Recover {
        /// The device's key id: device:NAME@SITE
        kid: Option<String>,
        /// Refuse the request instead of approving it
        #[arg(long, requires = "kid")]
        refuse: bool,
    },
    /// Revoke a device permanently: its signatures are no longer accepted
    Revoke {
        /// The device's key id: device:NAME@SITE
        kid: String,
    },
}

#[derive(Args)]
pub struct EnrollArgs {
    /// The device's name at its site
    device: String,
    /// The site at which the device stands
    #[arg(long)]
    site: String,
    /// A machine for which the device may send data; repeat the option for each machine
    #[arg(long = "machine", required = true)]
    machines: Vec<String>,
    /// The device is registered already, and its new key replaces the old one
    #[arg(long)]
    replaces: bool,
    /// With --replaces: reject signatures by the old key at once, because it may be compromised
    #[arg(long, requires = "replaces")]
    compromised: bool,
    /// The lifetime of the enrolment token, in hours
    #[arg(long, default_value_t = 72)]
    hours: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceDescription {
    org_id: OrgId,
    site_id: contract::SiteId,
    machines: Vec<MachineId>,
    kid: KeyId,
    public_key: String,
}

pub async fn run(
    config: &CloudConfig,
    org: Option<String>,
    command: DeviceCommand,
    output: Output,
) -> anyhow::Result<()> {
    match command {
        DeviceCommand::Enroll(args) => {
            enroll(&OperatorClient::connect(config, org).await?, args).await
        }
        DeviceCommand::Show { kid } => {
            show(&OperatorClient::connect(config, org).await?, &kid).await
        }
        DeviceCommand::Recover { kid: None, .. } => {
            list_recoveries(&OperatorClient::connect(config, org).await?, output).await
        }
        DeviceCommand::Recover { kid: Some(kid), refuse } => {
            let remote = OperatorClient::connect(config, org).await?;
            let verb = if refuse { "refuse" } else { "approve" };
            remote.post(&remote.fleet, &["recoveries", &kid, verb], &json!({})).await?;
            println!(
                "{kid} {}",
                if refuse { "is refused" } else { "receives its certificate within 5 min" }
            );
            Ok(())
        }
        // Uses the database directly: the first gateway may be registered before an API key exists.
        DeviceCommand::Add { file } => {
            let registry = LocalRegistry::open(config, org).await?;
            registry.add(&file).await
        }
        DeviceCommand::List => LocalRegistry::open(config, org).await?.list(output).await,
        DeviceCommand::Revoke { kid } => LocalRegistry::open(config, org).await?.revoke(&kid).await,
    }
}

async fn enroll(remote: &OperatorClient, args: EnrollArgs) -> anyhow::Result<()> {
    let body = json!({"siteId": args.site, "device": args.device, "machines": args.machines,
                      "replaces": args.replaces, "compromised": args.compromised,
                      "expiresInHours": args.hours});
    let enrollment = remote.post(&remote.fleet, &["enrollments"], &body).await?;
    let token =
        enrollment["token"].as_str().context("the response of the fleet service has no token")?;
    println!("{token}");
    Ok(())
}

async fn show(remote: &OperatorClient, kid: &str) -> anyhow::Result<()> {
    let device: Value = remote.get(&remote.fleet, &["devices", kid], &[]).await?;
    println!("{device:#}");
    Ok(())
}

async fn list_recoveries(remote: &OperatorClient, output: Output) -> anyhow::Result<()> {
    let found: Vec<Value> = remote.get(&remote.fleet, &["recoveries"], &[]).await?;
    output.rows(&["kid", "requested at", "last seen"], &found, |recovery| {
        ["keyId", "askedAt", "seenAt"]
            .map(|field| recovery[field].as_str().unwrap_or_default().to_owned())
            .to_vec()
    })
}

/// The device registry, accessed directly in the database.
struct LocalRegistry {
    store: FleetStore,
    org: OrgId,
    operator: Actor,
}

impl LocalRegistry {
    async fn open(config: &CloudConfig, org: Option<String>) -> anyhow::Result<Self> {
        let database = serve::open_with_schema(config).await?;
        let org = config.org_or_default(org)?;
        let id = "simcorp device".to_owned();
        let operator = Actor { kind: ActorKind::System, id, display: None, org: None };
        Ok(Self { store: FleetStore::new(database), org, operator })
    }

    fn changed_by(&self) -> ChangedBy<'_> {
        ChangedBy { actor: &self.operator, now: serve::now() }
    }

    async fn add(&self, file: &PathBuf) -> anyhow::Result<()> {
        let text = if file.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin())?
        } else {
            std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?
        };
        let device: DeviceDescription =
            serde_json::from_str(&text).context("not the output of `simcorp-edge key show`")?;
        ensure!(
            device.org_id == self.org,
            "the device belongs to organisation {}, but this command acts for {}; set --org",
            device.org_id,
            self.org
        );
        ensure!(
            device.kid.as_str().ends_with(&format!("@{}", device.site_id)),
            "the key id {} does not name the site {}",
            device.kid,
            device.site_id
        );
        let public = PublicKey::from_pem(&device.public_key).context("publicKey")?;
        let new = NewDevice {
            org: &self.org,
            key_id: &device.kid,
            site: &device.site_id,
            machines: &device.machines,
            public: &public,
            enrols: false,
            replaces: false,
            compromised: false,
        };
        if !matches!(
            self.store.register(&new, self.changed_by()).await?,
            RegisterOutcome::Accepted(_)
        ) {
            bail!(
                "{} is registered with another key, or was revoked; give the gateway another name",
                device.kid
            );
        }
        let machines: Vec<&str> = device.machines.iter().map(MachineId::as_str).collect();
        println!("{} is registered for {}", device.kid, machines.join(", "));
        Ok(())
    }

    async fn list(&self, output: Output) -> anyhow::Result<()> {
        const AT_ONCE: i64 = 10_000;
        let devices = self.store.devices(&self.org, "", AT_ONCE).await?;
        output.rows(&["kid", "machines", "state", "since"], &devices, |device| {
            let state = match device.revoked_at {
                Some(at) => format!("revoked {at}"),
                None => "active".to_owned(),
            };
            let machines: Vec<&str> = device.machines.iter().map(MachineId::as_str).collect();
            let since: EpochMs = device.created_at;
            vec![device.key_id.to_string(), machines.join(", "), state, since.to_string()]
        })
    }

    async fn revoke(&self, kid: &str) -> anyhow::Result<()> {
        let kid: KeyId = kid.parse()?;
        let revoked = self.store.revoke(&self.org, kid.as_str(), self.changed_by()).await?;
        ensure!(revoked, "there is no active device {kid}");
        println!("{kid} is revoked, everywhere within a minute");
        Ok(())
    }
}
