//! Converts ingestion's responses to what a page shows. Pure: the time is passed in.

use contract::session::{Completeness, MachineStatus, RoastSessionSummary};
use contract::{EpochMs, EventKind, Origin, upstream_id};

/// A machine without data for longer than this is stale, whether it is roasting or not.
const STALE_MS: i64 = 15_000;
/// A machine without data for longer than this is offline.
const OFFLINE_MS: i64 = 5 * 60_000;
/// Data that arrives now but is older than this is a backlog: the gateway is catching up.
const DELAYED_MS: i64 = 60_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MachineState {
    Roasting,
    Stale,
    Delayed,
    Idle,
    Offline,
}

impl MachineState {
    pub fn of(machine: &MachineStatus, now: EpochMs) -> Self {
        let silent_ms = now.ms_since(machine.last_seen_at);
        let sampled = machine.last_sample_at.map_or(i64::MAX, |at| now.ms_since(at));
        let roasting = machine.session_id.is_some();
        match silent_ms {
            _ if silent_ms > OFFLINE_MS => Self::Offline,
            _ if silent_ms > STALE_MS => Self::Stale,
            _ if sampled > DELAYED_MS => Self::Delayed,
            _ if roasting => Self::Roasting,
            _ => Self::Idle,
        }
    }

    pub const fn class(self) -> &'static str {
        match self {
            Self::Roasting => "roasting",
            Self::Stale => "stale",
            Self::Delayed => "delayed",
            Self::Idle => "idle",
            Self::Offline => "offline",
        }
    }

    pub const fn word(self) -> &'static str {
        match self {
            Self::Roasting => "Roasting",
            Self::Stale => "Stale",
            Self::Delayed => "Catching up",
            Self::Idle => "Online, idle",
            Self::Offline => "Offline",
        }
    }
}

/// How long a conflict of device names is shown after it was last seen, ms.
const NAME_CONFLICT_SHOWN_MS: i64 = 15 * 60_000;

/// A row of the fleet page.
#[derive(Debug)]
pub struct MachineRow {
    pub state: MachineState,
    pub name: String,
    pub site: String,
    pub link: String,
    pub bt: String,
    pub ror: String,
    pub since: String,
    pub event: String,
    pub age: String,
    pub missing: u64,
    /// Whether two agents sent under the machine's device name lately.
    pub name_conflict: bool,
}

impl MachineRow {
    pub fn of(machine: &MachineStatus, now: EpochMs) -> Self {
        let state = MachineState::of(machine, now);
        let fresh = matches!(state, MachineState::Roasting | MachineState::Idle);
        // An old value must not be shown as a current one.
        let value = |value: Option<f64>| number(value.filter(|_| fresh));
        let roasting = machine.session_started_at.filter(|_| state == MachineState::Roasting);
        let event = machine.last_event.zip(machine.last_event_at);
        Self {
            state,
            name: shown_name(machine.machine_name.as_deref(), &machine.origin),
            site: machine.origin.site.to_string(),
            link: format!("/machines/{}/{}", machine.origin.site, machine.origin.machine),
            bt: value(machine.bt_c),
            ror: value(machine.ror_c_per_min),
            since: roasting.map_or_else(unknown, |started| clock_ms(now.ms_since(started))),
            event: event.map_or_else(unknown, |(kind, at)| {
                format!("{}, {} ago", event_name(kind), age_ms(now.ms_since(at)))
            }),
            age: age_ms(now.ms_since(machine.last_seen_at)),
            missing: machine.missing_frames,
            name_conflict: machine
                .name_conflict_at
                .is_some_and(|at| now.ms_since(at) < NAME_CONFLICT_SHOWN_MS),
        }
    }
}

/// Builds the rows of the fleet page: roasting machines first, then those that need attention, then
/// the others; sorted by name within each group.
pub fn fleet(mut machines: Vec<MachineStatus>, now: EpochMs) -> Vec<MachineRow> {
    machines.sort_by(|a, b| a.origin.cmp(&b.origin));
    let mut rows: Vec<MachineRow> = machines.iter().map(|m| MachineRow::of(m, now)).collect();
    rows.sort_by_key(|row| row.state);
    rows
}

/// A row of the list of roasts, and the header of a roast's page.
#[derive(Debug)]
pub struct SessionRow {
    pub id: String,
    pub link: String,
    pub started: String,
    pub machine: String,
    pub site: String,
    pub duration: String,
    pub first_crack: String,
    pub development: String,
    pub max_bt: String,
    pub points: u64,
    pub curve: &'static str,
    pub curve_class: &'static str,
    pub signed_by: String,
}

