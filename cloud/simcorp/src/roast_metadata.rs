//! Writes what a recording says of a roast to its session: the metadata, and the events that a later
//! save of the recording moved. Measurements are never changed.

use contract::annotations::{EventOverride, OverrideSource, SessionMeta};
use contract::point::RoastEvent;
use contract::session::{RoastSession, RoastSessionSummary};
use contract::{Digest, EpochMs, EventKind};
use roast::recording::Recording;
use serde_json::{Value, json};
use service_client::ServiceResponse;

use crate::remote::OperatorClient;

/// The events whose times the API lets a client correct.
const CORRECTABLE: [EventKind; 3] = [EventKind::Tp, EventKind::Fc, EventKind::Drop];
/// Times that differ by less, in s, are the same: stored times are rounded.
const SAME_S: f64 = 0.5;
/// Artisan's title of a roast without a name.
const DEFAULT_TITLE: &str = "Roaster Scope";
/// The longest text that is written, in characters.
const TEXT_CHARS_MAX: usize = 1_000;

/// One save of a recording.
pub struct RecordingSave<'r> {
    pub recording: &'r Recording,
    /// The time of the first sample.
    pub begins: EpochMs,
    /// The SHA-256 of the file.
    pub file: Digest,
}

/// Writes the metadata of a save to its session. If its frames are `other` than the stored ones,
/// writes the events that the save moved, and returns their kinds. A save that was written before
/// is not written again, so that it never replaces what people have changed since.
///
/// # Errors
/// When ingestion does not answer or refuses a request.
pub async fn write(
    remote: &OperatorClient,
    session: &RoastSession,
    save: &RecordingSave<'_>,
    other: bool,
) -> anyhow::Result<Vec<EventKind>> {
    let path = ["sessions", session.summary.session_id.as_str(), "meta"];
    let stored: Option<ServiceResponse<SessionMeta>> =
        remote.ingestion.get_tagged(&remote.org, &path, &[]).await?;
    let (version, mut meta) = match stored {
        Some(stored) => (stored.etag, stored.body),
        None => (None, SessionMeta::default()),
    };
    let file = save.file.to_string();
    let written = meta.extra.get("import").and_then(|import| import.get("fileSha256"));
    if written.and_then(Value::as_str) == Some(file.as_str()) {
        return Ok(Vec::new());
    }
    let moved = if other { correct_events(remote, session, save).await? } else { Vec::new() };
    fill(&mut meta, save.recording, &file);
    remote.put(&remote.ingestion, &path, version.as_deref(), &meta).await?;
    Ok(moved)
}

/// Sets the fields that the recording has, and keeps the others.
fn fill(meta: &mut SessionMeta, recording: &Recording, file: &str) {
    let title = text(&recording.title).filter(|title| title != DEFAULT_TITLE);
    set(&mut meta.roast_profile_name, title);
    set(&mut meta.bean_name, text(&recording.beans));
    set(&mut meta.operator, text(&recording.operator));
    set(&mut meta.weight_in_g, recording.weight_in_g);
    set(&mut meta.weight_out_g, recording.weight_out_g);
    set(&mut meta.ambient_temp_c, recording.ambient_c);
    if let Some(batch) = text(&recording.batch) {
        meta.extra.insert("batchNumber".to_owned(), json!(batch));
    }
    let import = json!({"fileSha256": file, "roastId": text(&recording.roast_id)});
    meta.extra.insert("import".to_owned(), import);
}

fn set<T>(field: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *field = value;
    }
}

/// Returns a text that the database can store; `None` if it is empty.
fn text(text: &str) -> Option<String> {
    let text: String = text.trim().chars().filter(|c| *c != '\0').take(TEXT_CHARS_MAX).collect();
    Some(text).filter(|text| !text.is_empty())
}

/// Overrides the events that the save moved. Returns their kinds.
async fn correct_events(
    remote: &OperatorClient,
    session: &RoastSession,
    save: &RecordingSave<'_>,
) -> anyhow::Result<Vec<EventKind>> {
    let id = session.summary.session_id.as_str();
    let events: Vec<RoastEvent> =
        remote.get(&remote.ingestion, &["sessions", id, "events"], &[]).await?;
    let overrides: Vec<EventOverride> = CORRECTABLE
        .into_iter()
        .filter_map(|kind| moved_event(&session.summary, &events, save, kind))
        .collect();
    if !overrides.is_empty() {
        let path = ["sessions", id, "events", "overrides"];
        let body = json!({"overrides": overrides});
        remote.put(&remote.ingestion, &path, None, &body).await?;
    }
    Ok(overrides.iter().map(|one| one.event_type).collect())
}

/// Returns the override of an event that the save has at another time than the session; `None` if
/// it is the same, or outside the session.
fn moved_event(
    session: &RoastSessionSummary,
    events: &[RoastEvent],
    save: &RecordingSave<'_>,
    kind: EventKind,
) -> Option<EventOverride> {
    let at = save.begins.plus_ms(save.recording.mark_ms(kind)?);
    let elapsed_seconds = at.ms_since(session.started_at) as f64 / 1000.0;
    let same = |event: &RoastEvent| {
        let stored = event.elapsed_seconds().filter(|_| event.kind == kind);
        stored.is_some_and(|stored| (stored - elapsed_seconds).abs() <= SAME_S)
    };
    let longest = session.drop_seconds.unwrap_or(f64::INFINITY);
    if events.iter().any(same) || !(0.0..=longest).contains(&elapsed_seconds) {
        return None;
    }
    Some(EventOverride {
        event_type: kind,
        elapsed_seconds,
        source: OverrideSource::Human,
        author: None,
        actor: None,
        reason: Some("moved in a later save of the imported recording".to_owned()),
        updated_at: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_keeps_what_the_recording_does_not_have() {
        let mut meta = SessionMeta {
            bean_name: Some("Guji".to_owned()),
            producer: Some("Kochere".to_owned()),
            weight_in_g: Some(400.0),
            ..SessionMeta::default()
        };
        let recording = Recording {
            title: DEFAULT_TITLE.to_owned(),
            beans: "Guji\0 natural ".to_owned(),
            batch: "L7".to_owned(),
            weight_out_g: Some(344.4),
            ..Recording::default()
        };
        fill(&mut meta, &recording, "0a");
        assert_eq!(meta.bean_name.as_deref(), Some("Guji natural"));
        assert_eq!((meta.producer.as_deref(), meta.roast_profile_name), (Some("Kochere"), None));
        assert_eq!((meta.weight_in_g, meta.weight_out_g), (Some(400.0), Some(344.4)));
        assert_eq!(meta.extra["batchNumber"], "L7");
        assert_eq!(meta.extra["import"]["fileSha256"], "0a");
    }
}
