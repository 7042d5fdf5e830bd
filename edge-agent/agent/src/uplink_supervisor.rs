//! Supervises the uplink: runs it, sets it up again after a failure, and restarts it when the fleet
//! service names another broker, or when the machines to send for change.

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use contract::{KeyId, Origin};
use rumqttc::MqttOptions;
use service::backoff::Backoff;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::agent_state::AgentState;
use crate::broker_endpoint::BrokerEndpoint;
use crate::config::EdgeConfig;
use crate::identity::Identity;
use crate::journal::OutgoingFrame;
use crate::journal_writer::JournalCommand;
use crate::json_copy::JsonCopies;
use crate::uplink;

/// The wait before the uplink is set up again, after a certificate, key or password could not be
/// read.
const SETUP_WAIT_MIN: Duration = Duration::from_secs(1);
const SETUP_WAIT_MAX: Duration = Duration::from_mins(1);

/// What the uplink needs: the configuration, the identity, and the machines to send for.
pub struct UplinkSupervisor {
    pub config: EdgeConfig,
    pub identity: Option<Identity>,
    pub key_id: KeyId,
    /// The machines whose acknowledgements the uplink subscribes to; the current one first.
    pub origins: watch::Receiver<Vec<Origin>>,
}

impl UplinkSupervisor {
    /// Runs the uplink until `stop`, and restarts it when the fleet service names another broker or
    /// the machines to send for change.
    /// If the uplink cannot be set up, no sample is lost: all are stored, and the setup is retried.
    pub async fn run(
        self,
        commands: SyncSender<JournalCommand>,
        mut live: mpsc::Receiver<OutgoingFrame>,
        state: AgentState,
        stop: CancellationToken,
    ) {
        let mut wait = Backoff::new(SETUP_WAIT_MIN, SETUP_WAIT_MAX);
        let mut origins = self.origins.clone();
        // Kept from one connection to the next, like the roast that they are about.
        let mut copies = self.config.compatibility.json_telemetry.then(JsonCopies::default);
        while !stop.is_cancelled() {
            let options = match self.options() {
                Ok(options) => options,
                Err(error) => {
                    report_setup_error(&error, &state);
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = self.broker_changed() => {}
                        () = tokio::time::sleep(wait.next(trust::jitter())) => {}
                    }
                    continue;
                }
            };
            wait.reset();
            let ended = stop.child_token();
            let (state, commands) = (state.clone(), commands.clone());
            let machines = origins.borrow_and_update().clone();
            let link = async {
                if let Some(options) = options {
                    let live = (&mut live, copies.as_mut());
                    uplink::run(options, machines, commands, live, state, ended.clone()).await;
                } else {
                    tracing::info!("no uplink is set up; samples are stored and shown here");
                    ended.cancelled().await;
                }
            };
            tokio::pin!(link);
            tokio::select! {
                () = &mut link => {}
                () = self.broker_changed() => {
                    tracing::info!("the fleet service names another broker; reconnecting");
                    ended.cancel();
                    link.await;
                }
                () = changed(&mut origins) => {
                    tracing::info!("frames of other machines are to be sent; reconnecting");
                    ended.cancel();
                    link.await;
                }
            }
        }
    }

    /// Waits until the fleet service names another broker; without an identity it never does.
    async fn broker_changed(&self) {
        match &self.identity {
            Some(identity) => identity.broker_changed().await,
            None => std::future::pending().await,
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

/// Waits until the machines to send for change. After the journal writer has ended they never do.
async fn changed(origins: &mut watch::Receiver<Vec<Origin>>) {
    if origins.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Publishes why the uplink cannot be set up, and logs it once per reason.
fn report_setup_error(error: &anyhow::Error, state: &AgentState) {
    let problem = format!("{error:#}");
    state.update(|state| {
        if state.uplink_error.as_ref() != Some(&problem) {
            tracing::error!(problem, "cannot set up the uplink; samples are stored; retrying");
            state.uplink_error = Some(problem);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::mqtt::BrokerSettings;

    #[tokio::test]
    async fn an_uplink_that_cannot_be_set_up_at_first_is_set_up_later() {
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uplink = BrokerSettings {
            host: "127.0.0.1".to_owned(),
            port: broker.local_addr().unwrap().port(),
            username: "gw".to_owned(),
            password: format!("file:{}", password.display()).into(),
            ..BrokerSettings::default()
        };
        let supervisor = UplinkSupervisor {
            config: EdgeConfig { uplink, ..EdgeConfig::default() },
            identity: None,
            key_id: "device:gw@leipzig".parse().unwrap(),
            origins: watch::Sender::new(vec!["acme/leipzig/r-1".parse().unwrap()]).subscribe(),
        };
        let (commands, _commands) = std::sync::mpsc::sync_channel(1);
        let (_live, live) = mpsc::channel(1);
        let state = AgentState::new("acme/leipzig/r-1".to_owned());
        let stop = CancellationToken::new();
        let running = tokio::spawn(supervisor.run(commands, live, state.clone(), stop.clone()));
        let early = tokio::time::timeout(Duration::from_millis(100), broker.accept()).await;
        assert!(early.is_err(), "the password is missing");
        let problem = state.status().uplink_error.unwrap();
        assert!(problem.contains("password"), "{problem}");
        std::fs::write(&password, "secret").unwrap();
        let connected = tokio::time::timeout(Duration::from_secs(10), broker.accept()).await;
        assert!(connected.is_ok(), "the setup was not retried");
        stop.cancel();
        running.await.unwrap();
    }
}
