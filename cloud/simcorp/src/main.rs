//! `simcorp`: the control plane. `simcorp serve [SERVICE…]` runs all services or the named ones;
//! the other commands are for the operator.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod api_key;
mod audit;
mod authority;
mod broker;
mod config;
mod device;
mod evaluate;
mod import_sqlite;
mod machine;
mod memory_arenas;
mod mission;
mod output;
mod png;
mod process_usage;
mod recordings;
mod remote;
mod request_runtime;
mod roast_import;
mod roast_metadata;
mod serve;
mod user;
mod workbook;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use database::Database;
use service::config::Sources;
use service::exit::exit_status;

use crate::api_key::ApiKeyCommand;
use crate::audit::AuditCommand;
use crate::authority::AuthorityCommand;
use crate::config::CloudConfig;
use crate::device::DeviceCommand;
use crate::evaluate::EvalCommand;
use crate::machine::MachineCommand;
use crate::mission::MissionCommand;
use crate::output::Output;
use crate::recordings::RoastCommand;
use crate::user::UserCommand;

#[derive(Parser)]
#[command(name = "simcorp", version, about = "The control plane of a fleet of coffee roasters")]
struct Cli {
    #[command(flatten)]
    sources: Sources,
    /// Output format
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
    /// The organisation to act for; required where your token or the configuration does not name it
    #[arg(long, global = true)]
    org: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the named services, or all
    Serve {
        /// The services to run; default: all
        services: Vec<serve::ServiceName>,
    },
    /// Migrate the database schema
    #[command(subcommand)]
    Migrate(MigrateCommand),
    /// Copy a deployment from an SQLite file to the PostgreSQL database of `database.url`. No
    /// program may write to the file meanwhile. If it is interrupted, run it again: it resumes
    /// where it stopped
    ImportSqlite {
        /// The SQLite file
        file: PathBuf,
    },
    /// Manage role overrides: roles of people that are set here instead of by their OIDC issuer
    #[command(subcommand)]
    User(UserCommand),
    /// List, show, approve, cancel and retry missions
    #[command(subcommand)]
    Mission(MissionCommand),
    /// Manage golden cases and evaluations of sessions
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Show or check the effective configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Enrol, list, recover and revoke the devices (gateways) whose signatures are accepted
    #[command(subcommand)]
    Device(DeviceCommand),
    /// List and name machines, and join the roasts of a machine whose id was changed
    #[command(subcommand)]
    Machine(MachineCommand),
    /// Manage the certificate authority for gateways
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Manage API keys for services and scripts (`simcorp token` is the old name, and still works)
    #[command(subcommand, alias = "token")]
    ApiKey(ApiKeyCommand),
    /// Verify the audit log against signed checkpoints
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Write shell completions to standard output
    Completions {
        /// The shell to complete commands in
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one per command, into a folder
    Man {
        /// The folder to write to; it is created if necessary
        folder: PathBuf,
    },
    /// Analyze, compare, score, export, import and plot recordings of roasts
    #[command(subcommand)]
    Roast(RoastCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print the effective configuration, with secrets masked
    Show,
    /// Check the configuration and list every mistake with its location
    Check,
}

#[derive(Subcommand)]
enum MigrateCommand {
    /// Apply all pending migrations
    Up,
    /// List applied and pending migrations
    Status,
    /// Print the SQL statements that `up` would run
    Plan,
}

fn main() -> ExitCode {
    exit_status("simcorp", run(Cli::parse()))
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if matches!(cli.command, Some(Command::Serve { .. })) {
        memory_arenas::limit();
    }
    let config: CloudConfig = service::config::load(&cli.sources, std::env::vars())?;
    if cli.sources.print_config {
        print!("{}", service::config::print(&config)?);
        return Ok(());
    }
    let command = cli
        .command
        .context("no command: use serve, migrate, device, token or roast; --help lists them all")?;
    let (output, org) = (cli.output, cli.org);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Serve { services } => serve::serve(config, &services).await,
            Command::Migrate(command) => migrate(&config, &command, output).await,
            Command::Device(command) => device::run(&config, org, command, output).await,
            Command::Machine(command) => machine::run(&config, org, command, output).await,
            Command::Authority(command) => authority::run(&config, &command),
            Command::ImportSqlite { file } => import_sqlite::run(&config, &file, output).await,
            Command::User(command) => user::run(&config, org, command, output).await,
            Command::Mission(command) => mission::run(&config, org, command, output).await,
            Command::Eval(command) => evaluate::run(&config, org, command, output).await,
            Command::Config(ConfigCommand::Show) => {
                print!("{}", service::config::print(&config)?);
                Ok(())
            }
            Command::Config(ConfigCommand::Check) => {
                println!("the configuration is right"); // otherwise loading failed above
                Ok(())
            }
            Command::ApiKey(command) => api_key::run(&config, org, command, output).await,
            Command::Audit(command) => audit::run(&config, org, command, output).await,
            Command::Completions { shell } => {
                let mut command = Cli::command();
                clap_complete::generate(shell, &mut command, "simcorp", &mut std::io::stdout());
                Ok(())
            }
            Command::Man { folder } => std::fs::create_dir_all(&folder)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), &folder))
                .with_context(|| format!("cannot write to {}", folder.display())),
            Command::Roast(RoastCommand::Import(args)) => {
                roast_import::run(&config, org, args).await
            }
            Command::Roast(command) => recordings::run(command, output),
        }
    })
}

async fn migrate(
    config: &CloudConfig,
    command: &MigrateCommand,
    output: Output,
) -> anyhow::Result<()> {
    serve::make_data_folder(config)?;
    let store = Database::open(&config.database).await?;
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
