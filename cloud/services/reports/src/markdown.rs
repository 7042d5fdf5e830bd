//! The report as Markdown text: the roast, and what to do next time. Pure functions without I/O.

use std::fmt::Write as _;

use contract::annotations::{EventOverride, SessionNote};
use contract::session::RoastSession;
use serde_json::{Value, json};

const ACTIONS_MAX: usize = 5;
const SHORT_DEVELOPMENT: f64 = 0.2;
const LONG_DEVELOPMENT: f64 = 0.26;
const ROUGH: f64 = 0.5;

/// Returns what to do differently in the next roast, most important first; at most five actions.
pub fn next_actions(analysis: &Value) -> Vec<Value> {
    let mut actions = Vec::new();
    let mut add = |code: &str, message: String, confidence: &str, details: Value| {
        actions.push(json!({"code": code, "message": message, "confidence": confidence,
                            "details": details}));
    };
    let shape = &analysis["crashFlick"];
    if shape["crashDetected"] == true {
        let at = shape["crashAtSeconds"].as_f64();
        let when = at.map_or(String::new(), |s| format!(" (it fell at {})", clock(s)));
        add(
            "AVOID_CRASH",
            format!(
                "Keep the rate of rise up through first crack{when}: take less heat away before it."
            ),
            "HIGH",
            json!({"atSeconds": at}),
        );
    }
    if shape["flickDetected"] == true {
        add(
            "STABILIZE_POST_FC_HEAT",
            "Let the rate of rise decline to the end: add no heat after first crack.".to_owned(),
            "MED",
            json!({"atSeconds": shape["flickAtSeconds"]}),
        );
    }
    if let Some(ratio) = analysis["developmentRatio"].as_f64() {
        let share = ratio * 100.0;
        if ratio < SHORT_DEVELOPMENT {
            add(
                "EXTEND_DEVELOPMENT",
                format!("Development was {share:.1} %: drop later, or reach first crack sooner."),
                "MED",
                json!({"developmentRatio": ratio}),
            );
        } else if ratio > LONG_DEVELOPMENT {
            add(
                "SHORTEN_DEVELOPMENT",
                format!("Development was {share:.1} %: drop earlier, or reach first crack later."),
                "MED",
                json!({"developmentRatio": ratio}),
            );
        }
    }
    let rough = each(&analysis["phaseStats"])
        .any(|phase| phase["rorSmoothnessScore"].as_f64().is_some_and(|score| score < ROUGH));
    if rough {
        add(
            "SMOOTHER_CONTROL",
            "The rate of rise was unsteady: make fewer and smaller control changes.".to_owned(),
            "LOW",
            json!({}),
        );
    }
    let warned = each(&analysis["warnings"])
        .any(|warning| warning["severity"] == "WARN" || warning["severity"] == "ALERT");
    if warned {
        add("REVIEW_WARNINGS", "Look at the warnings of this report.".to_owned(), "LOW", json!({}));
    }
    actions.truncate(ACTIONS_MAX);
    actions
}

/// Returns the whole report.
pub fn report(
    session: &RoastSession,
    analysis: &Value,
    notes: &[SessionNote],
    overrides: &[EventOverride],
    next: &[Value],
) -> String {
    let mut out = String::with_capacity(4_096);
    let of = &session.summary;
    let _ = write!(
        out,
        "# Roast {}\n\nWritten by the report worker {} from {} points, {}.\n\n",
        of.session_id,
        env!("CARGO_PKG_VERSION"),
        of.telemetry_points,
        match of.verified_points {
            0 => "none of them signed".to_owned(),
            n if n == of.telemetry_points => "all of them signed by the gateway".to_owned(),
            n => format!("{n} of them signed by the gateway"),
        },
    );
    summary(&mut out, session, analysis);
    phases(&mut out, analysis);
    warnings(&mut out, analysis);
    list(&mut out, "Recommendations", &analysis["recommendations"], |one| {
        format!("{} ({})", plain(&one["message"]), plain(&one["confidence"]))
    });
    qc_notes(&mut out, notes);
    overrides_section(&mut out, overrides, analysis);
    list(&mut out, "Next Roast Plan (v1)", &Value::Array(next.to_vec()), |one| {
        plain(&one["message"])
    });
    out
}

