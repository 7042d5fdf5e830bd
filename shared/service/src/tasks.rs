//! Long-lived tasks, and what happens when one panics: it is counted, logged and started again, and
//! a task that cannot go on ends the process. No task is ever missing without a sign.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backoff::Backoff;
use crate::metrics::{Metrics, in_scope};

/// The wait before a task is started again; it doubles with each panic in a row.
const RESTART_WAIT_MIN: Duration = Duration::from_secs(1);
const RESTART_WAIT_MAX: Duration = Duration::from_mins(1);
/// A task that panics this often in a row cannot go on.
const PANICS_MAX: u32 = 5;
/// A panic this long after the last start is not in a row with the one before.
const CALM_AFTER: Duration = Duration::from_mins(10);

/// Work that panicked, with the text of the panic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{work} panicked: {message}")]
pub struct Panicked {
    /// The name of the work.
    pub work: &'static str,
    /// The text of the panic.
    pub message: String,
}

/// Does one piece of work, and turns a panic into an error, so that the work on other items goes
/// on. The caller must drop or rebuild what the work may have left half changed.
///
/// # Errors
/// When the work panics. It is counted as `simcorp_task_panics_total`.
pub async fn isolate<T>(
    work: &'static str,
    future: impl Future<Output = T>,
) -> Result<T, Panicked> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| {
        metrics::counter!("simcorp_task_panics_total", "task" => work).increment(1);
        Panicked { work, message: panic_text(payload.as_ref()) }
    })
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".to_owned())
}

/// The long-lived tasks of a process. Clones share them.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failure: Arc<OnceLock<String>>,
    /// Where the tasks that are spawned through this clone record.
    metrics: Option<Metrics>,
}

impl Tasks {
    /// Creates an empty set. A task that cannot go on cancels `stop`.
    #[must_use]
    pub fn new(stop: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), stop, failure: Arc::default(), metrics: None }
    }

    /// Returns a clone whose tasks record to `metrics`.
    #[must_use]
    pub fn with_metrics(&self, metrics: &Metrics) -> Self {
        Self { metrics: Some(metrics.clone()), ..self.clone() }
    }

    /// Spawns a task that cannot be started again. If it panics, the process ends.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let (tasks, task) = (self.clone(), Box::pin(task));
        self.tracker.spawn(in_scope(self.metrics.clone(), async move {
            if let Err(panicked) = isolate(name, task).await {
                tasks.fail(&panicked);
            }
        }));
    }

    /// Spawns a task that `start` creates, and creates again after a panic. If it panics too often
    /// in a row, the process ends.
    pub fn spawn_restarting<F>(
        &self,
        name: &'static str,
        mut start: impl FnMut() -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let tasks = self.clone();
        self.tracker.spawn(in_scope(self.metrics.clone(), async move {
            let mut wait = Backoff::new(RESTART_WAIT_MIN, RESTART_WAIT_MAX);
            let mut panics = 0;
            loop {
                let started = Instant::now();
                let Err(panicked) = isolate(name, Box::pin(start())).await else { return };
                if started.elapsed() >= CALM_AFTER {
                    (panics, wait) = (0, Backoff::new(RESTART_WAIT_MIN, RESTART_WAIT_MAX));
                }
                panics += 1;
                if panics >= PANICS_MAX {
                    return tasks.fail(&panicked);
                }
                let pause = wait.next(u64::from(started.elapsed().subsec_nanos()));
                tracing::error!(error = %panicked, restart_ms = pause.as_millis(), "restarting a task");
                tokio::select! {
                    () = tasks.stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }));
    }

    fn fail(&self, panicked: &Panicked) {
        tracing::error!(error = %panicked, "a task cannot go on; the process ends");
        let _ = self.failure.set(panicked.to_string()); // the first failure counts
        self.stop.cancel();
    }

    /// Returns why the process must end, if a task could not go on.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Returns the tracker, for tasks that end by themselves, such as one per request.
    #[must_use]
    pub const fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Waits until all tasks have ended; no task may be spawned after this call.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_panic_in_one_piece_of_work_is_an_error_with_its_text() {
        let item = 7;
        let failed = isolate("sweep", async { assert!(item < 7, "item {item}") }).await;
        let expected = Panicked { work: "sweep", message: "item 7".to_owned() };
        assert_eq!(failed, Err(expected));
        assert_eq!(isolate("sweep", async { 3 }).await, Ok(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again() {
        let tasks = Tasks::new(CancellationToken::new());
        let starts = Arc::new(AtomicU32::new(0));
        let count = starts.clone();
        tasks.spawn_restarting("watch", move || {
            let start = count.fetch_add(1, Ordering::Relaxed);
            async move { assert!(start >= 2, "start {start}") }
        });
        tasks.wait().await;
        assert_eq!(starts.load(Ordering::Relaxed), 3);
        assert_eq!(tasks.failure(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_cannot_go_on_ends_the_process() {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        tasks.spawn_restarting("watch", || async { panic!("always") });
        tasks.wait().await;
        assert!(stop.is_cancelled());
        assert_eq!(tasks.failure(), Some("watch panicked: always"));

        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        tasks.spawn("receive", async { panic!("once") });
        tasks.wait().await;
        assert!(stop.is_cancelled() && tasks.failure() == Some("receive panicked: once"));
    }
}
