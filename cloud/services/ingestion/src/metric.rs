//! The metrics of ingestion. A label names a device only for the first 100 whose
//! signatures were verified: a whole fleet would make too many time series for the scraper.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use contract::Refusal;

/// The most devices with a time series of their own in one process.
const DEVICES_MAX: usize = 100;
/// The label of all other devices. No key has this name.
const OTHER: &str = "OTHER";
/// The label of points without a signature, whose device is not known.
const UNKNOWN: &str = "unknown";

/// The devices that have a time series of their own.
static NAMED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

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

/// Counts a batch of `batch` frames, with the verified points of each device by the name of its key.
pub fn committed(points: &BTreeMap<&str, u64>, batch: usize, seconds: f64) {
    let all = points.values().fold(0_u64, |all, points| all.saturating_add(*points));
    publish_verification_rate(all, all);
    let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    for (device, points) in points {
        let device = label(&mut named, device).to_owned();
        metrics::counter!("simcorp_telemetry_points_total", "verified" => "true",
            "device_id" => device)
        .increment(*points);
    }
    drop(named);
    metrics::histogram!("simcorp_ingest_commit_seconds").record(seconds);
    metrics::counter!("simcorp_ingest_frames_total").increment(batch as u64);
}

pub fn unsigned(points: u64) {
    publish_verification_rate(0, points);
    metrics::counter!("simcorp_telemetry_points_total", "verified" => "false",
        "device_id" => UNKNOWN)
    .increment(points);
}

/// Returns the label of a device: its name, or [`OTHER`] if too many have a label of their own.
fn label<'d>(named: &mut BTreeSet<String>, device: &'d str) -> &'d str {
    if named.contains(device) {
        return device;
    }
    if named.len() >= DEVICES_MAX {
        return OTHER;
    }
    named.insert(device.to_owned());
    device
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

/// Counts a report that two agents send under one device name.
pub fn name_conflict() {
    metrics::counter!("simcorp_ingest_name_conflicts_total").increment(1);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_beyond_the_bound_share_one_time_series() {
        let mut named = BTreeSet::new();
        let names: Vec<String> =
            (0..=DEVICES_MAX).map(|n| format!("device:gw-{n}@leipzig")).collect();
        for name in &names[..DEVICES_MAX] {
            assert_eq!(label(&mut named, name), name);
        }
        assert_eq!(label(&mut named, &names[DEVICES_MAX]), OTHER);
        assert_eq!(label(&mut named, &names[0]), names[0], "as before");
    }
}
