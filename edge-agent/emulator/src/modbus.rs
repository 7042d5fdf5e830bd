//! Emulates a Modbus machine, over TCP and on a serial line.

use std::io;

use firmware_profiles::address::{Address, Table};
use protocols::crc16;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::panel::ValueSlot;
use crate::{Fault, Machine, Wire, answer, next_request};

const ILLEGAL_FUNCTION: u8 = 1;
const ILLEGAL_ADDRESS: u8 = 2;
const ILLEGAL_VALUE: u8 = 3;

/// Answers requests over TCP, one after the other, each with its transaction identifier.
pub async fn serve_tcp(wire: &mut dyn Wire, machine: &Machine) -> io::Result<()> {
    for requests in 0_u64.. {
        let mut head = [0; 7];
        next_request(machine, wire.read_exact(&mut head)).await?;
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let station = head[6];
        let fault = machine.fault(Some(station));
        if fault == Some(Fault::ResetsReused) && requests > 0 {
            // The rest of the request is unread, so the system resets the connection.
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut pdu = vec![0; length.saturating_sub(1).min(260)];
        wire.read_exact(&mut pdu).await?;
        let Some(reply) = reply(machine, station, fault, &pdu) else { continue };
        let framed = |transaction: [u8; 2], reply: &[u8]| {
            #[allow(clippy::cast_possible_truncation)] // at most 260
            let length = (reply.len() + 1) as u16;
            let mut bytes = vec![transaction[0], transaction[1], 0, 0];
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.push(station_shown(station, fault));
            bytes.extend_from_slice(reply);
            bytes
        };
        // Another master's answer has another transaction identifier.
        let other = framed([head[0] ^ 0x55, head[1]], &reply);
        let bytes = framed([head[0], head[1]], &reply);
        answer(wire, fault, &bytes, std::future::ready(other)).await?;
    }
    Ok(())
}

/// Returns the unit that an answer names.
fn station_shown(station: u8, fault: Option<Fault>) -> u8 {
    if fault == Some(Fault::OtherUnit) { station ^ 0x40 } else { station }
}

/// Answers requests on a serial line. In the protocol a pause ends a frame; here its length does,
/// since the length of every request is known.
pub async fn serve_rtu(wire: &mut dyn Wire, machine: &Machine) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::new();
    let mut bytes = [0; 256];
    loop {
        let read = next_request(machine, wire.read(&mut bytes)).await?;
        if read == 0 {
            return Ok(());
        }
        buffer.extend_from_slice(&bytes[..read]);
        while let Some((station, pdu, end)) = split_request(&buffer) {
            buffer.drain(..end);
            let fault = machine.fault(Some(station));
            if matches!(fault, Some(Fault::Echoes | Fault::EchoesOnly)) {
                wire.write_all(&rtu_frame(station, &pdu)).await?;
            }
            let Some(reply) = reply(machine, station, fault, &pdu) else { continue };
            let other = rtu_frame(station ^ 0x40, &reply);
            let mut bytes = rtu_frame(station_shown(station, fault), &reply);
            if fault == Some(Fault::WrongChecksum)
                && let Some(last) = bytes.last_mut()
            {
                *last = !*last;
            }
            answer(wire, fault, &bytes, std::future::ready(other)).await?;
            wire.flush().await?;
        }
        if buffer.len() > 512 {
            buffer.clear();
        }
    }
}

fn rtu_frame(station: u8, pdu: &[u8]) -> Vec<u8> {
    let mut frame = vec![station];
    frame.extend_from_slice(pdu);
    frame.extend_from_slice(&crc16(&frame).to_le_bytes());
    frame
}

/// Returns the first complete request: unit, PDU, and the number of bytes up to its end, with any
/// garbage before it.
fn split_request(buffer: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    (0..buffer.len()).find_map(|at| {
        let head = buffer.get(at..at + 8)?;
        let length = match head[1] {
            1..=6 => 8,
            // The data follows, and its length is in the frame.
            15 | 16 => 9 + usize::from(head[6]),
            22 => 10,
            _ => return None,
        };
        let (frame, sum) = buffer.get(at..at + length)?.split_last_chunk::<2>()?;
        let whole = crc16(frame) == u16::from_le_bytes(*sum);
        whole.then(|| (frame[0], frame[1..].to_vec(), at + length))
    })
}

