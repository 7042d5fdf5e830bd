//! A Modbus machine, over TCP and on a serial line.

use firmware_profiles::address::{Address, Table};
use protocols::crc16;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::show::Place;
use crate::{Fault, Machine, Wire, answer};

const ILLEGAL_FUNCTION: u8 = 1;
const ILLEGAL_ADDRESS: u8 = 2;
const ILLEGAL_VALUE: u8 = 3;

/// One request after the other, each with its transaction's number.
pub async fn serve_tcp(wire: &mut dyn Wire, machine: &Machine) -> std::io::Result<()> {
    loop {
        let mut head = [0; 7];
        wire.read_exact(&mut head).await?;
        let length = usize::from(u16::from_be_bytes([head[4], head[5]]));
        let station = head[6];
        let mut pdu = vec![0; length.saturating_sub(1).min(260)];
        wire.read_exact(&mut pdu).await?;
        let fault = machine.fault(Some(station));
        let Some(reply) = reply(machine, station, fault, &pdu) else { continue };
        let framed = |transaction: [u8; 2], reply: &[u8]| {
            #[allow(clippy::cast_possible_truncation)] // at most 260
            let length = (reply.len() + 1) as u16;
            let mut bytes = vec![transaction[0], transaction[1], 0, 0];
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.push(station);
            bytes.extend_from_slice(reply);
            bytes
        };
        // What belongs to another master has another transaction's number.
        let other = framed([head[0] ^ 0x55, head[1]], &reply);
        let bytes = framed([head[0], head[1]], &reply);
        answer(wire, fault, &bytes, std::future::ready(other)).await?;
    }
}

/// Frames end by silence; since every request's length is known, ours end by their length.
pub async fn serve_rtu(wire: &mut dyn Wire, machine: &Machine) -> std::io::Result<()> {
    let mut held: Vec<u8> = Vec::new();
    let mut bytes = [0; 256];
    loop {
        let read = wire.read(&mut bytes).await?;
        if read == 0 {
            return Ok(());
        }
        held.extend_from_slice(&bytes[..read]);
        while let Some((station, pdu, taken)) = take_rtu(&held) {
            held.drain(..taken);
            let fault = machine.fault(Some(station));
            let Some(reply) = reply(machine, station, fault, &pdu) else { continue };
            let framed = |station: u8| {
                let mut frame = vec![station];
                frame.extend_from_slice(&reply);
                frame.extend_from_slice(&crc16(&frame).to_le_bytes());
                frame
            };
            let other = framed(station ^ 0x40);
            answer(wire, fault, &framed(station), std::future::ready(other)).await?;
            wire.flush().await?;
        }
        if held.len() > 512 {
            held.clear();
        }
    }
}

/// The first whole request: unit, PDU, bytes taken with what lies before it.
fn take_rtu(held: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    (0..held.len()).find_map(|at| {
        let frame = held.get(at..at + 8)?;
        let sum = u16::from_le_bytes([frame[6], frame[7]]);
        let reads = matches!(frame[1], 1..=6) && crc16(&frame[..6]) == sum;
        reads.then(|| (frame[0], frame[1..6].to_vec(), at + 8))
    })
}

/// The answer's PDU; `None` for a unit that is not there.
fn reply(machine: &Machine, station: u8, fault: Option<Fault>, pdu: &[u8]) -> Option<Vec<u8>> {
    let function = *pdu.first()?;
    let refuse = |code: u8| Some(vec![function | 0x80, code]);
    let mut show = machine.show();
    let known = show
        .places()
        .iter()
        .any(|p| matches!(p.address, Address::Modbus { station: s, .. } if s == station));
    if !known {
        return None;
    }
    if let Some(Fault::Refuses(code)) = fault {
        return refuse(code);
    }
    if fault == Some(Fault::Silent) {
        return None;
    }
    if let (5 | 6, Some(asked)) = (function, pdu.first_chunk::<5>()) {
        let there = |table, register: u16| {
            show.places().iter().any(|place| {
                let first = first_of(place, station, table).map(u32::from);
                let words = u32::from(place.kind.words());
                first.is_some_and(|f| (f..f + words).contains(&u32::from(register)))
            })
        };
        return match write(machine, station, fault, *asked, there) {
            Ok(()) => Some(asked.to_vec()),
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
    let asked = pdu.first_chunk::<5>()?;
    let start = u16::from_be_bytes([asked[1], asked[2]]);
    let count = u16::from_be_bytes([asked[3], asked[4]]);
    // Which point each register is part of: a controller faults on those it does not have.
    let mut wanted: Vec<(usize, usize)> = Vec::new();
    for register in u32::from(start)..u32::from(start) + u32::from(count) {
        let holds = |place: &Place| {
            let first = first_of(place, station, table)?;
            let offset = register.checked_sub(u32::from(first))?;
            (offset < u32::from(place.kind.words())).then_some(offset as usize)
        };
        let mut found = show.places().iter().enumerate();
        match found.find_map(|(point, place)| Some((point, holds(place)?))) {
            Some(found) => wanted.push(found),
            None => return refuse(ILLEGAL_ADDRESS),
        }
    }
    let mut words = Vec::with_capacity(wanted.len());
    let mut last: Option<(usize, Vec<u16>)> = None;
    let written = machine.written();
    for (register, (point, offset)) in (start..=u16::MAX).zip(wanted) {
        if last.as_ref().is_none_or(|(p, _)| *p != point) {
            let raw = show.read(point);
            let place = &show.places()[point];
            last = Some((point, place.kind.encode(place.order, raw).unwrap_or_default()));
        }
        let shown = last.as_ref().and_then(|(_, w)| w.get(offset).copied()).unwrap_or(0);
        words.push(written.get(&(station, table, register)).copied().unwrap_or(shown));
    }
    Some(read_answer(function, &words))
}

/// One coil or register is set, if it is there.
fn write(
    machine: &Machine,
    station: u8,
    fault: Option<Fault>,
    asked: [u8; 5],
    there: impl Fn(Table, u16) -> bool,
) -> Result<(), u8> {
    let [function, high, low, value @ ..] = asked;
    let (register, value) = (u16::from_be_bytes([high, low]), u16::from_be_bytes(value));
    let (table, word) = match (function, value) {
        (5, 0xff00) => (Table::Coil, 1),
        (5, 0) => (Table::Coil, 0),
        (5, _) => return Err(ILLEGAL_VALUE),
        _ => (Table::Holding, value),
    };
    if !there(table, register) {
        return Err(ILLEGAL_ADDRESS);
    }
    if fault != Some(Fault::Ignores) {
        machine.written().insert((station, table, register), word);
    }
    Ok(())
}

/// The first register of a place, where it is one of that unit's table.
fn first_of(place: &Place, station: u8, table: Table) -> Option<u16> {
    match place.address {
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
