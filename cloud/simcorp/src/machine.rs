//! `simcorp machine`: lists machines, names them, and declares which id continues an earlier one.

use clap::Subcommand;
use contract::MachineId;
use contract::session::MachineStatus;
use serde_json::json;

use crate::config::CloudConfig;
use crate::output::Output;
use crate::remote::OperatorClient;

#[derive(Subcommand)]
pub enum MachineCommand {
    /// List the machines with their names and earlier ids
    List,
    /// Set the display name of a machine; its id does not change
    Rename {
        /// The machine: SITE/ID
        #[arg(value_parser = parse_machine)]
        machine: MachineArg,
        /// The name that the console and lists show, at most 100 characters
        #[arg(required_unless_present = "remove", conflicts_with = "remove")]
        name: Option<String>,
        /// Remove the name, so that the id is shown
        #[arg(long)]
        remove: bool,
    },
    /// Declare that a machine continues under another id, because `machine.id` of its gateway was
    /// changed: lists show the roasts of both ids as those of one machine
    Alias {
        /// The machine by its earlier id: SITE/ID
        #[arg(value_parser = parse_machine)]
        machine: MachineArg,
        /// The new id, at the same site
        successor: MachineId,
    },
    /// Remove an alias: both ids are machines of their own again
    Unalias {
        /// The machine by its earlier id: SITE/ID
        #[arg(value_parser = parse_machine)]
        machine: MachineArg,
    },
}

/// A machine as an argument names it.
#[derive(Debug, Clone)]
pub struct MachineArg {
    site: String,
    id: String,
}

fn parse_machine(text: &str) -> Result<MachineArg, String> {
    match text.split_once('/') {
        Some((site, id)) if !site.is_empty() && !id.is_empty() && !id.contains('/') => {
            Ok(MachineArg { site: site.to_owned(), id: id.to_owned() })
        }
        _ => Err("not SITE/ID, such as leipzig/drum-1".to_owned()),
    }
}

pub async fn run(
    config: &CloudConfig,
    org: Option<String>,
    command: MachineCommand,
    output: Output,
) -> anyhow::Result<()> {
    let remote = OperatorClient::connect(config, org).await?;
    match command {
        MachineCommand::List => list(&remote, output).await,
        MachineCommand::Rename { machine: MachineArg { site, id }, name, .. } => {
            let body = json!({"name": name});
            let path = ["machines", site.as_str(), id.as_str(), "name"];
            remote.put(&remote.ingestion, &path, None, &body).await?;
            let sentence = match &name {
                Some(name) => format!("{site}/{id} is shown as {name}"),
                None => format!("{site}/{id} is shown by its id"),
            };
            output.done(&body, &sentence)
        }
        MachineCommand::Alias { machine: MachineArg { site, id }, successor } => {
            let path = ["machines", site.as_str(), id.as_str(), "alias"];
            let body = json!({"successor": successor});
            let machine = remote.post(&remote.ingestion, &path, &body).await?;
            output.done(&machine, &format!("{site}/{id} continues as {successor}"))
        }
        MachineCommand::Unalias { machine: MachineArg { site, id } } => {
            let path = ["machines", site.as_str(), id.as_str(), "unalias"];
            let machine = remote.post(&remote.ingestion, &path, &json!({})).await?;
            output.done(&machine, &format!("{site}/{id} is a machine of its own again"))
        }
    }
}

async fn list(remote: &OperatorClient, output: Output) -> anyhow::Result<()> {
    let machines: Vec<MachineStatus> = remote.get(&remote.ingestion, &["machines"], &[]).await?;
    output.rows(&["machine", "name", "earlier ids", "last seen"], &machines, |machine| {
        vec![
            format!("{}/{}", machine.origin.site, machine.origin.machine),
            machine.machine_name.clone().unwrap_or_else(|| "-".to_owned()),
            machine.previous_ids.join(", "),
            machine.last_seen_at.to_string(),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_named_by_site_and_id() {
        let found = parse_machine("leipzig/drum-1").unwrap();
        assert_eq!((found.site.as_str(), found.id.as_str()), ("leipzig", "drum-1"));
        for text in ["drum-1", "/drum-1", "leipzig/", "org/leipzig/drum-1"] {
            assert!(parse_machine(text).is_err(), "{text}");
        }
    }
}
