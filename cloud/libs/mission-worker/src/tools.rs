//! The tools that a mission's worker may use. The kernel must authorise each call first, and the
//! trace records each call.

use contract::{EpochMs, OrgId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use service::clock::Clock;
use service_client::{ServiceClient, ServiceClientError};

use crate::error::WorkError;

/// The tools of one mission, and the record of their calls.
pub struct MissionTools<'t> {
    kernel: &'t ServiceClient,
    agent: &'static str,
    clock: &'t Clock,
    pub org: OrgId,
    mission: &'t str,
    /// The calls, in the form that the trace has them.
    pub(crate) calls: Vec<Value>,
}

impl<'t> MissionTools<'t> {
    pub(crate) const fn new(
        kernel: &'t ServiceClient,
        agent: &'static str,
        clock: &'t Clock,
        org: OrgId,
        mission: &'t str,
    ) -> Self {
        Self { kernel, agent, clock, org, mission, calls: Vec::new() }
    }

    /// Returns the time of the wall clock.
    #[must_use]
    pub fn now(&self) -> EpochMs {
        (self.clock)()
    }

    async fn authorize(&mut self, tool: &'static str, resource: &str) -> Result<(), WorkError> {
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

    fn record_call<T, E: std::fmt::Display>(
        &mut self,
        tool: &'static str,
        resource: &str,
        begun: EpochMs,
        result: &Result<T, E>,
    ) {
        let mut call = json!({"toolName": tool, "action": "invoke", "input": {"resource": resource},
                              "durationMs": self.now().ms_since(begun).max(0)});
        match result {
            Ok(_) => call["output"] = json!({"ok": true}),
            Err(error) => call["error"] = json!({"message": error.to_string()}),
        }
        self.calls.push(call);
    }

    /// Reads from a service. Returns `None` on 404.
    ///
    /// # Errors
    /// When the policy denies it or the service does not answer.
    pub async fn read<T: DeserializeOwned>(
        &mut self,
        tool: &'static str,
        from: &ServiceClient,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Option<T>, WorkError> {
        let resource = path.join("/");
        self.authorize(tool, &resource).await?;
        let begun = self.now();
        let result: Result<Option<T>, ServiceClientError> = from.get(&self.org, path, query).await;
        self.record_call(tool, &resource, begun, &result);
        Ok(result?)
    }

    /// Sends a body to a service and returns the response.
    ///
    /// # Errors
    /// When the policy denies it or the service does not accept it.
    pub async fn write<B: Serialize + Sync>(
        &mut self,
        tool: &'static str,
        to: &ServiceClient,
        path: &[&str],
        body: &B,
    ) -> Result<Value, WorkError> {
        let resource = path.join("/");
        self.authorize(tool, &resource).await?;
        let begun = self.now();
        let result = to.post::<_, Value>(Some(&self.org), path, body).await;
        self.record_call(tool, &resource, begun, &result);
        result?
            .map(|answer| answer.body)
            .ok_or_else(|| WorkError::Permanent(format!("{tool}: the response was empty")))
    }

    /// Runs an action of the worker itself, if the policy allows it.
    ///
    /// # Errors
    /// When the policy denies it, or `doing` fails.
    pub async fn run_local<T>(
        &mut self,
        tool: &'static str,
        resource: &str,
        doing: impl Future<Output = Result<T, WorkError>>,
    ) -> Result<T, WorkError> {
        self.authorize(tool, resource).await?;
        let begun = self.now();
        let result = doing.await;
        self.record_call(tool, resource, begun, &result);
        result
    }
}
