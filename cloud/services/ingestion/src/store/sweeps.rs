//! What the sweeps over the sessions of all organisations read. Each organisation has its own
//! position and its own share of a page: one with many sessions does not delay the others.

use ::database::sqlx::{AssertSqlSafe, query_as, query_scalar};
use ::database::{Pool, StoreError, on};
use contract::EpochMs;

use super::outbox::PublishAfter;
use super::{IngestStore, OpenReceipt, PendingSession};

/// Sessions that may have to be closed or published, or may need a curve: the condition of an index.
const UNSETTLED: &str = "(status = 'ACTIVE' OR announced_ms IS NULL OR curve_ms IS NULL)";
/// Receipts that wait for their frames: the condition of an index.
const OPEN_RECEIPT: &str = "completeness <> 'complete' AND receipt IS NOT NULL";
/// A session that has not ended when its chain has been silent for a week will not end.
const ENDLESS_MS: i64 = 7 * 86_400_000;
/// A session that was first seen closed this long ago gets a curve although frames of its chain are
/// missing and its gateway still sends: they may be missing for ever.
const CLOSED_LONG_MS: i64 = 6 * 3_600_000;

/// The position in an organisation's sessions, in the order of time, after which a sweep continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrgCursor {
    pub org_id: String,
    pub started_ms: i64,
    pub session_id: String,
}

impl OrgCursor {
    /// Returns the position before the first session of an organisation.
    #[must_use]
    pub const fn first(org_id: String) -> Self {
        Self { org_id, started_ms: i64::MIN, session_id: String::new() }
    }
}

/// How a statement names the parts of an [`OrgCursor`].
struct CursorNames {
    org: &'static str,
    started_ms: &'static str,
    session: &'static str,
}

/// Names the parameters of a statement about one organisation, as on SQLite: no network makes many
/// statements slow there.
const PARAMETERS: CursorNames = CursorNames { org: "$1", started_ms: "$2", session: "$3" };
/// Names the columns of a statement about all organisations, as on PostgreSQL.
const COLUMNS: CursorNames =
    CursorNames { org: "o.org_id", started_ms: "o.started_ms", session: "o.session_id" };

/// Returns the statement that runs `select` for each organisation of three arrays.
fn of_all(select: &str) -> String {
    format!(
        "SELECT s.* FROM unnest(CAST($1 AS text[]), CAST($2 AS bigint[]), CAST($3 AS text[])) \
         AS o (org_id, started_ms, session_id) CROSS JOIN LATERAL ({select}) AS s \
         ORDER BY s.started_ms, s.session_id"
    )
}

/// Evaluates to the rows of type `$row` that `$select` finds for each cursor, given the names of the
/// cursor's parts. Its parameter `$4` is the limit for each organisation; `$5` and so on are
/// `$number`s.
macro_rules! of_each_org {
    ($store:expr, $doing:literal, $cursors:expr, $limit:expr, $select:expr => $row:ty
     $(, $number:expr)*) => {{
        let cursors: &[OrgCursor] = $cursors;
        match $store.database.pool() {
            Pool::Postgres(pool) => {
                let orgs: Vec<String> = cursors.iter().map(|c| c.org_id.clone()).collect();
                let times: Vec<i64> = cursors.iter().map(|c| c.started_ms).collect();
                let ids: Vec<String> = cursors.iter().map(|c| c.session_id.clone()).collect();
                let rows: Vec<$row> = query_as(AssertSqlSafe(of_all(&$select(&COLUMNS))))
                    .bind(orgs).bind(times).bind(ids).bind($limit)$(.bind($number))*
                    .fetch_all(pool).await
                    .map_err(StoreError::query($doing))?;
                rows
            }
            Pool::Sqlite(pool) => {
                let sql: String = $select(&PARAMETERS);
                let mut rows: Vec<$row> = Vec::new();
                for cursor in cursors {
                    let page: Vec<$row> = query_as(AssertSqlSafe(sql.clone()))
                        .bind(&cursor.org_id).bind(cursor.started_ms).bind(&cursor.session_id)
                        .bind($limit)$(.bind($number))*
                        .fetch_all(pool).await
                        .map_err(StoreError::query($doing))?;
                    rows.extend(page);
                }
                rows
            }
        }
    }};
}

