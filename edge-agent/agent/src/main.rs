//! `simcorp-edge`: the agent beside one roaster. It reads the machine, keeps every sample on its own
//! disk, signs it, and sends it on when there is a way.
//!
//! Three parts share nothing but bounded queues: the sampler (a thread, the machine), the keeper (a
//! thread: recorder, key, journal), and the uplink with the local page (the async runtime).

mod artisan;
mod board;
mod bring_up;
mod clock;
mod config;
mod doctor;
mod identity;
mod journal;
mod keeper;
mod known_time;
mod link;
mod local;
mod machine;
mod pace;
mod profiles;
mod recorder;
mod route;
mod run;
mod sampler;
mod signing;
mod status;
mod uplink;
mod watchdog;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service::config::{ConfigError, Sources};
use trust::{Algorithm, FileKey};

use crate::config::{DriverKind, EdgeConfig};

#[derive(Parser)]
#[command(name = "simcorp-edge", version, about = "The agent beside a coffee roaster")]
struct Cli {
    #[command(flatten)]
    sources: Sources,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Sample, keep and send until told to stop (the default)
    Run,
    /// Play an Artisan recording as if it happened now, and stop once the cloud has it
    Replay {
        /// The .alog file
        file: PathBuf,
        /// Recorded seconds a second
        #[arg(long, default_value_t = 1.0)]
        speed: f64,
    },
    /// What the running agent is doing
    Status,
    /// Try everything the agent needs, and say what is wrong
    Doctor,
    /// Try the controls of the machine's profile, with two people beside it and the agent stopped
    BringUp(bring_up::Arguments),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The signing key
    #[command(subcommand)]
    Key(KeyCommand),
    /// Spend an enrolment token: the key that is here gets its certificate
    Enroll {
        /// What `simcorp device enroll` printed; - reads it from a pipe
        #[arg(long)]
        token: String,
    },
    /// Machine profiles
    #[command(subcommand)]
    Profile(profiles::ProfileCommand),
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Name each mistake with its line
    Check,
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Make `identity.key_file`, for development: a key in a file can be copied
    Create {
        /// `EdDSA` or ES256
        #[arg(long, default_value = "EdDSA")]
        algorithm: String,
    },
    /// Print what the cloud needs to know: `simcorp device add` takes it
    Show,
}

/// `EX_USAGE`: the configuration is wrong, and starting again will not help.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match act(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One sentence and its causes; never a backtrace.
            eprintln!("simcorp-edge: {error:#}");
            let config = error.downcast_ref::<ConfigError>().is_some();
            if config { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn act(mut cli: Cli) -> anyhow::Result<()> {
    if let Some(Command::Profile(command)) = &cli.command {
        // Needs no gateway: whoever writes a profile may have none.
        return profiles::act(command);
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
        Command::Run => run::run(config, run::Until::Stopped),
        Command::Replay { .. } => {
            debug_assert!(config.machine.driver == DriverKind::Replay);
            run::run(config, run::Until::Delivered)
        }
        Command::Status => status::print(&config),
        Command::Doctor => doctor::examine(&config),
        Command::BringUp(arguments) => bring_up::act(&config, arguments),
        Command::Config(ConfigCommand::Check) => {
            println!("the configuration is right");
            Ok(())
        }
        Command::Key(command) => key(&config, &command),
        Command::Enroll { token } => {
            let piped = token == "-";
            let token = if piped { std::io::read_to_string(std::io::stdin())? } else { token };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(identity::enroll::enroll(&config, &token))
        }
        Command::Profile(command) => profiles::act(&command),
    }
}

fn key(config: &EdgeConfig, command: &KeyCommand) -> anyhow::Result<()> {
    let id = run::key_id(config)?;
    let public = match command {
        KeyCommand::Create { algorithm } => {
            let algorithm = Algorithm::parse(algorithm)
                .ok_or_else(|| anyhow::anyhow!("--algorithm {algorithm}: not EdDSA or ES256"))?;
            anyhow::ensure!(
                !config.identity.has_signer(),
                "identity.signer_socket is set: the key is made in the token, by simcorp-signer create"
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
