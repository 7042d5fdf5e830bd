//! `simcorp-signer`: holds a PIN, loads a PKCS#11 module, and signs with one key of one PKCS#11
//! token what a gateway's key may sign — frames, receipts, outcomes, certificate requests for
//! itself, TLS 1.3 handshakes — for the users that its configuration allows. It must never sign
//! bytes of a caller's choice, and no operation returns a private key.

mod config;
mod pool;
mod serve;
mod token;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use service::config::Sources;
use service::exit::exit_status;
use trust::{Algorithm, PublicKey};

use crate::config::SignerConfig;
use crate::pool::SigningPool;
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
    /// Serve signing requests on the socket until stopped (the default)
    Run,
    /// Create the key in the token, which it never leaves; Ed25519 if the token can, else P-256
    Create,
    /// Print the public key
    Show,
    /// Test module, token, PIN and key, and report the first problem
    Check,
}

fn main() -> ExitCode {
    exit_status("simcorp-signer", run_command(Cli::parse()))
}

fn run_command(cli: Cli) -> anyhow::Result<()> {
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
                "the token already has a key {:?}; to replace a key, create one under another label",
                config.key.label
            );
            println!("{}", format_public_key(&session.create(&config.key.label)?));
            Ok(())
        }
        Command::Show => {
            println!("{}", format_public_key(&Token::open(&config)?.session()?.public_key()?));
            Ok(())
        }
        Command::Check => check(&config),
    }
}

fn format_public_key(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm().as_str(), key.to_pem().trim_end())
}

/// Signs a text that has no meaning as a statement, and verifies the signature.
fn check(config: &SignerConfig) -> anyhow::Result<()> {
    let token = Token::open(config)?;
    let mut session = token.session()?;
    let public = session.public_key()?;
    let message = b"simcorp-signer check";
    let signature = session.sign(message)?;
    anyhow::ensure!(public.verifies(message, &signature), "the signature does not match the key");
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
    let pool = match SigningPool::start(config, key_id.clone()) {
        Ok(pool) => Some(pool),
        Err(error @ TokenError::WrongPin) => {
            // A restart would try the PIN again, until the token locks permanently.
            tracing::error!(%error, "refusing everything; correct the PIN, then restart the signer");
            None
        }
        Err(error) => return Err(error.into()),
    };
    if pool.is_some() {
        tracing::info!(kid = %key_id, token = config.token.label, "the signer is ready");
    }
    serve::run(&listener, &Arc::new(pool), allowed, limit)
}
