//! `simcorp-edge status`: queries the running agent over its local API.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::EdgeConfig;

const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// Prints the running agent's state as JSON.
pub fn print(config: &EdgeConfig) -> anyhow::Result<()> {
    println!("{:#}", read(config)?);
    Ok(())
}

/// Returns the running agent's state.
///
/// # Errors
/// When no agent answers.
pub fn read(config: &EdgeConfig) -> anyhow::Result<serde_json::Value> {
    let address = config.local.listen;
    let limit = Duration::from_secs(3);
    let mut stream = TcpStream::connect_timeout(&address, limit)
        .with_context(|| format!("no agent answers on {address}; is it running?"))?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET /status HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").context("the agent's answer is incomplete")?.1;
    serde_json::from_str(body).context("not an agent's answer")
}
