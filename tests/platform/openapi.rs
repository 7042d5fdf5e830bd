//! Tests every operation of every service with requests that its author did not think of:
//! schemathesis generates valid and invalid requests from the OpenAPI documents and checks the
//! answers against them.

use std::process::Command;

use crate::support::{Stack, client};
use anyhow::ensure;
use serde_json::Value;

const SERVICES: [&str; 10] = [
    "fleet",
    "kernel",
    "ingestion",
    "analytics",
    "eval",
    "reports",
    "inference",
    "dispatcher",
    "twin",
    "publisher",
];
/// The checks: no 5xx, and no status, type or body that the document does not name.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_schema_conformance";

/// Checks that every request body has an example, and that the service accepts it: it may only fail
/// because a named resource does not exist or conflicts.
async fn examples(stack: &Stack, service: &str, document: &Value) -> anyhow::Result<()> {
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let body = &operation["requestBody"]["content"]["application/json"];
            if !body.is_object() {
                continue;
            }
            let example = &body["example"];
            ensure!(example.is_object(), "{service} {method} {path} has no example");
            let method: reqwest::Method = method.to_uppercase().parse()?;
            let filled =
                path.replace("{id}", "x").replace("{profileId}", "x").replace("{name}", "x");
            let (status, told) = stack.send(method, (service, &filled), example).await?;
            // Development mode creates no API keys; `tests/kernel/people.rs` creates one.
            let no_keys = status == 403 && path == "/keys";
            let fits = status < 400 || [404, 409].contains(&status) || no_keys;
            ensure!(fits, "{service} {path}: {status} {told}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_answers_as_its_openapi_document_says() -> anyhow::Result<()> {
    let schemathesis = testbed::workspace_root().join("target/schemathesis/bin/schemathesis");
    ensure!(schemathesis.is_file(), "schemathesis is not installed; run: tools/install test");
    let open = "{ per_second = 100000.0, burst = 1000000 }";
    let mut settings: Vec<String> =
        ["org", "user", "route", "device"].map(|kind| format!("limits.{kind}={open}")).into();
    settings.push("ingestion.accept_unsigned=true".to_owned());
    let stack = Stack::start(&[], &settings).await?;
    for service in SERVICES {
        let document = stack.get(service, "/openapi.json").await?;
        let errors = document["components"]["schemas"]["Error"].is_object();
        assert!(errors && document["security"][0]["bearer"].is_array(), "{service}");
        examples(&stack, service, &document).await?;
        let url = stack.url(service, "/openapi.json");
        let (mut passed, mut told) = (false, String::new());
        // Sometimes schemathesis itself fails in Python's parser; that is not a failure of the
        // service. (One worker, since the recursion limit applies to the whole process.)
        for seed in ["20261122", "20261123", "20261124"] {
            let mut command = Command::new(&schemathesis);
            command
                .args(["run", &url, "--checks", CHECKS, "--phases", "coverage,fuzzing"])
                .args(["-n", "5", "--workers", "1", "--seed", seed, "--no-color"])
                // Streams do not end; frames are signed bytes and have their own fuzz target.
                .args(["--exclude-path-regex", "^/(stream|v1/frames)"])
                .args(["--suppress-health-check", "all"]);
            let output = tokio::task::spawn_blocking(move || command.output()).await??;
            passed = output.status.success();
            told = String::from_utf8_lossy(&output.stdout).into_owned();
            if passed || !told.contains("Runtime Error") || told.contains("Failures:") {
                break;
            }
        }
        ensure!(passed, "{service}: {told}\n{}", stack.process.log());
        assert!(told.contains("Test cases:"), "{service}: {told}");
    }
    // No request has harmed the services.
    let text = client().get(stack.url("kernel", "/ready")).send().await?;
    assert!(text.status().is_success());
    assert!(!stack.process.log().contains("panicked"), "{}", stack.process.log());
    Ok(())
}
