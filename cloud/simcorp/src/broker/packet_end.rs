//! Finds the ends of an MQTT client's large packets, and what to send to the server behind them.
//!
//! rumqttd keeps a message as a slice of the buffer into which it has read the packet. A buffer that
//! has grown for a large packet takes the small packets behind it too, and each of them then keeps the
//! whole buffer: under attack a hundred receipts of some hundred bytes kept 30 MB. Packets that no
//! client receives use up such a buffer, and the next message is read into a small one.

const PUBLISH: u8 = 3;
/// From this length, in bytes, a packet makes the server's buffer grow.
const LARGE_BYTES: usize = 8 * 1024;
/// The length of a packet that uses up the buffer. It is smaller than a new buffer of the server.
const FILLER_BYTES: usize = 4 * 1024;
/// What a buffer may have left behind a packet, beyond the packet's own length.
const SPARE_BYTES: usize = 16 * 1024;

/// Where a client's bytes are in its packets.
#[derive(Debug, Default)]
pub struct PacketEnds {
    state: State,
    packet: Packet,
}

#[derive(Debug, Default, Clone, Copy)]
enum State {
    #[default]
    First,
    /// So many bytes of the length have been read.
    Length(u32),
    /// So many bytes of the packet are left.
    Body(usize),
}

#[derive(Debug, Default, Clone, Copy)]
struct Packet {
    is_publish: bool,
    length: usize,
}

impl PacketEnds {
    /// Takes the bytes up to the end of the first large message among `bytes`, or all of them. Returns
    /// how many these are, and how many fillers have to follow them.
    pub fn take(&mut self, bytes: &[u8]) -> (usize, usize) {
        let mut taken = 0_usize;
        while let Some(&byte) = bytes.get(taken) {
            let step = match self.state {
                State::First => {
                    self.packet = Packet { is_publish: byte >> 4 == PUBLISH, length: 0 };
                    self.state = State::Length(0);
                    1
                }
                State::Length(index) => {
                    let digit = usize::from(byte & 0x7f) << index.saturating_mul(7);
                    self.packet.length = self.packet.length.saturating_add(digit);
                    // A longer length is not valid: the server ends the connection.
                    let is_last = byte & 0x80 == 0 || index >= 3;
                    self.state = if is_last {
                        State::Body(self.packet.length)
                    } else {
                        State::Length(index.saturating_add(1))
                    };
                    1
                }
                State::Body(left) => {
                    let step = left.min(bytes.len().saturating_sub(taken));
                    self.state = State::Body(left.saturating_sub(step));
                    step
                }
            };
            taken = taken.saturating_add(step);
            if let State::Body(0) = self.state {
                self.state = State::First;
                let Packet { is_publish, length } = self.packet;
                if is_publish && length >= LARGE_BYTES {
                    return (taken, length.saturating_add(SPARE_BYTES).div_ceil(FILLER_BYTES));
                }
            }
        }
        (taken, 0)
    }
}

/// Returns a message that the server reads and gives to no client: no filter matches its topic. Its
/// bytes are valid in both versions of MQTT: the first one behind the topic says in MQTT 5 that there
/// are no properties, and belongs to the payload in MQTT 3.1.1.
pub fn filler() -> Vec<u8> {
    // The length is that behind the first three bytes: 4,093.
    let mut packet = b"\x30\xfd\x1f\x00\x01$".to_vec();
    packet.resize(FILLER_BYTES, 0);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(first: u8, length: usize) -> Vec<u8> {
        let mut packet = vec![first];
        let mut left = length;
        loop {
            let low = u8::try_from(left % 128).unwrap();
            left /= 128;
            packet.push(if left > 0 { low | 0x80 } else { low });
            if left == 0 {
                break;
            }
        }
        packet.resize(packet.len() + length, 7);
        packet
    }

    #[test]
    fn fillers_follow_each_large_message_however_its_bytes_arrive() {
        let sent = [
            packet(0x10, 20_000), // CONNECT is read before there are messages
            packet(0x32, 300),
            packet(0x32, LARGE_BYTES),
            packet(0xc0, 0),
            packet(0x30, 100_000),
            packet(0x32, 1),
        ];
        let ends = [sent[..3].concat().len(), sent[..5].concat().len()];
        let all = sent.concat();
        for step in [1, 1_000, 16_384, all.len()] {
            let (mut tracker, mut found, mut at) = (PacketEnds::default(), Vec::new(), 0);
            for chunk in all.chunks(step) {
                let mut rest = chunk;
                while !rest.is_empty() {
                    let (taken, fillers) = tracker.take(rest);
                    assert!(taken > 0);
                    at += taken;
                    rest = &rest[taken..];
                    if fillers > 0 {
                        found.push((at, fillers));
                    }
                }
            }
            assert_eq!(found, [(ends[0], 6), (ends[1], 29)], "{step} bytes at once");
        }
    }

    #[test]
    fn a_length_of_more_than_four_bytes_ends_no_packet() {
        let mut tracker = PacketEnds::default();
        assert_eq!(tracker.take(b"\x30\xff\xff\xff\xff\x01abc"), (9, 0));
    }

    #[test]
    fn a_filler_is_a_whole_packet() {
        let mut tracker = PacketEnds::default();
        assert_eq!(tracker.take(&filler()), (FILLER_BYTES, 0));
        assert!(matches!(tracker.state, State::First));
    }
}
