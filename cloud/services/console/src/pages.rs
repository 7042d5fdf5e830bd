//! The pages: the fleet, one machine live, the list of roasts, one roast.

use askama::Template;
use axum::Router;
use axum::extract::{Path, Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use contract::session::{MachineStatus, RoastSession, RoastSessionSummary};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::view::{MachineRow, SessionRow, fleet, shown_name};
use crate::{ANSWER_TIME_MAX, ConsoleState, assets};

const SESSIONS_PER_PAGE: usize = 50;

pub fn routes() -> Router<ConsoleState> {
    Router::new()
        .route("/", get(fleet_page))
        .route("/fleet", get(fleet_rows))
        .route("/machines/{site}/{machine}", get(live_page))
        .route("/sessions", get(sessions_page))
        .route("/sessions/{id}", get(session_page))
}

#[derive(Template)]
#[template(path = "fleet.html")]
struct FleetPage {
    version: String,
    here: &'static str,
    machines: Vec<MachineRow>,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "fleet_rows.html")]
struct FleetRows {
    machines: Vec<MachineRow>,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "live.html")]
struct LivePage {
    version: String,
    here: &'static str,
    site: String,
    machine: String,
    name: String,
    session: String,
}

#[derive(Template)]
#[template(path = "sessions.html")]
struct SessionsPage {
    version: String,
    here: &'static str,
    sessions: Vec<SessionRow>,
    page: usize,
    more: bool,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "session.html")]
struct SessionPage {
    version: String,
    here: &'static str,
    s: SessionRow,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage {
    version: String,
    here: &'static str,
    title: &'static str,
    text: String,
}

/// Why a resource could not be read from ingestion.
enum ReadError {
    NotFound,
    Unavailable(String),
}

async fn fetch<T: DeserializeOwned>(state: &ConsoleState, path: &str) -> Result<T, ReadError> {
    let away = |error: reqwest::Error| {
        tracing::warn!(%error, path, "ingestion does not answer");
        ReadError::Unavailable(
            "Ingestion does not answer. Gateways store what they measure and send it later; \
             this page tries again."
                .to_owned(),
        )
    };
    let url = format!("{}{path}", state.ingestion);
    let answer = state.http.get(url).timeout(ANSWER_TIME_MAX).send().await.map_err(away)?;
    if answer.status() == reqwest::StatusCode::NOT_FOUND {
        return Err(ReadError::NotFound);
    }
    answer.error_for_status().map_err(away)?.json().await.map_err(away)
}

/// What a page may load: its own scripts, styles and data, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

fn html(status: StatusCode, page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => {
            (status, [(header::CONTENT_SECURITY_POLICY, POLICY)], Html(text)).into_response()
        }
        Err(error) => http_stack::error::ApiError::internal(error).into_response(),
    }
}

fn problem(error: ReadError, what: &str) -> Response {
    let (status, title, text) = match error {
        ReadError::NotFound => {
            (StatusCode::NOT_FOUND, "Not found", format!("There is no {what} of that name."))
        }
        ReadError::Unavailable(text) => (StatusCode::SERVICE_UNAVAILABLE, "Not reachable", text),
    };
    html(status, &ProblemPage { version: assets::version(), here: "", title, text })
}

async fn machines(state: &ConsoleState) -> (Vec<MachineRow>, Option<String>) {
    match fetch::<Vec<MachineStatus>>(state, "/machines").await {
        Ok(machines) => (fleet(machines, (state.clock)()), None),
        Err(ReadError::NotFound) => (Vec::new(), None),
        Err(ReadError::Unavailable(text)) => (Vec::new(), Some(text)),
    }
}

async fn fleet_page(Extract(state): Extract<ConsoleState>) -> Response {
    let (machines, problem) = machines(&state).await;
    let page = FleetPage { version: assets::version(), here: "fleet", machines, problem };
    html(StatusCode::OK, &page)
}

/// Renders only the rows of the fleet page, which the page reloads every second.
async fn fleet_rows(Extract(state): Extract<ConsoleState>) -> Response {
    let (machines, problem) = machines(&state).await;
    html(StatusCode::OK, &FleetRows { machines, problem })
}

async fn live_page(
    Extract(state): Extract<ConsoleState>,
    Path((site, machine)): Path<(String, String)>,
) -> Response {
    let machines: Vec<MachineStatus> = match fetch(&state, "/machines").await {
        Ok(machines) => machines,
        Err(error) => return problem(error, "machine"),
    };
    let is =
        |m: &&MachineStatus| m.origin.site.as_str() == site && m.origin.machine.as_str() == machine;
    let Some(found) = machines.iter().find(is) else {
        return problem(ReadError::NotFound, "machine");
    };
    let session = found.session_id.as_ref().map(ToString::to_string).unwrap_or_default();
    let name = shown_name(found.machine_name.as_deref(), &found.origin);
    let page = LivePage { version: assets::version(), here: "fleet", site, machine, name, session };
    html(StatusCode::OK, &page)
}

#[derive(Deserialize)]
struct PageQuery {
    #[serde(default)]
    page: usize,
}

async fn sessions_page(
    Extract(state): Extract<ConsoleState>,
    Query(PageQuery { page }): Query<PageQuery>,
) -> Response {
    let page = page.min(10_000);
    let (limit, offset) = (SESSIONS_PER_PAGE + 1, page.saturating_mul(SESSIONS_PER_PAGE));
    let path = format!("/sessions?limit={limit}&offset={offset}");
    let (sessions, problem) = match fetch::<Vec<RoastSessionSummary>>(&state, &path).await {
        Ok(sessions) => (sessions, None),
        Err(ReadError::NotFound) => (Vec::new(), None),
        Err(ReadError::Unavailable(text)) => (Vec::new(), Some(text)),
    };
    let more = sessions.len() > SESSIONS_PER_PAGE;
    let sessions = sessions.iter().take(SESSIONS_PER_PAGE).map(SessionRow::of).collect();
    let version = assets::version();
    html(StatusCode::OK, &SessionsPage { version, here: "sessions", sessions, page, more, problem })
}

async fn session_page(Extract(state): Extract<ConsoleState>, Path(id): Path<String>) -> Response {
    let Ok(id) = contract::SessionId::new(id) else { return problem(ReadError::NotFound, "roast") };
    match fetch::<RoastSession>(&state, &format!("/sessions/{id}")).await {
        Ok(session) => {
            let s = SessionRow::of(&session.summary);
            html(StatusCode::OK, &SessionPage { version: assets::version(), here: "sessions", s })
        }
        Err(error) => problem(error, "roast"),
    }
}
