//! Tests the operator's commands, with and without running services.

use crate::support::Stack;
use serde_json::{Value, json};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_manages_missions_users_and_keys_from_the_command_line() -> anyhow::Result<()> {
    let stack = Stack::start(&["kernel", "eval"], &["broker.embedded=false".to_owned()]).await?;
    let operate = |arguments: &[&str]| stack.operate(arguments);
    // A mission without any signals waits for a person.
    let mission = json!({"goal": "generate-roast-report", "missionId": "M-1"});
    stack.post(("kernel", "/missions"), &mission).await?;
    let table = operate(&["mission", "list", "--status", "QUARANTINED"])?;
    assert!(table.starts_with("ID") && table.contains("M-1  QUARANTINED"), "{table}");
    let told = lines(&operate(&["mission", "list", "--output", "json"])?);
    assert_eq!((told.len(), &told[0]["missionId"]), (1, &json!("M-1")));
    assert!(operate(&["mission", "show", "M-1"])?.contains("MISSING_SIGNALS"));
    assert_eq!(
        operate(&["mission", "approve", "M-1", "--note", "looked at it"])?,
        "M-1 is PENDING\n"
    );
    assert_eq!(operate(&["mission", "cancel", "M-1"])?, "M-1 is CANCELED\n");
    let refused = operate(&["mission", "retry", "M-1"]).unwrap_err().to_string();
    assert!(refused.contains("409"), "{refused}");
    assert!(operate(&["mission", "show", "M-2"]).unwrap_err().to_string().contains("missions/M-2"));

    // Golden cases and their runs.
    let case = json!({"name": "filter", "machineId": "m", "targetDropSeconds": 600,
                      "dropSecondsErrorTolerance": 20});
    let (_, case) = stack.post(("eval", "/golden-cases"), &case).await?;
    let run = json!({"sessionId": "S-1", "goldenCaseId": case["id"], "telemetry": [],
                     "analysis": {"dropSeconds": 650}});
    stack.post(("eval", "/evaluations/run"), &run).await?;
    assert!(operate(&["eval", "cases", "--machine", "m"])?.contains("filter"));
    let runs = lines(&operate(&["eval", "runs", "--session", "S-1", "--output", "json"])?);
    assert_eq!((runs.len(), &runs[0]["outcome"]), (1, &json!("FAIL")));
    let told = operate(&["eval", "promotion", "S-1"])?;
    assert_eq!(told, "not allowed: 1 of its evaluations failed\n");

    // People and API keys, directly in the database.
    operate(&["user", "grant", "ada", "--role", "approver"])?;
    operate(&["user", "block", "eve"])?;
    let people = lines(&operate(&["user", "list", "--output", "json"])?);
    assert_eq!((&people[0]["role"], &people[1]["role"]), (&json!("approver"), &Value::Null));
    operate(&["user", "reset", "eve"])?;
    assert!(operate(&["user", "reset", "eve"]).is_err());
    assert!(operate(&["user", "grant", "ada", "--role", "king"]).is_err());
    let token = operate(&["api-key", "create", "--name", "x", "--org", "org"])?;
    assert!(token.starts_with("sck_"));
    let keys = operate(&["api-key", "list", "--org", "org", "--output", "json"])?;
    assert!(keys.contains("\"name\":\"x\"") && !keys.contains(token.trim()), "{keys}");
    assert!(
        operate(&["api-key", "create", "--name", "x"]).is_err(),
        "an API key needs an organisation"
    );

    // The schema, and the configuration.
    assert_eq!(operate(&["migrate", "plan"])?, "", "no migration is pending");
    let steps = lines(&operate(&["migrate", "status", "--output", "json"])?);
    assert!(steps.len() >= 10 && steps.iter().all(|step| step["applied"] == true));
    assert_eq!(operate(&["config", "check"])?, "the configuration is right\n");
    assert!(operate(&["config", "show"])?.contains("[eval.judge]"));
    let log = stack.get("kernel", "/audit?limit=100").await?;
    let actions = log.to_string();
    for action in ["mission.approve", "mission.cancel", "user.role", "user.reset", "key.create"] {
        assert!(actions.contains(action), "{action}");
    }
    Ok(())
}

#[test]
fn migrate_plan_prints_the_pending_statements() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("--set=database.data={}", folder.path().display());
    let program = testbed::binary_path("simcorp").unwrap();
    let output =
        std::process::Command::new(program).args(["migrate", "plan", &data]).output().unwrap();
    let plan = String::from_utf8(output.stdout).unwrap();
    assert!(plan.contains("-- 0001 initial") && plan.contains("CREATE TABLE leases"), "{plan}");
    assert!(!plan.contains("-- 0001 initial\n-- 0002"));
}
