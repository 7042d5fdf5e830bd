//! The types that the edge agent and the cloud exchange: identities, samples, frames, events,
//! sessions, missions, acknowledgements, receipts and topics, with their two encodings — CBOR
//! frames for our own agents and upstream Sim-Corp's JSON envelope for all other publishers.
//!
//! Nothing in here does I/O, reads a clock or draws a random number. Every decoder takes
//! untrusted bytes, returns a typed error that names the field, and never panics.
//!
//! A frame is encoded to the bytes that a gateway signs, and decoded from them:
//!
//! ```rust
//! use contract::{ChainId, Channel, ClockQuality, Column, EpochMs, Frame};
//!
//! let bt = Column {
//!     channel: Channel::Bt,
//!     values: vec![Some(187.4), None], // one value a sample; the second is missing
//!     quality: Vec::new(),
//! };
//! let frame = Frame {
//!     origin: "acme/leipzig/r-1".parse()?,
//!     chain: ChainId([7; 16]),
//!     number: 1,
//!     previous: None,
//!     boot_id: 42,
//!     first_seq: 1,
//!     mono_ms: 0,
//!     wall: EpochMs::parse_iso("2025-10-05T21:08:15Z").ok_or("not a time")?,
//!     clock: ClockQuality::Synchronised,
//!     profile_digest: None,
//!     offsets_ms: vec![0, 1_000],
//!     columns: vec![bt],
//!     events: Vec::new(),
//! };
//! let bytes = frame.encode();
//! assert_eq!(Frame::decode(&bytes)?, frame);
//! assert!(Frame::decode(&bytes[..bytes.len() - 1]).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Arithmetic on outside values is checked or saturating; an exception states its bound.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]
#![warn(missing_docs)]

pub mod ack;
pub mod actor;
pub mod annotations;
mod cbor;
pub mod enroll;
pub mod envelope;
pub mod event;
pub mod frame;
pub mod id;
pub mod mission;
pub mod ops;
mod payload;
pub mod point;
pub mod profile;
pub mod receipt;
pub mod session;
pub mod time;
pub mod topic;
pub mod upstream_id;

pub use ack::{Ack, FrameRange, ReceiptVerdict, Refusal, RejectedFrame};
pub use actor::{Actor, ActorKind};
pub use cbor::DecodeError;
pub use event::{EventKind, EventSource, MachineEvent};
pub use frame::{Channel, ClockQuality, Column, Frame, Quality};
pub use id::{
    ChainId, DeviceId, Digest, IdError, KeyId, MachineId, OrgId, Origin, SessionId, SiteId,
};
pub use receipt::Receipt;
pub use time::EpochMs;
