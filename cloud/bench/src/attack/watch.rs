//! What an operator sees meanwhile: health, readiness and memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use service::shutdown::CancellationToken;

use crate::stats;

/// How fast a server answered an honest client.
#[derive(Default)]
pub struct AnswerTimes {
    /// The time of each answer, in ms.
    pub ms: Vec<f64>,
    /// Requests that were refused, or had no answer.
    pub unanswered: u64,
    pub first_problem: Option<String>,
}

impl AnswerTimes {
    /// Sends a request, and returns its answer. Records its time, or why there is none.
    pub async fn ask(&mut self, request: RequestBuilder) -> Option<String> {
        let asked = tokio::time::Instant::now();
        match answer(request).await {
            Ok(text) => {
                self.ms.push(asked.elapsed().as_secs_f64() * 1000.0);
                Some(text)
            }
            Err(error) => {
                self.unanswered += 1;
                self.first_problem.get_or_insert_with(|| format!("{error:?}"));
                None
            }
        }
    }

    /// Returns whether there are answers, and each came before `limit_ms`.
    pub fn all_within(&self, limit_ms: f64) -> bool {
        self.unanswered == 0 && !self.ms.is_empty() && self.ms.iter().all(|ms| *ms < limit_ms)
    }

    pub fn report(&self) -> Value {
        json!({
            "answers": self.ms.len(),
            "unanswered": self.unanswered,
            "ms": stats::percentiles(self.ms.clone()),
            "worst_ms": self.ms.iter().copied().fold(0.0, f64::max),
            "first_problem": self.first_problem,
        })
    }
}

async fn answer(request: RequestBuilder) -> reqwest::Result<String> {
    request.send().await?.error_for_status()?.text().await
}

/// What was seen during the attack.
#[derive(Default)]
pub struct Seen {
    /// The largest resident memory of the process, in MB.
    pub resident_mb: f64,
    /// The time of each answer of `/health`, in ms.
    pub health_ms: Vec<f64>,
    /// The longest time of an answer of `/health` of each service, in ms.
    pub health_worst_ms: BTreeMap<&'static str, f64>,
    pub ready_checks: u64,
    /// Answers of `/ready` that were not 200, and requests without an answer.
    pub not_ready: u64,
    pub first_problem: Option<String>,
}

impl Seen {
    fn healthy(&mut self, service: &'static str, ms: f64) {
        self.health_ms.push(ms);
        let worst = self.health_worst_ms.entry(service).or_default();
        *worst = worst.max(ms);
    }

    fn problem(&mut self, text: String) {
        self.not_ready += 1;
        self.first_problem.get_or_insert(text);
    }
}

/// Asks every service twice a second until `stop`.
#[allow(clippy::disallowed_methods)] // a measurement reads the clock, and is no service
pub async fn watch(
    ports: BTreeMap<&'static str, u16>,
    pid: u32,
    stop: CancellationToken,
) -> anyhow::Result<Seen> {
    // A new connection each time, as a load balancer makes one.
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(10))
        .pool_max_idle_per_host(0)
        .build()?;
    let mut seen = Seen::default();
    while !stop.is_cancelled() {
        for (service, port) in &ports {
            let ask = |path: &str| client.get(format!("http://127.0.0.1:{port}{path}")).send();
            let asked = Instant::now();
            match ask("/health").await {
                Ok(_) => seen.healthy(service, asked.elapsed().as_secs_f64() * 1000.0),
                Err(error) => seen.problem(format!("{service}/health: {error:?}")),
            }
            seen.ready_checks += 1;
            match ask("/ready").await {
                Ok(answer) if answer.status().is_success() => {}
                Ok(answer) => {
                    let text = answer.text().await.unwrap_or_default();
                    seen.problem(format!("{service}/ready: {text}"));
                }
                Err(error) => seen.problem(format!("{service}/ready: {error:?}")),
            }
        }
        seen.resident_mb = seen.resident_mb.max(stats::memory_mb(pid, "VmHWM"));
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
    Ok(seen)
}

/// Returns how many times a task or a piece of its work panicked, over all servers.
#[allow(clippy::disallowed_methods)] // no service
pub async fn task_panics(ports: &BTreeMap<&'static str, u16>) -> anyhow::Result<f64> {
    let mut panics = 0.0;
    for port in ports.values() {
        let text = reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await?.text().await?;
        let lines = text.lines().filter(|line| line.starts_with("simcorp_task_panics_total"));
        panics +=
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    }
    Ok(panics)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_or_missing_answer_or_none_at_all_breaks_the_bound() {
        let times = |ms: &[f64], unanswered| AnswerTimes {
            ms: ms.to_vec(),
            unanswered,
            first_problem: None,
        };
        assert!(times(&[1.0, 999.9], 0).all_within(1_000.0));
        assert!(!times(&[1.0, 1_000.0], 0).all_within(1_000.0));
        assert!(!times(&[1.0], 1).all_within(1_000.0));
        assert!(!times(&[], 0).all_within(1_000.0));
        assert_eq!(times(&[3.0, 2.0], 1).report()["worst_ms"], 3.0);
    }

    #[test]
    fn the_slowest_health_of_each_service_is_kept() {
        let mut seen = Seen::default();
        for (service, ms) in [("kernel", 2.0), ("fleet", 9.0), ("kernel", 5.0), ("kernel", 3.0)] {
            seen.healthy(service, ms);
        }
        assert_eq!(json!(seen.health_ms), json!([2.0, 9.0, 5.0, 3.0]));
        assert_eq!(json!(seen.health_worst_ms), json!({"fleet": 9.0, "kernel": 5.0}));
    }
}
