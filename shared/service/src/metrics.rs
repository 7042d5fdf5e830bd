//! Prometheus metrics. They keep upstream Sim-Corp's names, so that existing dashboards still work.
//!
//! The services of one process each have their own registry, so that each port tells only its own
//! service's metrics. What is recorded goes to the registry of the task that records it: of the
//! request ([`crate::http::record_metrics`]), of the long-lived task ([`crate::tasks::Tasks`]), or of
//! a future in [`Metrics::scope`]. What a thread or a task without a registry records goes to the
//! registry of the process, which the first service shows: use [`follow`] for a task that a service
//! spawns by itself.

use std::sync::Arc;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    set_global_recorder,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};

/// Histogram buckets in seconds: upstream Sim-Corp's, and smaller ones for acknowledgements.
const SECONDS: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

tokio::task_local! {
    /// The registry that this task records to.
    static CURRENT: Metrics;
}

/// Metrics cannot start, because this process already has a recorder.
#[derive(Debug, thiserror::Error)]
#[error("cannot start metrics: {0}")]
pub struct MetricsError(String);

impl MetricsError {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// A registry of metrics. Clones share it.
#[derive(Clone)]
pub struct Metrics(Arc<PrometheusRecorder>);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// Installs the metrics recorder of this process, and returns the registry of the process.
    ///
    /// # Errors
    /// When a recorder was installed before.
    pub fn install() -> Result<Self, MetricsError> {
        let process = Self::separate()?;
        set_global_recorder(TaskRecorder { process: process.clone() }).map_err(MetricsError::of)?;
        Ok(process)
    }

    /// Creates a further registry, which records only what is in its [`Metrics::scope`].
    ///
    /// # Errors
    /// When the buckets are not valid.
    pub fn separate() -> Result<Self, MetricsError> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
            .map_err(MetricsError::of)?;
        Ok(Self(Arc::new(builder.build_recorder())))
    }

    /// Returns the registry that the current task records to; `None` for that of the process.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Runs a future that records to this registry.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// Calls a function that records to this registry.
    pub fn sync_scope<T>(&self, function: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), function)
    }

    /// Returns the metrics of this registry in Prometheus's text format.
    #[must_use]
    pub fn render(&self) -> String {
        let handle = self.0.handle();
        handle.run_upkeep();
        handle.render()
    }

    /// Bounds the memory of histogram samples, which grows while nothing scrapes the metrics. Call
    /// this periodically.
    pub fn upkeep(&self) {
        self.0.handle().run_upkeep();
    }
}

/// Runs a future that records to `metrics`, or to the registry of the process.
pub fn in_scope<F: Future>(
    metrics: Option<Metrics>,
    future: F,
) -> impl Future<Output = F::Output> + use<F> {
    // On the heap: each wrapper would add its own copy of a large future to a small stack.
    let future = Box::pin(future);
    async move {
        match metrics {
            Some(metrics) => metrics.scope(future).await,
            None => future.await,
        }
    }
}

/// Returns a future that records where the current task records, for a task to be spawned.
pub fn follow<F: Future>(future: F) -> impl Future<Output = F::Output> {
    in_scope(Metrics::current(), future)
}

/// Records to the registry of the current task.
struct TaskRecorder {
    process: Metrics,
}

impl TaskRecorder {
    fn with<T>(&self, record: impl Fn(&PrometheusRecorder) -> T) -> T {
        CURRENT.try_with(|metrics| record(&metrics.0)).unwrap_or_else(|_| record(&self.process.0))
    }
}

impl Recorder for TaskRecorder {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.with(|own| own.describe_counter(name.clone(), unit, text.clone()));
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.with(|own| own.describe_gauge(name.clone(), unit, text.clone()));
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, text: SharedString) {
        self.with(|own| own.describe_histogram(name.clone(), unit, text.clone()));
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.with(|own| own.register_counter(key, metadata))
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.with(|own| own.register_gauge(key, metadata))
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.with(|own| own.register_histogram(key, metadata))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::LazyLock;

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::tasks::Tasks;

    /// The registry of the process of these tests, which has one recorder.
    static PROCESS: LazyLock<Metrics> = LazyLock::new(|| Metrics::install().unwrap());

    pub(crate) fn install() -> Metrics {
        PROCESS.clone()
    }

    #[tokio::test]
    async fn each_task_records_to_the_registry_of_its_service() {
        let process = install();
        let own = Metrics::separate().unwrap();
        let count = |place: &'static str| metrics::counter!("test_total", "place" => place);
        count("process").increment(1);
        own.sync_scope(|| count("start").increment(1));
        let tasks = Tasks::new(CancellationToken::new()).with_metrics(&own);
        tasks.spawn("task", async move { count("task").increment(1) });
        tasks.spawn_restarting("restarting", move || async move { count("again").increment(1) });
        tasks.wait().await;
        let spawned = own.clone().scope(async move {
            tokio::spawn(follow(async move { count("followed").increment(1) })).await
        });
        spawned.await.unwrap();
        let (shown, others) = (own.render(), process.render());
        for place in ["start", "task", "again", "followed"] {
            let line = format!("test_total{{place=\"{place}\"}} 1");
            assert!(shown.contains(&line) && !others.contains(&line), "{place}: {shown}");
        }
        let line = "test_total{place=\"process\"} 1";
        assert!(others.contains(line) && !shown.contains(line), "{others}");
    }
}
