//! Encodes writes to controls as Modbus requests, and decodes another program's requests.

use std::borrow::Cow;

use firmware_profiles::address::{Access, Address, Table};
use firmware_profiles::encoding::{Order, Type};
use firmware_profiles::{Control, Profile};
use tokio_modbus::Request;

use crate::ControlQueue;
use crate::interlock::{Command, Interlock, WriteError};

/// Returns the unit and the request that execute a command; `None` when the profile describes no
/// such write.
pub fn request(profile: &Profile, command: Command) -> Option<(u8, Request<'static>)> {
    let control = profile.controls.get(command.control())?;
    let address = |text: &str| Address::parse(profile, control.station, text, Access::Write).ok();
    let raw = match command {
        Command::Set(_, value) => control.raw(value),
        Command::ReleaseToLocal(_) => control.auto_raw?,
        Command::Apply(_) => {
            let apply = control.apply.as_ref()?;
            let Address::Modbus { station, register, .. } = address(&apply.addr)? else {
                return None;
            };
            return Some((station, Request::MaskWriteRegister(register, apply.and, apply.or)));
        }
    };
    let Address::Modbus { station, register, bit, .. } = address(&control.addr)? else {
        return None;
    };
    let kind = control.kind.unwrap_or(Type::U16);
    let words = kind.encode(control.order.unwrap_or(Order::HighFirst), raw)?;
    let on = raw.abs() > f64::EPSILON;
    let request = match control.function? {
        5 => Request::WriteSingleCoil(register, on),
        15 => Request::WriteMultipleCoils(register, Cow::Owned(vec![on])),
        6 => Request::WriteSingleRegister(register, *words.first()?),
        16 => Request::WriteMultipleRegisters(register, Cow::Owned(words)),
        22 => {
            let mask = 1_u16.checked_shl(u32::from(bit?))?;
            Request::MaskWriteRegister(register, !mask, if on { mask } else { 0 })
        }
        _ => return None,
    };
    Some((station, request))
}

impl ControlQueue {
    /// Executes a Modbus request, which must be exactly the write that the profile describes, if the
    /// interlock allows it now, and waits until the machine acknowledges it.
    ///
    /// # Errors
    /// As [`ControlQueue::set`].
    pub async fn write_modbus(
        &self,
        who: &str,
        station: u8,
        request: &Request<'_>,
        mono_ms: u64,
    ) -> Result<String, WriteError> {
        let command = self.with_interlock(|interlock| command_of(interlock, station, request));
        self.enqueue_and_wait(who, command.ok_or(WriteError::NoSuchControl)?, mono_ms).await
    }
}

/// Returns the control write that a request means. The request must be exactly the write that the
/// profile describes, by the same function and of the same length; any other request returns
/// `None`. Where several controls share one apply write, it applies to the control that waits for
/// it.
fn command_of(interlock: &Interlock, station: u8, request: &Request<'_>) -> Option<Command> {
    let profile = interlock.profile();
    let mut applied = None;
    for (at, control) in profile.controls.iter().enumerate() {
        let address =
            |text: &str| Address::parse(profile, control.station, text, Access::Write).ok();
        if let (Some(apply), Request::MaskWriteRegister(register, and, or)) =
            (&control.apply, request)
            && address(&apply.addr) == Some(holding(station, *register))
            && (*and, *or) == (apply.and, apply.or)
        {
            if interlock.has_staged(at) {
                return Some(Command::Apply(at));
            }
            applied = applied.or(Some(Command::Apply(at)));
        }
        let Some(raw) =
            address(&control.addr).and_then(|address| raw(control, &address, station, request))
        else {
            continue;
        };
        let released = control.auto_raw.is_some_and(|auto| (auto - raw).abs() < 1e-9);
        let to = Command::Set(at, control.value(raw));
        return Some(if released { Command::ReleaseToLocal(at) } else { to });
    }
    applied
}

