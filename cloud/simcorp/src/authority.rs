//! `simcorp authority`: manages the certificate authority for gateways.

use clap::Subcommand;
use fleet::authority::{CaPaths, CertificateAuthority};

use crate::config::CloudConfig;
use crate::serve;

#[derive(Subcommand)]
pub enum AuthorityCommand {
    /// Create the authority's key, unless a signer holds it, and its self-signed certificate
    Create,
    /// Print the authority's certificates, for a broker that authenticates gateways
    Show,
}

pub fn run(config: &CloudConfig, command: &AuthorityCommand) -> anyhow::Result<()> {
    let places = CaPaths::of(&config.fleet, &config.database.data);
    match command {
        AuthorityCommand::Create => {
            // Only SQLite has created the data folder already.
            if let Some(folder) = places.certificate.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let made = CertificateAuthority::create(&places, serve::now())?;
            let fingerprint = contract::Digest(made.certificate().fingerprint());
            println!("{}\nsha256 {fingerprint}", places.certificate.display());
            println!("store its key where only you have access, and keep a backup of it");
        }
        AuthorityCommand::Show => print!("{}", CertificateAuthority::open(&places)?.pem()),
    }
    Ok(())
}
