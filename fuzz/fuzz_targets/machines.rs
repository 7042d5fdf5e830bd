#![no_main]
//! Anything that a machine, or a program in its place, may send.

use firmware_profiles::encoding::{Order, Type};
use protocols::modbus_answer::{self, Echo, Framing};
use protocols::s7::{self, Item};
use protocols::{hottop, kaleido, line, modbus_tcp, santoker, tc4};

/// Decodes the bytes as each type in each order, and encodes what was read.
fn decode_values(bytes: &[u8]) {
    let pairs = Type::ALL.into_iter().flat_map(|kind| Order::ALL.map(|order| (kind, order)));
    for (kind, order) in pairs {
        let Some(bytes) = bytes.get(..usize::from(kind.bytes())) else { continue };
        let Some(raw) = kind.decode_bytes(order, bytes) else { continue };
        assert!(raw.is_finite(), "{kind:?} {order:?}");
        assert_eq!(
            kind.encode(order, raw).map(|words| words.len()),
            Some(usize::from(kind.words()))
        );
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut roaster, mut master) = (hottop::Decoder::default(), santoker::Decoder::default());
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let _ = (roaster.push(first), roaster.push(second));
    let _ = (master.push(first), master.push(second));
    let items = [Item { area: 0x84, block: 3, byte: 112, bytes: 4 }; 3];
    let _ = (
        s7::parse_read_answer(bytes, 1, &items),
        s7::parse_setup_answer(bytes, 1),
        s7::parse_request(bytes),
    );
    decode_values(bytes);
    let _ = (s7::parse_write_answer(bytes, 1), modbus_tcp::first_request(bytes));
    let _ = modbus_answer::find_rtu_answer(first, second, Echo::Unknown);
    let _ = modbus_answer::explain(Framing::Rtu, first, second, Echo::Unknown);
    let _ = modbus_answer::explain(Framing::Tcp, first, second, Echo::Unknown);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let mut table = line::Csv::default();
        for text in text.lines() {
            let _ = (tc4::parse(text).map(|r| r.get("ch2")), kaleido::parse(text));
            let values = [line::parse_json(text), table.parse(text)];
            let mut values = values.into_iter().flatten().flatten();
            assert!(values.all(|(_, value)| value.is_finite()), "{text:?}");
        }
    }
});
