//! The one hand on a machine's controls: what somebody asks for is looked at by the guard and then
//! written by the driver, between two reads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firmware_profiles::{Control, Profile};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_modbus::Request;

use crate::guard::{Guard, Known, Move, Refused};
use crate::modbus;

/// Past it whoever asks is told that the machine is busy.
const WAITING_MAX: usize = 8;
/// What was not begun by then is dropped: nobody wants a slider's position of a while ago. Longer
/// where an answer that is under way may take longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// A driver that stands still answers nobody.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// Sentences that wait for the next reading; past it the oldest go.
const NOTES_MAX: usize = 32;

/// A write that was allowed.
#[derive(Debug)]
pub struct Written {
    pub wanted: Move,
    who: String,
    /// It takes heat away.
    urgent: bool,
    done: oneshot::Sender<Result<String, Refused>>,
    until: Instant,
}

#[derive(Debug)]
struct Shared {
    guard: Guard,
    waiting: VecDeque<Written>,
    notes: VecDeque<String>,
    patience: Duration,
}

/// Shared between the driver, which writes, and whoever asks. Clones are one hand.
#[derive(Debug, Clone)]
pub struct Hand {
    profile: Arc<Profile>,
    shared: Arc<Mutex<Shared>>,
    rang: Arc<Notify>,
}

