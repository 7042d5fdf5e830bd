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
    let paths = CaPaths::of(&config.fleet, &config.database.data);
    match command {
        AuthorityCommand::Create => {
            // Only SQLite has created the data folder already.
            if let Some(folder) = paths.certificate.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let authority = CertificateAuthority::create(&paths, serve::now())?;
            let fingerprint = contract::Digest(authority.certificate().fingerprint());
            println!("{}\nsha256 {fingerprint}", paths.certificate.display());
            println!("store its key where only you have access, and keep a backup of it");
        }
        AuthorityCommand::Show => print!("{}", CertificateAuthority::open(&paths)?.pem()),
    }
    Ok(())
}
