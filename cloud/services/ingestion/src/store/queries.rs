//! The read queries of ingestion, most of them for the API.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use ::database::machine_alias::is_machine;
use ::database::sqlx::{AssertSqlSafe, FromRow, query_as, query_scalar};
use ::database::{Pool, StoreError, on};
use contract::OrgId;

use super::row::SELECT;
use super::sample_budget::{self, SAMPLES_A_READ};
use super::sessions::{SELECT_SESSION, SessionRow};
use super::{ChainNo, FrameRow, IngestStore};

/// The filter of `GET /sessions`, already validated and bounded.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    pub site: Option<String>,
    pub machine: Option<String>,
    pub status: Option<&'static str>,
    /// The name of the profile that was followed.
    pub profile: Option<String>,
    pub limit: i64,
    pub offset: i64,
    /// The page begins after this session: (started, id).
    pub after: Option<(i64, String)>,
}

/// Up to this many machines are queried one by one, each by its own index. For more machines one
/// query over all newest sessions of the organisation finds matches soon.
const PER_MACHINE_MAX: usize = 64;

/// An event as it is stored.
#[derive(Debug, Clone, FromRow)]
pub struct EventRow {
    pub arrival: i64,
    pub session_id: String,
    pub site_id: String,
    pub machine_id: String,
    pub machine_no: i64,
    pub kind: String,
    pub source: String,
    pub at_ms: i64,
    pub elapsed_s: f64,
    pub bt_c: Option<f64>,
    pub note: Option<String>,
    pub trust: i16,
    /// What a publisher of upstream Sim-Corp said about the event, as JSON.
    pub published: Option<String>,
}

pub(super) const SELECT_EVENT: &str = "\
SELECT e.arrival, e.session_id, m.site_id, m.machine_id, e.machine_no, e.kind, e.source, e.at_ms, \
       e.elapsed_s, e.bt_c, e.note, e.trust, e.published \
FROM events e JOIN machines m ON m.machine_no = e.machine_no ";

/// A frame may begin this many samples before the range it reaches into.
#[allow(clippy::cast_possible_wrap)] // 4096
const OVERLAP: i64 = contract::frame::SAMPLES_MAX as i64;

