//! `simcorp user`: manages role overrides, for people whose role the OIDC token does not set.

use anyhow::{Context as _, ensure};
use clap::Subcommand;
use contract::{Actor, ActorKind};
use http_stack::auth::Role;
use kernel::KernelStore;

use crate::config::CloudConfig;
use crate::output::Output;
use crate::serve;

#[derive(Subcommand)]
pub enum UserCommand {
    /// List the people whose role is set here
    List,
    /// Set a person's role; it takes precedence over the role in their OIDC token
    Grant {
        /// The person's identifier at the OIDC issuer (the `sub` claim)
        user: String,
        /// The person's role: viewer, operator, approver or admin
        #[arg(long)]
        role: String,
    },
    /// Remove the role override and use the role from the OIDC token
    Reset {
        /// The person's identifier at the OIDC issuer (the `sub` claim)
        user: String,
    },
    /// Block a person; their requests are rejected everywhere within 30 seconds
    Block {
        /// The person's identifier at the OIDC issuer (the `sub` claim)
        user: String,
    },
}

pub async fn run(
    config: &CloudConfig,
    org: Option<String>,
    command: UserCommand,
    output: Output,
) -> anyhow::Result<()> {
    let store = KernelStore::new(serve::open_with_schema(config).await?);
    let org = config.org_or_default(org)?;
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
            println!("{user} is {} in {org}, everywhere within 30 s", role.as_str());
            Ok(())
        }
        UserCommand::Block { user } => {
            store.set_role(&org, &user, None, by).await?;
            println!("{user} is blocked in {org}, everywhere within 30 s");
            Ok(())
        }
        UserCommand::Reset { user } => {
            ensure!(store.reset_role(&org, &user, by).await?, "no role is set for {user} in {org}");
            println!("{user} has the role that their token states");
            Ok(())
        }
    }
}
