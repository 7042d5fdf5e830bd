//! `simcorp device`: which gateways' signatures are believed.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;
use contract::{EpochMs, KeyId, MachineId, OrgId};
use ingestion::IngestStore;
use serde::Deserialize;
use store::Store;
use trust::PublicKey;

use crate::config::CloudConfig;
use crate::output::Output;
use crate::serve;

#[derive(Subcommand)]
pub enum DeviceCommand {
    /// Believe a gateway: FILE is what `simcorp-edge key show` prints; - reads it from a pipe
    Add { file: PathBuf },
    /// List the gateways
    List,
    /// Believe a gateway no longer
    Revoke { kid: String },
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
    serve::make_data_folder(config)?;
    let database = Store::open(&config.database).await?;
    serve::prepare_schema(config, &database).await?;
    let store = IngestStore::new(database);
    let org = match org {
        Some(org) => OrgId::new(org)?,
        None => config.org().context("say which organisation, with --org")?,
    };
    let now = serve::now();
    match command {
        DeviceCommand::Add { file } => add(&store, &org, &file, now).await,
        DeviceCommand::List => list(&store, &org, output).await,
        DeviceCommand::Revoke { kid } => {
            let kid: KeyId = kid.parse()?;
            ensure!(store.revoke_device(&org, &kid, now).await?, "no device {kid} is believed");
            println!("{kid} is believed no longer, within 30 s everywhere");
            Ok(())
        }
    }
}

async fn add(store: &IngestStore, org: &OrgId, file: &PathBuf, now: EpochMs) -> anyhow::Result<()> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
    };
    let device: Description =
        serde_json::from_str(&text).context("this is not what `simcorp-edge key show` prints")?;
    ensure!(
        device.org_id == *org,
        "the device is of organisation {}, this command works for {org}",
        device.org_id
    );
    ensure!(
        device.kid.as_str().ends_with(&format!("@{}", device.site_id)),
        "{} does not name the site {}",
        device.kid,
        device.site_id
    );
    let public = PublicKey::from_pem(&device.public_key).context("publicKey")?;
    let machines: Vec<String> = device.machines.iter().map(ToString::to_string).collect();
    let site = device.site_id.as_str();
    if !store.add_device(org, &device.kid, site, &machines, &public, now).await? {
        bail!(
            "{} is known with another key, or was revoked; give the gateway another device name",
            device.kid
        );
    }
    println!("{} is believed for {}", device.kid, machines.join(", "));
    Ok(())
}

async fn list(store: &IngestStore, org: &OrgId, output: Output) -> anyhow::Result<()> {
    let devices = store.devices(org).await?;
    output.rows(&["kid", "machines", "state", "since"], &devices, |device| {
        let state = match device.revoked_ms {
            Some(at) => format!("revoked {}", EpochMs(at)),
            None => "believed".to_owned(),
        };
        let since = EpochMs(device.created_ms).to_string();
        vec![device.kid.clone(), device.machines.clone(), state, since]
    })
}