fn summary(out: &mut String, session: &RoastSession, analysis: &Value) {
    let of = &session.summary;
    let _ = write!(out, "## Summary\n\n| | |\n|---|---|\n");
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(out, "| {name} | {value} |");
        }
    };
    let time = |name: &str| analysis[name].as_f64().map(clock);
    let degrees = |name: &str| analysis[name].as_f64().map(|c| format!("{c:.1} °C"));
    let both = |at: Option<String>, c: Option<String>| match (at, c) {
        (Some(at), Some(c)) => Some(format!("{at}, {c}")),
        (at, c) => at.or(c),
    };
    row("Machine", Some(format!("{} / {}", of.origin.site, of.origin.machine)));
    row("Beans", analysis["meta"]["beanName"].as_str().map(escape));
    row("Start", Some(of.started_at.to_string()));
    row("End", of.ended_at.map(|at| at.to_string()));
    row("Duration", time("totalDurationSeconds"));
    row("Turning point", both(time("tpSeconds"), degrees("tpBtC")));
    row("First crack", both(time("fcSeconds"), degrees("fcBtC")));
    row("Drop", both(time("dropSeconds"), degrees("dropBtC")));
    row(
        "Development",
        analysis["developmentRatio"].as_f64().map(|r| format!("{:.1} %", r * 100.0)),
    );
    row("Max BT", degrees("maxBtC"));
    row("Weight loss", analysis["weightLossPct"].as_f64().map(|p| format!("{p:.1} %")));
    row("Data", Some(of.completeness.as_str().to_owned()));
    out.push('\n');
}

fn phases(out: &mut String, analysis: &Value) {
    out.push_str(
        "## Phases\n\n| Phase | Duration | Share | ΔBT °C | Mean RoR °C/min | Smoothness |\n",
    );
    out.push_str("|---|---:|---:|---:|---:|---:|\n");
    let number = |value: &Value, digits: usize| {
        value.as_f64().map_or_else(|| "—".to_owned(), |v| format!("{v:.digits$}"))
    };
    for phase in each(&analysis["phaseStats"]) {
        let _ = writeln!(
            out,
            "| {} | {} | {} % | {} | {} | {} |",
            plain(&phase["phase"]),
            phase["durationSeconds"].as_f64().map_or_else(|| "—".to_owned(), clock),
            phase["share"].as_f64().map_or_else(|| "—".to_owned(), |s| format!("{:.0}", s * 100.0)),
            number(&phase["btDeltaC"], 1),
            number(&phase["avgRorCPerMin"], 1),
            number(&phase["rorSmoothnessScore"], 2),
        );
    }
    out.push('\n');
}

fn warnings(out: &mut String, analysis: &Value) {
    out.push_str("## Warnings\n\n");
    let mut any = false;
    let shape = &analysis["crashFlick"];
    for (found, at, text) in [
        ("crashDetected", "crashAtSeconds", "**ALERT** CRASH: the rate of rise fell away"),
        ("flickDetected", "flickAtSeconds", "**WARN** FLICK: the rate of rise rose again"),
    ] {
        if shape[found] == true {
            any = true;
            let when = shape[at].as_f64().map_or(String::new(), |s| format!(" at {}", clock(s)));
            let _ = writeln!(out, "- {text}{when}");
        }
    }
    for warning in each(&analysis["warnings"]) {
        any = true;
        let (severity, message) = (plain(&warning["severity"]), plain(&warning["message"]));
        let _ = writeln!(out, "- **{severity}** {message}");
    }
    out.push_str(if any { "\n" } else { "None.\n\n" });
}

fn qc_notes(out: &mut String, notes: &[SessionNote]) {
    out.push_str("## QC Notes\n\n");
    let Some(note) = notes.first() else {
        out.push_str("None yet.\n\n");
        return;
    };
    let of = &note.note;
    if let Some(title) = &of.title {
        let _ = writeln!(out, "**{}**\n", escape(title));
    }
    if let Some(text) = &of.text {
        let _ = writeln!(out, "{}\n", escape(text));
    }
    if let Some(score) = of.cupping_score {
        let _ = writeln!(out, "Cupping score {score:.1}\n");
    }
    if !of.defects.is_empty() {
        let defects: Vec<String> = of.defects.iter().map(|d| plain(&json!(d))).collect();
        let _ = writeln!(out, "Defects: {}\n", defects.join(", "));
    }
}

