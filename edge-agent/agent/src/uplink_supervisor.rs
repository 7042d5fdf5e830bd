//! Supervises the uplink: runs it, and restarts it when the fleet service names another broker.

use std::sync::mpsc::SyncSender;

use contract::{KeyId, Origin};
use rumqttc::MqttOptions;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agent_state::AgentState;
use crate::broker_endpoint::BrokerEndpoint;
use crate::config::EdgeConfig;
use crate::identity::Identity;
use crate::journal::OutgoingFrame;
use crate::journal_writer::JournalCommand;
use crate::uplink;

/// What the uplink needs: the configuration, the identity, and the machines to send for.
pub struct UplinkSupervisor {
    pub config: EdgeConfig,
    pub identity: Option<Identity>,
    pub key_id: KeyId,
    /// The machines whose acknowledgements the uplink subscribes to; the current one first.
    pub origins: Vec<Origin>,
}

impl UplinkSupervisor {
    /// Runs the uplink until `stop`, and restarts it when the fleet service names another broker.
    /// If the uplink cannot be set up, no sample is lost: all are stored.
    pub async fn run(
        self,
        commands: SyncSender<JournalCommand>,
        mut live: mpsc::Receiver<OutgoingFrame>,
        state: AgentState,
        stop: CancellationToken,
    ) {
        while !stop.is_cancelled() {
            let broker_changed = async {
                match &self.identity {
                    Some(identity) => identity.broker_changed().await,
                    None => std::future::pending().await,
                }
            };
            let ended = stop.child_token();
            let options = self.options().unwrap_or_else(|error| {
                let problem = format!("{error:#}");
                tracing::error!(problem, "cannot set up the uplink; samples are stored");
                state.update(|state| state.uplink_error = Some(problem));
                None
            });
            let (state, commands, origins) =
                (state.clone(), commands.clone(), self.origins.clone());
            let link = async {
                if let Some(options) = options {
                    uplink::run(options, origins, commands, &mut live, state, ended.clone()).await;
                } else {
                    tracing::info!("no uplink is set up; samples are stored and shown here");
                    ended.cancelled().await;
                }
            };
            tokio::pin!(link);
            tokio::select! {
                () = &mut link => {}
                () = broker_changed => {
                    tracing::info!("the fleet service names another broker; reconnecting");
                    ended.cancel();
                    link.await;
                }
            }
        }
    }

    /// Returns the MQTT options: with the certificate from enrolment if there is one and the
    /// configuration does not override it, else as configured. `None` if no broker is configured.
    fn options(&self) -> anyhow::Result<Option<MqttOptions>> {
        let config = &self.config;
        if let Some(identity) = &self.identity
            && let Some(route) = BrokerEndpoint::resolve(config, &identity.enrolled())?
        {
            let tls = identity.client_config(&route.authority)?;
            return Ok(Some(route.options(tls, "")?));
        }
        if !config.uplink.is_configured() {
            return Ok(None);
        }
        let (org, machine) = (&config.identity.org, &config.machine.id);
        let client = format!("simcorp-edge-{org}-{}-{machine}", self.key_id);
        Ok(Some(config.uplink.options(&client.replace([':', '@'], "-"), uplink::MQTT_BOUNDS)?))
    }
}
