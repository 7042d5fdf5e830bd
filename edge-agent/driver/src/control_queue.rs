//! The queue of writes to a machine's controls. All writes pass through it: the interlock checks
//! each request, and the driver writes what the interlock allows, between two reads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firmware_profiles::{Control, Profile};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::interlock::{Command, Interlock, MachineSnapshot, WriteError};

/// The most writes in the queue; further requests return `WriteError::Busy`.
const QUEUE_MAX: usize = 8;
/// A write that has not begun after this time is dropped: an old slider position is no longer
/// wanted. Three times the machine's timeout where that is longer, since a read in progress may
/// take so long.
const QUEUE_WAIT_MIN: Duration = Duration::from_secs(1);
/// How long a caller waits for the outcome when the driver is stuck.
const REPLY_WAIT_MAX: Duration = Duration::from_secs(10);
/// The most notes kept for the next reading; beyond it the oldest are dropped.
const NOTES_MAX: usize = 32;

/// A queued write that the interlock allowed.
#[derive(Debug)]
pub struct QueuedWrite {
    pub command: Command,
    caller: String,
    /// The write reduces heat, so it goes first.
    urgent: bool,
    reply: oneshot::Sender<Result<String, WriteError>>,
    deadline: Instant,
}

#[derive(Debug)]
struct QueueState {
    interlock: Interlock,
    queue: VecDeque<QueuedWrite>,
    notes: VecDeque<String>,
    queue_wait: Duration,
}

/// A handle to the queue, shared by the driver, which writes, and the callers, which request
/// writes. Clones share one queue.
#[derive(Debug, Clone)]
pub struct ControlQueue {
    profile: Arc<Profile>,
    shared: Arc<Mutex<QueueState>>,
    notify: Arc<Notify>,
}

impl ControlQueue {
    /// Creates the queue for a machine whose answers take at most `timeout`.
    #[must_use]
    pub fn new(profile: &Profile, timeout: Duration) -> Self {
        let profile = Arc::new(profile.clone());
        let shared = QueueState {
            interlock: Interlock::new(profile.clone()),
            queue: VecDeque::new(),
            notes: VecDeque::new(),
            queue_wait: QUEUE_WAIT_MIN.max(timeout.saturating_mul(3)),
        };
        Self { profile, shared: Arc::new(Mutex::new(shared)), notify: Arc::default() }
    }

    fn shared(&self) -> MutexGuard<'_, QueueState> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the profile whose controls this queue writes.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Returns the value nearest to `value` that the machine can represent.
    #[must_use]
    pub fn nearest_value(&self, control: &str, value: f64) -> f64 {
        let control = self.profile.controls.iter().find(|c| c.name == control);
        control.map_or(value, |control| nearest_representable(control, value))
    }

    /// Sets a control to a value, in its unit, if the profile allows it now, and waits until the
    /// machine acknowledges it. Returns what was written as text: `burner to 45`. `who` names the
    /// caller in the reading's notes.
    ///
    /// # Errors
    /// Why it was not written; [`WriteError::Unconfirmed`] when it is not known whether it was.
    pub async fn set(
        &self,
        who: &str,
        control: &str,
        value: f64,
        mono_ms: u64,
    ) -> Result<String, WriteError> {
        let found = self.profile.controls.iter().enumerate().find(|(_, c)| c.name == control);
        let (at, control) = found.ok_or(WriteError::NoSuchControl)?;
        let description = self
            .enqueue_and_wait(who, Command::Set(at, nearest_representable(control, value)), mono_ms)
            .await?;
        if control.apply.is_some() {
            let applied = self.enqueue_and_wait(who, Command::Apply(at), mono_ms).await;
            let staged =
                |e: WriteError| WriteError::Unconfirmed(format!("written, but not applied: {e}"));
            applied.map_err(staged)?;
        }
        Ok(description)
    }

    /// Calls `read` with the interlock, which stays locked meanwhile.
    pub(crate) fn with_interlock<T>(&self, read: impl FnOnce(&Interlock) -> T) -> T {
        read(&self.shared().interlock)
    }

    /// Queues a write that the interlock allows, and waits for its outcome.
    pub(crate) async fn enqueue_and_wait(
        &self,
        who: &str,
        command: Command,
        mono_ms: u64,
    ) -> Result<String, WriteError> {
        let reply = self.enqueue(who, command, mono_ms)?;
        self.notify.notify_one();
        match tokio::time::timeout(REPLY_WAIT_MAX, reply).await {
            Ok(Ok(outcome)) => outcome,
            // The write was dropped before it began.
            Ok(Err(_)) => Err(WriteError::Busy),
            Err(_) => Err(WriteError::Unconfirmed("the driver does not answer".to_owned())),
        }
    }

