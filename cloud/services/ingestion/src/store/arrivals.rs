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
        let from = frames_of_range(org.is_some(), site.is_some() || machine.is_some());
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
            "{SELECT_ARRIVED_EVENT} WHERE {} \
             AND ($5 = '' OR m.site_id = $5) AND ($6 = '' OR {}) ORDER BY {} LIMIT $4",
            in_range(&EVENT_COLUMNS, org.is_some()),
            is_machine(("m.site_id", "m.machine_id"), "$3", "$6"),
            order_of(&EVENT_COLUMNS, org.is_some()),
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

/// How a statement names the organisation and the arrival number of its rows.
struct RangeColumns {
    org: &'static str,
    arrival: &'static str,
}

const FRAME_COLUMNS: RangeColumns = RangeColumns { org: "org_id", arrival: "arrival" };
const EVENT_COLUMNS: RangeColumns = RangeColumns { org: "e.org_id", arrival: "e.arrival" };

/// Returns the condition that a row of all organisations, or of the organisation `$3`, arrived after
/// `$1` and up to `$2`.
///
/// Of one organisation it compares pairs, which only the index of pairs serves. Given two conditions,
/// PostgreSQL may take the index of arrivals and read the rows of all other organisations.
fn in_range(RangeColumns { org, arrival }: &RangeColumns, of_one: bool) -> String {
    if of_one {
        format!("({org}, {arrival}) > ($3, $1) AND ({org}, {arrival}) <= ($3, $2)")
    } else {
        format!("{arrival} > $1 AND {arrival} <= $2 AND CAST($3 AS text) IS NULL")
    }
}

/// Returns the order of arrival, in the columns of the index that [`in_range`] is served by.
fn order_of(RangeColumns { org, arrival }: &RangeColumns, of_one: bool) -> String {
    if of_one { format!("{org}, {arrival}") } else { (*arrival).to_owned() }
}

/// Returns the part of a statement that finds the frames of a range, at most `$4`: of machines
/// whose site is `$5` and whose name is `$6`, where these are not empty.
fn frames_of_range(of_one: bool, of_machines: bool) -> String {
    let machines = if of_machines {
        format!(
            "AND machine_no IN (SELECT machine_no FROM machines WHERE org_id = $3 \
             AND ($5 = '' OR site_id = $5) AND ($6 = '' OR {})) ",
            is_machine(("site_id", "machine_id"), "$3", "$6")
        )
    } else {
        String::new()
    };
    format!(
        "FROM frames WHERE {} {machines}ORDER BY {} LIMIT $4",
        in_range(&FRAME_COLUMNS, of_one),
        order_of(&FRAME_COLUMNS, of_one)
    )
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

#[cfg(test)]
mod tests {
    use ::database::sqlx::raw_sql;
    use testbed::Postgres;

    use super::*;

    /// An organisation sends nearly everything: PostgreSQL expects to find its rows at once in the
    /// order of arrival, and another organisation's too late.
    #[tokio::test]
    async fn the_rows_of_an_organisation_are_found_by_its_index_on_postgresql() {
        let cluster = Postgres::start().await.unwrap();
        let database = service_testbed::open_database(cluster.url()).await;
        let Pool::Postgres(pool) = database.pool() else { panic!("PostgreSQL") };
        raw_sql(
            "INSERT INTO frames (org_id, chain_no, number, machine_no, boot, mono_ms, clock, \
             first_seq, samples, t0_ms, offsets_ms, trust, digest, signed, received_ms) \
             SELECT CASE WHEN n % 100 = 0 THEN 'calm' ELSE 'flood' END, 1, n, 1, 1, n, 0, n, 1, \
             n, '{0}', 0, '', '', n FROM generate_series(1, 30000) AS n; \
             INSERT INTO events (org_id, session_id, machine_no, kind, source, seq, at_ms, \
             elapsed_s, trust) SELECT CASE WHEN n % 100 = 0 THEN 'calm' ELSE 'flood' END, 'S-1', \
             1, 'FC', 'MACHINE', n, n, 0, 0 FROM generate_series(1, 30000) AS n; \
             ANALYZE frames; ANALYZE events",
        )
        .execute(pool)
        .await
        .unwrap();
        let statements = [
            (format!("SELECT number {}", frames_of_range(true, false)), "frames_default_of_org on"),
            (
                format!(
                    "SELECT kind FROM events e WHERE {} ORDER BY {} LIMIT $4",
                    in_range(&EVENT_COLUMNS, true),
                    order_of(&EVENT_COLUMNS, true)
                ),
                "events_arrived_of_org on",
            ),
        ];
        for (sql, index) in statements {
            for org in ["'calm'", "'flood'"] {
                let values = [("$1", "100"), ("$2", "29000"), ("$3", org), ("$4", "500")];
                let sql = values.iter().fold(sql.clone(), |sql, (n, value)| sql.replace(n, value));
                let plan: Vec<String> = query_scalar(AssertSqlSafe(format!("EXPLAIN {sql}")))
                    .fetch_all(pool)
                    .await
                    .unwrap();
                let plan = plan.join("\n");
                assert!(plan.contains(index), "{org}: {plan}");
                assert!(!plan.contains("Seq Scan") && !plan.contains("Sort"), "{org}: {plan}");
            }
        }
    }
}
