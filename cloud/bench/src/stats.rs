//! Computes percentiles, and reads the resources that a process has used.

use serde_json::{Value, json};

/// Returns p50, p95 and p99 of milliseconds.
pub fn percentiles(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = |share: f64| -> f64 {
        let last = values.len().saturating_sub(1);
        let value = values.get((last as f64 * share).round() as usize).copied().unwrap_or(0.0);
        (value * 1000.0).round() / 1000.0
    };
    json!({ "p50": at(0.50), "p95": at(0.95), "p99": at(0.99) })
}

/// Returns the 95th percentile alone.
pub fn p95(values: &[f64]) -> f64 {
    percentiles(values.to_vec())["p95"].as_f64().unwrap_or(f64::MAX)
}

/// Returns a field of `/proc/{pid}/status` or `smaps_rollup`, in MB.
pub fn memory_mb(pid: u32, field: &str) -> f64 {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
    let text = if field == "Pss" { read("smaps_rollup") } else { read("status") };
    let text = text.unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(&format!("{field}:")));
    let kb: f64 = line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0.0);
    (kb / 1024.0 * 10.0).round() / 10.0
}

/// Returns the CPU seconds that a process has used, over all threads.
pub fn cpu_s(pid: u32) -> f64 {
    const TICKS_A_SECOND: f64 = 100.0; // USER_HZ of every Linux that we run on
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<f64> =
        after_name.split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    (fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)) / TICKS_A_SECOND
}

/// Returns the bytes that a process has caused to be written to storage.
pub fn written_bytes(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = io.lines().find(|line| line.starts_with("write_bytes:"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_value_and_rounded_to_microseconds() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(json!(p95(&hundred)), 95.0);
        assert_eq!(percentiles(hundred), json!({"p50": 51.0, "p95": 95.0, "p99": 99.0}));
        assert_eq!(percentiles(vec![7.123_45]), json!({"p50": 7.123, "p95": 7.123, "p99": 7.123}));
        assert_eq!(percentiles(vec![2.0, 1.0]), json!({"p50": 2.0, "p95": 2.0, "p99": 2.0}));
        assert_eq!(percentiles(Vec::new()), json!({"p50": 0.0, "p95": 0.0, "p99": 0.0}));
    }

    #[test]
    fn a_process_that_does_not_exist_has_used_nothing() {
        let own = std::process::id();
        assert!(memory_mb(own, "VmRSS") > 0.5, "{}", memory_mb(own, "VmRSS"));
        // No process of Linux has this id.
        let none = u32::MAX;
        assert_eq!(
            json!([memory_mb(none, "VmRSS"), memory_mb(none, "Pss"), cpu_s(none)]),
            json!([0.0, 0.0, 0.0])
        );
        assert_eq!(written_bytes(none), 0);
    }
}
