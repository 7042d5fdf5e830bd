//! Routes for an organisation's machines: their status, and the newest points and events of all of
//! them.

use axum::Json;
use axum::extract::State;
use contract::session::MachineStatus;
use contract::{Channel, EpochMs, EventKind, SessionId};
use http_stack::OrgRequest;
use http_stack::error::ApiError;

use super::SharedState;
use super::machine_filter::MachineFilter;
use super::machine_names::join;
use crate::row_json::{self, LocatedEvent, LocatedPoint};
use crate::store::Extras;

/// The default and the maximum number of newest points, and of newest events. Upstream Sim-Corp's
/// clients expect all of a machine if they name no limit.
const LIMIT: i64 = 100;
const LIMIT_MAX: i64 = 1_000;

/// Returns the limit of a request that names none.
const fn default_limit(machine: Option<&str>) -> i64 {
    if machine.is_some() { LIMIT_MAX } else { LIMIT }
}

/// Lists the organisation's machines, each with its newest sample and event. A machine with an
/// alias is listed once, under its present id.
#[utoipa::path(get, path = "/machines", tag = "machines",
    responses((status = 200, body = Vec<MachineStatus>)))]
pub async fn machines(
    State(shared): State<SharedState>,
    request: OrgRequest,
) -> Result<Json<Vec<MachineStatus>>, ApiError> {
    let (store, org) = (&shared.store, &request.org);
    let rows = store.machines(org).await?;
    let running = store.running_sessions(rows.iter().map(|row| row.chain_no)).await?;
    let mut statuses = Vec::with_capacity(rows.len());
    for row in rows {
        let frame = store.newest_frame(org, row.chain_no).await?;
        let event = store.newest_event(org, row.machine_no).await?;
        let last = frame.as_ref().and_then(|f| f.offsets_ms.len().checked_sub(1));
        let value = |channel| frame.as_ref().zip(last).and_then(|(f, i)| f.value(&channel, i));
        let session = running.get(&row.chain_no);
        let gaps: Vec<(u64, u64)> = serde_json::from_str(&row.gaps).unwrap_or_default();
        let Some(origin) = row_json::origin_of(org.as_str(), &row.site_id, &row.machine_id) else {
            continue;
        };
        statuses.push(MachineStatus {
            origin,
            machine_name: None,
            previous_ids: Vec::new(),
            last_sample_at: frame.as_ref().zip(last).map(|(f, i)| f.sample_at(i)),
            last_seen_at: EpochMs(row.seen_ms),
            bt_c: value(Channel::Bt),
            et_c: value(Channel::Et),
            ror_c_per_min: value(Channel::Ror),
            session_id: session.and_then(|s| SessionId::new(s.session_id.clone()).ok()),
            session_started_at: session.map(|s| EpochMs(s.started_ms)),
            last_event: event.as_ref().and_then(|e| EventKind::parse(&e.kind)),
            last_event_at: event.as_ref().map(|e| EpochMs(e.at_ms)),
            missing_frames: gaps
                .iter()
                .map(|(first, last)| last.saturating_sub(*first).saturating_add(1))
                .sum(),
            name_conflict_at: row.conflict_ms.map(EpochMs),
        });
    }
    Ok(Json(join(&store.machine_names(org).await?, statuses)))
}

/// Lists the organisation's newest telemetry points, newest first.
#[utoipa::path(get, path = "/telemetry", tag = "machines",
    params(("siteId" = Option<String>, Query), ("machineId" = Option<String>, Query),
           ("limit" = Option<i64>, Query, description = "At most 1000; default 1000 with machineId, else 100")),
    responses((status = 200, body = Vec<LocatedPoint>), (status = 400)))]
pub async fn recent_telemetry(
    State(shared): State<SharedState>,
    request: OrgRequest,
) -> Result<Json<Vec<LocatedPoint>>, ApiError> {
    let (store, org) = (&shared.store, &request.org);
    let filter = MachineFilter::new(&request.params);
    let limit = request.params.limit(default_limit(filter.names().1), LIMIT_MAX)?;
    let limit = usize::try_from(limit).unwrap_or(0);
    let machines = store.machines_of(org, filter.names()).await?;
    let running = store.running_sessions(machines.iter().map(|row| row.chain_no)).await?;
    let names = store.machine_names(org).await?;
    let mut points: Vec<LocatedPoint> = Vec::new();
    let _turn = shared.pace.request_turn(org).await?;
    for row in machines {
        let Some(mut origin) = row_json::origin_of(org.as_str(), &row.site_id, &row.machine_id)
        else {
            continue;
        };
        names.present(&mut origin);
        let session = running.get(&row.chain_no);
        for frame in &store.newest_frames(org, row.chain_no, limit).await? {
            let first = frame.seq_at(frame.len().saturating_sub(limit));
            let extras = Extras::parse(frame.extras.as_deref());
            shared.pace.wait_in_request(org, frame.cells(extras.len())).await?;
            let row = (frame, &extras);
            let of_frame =
                row_json::telemetry_points(row, &origin.machine, session, first, i64::MAX);
            points.extend(of_frame.map(|(_, point)| LocatedPoint::new(point, &origin)));
        }
        // After each machine, so that many machines do not add up.
        points.sort_by_key(|located| std::cmp::Reverse(located.point.ts));
        points.truncate(limit);
    }
    Ok(Json(points))
}

/// Lists the organisation's newest events, newest first.
#[utoipa::path(get, path = "/events", tag = "machines",
    params(("siteId" = Option<String>, Query), ("machineId" = Option<String>, Query),
           ("limit" = Option<i64>, Query, description = "At most 1000; default 1000 with machineId, else 100")),
    responses((status = 200, body = Vec<LocatedEvent>), (status = 400)))]
pub async fn recent_events(
    State(shared): State<SharedState>,
    request: OrgRequest,
) -> Result<Json<Vec<LocatedEvent>>, ApiError> {
    let filter = MachineFilter::new(&request.params);
    let limit = request.params.limit(default_limit(filter.names().1), LIMIT_MAX)?;
    // The limit counts the events of the requested machines, not those of all.
    let rows = shared.store.newest_events(&request.org, filter.names(), limit).await?;
    let names = shared.store.machine_names(&request.org).await?;
    let events = rows.iter().filter_map(|row| {
        let mut origin = row_json::origin_of(request.org.as_str(), &row.site_id, &row.machine_id)?;
        names.present(&mut origin);
        Some(LocatedEvent::new(row_json::roast_event(row, &origin.machine)?, &origin))
    });
    Ok(Json(events.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_returned_up_to_the_maximum_without_a_limit() {
        assert_eq!(default_limit(Some("r-1")), LIMIT_MAX);
        assert_eq!(default_limit(None), 100);
    }
}
