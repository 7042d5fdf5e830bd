//! `simcorp authority`: by whom gateways are certified.

use clap::Subcommand;
use fleet::authority::{Authority, Places};

use crate::config::CloudConfig;
use crate::serve;

#[derive(Subcommand)]
pub enum AuthorityCommand {
    /// Make a key, unless a signer has one, and a certificate of it by itself
    Create,
    /// Print the certificates, for a broker that has to know gateways
    Show,
}

pub fn act(config: &CloudConfig, command: &AuthorityCommand) -> anyhow::Result<()> {
    let places = Places::of(&config.fleet, &config.database.data);
    match command {
        AuthorityCommand::Create => {
            // The data folder is there with SQLite alone.
            if let Some(folder) = places.certificate.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let made = Authority::create(&places, serve::now())?;
            let fingerprint = contract::Digest(made.certificate().fingerprint());
            println!("{}\nsha256 {fingerprint}", places.certificate.display());
            println!("keep its key where nobody else gets it, and a copy where you find it again");
        }
        AuthorityCommand::Show => print!("{}", Authority::open(&places)?.pem()),
    }
    Ok(())
}
