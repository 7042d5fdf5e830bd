//! `simcorp-signer`: holds a PIN, loads a PKCS#11 module, and signs with one key of one token what
//! a gateway's key may sign — frames, receipts, outcomes, certificate requests for itself, TLS 1.3
//! handshakes — for the programs that it was told of. It never signs bytes of a caller's choice,
//! and no operation gives a private key away.

mod config;
mod pool;
mod serve;
mod token;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use service::config::{ConfigError, Sources};
use trust::{Algorithm, PublicKey};

use crate::config::SignerConfig;
use crate::pool::Pool;
use crate::token::{Token, TokenError};

#[derive(Parser)]
#[command(name = "simcorp-signer", version, about = "Signs with a key that cannot be copied")]
struct Cli {
    #[command(flatten)]
    sources: Sources,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Answer on the socket until told to stop (the default)
    Run,
    /// Make the key in the token, where it stays; Ed25519 where the token can, else P-256
    Create,
    /// Print the key's public half
    Show,
    /// Try module, token, PIN and key, and say what is wrong
    Check,
}

/// `EX_USAGE`: the configuration is wrong, and starting again will not help.
const EXIT_CONFIG: u8 = 64;

fn main() -> ExitCode {
    match act(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simcorp-signer: {error:#}");
            let config = error.downcast_ref::<ConfigError>().is_some();
            if config { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

fn act(cli: Cli) -> anyhow::Result<()> {
    let config: SignerConfig = service::config::load(&cli.sources, std::env::vars())?;
    if cli.sources.print_config {
        print!("{}", service::config::print(&config)?);
        return Ok(());
    }
    match cli.command.unwrap_or(Command::Run) {
        Command::Run => run(&config),
        Command::Create => {
            let token = Token::open(&config)?;
            let session = token.session()?;
            anyhow::ensure!(
                session.public_key().is_err(),
                "the token has a key {:?} already; a key is replaced under another label",
                config.key.label
            );
            println!("{}", shown(&session.create(&config.key.label)?));
            Ok(())
        }
        Command::Show => {
            println!("{}", shown(&Token::open(&config)?.session()?.public_key()?));
            Ok(())
        }
        Command::Check => check(&config),
    }
}

fn shown(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm().as_str(), key.to_pem().trim_end())
}

/// Signs something that nobody takes for a statement, and verifies it.
fn check(config: &SignerConfig) -> anyhow::Result<()> {
    let token = Token::open(config)?;
    let mut session = token.session()?;
    let public = session.public_key()?;
    let message = b"simcorp-signer check";
    let signature = session.sign(message)?;
    anyhow::ensure!(public.verifies(message, &signature), "the token's signature does not fit");
    let algorithm: Algorithm = public.algorithm();
    println!(
        "token {:?}, key {:?}, {}: signs",
        config.token.label,
        config.key.label,
        algorithm.as_str()
    );
    Ok(())
}

fn run(config: &SignerConfig) -> anyhow::Result<()> {
    config.log.start();
    let listener = serve::listener(&config.socket.path)?;
    let allowed = config.allowed_users().context("socket.users")?;
    let limit = Duration::from_millis(config.socket.time_limit_ms);
    let key_id = config.key_id().context("the configuration names no device")?;
    let pool = match Pool::start(config, key_id.clone()) {
        Ok(pool) => Some(pool),
        Err(error @ TokenError::WrongPin) => {
            // Ended and started again we would try again, until the token locks for good.
            tracing::error!(%error, "refusing everything until the PIN is mended and we are restarted");
            None
        }
        Err(error) => return Err(error.into()),
    };
    if pool.is_some() {
        tracing::info!(kid = %key_id, token = config.token.label, "the signer is ready");
    }
    serve::run(&listener, &Arc::new(pool), allowed, limit)
}
