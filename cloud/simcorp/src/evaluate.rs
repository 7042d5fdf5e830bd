//! `simcorp eval`: manages golden cases and evaluations of sessions.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::config::CloudConfig;
use crate::output::Output;
use crate::remote::OperatorClient;

#[derive(Subcommand)]
pub enum EvalCommand {
    /// List the golden cases, of one machine or of all
    Cases {
        /// Only the golden cases of this machine
        #[arg(long)]
        machine: Option<String>,
    },
    /// Create a golden case from a session that went well
    Learn {
        /// The id of the session
        session: String,
        /// The machine that made the session
        #[arg(long)]
        machine: String,
        /// The name of the new golden case
        #[arg(long)]
        name: String,
    },
    /// Evaluate a session against a golden case
    Run {
        /// The id of the session
        session: String,
        /// The id of the golden case
        case: String,
    },
    /// List the evaluations of a session or of a golden case
    Runs {
        /// Only the evaluations of this session
        #[arg(long)]
        session: Option<String>,
        /// Only the evaluations against this golden case
        #[arg(long, conflicts_with = "session")]
        case: Option<String>,
    },
    /// Show whether a session may be promoted, and if not, why
    Promotion {
        /// The id of the session
        session: String,
    },
}

pub async fn run(
    config: &CloudConfig,
    org: Option<String>,
    command: EvalCommand,
    output: Output,
) -> anyhow::Result<()> {
    let remote = OperatorClient::connect(config, org).await?;
    let eval = &remote.eval;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    match command {
        EvalCommand::Cases { machine } => {
            let query: Vec<_> =
                machine.as_deref().map(|machine| ("machineId", machine)).into_iter().collect();
            let cases: Vec<Value> = remote.get(eval, &["golden-cases"], &query).await?;
            output.rows(&["id", "machine", "expects", "name"], &cases, |case| {
                ["id", "machineId", "expectation", "name"].map(|name| text(&case[name])).to_vec()
            })
        }
        EvalCommand::Learn { session, machine, name } => {
            let body = json!({"sessionId": session, "machineId": machine, "name": name});
            let case = remote.post(eval, &["golden-cases", "from-success"], &body).await?;
            output.done(&case, &text(&case["id"]))
        }
        EvalCommand::Run { session, case } => {
            let body = json!({"sessionId": session, "goldenCaseId": case});
            let run = remote.post(eval, &["evaluations", "run"], &body).await?;
            let failed = run["failedGates"].to_string();
            output.done(&run, &format!("{} {failed}", text(&run["outcome"])))
        }
        EvalCommand::Runs { session, case } => {
            let mut query = Vec::new();
            query.extend(session.as_deref().map(|session| ("sessionId", session)));
            query.extend(case.as_deref().map(|case| ("goldenCaseId", case)));
            let runs: Vec<Value> = remote.get(eval, &["evaluations"], &query).await?;
            output.rows(&["id", "outcome", "case", "session", "at"], &runs, |run| {
                ["id", "outcome", "goldenCaseId", "sessionId", "runAt"]
                    .map(|name| text(&run[name]))
                    .to_vec()
            })
        }
        EvalCommand::Promotion { session } => {
            let path = ["evaluations", "promotion", session.as_str()];
            let promotion: Value = remote.get(eval, &path, &[]).await?;
            let sentence = match promotion["reason"].as_str() {
                None => "allowed".to_owned(),
                Some(reason) => format!("not allowed: {reason}"),
            };
            output.done(&promotion, &sentence)
        }
    }
}
