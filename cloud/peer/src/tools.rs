//! What a mission's worker may use. Each call is allowed by the kernel first, and each is in the
//! trace.

use contract::{EpochMs, OrgId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::work::{Clock, WorkError};
use crate::{Peer, PeerError};

/// One mission's tools, and what was done with them.
pub struct Tools<'t> {
    kernel: &'t Peer,
    agent: &'static str,
    clock: &'t Clock,
    pub org: OrgId,
    mission: &'t str,
    /// As the trace tells them.
    pub(crate) calls: Vec<Value>,
}

impl<'t> Tools<'t> {
    pub(crate) const fn new(
        kernel: &'t Peer,
        agent: &'static str,
        clock: &'t Clock,
        org: OrgId,
        mission: &'t str,
    ) -> Self {
        Self { kernel, agent, clock, org, mission, calls: Vec::new() }
    }

    /// The wall clock.
    #[must_use]
    pub fn now(&self) -> EpochMs {
        (self.clock)()
    }

    async fn allowed(&mut self, tool: &'static str, resource: &str) -> Result<(), WorkError> {
        let ask = json!({"agentId": self.agent, "tool": tool, "action": "invoke",
                         "resource": resource, "missionId": self.mission});
        let path = ["policy", "check"];
        let answer = self.kernel.post::<_, Value>(Some(&self.org), &path, &ask).await?;
        let denied = answer.is_none_or(|answer| answer.body["decision"] != "ALLOW");
        if denied {
            self.calls.push(json!({"toolName": tool, "action": "invoke", "deniedByPolicy": true,
                                   "input": {"resource": resource}}));
            return Err(WorkError::Denied(tool));
        }
        Ok(())
    }

    fn note<T, E: std::fmt::Display>(
        &mut self,
        tool: &'static str,
        resource: &str,
        begun: EpochMs,
        result: &Result<T, E>,
    ) {
        let mut call = json!({"toolName": tool, "action": "invoke", "input": {"resource": resource},
                              "durationMs": self.now().since(begun).max(0)});
        match result {
            Ok(_) => call["output"] = json!({"ok": true}),
            Err(error) => call["error"] = json!({"message": error.to_string()}),
        }
        self.calls.push(call);
    }

    /// Reads from a service; `None`: there is none.
    ///
    /// # Errors
    /// When the policy denies it or the service does not answer.
    pub async fn read<T: DeserializeOwned>(
        &mut self,
        tool: &'static str,
        from: &Peer,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Option<T>, WorkError> {
        let resource = path.join("/");
        self.allowed(tool, &resource).await?;
        let begun = self.now();
        let result: Result<Option<T>, PeerError> = from.get(&self.org, path, query).await;
        self.note(tool, &resource, begun, &result);
        Ok(result?)
    }

    /// Hands something to a service; answers what it says.
    ///
    /// # Errors
    /// When the policy denies it or the service does not take it.
    pub async fn write<B: Serialize + Sync>(
        &mut self,
        tool: &'static str,
        to: &Peer,
        path: &[&str],
        body: &B,
    ) -> Result<Value, WorkError> {
        let resource = path.join("/");
        self.allowed(tool, &resource).await?;
        let begun = self.now();
        let result = to.post::<_, Value>(Some(&self.org), path, body).await;
        self.note(tool, &resource, begun, &result);
        result?
            .map(|answer| answer.body)
            .ok_or_else(|| WorkError::Impossible(format!("{tool}: nothing was answered")))
    }

    /// Does something of the worker's own, with the policy's leave.
    ///
    /// # Errors
    /// When the policy denies it, or `doing` fails.
    pub async fn own<T>(
        &mut self,
        tool: &'static str,
        resource: &str,
        doing: impl Future<Output = Result<T, WorkError>>,
    ) -> Result<T, WorkError> {
        self.allowed(tool, resource).await?;
        let begun = self.now();
        let result = doing.await;
        self.note(tool, resource, begun, &result);
        result
    }
}
