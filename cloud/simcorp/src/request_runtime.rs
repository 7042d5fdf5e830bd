//! The threads that handle requests. What machines send, and all background work, runs on the
//! threads of `main`: a request that computes for long holds none of those.

use tokio::runtime::{Builder, Handle, Runtime};

/// The smallest number of threads. More than there are processors, so that a few requests that
/// compute for long keep no `/health` waiting.
const THREADS_MIN: usize = 4;
/// What is added to the nice value of the threads: while the processors are busy, what machines send
/// comes first.
const NICE: i32 = 5;

/// The runtime of the HTTP servers. It ends without waiting for what runs on it.
pub struct RequestRuntime {
    handle: Handle,
    /// Taken when it ends.
    runtime: Option<Runtime>,
}

impl RequestRuntime {
    /// Creates the threads.
    ///
    /// # Errors
    /// When the system creates none.
    pub fn start() -> std::io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .enable_all()
            .worker_threads(THREADS_MIN.max(processors))
            .thread_name("requests")
            .on_thread_start(|| {
                // On Linux this is the value of the calling thread, which may always raise it.
                let nice = rustix::process::getpriority_process(None).unwrap_or(0);
                let _ = rustix::process::setpriority_process(None, nice.saturating_add(NICE));
            })
            .build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Returns the handle that spawns tasks onto the threads.
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for RequestRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime that is dropped waits, which no task may do.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_run_on_threads_that_yield_to_the_others() {
        let own = rustix::process::getpriority_process(None).unwrap();
        let runtime = RequestRuntime::start().unwrap();
        let nice = runtime.handle().spawn(async {
            (
                std::thread::current().name().map(str::to_owned),
                rustix::process::getpriority_process(None).unwrap(),
            )
        });
        assert_eq!(nice.await.unwrap(), (Some("requests".to_owned()), (own + NICE).min(19)));
        assert_eq!(rustix::process::getpriority_process(None).unwrap(), own, "only those threads");
    }
}
