//! The one hand on a Modbus machine's controls: what another program asks for is looked at by the
//! guard and then written by the driver, between two reads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use firmware_profiles::address::{Address, Table, Use};
use firmware_profiles::encoding::{Order, Type};
use firmware_profiles::{Control, Profile};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_modbus::Request;

use crate::guard::{Guard, Known, Move, Refused};

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
    pub station: u8,
    pub request: Request<'static>,
    who: String,
    wanted: Move,
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
    shared: Arc<Mutex<Shared>>,
    rang: Arc<Notify>,
}

impl Hand {
    /// For a machine whose answers take at most `timeout`.
    #[must_use]
    pub fn new(profile: &Profile, timeout: Duration) -> Self {
        let guard = Guard::new(profile.clone());
        let (waiting, notes) = (VecDeque::new(), VecDeque::new());
        let patience = PATIENCE.max(3 * timeout);
        let shared = Shared { guard, waiting, notes, patience };
        Self { shared: Arc::new(Mutex::new(shared)), rang: Arc::default() }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what `who` asks for, if the profile allows it now, and waits until the machine has
    /// answered. Says what was moved: `burner to 45`.
    ///
    /// # Errors
    /// Why it was not written; [`Refused::Unconfirmed`] when that is not known.
    pub async fn write(
        &self,
        who: &str,
        station: u8,
        request: Request<'static>,
        mono_ms: u64,
    ) -> Result<String, Refused> {
        let answer = self.ask(who, station, request, mono_ms)?;
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
        station: u8,
        request: Request<'static>,
        mono_ms: u64,
    ) -> Result<oneshot::Receiver<Result<String, Refused>>, Refused> {
        let mut guarded = self.shared();
        let shared = &mut *guarded;
        let wanted = meant(&shared.guard, station, &request).ok_or(Refused::Unknown)?;
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
        let written = Written { station, request, who, wanted, urgent, done, until };
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
        let control = shared.guard.profile().controls.get(written.wanted.control());
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

/// Which control a request moves: it must be the one write that the profile describes, by the same
/// function and of the same length. Anything else moves nothing that we know. Where several controls
/// are applied by one write, it is the one's that waits for it.
fn meant(guard: &Guard, station: u8, request: &Request<'_>) -> Option<Move> {
    let profile = guard.profile();
    let mut applied = None;
    for (at, control) in profile.controls.iter().enumerate() {
        let place = |text: &str| Address::parse(profile, control.station, text, Use::Write).ok();
        if let (Some(apply), Request::MaskWriteRegister(register, and, or)) =
            (&control.apply, request)
            && place(&apply.addr) == Some(holding(station, *register))
            && (*and, *or) == (apply.and, apply.or)
        {
            if guard.expects_apply(at) {
                return Some(Move::Apply(at));
            }
            applied = applied.or(Some(Move::Apply(at)));
        }
        let Some(raw) =
            place(&control.addr).and_then(|place| raw(control, &place, station, request))
        else {
            continue;
        };
        let handed = control.auto_raw.is_some_and(|auto| (auto - raw).abs() < 1e-9);
        let value = (raw - control.map.offset) / control.map.factor;
        return Some(if handed { Move::HandBack(at) } else { Move::To(at, value) });
    }
    applied
}

const fn holding(station: u8, register: u16) -> Address {
    Address::Modbus { station, table: Table::Holding, register, bit: None }
}

/// The raw value that a request writes to a control, if it is that control's.
fn raw(control: &Control, place: &Address, station: u8, request: &Request<'_>) -> Option<f64> {
    let Address::Modbus { station: theirs, table, register, bit } = *place else { return None };
    let decode = |words: &[u16]| {
        let kind = control.kind.unwrap_or(Type::U16);
        let whole = words.len() == usize::from(kind.words());
        whole.then(|| kind.decode(control.order.unwrap_or(Order::HighFirst), words)).flatten()
    };
    let (function, table_of, at, raw) = match request {
        Request::WriteSingleCoil(at, on) => (5, Table::Coil, *at, Some(f64::from(*on))),
        Request::WriteMultipleCoils(at, bits) => match bits[..] {
            [on] => (15, Table::Coil, *at, Some(f64::from(on))),
            _ => return None,
        },
        Request::WriteSingleRegister(at, word) => (6, Table::Holding, *at, decode(&[*word])),
        Request::WriteMultipleRegisters(at, words) => (16, Table::Holding, *at, decode(words)),
        Request::MaskWriteRegister(at, and, or) => {
            let mask = 1_u16.checked_shl(u32::from(bit?))?;
            let alone = *and == !mask && or & !mask == 0;
            (22, Table::Holding, *at, alone.then_some(f64::from(u8::from(or & mask != 0))))
        }
        _ => return None,
    };
    let same = (station, table_of, at) == (theirs, table, register);
    raw.filter(|_| same && control.function == Some(function))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

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

    fn burner(value: u16) -> Request<'static> {
        Request::WriteSingleRegister(12290, value * 100)
    }

    const APPLY: Request<'static> = Request::MaskWriteRegister(12318, 65_531, 4);

    #[test]
    fn a_request_is_a_control_s_when_it_is_the_very_write_that_the_profile_describes() {
        let mut profile = profile();
        let guard = Guard::new(profile.clone());
        let meant = |request| super::meant(&guard, 1, &request);
        assert_eq!(meant(burner(45)), Some(Move::To(0, 45.0)));
        assert_eq!(meant(APPLY), Some(Move::Apply(0)));
        for other in [
            Request::MaskWriteRegister(12318, 0, 4),
            Request::WriteSingleRegister(12291, 45),
            Request::WriteMultipleRegisters(12290, Cow::Owned(vec![4_500])),
            Request::WriteMultipleRegisters(12290, Cow::Owned(vec![4_500, 1])),
            Request::WriteMultipleRegisters(12290, Cow::Owned(Vec::new())),
            Request::WriteSingleCoil(12290, true),
            Request::ReadHoldingRegisters(12290, 1),
            Request::Custom(0x41, Cow::Owned(vec![1])),
        ] {
            assert_eq!(meant(other.clone()), None, "{other:?}");
        }
        assert_eq!(super::meant(&guard, 2, &APPLY), None, "another unit");
        profile.controls[0].auto_raw = Some(20_000.0);
        let back = Request::WriteSingleRegister(12290, 20_000);
        assert_eq!(super::meant(&Guard::new(profile), 1, &back), Some(Move::HandBack(0)));
    }

    #[test]
    fn an_apply_that_controls_share_is_the_one_s_that_waits_for_it() {
        let mut profile = profile();
        profile.controls[1].apply = profile.controls[0].apply.clone();
        let mut guard = Guard::new(profile);
        guard.saw(known());
        guard.begin(Move::To(1, 65.0), 0).unwrap();
        assert_eq!(meant(&guard, 1, &APPLY), Some(Move::Apply(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_waited_too_long_is_never_written() {
        let hand = hand();
        let asking = hand.clone();
        let asked = tokio::spawn(async move { asking.write("Artisan", 1, burner(0), 0).await });
        hand.asked().await;
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(hand.next(2_000).is_none());
        assert_eq!(asked.await.unwrap(), Err(Refused::Busy));
        assert!(hand.notes().is_empty(), "nothing has happened");
        // In time it is, and is told.
        let asking = hand.clone();
        let asked = tokio::spawn(async move { asking.write("Artisan", 1, burner(0), 3_000).await });
        hand.asked().await;
        let next = hand.next(3_000).unwrap();
        assert_eq!(next.request, burner(0));
        hand.ended(next, Ok(()), 3_000);
        assert_eq!(asked.await.unwrap(), Ok("burner to 0".to_owned()));
        assert_eq!(hand.notes(), ["Artisan: burner to 0"]);
    }

    #[tokio::test]
    async fn less_heat_goes_first_and_takes_the_place_of_more() {
        let hand = hand();
        let air = Request::WriteSingleRegister(12363, 650);
        let _air = hand.ask("a", 1, air.clone(), 0).unwrap();
        let raise = hand.ask("a", 1, burner(50), 0).unwrap();
        let _apply = hand.ask("a", 1, APPLY, 0).unwrap();
        let _cut = hand.ask("b", 1, burner(10), 0).unwrap();
        assert!(raise.await.is_err(), "nobody wants it any more");
        let order: Vec<_> = std::iter::from_fn(|| hand.next(0).map(|w| w.request)).collect();
        assert_eq!(order, [burner(10), air, APPLY]);
        // With every place taken, one of those that raise anything is given up for it.
        let kept: Vec<_> = (0..2 * WAITING_MAX).map(|_| hand.ask("a", 1, APPLY, 0)).collect();
        assert_eq!(kept.iter().filter(|asked| asked.is_ok()).count(), WAITING_MAX);
        let _cut = hand.ask("b", 1, burner(0), 0).unwrap();
        assert_eq!(hand.next(0).unwrap().request, burner(0));
    }

    #[tokio::test]
    async fn less_heat_that_waits_is_not_lost_to_somebody_who_wants_more() {
        let hand = hand();
        let _off = hand.ask("a", 1, burner(0), 0).unwrap();
        let _apply = hand.ask("a", 1, APPLY, 0).unwrap();
        let more = hand.ask("b", 1, burner(50), 0).unwrap();
        let less = hand.ask("b", 1, burner(30), 0).unwrap();
        assert!(more.await.is_err(), "30 takes the place of 50, and not of 0");
        let off = hand.next(0).unwrap();
        assert_eq!(off.request, burner(0));
        hand.ended(off, Ok(()), 0);
        assert_eq!(hand.next(0).unwrap().request, APPLY, "before everything else");
        // 30 is judged anew, now that it was turned off.
        assert!(hand.next(0).is_none());
        assert!(matches!(less.await.unwrap(), Err(Refused::Soon { .. })));
    }

    #[tokio::test]
    async fn what_is_not_allowed_any_more_when_its_turn_comes_is_not_written() {
        let hand = hand();
        let raise = hand.ask("a", 1, burner(50), 0).unwrap();
        hand.saw(Known::default());
        assert!(hand.next(100).is_none());
        assert!(matches!(raise.await.unwrap(), Err(Refused::Unsound(_))));
    }
}
