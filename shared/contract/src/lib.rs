//! The types that the edge agent and the cloud exchange: identities, samples, frames, events,
//! sessions, missions, acknowledgements, receipts and topics, with their two encodings — CBOR
//! frames for our own agents and upstream Sim-Corp's JSON envelope for all other publishers.
//!
//! Nothing in here does I/O, reads a clock or draws a random number. Every decoder takes
//! untrusted bytes, returns a typed error that names the field, and never panics.

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
pub mod point;
pub mod profile;
pub mod receipt;
pub mod session;
pub mod time;
pub mod topic;

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
