//! `simcorp-emulator`: emulates the machine of a profile, for profile authors without a roaster.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use emulator::{Emulator, Endpoint};

#[derive(Parser)]
#[command(name = "simcorp-emulator", version, about = "Emulates the machine of a profile")]
struct Cli {
    /// Profile id from `simcorp-edge profile list`, or a file
    profile: String,
    /// Listen address of a TCP machine; a serial machine gets a pseudo serial line
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Simulated ms from one reading to the next
    #[arg(long, default_value_t = 1000)]
    step_ms: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let text = match firmware_profiles::shipped(&cli.profile) {
        Some(entry) => entry.text.to_owned(),
        None => std::fs::read_to_string(&cli.profile)?,
    };
    let checked = firmware_profiles::check(&text)?;
    let every = Duration::from_millis(checked.profile.timing.poll_ms);
    let emulator = Emulator::start(&checked.profile, cli.listen, cli.step_ms, every).await?;
    match emulator.endpoint() {
        Endpoint::Tcp(address) => println!(
            "{} listens: machine.profile.host = \"{}\", machine.profile.port = {}",
            checked.profile.machine.id,
            address.ip(),
            address.port()
        ),
        Endpoint::Serial(device) => println!(
            "{} listens: machine.profile.device = \"{}\"",
            checked.profile.machine.id,
            device.display()
        ),
    }
    tokio::signal::ctrl_c().await?;
    Ok(())
}
