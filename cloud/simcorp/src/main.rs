//! `simcorp`: the control plane. `simcorp serve [SERVICE…]` runs its services, all or the named
//! ones; the other commands are the operator's.

mod authority;
mod backfill;
mod broker;
mod config;
mod device;
mod evaluate;
mod image;
mod import;
mod mission;
mod output;
mod remote;
mod roasts;
mod serve;
mod token;
mod user;
mod workbook;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use service::config::{ConfigError, Sources};
use store::Store;

use crate::authority::AuthorityCommand;
use crate::config::CloudConfig;
use crate::device::DeviceCommand;
use crate::evaluate::EvalCommand;
use crate::mission::MissionCommand;
use crate::output::Output;
use crate::roasts::RoastCommand;
use crate::token::TokenCommand;
use crate::user::UserCommand;

#[derive(Parser)]
#[command(name = "simcorp", version, about = "The control plane of a fleet of coffee roasters")]
struct Cli {
    #[command(flatten)]
    sources: Sources,
    /// How to answer
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
    /// The organisation to work for, where it is not clear from your token or configuration
    #[arg(long, global = true)]
    org: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the services, all or the named ones
    Serve { services: Vec<serve::ServiceName> },
    /// The database's schema
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// Move a deployment from an SQLite file to the PostgreSQL database of `database.url`. Nothing
    /// may write to the file meanwhile. Broken off, it goes on where it was
    ImportSqlite { file: PathBuf },
    /// People whose roles are set here rather than by their issuer
    #[command(subcommand)]
    User(UserCommand),
    /// Missions: what waits, runs and has failed
    #[command(subcommand)]
    Mission(MissionCommand),
    /// Golden cases, and how roasts did at them
    #[command(subcommand)]
    Eval(EvalCommand),
    /// The configuration: what counts, and whether it is right
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The gateways whose signatures are believed
    #[command(subcommand)]
    Device(DeviceCommand),
    /// By whom gateways are certified
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// API keys of services and scripts
    #[command(subcommand)]
    Token(TokenCommand),
    /// Write a shell's completions to standard output
    Completions { shell: clap_complete::Shell },
    /// Write the manual pages, one a command, into a folder
    Man { folder: PathBuf },
    /// Recordings of roasts: analyze, compare, score, plot
    #[command(subcommand)]
    Roast(RoastCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print what counts, secrets masked
    Show,
    /// Say whether it is right; every mistake has its place
    Check,
}

#[derive(Subcommand)]
enum MigrateCommand {
    /// Bring the schema up to date
    Up,
    /// Say what ran and what would
    Status,
    /// Print the statements that `up` would run
    Plan,
}

/// `EX_USAGE`: the configuration is wrong, and starting again will not help.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One sentence and its causes; never a backtrace.
            eprintln!("simcorp: {error:#}");
            let config = error.downcast_ref::<ConfigError>().is_some();
            if config { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let config: CloudConfig = service::config::load(&cli.sources, std::env::vars())?;
    if cli.sources.print_config {
        print!("{}", service::config::print(&config)?);
        return Ok(());
    }
    let command = cli
        .command
        .context("say what to do: serve, migrate, device, token or roast; --help tells more")?;
    let (output, org) = (cli.output, cli.org);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Serve { services } => serve::serve(config, &services).await,
            Command::Migrate(command) => migrate(&config, &command, output).await,
            Command::Device(command) => device::act(&config, org, command, output).await,
            Command::Authority(command) => authority::act(&config, &command),
            Command::ImportSqlite { file } => import::import(&config, &file, output).await,
            Command::User(command) => user::act(&config, org, command, output).await,
            Command::Mission(command) => mission::act(&config, org, command, output).await,
            Command::Eval(command) => evaluate::act(&config, org, command, output).await,
            Command::Config(ConfigCommand::Show) => {
                print!("{}", service::config::print(&config)?);
                Ok(())
            }
            Command::Config(ConfigCommand::Check) => {
                println!("the configuration is right"); // or it was refused above
                Ok(())
            }
            Command::Token(command) => token::act(&config, org, command, output).await,
            Command::Completions { shell } => {
                let mut command = Cli::command();
                clap_complete::generate(shell, &mut command, "simcorp", &mut std::io::stdout());
                Ok(())
            }
            Command::Man { folder } => std::fs::create_dir_all(&folder)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &folder))
                .with_context(|| format!("cannot write to {}", folder.display())),
            Command::Roast(RoastCommand::Import(args)) => backfill::act(&config, org, args).await,
            Command::Roast(command) => roasts::act(command, output),
        }
    })
}

async fn migrate(
    config: &CloudConfig,
    command: &MigrateCommand,
    output: Output,
) -> anyhow::Result<()> {
    serve::make_data_folder(config)?;
    let store = Store::open(&config.database).await?;
    if let MigrateCommand::Up = command {
        store.migrate_up().await?;
    }
    if let MigrateCommand::Plan = command {
        for (version, name, sql) in store.migration_plan().await? {
            println!("-- {version:04} {name}\n{sql}");
        }
        return Ok(());
    }
    let steps = store.migration_status().await?;
    output.rows(&["version", "state", "name"], &steps, |step| {
        let state = if step.applied { "applied" } else { "pending" };
        vec![format!("{:04}", step.version), state.to_owned(), step.name.clone()]
    })
}
