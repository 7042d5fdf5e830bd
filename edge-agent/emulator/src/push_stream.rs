//! Emulates machines that send values without being polled: Hottop, Santoker and text lines.

use contract::EventKind;
use firmware_profiles::Transport;
use firmware_profiles::address::Address;
use protocols::{hottop, santoker};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Fault, Machine, PanelValues, Wire, answer};

/// Sends the values of each reading at a fixed interval. A Santoker machine also receives writes.
pub async fn push_values(
    wire: &mut dyn Wire,
    machine: &Machine,
    encode: fn(&PanelValues) -> Vec<u8>,
) -> std::io::Result<()> {
    let hears = matches!(machine.panel().profile().transport, Transport::Santoker { .. });
    let mut every = tokio::time::interval(machine.push_every);
    let (mut decoder, mut bytes) = (santoker::Decoder::default(), [0; 256]);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            read = wire.read(&mut bytes), if hears => {
                let read = read?;
                if read == 0 {
                    return Ok(());
                }
                for message in decoder.push(&bytes[..read]) {
                    if !matches!(machine.fault(None), Some(Fault::Ignores)) {
                        machine.panel().write_control(&Address::Target(message.target), message.raw());
                    }
                }
                continue;
            }
        }
        let fault = machine.fault(None);
        if matches!(fault, Some(Fault::Silent | Fault::Refuses(_))) {
            continue;
        }
        let bytes = encode(&machine.next_values());
        answer(wire, fault, &bytes, async { vec![0xee, 0xa5, 0x96, 0x00] }).await?;
    }
}

/// Sends the line of names, then lines of values.
pub async fn push_csv(wire: &mut dyn Wire, machine: &Machine) -> std::io::Result<()> {
    let names: Vec<String> = {
        let show = machine.panel();
        show.profile().channels.iter().map(|c| c.addr.clone()).collect()
    };
    wire.write_all((names.join(",") + "\n").as_bytes()).await?;
    push_values(wire, machine, |(values, _)| {
        let fields: Vec<String> = values.iter().map(|(_, v)| format!("{v:.2}")).collect();
        (fields.join(",") + "\n").into_bytes()
    })
    .await
}

pub fn json((values, _): &PanelValues) -> Vec<u8> {
    let fields: Vec<String> = values.iter().map(|(n, v)| format!("{n:?}:{v:.2}")).collect();
    format!("{{{}}}\n", fields.join(",")).into_bytes()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // `Panel` keeps them in bounds
pub fn hottop((values, _): &PanelValues) -> Vec<u8> {
    let value = |name: &str| values.iter().find(|(n, _)| n == name).map_or(0.0, |(_, v)| *v);
    let status = hottop::Status {
        et_c: value("et") as u16,
        bt_c: value("bt") as u16,
        heater: value("heater") as u8,
        fan: (value("fan") / 10.0) as u8,
        main_fan: (value("main_fan") / 10.0) as u8,
        solenoid: false,
        drum_motor: true,
        cooling_motor: false,
        chaff_tray: true,
    };
    status.encode().to_vec()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // `Panel` keeps them in bounds
pub fn santoker((values, marks): &PanelValues) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (target, value) in values {
        if let Ok(target) = u8::from_str_radix(target, 16) {
            bytes.extend(santoker::Message { target, data: *value as u32 }.encode(2));
        }
    }
    for mark in marks {
        let target = match mark {
            EventKind::Charge => 0x80,
            EventKind::DryEnd => 0x81,
            EventKind::Fc => 0x82,
            EventKind::Sc => 0x83,
            EventKind::Drop => 0x84,
            _ => continue,
        };
        bytes.extend(santoker::Message { target, data: 1 }.encode(1));
    }
    bytes
}
