//! The socket: who may ask is decided by the kernel's word on who asks.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use listenfd::ListenFd;
use rustix::net::sockopt::socket_peercred;
use trust::socket::{Refusal, Request, read_request, write_answer};

use crate::pool::Pool;

/// Connections at once. Past it a new one is closed.
const CONNECTIONS_MAX: usize = 16;
/// A caller that says nothing for so long is gone.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// The socket that systemd hands over, or one of our own.
///
/// # Errors
/// When the path cannot be made.
pub fn listener(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(listener) = ListenFd::from_env().take_unix_listener(0)? {
        // Whoever made it may have made it non-blocking.
        listener.set_nonblocking(false)?;
        return Ok(listener);
    }
    if UnixStream::connect(path).is_ok() {
        anyhow::bail!("another signer answers at {}", path.display());
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    // Whoever connects is looked at; the folder's mode is the second wall.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Answers until the process ends; without a pool, that the token cannot be used.
///
/// # Errors
/// When the socket breaks.
pub fn run(
    listener: &UnixListener,
    pool: &Arc<Option<Pool>>,
    allowed: Vec<u32>,
    limit: Duration,
) -> anyhow::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    let allowed = Arc::new(allowed);
    loop {
        let (stream, _) = listener.accept().context("the socket broke")?;
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            tracing::warn!("more connections than {CONNECTIONS_MAX}; one is closed");
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (pool, allowed, open) = (Arc::clone(pool), Arc::clone(&allowed), Arc::clone(&open));
        std::thread::spawn(move || {
            answer(stream, pool.as_ref().as_ref(), &allowed, limit);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One connection, until the other side ends it.
fn answer(mut stream: UnixStream, pool: Option<&Pool>, allowed: &[u32], limit: Duration) {
    match socket_peercred(&stream) {
        Ok(peer) if allowed.contains(&peer.uid.as_raw()) => {}
        Ok(peer) => {
            tracing::warn!(uid = peer.uid.as_raw(), "a user who may not ask");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "nobody knows who asks");
            return;
        }
    }
    let limited = stream
        .set_read_timeout(Some(IDLE_MAX))
        .and_then(|()| stream.set_write_timeout(Some(IDLE_MAX)));
    if limited.is_err() {
        return;
    }
    loop {
        let answer = match read_request(&mut stream) {
            Ok(request) => match (pool, request) {
                (None, _) => Err(Refusal::Token),
                (Some(pool), Request::PublicKey) => Ok(pool.public_key().to_spki()),
                (Some(pool), Request::Sign(message)) => pool.sign(message, limit),
            },
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                // Where the next request begins is anybody's guess.
                let _ = write_answer(&mut stream, &Err(Refusal::Malformed));
                return;
            }
            Err(_) => return,
        };
        if write_answer(&mut stream, &answer).is_err() {
            return;
        }
    }
}
