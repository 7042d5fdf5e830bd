//! Stores the settings of single machines.

use std::collections::BTreeMap;

use ::database::sqlx::{AssertSqlSafe, query, query_as, query_scalar};
use ::database::{Database, StoreError, Tx, audit::AuditChange, on, on_tx};
use contract::{Actor, EpochMs, OrgId, Origin};
use serde_json::json;

use crate::config::Settings;

/// Inference's access to the database.
#[derive(Clone)]
pub struct InferenceStore {
    database: Database,
}

const DOING: &str = "reading a machine's settings";

fn read(body: &str) -> Result<Settings, StoreError> {
    serde_json::from_str(body).map_err(|error| StoreError::row(DOING, error))
}

impl InferenceStore {
    #[must_use]
    pub const fn new(database: Database) -> Self {
        Self { database }
    }

    #[must_use]
    pub const fn database(&self) -> &Database {
        &self.database
    }

    /// Reads the settings of a machine; `None` if it has none of its own.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn settings(&self, origin: &Origin) -> Result<Option<Settings>, StoreError> {
        let body: Option<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM inference_configs \
             WHERE org_id = $1 AND site_id = $2 AND machine_id = $3")
            .bind(origin.org.as_str()).bind(origin.site.as_str()).bind(origin.machine.as_str())
            .fetch_optional(pool).await)
        .map_err(StoreError::query(DOING))?;
        body.map(|body| read(&body)).transpose()
    }

    /// Reads the settings of an organisation's machines, by `org|site|machine`, at most 1 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn org_settings(&self, org: &OrgId) -> Result<Vec<(String, Settings)>, StoreError> {
        let rows: Vec<(String, String, String)> = on!(self.database, pool => query_as(
            "SELECT site_id, machine_id, body FROM inference_configs WHERE org_id = $1 \
             ORDER BY site_id, machine_id LIMIT 1000")
            .bind(org.as_str()).fetch_all(pool).await)
        .map_err(StoreError::query(DOING))?;
        let parse_row = |(site, machine, body): (String, String, String)| {
            Ok((format!("{org}|{site}|{machine}"), read(&body)?))
        };
        rows.into_iter().map(parse_row).collect()
    }

    /// Reads the settings of these machines. One that has none of its own gets the newest ones of
    /// its other ids, if it has an alias; those without any are left out.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn settings_of(
        &self,
        machines: &[Origin],
    ) -> Result<BTreeMap<Origin, Settings>, StoreError> {
        const MACHINES_A_QUERY: usize = 100;
        // Own settings come last and replace those of an alias.
        const OF_ALIASES: &str = "SELECT asked.org_id, asked.site_id, asked.machine_id, c.body \
             FROM machine_names asked JOIN machine_names other ON other.org_id = asked.org_id \
             AND other.site_id = asked.site_id AND other.machine_id <> asked.machine_id \
             AND COALESCE(other.current_id, other.machine_id) \
                 = COALESCE(asked.current_id, asked.machine_id) \
             JOIN inference_configs c ON c.org_id = other.org_id AND c.site_id = other.site_id \
             AND c.machine_id = other.machine_id \
             WHERE (asked.org_id, asked.site_id, asked.machine_id) IN (VALUES NAMES) \
             ORDER BY c.updated_ms";
        const OWN: &str = "SELECT org_id, site_id, machine_id, body FROM inference_configs \
             WHERE (org_id, site_id, machine_id) IN (VALUES NAMES)";
        let mut all = BTreeMap::new();
        for some in machines.chunks(MACHINES_A_QUERY) {
            let mut number = 1_usize..;
            let mut next = || number.next().unwrap_or(usize::MAX);
            let names: Vec<String> =
                some.iter().map(|_| format!("(${}, ${}, ${})", next(), next(), next())).collect();
            let names = names.join(", ");
            for sql in [OF_ALIASES, OWN] {
                let sql = sql.replace("NAMES", &names);
                let rows: Vec<(String, String, String, String)> = on!(self.database, pool => {
                    let mut q = query_as(AssertSqlSafe(sql));
                    for origin in some {
                        q = q.bind(origin.org.as_str()).bind(origin.site.as_str())
                            .bind(origin.machine.as_str());
                    }
                    q.fetch_all(pool).await
                })
                .map_err(StoreError::query(DOING))?;
                for (org, site, machine, body) in rows {
                    let origin = format!("{org}/{site}/{machine}").parse::<Origin>();
                    let origin = origin.map_err(|error| StoreError::row(DOING, error))?;
                    all.insert(origin, read(&body)?);
                }
            }
        }
        Ok(all)
    }

    /// Writes a machine's settings, or with `None` deletes them, and audits the change. Returns
    /// false if there were none to delete.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn save_settings(
        &self,
        origin: &Origin,
        settings: Option<&Settings>,
        actor: &Actor,
        now: EpochMs,
    ) -> Result<bool, StoreError> {
        let mut tx: Tx = self.database.begin().await?;
        let (org, site, machine) =
            (origin.org.as_str(), origin.site.as_str(), origin.machine.as_str());
        let changed = match settings {
            Some(settings) => {
                let body = json!(settings).to_string();
                on_tx!(&mut tx, c => query(
                    "INSERT INTO inference_configs (org_id, site_id, machine_id, body, updated_ms) \
                     VALUES ($1, $2, $3, $4, $5) ON CONFLICT (org_id, site_id, machine_id) \
                     DO UPDATE SET body = EXCLUDED.body, updated_ms = EXCLUDED.updated_ms")
                    .bind(org).bind(site).bind(machine).bind(body).bind(now.0)
                    .execute(c).await.map(|done| done.rows_affected()))
            }
            None => on_tx!(&mut tx, c => query(
                "DELETE FROM inference_configs WHERE org_id = $1 AND site_id = $2 AND machine_id = $3")
                .bind(org).bind(site).bind(machine)
                .execute(c).await.map(|done| done.rows_affected())),
        }
        .map_err(StoreError::query("writing a machine's settings"))?;
        let action = if settings.is_some() { "inference.set" } else { "inference.unset" };
        let subject = origin.to_string();
        let details = json!({"settings": settings});
        let change =
            AuditChange { org: &origin.org, actor, at: now, action, subject: &subject, details };
        if changed > 0 {
            tx.audit(&change).await?;
            tx.commit().await?;
        }
        Ok(changed > 0)
    }
}
