//! Serves Artisan from the agent: the machine accepts one connection, and the agent holds it. The
//! agent offers its newest readings to Artisan over protocols that Artisan supports.
//!
//! The WebSocket writes nothing. The Modbus server writes only where profile and site allow it.

mod checked_stream;
pub mod modbus;
pub mod websocket;
