//! Long-lived tasks, and what happens when one panics: it is counted, logged and started again, and
//! a task that cannot go on ends the process. No task is ever missing without a sign.
//!
//! Work that arrives (a message, a row, a session) is isolated item by item with [`isolate`] or
//! [`catch`], so that an item that panics costs itself alone. The restart of a task is for what no
//! item explains: [`Tasks::spawn_restarting`] begins from the database or from nothing, and
//! [`Tasks::spawn_restarting_with`] keeps a queue or a connection that the task owns.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
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
    AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| count(work, payload.as_ref()))
}

/// Does one piece of work that waits for nothing, and turns a panic into an error, as [`isolate`]
/// does.
///
/// # Errors
/// When the work panics. It is counted as `simcorp_task_panics_total`.
pub fn catch<T>(work: &'static str, function: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(function)).map_err(|payload| count(work, payload.as_ref()))
}

fn count(work: &'static str, payload: &(dyn Any + Send)) -> Panicked {
    metrics::counter!("simcorp_task_panics_total", "task" => work).increment(1);
    Panicked { work, message: panic_text(payload) }
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
    pub fn spawn_restarting<F>(&self, name: &'static str, start: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn_restarting_with(name, start, |start| Box::pin(start()));
    }

    /// Spawns a task that `start` creates from `state`, and creates again after a panic. What the
    /// task must not lose with a run is in the state, such as a connection or the receiver of a
    /// queue: what waits in it is kept. If the task panics too often in a row, the process ends.
    pub fn spawn_restarting_with<T: Send + 'static>(
        &self,
        name: &'static str,
        mut state: T,
        mut start: impl for<'t> FnMut(&'t mut T) -> BoxFuture<'t, ()> + Send + 'static,
    ) {
        let tasks = self.clone();
        self.tracker.spawn(in_scope(self.metrics.clone(), async move {
            let mut wait = Backoff::new(RESTART_WAIT_MIN, RESTART_WAIT_MAX);
            let mut panics = 0_u32;
            loop {
                let started = Instant::now();
                let run = async { start(&mut state).await };
                let Err(panicked) = isolate(name, run).await else { return };
                if started.elapsed() >= CALM_AFTER {
                    (panics, wait) = (0, Backoff::new(RESTART_WAIT_MIN, RESTART_WAIT_MAX));
                }
                panics = panics.saturating_add(1);
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
        self.give_up(panicked.to_string());
    }

    /// Makes `/ready` fail and ends the process, because a part of it has ended for good. Does
    /// nothing while the process ends.
    pub fn end_process(&self, reason: String) {
        if !self.stop.is_cancelled() {
            self.give_up(reason);
        }
    }

    fn give_up(&self, reason: String) {
        tracing::error!(reason, "a task cannot go on; the process ends");
        let _ = self.failure.set(reason); // the first failure counts
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

    use axum::http::StatusCode;
    use contract::EpochMs;

    use super::*;
    use crate::health::Health;

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

    #[test]
    fn a_panic_in_work_without_waiting_is_an_error_with_its_text() {
        let failed = catch("read", || -> u8 { panic!("row {}", 7) });
        assert_eq!(failed, Err(Panicked { work: "read", message: "row 7".to_owned() }));
        assert_eq!(catch("read", || 3), Ok(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_once_is_started_again_and_counted_once() {
        crate::metrics::tests::install();
        let own = Metrics::separate().unwrap();
        let tasks = Tasks::new(CancellationToken::new()).with_metrics(&own);
        let starts = Arc::new(AtomicU32::new(0));
        let count = starts.clone();
        tasks.spawn_restarting("reconcile", move || {
            let start = count.fetch_add(1, Ordering::Relaxed);
            async move { assert!(start > 0, "the first time") }
        });
        tasks.wait().await;
        assert_eq!((starts.load(Ordering::Relaxed), tasks.failure()), (2, None));
        let shown = own.render();
        assert!(shown.contains("simcorp_task_panics_total{task=\"reconcile\"} 1"), "{shown}");
    }

    /// The third item panics the task itself, after it has been taken from the queue.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_started_again_keeps_its_queue() {
        let tasks = Tasks::new(CancellationToken::new());
        let (queue, waiting) = tokio::sync::mpsc::unbounded_channel();
        (1..=5).for_each(|item| queue.send(item).unwrap());
        drop(queue);
        let done = Arc::new(AtomicU32::new(0));
        let sum = done.clone();
        tasks.spawn_restarting_with("receive", waiting, move |waiting| {
            let sum = sum.clone();
            Box::pin(async move {
                while let Some(item) = waiting.recv().await {
                    assert_ne!(item, 3);
                    sum.fetch_add(item, Ordering::Relaxed);
                }
            })
        });
        tasks.wait().await;
        assert_eq!((done.load(Ordering::Relaxed), tasks.failure()), (1 + 2 + 4 + 5, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_cannot_go_on_fails_ready_and_ends_the_process() {
        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        let health = Health::new("test", Arc::new(|| EpochMs(0))).with_tasks(&tasks);
        assert_eq!(health.ready().await.0, StatusCode::OK);
        tasks.spawn_restarting("watch", || async { panic!("always") });
        tasks.wait().await;
        assert!(stop.is_cancelled());
        assert_eq!(tasks.failure(), Some("watch panicked: always"));
        let (status, answer) = health.ready().await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.0["checks"]["tasks"]["message"], "watch panicked: always");

        let stop = CancellationToken::new();
        let tasks = Tasks::new(stop.clone());
        tasks.spawn("receive", async { panic!("once") });
        tasks.wait().await;
        assert!(stop.is_cancelled() && tasks.failure() == Some("receive panicked: once"));
    }
}
