//! What an operator sees meanwhile: health, readiness and memory.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use service::shutdown::CancellationToken;

use crate::stats;

/// What was seen during the attack.
#[derive(Default)]
pub struct Seen {
    /// The largest resident memory of the process, in MB.
    pub resident_mb: f64,
    /// The time of each answer of `/health`, in ms.
    pub health_ms: Vec<f64>,
    pub ready_checks: u64,
    /// Answers of `/ready` that were not 200, and requests without an answer.
    pub not_ready: u64,
    pub first_problem: Option<String>,
}

impl Seen {
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
                Ok(_) => seen.health_ms.push(asked.elapsed().as_secs_f64() * 1000.0),
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

/// Returns how many times a task or a piece of its work panicked, over all services.
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
