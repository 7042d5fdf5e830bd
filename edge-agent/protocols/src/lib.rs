//! The roaster protocols that no well-maintained crate implements: pure encoders and decoders for
//! both sides, so that the agent and the emulator use the same ones. No I/O, no clock.
//!
//! Every decoder takes untrusted bytes: it must never panic, must not allocate more than its input,
//! and skips or rejects what it does not understand, never guesses.

// Arithmetic on outside values is checked or saturating; an exception states its bound.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod hottop;
pub mod kaleido;
pub mod line;
pub mod modbus_answer;
pub mod modbus_tcp;
pub mod s7;
pub mod santoker;
pub mod tc4;

/// The longest text line that any machine sends, in bytes.
pub const LINE_BYTES_MAX: usize = 4096;

/// Computes CRC-16/MODBUS, which ends serial Modbus frames and Santoker's data.
#[must_use]
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xffff, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xa001 } else { crc >> 1 }
        })
    })
}
