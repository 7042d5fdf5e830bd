//! Emulates a Siemens S7 controller.

use firmware_profiles::address::{Access, Address, Area, Tsaps};
use protocols::s7::{self, Item, Request};
use tokio::io::AsyncReadExt as _;

use crate::{Fault, Machine, Wire, answer, next_request};

/// The result code of a successful write.
const SUCCESS: u8 = 0xff;
const NO_SUCH_ADDRESS: u8 = 0x05;

pub async fn serve(wire: &mut dyn Wire, machine: &Machine) -> std::io::Result<()> {
    let tsaps = Tsaps::of(&machine.panel().profile().transport);
    loop {
        let mut head = [0; 4];
        next_request(machine, wire.read_exact(&mut head)).await?;
        let invalid = |e| std::io::Error::new(std::io::ErrorKind::InvalidData, e);
        let length = s7::message_length(head).map_err(invalid)?;
        let mut text = vec![0; length - head.len()];
        wire.read_exact(&mut text).await?;
        let fault = machine.fault(None);
        let request = s7::parse_request(&text).map_err(invalid)?;
        let reply = match (&request, fault) {
            (Request::Connect { local, remote }, _) => {
                let is_ours = tsaps.is_some_and(|tsaps| {
                    (Some(tsaps.local), Some(tsaps.remote)) == (*local, *remote)
                });
                if is_ours { s7::answer_connect() } else { s7::refuse_connect() }
            }
            (Request::Setup { reference }, _) => s7::answer_setup(*reference),
            (
                Request::Read { reference, .. } | Request::Write { reference, .. },
                Some(Fault::Refuses(class)),
            ) => s7::answer_error(*reference, class, 4),
            (Request::Write { reference, item, bit, bytes }, fault) => {
                let done = fault == Some(Fault::Ignores)
                    || write(machine, (*item, *bit), bytes) == Some(true);
                s7::answer_write(*reference, if done { SUCCESS } else { NO_SUCH_ADDRESS })
            }
            (Request::Read { reference, items }, _) => {
                let values: Vec<_> = items.iter().map(|item| bytes_of(machine, *item)).collect();
                s7::answer_read(*reference, &values)
            }
        };
        let mut other = reply.clone();
        if let Some(reference) = other.get_mut(12) {
            *reference ^= 0x55;
        }
        answer(wire, fault, &reply, std::future::ready(other)).await?;
    }
}

/// Writes to the control at this address. Returns `None` when no control has this address and
/// length.
fn write(machine: &Machine, (item, bit): (Item, Option<u8>), bytes: &[u8]) -> Option<bool> {
    let mut show = machine.panel();
    let area = match (item.area, item.block) {
        (0x82, _) => Area::Output,
        (0x83, _) => Area::Flag,
        (0x84, block) => Area::Block(block),
        _ => return None,
    };
    let address = Address::S7 { area, byte: item.byte, bit };
    let controls = &show.profile().controls;
    let control = controls.iter().find(|c| {
        Address::parse(show.profile(), c.station, &c.addr, Access::Write).as_ref() == Ok(&address)
    })?;
    let (kind, order) = (control.kind?, control.order.unwrap_or_default());
    let raw = match bit {
        Some(_) => f64::from(u8::from(bytes.first().is_some_and(|byte| *byte != 0))),
        None => kind.decode_bytes(order, bytes)?,
    };
    Some(show.write_control(&address, raw))
}

/// Returns the bytes of an item; `None` where the controller has no such item.
fn bytes_of(machine: &Machine, item: Item) -> Option<Vec<u8>> {
    let mut show = machine.panel();
    let at = |area: Area| match area {
        Area::Input => (0x81, 0),
        Area::Output => (0x82, 0),
        Area::Flag => (0x83, 0),
        Area::Block(block) => (0x84, block),
    };
    let index = show.slots().iter().position(|slot| match slot.address {
        Address::S7 { area, byte, bit } => {
            let bytes = if bit.is_some() { 1 } else { slot.kind.bytes() };
            at(area) == (item.area, item.block) && byte == item.byte && bytes == item.bytes
        }
        _ => false,
    })?;
    let raw = show.read(index);
    let slot = &show.slots()[index];
    if let Address::S7 { bit: Some(bit), .. } = slot.address {
        return Some(vec![u8::from(raw != 0.0) << bit]);
    }
    slot.kind.encode_bytes(slot.order, raw)
}
