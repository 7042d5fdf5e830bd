//! The services as the operator's commands ask them: over HTTP, with the operator's own token, so that
//! what they do is allowed and written down like anybody's.

use anyhow::Context as _;
use contract::OrgId;
use peer::Peer;
use serde::de::DeserializeOwned;
use serde_json::Value;
use service::secret::Secret;

use crate::config::CloudConfig;

/// Where the operator's token is.
const TOKEN: &str = "SIMCORP_TOKEN";

/// The services, asked by one operator.
pub struct Remote {
    pub kernel: Peer,
    pub eval: Peer,
    pub fleet: Peer,
    pub ingestion: Peer,
    pub org: OrgId,
}

impl Remote {
    /// # Errors
    /// When the kernel does not answer, or does not know the operator.
    pub async fn connect(config: &CloudConfig, org: Option<String>) -> anyhow::Result<Self> {
        let set = std::env::var_os(TOKEN).is_some();
        let token = Secret::from(if set { format!("env:{TOKEN}") } else { String::new() });
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kernel = Peer::new("kernel", &config.auth.kernel_url, &token)?;
        let me: Value = kernel
            .me()
            .await
            .with_context(|| format!("asking {} who you are ({TOKEN})", config.auth.kernel_url))?;
        let named = org.as_deref().or(me["orgId"].as_str());
        let org = named.context("your key works for all organisations: say which, with --org")?;
        Ok(Self {
            kernel,
            eval: Peer::new("eval", &config.kernel.eval_url, &token)?,
            ingestion: Peer::new("ingestion", &config.analytics.ingestion_url, &token)?,
            fleet: Peer::new("fleet", &config.fleet.url, &token)?,
            org: OrgId::new(org)?,
        })
    }

    /// # Errors
    /// When a service refuses, or there is none of that name.
    pub async fn get<T: DeserializeOwned>(
        &self,
        from: &Peer,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> anyhow::Result<T> {
        from.get(&self.org, path, query).await?.with_context(|| format!("no {}", path.join("/")))
    }

    /// # Errors
    /// When a service refuses.
    pub async fn post(&self, to: &Peer, path: &[&str], body: &Value) -> anyhow::Result<Value> {
        let answer = to.post(Some(&self.org), path, body).await?;
        Ok(answer.map_or(Value::Null, |answer| answer.body))
    }
}
