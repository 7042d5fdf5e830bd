//! A shutdown that drains: the first signal asks, the second insists.

use tokio::signal::unix::{SignalKind, signal};
pub use tokio_util::sync::CancellationToken;

/// A token that is cancelled by SIGTERM or SIGINT. A second signal ends the process at once, for
/// whoever is tired of waiting.
///
/// # Errors
/// When the process may not listen to signals.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let asked = token.clone();
    tokio::spawn(async move {
        for insists in [false, true] {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
            };
            if insists {
                tracing::warn!(signal = name, "a second signal: stopping at once");
                std::process::exit(130);
            }
            tracing::info!(signal = name, "stopping");
            asked.cancel();
        }
    });
    Ok(token)
}
