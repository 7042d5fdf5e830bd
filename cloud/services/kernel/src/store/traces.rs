//! Storage of traces: what agents did, step by step. Every attempt has its own trace.

use ::database::sqlx::{AssertSqlSafe, query, query_scalar};
use ::database::{StoreError, on};
use contract::{EpochMs, OrgId};

use super::KernelStore;
use super::mission_row::from_json;
use super::select::Select;
use crate::trace::Trace;

/// How many traces, the newest, a text search examines; limited because a trace may be long.
const SEARCHED_TRACES_MAX: i64 = 2_000;
/// How many characters, the first, of each trace a text search examines.
const SEARCHED_CHARACTERS_MAX: usize = 128 * 1024;
/// A page ends with the trace that reaches this size, because a trace may have 1 MiB.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Traces, newest first.
#[derive(Debug, Clone, Default)]
pub struct TracePage {
    pub traces: Vec<Trace>,
    /// Whether there may be older traces.
    pub may_continue: bool,
}

/// Which traces to list.
#[derive(Debug, Clone, Default)]
pub struct TraceFilter {
    pub mission: Option<String>,
    pub agent: Option<String>,
    pub status: Option<String>,
    /// Text that the trace contains; case is ignored.
    pub text: Option<String>,
    /// The page starts after this trace: (started, id).
    pub after: Option<(i64, String)>,
    pub limit: i64,
}

impl KernelStore {
    /// Stores a trace. Replaces one with the same id. Returns whether it is new.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn upsert_trace(
        &self,
        org: &OrgId,
        trace: &Trace,
        now: EpochMs,
    ) -> Result<bool, StoreError> {
        let existing: Option<i64> = on!(self.database, pool => query_scalar(
            "SELECT stored_ms FROM traces WHERE org_id = $1 AND trace_id = $2")
            .bind(org.as_str()).bind(&trace.trace_id).fetch_optional(pool).await)
        .map_err(StoreError::query("looking for a trace"))?;
        on!(self.database, pool => query(
            "INSERT INTO traces (org_id, trace_id, mission_id, agent_id, status, started_ms, stored_ms, body) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (org_id, trace_id) DO UPDATE SET \
             mission_id = EXCLUDED.mission_id, agent_id = EXCLUDED.agent_id, status = EXCLUDED.status, \
             started_ms = EXCLUDED.started_ms, stored_ms = EXCLUDED.stored_ms, body = EXCLUDED.body")
            .bind(org.as_str()).bind(&trace.trace_id).bind(&trace.mission_id).bind(&trace.agent_id)
            .bind(trace.status()).bind(trace.started_at.0).bind(now.0)
            .bind(super::mission_row::to_json(trace)?).execute(pool).await.map(|_| existing.is_none()))
        .map_err(StoreError::query("storing a trace"))
    }

    /// Returns traces, newest first: as many as the filter's limit, or fewer if they are large.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn traces(&self, org: &OrgId, filter: &TraceFilter) -> Result<TracePage, StoreError> {
        let mut select = Select::of("body, started_ms, trace_id", "traces", org.as_str())
            .equal("mission_id", filter.mission.as_deref())
            .equal("agent_id", filter.agent.as_deref())
            .equal("status", filter.status.as_deref());
        if let Some((time, id)) = &filter.after {
            let parameter = select.bind(id);
            select = select.and(&format!("(started_ms, trace_id) < ({time}, ${parameter})"));
        }
        let order = ("started_ms", "trace_id");
        let (sql, values) = if let Some(text) = &filter.text {
            let text = text.to_lowercase();
            let plain = text.replace('!', "!!").replace('%', "!%").replace('_', "!_");
            let parameter = select.bind(&format!("%{plain}%"));
            let searched = format!("substr(body, 1, {SEARCHED_CHARACTERS_MAX})");
            let condition = format!("lower({searched}) LIKE ${parameter} ESCAPE '!'");
            let columns = "body, started_ms, trace_id";
            select.newest_where(columns, &condition, order, (SEARCHED_TRACES_MAX, filter.limit))
        } else {
            select.newest(order, filter.limit)
        };
        let newer =
            "SUM(length(body)) OVER (ORDER BY started_ms DESC, trace_id DESC) - length(body)";
        let sql = format!(
            "SELECT body FROM (SELECT body, started_ms, trace_id, {newer} AS newer FROM ({sql}) \
             AS newest) AS sized WHERE newer < {PAGE_BYTES_MAX} \
             ORDER BY started_ms DESC, trace_id DESC"
        );
        let rows: Vec<String> = on!(self.database, pool => {
            let mut q = query_scalar(AssertSqlSafe(sql));
            for value in &values {
                q = q.bind(value);
            }
            q.fetch_all(pool).await
        })
        .map_err(StoreError::query("listing traces"))?;
        let bytes: usize = rows.iter().map(String::len).sum();
        let is_full = i64::try_from(rows.len()).is_ok_and(|n| n >= filter.limit);
        // One trace that this version cannot read costs only itself.
        let readable = |body: &String| {
            from_json("listing traces", body)
                .inspect_err(|error| tracing::warn!(%error, %org, "left a trace out of a list"))
                .ok()
        };
        let traces = rows.iter().filter_map(readable).collect();
        Ok(TracePage { traces, may_continue: is_full || bytes >= PAGE_BYTES_MAX })
    }
}
