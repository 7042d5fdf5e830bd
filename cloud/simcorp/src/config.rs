//! The control plane's configuration. Without any setting, everything listens on loopback, with
//! SQLite, an embedded broker and development authentication.

use std::net::SocketAddr;

use anyhow::Context as _;
use contract::OrgId;
use http_stack::auth::Auth;
use kernel::KernelStore;
use kernel::authentication::Authenticator;
use kernel::authentication::oidc::{Oidc, OidcConfig};
use serde::{Deserialize, Serialize};
use service::config::{Config, Mistakes};
use service::log::LogConfig;
use service::secret::Secret;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CloudConfig {
    pub auth: AuthConfig,
    pub database: database::DatabaseConfig,
    pub redis: cache::RedisConfig,
    pub limits: http_stack::LimitsConfig,
    pub cors: http_stack::CorsConfig,
    pub broker: BrokerConfig,
    pub mqtt: service::mqtt::BrokerSettings,
    pub kernel: kernel::KernelConfig,
    pub ingestion: ingestion::IngestionConfig,
    pub fleet: fleet::FleetConfig,
    pub analytics: analytics::AnalyticsConfig,
    pub inference: inference::InferenceConfig,
    pub eval: eval::EvalConfig,
    pub simulation: simulation::SimulationConfig,
    pub reports: reports::ReportsConfig,
    pub dispatcher: dispatcher::DispatcherConfig,
    pub console: console::ConsoleConfig,
    pub log: LogConfig,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// Every caller is the same person of one organisation. Loopback only.
    #[default]
    Dev,
    /// Authenticates people by the tokens of `auth.oidc` and services by API keys.
    Oidc,
    /// [`AuthMode::Oidc`] under upstream Sim-Corp's name, with the role claim of Clerk.
    Clerk,
}

/// `[auth]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthConfig {
    pub mode: AuthMode,
    /// The organisation of development authentication; `dev_user` is the only person in it.
    pub dev_org: String,
    pub dev_user: String,
    /// The API key by which our own services authenticate to each other
    /// (`simcorp api-key create --all-orgs`).
    pub service_token: Secret,
    /// The base URL of the kernel, which resolves tokens to callers for the other services.
    pub kernel_url: String,
    pub oidc: OidcConfig,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            mode: AuthMode::Dev,
            dev_org: "org".to_owned(),
            dev_user: "dev-user".to_owned(),
            service_token: Secret::default(),
            kernel_url: "http://127.0.0.1:3000".to_owned(),
            oidc: OidcConfig::default(),
        }
    }
}

impl AuthConfig {
    /// The claim in which Clerk's tokens have the role in the organisation.
    const CLERK_ROLE_CLAIM: &str = "org_role";

    /// Returns the OIDC settings, with those that the mode implies.
    fn oidc(&self) -> OidcConfig {
        let mut oidc = self.oidc.clone();
        if self.mode == AuthMode::Clerk && oidc.role_claim.is_empty() {
            Self::CLERK_ROLE_CLAIM.clone_into(&mut oidc.role_claim);
        }
        oidc
    }
}

/// `[broker]`: the embedded MQTT broker, for a deployment on one computer. It keeps nothing over a
/// restart and has neither TLS nor passwords; the agents' journals and our own acknowledgements
/// guarantee delivery.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Used while `mqtt.host` is empty.
    pub embedded: bool,
    /// The listener for MQTT 5 and MQTT 3.1.1: agents, and clients of upstream Sim-Corp.
    pub listen: SocketAddr,
    /// A second listener, for MQTT 3.1.1 only.
    pub listen_v4: SocketAddr,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            embedded: true,
            listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
            listen_v4: SocketAddr::from(([127, 0, 0, 1], 1884)),
        }
    }
}

impl CloudConfig {
    /// Returns the organisation of development authentication. `None` if `auth.dev_org` is not a
    /// valid name, which [`Config::check`] reports.
    #[must_use]
    pub fn dev_org(&self) -> Option<OrgId> {
        OrgId::new(self.auth.dev_org.clone()).ok()
    }

    /// Returns the organisation that a command names with `--org`, otherwise that of development
    /// authentication.
    ///
    /// # Errors
    /// When its text is not a valid name.
    pub fn org_or_default(&self, named: Option<String>) -> anyhow::Result<OrgId> {
        match named {
            Some(named) => Ok(OrgId::new(named)?),
            None => self.dev_org().context("the organisation is not set: name it with --org"),
        }
    }

