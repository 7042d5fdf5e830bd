//! Tests what protects people from pages of other sites: response headers, content types, and what
//! development mode refuses.

use crate::support::{Stack, client};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_response_limits_what_a_browser_does_with_it() -> anyhow::Result<()> {
    let stack = Stack::start(&["kernel", "ingestion", "console", "reports"], &[]).await?;
    let client = client();
    for (service, path) in [
        ("console", "/"),
        ("console", "/fleet"),
        ("console", "/sessions"),
        ("console", "/sessions/none"),
        ("console", "/machines/leipzig/none"),
        ("console", "/no-such-page"),
        ("console", "/assets/app.js"),
        ("kernel", "/health"),
        ("kernel", "/missions"),
        ("ingestion", "/sessions/none"),
        ("reports", "/reports/session/none"),
    ] {
        let answer = client.get(stack.url(service, path)).send().await?;
        let header = |name: &str| {
            answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
        };
        assert_eq!(header("x-content-type-options"), "nosniff", "{service}{path}");
        assert_eq!(header("x-frame-options"), "DENY", "{service}{path}");
        let policy = header("content-security-policy");
        assert!(policy.contains("default-src 'none'"), "{service}{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'"), "{service}{path}: {policy}");
        assert!(!policy.contains("unsafe-inline"), "{service}{path}: {policy}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn development_mode_reads_json_only_by_its_name_and_creates_no_keys() -> anyhow::Result<()> {
    let stack = Stack::start(&["kernel"], &[]).await?;
    let client = client();
    let keys = stack.url("kernel", "/keys");
    let body = r#"{"name":"script","role":"viewer"}"#;
    // What `fetch` sends for a Blob without a type, from any page.
    let untyped = client.post(&keys).body(body).send().await?;
    assert_eq!(untyped.status(), 415, "{}", untyped.text().await?);
    let typed = client.post(&keys).header("content-type", "application/json").body(body);
    let typed = typed.send().await?;
    assert_eq!(typed.status(), 403);
    assert!(typed.text().await?.contains("auth.mode is dev"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_methods_share_one_series_and_deep_traces_are_refused() -> anyhow::Result<()> {
    let stack = Stack::start(&["kernel"], &[]).await?;
    let client = client();
    for n in 0..20 {
        let method = reqwest::Method::from_bytes(format!("MADEUP{n}").as_bytes())?;
        client.request(method, stack.url("kernel", "/missions")).send().await?;
    }
    let metrics = client.get(stack.url("kernel", "/metrics")).send().await?.text().await?;
    assert!(metrics.contains("method=\"OTHER\"") && !metrics.contains("MADEUP"), "{metrics}");

    // It can be read as it comes, and not once the output is wrapped for storing.
    let deep = format!("{}1{}", "[".repeat(122), "]".repeat(122));
    let trace = format!(
        r#"{{"traceId":"t","agentId":"a","missionId":"m","status":"SUCCESS","mission":{{}},
            "startedAt":"2026-11-27T10:00:00.000Z","entries":[{{"missionId":"m","loopId":"l",
            "step":"ACT","startedAt":"2026-11-27T10:00:00.000Z",
            "toolCalls":[{{"toolName":"t","output":{deep}}}]}}]}}"#
    );
    let kept = client
        .post(stack.url("kernel", "/traces"))
        .header("content-type", "application/json")
        .body(trace)
        .send()
        .await?;
    let (status, text) = (kept.status(), kept.text().await?);
    assert!(status == 400 && text.contains("nested too deeply"), "{status} {text}");
    assert_eq!(client.get(stack.url("kernel", "/traces")).send().await?.status(), 200);
    Ok(())
}
