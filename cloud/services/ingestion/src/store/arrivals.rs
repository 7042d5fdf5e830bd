//! Rows in the order of their arrival, for the live tail and the streams. Arrival numbers come from a
//! sequence: a row may be committed after rows with larger numbers.

use std::fmt::Write as _;

use ::database::machine_alias::is_machine;
use ::database::sqlx::{AssertSqlSafe, FromRow, query_as, query_scalar};
use ::database::{Pool, StoreError, on};
use contract::OrgId;

use super::row::SELECT;
use super::sample_budget::{self, SAMPLES_A_READ};
use super::{EventRow, FrameRow, IngestStore};

/// Selects the organisation, site, machine and key of a frame, beside the frame's own columns.
const NAMES: &str = "org_id, \
    (SELECT site_id FROM machines m WHERE m.machine_no = frames.machine_no) AS site_id, \
    (SELECT machine_id FROM machines m WHERE m.machine_no = frames.machine_no) AS machine_id, \
    (SELECT kid FROM chains c WHERE c.chain_no = frames.chain_no) AS kid";

const SELECT_ARRIVED_EVENT: &str = "\
SELECT e.org_id, e.arrival, e.session_id, m.site_id, m.machine_id, e.machine_no, e.kind, e.source, \
       e.at_ms, e.elapsed_s, e.bt_c, e.note, e.trust, e.published \
FROM events e JOIN machines m ON m.machine_no = e.machine_no ";

/// The most of the largest frames that one statement may read.
const LARGE_FRAMES: usize = SAMPLES_A_READ / contract::frame::SAMPLES_MAX;

/// A frame as the live streams read it: with its origin and key.
#[derive(Debug, FromRow)]
pub struct ArrivedFrame {
    pub org_id: String,
    pub site_id: String,
    pub machine_id: String,
    pub kid: String,
    #[sqlx(flatten)]
    pub frame: FrameRow,
}

/// A frame that has arrived, before it is read.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Arrival {
    pub arrival: i64,
    pub org_id: String,
    /// The number of its samples.
    pub samples: i64,
}

const SELECT_ARRIVAL: &str =
    "SELECT arrival, org_id, CAST(samples AS bigint) AS samples FROM frames";

/// An event as the live streams read it: with its organisation.
#[derive(Debug, FromRow)]
pub struct ArrivedEvent {
    pub org_id: String,
    #[sqlx(flatten)]
    pub event: EventRow,
}

/// The site and the machine that rows are read of; `None`: of all.
pub type MachineNames<'a> = (Option<&'a str>, Option<&'a str>);

/// Arrival numbers after the first and up to the second.
pub type ArrivalRange = (i64, i64);

