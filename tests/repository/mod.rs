//! What must hold for the source tree itself.

mod imports;
mod links;