    /// Checks a write with the interlock and queues it when allowed. A write that reduces heat goes
    /// before the others and replaces queued writes of more heat to the same control.
    fn enqueue(
        &self,
        who: &str,
        command: Command,
        mono_ms: u64,
    ) -> Result<oneshot::Receiver<Result<String, WriteError>>, WriteError> {
        let mut guarded = self.shared();
        let shared = &mut *guarded;
        let same = |w: &QueuedWrite| w.command.control() == command.control();
        let urgent = match command {
            // The value that it applies may still be queued, so the interlock decides when its turn
            // comes.
            Command::Apply(at) => {
                shared.queue.iter().any(|w| same(w) && w.urgent)
                    || shared.interlock.evaluate(Command::Apply(at), mono_ms) == Ok(true)
            }
            _ => shared.interlock.evaluate(command, mono_ms)?,
        };
        if let (Command::Set(_, value), true) = (command, urgent) {
            // It replaces queued writes of more heat, never of less.
            let more = |w: &QueuedWrite| match w.command {
                Command::Set(_, other) => same(w) && other >= value,
                Command::ReleaseToLocal(_) => same(w),
                Command::Apply(_) => false,
            };
            shared.queue.retain(|w| !more(w));
        }
        if shared.queue.len() >= QUEUE_MAX {
            let raise = shared.queue.iter().rposition(|w| urgent && !w.urgent);
            shared.queue.remove(raise.ok_or(WriteError::Busy)?);
        }
        let (done, receiver) = oneshot::channel();
        let (who, until) = (who.to_owned(), Instant::now() + shared.queue_wait);
        let written = QueuedWrite { command, caller: who, urgent, reply: done, deadline: until };
        let behind = shared.queue.iter().take_while(|w| w.urgent).count();
        let at = if urgent { behind } else { shared.queue.len() };
        shared.queue.insert(at, written);
        Ok(receiver)
    }

    /// Waits until the queue holds a write. Cancel-safe.
    pub(crate) async fn wait_for_write(&self) {
        while self.shared().queue.is_empty() {
            self.notify.notified().await;
        }
    }

    /// Takes the next write from the queue and checks it again. Drops writes that waited too long
    /// or whose caller is gone.
    pub(crate) fn next(&self, mono_ms: u64) -> Option<QueuedWrite> {
        let now = Instant::now();
        let mut shared = self.shared();
        loop {
            let next = shared.queue.pop_front()?;
            if now > next.deadline || next.reply.is_closed() {
                continue;
            }
            match shared.interlock.start(next.command, mono_ms) {
                Ok(()) => return Some(next),
                Err(refused) => {
                    let _ = next.reply.send(Err(refused));
                }
            }
        }
    }

    /// Reports the outcome of a write to the caller and the interlock, and adds a note to the
    /// curve.
    pub(crate) fn complete(
        &self,
        written: QueuedWrite,
        outcome: Result<(), WriteError>,
        mono_ms: u64,
    ) {
        let mut shared = self.shared();
        shared.interlock.complete(written.command, &outcome, mono_ms);
        let control = self.profile.controls.get(written.command.control());
        let control = control.map_or("", |control| &control.name);
        let what = match written.command {
            Command::Set(_, value) => format!("{control} to {}", (value * 100.0).round() / 100.0),
            Command::Apply(_) => format!("{control} applied"),
            Command::ReleaseToLocal(_) => format!("{control} back to the machine"),
        };
        let doubt = outcome.as_ref().err().map(|e| format!("; {e}")).unwrap_or_default();
        let note = format!("{}: {what}{doubt}", written.caller);
        if shared.notes.len() >= NOTES_MAX {
            shared.notes.pop_front();
        }
        shared.notes.push_back(note);
        // The caller may be gone.
        let _ = written.reply.send(outcome.map(|()| what));
    }

    /// Passes a new reading to the interlock.
    pub(crate) fn observe(&self, snapshot: MachineSnapshot) {
        self.shared().interlock.observe(snapshot);
    }

    /// Takes the notes on the writes since the last reading.
    pub(crate) fn drain_notes(&self) -> Vec<String> {
        self.shared().notes.drain(..).collect()
    }
}

