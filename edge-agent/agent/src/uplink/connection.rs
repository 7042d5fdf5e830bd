//! Drives the connection to the broker, and forwards its events to the sender.

use std::time::Duration;

use contract::Ack;
use service::mqtt::{self, MqttConnection, NameConflict};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agent_state::AgentState;

/// How long disconnecting from the broker may take when the agent stops.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// An event of the connection.
pub(super) enum ConnectionEvent {
    /// Connected, and the subscription to this machine's acknowledgements was granted.
    Ready,
    /// Not usable, and why.
    Down(String),
    /// The cloud's answer to frames or receipts.
    Ack(Ack),
}

/// Returns the sentence that names a conflict of client names.
const fn describe_conflict(conflict: NameConflict) -> &'static str {
    match conflict {
        NameConflict::TakenOver => {
            "another agent uses this device's name and key: was the card copied? Stop one of them, \
             and enrol it under a name of its own"
        }
        NameConflict::ShortConnections => {
            "the broker ends each connection within seconds, without a reason: does another agent \
             use this device's name and key (was the card copied?)"
        }
    }
}

/// Publishes a conflict of client names in the agent's state, and logs each change.
fn report_name_conflict(conflict: Option<NameConflict>, state: &AgentState) {
    let problem = conflict.map(describe_conflict);
    state.update(|state| {
        if state.name_conflict.as_deref() == problem {
            return;
        }
        if let Some(problem) = problem {
            metrics::counter!("simcorp_edge_name_conflicts_total").increment(1);
            tracing::error!(problem, "connecting more rarely");
        } else {
            tracing::info!("no other agent uses this device's name any more");
        }
        state.name_conflict = problem.map(str::to_owned);
    });
}

/// Drives the connection and only forwards its events. This task must never wait for a publish.
pub(super) async fn forward_events(
    mut link: MqttConnection,
    events: mpsc::Sender<ConnectionEvent>,
    state: AgentState,
    stop: CancellationToken,
) {
    while let Some(event) = link.next(&stop).await {
        report_name_conflict(link.name_conflict(), &state);
        let event = match event {
            mqtt::ConnectionEvent::Ready => ConnectionEvent::Ready,
            // Without acknowledgements no frame is ever delivered. The broker accepts a gateway
            // within seconds of its enrolment, and never again after it is revoked.
            mqtt::ConnectionEvent::SubscriptionRefused => {
                let problem = "the broker denies this gateway the acknowledgements; check that it \
                               is enrolled for this machine and not revoked";
                ConnectionEvent::Down(problem.to_owned())
            }
            mqtt::ConnectionEvent::Down(problem) => ConnectionEvent::Down(problem),
            mqtt::ConnectionEvent::Message { payload, .. } => {
                match serde_json::from_slice::<Ack>(&payload) {
                    Ok(ack) => ConnectionEvent::Ack(ack),
                    Err(error) => {
                        tracing::warn!(%error, "ignored an acknowledgement that is not valid");
                        continue;
                    }
                }
            }
        };
        if events.send(event).await.is_err() {
            break;
        }
    }
    link.drain(DISCONNECT_TIMEOUT).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_of_names_is_published_until_it_has_ended() {
        let state = AgentState::new("acme/leipzig/r-1".to_owned());
        for conflict in [NameConflict::TakenOver, NameConflict::ShortConnections] {
            report_name_conflict(Some(conflict), &state);
            let problem = state.status().name_conflict.unwrap();
            assert!(problem.contains("was the card copied?"), "{problem}");
        }
        report_name_conflict(None, &state);
        assert_eq!(state.status().name_conflict, None);
    }
}