/// Selects the sessions of an organisation that meet `candidate`, a condition on `n`, after the
/// cursor, and whether each is `due`, a condition on `s` and its chain `c`. The limit counts
/// the candidates: a tenant with many that are not due costs a pass no more than any other.
fn due_sessions(cursor: &CursorNames, candidate: &str, due: &str) -> String {
    let CursorNames { org, started_ms, session } = cursor;
    format!(
        "SELECT s.org_id, s.session_id, s.started_ms, s.chain_no, COALESCE({due}, FALSE) AS is_due FROM ( \
           SELECT n.org_id, n.session_id, n.started_ms, n.ended_ms, n.first_seq, n.chain_no, \
           n.closed_seen_ms, n.completeness FROM sessions n WHERE n.org_id = {org} AND {candidate} \
           AND (n.started_ms, n.session_id) > ({started_ms}, {session}) \
           ORDER BY n.started_ms, n.session_id LIMIT $4) s \
         JOIN chains c ON c.chain_no = s.chain_no ORDER BY s.started_ms, s.session_id"
    )
}

/// Returns the condition that another session of the chain of `s` begins after a sample number. It
/// compares with the newest session alone, which is the first one in the index of the chain: whether
/// any of thousands is newer, PostgreSQL may answer by reading them all.
fn is_followed(seq: &str) -> String {
    let newest = |status: &str| {
        format!(
            "(SELECT n.first_seq FROM sessions n WHERE n.chain_no = s.chain_no \
             AND n.status = '{status}' ORDER BY n.first_seq DESC NULLS LAST LIMIT 1) > {seq}"
        )
    };
    format!("({} OR {})", newest("ACTIVE"), newest("CLOSED"))
}

/// Selects the open receipts of an organisation.
fn open_receipts(org: &str, which: &str) -> String {
    format!(
        "SELECT s.org_id, s.session_id, s.chain_no, s.completeness, s.receipt, c.next_number, \
         c.gaps, c.last_digest, s.started_ms FROM sessions s \
         JOIN chains c ON c.chain_no = s.chain_no WHERE s.org_id = {org} \
         AND s.completeness <> 'complete' AND s.receipt IS NOT NULL {which} LIMIT $4"
    )
}

