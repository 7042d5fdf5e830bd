//! The sampler: reads the machine on its own thread and on its own schedule. Only the driver can
//! delay it, and no longer than the driver's time limit.

use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::agent_state::{AgentState, WatchedThread};
use crate::clock::GatewayClock;
use crate::journal_writer::JournalCommand;
use crate::recorder::Sample;
use driver::{Driver, DriverError};

/// Why the sampler ended.
#[derive(Debug, PartialEq, Eq)]
pub enum SamplerEnd {
    Stopped,
    /// A recording has been played to its end.
    Played,
}

/// Samples until `stop`. Runs on a thread of its own.
pub async fn run(
    mut driver: Box<dyn Driver>,
    period_ms: u64,
    clock: GatewayClock,
    commands: SyncSender<JournalCommand>,
    state: AgentState,
    stop: CancellationToken,
) -> SamplerEnd {
    let period = Duration::from_millis(period_ms);
    let mut schedule = tokio::time::interval(period);
    // A late sample does not make the next one early: two samples at once carry no new information.
    schedule.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut failing = false;
    loop {
        let due = tokio::select! {
            // Samples take priority: pending writes are executed after each sample too.
            biased;
            () = stop.cancelled() => return SamplerEnd::Stopped,
            due = schedule.tick() => due,
            () = driver.wait_for_write() => {
                driver.execute_pending(clock.mono_ms()).await;
                continue;
            }
        };
        let late = Instant::now().duration_since(due);
        metrics::histogram!("simcorp_edge_sample_lateness_seconds").record(late.as_secs_f64());
        let mono_ms = clock.mono_ms();
        state.heartbeat(WatchedThread::Sampler, mono_ms);
        let began = Instant::now();
        let answer = driver.read(mono_ms).await;
        // With a machine as slow as the schedule there is no time between two samples, so pending
        // writes are executed here.
        driver.execute_pending(clock.mono_ms()).await;
        metrics::histogram!("simcorp_edge_read_seconds").record(began.elapsed().as_secs_f64());
        match answer {
            Ok(reading) => {
                if failing {
                    tracing::info!("the machine is read again");
                    failing = false;
                }
                let problem =
                    (!reading.failed_units.is_empty()).then(|| reading.failed_units.join("; "));
                state.update(|state| {
                    if problem.is_some() && state.driver_error != problem {
                        tracing::warn!(ailing = problem, "a part of the machine was not read");
                    }
                    state.driver_error = problem;
                });
                if reading.values.is_empty() && reading.events.is_empty() {
                    continue;
                }
                let sample =
                    Sample { mono_ms, wall: clock.wall(), clock: clock.quality(), reading };
                send_sample(&commands, sample, &state);
            }
            Err(DriverError::Ended) => {
                // The watchdog must not expect another heartbeat from this thread.
                state.heartbeat(WatchedThread::Sampler, u64::MAX);
                return SamplerEnd::Played;
            }
            Err(error) => {
                metrics::counter!("simcorp_edge_driver_errors_total").increment(1);
                if !failing {
                    tracing::warn!(%error, "the machine was not read; retrying at each sample");
                    failing = true;
                }
                state.update(|state| state.driver_error = Some(error.to_string()));
            }
        }
    }
}

/// Sends a sample to the journal writer. While the disk stalls, the queue buffers samples; when it
/// is full, samples are dropped and counted, since the sampler must not wait.
fn send_sample(commands: &SyncSender<JournalCommand>, sample: Sample, state: &AgentState) {
    match commands.try_send(JournalCommand::Sample(sample)) {
        // Disconnected: the agent is stopping.
        Ok(()) | Err(TrySendError::Disconnected(_)) => {}
        Err(TrySendError::Full(_)) => {
            metrics::counter!("simcorp_edge_samples_dropped_total").increment(1);
            state.update(|state| {
                state.samples_dropped = state.samples_dropped.saturating_add(1);
            });
        }
    }
}