const fn holding(station: u8, register: u16) -> Address {
    Address::Modbus { station, table: Table::Holding, register, bit: None, half: None }
}

/// Returns the raw value that a request writes to a control; `None` if the request is not a write
/// to it.
fn raw(control: &Control, address: &Address, station: u8, request: &Request<'_>) -> Option<f64> {
    let Address::Modbus { station: theirs, table, register, bit, .. } = *address else {
        return None;
    };
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
    use std::sync::Arc;

    use firmware_profiles::check;

    use super::*;
    use crate::interlock::MachineSnapshot;

    const APPLY: Request<'static> = Request::MaskWriteRegister(12318, 65_531, 4);

    fn profile() -> Profile {
        let entry = firmware_profiles::shipped("probat.probatone.modbus-7in").unwrap();
        let mut profile = check(entry.text).unwrap().profile;
        profile.machine.writes = firmware_profiles::Writes::Enabled;
        profile
    }

    fn interlock(profile: Profile) -> Interlock {
        Interlock::new(Arc::new(profile))
    }

    #[test]
    fn only_the_write_that_the_profile_describes_is_a_command() {
        let burner = |value: u16| Request::WriteSingleRegister(12290, value * 100);
        let mut profile = profile();
        let known = interlock(profile.clone());
        let meant = |request| super::command_of(&known, 1, &request);
        assert_eq!(meant(burner(45)), Some(Command::Set(0, 45.0)));
        assert_eq!(meant(APPLY), Some(Command::Apply(0)));
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
        assert_eq!(super::command_of(&known, 2, &APPLY), None, "another unit");
        profile.controls[0].auto_raw = Some(20_000.0);
        let back = Request::WriteSingleRegister(12290, 20_000);
        assert_eq!(
            super::command_of(&interlock(profile), 1, &back),
            Some(Command::ReleaseToLocal(0))
        );
    }

    #[test]
    fn a_shared_apply_belongs_to_the_control_with_a_staged_value() {
        let mut profile = profile();
        profile.controls[1].apply = profile.controls[0].apply.clone();
        let mut interlock = interlock(profile);
        let values = [("btC", 150.0), ("etC", 200.0), ("gasPct", 40.0), ("fanPct", 60.0)];
        let values = values.into_iter().chain([("drumPct", 70.0)]);
        let values = values.map(|(name, value)| (name.to_owned(), value)).collect();
        interlock.observe(MachineSnapshot { at_ms: Some(0), values, ..MachineSnapshot::default() });
        interlock.start(Command::Set(1, 65.0), 0).unwrap();
        assert_eq!(command_of(&interlock, 1, &APPLY), Some(Command::Apply(1)));
    }

    #[test]
    fn the_request_of_each_control_decodes_to_the_same_command() {
        let mut moved = 0;
        for entry in firmware_profiles::SHIPPED {
            let profile = check(entry.text).unwrap().profile;
            if profile.transport.station().is_none() {
                continue;
            }
            let known = interlock(profile.clone());
            for (at, control) in profile.controls.iter().enumerate() {
                let [low, high] = control.range.unwrap_or([0.0, 1.0]);
                for value in [low, f64::midpoint(low, high).round(), high] {
                    let wanted = Command::Set(at, value);
                    let Some((station, request)) = request(&profile, wanted) else {
                        panic!("{}: {} cannot be written", entry.id, control.name);
                    };
                    let found = command_of(&known, station, &request);
                    let Some(Command::Set(found, there)) = found else {
                        panic!("{}: {}: {found:?}", entry.id, control.name);
                    };
                    // Rounded to the nearest raw value.
                    let off = ((there - value) * control.map.factor).abs() - 1e-6;
                    assert!(found == at && off <= 0.5, "{}: {}", entry.id, control.name);
                    moved += 1;
                }
            }
        }
        assert!(moved > 50, "{moved}");
    }
}