impl SessionRow {
    pub fn of(session: &RoastSessionSummary) -> Self {
        let running = session.ended_at.is_none();
        let started = session.started_at.to_string().replace('T', " ");
        let mark = match session {
            RoastSessionSummary { begun_before: true, .. } => " (begun before the agent)",
            RoastSessionSummary { started_at_estimated: true, .. } => " (estimated)",
            _ => "",
        };
        let (curve, curve_class) = match session.completeness {
            _ if running => ("Not closed yet", "open"),
            Completeness::Complete => ("Complete", "complete"),
            Completeness::Incomplete => ("Incomplete, requested", "incomplete"),
            Completeness::Open => ("No receipt yet", "open"),
        };
        let development =
            session.fc_seconds.zip(session.drop_seconds).filter(|(fc, drop)| drop > fc);
        Self {
            id: session.session_id.to_string(),
            link: format!("/sessions/{}", session.session_id),
            started: format!("{started:.19}{mark}"),
            machine: shown_name(session.machine_name.as_deref(), &session.origin),
            site: session.origin.site.to_string(),
            duration: session.duration_seconds.map_or_else(unknown, clock),
            first_crack: session.fc_seconds.map_or_else(unknown, clock),
            development: development
                .map_or_else(unknown, |(fc, drop)| format!("{:.0} %", (drop - fc) / drop * 100.0)),
            max_bt: number(session.max_bt_c),
            points: session.telemetry_points,
            curve,
            curve_class,
            signed_by: match session.device_ids.as_slice() {
                [] => "none (unsigned)".to_owned(),
                ids => ids.join(", "),
            },
        }
    }
}

/// Returns a machine's display name, or its id if it has none.
pub fn shown_name(name: Option<&str>, origin: &Origin) -> String {
    name.map_or_else(|| upstream_id::spelling(origin.machine.as_str()), str::to_owned)
}

fn unknown() -> String {
    "—".to_owned()
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(unknown, |value| format!("{value:.1}"))
}

fn clock_ms(ms: i64) -> String {
    clock(ms.max(0) as f64 / 1000.0)
}

#[allow(clippy::cast_possible_truncation)] // seconds of a roast
fn clock(seconds: f64) -> String {
    let s = seconds.round() as i64;
    format!("{}:{:02}", s / 60, s % 60)
}

fn age_ms(ms: i64) -> String {
    match ms / 1000 {
        ..0 => "now".to_owned(),
        s @ 0..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s @ 7_200..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

const fn event_name(kind: EventKind) -> &'static str {
    match kind {
        EventKind::Charge => "Charge",
        EventKind::Tp => "Turning point",
        EventKind::DryEnd => "Dry end",
        EventKind::Fc | EventKind::DevelopmentStart => "First crack",
        EventKind::FcEnd => "First crack end",
        EventKind::Sc => "Second crack",
        EventKind::ScEnd => "Second crack end",
        EventKind::Drop => "Drop",
        EventKind::CoolEnd => "Cooled",
        EventKind::Note => "Note",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::{MachineId, OrgId, SessionId, SiteId};

    const NOW: EpochMs = EpochMs(1_760_000_000_000);

    fn machine(name: &str, seen_s: i64, sampled_s: i64, roasting: bool) -> MachineStatus {
        MachineStatus {
            origin: Origin {
                org: OrgId::new("acme").unwrap(),
                site: SiteId::new("leipzig").unwrap(),
                machine: MachineId::new(name).unwrap(),
            },
            machine_name: None,
            previous_ids: Vec::new(),
            last_sample_at: Some(NOW.plus_ms(-sampled_s * 1000)),
            last_seen_at: NOW.plus_ms(-seen_s * 1000),
            bt_c: Some(187.44),
            et_c: None,
            ror_c_per_min: Some(0.0),
            session_id: roasting.then(|| SessionId::new("S-1").unwrap()),
            session_started_at: roasting.then(|| NOW.plus_ms(-125_000)),
            last_event: Some(EventKind::Charge),
            last_event_at: Some(NOW.plus_ms(-125_000)),
            missing_frames: 0,
            name_conflict_at: None,
        }
    }

    #[test]
    fn two_agents_with_one_name_are_shown_while_the_conflict_is_recent() {
        let shown = |age_s: i64| {
            let at = Some(NOW.plus_ms(-age_s * 1000));
            let status = MachineStatus { name_conflict_at: at, ..machine("hot", 1, 1, true) };
            MachineRow::of(&status, NOW).name_conflict
        };
        assert!(shown(60) && !shown(3_600));
        assert!(!MachineRow::of(&machine("hot", 1, 1, true), NOW).name_conflict);
    }

    #[test]
    fn roasting_comes_first_then_what_needs_a_person() {
        let machines = vec![
            machine("off", 4_000, 4_000, false),
            machine("idle", 1, 1, false),
            machine("quiet", 40, 40, true),
            machine("behind", 1, 900, true),
            machine("hot", 1, 1, true),
        ];
        let order: Vec<_> =
            fleet(machines, NOW).into_iter().map(|row| (row.name, row.state.word())).collect();
        let expected = [
            ("hot", "Roasting"),
            ("quiet", "Stale"),
            ("behind", "Catching up"),
            ("idle", "Online, idle"),
            ("off", "Offline"),
        ];
        assert_eq!(order, expected.map(|(name, word)| (name.to_owned(), word)));
    }

    #[test]
    fn an_old_value_is_hidden_and_a_zero_is_shown() {
        let hot = MachineRow::of(&machine("hot", 1, 1, true), NOW);
        assert_eq!(
            (hot.bt.as_str(), hot.ror.as_str(), hot.since.as_str()),
            ("187.4", "0.0", "2:05")
        );
        let quiet = MachineRow::of(&machine("quiet", 40, 40, true), NOW);
        assert_eq!(
            (quiet.bt.as_str(), quiet.since.as_str(), quiet.age.as_str()),
            ("—", "—", "40 s")
        );
    }
}