impl Hand {
    /// For a machine whose answers take at most `timeout`.
    #[must_use]
    pub fn new(profile: &Profile, timeout: Duration) -> Self {
        let profile = Arc::new(profile.clone());
        let guard = Guard::new(profile.clone());
        let (waiting, notes) = (VecDeque::new(), VecDeque::new());
        let patience = PATIENCE.max(3 * timeout);
        let shared = Shared { guard, waiting, notes, patience };
        Self { profile, shared: Arc::new(Mutex::new(shared)), rang: Arc::default() }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The profile whose controls it moves.
    #[must_use]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The value nearest to `value` that the machine can be told.
    #[must_use]
    pub fn nearest(&self, control: &str, value: f64) -> f64 {
        let control = self.profile.controls.iter().find(|c| c.name == control);
        control.map_or(value, |control| held(control, value))
    }

    /// Moves a control to a value, in its unit, if the profile allows it now, and waits until the
    /// machine has taken it. Says what was moved: `burner to 45`.
    ///
    /// # Errors
    /// Why it was not moved; [`Refused::Unconfirmed`] when that is not known.
    pub async fn move_to(
        &self,
        who: &str,
        control: &str,
        value: f64,
        mono_ms: u64,
    ) -> Result<String, Refused> {
        let found = self.profile.controls.iter().enumerate().find(|(_, c)| c.name == control);
        let (at, control) = found.ok_or(Refused::Unknown)?;
        let moved = self.make(who, Move::To(at, held(control, value)), mono_ms).await?;
        if control.apply.is_some() {
            let applied = self.make(who, Move::Apply(at), mono_ms).await;
            let staged =
                |e: Refused| Refused::Unconfirmed(format!("written, and not applied: {e}"));
            applied.map_err(staged)?;
        }
        Ok(moved)
    }

    /// The same by a Modbus request, which must be the very write that the profile describes.
    ///
    /// # Errors
    /// As [`Hand::move_to`].
    pub async fn write(
        &self,
        who: &str,
        station: u8,
        request: &Request<'_>,
        mono_ms: u64,
    ) -> Result<String, Refused> {
        let meant = modbus::meant(&self.shared().guard, station, request);
        self.make(who, meant.ok_or(Refused::Unknown)?, mono_ms).await
    }

    async fn make(&self, who: &str, wanted: Move, mono_ms: u64) -> Result<String, Refused> {
        let answer = self.ask(who, wanted, mono_ms)?;
        self.rang.notify_one();
        match tokio::time::timeout(PATIENCE_MAX, answer).await {
            Ok(Ok(outcome)) => outcome,
            // Dropped before it was begun.
            Ok(Err(_)) => Err(Refused::Busy),
            Err(_) => Err(Refused::Unconfirmed("the driver does not answer".to_owned())),
        }
    }

    /// Asks the guard, and queues what it allows: what takes heat away first, and in the place of
    /// what the same control was to be moved to.
    fn ask(
        &self,
        who: &str,
        wanted: Move,
        mono_ms: u64,
    ) -> Result<oneshot::Receiver<Result<String, Refused>>, Refused> {
        let mut guarded = self.shared();
        let shared = &mut *guarded;
        let same = |w: &Written| w.wanted.control() == wanted.control();
        let urgent = match wanted {
            // What it applies may still be waiting; it is looked at when its turn comes.
            Move::Apply(at) => {
                shared.waiting.iter().any(|w| same(w) && w.urgent)
                    || shared.guard.look(Move::Apply(at), mono_ms) == Ok(true)
            }
            _ => shared.guard.look(wanted, mono_ms)?,
        };
        if let (Move::To(_, value), true) = (wanted, urgent) {
            // It takes the place of more heat that waits, and never of less.
            let more = |w: &Written| match w.wanted {
                Move::To(_, other) => same(w) && other >= value,
                Move::HandBack(_) => same(w),
                Move::Apply(_) => false,
            };
            shared.waiting.retain(|w| !more(w));
        }
        if shared.waiting.len() >= WAITING_MAX {
            let raise = shared.waiting.iter().rposition(|w| urgent && !w.urgent);
            shared.waiting.remove(raise.ok_or(Refused::Busy)?);
        }
        let (done, answer) = oneshot::channel();
        let (who, until) = (who.to_owned(), Instant::now() + shared.patience);
        let written = Written { wanted, who, urgent, done, until };
        let behind = shared.waiting.iter().take_while(|w| w.urgent).count();
        let at = if urgent { behind } else { shared.waiting.len() };
        shared.waiting.insert(at, written);
        Ok(answer)
    }

    /// Waits until something is to be written. May be given up at any time.
    pub(crate) async fn asked(&self) {
        while self.shared().waiting.is_empty() {
            self.rang.notified().await;
        }
    }

    /// What is to be written next, looked at once more. What waited too long, or for somebody who has
    /// gone, is dropped.
    pub(crate) fn next(&self, mono_ms: u64) -> Option<Written> {
        let now = Instant::now();
        let mut shared = self.shared();
        loop {
            let next = shared.waiting.pop_front()?;
            if now > next.until || next.done.is_closed() {
                continue;
            }
            match shared.guard.begin(next.wanted, mono_ms) {
                Ok(()) => return Some(next),
                Err(refused) => {
                    let _ = next.done.send(Err(refused));
                }
            }
        }
    }

    /// How a write ended: for whoever asked, the guard, and the curve.
    pub(crate) fn ended(&self, written: Written, outcome: Result<(), Refused>, mono_ms: u64) {
        let mut shared = self.shared();
        shared.guard.ended(written.wanted, &outcome, mono_ms);
        let control = self.profile.controls.get(written.wanted.control());
        let control = control.map_or("", |control| &control.name);
        let what = match written.wanted {
            Move::To(_, value) => format!("{control} to {}", (value * 100.0).round() / 100.0),
            Move::Apply(_) => format!("{control} applied"),
            Move::HandBack(_) => format!("{control} back to the machine"),
        };
        let doubt = outcome.as_ref().err().map(|e| format!("; {e}")).unwrap_or_default();
        let note = format!("{}: {what}{doubt}", written.who);
        if shared.notes.len() >= NOTES_MAX {
            shared.notes.pop_front();
        }
        shared.notes.push_back(note);
        // Nobody may be there any more to hear it.
        let _ = written.done.send(outcome.map(|()| what));
    }

    /// What the guard goes by from now on.
    pub(crate) fn saw(&self, known: Known) {
        self.shared().guard.saw(known);
    }

    /// What was moved since the last reading, in sentences.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.shared().notes.drain(..).collect()
    }
}

