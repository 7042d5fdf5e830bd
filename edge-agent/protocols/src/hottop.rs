//! The protocol of the Hottop KN-8828B-2K+: frames of 36 bytes in both directions. A frame begins
//! with `A5 96` and ends with the low byte of the sum of its other bytes.

pub const FRAME_BYTES: usize = 36;
const HEAD: [u8; 2] = [0xa5, 0x96];

/// One status frame of the machine.
#[allow(clippy::struct_excessive_bools)] // the frame has four switches
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// °C
    pub et_c: u16,
    /// °C
    pub bt_c: u16,
    /// 0–100 %
    pub heater: u8,
    /// 0–10
    pub fan: u8,
    /// 0–10
    pub main_fan: u8,
    pub solenoid: bool,
    pub drum_motor: bool,
    pub cooling_motor: bool,
    pub chaff_tray: bool,
}

impl Status {
    /// Returns a value by its name, fans in %; `None` for an unknown name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        Some(match name {
            "et" => f64::from(self.et_c),
            "bt" => f64::from(self.bt_c),
            "heater" => f64::from(self.heater),
            "fan" => f64::from(self.fan) * 10.0,
            "main_fan" => f64::from(self.main_fan) * 10.0,
            "solenoid" => f64::from(u8::from(self.solenoid)),
            "drum_motor" => f64::from(u8::from(self.drum_motor)),
            "cooling_motor" => f64::from(u8::from(self.cooling_motor)),
            "chaff_tray" => f64::from(u8::from(self.chaff_tray)),
            _ => return None,
        })
    }

    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut frame = [0; FRAME_BYTES];
        frame[..2].copy_from_slice(&HEAD);
        (frame[10], frame[11], frame[12]) = (self.heater, self.fan, self.main_fan);
        frame[16] = self.solenoid.into();
        frame[17] = self.drum_motor.into();
        frame[18] = self.cooling_motor.into();
        frame[19] = self.chaff_tray.into();
        frame[23..25].copy_from_slice(&self.et_c.to_be_bytes());
        frame[25..27].copy_from_slice(&self.bt_c.to_be_bytes());
        frame[35] = checksum(&frame);
        frame
    }

    fn decode(frame: &[u8; FRAME_BYTES]) -> Option<Self> {
        let status = Self {
            heater: frame[10],
            fan: frame[11],
            main_fan: frame[12],
            solenoid: frame[16] != 0,
            drum_motor: frame[17] != 0,
            cooling_motor: frame[18] != 0,
            chaff_tray: frame[19] != 0,
            et_c: u16::from_be_bytes([frame[23], frame[24]]),
            bt_c: u16::from_be_bytes([frame[25], frame[26]]),
        };
        let can_be = status.heater <= 100 && status.fan <= 10 && status.main_fan <= 10;
        can_be.then_some(status)
    }
}

fn checksum(frame: &[u8; FRAME_BYTES]) -> u8 {
    frame[..FRAME_BYTES - 1].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// Finds frames in a stream of bytes. The stream may begin in the middle of a frame.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds received bytes and returns the newest complete status in them. Buffers less than one
    /// frame.
    pub fn push(&mut self, bytes: &[u8]) -> Option<Status> {
        self.buffer.extend_from_slice(bytes);
        let mut newest = None;
        let mut at = 0;
        while let Some(frame) = self.buffer[at..].first_chunk::<FRAME_BYTES>() {
            let whole = frame[..2] == HEAD && frame[35] == checksum(frame);
            if whole {
                newest = Status::decode(frame).or(newest);
            }
            // At most the buffer's length: it has a whole frame from `at`.
            at = at.saturating_add(if whole { FRAME_BYTES } else { 1 });
        }
        self.buffer.drain(..at);
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: Status = Status {
        et_c: 210,
        bt_c: 188,
        heater: 80,
        fan: 2,
        main_fan: 4,
        solenoid: false,
        drum_motor: true,
        cooling_motor: false,
        chaff_tray: true,
    };

    #[test]
    fn a_frame_is_decoded_after_garbage_and_from_fragments() {
        let mut decoder = Decoder::default();
        let mut bytes = vec![0xa5, 0x96, 0xa5];
        bytes.extend(STATUS.encode());
        assert_eq!(decoder.push(&bytes[..20]), None);
        assert_eq!(decoder.push(&bytes[20..]), Some(STATUS));
        let mut bent = STATUS.encode();
        bent[26] ^= 1;
        assert_eq!(decoder.push(&bent), None, "wrong checksum");
        assert_eq!(STATUS.get("main_fan"), Some(40.0));
    }

    proptest::proptest! {
        #[test]
        fn the_decoder_buffers_less_than_one_frame_of_any_bytes(bytes: Vec<u8>) {
            let mut decoder = Decoder::default();
            let _ = decoder.push(&bytes);
            proptest::prop_assert!(decoder.buffer.len() < FRAME_BYTES);
        }
    }
}
