//! Response bodies that several routes share.

use serde::Serialize;
use utoipa::ToSchema;

/// The response of a route that reports only that it did what was requested.
#[derive(Debug, Serialize, ToSchema)]
pub struct OkResponse {
    /// Always true.
    pub ok: bool,
}

impl OkResponse {
    pub const OK: Self = Self { ok: true };
}

/// The response of a route that changed a record.
#[derive(Debug, Serialize, ToSchema)]
pub struct RecordChanged {
    pub id: String,
    /// Always true.
    pub success: bool,
}

impl RecordChanged {
    pub const fn new(id: String) -> Self {
        Self { id, success: true }
    }
}