impl IngestStore {
    /// Returns sessions, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn sessions(
        &self,
        org: &OrgId,
        f: &SessionFilter,
    ) -> Result<Vec<SessionRow>, StoreError> {
        let mut machines = None;
        if f.site.is_some() || f.machine.is_some() {
            machines = Some(self.machine_nos(org, f).await?);
        }
        let mut rest = String::new();
        if f.status.is_some() {
            rest.push_str(" AND s.status = $2");
        }
        if let Some((started, _)) = &f.after {
            let _ = write!(rest, " AND (s.started_ms, s.session_id) < ({started}, $3)");
        }
        if f.profile.is_some() {
            rest.push_str(
                " AND s.session_id IN (SELECT session_id FROM session_meta \
                 WHERE org_id = $1 AND profile_name = $6)",
            );
        }
        let most = f.limit.saturating_add(f.offset);
        let order = "ORDER BY s.started_ms DESC, s.session_id DESC";
        let sql = match machines.as_deref() {
            Some([]) => return Ok(Vec::new()),
            Some(apart) if apart.len() <= PER_MACHINE_MAX => {
                let each = apart.iter().map(|no| {
                    format!(
                        "SELECT * FROM ({SELECT_SESSION} WHERE s.org_id = $1 \
                         AND s.machine_no = {no}{rest} {order} LIMIT {most}) AS of_{no}"
                    )
                });
                let all = each.collect::<Vec<_>>().join(" UNION ALL ");
                format!("SELECT * FROM ({all}) AS s {order} LIMIT {} OFFSET {}", f.limit, f.offset)
            }
            several => {
                if several.is_some() {
                    let _ = write!(
                        rest,
                        " AND s.machine_no IN (SELECT machine_no FROM machines WHERE org_id = $1 \
                         AND ($4 = '' OR site_id = $4) AND ($5 = '' OR {}))",
                        is_machine(("site_id", "machine_id"), "$1", "$5")
                    );
                }
                format!(
                    "{SELECT_SESSION} WHERE s.org_id = $1{rest} {order} LIMIT {} OFFSET {}",
                    f.limit, f.offset
                )
            }
        };
        let after = f.after.as_ref().map_or("", |(_, id)| id.as_str());
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(f.status.unwrap_or_default()).bind(after)
            .bind(f.site.as_deref().unwrap_or_default())
            .bind(f.machine.as_deref().unwrap_or_default())
            .bind(f.profile.as_deref().unwrap_or_default())
            .fetch_all(pool).await)
        .map_err(StoreError::query("listing sessions"))
    }

    /// Returns the machines of a filter, up to as many as can be queried one by one, and one more.
    async fn machine_nos(&self, org: &OrgId, f: &SessionFilter) -> Result<Vec<i64>, StoreError> {
        let sql = format!(
            "SELECT machine_no FROM machines WHERE org_id = $1 \
             AND ($2 = '' OR site_id = $2) AND ($3 = '' OR {}) ORDER BY machine_no LIMIT 65",
            is_machine(("site_id", "machine_id"), "$1", "$3")
        );
        on!(self.database, pool => query_scalar(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(f.site.as_deref().unwrap_or_default())
            .bind(f.machine.as_deref().unwrap_or_default()).fetch_all(pool).await)
        .map_err(StoreError::query("listing the machines of a filter"))
    }

    /// Returns a session.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn session(&self, org: &OrgId, id: &str) -> Result<Option<SessionRow>, StoreError> {
        let sql = format!("{SELECT_SESSION} WHERE s.org_id = $1 AND s.session_id = $2");
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query("reading a session"))
    }

    /// Returns the running sessions of an organisation, newest first, at most 10 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn active_sessions(&self, org: &OrgId) -> Result<Vec<SessionRow>, StoreError> {
        let filter =
            SessionFilter { status: Some("ACTIVE"), limit: 10_000, ..SessionFilter::default() };
        self.sessions(org, &filter).await
    }

    /// Returns the frames that hold a range of a chain's samples, in order: at most `limit`, and not
    /// many more samples than `SAMPLES_A_READ`. The next read begins at [`super::end_of`] these
    /// frames.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn frames_of_range(
        &self,
        org: &OrgId,
        chain_no: i64,
        first_seq: i64,
        last_seq: i64,
        limit: i64,
    ) -> Result<Vec<FrameRow>, StoreError> {
        const DOING: &str = "reading frames";
        let from = format!(
            "FROM frames WHERE org_id = $1 AND chain_no = $2 \
             AND first_seq BETWEEN $3 - {OVERLAP} AND $4 AND first_seq + samples > $3 \
             ORDER BY first_seq LIMIT $5"
        );
        let sizes: Vec<i64> = on!(self.database, pool =>
            query_scalar(AssertSqlSafe(format!("SELECT CAST(samples AS bigint) {from}")))
            .bind(org.as_str()).bind(chain_no).bind(first_seq).bind(last_seq).bind(limit)
            .fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let limit = sample_budget::frames_within(&sizes, SAMPLES_A_READ);
        on!(self.database, pool => query_as(AssertSqlSafe(format!("SELECT {SELECT} {from}")))
            .bind(org.as_str()).bind(chain_no).bind(first_seq).bind(last_seq).bind(limit)
            .fetch_all(pool).await)
        .map_err(StoreError::query(DOING))
    }

    /// Returns the events of a session in the order of their samples, at most 10 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events_of(&self, org: &OrgId, session: &str) -> Result<Vec<EventRow>, StoreError> {
        let sql = format!(
            "{SELECT_EVENT} WHERE e.org_id = $1 AND e.session_id = $2 ORDER BY e.seq, e.at_ms, e.arrival LIMIT 10000"
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(session).fetch_all(pool).await)
        .map_err(StoreError::query("reading events"))
    }

    /// Returns the running session of each of these chains, by chain number: the one with the
    /// highest sample numbers, if several are open. Each chain costs one look into an index,
    /// whatever other machines run.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn running_sessions(
        &self,
        chains: impl IntoIterator<Item = i64>,
    ) -> Result<HashMap<i64, SessionRow>, StoreError> {
        // SQLite joins at most 500 selects.
        const CHAINS_PER_QUERY: usize = 200;
        const DOING: &str = "listing running sessions";
        const NEWEST_FIRST: &str = "ORDER BY s.first_seq DESC NULLS LAST LIMIT 1";
        let chains: Vec<i64> = chains.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let mut running = HashMap::new();
        if let Pool::Postgres(pool) = self.database.pool() {
            // One text for any number of chains, so that it is planned once.
            let sql = format!(
                "SELECT newest.* FROM unnest($1::bigint[]) AS asked (no) CROSS JOIN LATERAL \
                 ({SELECT_SESSION} WHERE s.status = 'ACTIVE' AND s.chain_no = asked.no {NEWEST_FIRST}) \
                 AS newest"
            );
            let rows: Vec<SessionRow> = query_as(AssertSqlSafe(sql))
                .bind(&chains)
                .fetch_all(pool)
                .await
                .map_err(StoreError::query(DOING))?;
            return Ok(rows.into_iter().map(|session| (session.chain_no, session)).collect());
        }
        for some in chains.chunks(CHAINS_PER_QUERY) {
            let newest = some.iter().map(|no| {
                format!(
                    "SELECT * FROM ({SELECT_SESSION} WHERE s.status = 'ACTIVE' AND s.chain_no = {no} \
                     {NEWEST_FIRST}) AS running_{no}"
                )
            });
            let sql = newest.collect::<Vec<_>>().join(" UNION ALL ");
            let rows: Vec<SessionRow> =
                on!(self.database, pool => query_as(AssertSqlSafe(sql)).fetch_all(pool).await)
                    .map_err(StoreError::query(DOING))?;
            running.extend(rows.into_iter().map(|session| (session.chain_no, session)));
        }
        Ok(running)
    }

    /// Returns the session of a chain that ran at a time: of those that had begun, the one with the
    /// highest sample numbers.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn session_at(
        &self,
        no: ChainNo,
        at: contract::EpochMs,
    ) -> Result<Option<SessionRow>, StoreError> {
        self.newest_begun(no, at.0).await
    }

    /// Returns the session of a chain with the highest sample numbers.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn newest_session(&self, no: ChainNo) -> Result<Option<SessionRow>, StoreError> {
        self.newest_begun(no, i64::MAX).await
    }

    /// Returns the session with the highest sample numbers among those that began at `latest_ms` or
    /// before.
    async fn newest_begun(
        &self,
        no: ChainNo,
        latest_ms: i64,
    ) -> Result<Option<SessionRow>, StoreError> {
        let sql = newest_session_sql();
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(no.machine).bind(no.chain).bind(latest_ms).fetch_optional(pool).await)
        .map_err(StoreError::query("reading the newest session of a chain"))
    }

    /// Returns the time of a session's latest CHARGE.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn charged_at(
        &self,
        org: &OrgId,
        session: &str,
    ) -> Result<Option<contract::EpochMs>, StoreError> {
        let at: Option<i64> = on!(self.database, pool => query_scalar(
            "SELECT MAX(at_ms) FROM events WHERE org_id = $1 AND session_id = $2 \
             AND kind = 'CHARGE'")
            .bind(org.as_str()).bind(session).fetch_one(pool).await)
        .map_err(StoreError::query("reading a session's CHARGE"))?;
        Ok(at.map(contract::EpochMs))
    }
}

/// Returns the statement that selects the session of machine $1 and chain $2 with the highest sample
/// numbers among those that began at $3 or before. Each status is looked up in the index of the
/// chain's sample numbers.
pub(super) fn newest_session_sql() -> String {
    let newest = ["ACTIVE", "CLOSED"].map(|status| {
        format!(
            "SELECT * FROM ({SELECT_SESSION} WHERE s.chain_no = $2 AND s.status = '{status}' \
             AND s.machine_no = $1 AND s.started_ms <= $3 \
             ORDER BY s.first_seq DESC NULLS LAST LIMIT 1) AS of_{status}"
        )
    });
    format!(
        "SELECT * FROM ({}) AS s ORDER BY s.first_seq DESC NULLS LAST LIMIT 1",
        newest.join(" UNION ALL ")
    )
}

impl SessionRow {
    /// Returns the session's range of samples: from CHARGE to DROP, or to the newest sample before
    /// there is a DROP.
    #[must_use]
    pub fn range(&self) -> (i64, i64) {
        (self.first_seq.unwrap_or(0), self.last_seq.unwrap_or(i64::MAX - 1))
    }
}