fn overrides_section(out: &mut String, overrides: &[EventOverride], analysis: &Value) {
    if overrides.is_empty() {
        return;
    }
    out.push_str("## Overrides\n\n| Event | At | Moved by | Reason |\n|---|---:|---:|---|\n");
    for one in overrides {
        let delta = analysis["overrideDeltasSeconds"][one.event_type.as_str()].as_f64();
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} |",
            one.event_type,
            clock(one.elapsed_seconds),
            delta.map_or_else(|| "—".to_owned(), |s| format!("{s:+.0} s")),
            one.reason.as_deref().map_or_else(|| "—".to_owned(), escape),
        );
    }
    out.push('\n');
}

fn list(out: &mut String, title: &str, items: &Value, tell: impl Fn(&Value) -> String) {
    let _ = writeln!(out, "## {title}\n");
    let mut any = false;
    for item in each(items) {
        any = true;
        let _ = writeln!(out, "- {}", tell(item));
    }
    out.push_str(if any { "\n" } else { "None.\n\n" });
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Returns the escaped text of a JSON string, or an empty text for any other value.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(String::new, escape)
}

/// Escapes text that people wrote, so that none of it becomes markup, and it appears as typed on
/// one line.
fn escape(text: &str) -> String {
    let text = text.trim_matches(|c: char| c.is_whitespace() || c.is_control());
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        let markup = match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' | '!' | '&' | '~' => true,
            // These make a list item, but only at the start of a line.
            '-' | '+' => safe.is_empty(),
            '.' | ')' => !safe.is_empty() && safe.bytes().all(|byte| byte.is_ascii_digit()),
            _ => false,
        };
        if markup {
            safe.push('\\');
        }
        safe.push(if c.is_control() { ' ' } else { c });
    }
    safe
}

/// Formats seconds as `m:ss`.
pub fn clock(seconds: f64) -> String {
    #[allow(clippy::cast_possible_truncation)] // seconds of a roast
    let s = seconds.round() as i64;
    let sign = if s < 0 { "-" } else { "" };
    format!("{sign}{}:{:02}", s.abs() / 60, s.abs() % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_actions_are_ordered_and_bounded() {
        let bad = json!({
            "crashFlick": {"crashDetected": true, "crashAtSeconds": 500.0, "flickDetected": true},
            "developmentRatio": 0.15, "phaseStats": [{"rorSmoothnessScore": 0.2}],
            "warnings": [{"severity": "WARN"}],
        });
        let actions = next_actions(&bad);
        let codes: Vec<_> = actions.iter().map(|a| a["code"].as_str().unwrap_or("")).collect();
        assert_eq!(codes[0], "AVOID_CRASH");
        assert_eq!((codes.len(), codes[4]), (5, "REVIEW_WARNINGS"));
        assert!(actions[0]["message"].as_str().is_some_and(|m| m.contains("8:20")));
        assert!(next_actions(&json!({"developmentRatio": 0.22})).is_empty());
    }

    #[test]
    fn text_of_people_is_not_markup() {
        let note: SessionNote = serde_json::from_value(json!({
            "noteId": "n", "createdAt": "2025-10-05T21:08:15.000Z",
            "title": "<script>*", "text": "a|b\n# c", "defects": ["TIPPED"],
        }))
        .unwrap();
        let mut out = String::new();
        qc_notes(&mut out, &[note]);
        assert!(out.contains("\\<script\\>\\*") && out.contains("a\\|b \\# c"), "{out}");
        assert!(out.contains("Defects: TIPPED"));
    }

    #[test]
    fn text_at_the_start_of_a_line_is_not_markup() {
        for (text, escaped) in [
            ("- 1. a", "\\- 1. a"),
            (" + a - b", "\\+ a - b"),
            ("12. a 3.5", "12\\. a 3.5"),
            ("1) a", "1\\) a"),
            ("~~~", "\\~\\~\\~"),
            ("\n    a &lt; b\n", "a \\&lt; b"),
            ("a (b). c", "a (b). c"),
        ] {
            assert_eq!(escape(text), escaped);
        }
    }
}
