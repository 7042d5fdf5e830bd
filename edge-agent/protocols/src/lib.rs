//! The bytes that roasters speak, where no well-kept crate speaks them: pure encoders and decoders,
//! both sides of each, so that the agent and the emulators mean the same. No I/O, no clock.
//!
//! Every decoder takes bytes from a machine, and so from anybody: none panics, none allocates more
//! than it was given, and what is not understood is skipped or refused, never guessed.

pub mod hottop;
pub mod kaleido;
pub mod line;
pub mod s7;
pub mod santoker;
pub mod tc4;

/// The longest text line that any machine sends, in bytes.
pub const LINE_BYTES_MAX: usize = 4096;

/// CRC-16/MODBUS, by which Modbus frames on serial lines end, and Santoker's data.
#[must_use]
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xffff, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 }
        })
    })
}
