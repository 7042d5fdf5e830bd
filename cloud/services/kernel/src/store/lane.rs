//! The lanes of the mission queue, as the column `missions.lane` has them.

/// May be claimed at once.
pub(super) const PENDING: i64 = 0;
/// May be claimed when it is due.
pub(super) const RETRY: i64 = 1;
/// Held by a worker; may be claimed when its lease has expired.
pub(super) const RUNNING: i64 = 2;
/// Waits for eval's decision. Workers never claim from it.
pub(super) const AWAITING_EVAL: i64 = 3;
/// The interval between two queries to eval about one mission, ms.
pub(super) const EVAL_POLL_MS: i64 = 15_000;
