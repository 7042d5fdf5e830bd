//! The HTTP client of the operator's commands. It calls the services with the operator's own token,
//! so that each action is authorised and audited like that of any other caller.

use anyhow::Context as _;
use contract::OrgId;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use service::secret::Secret;
use service_client::ServiceClient;

use crate::config::CloudConfig;

/// The environment variable that holds the operator's token.
const TOKEN: &str = "SIMCORP_TOKEN";

/// Clients for the services, with one operator's token and organisation.
pub struct OperatorClient {
    pub kernel: ServiceClient,
    pub eval: ServiceClient,
    pub fleet: ServiceClient,
    pub ingestion: ServiceClient,
    pub org: OrgId,
}

impl OperatorClient {
    /// Authenticates the operator at the kernel and determines the organisation.
    ///
    /// # Errors
    /// When the kernel does not answer, or does not accept the token.
    pub async fn connect(config: &CloudConfig, org: Option<String>) -> anyhow::Result<Self> {
        let set = std::env::var_os(TOKEN).is_some();
        let token = Secret::from(if set { format!("env:{TOKEN}") } else { String::new() });
        let kernel = ServiceClient::new("kernel", &config.auth.kernel_url, &token)?;
        let me: Value = kernel
            .whoami()
            .await
            .with_context(|| format!("cannot log in at {} ({TOKEN})", config.auth.kernel_url))?;
        let org_id = org.as_deref().or(me["orgId"].as_str());
        let org = org_id.context("your API key is valid for all organisations: set --org")?;
        Ok(Self {
            kernel,
            eval: ServiceClient::new("eval", &config.kernel.eval_url, &token)?,
            ingestion: ServiceClient::new("ingestion", &config.analytics.ingestion_url, &token)?,
            fleet: ServiceClient::new("fleet", &config.fleet.url, &token)?,
            org: OrgId::new(org)?,
        })
    }

    /// Sends a GET request.
    ///
    /// # Errors
    /// When a service refuses the request, or the resource does not exist.
    pub async fn get<T: DeserializeOwned>(
        &self,
        from: &ServiceClient,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        from.get(&self.org, path, query).await?.with_context(|| format!("no {}", path.join("/")))
    }

    /// Sends a POST request; returns the body of the response, or `null` without one.
    ///
    /// # Errors
    /// When a service refuses the request.
    pub async fn post(
        &self,
        to: &ServiceClient,
        path: &[&str],
        body: &Value,
    ) -> anyhow::Result<Value> {
        let answer = to.post(Some(&self.org), path, body).await?;
        Ok(answer.map_or(Value::Null, |answer| answer.body))
    }

    /// Sends a PUT request. With `if_match`, only that version of the resource is changed.
    ///
    /// # Errors
    /// When a service refuses the request, or the resource has another version.
    pub async fn put<B: Serialize + Sync>(
        &self,
        to: &ServiceClient,
        path: &[&str],
        if_match: Option<&str>,
        body: &B,
    ) -> anyhow::Result<()> {
        to.put::<B, Value>(&self.org, path, if_match, body).await?;
        Ok(())
    }
}
