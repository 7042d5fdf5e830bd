//! The metrics of ingestion. No label names a device: a fleet would make too many time series for
//! the scraper.

use std::sync::atomic::{AtomicU64, Ordering};

use contract::Refusal;

/// The points since the start of the process: with a valid signature, and all.
static VERIFIED: AtomicU64 = AtomicU64::new(0);
static ALL: AtomicU64 = AtomicU64::new(0);

/// Publishes the share of points with a valid signature, in percent.
fn publish_verification_rate(verified: u64, points: u64) {
    let verified = VERIFIED.fetch_add(verified, Ordering::Relaxed).saturating_add(verified);
    let all = ALL.fetch_add(points, Ordering::Relaxed).saturating_add(points);
    if all > 0 {
        let percent = verified as f64 / all as f64 * 100.0;
        metrics::gauge!("simcorp_telemetry_verification_rate").set(percent.min(100.0));
    }
}

pub fn committed(points: u64, batch: usize, seconds: f64) {
    publish_verification_rate(points, points);
    metrics::counter!("simcorp_telemetry_points_total", "verified" => "true").increment(points);
    metrics::histogram!("simcorp_ingest_commit_seconds").record(seconds);
    metrics::counter!("simcorp_ingest_frames_total").increment(batch as u64);
}

pub fn unsigned(points: u64) {
    publish_verification_rate(0, points);
    metrics::counter!("simcorp_telemetry_points_total", "verified" => "false").increment(points);
}

pub fn refused(reason: Refusal) {
    metrics::counter!("simcorp_ingest_refused_total", "reason" => reason.as_str()).increment(1);
}

pub fn invalid(what: &'static str) {
    metrics::counter!("simcorp_ingest_invalid_total", "what" => what).increment(1);
}

pub fn duplicates(count: u64) {
    metrics::counter!("simcorp_ingest_duplicate_frames_total").increment(count);
}

pub fn retried() {
    metrics::counter!("simcorp_ingest_commit_retries_total").increment(1);
}

pub fn queued(lane: &'static str, length: usize) {
    metrics::gauge!("simcorp_ingest_queue_length", "lane" => lane).set(length as f64);
}

/// Counts what a curve lacks because of its bounds: values of extra channels, quality remarks, and
/// what publishers said about samples.
pub fn dropped_from_curve(values: u64, remarks: u64, contexts: u64) {
    const NAME: &str = "simcorp_curve_values_dropped_total";
    metrics::counter!(NAME, "what" => "value").increment(values);
    metrics::counter!(NAME, "what" => "remark").increment(remarks);
    metrics::counter!(NAME, "what" => "context").increment(contexts);
}
