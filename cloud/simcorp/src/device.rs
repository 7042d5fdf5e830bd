//! `simcorp device`: the gateways, and who lets them in.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use contract::{Actor, ActorKind, EpochMs, KeyId, MachineId, OrgId};
use fleet::FleetStore;
use fleet::device::{NewDevice, Registered};
use fleet::store::By;
use serde::Deserialize;
use serde_json::{Value, json};
use store::Store;
use trust::PublicKey;

use crate::config::CloudConfig;
use crate::output::Output;
use crate::remote::Remote;
use crate::serve;

#[derive(Subcommand)]
pub enum DeviceCommand {
    /// Let a gateway in, once: prints the token for `simcorp-edge enroll`
    Enroll(EnrollArgs),
    /// Believe a gateway without certificates: FILE is what `simcorp-edge key show` prints; - reads
    /// it from a pipe
    Add { file: PathBuf },
    /// List the gateways
    List,
    /// A gateway with its keys and certificates
    Show { kid: String },
    /// Gateways that ask for a certificate after theirs has expired; with KID let one have it
    Recover {
        kid: Option<String>,
        /// Let it have none
        #[arg(long, requires = "kid")]
        refuse: bool,
    },
    /// Believe a gateway no longer
    Revoke { kid: String },
}

#[derive(Args)]
pub struct EnrollArgs {
    /// Its name at its site
    device: String,
    #[arg(long)]
    site: String,
    /// A machine it may speak for; once for each
    #[arg(long = "machine", required = true)]
    machines: Vec<String>,
    /// It is known, and its new key takes the place of the old
    #[arg(long)]
    replaces: bool,
    /// With --replaces: what the old key signs is believed no longer, somebody may have it
    #[arg(long, requires = "replaces")]
    compromised: bool,
    /// The token's time
    #[arg(long, default_value_t = 72)]
    hours: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Description {
    org_id: OrgId,
    site_id: contract::SiteId,
    machines: Vec<MachineId>,
    kid: KeyId,
    public_key: String,
}

pub async fn act(
    config: &CloudConfig,
    org: Option<String>,
    command: DeviceCommand,
    output: Output,
) -> anyhow::Result<()> {
    match command {
        DeviceCommand::Enroll(args) => enroll(&Remote::connect(config, org).await?, args).await,
        DeviceCommand::Show { kid } => show(&Remote::connect(config, org).await?, &kid).await,
        DeviceCommand::Recover { kid: None, .. } => {
            waiting(&Remote::connect(config, org).await?, output).await
        }
        DeviceCommand::Recover { kid: Some(kid), refuse } => {
            let remote = Remote::connect(config, org).await?;
            let verb = if refuse { "refuse" } else { "approve" };
            remote.post(&remote.fleet, &["recoveries", &kid, verb], &json!({})).await?;
            println!("{kid} {}", if refuse { "gets none" } else { "gets one within ten minutes" });
            Ok(())
        }
        // Where the database is: the first gateway may come before the first API key.
        DeviceCommand::Add { file } => {
            let registry = Registry::open(config, org).await?;
            registry.add(&file).await
        }
        DeviceCommand::List => Registry::open(config, org).await?.list(output).await,
        DeviceCommand::Revoke { kid } => Registry::open(config, org).await?.revoke(&kid).await,
    }
}

async fn enroll(remote: &Remote, args: EnrollArgs) -> anyhow::Result<()> {
    let body = json!({"siteId": args.site, "device": args.device, "machines": args.machines,
                      "replaces": args.replaces, "compromised": args.compromised,
                      "expiresInHours": args.hours});
    let made = remote.post(&remote.fleet, &["enrollments"], &body).await?;
    let token = made["token"].as_str().context("the fleet's answer has no token")?;
    println!("{token}");
    Ok(())
}

async fn show(remote: &Remote, kid: &str) -> anyhow::Result<()> {
    let device: Value = remote.get(&remote.fleet, &["devices", kid], &[]).await?;
    println!("{device:#}");
    Ok(())
}

async fn waiting(remote: &Remote, output: Output) -> anyhow::Result<()> {
    let found: Vec<Value> = remote.get(&remote.fleet, &["recoveries"], &[]).await?;
    output.rows(&["kid", "asked", "seen"], &found, |recovery| {
        ["keyId", "askedAt", "seenAt"]
            .map(|field| recovery[field].as_str().unwrap_or_default().to_owned())
            .to_vec()
    })
}

/// The registry in the database.
struct Registry {
    store: FleetStore,
    org: OrgId,
    operator: Actor,
}

impl Registry {
    async fn open(config: &CloudConfig, org: Option<String>) -> anyhow::Result<Self> {
        serve::make_data_folder(config)?;
        let database = Store::open(&config.database).await?;
        serve::prepare_schema(config, &database).await?;
        let org = match org {
            Some(org) => OrgId::new(org)?,
            None => config.org().context("say which organisation, with --org")?,
        };
        let id = "simcorp device".to_owned();
        let operator = Actor { kind: ActorKind::System, id, display: None, org: None };
        Ok(Self { store: FleetStore::new(database), org, operator })
    }

    fn by(&self) -> By<'_> {
        By { actor: &self.operator, now: serve::now() }
    }

    async fn add(&self, file: &PathBuf) -> anyhow::Result<()> {
        let text = if file.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin())?
        } else {
            std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?
        };
        let device: Description = serde_json::from_str(&text)
            .context("this is not what `simcorp-edge key show` prints")?;
        ensure!(
            device.org_id == self.org,
            "the device is of organisation {}, this command works for {}",
            device.org_id,
            self.org
        );
        ensure!(
            device.kid.as_str().ends_with(&format!("@{}", device.site_id)),
            "{} does not name the site {}",
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
        if !matches!(self.store.register(&new, self.by()).await?, Registered::As(_)) {
            bail!(
                "{} is known with another key, or was revoked; give the gateway another device name",
                device.kid
            );
        }
        let machines: Vec<&str> = device.machines.iter().map(MachineId::as_str).collect();
        println!("{} is believed for {}", device.kid, machines.join(", "));
        Ok(())
    }

    async fn list(&self, output: Output) -> anyhow::Result<()> {
        const AT_ONCE: i64 = 10_000;
        let devices = self.store.devices(&self.org, "", AT_ONCE).await?;
        output.rows(&["kid", "machines", "state", "since"], &devices, |device| {
            let state = match device.revoked_at {
                Some(at) => format!("revoked {at}"),
                None => "believed".to_owned(),
            };
            let machines: Vec<&str> = device.machines.iter().map(MachineId::as_str).collect();
            let since: EpochMs = device.created_at;
            vec![device.key_id.to_string(), machines.join(", "), state, since.to_string()]
        })
    }

    async fn revoke(&self, kid: &str) -> anyhow::Result<()> {
        let kid: KeyId = kid.parse()?;
        let revoked = self.store.revoke(&self.org, kid.as_str(), self.by()).await?;
        ensure!(revoked, "no device {kid} is believed");
        println!("{kid} is believed no longer, within a minute everywhere");
        Ok(())
    }
}