    /// Builds the authentication of every service except the kernel.
    ///
    /// # Errors
    /// When the HTTP client cannot be created.
    pub fn service_auth(&self) -> anyhow::Result<Auth> {
        if let Some(dev) = self.dev_auth()? {
            return Ok(dev);
        }
        Ok(Auth::bearer(http_stack::KernelTokenVerifier::new(&self.auth.kernel_url)?))
    }

    /// Builds the authentication of the kernel, which verifies tokens itself.
    ///
    /// # Errors
    /// When the HTTP client cannot be created.
    pub fn kernel_auth(
        &self,
        store: KernelStore,
        cache: cache::Cache,
        clock: service::clock::Clock,
    ) -> anyhow::Result<Auth> {
        if let Some(dev) = self.dev_auth()? {
            return Ok(dev);
        }
        let oidc = Oidc::new(self.auth.oidc(), cache)?;
        Ok(Auth::bearer(Authenticator::new(store, clock, oidc)))
    }

    fn dev_auth(&self) -> anyhow::Result<Option<Auth>> {
        match self.auth.mode {
            AuthMode::Dev => {
                let org = self.dev_org().context("auth.dev_org is not set")?;
                Ok(Some(Auth::dev(org, &self.auth.dev_user)))
            }
            AuthMode::Oidc | AuthMode::Clerk => Ok(None),
        }
    }

    /// Returns true when this process runs the broker.
    #[must_use]
    pub const fn embeds_broker(&self) -> bool {
        !self.mqtt.is_configured() && self.broker.embedded
    }
}

impl Config for CloudConfig {
    fn check(&self, mistakes: &mut Mistakes) {
        if let Err(error) = OrgId::new(self.auth.dev_org.clone()) {
            mistakes.add("auth.dev_org", error.to_string());
        }
        let dev = self.auth.mode == AuthMode::Dev;
        if !dev {
            self.auth.oidc.check(mistakes);
        }
        let services = [
            ("kernel.listen", self.kernel.listen),
            ("ingestion.listen", self.ingestion.listen),
            ("analytics.listen", self.analytics.listen),
            ("inference.listen", self.inference.listen),
            ("eval.listen", self.eval.listen),
            ("simulation.twin_listen", self.simulation.twin_listen),
            ("simulation.publisher_listen", self.simulation.publisher_listen),
            ("fleet.listen", self.fleet.listen),
            ("reports.listen", self.reports.listen),
            ("dispatcher.listen", self.dispatcher.listen),
        ];
        // Development authentication accepts every caller: it must not be reachable from outside.
        for (field, address) in services.into_iter().filter(|_| dev) {
            mistakes.require(
                address.ip().is_loopback(),
                field,
                "not a loopback address, and auth.mode = \"dev\" allows no other; use 127.0.0.1",
            );
        }
        // These do not authenticate callers in any mode.
        for (field, address) in [
            ("console.listen", self.console.listen),
            ("broker.listen", self.broker.listen),
            ("broker.listen_v4", self.broker.listen_v4),
        ] {
            mistakes.require(
                address.ip().is_loopback(),
                field,
                "not a loopback address, and it does not authenticate callers; use 127.0.0.1",
            );
        }
        self.database.check(mistakes);
        self.mqtt.check("mqtt", mistakes);
        self.kernel.check(mistakes);
        self.ingestion.check(mistakes);
        self.fleet.check(mistakes);
        self.analytics.check(mistakes);
        self.inference.check(mistakes);
        self.eval.check(mistakes);
        self.simulation.check(mistakes);
        self.redis.check(mistakes);
        self.limits.check(mistakes);
        self.cors.check(mistakes);
        self.reports.check(mistakes);
        self.dispatcher.check(mistakes);
        self.console.check(mistakes);
        self.log.check(mistakes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clerk_implies_its_role_claim_unless_another_is_set() {
        let claim_of = |mode, role_claim: &str| {
            let oidc = OidcConfig { role_claim: role_claim.to_owned(), ..OidcConfig::default() };
            AuthConfig { mode, oidc, ..AuthConfig::default() }.oidc().role_claim
        };
        assert_eq!(claim_of(AuthMode::Clerk, ""), "org_role");
        assert_eq!(claim_of(AuthMode::Clerk, "role"), "role");
        assert_eq!(claim_of(AuthMode::Oidc, ""), "");
    }
}
