//! `simcorp mission`: lists, shows, approves, cancels and retries missions.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::config::CloudConfig;
use crate::output::Output;
use crate::remote::OperatorClient;

#[derive(Subcommand)]
pub enum MissionCommand {
    /// List the newest missions
    List {
        /// PENDING, RUNNING, RETRY, DONE, FAILED, QUARANTINED, BLOCKED or CANCELED
        #[arg(long)]
        status: Option<String>,
        /// Only missions with this goal, such as `generate-roast-report`
        #[arg(long)]
        goal: Option<String>,
        /// The largest number of missions to list
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show a mission with all its fields
    Show {
        /// The id of the mission
        id: String,
    },
    /// Approve a quarantined, blocked or failed mission, so that it runs
    Approve {
        /// The id of the mission
        id: String,
        /// Why it is approved; stored with the decision
        #[arg(long)]
        note: Option<String>,
    },
    /// Cancel a mission
    Cancel {
        /// The id of the mission
        id: String,
    },
    /// Retry a mission now, without waiting for its next scheduled attempt
    Retry {
        /// The id of the mission
        id: String,
    },
}

pub async fn run(
    config: &CloudConfig,
    org: Option<String>,
    command: MissionCommand,
    output: Output,
) -> anyhow::Result<()> {
    let remote = OperatorClient::connect(config, org).await?;
    let transition = |id: String, step: &'static str, body: Value| {
        let remote = &remote;
        async move {
            let path = ["missions", id.as_str(), step];
            let mission = remote.post(&remote.kernel, &path, &body).await?;
            let status = mission["status"].as_str().unwrap_or_default();
            output.done(&mission, &format!("{id} is {status}"))
        }
    };
    match command {
        MissionCommand::List { status, goal, limit } => {
            let limit = limit.to_string();
            let mut query = vec![("limit", limit.as_str())];
            query.extend(status.as_deref().map(|status| ("status", status)));
            query.extend(goal.as_deref().map(|goal| ("goal", goal)));
            let list: Value = remote.get(&remote.kernel, &["missions"], &query).await?;
            let items = list["items"].as_array().cloned().unwrap_or_default();
            output.rows(&["id", "status", "goal", "subject", "attempts", "created"], &items, |m| {
                let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
                vec![
                    text(&m["missionId"]),
                    text(&m["status"]),
                    text(&m["goal"]["title"]),
                    text(&m["subjectId"]),
                    format!("{}/{}", m["attempts"], m["maxAttempts"]),
                    text(&m["createdAt"]),
                ]
            })
        }
        MissionCommand::Show { id } => {
            let mission: Value = remote.get(&remote.kernel, &["missions", &id], &[]).await?;
            output.done(&mission, &serde_json::to_string_pretty(&mission)?)
        }
        MissionCommand::Approve { id, note } => {
            transition(id, "approve", json!({"note": note})).await
        }
        MissionCommand::Cancel { id } => transition(id, "cancel", json!({})).await,
        MissionCommand::Retry { id } => transition(id, "retryNow", json!({})).await,
    }
}
