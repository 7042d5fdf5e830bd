//! `simcorp user`: what people may do, where their issuer's tokens do not say it.

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use contract::{Actor, ActorKind, OrgId};
use kernel::KernelStore;
use service::auth::Role;
use store::Store;

use crate::config::CloudConfig;
use crate::output::Output;
use crate::serve;

#[derive(Subcommand)]
pub enum UserCommand {
    /// The people whose roles are set here
    List,
    /// Give a person a role, whatever their token says
    Grant {
        /// The issuer's name for the person (`sub`)
        user: String,
        /// viewer, operator, approver or admin
        #[arg(long)]
        role: String,
    },
    /// Let their token say again what a person may do
    Reset { user: String },
    /// Let a person in no longer, within half a minute everywhere
    Block { user: String },
}

pub async fn act(
    config: &CloudConfig,
    org: Option<String>,
    command: UserCommand,
    output: Output,
) -> anyhow::Result<()> {
    serve::make_data_folder(config)?;
    let database = Store::open(&config.database).await?;
    serve::prepare_schema(config, &database).await?;
    let store = KernelStore::new(database);
    let org = match org {
        Some(org) => OrgId::new(org)?,
        None => config.org().context("say which organisation, with --org")?,
    };
    let actor =
        Actor { kind: ActorKind::System, id: "simcorp user".to_owned(), display: None, org: None };
    let by = (&actor, serve::now());
    match command {
        UserCommand::List => {
            let people = store.roles(&org).await?;
            output.rows(&["user", "role", "since"], &people, |person| {
                let role = person.role.map_or("blocked", Role::as_str);
                vec![person.user_id.clone(), role.to_owned(), person.since.to_string()]
            })
        }
        UserCommand::Grant { user, role } => {
            let role = Role::parse(&role)
                .with_context(|| format!("{role}: not viewer, operator, approver or admin"))?;
            store.set_role(&org, &user, Some(role), by).await?;
            println!("{user} is {} in {org}, within 30 s everywhere", role.as_str());
            Ok(())
        }
        UserCommand::Block { user } => {
            store.set_role(&org, &user, None, by).await?;
            println!("{user} is let into {org} no longer, within 30 s everywhere");
            Ok(())
        }
        UserCommand::Reset { user } => {
            ensure!(store.reset_role(&org, &user, by).await?, "nothing is set for {user} in {org}");
            println!("{user} is what their token says");
            Ok(())
        }
    }
}
