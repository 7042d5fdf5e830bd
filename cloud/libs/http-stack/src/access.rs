//! The access control of a service: authentication and rate limits.

use crate::auth::Auth;
use crate::limit::Limits;

/// Who may call a service, and how often.
#[derive(Clone)]
pub struct AccessControl {
    pub auth: Auth,
    pub limits: Limits,
}
