//! The limits that the documentation lists are those of the services.

use contract::envelope::ENVELOPE_BYTES_MAX;
use contract::point::{
    BATCH_BYTES_MAX, EVENT_PAYLOAD_BYTES_MAX, EXTRA_NAME_BYTES_MAX, EXTRA_TEXT_BYTES_MAX,
};
use contract::profile::{CURVE_POINTS_MAX, TAGS_MAX, WORD_BYTES_MAX};
use kernel::trace::{CALLS_MAX, ENTRIES_MAX};
use service::http::BODY_BYTES_MAX;
use testbed::workspace_root;

/// Returns a number of bytes as the documentation writes it.
fn size(bytes: usize) -> String {
    const KIB: usize = 1024;
    const MIB: usize = 1024 * KIB;
    assert_eq!(bytes % KIB, 0, "{bytes}");
    if bytes.is_multiple_of(MIB) {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{} KiB", bytes / KIB)
    }
}

/// What is limited, and its limits.
fn limits() -> Vec<(&'static str, String)> {
    use eval::limits::{CASE_BYTES_MAX, COMMANDS_MAX, RUN_BYTES_MAX, TRANSCRIPT_MAX, TRIALS_MAX};
    use ingestion::limits::{IMPORTED_MAX, OVERRIDES_MAX, PROFILE_MAX, REPORT_MAX, WRITTEN_MAX};
    use kernel::limits::{
        ATTEMPTS_MAX, CARD_BYTES_MAX, GOALS_MAX, MISSION_BYTES_MAX, TEXT_BYTES_MAX,
    };
    assert_eq!(CARD_BYTES_MAX, CASE_BYTES_MAX, "they have one row");
    let mission = format!(
        "{}; texts such as `idempotencyKey` and `subjectId` {TEXT_BYTES_MAX} bytes; `maxAttempts` \
         1 to {ATTEMPTS_MAX}",
        size(MISSION_BYTES_MAX)
    );
    let profile = format!(
        "{}; its name {WORD_BYTES_MAX} bytes, {TAGS_MAX} tags, {CURVE_POINTS_MAX} points of its \
         curve; {IMPORTED_MAX} profiles in an import",
        size(PROFILE_MAX)
    );
    let run = format!(
        "{}; {COMMANDS_MAX} commands, {TRANSCRIPT_MAX} lines of transcript; {TRIALS_MAX} trials of \
         a request",
        size(RUN_BYTES_MAX)
    );
    // A trace has no limit of its own beside that of every body.
    let trace =
        format!("{}; {ENTRIES_MAX} entries and {CALLS_MAX} tool calls", size(BODY_BYTES_MAX));
    vec![
        ("a mission: `params`, `context`, `details` and the rest together", mission),
        ("a claim", format!("{GOALS_MAX} goals")),
        ("the metadata of a session, a note", format!("{} each", size(WRITTEN_MAX))),
        ("event overrides of a request", OVERRIDES_MAX.to_string()),
        ("a report", size(REPORT_MAX)),
        ("a profile", profile),
        ("an agent's or tool's card, a golden case", format!("{} each", size(CARD_BYTES_MAX))),
        ("an evaluation, as it is stored", run),
        ("a trace", trace),
        (
            "a message on upstream's topics",
            format!("{}; see [MQTT](#mqtt) for its fields", size(ENVELOPE_BYTES_MAX)),
        ),
    ]
}

#[test]
fn the_documented_limits_are_those_of_the_services() {
    let path = workspace_root().join("docs/reference/compatibility.md");
    let page = std::fs::read_to_string(path).unwrap();
    let section = page.split("\n## Limits\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| {
        let (what, limit) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((what, limit.to_owned()))
    });
    let documented: Vec<(&str, String)> = rows.skip(1).collect(); // after the head of the table
    assert_eq!(documented, limits());
    assert!(section.contains(&format!("Here a body may have {} too", size(BODY_BYTES_MAX))));

    let fields = format!(
        "`batchId` (at most {BATCH_BYTES_MAX} bytes), 32 `extras` a point with names of at most \
         {EXTRA_NAME_BYTES_MAX} bytes and texts of at most {EXTRA_TEXT_BYTES_MAX} bytes, and the \
         `payload` of an event (at most {} of JSON)",
        size(EVENT_PAYLOAD_BYTES_MAX)
    );
    assert!(page.contains(&fields), "{fields}");
}