impl IngestStore {
    /// Returns which frames of all organisations have arrived after `after`, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn arrivals_after(&self, after: i64, limit: i64) -> Result<Vec<Arrival>, StoreError> {
        let sql = format!("{SELECT_ARRIVAL} WHERE arrival > $1 ORDER BY arrival LIMIT $2");
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(after).bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query("looking for new frames"))
    }

    /// Returns which of these frames have been committed by now, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn arrivals_at(&self, arrivals: &[i64]) -> Result<Vec<Arrival>, StoreError> {
        let sql = |of: &str| AssertSqlSafe(format!("{SELECT_ARRIVAL} WHERE {of} ORDER BY arrival"));
        match self.database.pool() {
            Pool::Postgres(pool) => {
                query_as(sql(AMONG_POSTGRES)).bind(arrivals).fetch_all(pool).await
            }
            Pool::Sqlite(pool) => {
                query_as(sql(AMONG_SQLITE)).bind(json_of(arrivals)).fetch_all(pool).await
            }
        }
        .map_err(StoreError::query("looking for late frames"))
    }

    /// Returns the frames with these arrival numbers, oldest first. The caller bounds their samples.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn frames_of(&self, arrivals: &[i64]) -> Result<Vec<ArrivedFrame>, StoreError> {
        if arrivals.is_empty() {
            return Ok(Vec::new());
        }
        let sql = |of: &str| {
            AssertSqlSafe(format!(
                "SELECT {NAMES}, {SELECT} FROM frames WHERE {of} ORDER BY arrival"
            ))
        };
        match self.database.pool() {
            Pool::Postgres(pool) => {
                query_as(sql(AMONG_POSTGRES)).bind(arrivals).fetch_all(pool).await
            }
            Pool::Sqlite(pool) => {
                query_as(sql(AMONG_SQLITE)).bind(json_of(arrivals)).fetch_all(pool).await
            }
        }
        .map_err(StoreError::query("reading new frames"))
    }

    /// Returns frames after `after`, oldest first, of one organisation or of all: at most `limit`,
    /// and as few of them as their samples allow.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn frames_after(
        &self,
        org: Option<&OrgId>,
        after: i64,
        limit: i64,
    ) -> Result<Vec<ArrivedFrame>, StoreError> {
        self.frames_between(org, (None, None), (after, i64::MAX), (limit, SAMPLES_A_READ)).await
    }

    /// Returns frames of a range, oldest first, of one organisation or of all, or of machines of an
    /// organisation: at most as many frames as the first limit, and as many samples as the second,
    /// but at least one frame.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn frames_between(
        &self,
        org: Option<&OrgId>,
        (site, machine): MachineNames<'_>,
        (after, up_to): ArrivalRange,
        (limit, samples): (i64, usize),
    ) -> Result<Vec<ArrivedFrame>, StoreError> {
        const DOING: &str = "reading new frames";
        let of_machines = if site.is_none() && machine.is_none() {
            String::new()
        } else {
            format!(
                "AND machine_no IN (SELECT machine_no FROM machines WHERE org_id = $3 \
                 AND ($5 = '' OR site_id = $5) AND ($6 = '' OR {})) ",
                is_machine(("site_id", "machine_id"), "$3", "$6")
            )
        };
        let from = format!(
            "FROM frames WHERE arrival > $1 AND arrival <= $2 \
             AND {} {of_machines}ORDER BY arrival LIMIT $4",
            of_org("org_id", org.is_some())
        );
        let org = org.map(OrgId::as_str);
        let (site, machine) = (site.unwrap_or_default(), machine.unwrap_or_default());
        let sizes: Vec<i64> = on!(self.database, pool =>
            query_scalar(AssertSqlSafe(format!("SELECT CAST(samples AS bigint) {from}")))
            .bind(after).bind(up_to).bind(org).bind(limit).bind(site).bind(machine)
            .fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        if sizes.is_empty() {
            return Ok(Vec::new());
        }
        let limit = sample_budget::frames_within(&sizes, samples);
        let sql = format!("SELECT {NAMES}, {SELECT} {from}");
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(after).bind(up_to).bind(org).bind(limit).bind(site).bind(machine)
            .fetch_all(pool).await)
        .map_err(StoreError::query(DOING))
    }

    /// Returns the frames with these arrival numbers whose transactions have been committed by now,
    /// oldest first, of one organisation or of all. Of large frames it returns only the first ones.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn frames_at(
        &self,
        org: Option<&OrgId>,
        arrivals: &[i64],
    ) -> Result<Vec<ArrivedFrame>, StoreError> {
        if arrivals.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "SELECT {NAMES}, {SELECT} FROM frames WHERE arrival IN ({}) \
             AND ($1 IS NULL OR org_id = $1) ORDER BY arrival LIMIT {LARGE_FRAMES}",
            list_of(arrivals)
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.map(OrgId::as_str)).fetch_all(pool).await)
        .map_err(StoreError::query("reading late frames"))
    }

    /// Returns events after `after`, oldest first, of one organisation or of all.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events_after(
        &self,
        org: Option<&OrgId>,
        after: i64,
        limit: i64,
    ) -> Result<Vec<ArrivedEvent>, StoreError> {
        self.events_between(org, (None, None), (after, i64::MAX), limit).await
    }

    /// Returns events of a range, oldest first, of one organisation or of all, or of machines of an
    /// organisation.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events_between(
        &self,
        org: Option<&OrgId>,
        (site, machine): MachineNames<'_>,
        (after, up_to): ArrivalRange,
        limit: i64,
    ) -> Result<Vec<ArrivedEvent>, StoreError> {
        let sql = format!(
            "{SELECT_ARRIVED_EVENT} WHERE e.arrival > $1 AND e.arrival <= $2 \
             AND {} \
             AND ($5 = '' OR m.site_id = $5) AND ($6 = '' OR {}) \
             ORDER BY e.arrival LIMIT $4",
            of_org("e.org_id", org.is_some()),
            is_machine(("m.site_id", "m.machine_id"), "$3", "$6")
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(after).bind(up_to).bind(org.map(OrgId::as_str)).bind(limit)
            .bind(site.unwrap_or_default()).bind(machine.unwrap_or_default()).fetch_all(pool).await)
        .map_err(StoreError::query("reading new events"))
    }

    /// Returns the events with these arrival numbers whose transactions have been committed by now,
    /// oldest first, of one organisation or of all.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn events_at(
        &self,
        org: Option<&OrgId>,
        arrivals: &[i64],
    ) -> Result<Vec<ArrivedEvent>, StoreError> {
        if arrivals.is_empty() {
            return Ok(Vec::new());
        }
        let sql = format!(
            "{SELECT_ARRIVED_EVENT} WHERE e.arrival IN ({}) AND ($1 IS NULL OR e.org_id = $1) \
             ORDER BY e.arrival",
            list_of(arrivals)
        );
        on!(self.database, pool => query_as(AssertSqlSafe(sql))
            .bind(org.map(OrgId::as_str)).fetch_all(pool).await)
        .map_err(StoreError::query("reading late events"))
    }

    /// Returns the newest arrival numbers of frames and those of events, at most `limit` of each,
    /// the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn newest_arrivals(&self, limit: i64) -> Result<(Vec<i64>, Vec<i64>), StoreError> {
        const DOING: &str = "finding the newest arrivals";
        let frames: Vec<i64> = on!(self.database, pool =>
            query_scalar("SELECT arrival FROM frames ORDER BY arrival DESC LIMIT $1")
            .bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let events: Vec<i64> = on!(self.database, pool =>
            query_scalar("SELECT arrival FROM events ORDER BY arrival DESC LIMIT $1")
            .bind(limit).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        Ok((frames, events))
    }
}

/// The condition that a frame is among those that are bound: one text for any number of them, so that
/// the statement is planned once.
const AMONG_POSTGRES: &str = "arrival = ANY($1)";
const AMONG_SQLITE: &str = "arrival IN (SELECT value FROM json_each($1))";

fn json_of(numbers: &[i64]) -> String {
    serde_json::Value::from(numbers).to_string()
}

/// Returns the condition on the organisation `$3`, or that it is absent. Two statements and not one
/// condition for both: with it no index on organisations is used, and the rows of all are read.
fn of_org(column: &str, one: bool) -> String {
    if one { format!("{column} = $3") } else { "CAST($3 AS text) IS NULL".to_owned() }
}

/// Returns numbers as a list of SQL.
fn list_of(numbers: &[i64]) -> String {
    let mut list = String::new();
    for number in numbers {
        let comma = if list.is_empty() { "" } else { ", " };
        let _ = write!(list, "{comma}{number}");
    }
    list
}
