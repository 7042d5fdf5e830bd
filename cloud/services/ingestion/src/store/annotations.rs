//! Stores what people and workers write about sessions: meta, notes, overrides and reports.

use ::database::sqlx::{query, query_as, query_scalar};
use ::database::{StoreError, on, on_tx};
use contract::annotations::{EventOverride, RoastReport, SessionMeta, SessionNote};
use contract::{Actor, EpochMs, OrgId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::IngestStore;

/// A stored value, and how often it has been written.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    pub version: i64,
    pub value: T,
}

/// The actor and the time of a change.
#[derive(Debug, Clone, Copy)]
pub struct ChangedBy<'b> {
    pub actor: &'b Actor,
    pub now: EpochMs,
}

pub(super) fn read<T: DeserializeOwned>(doing: &'static str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::row(doing, error))
}

pub(super) fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::row("writing JSON", error))
}

impl IngestStore {
    pub(super) async fn audit(
        tx: &mut ::database::Tx,
        org: &OrgId,
        by: ChangedBy<'_>,
        (action, subject, details): (&str, &str, Value),
    ) -> Result<(), StoreError> {
        let ChangedBy { actor, now: at } = by;
        tx.audit(&::database::audit::AuditChange { org, actor, at, action, subject, details }).await
    }

    /// Returns the revision of a session. It changes with each write to the session's meta or
    /// overrides, and with each new event.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn revision(&self, org: &OrgId, session: &str) -> Result<String, StoreError> {
        let (meta, overrides, override_updates, events, arrived): (i64, i64, i64, i64, i64) =
            on!(self.database, pool => query_as(
                "SELECT COALESCE((SELECT version FROM session_meta \
                                  WHERE org_id = $1 AND session_id = $2), 0), \
                 (SELECT count(*) FROM session_overrides WHERE org_id = $1 AND session_id = $2), \
                 COALESCE((SELECT CAST(sum(updated_ms) AS bigint) FROM session_overrides \
                           WHERE org_id = $1 AND session_id = $2), 0), \
                 (SELECT count(*) FROM events WHERE org_id = $1 AND session_id = $2), \
                 COALESCE((SELECT max(arrival) FROM events WHERE org_id = $1 AND session_id = $2), 0)")
                .bind(org.as_str()).bind(session).fetch_one(pool).await)
            .map_err(StoreError::query("reading a session's revision"))?;
        Ok(format!("{meta}.{overrides}.{override_updates}.{events}.{arrived}"))
    }

    /// Returns the meta of a session; version 0 and empty if it was never written.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn meta(
        &self,
        org: &OrgId,
        session: &str,
    ) -> Result<Versioned<SessionMeta>, StoreError> {
        const DOING: &str = "reading a session's meta";
        let row: Option<(i64, String)> = on!(self.database, pool => query_as(
            "SELECT version, body FROM session_meta WHERE org_id = $1 AND session_id = $2")
            .bind(org.as_str()).bind(session).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        Ok(match row {
            Some((version, body)) => Versioned { version, value: read(DOING, &body)? },
            None => Versioned { version: 0, value: SessionMeta::default() },
        })
    }

    /// Writes the version after `before`. Returns `None` when another caller wrote it first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_meta(
        &self,
        org: &OrgId,
        session: &str,
        before: i64,
        meta: &SessionMeta,
        by: ChangedBy<'_>,
    ) -> Result<Option<i64>, StoreError> {
        let mut tx = self.database.begin().await?;
        let set: Option<i64> = on_tx!(&mut tx, c => query_scalar(
            "INSERT INTO session_meta (org_id, session_id, version, updated_ms, body, profile_name) \
             VALUES ($1, $2, $3 + 1, $4, $5, $6) ON CONFLICT (org_id, session_id) DO UPDATE SET \
             version = EXCLUDED.version, updated_ms = EXCLUDED.updated_ms, body = EXCLUDED.body, \
             profile_name = EXCLUDED.profile_name \
             WHERE session_meta.version = EXCLUDED.version - 1 RETURNING version")
            .bind(org.as_str()).bind(session).bind(before).bind(by.now.0).bind(text(meta)?)
            .bind(meta.roast_profile_name.as_deref()).fetch_optional(c).await)
        .map_err(StoreError::query("writing a session's meta"))?;
        if set.is_some() {
            Self::audit(&mut tx, org, by, ("session.meta", session, json!({"meta": meta}))).await?;
            tx.commit().await?;
        }
        Ok(set)
    }

    /// Returns the notes of a session, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn notes(
        &self,
        org: &OrgId,
        session: &str,
        (limit, offset): (i64, i64),
    ) -> Result<Vec<SessionNote>, StoreError> {
        const DOING: &str = "listing notes";
        let rows: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM session_notes WHERE org_id = $1 AND session_id = $2 \
             ORDER BY created_ms DESC, note_id DESC LIMIT $3 OFFSET $4")
            .bind(org.as_str()).bind(session).bind(limit).bind(offset).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.iter().map(|body| read(DOING, body)).collect()
    }

    /// Adds a note to a session.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_note(
        &self,
        org: &OrgId,
        session: &str,
        note: &SessionNote,
        by: ChangedBy<'_>,
    ) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        on_tx!(&mut tx, c => query(
            "INSERT INTO session_notes (org_id, note_id, session_id, created_ms, body) \
             VALUES ($1, $2, $3, $4, $5)")
            .bind(org.as_str()).bind(&note.note_id).bind(session).bind(note.created_at.0)
            .bind(text(note)?).execute(c).await.map(drop))
        .map_err(StoreError::query("adding a note"))?;
        let details = json!({"noteId": note.note_id});
        Self::audit(&mut tx, org, by, ("session.note", session, details)).await?;
        tx.commit().await
    }

    /// Returns the event overrides of a session.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn overrides(
        &self,
        org: &OrgId,
        session: &str,
    ) -> Result<Vec<EventOverride>, StoreError> {
        const DOING: &str = "listing overrides";
        let rows: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM session_overrides WHERE org_id = $1 AND session_id = $2 ORDER BY kind")
            .bind(org.as_str()).bind(session).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.iter().map(|body| read(DOING, body)).collect()
    }

    /// Writes each override under its event kind; overrides of other kinds do not change.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn set_overrides(
        &self,
        org: &OrgId,
        session: &str,
        overrides: &[EventOverride],
        by: ChangedBy<'_>,
    ) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        for one in overrides {
            on_tx!(&mut tx, c => query(
                "INSERT INTO session_overrides (org_id, session_id, kind, updated_ms, body) \
                 VALUES ($1, $2, $3, $4, $5) ON CONFLICT (org_id, session_id, kind) DO UPDATE SET \
                 updated_ms = EXCLUDED.updated_ms, body = EXCLUDED.body")
                .bind(org.as_str()).bind(session).bind(one.event_type.as_str()).bind(by.now.0)
                .bind(text(one)?).execute(c).await.map(drop))
            .map_err(StoreError::query("writing an override"))?;
        }
        let details = json!({"overrides": overrides});
        Self::audit(&mut tx, org, by, ("session.overrides", session, details)).await?;
        tx.commit().await
    }

    /// Returns the reports of a session, the newest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn reports(
        &self,
        org: &OrgId,
        session: &str,
        (limit, offset): (i64, i64),
    ) -> Result<Vec<RoastReport>, StoreError> {
        const DOING: &str = "listing reports";
        let rows: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM reports WHERE org_id = $1 AND session_id = $2 \
             ORDER BY created_ms DESC, report_id DESC LIMIT $3 OFFSET $4")
            .bind(org.as_str()).bind(session).bind(limit).bind(offset).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        rows.iter().map(|body| read(DOING, body)).collect()
    }

    /// Returns a session's report of a kind.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn report_of_kind(
        &self,
        org: &OrgId,
        session: &str,
        kind: &str,
    ) -> Result<Option<RoastReport>, StoreError> {
        const DOING: &str = "reading a session's report";
        let row: Option<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM reports WHERE org_id = $1 AND session_id = $2 AND kind = $3")
            .bind(org.as_str()).bind(session).bind(kind).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(|body| read(DOING, &body)).transpose()
    }

    /// Returns a report.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn report(&self, org: &OrgId, id: &str) -> Result<Option<RoastReport>, StoreError> {
        const DOING: &str = "reading a report";
        let row: Option<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM reports WHERE org_id = $1 AND report_id = $2")
            .bind(org.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        row.map(|body| read(DOING, &body)).transpose()
    }

    /// Stores a report. A session keeps only the first report of each kind. Returns the stored
    /// report, and whether it is this one; `None` if its id belongs to another report.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn add_report(
        &self,
        org: &OrgId,
        report: &RoastReport,
        by: ChangedBy<'_>,
    ) -> Result<Option<(RoastReport, bool)>, StoreError> {
        const DOING: &str = "storing a report";
        let (session, kind) = (report.session_id.as_str(), report.report.report_kind.as_str());
        let id = report.report.report_id.as_deref().unwrap_or_default();
        let mut tx = self.database.begin().await?;
        let inserted = on_tx!(&mut tx, c => query(
            "INSERT INTO reports (org_id, report_id, session_id, kind, created_ms, body) \
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING")
            .bind(org.as_str()).bind(id).bind(session).bind(kind).bind(report.created_at.0)
            .bind(text(report)?).execute(c).await.map(|done| done.rows_affected()))
        .map_err(StoreError::query(DOING))?;
        if inserted > 0 {
            let details = json!({"reportId": id, "reportKind": kind});
            Self::audit(&mut tx, org, by, ("session.report", session, details)).await?;
            tx.commit().await?;
            return Ok(Some((report.clone(), true)));
        }
        drop(tx);
        Ok(self.report_of_kind(org, session, kind).await?.map(|existing| (existing, false)))
    }
}