impl IngestStore {
    /// Returns the organisations that have sessions to close or publish, or without a curve.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn orgs_with_unsettled_sessions(&self) -> Result<Vec<String>, StoreError> {
        self.orgs_with(UNSETTLED).await
    }

    /// Returns the organisations that have open receipts.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn orgs_with_open_receipts(&self) -> Result<Vec<String>, StoreError> {
        self.orgs_with(OPEN_RECEIPT).await
    }

    /// Returns the organisations of the rows that meet a condition, with one look into an index for
    /// each organisation.
    async fn orgs_with(&self, condition: &str) -> Result<Vec<String>, StoreError> {
        let sql = format!(
            "WITH RECURSIVE o (org_id) AS ( \
             SELECT MIN(org_id) FROM sessions WHERE {condition} \
             UNION ALL \
             SELECT (SELECT MIN(n.org_id) FROM sessions n WHERE {condition} \
                     AND n.org_id > o.org_id) \
             FROM o WHERE o.org_id IS NOT NULL) \
             SELECT org_id FROM o WHERE org_id IS NOT NULL"
        );
        on!(self.database, pool => query_scalar(AssertSqlSafe(sql)).fetch_all(pool).await)
            .map_err(StoreError::query("listing the organisations of a sweep"))
    }

    /// Returns running sessions, and marks those as due that will not end by themselves: another session has begun
    /// later on their chain, by its sample numbers, or the chain has been silent since
    /// `unsigned_since` (publishers that sign nothing) or `signed_since` (gateways, which return
    /// with the frames that they stored). It examines at most `limit` sessions of each organisation,
    /// after its cursor.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn abandoned_sessions(
        &self,
        (unsigned_since, signed_since): (EpochMs, EpochMs),
        cursors: &[OrgCursor],
        limit: i64,
    ) -> Result<Vec<PendingSession>, StoreError> {
        let select = |cursor: &CursorNames| {
            due_sessions(
                cursor,
                "n.status = 'ACTIVE'",
                &format!(
                    "((c.kid = '' AND c.seen_ms < $5) OR c.seen_ms < $6 OR {})",
                    is_followed(
                        "COALESCE(s.first_seq, (SELECT MIN(e.seq) FROM events e \
                         WHERE e.org_id = s.org_id AND e.session_id = s.session_id))"
                    )
                ),
            )
        };
        Ok(of_each_org!(self, "looking for abandoned roasts", cursors, limit,
            select => PendingSession, unsigned_since.0, signed_since.0))
    }

    /// Returns sessions that were seen closed, and marks those as due that can be published: complete
    /// by their receipt; or of a publisher that signs none; or first seen closed so long ago that what
    /// is missing may never arrive (sooner if the gateway is silent). One that is published is not
    /// marked as seen any more: its curve would never become final. It examines at most `limit` sessions of each
    /// organisation, after its cursor.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn unpublished_sessions(
        &self,
        wait: &PublishAfter,
        cursors: &[OrgCursor],
        limit: i64,
    ) -> Result<Vec<PendingSession>, StoreError> {
        let select = |cursor: &CursorNames| {
            due_sessions(
                cursor,
                "n.status = 'CLOSED' AND n.announced_ms IS NULL AND n.closed_seen_ms IS NOT NULL",
                "(s.completeness = 'complete' OR c.kid = '' \
                 OR (s.closed_seen_ms < $5 AND c.seen_ms < $6) OR s.closed_seen_ms < $7)",
            )
        };
        Ok(of_each_org!(self, "looking for ended roasts", cursors, limit,
            select => PendingSession,
            wait.closed_before.0, wait.silent_since.0, wait.closed_long_before.0))
    }

    /// Returns sessions without a curve, and which curves are due: when the session is closed,
    /// or followed by another, or on a chain that ended; and the chain has no gaps, or has been
    /// silent since `quiet`, or the session was seen closed hours before that. It examines at most
    /// `limit` sessions of each organisation, after its cursor.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sessions_without_curve(
        &self,
        quiet: EpochMs,
        cursors: &[OrgCursor],
        limit: i64,
    ) -> Result<Vec<PendingSession>, StoreError> {
        let select = |cursor: &CursorNames| {
            due_sessions(
                cursor,
                "n.curve_ms IS NULL",
                &format!(
                    "(s.ended_ms IS NOT NULL OR c.seen_ms < $6 OR {}) \
                     AND (c.seen_ms < $5 OR c.gaps = '[]' OR s.closed_seen_ms < $7) \
                     AND COALESCE(s.closed_seen_ms, 0) < $5",
                    is_followed("s.first_seq")
                ),
            )
        };
        let (endless, closed_long) = (quiet.plus_ms(-ENDLESS_MS), quiet.plus_ms(-CLOSED_LONG_MS));
        Ok(of_each_org!(self, "listing sessions without a curve", cursors, limit,
            select => PendingSession, quiet.0, endless.0, closed_long.0))
    }

    /// Returns open receipts, at most `limit` of each organisation, after its cursor.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn open_receipts(
        &self,
        cursors: &[OrgCursor],
        limit: i64,
    ) -> Result<Vec<OpenReceipt>, StoreError> {
        let select = |CursorNames { org, started_ms, session }: &CursorNames| {
            let after = format!(
                "AND (s.started_ms, s.session_id) > ({started_ms}, {session}) \
                 ORDER BY s.started_ms, s.session_id"
            );
            open_receipts(org, &after)
        };
        Ok(of_each_org!(self, "listing open receipts", cursors, limit, select => OpenReceipt))
    }

    /// Returns the newest open receipts, at most `limit` of each organisation, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn newest_open_receipts(
        &self,
        cursors: &[OrgCursor],
        limit: i64,
    ) -> Result<Vec<OpenReceipt>, StoreError> {
        let select = |CursorNames { org, .. }: &CursorNames| {
            open_receipts(org, "ORDER BY s.started_ms DESC, s.session_id DESC")
        };
        let mut newest = of_each_org!(self, "listing the newest open receipts", cursors, limit,
            select => OpenReceipt);
        newest.sort_by(|a, b| (b.started_ms, &b.session_id).cmp(&(a.started_ms, &a.session_id)));
        Ok(newest)
    }
}
