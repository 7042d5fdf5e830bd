//! Prometheus metrics. The names of the reference are kept: dashboards outlive programs.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// The reference's buckets, seconds, and two below for acknowledgements.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Metrics are off: another recorder runs in this process.
#[derive(Debug, thiserror::Error)]
#[error("cannot start metrics: {0}")]
pub struct MetricsError(String);

/// Renders what the process has counted.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Starts counting for this process.
    ///
    /// # Errors
    /// When it was started before.
    pub fn install() -> Result<Self, MetricsError> {
        PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .and_then(PrometheusBuilder::install_recorder)
            .map(Self)
            .map_err(|error| MetricsError(error.to_string()))
    }

    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }

    /// Without a scraper the samples of histograms would grow: call this now and then.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}