/// Returns the nearest value that the machine can represent. A control without a type takes whole
/// raw numbers.
fn nearest_representable(control: &Control, value: f64) -> f64 {
    let order = control.order.unwrap_or_default();
    let whole = |raw: f64| match control.kind {
        Some(kind) => kind.encode(order, raw).and_then(|words| kind.decode(order, &words)),
        None => Some(raw.round()),
    };
    // The interlock refuses values outside the range.
    let inside = control.range.is_none_or(|[low, high]| (low..=high).contains(&value));
    let raw = if inside { whole(control.raw(value)) } else { None };
    raw.map_or(value, |raw| control.value(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let entry = firmware_profiles::shipped("probat.probatone.modbus-7in").unwrap();
        let mut profile = firmware_profiles::check(entry.text).unwrap().profile;
        profile.machine.writes = firmware_profiles::Writes::Enabled;
        profile
    }

    fn known() -> MachineSnapshot {
        let values =
            [("btC", 150.0), ("etC", 200.0), ("gasPct", 40.0), ("fanPct", 60.0), ("drumPct", 70.0)];
        let values = values.map(|(name, value)| (name.to_owned(), value)).into();
        MachineSnapshot { at_ms: Some(0), values, ..MachineSnapshot::default() }
    }

    fn controls() -> ControlQueue {
        let controls = ControlQueue::new(&profile(), Duration::from_millis(300));
        controls.observe(known());
        controls
    }

    fn burner(value: f64) -> Command {
        Command::Set(0, value)
    }

    const APPLY: Command = Command::Apply(0);

    #[tokio::test(start_paused = true)]
    async fn a_write_that_waited_too_long_is_never_executed() {
        let controls = controls();
        let asking = controls.clone();
        let asked =
            tokio::spawn(async move { asking.enqueue_and_wait("Artisan", burner(0.0), 0).await });
        controls.wait_for_write().await;
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(controls.next(2_000).is_none());
        assert_eq!(asked.await.unwrap(), Err(WriteError::Busy));
        assert!(controls.drain_notes().is_empty(), "nothing was written");
        // A write within the time limit is executed, and its outcome is returned.
        let asking = controls.clone();
        let asked =
            tokio::spawn(
                async move { asking.enqueue_and_wait("Artisan", burner(0.0), 3_000).await },
            );
        controls.wait_for_write().await;
        let next = controls.next(3_000).unwrap();
        assert_eq!(next.command, burner(0.0));
        controls.complete(next, Ok(()), 3_000);
        assert_eq!(asked.await.unwrap(), Ok("burner to 0".to_owned()));
        assert_eq!(controls.drain_notes(), ["Artisan: burner to 0"]);
    }

    #[tokio::test]
    async fn a_write_of_less_heat_goes_first_and_replaces_a_write_of_more() {
        let controls = controls();
        let air = Command::Set(1, 65.0);
        let _air = controls.enqueue("a", air, 0).unwrap();
        let raise = controls.enqueue("a", burner(50.0), 0).unwrap();
        let _apply = controls.enqueue("a", APPLY, 0).unwrap();
        let _cut = controls.enqueue("b", burner(10.0), 0).unwrap();
        assert!(raise.await.is_err(), "replaced by the write of less heat");
        let order: Vec<_> = std::iter::from_fn(|| controls.next(0).map(|w| w.command)).collect();
        assert_eq!(order, [burner(10.0), air, APPLY]);
        // When the queue is full, a write that does not reduce heat is dropped for it.
        let kept: Vec<_> = (0..2 * QUEUE_MAX).map(|_| controls.enqueue("a", APPLY, 0)).collect();
        assert_eq!(kept.iter().filter(|asked| asked.is_ok()).count(), QUEUE_MAX);
        let _cut = controls.enqueue("b", burner(0.0), 0).unwrap();
        assert_eq!(controls.next(0).unwrap().command, burner(0.0));
    }

    #[tokio::test]
    async fn a_queued_write_of_less_heat_is_not_replaced_by_a_write_of_more() {
        let controls = controls();
        let _off = controls.enqueue("a", burner(0.0), 0).unwrap();
        let _apply = controls.enqueue("a", APPLY, 0).unwrap();
        let more = controls.enqueue("b", burner(50.0), 0).unwrap();
        let less = controls.enqueue("b", burner(30.0), 0).unwrap();
        assert!(more.await.is_err(), "30 replaces 50, and not 0");
        let off = controls.next(0).unwrap();
        assert_eq!(off.command, burner(0.0));
        controls.complete(off, Ok(()), 0);
        assert_eq!(controls.next(0).unwrap().command, APPLY, "before the write of 30");
        // The interlock checks 30 again, now that the burner is off.
        assert!(controls.next(0).is_none());
        assert!(matches!(less.await.unwrap(), Err(WriteError::TooSoon { .. })));
    }

    #[tokio::test]
    async fn a_write_that_is_no_longer_allowed_at_its_turn_is_refused() {
        let controls = controls();
        let raise = controls.enqueue("a", burner(50.0), 0).unwrap();
        controls.observe(MachineSnapshot::default());
        assert!(controls.next(100).is_none());
        assert!(matches!(raise.await.unwrap(), Err(WriteError::ReadingsUnreliable(_))));
    }

    #[test]
    fn a_value_is_rounded_to_what_the_machine_can_represent() {
        let mut control = profile().controls[0].clone();
        assert!(
            (nearest_representable(&control, 45.004) - 45.0).abs() < 1e-9,
            "hundredths of a per cent"
        );
        assert!(
            (nearest_representable(&control, 145.5) - 145.5).abs() < 1e-9,
            "outside the range: not rounded, refused later"
        );
        (control.kind, control.map.factor) = (None, 1.0);
        assert!(
            (nearest_representable(&control, 45.4) - 45.0).abs() < 1e-9,
            "a control of a text protocol"
        );
    }
}
