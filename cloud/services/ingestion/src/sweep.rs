//! One item of a sweep over the sessions of all organisations. What fails with one item must not
//! keep the others from their turn.

use ::database::StoreError;
use service::tasks;

/// Does the work on one session. An error or a panic of this session alone is logged.
///
/// # Errors
/// When the database does not answer: the sweep then ends, and the next one retries.
pub async fn each(
    work: &'static str,
    session: &str,
    future: impl Future<Output = Result<(), StoreError>>,
) -> Result<(), StoreError> {
    match tasks::isolate(work, future).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.is_unavailable() => Err(error),
        Ok(Err(error)) => {
            tracing::warn!(%error, session, work, "skipped a session; the next sweep retries");
            Ok(())
        }
        Err(panicked) => {
            tracing::error!(error = %panicked, session, "skipped a session; the next sweep retries");
            Ok(())
        }
    }
}