/// The nearest value that the machine can be told. What has no type is told in whole numbers.
fn held(control: &Control, value: f64) -> f64 {
    let order = control.order.unwrap_or_default();
    let whole = |raw: f64| match control.kind {
        Some(kind) => kind.encode(order, raw).and_then(|words| kind.decode(order, &words)),
        None => Some(raw.round()),
    };
    // What lies outside its range is the guard's to refuse.
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

    fn known() -> Known {
        let values =
            [("btC", 150.0), ("etC", 200.0), ("gasPct", 40.0), ("fanPct", 60.0), ("drumPct", 70.0)];
        let values = values.map(|(name, value)| (name.to_owned(), value)).into();
        Known { at_ms: Some(0), values, ..Known::default() }
    }

    fn hand() -> Hand {
        let hand = Hand::new(&profile(), Duration::from_millis(300));
        hand.saw(known());
        hand
    }

    fn burner(value: f64) -> Move {
        Move::To(0, value)
    }

    const APPLY: Move = Move::Apply(0);

    #[tokio::test(start_paused = true)]
    async fn what_waited_too_long_is_never_written() {
        let hand = hand();
        let asking = hand.clone();
        let asked = tokio::spawn(async move { asking.make("Artisan", burner(0.0), 0).await });
        hand.asked().await;
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(hand.next(2_000).is_none());
        assert_eq!(asked.await.unwrap(), Err(Refused::Busy));
        assert!(hand.notes().is_empty(), "nothing has happened");
        // In time it is, and is told.
        let asking = hand.clone();
        let asked = tokio::spawn(async move { asking.make("Artisan", burner(0.0), 3_000).await });
        hand.asked().await;
        let next = hand.next(3_000).unwrap();
        assert_eq!(next.wanted, burner(0.0));
        hand.ended(next, Ok(()), 3_000);
        assert_eq!(asked.await.unwrap(), Ok("burner to 0".to_owned()));
        assert_eq!(hand.notes(), ["Artisan: burner to 0"]);
    }

    #[tokio::test]
    async fn less_heat_goes_first_and_takes_the_place_of_more() {
        let hand = hand();
        let air = Move::To(1, 65.0);
        let _air = hand.ask("a", air, 0).unwrap();
        let raise = hand.ask("a", burner(50.0), 0).unwrap();
        let _apply = hand.ask("a", APPLY, 0).unwrap();
        let _cut = hand.ask("b", burner(10.0), 0).unwrap();
        assert!(raise.await.is_err(), "nobody wants it any more");
        let order: Vec<_> = std::iter::from_fn(|| hand.next(0).map(|w| w.wanted)).collect();
        assert_eq!(order, [burner(10.0), air, APPLY]);
        // With every place taken, one of those that raise anything is given up for it.
        let kept: Vec<_> = (0..2 * WAITING_MAX).map(|_| hand.ask("a", APPLY, 0)).collect();
        assert_eq!(kept.iter().filter(|asked| asked.is_ok()).count(), WAITING_MAX);
        let _cut = hand.ask("b", burner(0.0), 0).unwrap();
        assert_eq!(hand.next(0).unwrap().wanted, burner(0.0));
    }

    #[tokio::test]
    async fn less_heat_that_waits_is_not_lost_to_somebody_who_wants_more() {
        let hand = hand();
        let _off = hand.ask("a", burner(0.0), 0).unwrap();
        let _apply = hand.ask("a", APPLY, 0).unwrap();
        let more = hand.ask("b", burner(50.0), 0).unwrap();
        let less = hand.ask("b", burner(30.0), 0).unwrap();
        assert!(more.await.is_err(), "30 takes the place of 50, and not of 0");
        let off = hand.next(0).unwrap();
        assert_eq!(off.wanted, burner(0.0));
        hand.ended(off, Ok(()), 0);
        assert_eq!(hand.next(0).unwrap().wanted, APPLY, "before everything else");
        // 30 is judged anew, now that it was turned off.
        assert!(hand.next(0).is_none());
        assert!(matches!(less.await.unwrap(), Err(Refused::Soon { .. })));
    }

    #[tokio::test]
    async fn what_is_not_allowed_any_more_when_its_turn_comes_is_not_written() {
        let hand = hand();
        let raise = hand.ask("a", burner(50.0), 0).unwrap();
        hand.saw(Known::default());
        assert!(hand.next(100).is_none());
        assert!(matches!(raise.await.unwrap(), Err(Refused::Unsound(_))));
    }

    #[test]
    fn a_value_is_asked_for_as_the_machine_can_hold_it() {
        let mut control = profile().controls[0].clone();
        assert!((held(&control, 45.004) - 45.0).abs() < 1e-9, "hundredths of a per cent");
        assert!((held(&control, 145.5) - 145.5).abs() < 1e-9, "outside: refused as it is");
        (control.kind, control.map.factor) = (None, 1.0);
        assert!((held(&control, 45.4) - 45.0).abs() < 1e-9, "a line of text");
    }
}
