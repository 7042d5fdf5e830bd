//! What the worker may use. Each call is allowed by the kernel first, and each is in the trace.

use contract::{EpochMs, OrgId};
use peer::PeerError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Clock, Peers};

/// The worker's name towards the kernel.
pub const AGENT: &str = "report-worker";

/// Why a mission was not done.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("the policy denies {0}")]
    Denied(&'static str),
    #[error("{0}")]
    Impossible(String),
    #[error("not done within {0} s")]
    Timeout(u32),
    /// Another worker has it by now: nothing more is to be said.
    #[error("the lease is lost")]
    LeaseLost,
}

impl WorkError {
    /// True when another attempt may help.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Peer(error) => error.is_transient(),
            Self::Timeout(_) => true,
            Self::Denied(_) | Self::Impossible(_) | Self::LeaseLost => false,
        }
    }
}

/// One mission's tools, and what was done with them.
pub struct Tools<'t> {
    peers: &'t Peers,
    clock: &'t Clock,
    pub org: OrgId,
    mission: &'t str,
    /// As the trace tells them.
    pub calls: Vec<Value>,
}

impl<'t> Tools<'t> {
    pub const fn new(peers: &'t Peers, clock: &'t Clock, org: OrgId, mission: &'t str) -> Self {
        Self { peers, clock, org, mission, calls: Vec::new() }
    }

    async fn allowed(&mut self, tool: &'static str, resource: &str) -> Result<(), WorkError> {
        let ask = json!({"agentId": AGENT, "tool": tool, "action": "invoke", "resource": resource,
                         "missionId": self.mission});
        let path = ["policy", "check"];
        let answer = self.peers.kernel.post::<_, Value>(Some(&self.org), &path, &ask).await?;
        let denied = answer.is_none_or(|answer| answer.body["decision"] != "ALLOW");
        if denied {
            self.calls.push(json!({"toolName": tool, "action": "invoke", "deniedByPolicy": true,
                                   "input": {"resource": resource}}));
            return Err(WorkError::Denied(tool));
        }
        Ok(())
    }

    fn note<T>(
        &mut self,
        tool: &'static str,
        resource: &str,
        begun: EpochMs,
        result: &Result<T, PeerError>,
    ) {
        let mut call = json!({"toolName": tool, "action": "invoke", "input": {"resource": resource},
                              "durationMs": (self.clock)().since(begun).max(0)});
        match result {
            Ok(_) => call["output"] = json!({"ok": true}),
            Err(error) => call["error"] = json!({"message": error.to_string()}),
        }
        self.calls.push(call);
    }

    /// Reads from ingestion; `None`: there is none.
    pub async fn read<T: DeserializeOwned>(
        &mut self,
        tool: &'static str,
        path: &[&str],
    ) -> Result<Option<T>, WorkError> {
        let resource = path.join("/");
        self.allowed(tool, &resource).await?;
        let begun = (self.clock)();
        let result = self.peers.ingestion.get(&self.org, path, &[]).await;
        self.note(tool, &resource, begun, &result);
        Ok(result?)
    }

    /// Asks analytics what the roast was.
    pub async fn analysis(&mut self, session: &str) -> Result<Option<Value>, WorkError> {
        let tool = "getAnalysis";
        self.allowed(tool, session).await?;
        let begun = (self.clock)();
        let path = ["analysis", "session", session];
        let result = self.peers.analytics.get(&self.org, &path, &[]).await;
        self.note(tool, session, begun, &result);
        Ok(result?)
    }

    /// Hands the report in; answers the one that is kept.
    pub async fn write<B: Serialize + Sync>(
        &mut self,
        session: &str,
        report: &B,
    ) -> Result<Value, WorkError> {
        let tool = "writeReport";
        self.allowed(tool, session).await?;
        let begun = (self.clock)();
        let path = ["sessions", session, "reports"];
        let result = self.peers.ingestion.post::<_, Value>(Some(&self.org), &path, report).await;
        self.note(tool, session, begun, &result);
        result?
            .map(|answer| answer.body)
            .ok_or_else(|| WorkError::Impossible("ingestion keeps no report".to_owned()))
    }
}
