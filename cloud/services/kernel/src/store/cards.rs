//! Storage of the registry: the cards of agents and tools.

use ::database::sqlx::{query, query_scalar};
use ::database::{StoreError, on, on_tx};
use contract::{Actor, EpochMs, OrgId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::KernelStore;
use super::mission_row::{from_json as read, to_json};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CardKind {
    Agent,
    Tool,
}

impl CardKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Tool => "tool",
        }
    }
}

impl KernelStore {
    /// Stores a card. Replaces an earlier one.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn upsert_card(
        &self,
        org: &OrgId,
        kind: CardKind,
        (id, card): (&str, &impl Serialize),
        actor: &Actor,
        now: EpochMs,
    ) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        on_tx!(&mut tx, c => query(
            "INSERT INTO cards (org_id, kind, id, body, updated_ms) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (org_id, kind, id) DO UPDATE SET body = EXCLUDED.body, updated_ms = EXCLUDED.updated_ms")
            .bind(org.as_str()).bind(kind.as_str()).bind(id).bind(to_json(card)?).bind(now.0)
            .execute(c).await.map(drop))
        .map_err(StoreError::query("storing a card"))?;
        let action = format!("{}.register", kind.as_str());
        self.audit(&mut tx, org, actor, (&action, id, json!({"card": card})), now).await?;
        tx.commit().await
    }

    /// Returns one card.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn card<C: DeserializeOwned>(
        &self,
        org: &OrgId,
        kind: CardKind,
        id: &str,
    ) -> Result<Option<C>, StoreError> {
        let body: Option<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM cards WHERE org_id = $1 AND kind = $2 AND id = $3")
            .bind(org.as_str()).bind(kind.as_str()).bind(id).fetch_optional(pool).await)
        .map_err(StoreError::query("reading a card"))?;
        body.map(|body| read("reading a card", &body)).transpose()
    }

    /// Returns an organisation's cards of one kind, at most 1 000.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn cards<C: DeserializeOwned>(
        &self,
        org: &OrgId,
        kind: CardKind,
    ) -> Result<Vec<C>, StoreError> {
        const CARDS_MAX: i64 = 1_000;
        let rows: Vec<String> = on!(self.database, pool => query_scalar(
            "SELECT body FROM cards WHERE org_id = $1 AND kind = $2 ORDER BY id LIMIT $3")
            .bind(org.as_str()).bind(kind.as_str()).bind(CARDS_MAX).fetch_all(pool).await)
        .map_err(StoreError::query("listing cards"))?;
        rows.iter().map(|body| read("listing cards", body)).collect()
    }
}
