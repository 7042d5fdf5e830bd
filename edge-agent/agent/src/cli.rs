//! The command line of `simcorp-edge`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use service::config::Sources;
use service::exit::exit_status;
use trust::{Algorithm, FileKey};

use crate::config::{DriverKind, EdgeConfig};
use crate::{bring_up, doctor, identity, journal_salvage, profiles, run, status};

#[derive(Parser)]
#[command(name = "simcorp-edge", version, about = "The edge agent for a coffee roaster")]
struct Cli {
    #[command(flatten)]
    sources: Sources,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Sample, store and send until stopped by a signal (the default)
    Run,
    /// Play an Artisan recording as if it happened now, and stop when the cloud has acknowledged it
    Replay {
        /// The .alog file
        file: PathBuf,
        /// Playback speed: recorded seconds per second
        #[arg(long, default_value_t = 1.0)]
        speed: f64,
    },
    /// Print the state of the running agent as JSON
    Status,
    /// Test everything the agent needs, and report each problem
    Doctor,
    /// Test the controls of the machine's profile, with two people at it and the agent stopped
    BringUp(bring_up::Arguments),
    /// Check the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Work on the journal, with the agent stopped
    #[command(subcommand)]
    Journal(JournalSubcommand),
    /// Create or show the signing key
    #[command(subcommand)]
    Key(KeyCommand),
    /// Redeem an enrolment token: obtain a certificate for this gateway's key
    Enroll {
        /// The enrolment token that `simcorp device enroll` printed; - reads it from standard input
        #[arg(long, required_unless_present = "token_file", conflicts_with = "token_file")]
        token: Option<String>,
        /// A file that contains the enrolment token, so that it is in no command line and no shell history; - reads it from standard input
        #[arg(long)]
        token_file: Option<PathBuf>,
    },
    /// List, show, check and sign machine profiles
    #[command(subcommand)]
    Profile(profiles::ProfileCommand),
}

#[derive(Subcommand)]
enum JournalSubcommand {
    /// Add the readable frames of a damaged journal to the gateway's journal, and report what is
    /// missing
    Salvage {
        /// The damaged file, such as journal-damaged-20260501T093000.db
        file: PathBuf,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Report every mistake with its line
    Check,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Create `identity.key_file`. For development only: a key in a file can be copied
    Create {
        /// `EdDSA` or ES256
        #[arg(long, default_value = "EdDSA")]
        algorithm: String,
    },
    /// Print the registration data of this gateway, as input for `simcorp device add`
    Show,
}

/// Runs the command of the process's arguments. Returns the exit status.
pub fn run_program() -> ExitCode {
    exit_status("simcorp-edge", run_command(Cli::parse()))
}

fn run_command(mut cli: Cli) -> anyhow::Result<()> {
    if let Some(Command::Profile(command)) = &cli.command {
        // These commands work without a gateway configuration: profile authors may have none.
        return profiles::run(command);
    }
    if let Some(Command::Replay { file, speed }) = &cli.command {
        let file = toml::Value::from(file.display().to_string());
        let settings = [
            "machine.driver=replay".to_owned(),
            format!("machine.replay.file={file}"),
            format!("machine.replay.speed={speed:?}"),
        ];
        cli.sources.set.extend(settings);
    }
    let config: EdgeConfig = service::config::load(&cli.sources, std::env::vars())?;
    if cli.sources.print_config {
        print!("{}", service::config::print(&config)?);
        return Ok(());
    }
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => run::run(config, run::StopCondition::Stopped),
        Command::Replay { .. } => {
            debug_assert!(config.machine.driver == DriverKind::Replay);
            run::run(config, run::StopCondition::Delivered)
        }
        Command::Status => status::print(&config),
        Command::Doctor => doctor::run_checks(&config),
        Command::BringUp(arguments) => bring_up::run(&config, arguments),
        Command::Config(ConfigCommand::Check) => {
            println!("the configuration is right");
            Ok(())
        }
        Command::Journal(JournalSubcommand::Salvage { file }) => {
            journal_salvage::salvage(&config, &file)
        }
        Command::Key(command) => key(&config, &command),
        Command::Enroll { token, token_file } => {
            let token = read_token(token, token_file.as_deref())?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(identity::enroll::enroll(&config, &token))
        }
        Command::Profile(command) => profiles::run(&command),
    }
}

/// Returns the enrolment token: from the file, from standard input for `-`, or as it was typed.
fn read_token(token: Option<String>, file: Option<&Path>) -> anyhow::Result<String> {
    match (token, file) {
        (_, Some(file)) if file != Path::new("-") => std::fs::read_to_string(file)
            .with_context(|| format!("cannot read the enrolment token from {}", file.display())),
        (Some(token), None) if token != "-" => Ok(token),
        _ => Ok(std::io::read_to_string(std::io::stdin())?),
    }
}

fn key(config: &EdgeConfig, command: &KeyCommand) -> anyhow::Result<()> {
    let id = run::key_id(config)?;
    let public = match command {
        KeyCommand::Create { algorithm } => {
            let algorithm = Algorithm::parse(algorithm)
                .ok_or_else(|| anyhow::anyhow!("--algorithm {algorithm}: not EdDSA or ES256"))?;
            anyhow::ensure!(
                !config.identity.uses_signer_socket(),
                "identity.signer_socket is set: create the key with simcorp-signer create"
            );
            let path = &config.identity.key_file;
            FileKey::create(path, id.clone(), algorithm)?.public_key().clone()
        }
        KeyCommand::Show => run::signer(config, &id)?.public_key()?,
    };
    let origin = run::origin(config)?;
    let shown = serde_json::json!({
        "orgId": origin.org, "siteId": origin.site, "machines": [origin.machine],
        "kid": id, "publicKey": public.to_pem(),
    });
    println!("{shown:#}");
    Ok(())
}
