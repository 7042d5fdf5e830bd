//! Prometheus metrics. They keep upstream Sim-Corp's names, so that existing dashboards still work.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Histogram buckets in seconds: upstream Sim-Corp's, and smaller ones for acknowledgements.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Metrics cannot start, because this process already has a recorder.
#[derive(Debug, thiserror::Error)]
#[error("cannot start metrics: {0}")]
pub struct MetricsError(String);

/// A handle that renders the metrics of this process.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the metrics recorder of this process.
    ///
    /// # Errors
    /// When a recorder was installed before.
    pub fn install() -> Result<Self, MetricsError> {
        PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .and_then(PrometheusBuilder::install_recorder)
            .map(Self)
            .map_err(|error| MetricsError(error.to_string()))
    }

    /// Returns all metrics in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }

    /// Bounds the memory of histogram samples, which grows while nothing scrapes the metrics. Call
    /// this periodically.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}
