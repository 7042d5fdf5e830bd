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
/// The reason of the overrides that a save writes, by which the next save knows them.
const MOVED: &str = "moved in a later save of the imported recording";
/// The most earlier saves of a roast that its session's metadata names.
const EARLIER_SAVES_MAX: usize = 100;
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
    if written_saves(&meta).contains(&file) {
        return Ok(Vec::new());
    }
    let moved = if other { correct_events(remote, session, save).await? } else { Vec::new() };
    fill(&mut meta, save.recording, &file);
    remote.put(&remote.ingestion, &path, version.as_deref(), &meta).await?;
    Ok(moved)
}

/// Returns the digests of the saves that were written to a session, the newest first.
fn written_saves(meta: &SessionMeta) -> Vec<String> {
    let import = meta.extra.get("import");
    let newest = import.and_then(|import| import.get("fileSha256"));
    let earlier = import.and_then(|import| import.get("earlierSha256")?.as_array());
    let all = newest.into_iter().chain(earlier.into_iter().flatten());
    all.filter_map(Value::as_str).map(str::to_owned).collect()
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
    let mut earlier = written_saves(meta);
    earlier.truncate(EARLIER_SAVES_MAX);
    let roast_id = text(&recording.roast_id);
    let import = json!({"fileSha256": file, "earlierSha256": earlier, "roastId": roast_id});
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
    let path = ["sessions", id, "events", "overrides"];
    let earlier: Vec<EventOverride> = remote.get(&remote.ingestion, &path, &[]).await?;
    let overrides: Vec<EventOverride> = CORRECTABLE
        .into_iter()
        .filter_map(|kind| moved_event(&session.summary, (&events, &earlier), save, kind))
        .collect();
    if !overrides.is_empty() {
        let body = json!({"overrides": overrides});
        remote.put(&remote.ingestion, &path, None, &body).await?;
    }
    Ok(overrides.iter().map(|one| one.event_type).collect())
}

/// Returns the override of an event that the save has at another time than the session; `None` if
/// it is the same, or outside the session. An earlier save's override goes before the event; the
/// override of a person does not, so that a save that did not move the event keeps it.
fn moved_event(
    session: &RoastSessionSummary,
    (events, overrides): (&[RoastEvent], &[EventOverride]),
    save: &RecordingSave<'_>,
    kind: EventKind,
) -> Option<EventOverride> {
    let at = save.begins.plus_ms(save.recording.mark_ms(kind)?);
    let elapsed_seconds = at.ms_since(session.started_at) as f64 / 1000.0;
    let is_same = |stored: f64| (stored - elapsed_seconds).abs() <= SAME_S;
    let of_save =
        overrides.iter().find(|one| one.event_type == kind && one.reason.as_deref() == Some(MOVED));
    let same = if let Some(earlier) = of_save {
        is_same(earlier.elapsed_seconds)
    } else {
        let mut stored = events.iter().filter(|event| event.kind == kind);
        stored.any(|event| event.elapsed_seconds().is_some_and(is_same))
    };
    let longest = session.drop_seconds.unwrap_or(f64::INFINITY);
    if same || !(0.0..=longest).contains(&elapsed_seconds) {
        return None;
    }
    Some(EventOverride {
        event_type: kind,
        elapsed_seconds,
        source: OverrideSource::Human,
        author: None,
        actor: None,
        reason: Some(MOVED.to_owned()),
        updated_at: None,
    })
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // small, exact numbers
mod tests {
    use roast::sample::Sample;

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

    #[test]
    fn every_save_that_was_written_is_remembered() {
        let mut meta = SessionMeta::default();
        for file in ["0a", "0b", "0c"] {
            assert!(!written_saves(&meta).contains(&file.to_owned()));
            fill(&mut meta, &Recording::default(), file);
        }
        assert_eq!(written_saves(&meta), ["0c", "0b", "0a"]);
        // As it was written before there was a list.
        meta.extra.insert("import".to_owned(), json!({"fileSha256": "0d"}));
        assert_eq!(written_saves(&meta), ["0d"]);
    }

    #[test]
    fn a_second_correction_moves_what_the_first_has_moved() {
        let session = json!({
            "orgId": "org", "siteId": "leipzig", "machineId": "r-1", "sessionId": "S-1",
            "startedAt": EpochMs(0), "endedAt": EpochMs(600_000), "status": "CLOSED",
            "telemetryPoints": 601, "verifiedPoints": 601, "unsignedPoints": 0, "failedPoints": 0,
            "deviceIds": [], "completeness": "complete"
        });
        let session: RoastSessionSummary = serde_json::from_value(session).unwrap();
        let event = json!({"ts": EpochMs(500_000), "machineId": "r-1", "type": "FC",
                           "payload": {"elapsedSeconds": 500.0}});
        let events: Vec<RoastEvent> = vec![serde_json::from_value(event).unwrap()];
        let samples = (0..601).map(|s| Sample { t_ms: s * 1_000, ..Sample::default() }).collect();
        let mut recording = Recording { samples, ..Recording::default() };
        let mut moved = |fc: usize, overrides: &[EventOverride]| {
            recording.marks = vec![(EventKind::Fc, fc)];
            let (begins, file) = (EpochMs(0), Digest([1; 32]));
            let save = RecordingSave { recording: &recording, begins, file };
            moved_event(&session, (&events, overrides), &save, EventKind::Fc)
        };
        assert_eq!(moved(500, &[]), None, "as it was measured");
        let first = moved(520, &[]).unwrap();
        assert_eq!(first.elapsed_seconds, 520.0);
        let stored = std::slice::from_ref(&first);
        assert_eq!(moved(520, stored), None);
        assert_eq!(moved(510, stored).unwrap().elapsed_seconds, 510.0);
        assert_eq!(moved(500, stored).unwrap().elapsed_seconds, 500.0, "back where it was");
        // What a person has set stays, if the save did not move the event.
        let of_person = EventOverride { reason: None, ..first };
        assert_eq!(moved(500, &[of_person]), None);
    }
}
