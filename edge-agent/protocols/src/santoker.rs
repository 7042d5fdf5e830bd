//! The protocol of the Santoker Q, X and R Master over Wi-Fi: `EE A5`, target, `02 04`, length,
//! data, CRC, `FF FC FF FF`.

use crate::crc16;

const HEAD: [u8; 2] = [0xee, 0xa5];
const CODE: [u8; 2] = [0x02, 0x04];
const TAIL: [u8; 4] = [0xff, 0xfc, 0xff, 0xff];
const DATA_BYTES_MAX: usize = 4;
/// The number of data bytes in a message from a host.
pub const HOST_BYTES: usize = 3;
const FRAME_BYTES_MAX: usize = 2 + 1 + 2 + 1 + DATA_BYTES_MAX + 2 + 4;

/// One value of the machine: its target and its raw data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub target: u8,
    pub data: u32,
}

impl Message {
    /// Returns the raw value. Only the rate of rise has a sign, in its first half-byte: `B` is
    /// plus.
    #[must_use]
    pub fn raw(&self) -> f64 {
        if matches!(self.target, 0xf5 | 0xf6) {
            let size = f64::from(self.data & 0x0fff);
            return if (self.data >> 12) & 0xf == 0xb { size } else { -size };
        }
        f64::from(self.data)
    }

    /// Encodes the frame of a value with `bytes` data bytes: 2 or 1 from a machine, [`HOST_BYTES`]
    /// from a host.
    #[must_use]
    pub fn encode(&self, bytes: usize) -> Vec<u8> {
        let bytes = bytes.clamp(1, DATA_BYTES_MAX);
        let mut summed = CODE.to_vec();
        #[allow(clippy::cast_possible_truncation)] // at most 4
        summed.push(bytes as u8);
        summed.extend_from_slice(&self.data.to_be_bytes()[DATA_BYTES_MAX.saturating_sub(bytes)..]);
        let crc = crc16(&summed);
        let mut frame = vec![HEAD[0], HEAD[1], self.target];
        frame.extend_from_slice(&summed);
        frame.extend_from_slice(&crc.to_le_bytes());
        frame.extend_from_slice(&TAIL);
        frame
    }
}

/// Finds messages in a stream of bytes.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds received bytes and returns the complete messages in them, oldest first. Buffers less
    /// than one frame.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.buffer.extend_from_slice(bytes);
        let mut messages = Vec::new();
        let mut at = 0;
        while at < self.buffer.len() {
            match read(&self.buffer[at..]) {
                Scan::Message(message, length) => {
                    messages.push(message);
                    at = at.saturating_add(length);
                }
                Scan::Incomplete if self.buffer.len().saturating_sub(at) < FRAME_BYTES_MAX => break,
                Scan::Invalid | Scan::Incomplete => at = at.saturating_add(1),
            }
        }
        self.buffer.drain(..at);
        messages
    }
}

enum Scan {
    Message(Message, usize),
    Invalid,
    /// More bytes may complete a message.
    Incomplete,
}

fn read(bytes: &[u8]) -> Scan {
    for (i, expected) in [(0, HEAD[0]), (1, HEAD[1]), (3, CODE[0]), (4, CODE[1])] {
        match bytes.get(i) {
            None => return Scan::Incomplete,
            Some(byte) if *byte != expected => return Scan::Invalid,
            Some(_) => {}
        }
    }
    let Some(length) = bytes.get(5).map(|l| usize::from(*l)) else { return Scan::Incomplete };
    if !(1..=DATA_BYTES_MAX).contains(&length) {
        return Scan::Invalid;
    }
    // `length` is at most 4.
    let Some(frame) = bytes.get(..length.saturating_add(12)) else { return Scan::Incomplete };
    let (body, end) = frame.split_at(length.saturating_add(6));
    let [first, second, tail @ ..] = end else { return Scan::Incomplete };
    if *tail != TAIL {
        return Scan::Invalid;
    }
    let [low, high] = crc16(&body[3..]).to_le_bytes();
    // Real machines often send 0 as the first byte of the CRC.
    let sums = *second == high && (*first == low || *first == 0);
    if !sums {
        return Scan::Invalid;
    }
    let data = body[6..].iter().fold(0, |data, byte| (data << 8) | u32::from(*byte));
    Scan::Message(Message { target: frame[2], data }, frame.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_decoded_after_garbage_and_from_fragments() {
        let bt = Message { target: 0xf1, data: 1875 };
        let mut bytes = vec![0xee, 0x00, 0xee, 0xa5];
        bytes.extend(bt.encode(2));
        bytes.extend(Message { target: 0x84, data: 1 }.encode(1));
        let mut decoder = Decoder::default();
        let mut found = decoder.push(&bytes[..10]);
        found.extend(decoder.push(&bytes[10..]));
        assert_eq!(found, [bt, Message { target: 0x84, data: 1 }]);
        let mut lazy = bt.encode(2);
        lazy[8] = 0;
        assert_eq!(decoder.push(&lazy), [bt], "the first byte of the CRC may be 0");
        lazy[9] ^= 1;
        assert_eq!(decoder.push(&lazy), []);
    }

    /// Compares with the bytes that Artisan sends; the CRC was computed by pymodbus.
    #[test]
    fn a_message_equals_the_one_that_artisan_sends() {
        let air = Message { target: 0xca, data: 80 }.encode(HOST_BYTES);
        let theirs = [
            0xee, 0xa5, 0xca, 0x02, 0x04, 0x03, 0x00, 0x00, 0x50, 0xf0, 0x41, 0xff, 0xfc, 0xff,
            0xff,
        ];
        assert_eq!(air, theirs);
        assert_eq!(Decoder::default().push(&theirs), [Message { target: 0xca, data: 80 }]);
    }

    #[test]
    fn the_rate_of_rise_has_a_sign() {
        assert!((Message { target: 0xf5, data: 0xb07b }.raw() - 123.0).abs() < 1e-9);
        assert!((Message { target: 0xf5, data: 0xa07b }.raw() + 123.0).abs() < 1e-9);
    }

    proptest::proptest! {
        #[test]
        fn the_decoder_buffers_less_than_one_frame_of_any_bytes(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            let _ = decoder.push(&bytes);
            proptest::prop_assert!(decoder.buffer.len() < FRAME_BYTES_MAX);
        }
    }
}
