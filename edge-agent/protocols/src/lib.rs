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
