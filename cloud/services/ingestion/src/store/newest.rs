//! What is newest of an organisation: its machines, their frames and their events.

use ::database::machine_alias::is_machine;
use ::database::sqlx::{AssertSqlSafe, FromRow, query_as, query_scalar};
use ::database::{StoreError, on};
use contract::OrgId;

use super::queries::{EventRow, SELECT_EVENT};
use super::row::SELECT;
use super::sample_budget;
use super::{FrameRow, IngestStore};

/// A machine and its newest chain.
#[derive(Debug, Clone, FromRow)]
pub struct MachineRow {
    pub machine_no: i64,
    pub site_id: String,
    pub machine_id: String,
    pub chain_no: i64,
    pub kid: String,
    pub seen_ms: i64,
    pub gaps: String,
    /// When two agents were last seen under the device name of the chain.
    pub conflict_ms: Option<i64>,
}

/// Evaluates to the newest chain of the machine `m`: the one with the newest samples. Of chains
/// without stored frames it is the one that was seen last. A chain is also seen when frames arrive
/// that its gateway kept for long, as after its replacement: they do not make it the newest. A machine
/// may have any number of chains: only those that were seen last are compared.
const NEWEST_CHAIN: &str = "CASE WHEN (SELECT COUNT(*) FROM chains o \
     WHERE o.org_id = $1 AND o.machine_no = m.machine_no) = 1 \
     THEN (SELECT MIN(o.chain_no) FROM chains o WHERE o.org_id = $1 AND o.machine_no = m.machine_no) \
     ELSE (SELECT n.chain_no FROM (SELECT s.chain_no, s.seen_ms FROM chains s \
             WHERE s.org_id = $1 AND s.machine_no = m.machine_no \
             ORDER BY s.seen_ms DESC, s.chain_no DESC LIMIT 16) AS n \
         ORDER BY COALESCE((SELECT f.t0_ms FROM frames f WHERE f.chain_no = n.chain_no \
                            ORDER BY f.number DESC LIMIT 1), 0) DESC, \
         n.seen_ms DESC, n.chain_no DESC LIMIT 1) END";

impl IngestStore {
    /// Returns the machines of an organisation with their newest chains, at most 1 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machines(&self, org: &OrgId) -> Result<Vec<MachineRow>, StoreError> {
        self.machines_of(org, (None, None)).await
    }

    /// Returns the machines of a site, or one machine, with their newest chains, at most 1 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn machines_of(
        &self,
        org: &OrgId,
        (site, machine): (Option<&str>, Option<&str>),
    ) -> Result<Vec<MachineRow>, StoreError> {
        // The limit also keeps the newest chain from being sought for each chain of a machine.
        let sql = format!(
            "SELECT m.machine_no, m.site_id, m.machine_id, c.chain_no, c.kid, c.seen_ms, c.gaps, \
             (SELECT n.seen_ms FROM name_conflicts n WHERE n.org_id = $1 AND n.kid = c.kid) \
             AS conflict_ms FROM (SELECT m.machine_no, m.site_id, m.machine_id, \
               {NEWEST_CHAIN} AS newest_no FROM machines m WHERE m.org_id = $1 \
               AND ($2 = '' OR m.site_id = $2) AND ($3 = '' OR {}) \
               ORDER BY m.site_id, m.machine_id LIMIT 1000) AS m \
             JOIN chains c ON c.chain_no = m.newest_no ORDER BY m.site_id, m.machine_id",
            is_machine(("m.site_id", "m.machine_id"), "$1", "$3")
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(site.unwrap_or_default())
            .bind(machine.unwrap_or_default()).fetch_all(pool).await)
        .map_err(StoreError::query("listing machines"))
    }

    /// Returns a chain's newest frame that has samples.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn newest_frame(
        &self,
        org: &OrgId,
        chain_no: i64,
    ) -> Result<Option<FrameRow>, StoreError> {
        let sql = format!(
            "SELECT {SELECT} FROM frames WHERE org_id = $1 AND chain_no = $2 AND samples > 0 \
             ORDER BY number DESC LIMIT 1"
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(chain_no).fetch_optional(pool).await)
        .map_err(StoreError::query("reading a machine's newest frame"))
    }

    /// Returns a chain's newest frames, newest first: those that hold its newest `samples` samples,
    /// at most as many frames as that.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn newest_frames(
        &self,
        org: &OrgId,
        chain_no: i64,
        samples: usize,
    ) -> Result<Vec<FrameRow>, StoreError> {
        const DOING: &str = "reading a machine's newest frames";
        const FROM: &str =
            "FROM frames WHERE org_id = $1 AND chain_no = $2 ORDER BY number DESC LIMIT $3";
        let limit = i64::try_from(samples).unwrap_or(i64::MAX);
        let sizes: Vec<i64> = on!(self.database, pool =>
            query_scalar(AssertSqlSafe(format!("SELECT CAST(samples AS bigint) {FROM}")))
            .bind(org.as_str()).bind(chain_no).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let limit = sample_budget::frames_holding(&sizes, samples);
        on!(self.database, pool => query_as(AssertSqlSafe(format!("SELECT {SELECT} {FROM}")))
            .bind(org.as_str()).bind(chain_no).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))
    }

    /// Returns the newest events of an organisation, of a site or of a machine, newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn newest_events(
        &self,
        org: &OrgId,
        (site, machine): (Option<&str>, Option<&str>),
        limit: i64,
    ) -> Result<Vec<EventRow>, StoreError> {
        let of_machines = if site.is_none() && machine.is_none() {
            String::new()
        } else {
            format!(
                "AND e.machine_no IN (SELECT machine_no FROM machines WHERE org_id = $1 \
                 AND ($3 = '' OR site_id = $3) AND ($4 = '' OR {})) ",
                is_machine(("site_id", "machine_id"), "$1", "$4")
            )
        };
        let sql = format!(
            "{SELECT_EVENT} WHERE e.org_id = $1 {of_machines}ORDER BY e.arrival DESC LIMIT $2"
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(limit).bind(site.unwrap_or_default())
            .bind(machine.unwrap_or_default()).fetch_all(pool).await)
        .map_err(StoreError::query("reading the newest events"))
    }

    /// Returns a machine's newest event.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn newest_event(
        &self,
        org: &OrgId,
        machine_no: i64,
    ) -> Result<Option<EventRow>, StoreError> {
        let sql = format!(
            "{SELECT_EVENT} WHERE e.org_id = $1 AND e.machine_no = $2 ORDER BY e.arrival DESC LIMIT 1"
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.as_str()).bind(machine_no).fetch_optional(pool).await)
        .map_err(StoreError::query("reading a machine's newest event"))
    }
}