/// Returns the PDU of the answer; `None` for a unit that the profile does not have.
fn reply(machine: &Machine, station: u8, fault: Option<Fault>, pdu: &[u8]) -> Option<Vec<u8>> {
    let function = *pdu.first()?;
    let refuse = |code: u8| Some(vec![function | 0x80, code]);
    let mut show = machine.panel();
    let known = show
        .slots()
        .iter()
        .any(|p| matches!(p.address, Address::Modbus { station: s, .. } if s == station));
    if !known {
        return None;
    }
    if let Some(Fault::Refuses(code) | Fault::RefusesLate(code, _)) = fault {
        return refuse(code);
    }
    if matches!(fault, Some(Fault::Silent | Fault::EchoesOnly)) {
        return None;
    }
    if matches!(function, 5 | 6 | 15 | 16 | 22) {
        let mut addresses: Vec<(Address, u16)> = show.controls();
        addresses.extend(show.slots().iter().map(|p| (p.address.clone(), p.kind.words())));
        return match write(machine, station, fault, pdu, &addresses) {
            // The protocol repeats the first five bytes of the request, or seven for function 22.
            Ok(()) => Some(pdu[..if function == 22 { 7 } else { 5 }].to_vec()),
            Err(code) => refuse(code),
        };
    }
    let table = match function {
        1 => Table::Coil,
        2 => Table::Discrete,
        3 => Table::Holding,
        4 => Table::Input,
        _ => return refuse(ILLEGAL_FUNCTION),
    };
    let header = pdu.first_chunk::<5>()?;
    let start = u16::from_be_bytes([header[1], header[2]]);
    let count = u16::from_be_bytes([header[3], header[4]]);
    // The points that each register belongs to: one, or several that are bits or bytes of it. A
    // controller refuses registers that it does not have.
    let mut registers: Vec<Vec<(usize, usize)>> = Vec::new();
    for register in u32::from(start)..u32::from(start) + u32::from(count) {
        let holds = |slot: &ValueSlot| {
            let first = first_register(slot, station, table)?;
            let offset = register.checked_sub(u32::from(first))?;
            (offset < u32::from(slot.kind.words())).then_some(offset as usize)
        };
        let slots = show.slots();
        let found = slots.iter().enumerate();
        let mut points: Vec<(usize, usize)> =
            found.filter_map(|(point, slot)| Some((point, holds(slot)?))).collect();
        let Some((first, _)) = points.first().copied() else { return refuse(ILLEGAL_ADDRESS) };
        let shares = is_part(&slots[first]);
        points.retain(|(point, _)| if shares { is_part(&slots[*point]) } else { *point == first });
        registers.push(points);
    }
    let mut words = Vec::with_capacity(registers.len());
    let mut last: Option<(usize, Vec<u16>)> = None;
    let written = machine.written();
    for (register, points) in (start..=u16::MAX).zip(registers) {
        let mut shown = 0;
        for (point, offset) in points {
            if last.as_ref().is_none_or(|(p, _)| *p != point) {
                let raw = show.read(point);
                last = Some((point, words_of(&show.slots()[point], raw)));
            }
            shown |= last.as_ref().and_then(|(_, w)| w.get(offset).copied()).unwrap_or(0);
        }
        words.push(written.get(&(station, table, register)).copied().unwrap_or(shown));
    }
    Some(read_answer(function, &words))
}

/// Returns whether a value is a bit or a byte of its register.
const fn is_part(slot: &ValueSlot) -> bool {
    match slot.address {
        Address::Modbus { bit, half, .. } => bit.is_some() || half.is_some(),
        _ => false,
    }
}

/// Returns the words of a value, a bit or a byte at its place in the register.
fn words_of(slot: &ValueSlot, raw: f64) -> Vec<u16> {
    let mut words = slot.kind.encode(slot.order, raw).unwrap_or_default();
    if let (Address::Modbus { bit, half, .. }, [word]) = (&slot.address, &mut words[..]) {
        *word = match (bit, half) {
            (Some(bit), _) => *word << *bit,
            (None, Some(half)) => half.place(*word),
            (None, None) => *word,
        };
    }
    words
}

/// Sets coils or registers, if the machine has them. Returns the exception code otherwise.
fn write(
    machine: &Machine,
    station: u8,
    fault: Option<Fault>,
    pdu: &[u8],
    addresses: &[(Address, u16)],
) -> Result<(), u8> {
    let [function, high, low, third, fourth, data @ ..] = pdu else { return Err(ILLEGAL_VALUE) };
    let register = u16::from_be_bytes([*high, *low]);
    let value = u16::from_be_bytes([*third, *fourth]);
    let table = if matches!(function, 5 | 15) { Table::Coil } else { Table::Holding };
    let mut written = machine.written();
    let words = match (function, value, data) {
        (5, 0xff00, []) => vec![1],
        (5, 0, []) => vec![0],
        (6, _, []) => vec![value],
        (15, count @ 1..=8, [1, bits]) => (0..count).map(|i| u16::from(bits >> i & 1)).collect(),
        (16, count, [length, data @ ..])
            if usize::from(*length) == data.len() && data.len() == 2 * usize::from(count) =>
        {
            data.as_chunks::<2>().0.iter().map(|word| u16::from_be_bytes(*word)).collect()
        }
        (22, and, [high, low]) => {
            let or = u16::from_be_bytes([*high, *low]);
            let now = written.get(&(station, table, register)).copied().unwrap_or(0);
            vec![(now & and) | (or & !and)]
        }
        _ => return Err(ILLEGAL_VALUE),
    };
    let there = |register: u32| {
        addresses.iter().any(|(address, words)| match address {
            Address::Modbus { station: s, table: t, register: first, .. } => {
                let first = u32::from(*first);
                (*s, *t) == (station, table)
                    && (first..first + u32::from(*words)).contains(&register)
            }
            _ => false,
        })
    };
    let registers = u32::from(register)..;
    if !registers.zip(&words).all(|(register, _)| there(register)) {
        return Err(ILLEGAL_ADDRESS);
    }
    if fault != Some(Fault::Ignores) {
        written.extend((register..).zip(words).map(|(at, word)| ((station, table, at), word)));
    }
    Ok(())
}

/// Returns the first register of a value, if it lies in this unit's table.
fn first_register(slot: &ValueSlot, station: u8, table: Table) -> Option<u16> {
    match slot.address {
        Address::Modbus { station: s, table: t, register, .. } => {
            (s == station && t == table).then_some(register)
        }
        _ => None,
    }
}

#[allow(clippy::cast_possible_truncation)] // at most 125 words
fn read_answer(function: u8, words: &[u16]) -> Vec<u8> {
    let data: Vec<u8> = if function <= 2 {
        let byte = |bits: &[u16]| {
            bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | (u8::from(*bit != 0) << i))
        };
        words.chunks(8).map(byte).collect()
    } else {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    };
    let mut pdu = vec![function, data.len() as u8];
    pdu.extend(data);
    pdu
}
