//! `simcorp api-key`: manages API keys directly in the database. The first keys must be created here,
//! since the API itself requires authentication.

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use contract::{Actor, ActorKind, OrgId};
use http_stack::auth::Role;
use kernel::KernelStore;
use kernel::authentication::keys::{ApiKey, ApiKeyToken};

use crate::config::CloudConfig;
use crate::output::Output;
use crate::serve;

#[derive(Subcommand)]
pub enum ApiKeyCommand {
    /// Create an API key and print its secret; it cannot be shown again
    Create(CreateArgs),
    /// List the API keys of the organisation --org; without it, those valid for all organisations
    List,
    /// Revoke an API key; it is rejected everywhere within 30 seconds
    Revoke {
        /// The id of the API key, as `simcorp api-key list` prints it
        id: String,
    },
}

#[derive(Args)]
pub struct CreateArgs {
    /// What the API key is for
    #[arg(long)]
    name: String,
    /// The key's role: viewer, operator, approver or admin
    #[arg(long, default_value = "operator")]
    role: String,
    /// Make the key valid for all organisations, for our own services; otherwise for --org only
    #[arg(long)]
    all_orgs: bool,
    /// Lifetime in days, at most 400
    #[arg(long, default_value_t = 90)]
    days: u32,
}

pub async fn run(
    config: &CloudConfig,
    org: Option<String>,
    command: ApiKeyCommand,
    output: Output,
) -> anyhow::Result<()> {
    let store = KernelStore::new(serve::open_with_schema(config).await?);
    let operator =
        Actor { kind: ActorKind::System, id: "simcorp token".to_owned(), display: None, org: None };
    let org = org.map(OrgId::new).transpose()?;
    match command {
        ApiKeyCommand::Create(args) => create(&store, org, args, &operator).await,
        ApiKeyCommand::List => list(&store, org.as_ref(), output).await,
        ApiKeyCommand::Revoke { id } => {
            let revoked = store.revoke_key(org.as_ref(), &id, &operator, serve::now()).await?;
            ensure!(revoked, "there is no active API key {id} here");
            println!("{id} is revoked, everywhere within 30 s");
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
        "the organisation is missing: use either --org NAME or, for our own services, --all-orgs"
    );
    let token = ApiKeyToken::generate()?;
    let now = serve::now();
    let key = ApiKey {
        id: token.id().to_owned(),
        org_id: org,
        name: args.name,
        kind: ActorKind::System,
        role,
        digest: token.digest().to_vec(),
        created_at: now,
        expires_at: now.plus_ms(i64::from(args.days).saturating_mul(86_400_000)),
        revoked_at: None,
    };
    store.add_key(&key, operator).await?;
    println!("{}", token.reveal());
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
