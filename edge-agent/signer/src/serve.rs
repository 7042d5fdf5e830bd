//! Serves signing requests on a Unix socket. The kernel's peer credentials decide who may ask.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use listenfd::ListenFd;
use rustix::net::sockopt::socket_peercred;
use trust::socket::{SignRefusal, SignerRequest, read_request, write_response};

use crate::pool::SigningPool;

/// The limit of open connections. Beyond it a new connection is closed.
const CONNECTIONS_MAX: usize = 16;
/// A caller that is silent for this long is disconnected.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// Returns the socket that systemd passes in, or binds one at `path`.
///
/// # Errors
/// Returns an error if the socket cannot be created, or another signer answers on it.
pub fn listener(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(listener) = ListenFd::from_env().take_unix_listener(0)? {
        // systemd may have created it non-blocking.
        listener.set_nonblocking(false)?;
        return Ok(listener);
    }
    if UnixStream::connect(path).is_ok() {
        anyhow::bail!("another signer answers at {}", path.display());
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    // Every peer's user is checked; the folder's mode is a second protection.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves requests until the process ends. Without a pool every answer says that the token cannot be
/// used.
///
/// # Errors
/// Returns an error if accepting a connection fails.
pub fn run(
    listener: &UnixListener,
    pool: &Arc<Option<SigningPool>>,
    allowed: Vec<u32>,
    limit: Duration,
) -> anyhow::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    let allowed = Arc::new(allowed);
    loop {
        let (stream, _) = listener.accept().context("cannot accept connections on the socket")?;
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            tracing::warn!("more than {CONNECTIONS_MAX} connections; closing the new one");
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (pool, allowed, open) = (Arc::clone(pool), Arc::clone(&allowed), Arc::clone(&open));
        std::thread::spawn(move || {
            serve_connection(stream, pool.as_ref().as_ref(), &allowed, limit);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Serves one connection until the peer closes it.
fn serve_connection(
    mut stream: UnixStream,
    pool: Option<&SigningPool>,
    allowed: &[u32],
    limit: Duration,
) {
    match socket_peercred(&stream) {
        Ok(peer) if allowed.contains(&peer.uid.as_raw()) => {}
        Ok(peer) => {
            tracing::warn!(uid = peer.uid.as_raw(), "refused: not in socket.users");
            return;
        }
        Err(error) => {
            tracing::warn!(%error, "refused a connection: cannot read the peer's user");
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
                (None, _) => Err(SignRefusal::TokenUnavailable),
                (Some(pool), SignerRequest::PublicKey) => Ok(pool.public_key().to_spki()),
                (Some(pool), SignerRequest::Sign(message)) => pool.sign(message, limit),
            },
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                // The start of the next request is unknown, so the connection ends.
                let _ = write_response(&mut stream, &Err(SignRefusal::Malformed));
                return;
            }
            Err(_) => return,
        };
        if write_response(&mut stream, &answer).is_err() {
            return;
        }
    }
}
