//! `simcorp token`: API keys, made where the database is. The first ones come from here: nobody can
//! ask the API for a key without having one.

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use contract::{Actor, ActorKind, OrgId};
use kernel::KernelStore;
use kernel::people::keys::{ApiKey, Token};
use service::auth::Role;
use store::Store;

use crate::config::CloudConfig;
use crate::output::Output;
use crate::serve;

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a key and print its token, this once
    Create(CreateArgs),
    /// List the keys of an organisation; without one those that work for all
    List,
    /// End a key; within half a minute it opens nothing anywhere
    Revoke { id: String },
}

#[derive(Args)]
pub struct CreateArgs {
    /// What it is for
    #[arg(long)]
    name: String,
    /// viewer, operator, approver or admin
    #[arg(long, default_value = "operator")]
    role: String,
    /// Works for all organisations: for our own services. Else for the one of --org
    #[arg(long)]
    all_orgs: bool,
    /// Ends after so many days, at most 400
    #[arg(long, default_value_t = 90)]
    days: u32,
}

pub async fn act(
    config: &CloudConfig,
    org: Option<String>,
    command: TokenCommand,
    output: Output,
) -> anyhow::Result<()> {
    serve::make_data_folder(config)?;
    let database = Store::open(&config.database).await?;
    serve::prepare_schema(config, &database).await?;
    let store = KernelStore::new(database);
    let operator =
        Actor { kind: ActorKind::System, id: "simcorp token".to_owned(), display: None, org: None };
    let org = org.map(OrgId::new).transpose()?;
    match command {
        TokenCommand::Create(args) => create(&store, org, args, &operator).await,
        TokenCommand::List => list(&store, org.as_ref(), output).await,
        TokenCommand::Revoke { id } => {
            let revoked = store.revoke_key(org.as_ref(), &id, &operator, serve::now()).await?;
            ensure!(revoked, "no key {id} opens anything here");
            println!("{id} opens nothing any more, within 30 s everywhere");
            Ok(())
        }
    }
}

async fn create(
    store: &KernelStore,
    org: Option<OrgId>,
    args: CreateArgs,
    operator: &Actor,
) -> anyhow::Result<()> {
    const DAYS_MAX: u32 = 400;
    let role = Role::parse(&args.role)
        .with_context(|| format!("{}: not viewer, operator, approver or admin", args.role))?;
    ensure!((1..=DAYS_MAX).contains(&args.days), "--days: not between 1 and {DAYS_MAX}");
    ensure!((1..=200).contains(&args.name.len()), "--name: not 1 to 200 bytes");
    ensure!(
        org.is_some() != args.all_orgs,
        "say for whom: --org NAME, or --all-orgs for our own services"
    );
    let token = Token::generate()?;
    let now = serve::now();
    let key = ApiKey {
        id: token.id().to_owned(),
        org_id: org,
        name: args.name,
        kind: ActorKind::System,
        role,
        digest: token.digest().to_vec(),
        created_at: now,
        expires_at: now.plus(i64::from(args.days) * 86_400_000),
        revoked_at: None,
    };
    store.add_key(&key, operator).await?;
    println!("{}", token.show());
    Ok(())
}

async fn list(store: &KernelStore, org: Option<&OrgId>, output: Output) -> anyhow::Result<()> {
    output.rows(&["id", "role", "name", "state"], &store.keys(org).await?, |key| {
        let state = match key.revoked_at {
            Some(at) => format!("revoked {at}"),
            None => format!("until {}", key.expires_at),
        };
        vec![key.id.clone(), key.role.as_str().to_owned(), key.name.clone(), state]
    })
}
