//! Tests rate limits, idempotency keys and a cache: shared by instances through Redis, and still
//! correct when Redis is down.

use crate::support::{Stack, client};
use anyhow::Context as _;
use reqwest::Method;
use serde_json::json;
use testbed::{Postgres, Redis};
use tokio::io::AsyncWriteExt as _;

async fn two(database: &Postgres, redis: &Redis, extra: &[&str]) -> anyhow::Result<[Stack; 2]> {
    let mut settings = vec![
        format!("database.url={}", database.url()),
        "database.migrate=true".to_owned(),
        "broker.embedded=false".to_owned(),
        format!("redis.url=redis://127.0.0.1:{}", redis.port),
    ];
    settings.extend(extra.iter().map(ToString::to_string));
    let services = ["kernel", "eval"];
    Ok([Stack::start(&services, &settings).await?, Stack::start(&services, &settings).await?])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_a_rate_limit_and_work_without_redis() -> anyhow::Result<()> {
    let (database, mut redis) = (Postgres::start().await?, Redis::start().await?);
    let slow = "limits.route={ per_second = 0.2, burst = 6 }";
    let stacks = two(&database, &redis, &[slow]).await?;
    let ask =
        async |n: usize, path: &str| client().get(stacks[n % 2].url("kernel", path)).send().await;
    for n in 0..6 {
        let answer = ask(n, "/agents").await?;
        let headers = answer.headers();
        assert_eq!(answer.status(), 200);
        assert_eq!(headers["ratelimit-policy"], "\"route\";q=6;w=30");
        let left = headers["ratelimit"].to_str()?;
        assert!(left.starts_with(&format!("\"route\";r={};t=", 5 - n)), "{left}");
        assert_eq!(headers["x-ratelimit-limit"], "6");
    }
    for n in 0..2 {
        let answer = ask(n, "/agents").await?;
        assert_eq!(answer.status(), 429, "instance {n}");
        let wait: u64 = answer.headers()["retry-after"].to_str()?.parse()?;
        assert!((1..=5).contains(&wait), "{wait}");
        let body: serde_json::Value = answer.json().await?;
        assert_eq!(body["error"], "Too Many Requests");
        let again = body["retryAfter"].as_str().and_then(contract::EpochMs::parse_iso);
        assert!(again.is_some(), "{body}");
    }
    // Another route has its own limit; routes that machines read have none.
    assert_eq!(ask(0, "/tools").await?.status(), 200);
    for path in ["/health", "/ready", "/metrics"] {
        for _ in 0..10 {
            assert_eq!(ask(1, path).await?.status(), 200, "{path}");
        }
    }
    let shown = stacks[0].get("kernel", "/_rate-limit/metrics").await?;
    // The workers of this process are the same user here, and send requests too.
    let keys = shown["topKeys"].as_array().unwrap();
    let ours = keys.iter().find(|key| key["key"] == "org/dev-user GET /agents");
    assert_eq!(ours.unwrap()["count"], 1, "{shown}");
    // Without Redis each instance counts alone: it refuses later, and always answers.
    redis.kill();
    for n in 0..12 {
        assert_eq!(ask(n, "/agents").await?.status(), 200, "request {n}");
    }
    assert_eq!(ask(0, "/agents").await?.status(), 429);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_an_idempotency_key_counts_once_at_all_instances() -> anyhow::Result<()> {
    let (database, redis) = (Postgres::start().await?, Redis::start().await?);
    let stacks = two(&database, &redis, &[]).await?;
    let case = json!({"name": "c", "machineId": "m"});
    let send = async |n: usize, key: &str, body: &serde_json::Value| {
        let request = client().post(stacks[n].url("eval", "/golden-cases"));
        request.header("Idempotency-Key", key).json(body).send().await
    };
    // Eight simultaneous requests at both instances create one case.
    let all = futures_util::future::join_all((0..8).map(|n| send(n % 2, "k-1", &case))).await;
    let mut made = std::collections::BTreeSet::new();
    for answer in all {
        let answer = answer?;
        match answer.status().as_u16() {
            201 => {
                let body: serde_json::Value = answer.json().await?;
                made.insert(body["id"].as_str().unwrap().to_owned());
            }
            409 => {} // another request with this key is in progress
            other => panic!("{other}"),
        }
    }
    assert_eq!(made.len(), 1, "{made:?}");
    let again = send(1, "k-1", &case).await?;
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    let body: serde_json::Value = again.json().await?;
    assert!(made.contains(body["id"].as_str().unwrap()));
    assert_eq!(database.query_number("SELECT count(*) FROM golden_cases")?, 1);
    // The same key with another request is refused.
    let other = send(0, "k-1", &json!({"name": "d", "machineId": "m"})).await?;
    assert_eq!(other.status(), 422);
    // An invalid request gets the same error again.
    let wrong = json!({"name": ""  , "machineId": "m"});
    for _ in 0..2 {
        assert_eq!(send(0, "k-2", &wrong).await?.status(), 400);
    }
    // When two clients change one case, the second gets 412.
    let id = made.first().unwrap();
    let path = format!("/golden-cases/{id}");
    let change = async |tag: &str, name: &str| {
        let request = client().request(Method::PUT, stacks[0].url("eval", &path));
        let body = json!({"name": name, "machineId": "m"});
        request.header("If-Match", tag).json(&body).send().await
    };
    assert_eq!(change("\"1\"", "first").await?.status(), 200);
    assert_eq!(change("\"1\"", "second").await?.status(), 412);
    Ok(())
}

/// Returns the resident memory of a process, in kB.
fn resident_kb(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_request_cost_little_memory() -> anyhow::Result<()> {
    const CONNECTIONS: u64 = 100;
    let stack = Stack::start(&["kernel"], &[]).await?;
    let pid = stack.process.pid().context("it runs")?;
    client().get(stack.url("kernel", "/missions")).send().await?;
    let before = resident_kb(pid)?;
    let address = stack.url("kernel", "").trim_start_matches("http://").to_owned();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = tokio::net::TcpStream::connect(&address).await?;
        connection.write_all(b"GET /missions HTTP/1.1\r\nx-slow: ").await?;
        held.push(connection);
    }
    // Answered after the connections above have been accepted.
    client().get(stack.url("kernel", "/missions")).send().await?;
    let each = resident_kb(pid)?.saturating_sub(before) / CONNECTIONS;
    assert!(each < 100, "{each} kB for each connection");
    Ok(())
}
