//! Artisan beside the agent: the machine has one connection, and the agent has it. What it has read is
//! shown to Artisan in the forms that Artisan connects to; nothing is ever written.

pub mod modbus;
pub mod websocket;
