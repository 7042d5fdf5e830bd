//! The route that receives signed frames over HTTP.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use contract::{Ack, Frame, OrgId, Origin};
use http_stack::OrgRequest;
use http_stack::auth::Role;
use http_stack::error::ApiError;
use tokio::sync::oneshot;

use super::SharedState;
use crate::pipeline::{Lane, Message, Reply};

/// The maximum number of frames in a request.
const FRAMES_MAX: usize = 64;

/// Receives signed frames over HTTP: one `COSE_Sign1` message, or several concatenated.
#[utoipa::path(post, path = "/v1/frames", tag = "frames",
    request_body(content = Vec<u8>, content_type = "application/cose"),
    responses((status = 200, description = "The result for each frame", body = Vec<Ack>),
              (status = 400, description = "Not a sequence of signed frames"),
              (status = 429, description = "Too many frames from this machine")))]
pub async fn post_frames(
    State(shared): State<SharedState>,
    request: OrgRequest,
    body: Bytes,
) -> Result<Response, ApiError> {
    request.caller.require_role(Role::Operator)?;
    let messages = split_messages(&body, &request.org)?;
    let mut machines: BTreeMap<String, u32> = BTreeMap::new();
    for (origin, _) in &messages {
        let frames = machines.entry(origin.to_string()).or_default();
        *frames = frames.saturating_add(1);
    }
    // For all frames at once: a refused body takes no tokens.
    let buckets =
        machines.iter().map(|(machine, frames)| shared.limits.of_device(machine, *frames));
    let decision = shared.limits.take(&buckets.collect::<Vec<_>>()).await;
    if !decision.allowed {
        // No frame of this body has been stored.
        shared.limits.count_refusal(&decision);
        return Ok(http_stack::too_many_requests(&decision, request.now()));
    }
    let mut waiting = Vec::with_capacity(messages.len());
    for (origin, message) in messages {
        let (reply, answer) = oneshot::channel();
        let message = Message::Frame(message);
        if !shared.pipeline.send(Lane::Live, origin, message, Reply::Request(reply)).await {
            return Err(ApiError::Unavailable("stopping".to_owned()));
        }
        waiting.push(answer);
    }
    let mut acks: Vec<Ack> = Vec::new();
    for answer in waiting {
        // No answer: the frame waits for other frames of its chain, and the edge resends it.
        let Ok(ack) = answer.await else { continue };
        acks.push(ack);
    }
    Ok(Json(acks).into_response())
}

/// Splits a body into its messages, each with the origin that its frame names.
///
/// # Errors
/// 400 for what is not a frame, 403 for a frame of another organisation, 413 for too many.
fn split_messages(body: &[u8], org: &OrgId) -> Result<Vec<(Origin, Vec<u8>)>, ApiError> {
    let mut messages = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        if messages.len() >= FRAMES_MAX {
            return Err(ApiError::TooLarge(format!("more than {FRAMES_MAX} frames")));
        }
        let (origin, length) = first_message(rest).map_err(|problem| {
            let number = messages.len().saturating_add(1);
            ApiError::Invalid(format!("frame {number}: {problem}"))
        })?;
        if origin.org != *org {
            return Err(ApiError::Forbidden(
                "the frame belongs to another organisation".to_owned(),
            ));
        }
        let (message, after) = rest.split_at(length);
        messages.push((origin, message.to_vec()));
        rest = after;
    }
    Ok(messages)
}

/// Parses the first of the concatenated messages; returns the origin that its frame names, not yet
/// verified, and the length of the message.
///
/// # Errors
/// What is wrong with the bytes.
fn first_message(bytes: &[u8]) -> Result<(Origin, usize), String> {
    let length = contract::frame::item_length(bytes).map_err(|error| error.to_string())?;
    let (message, _) = bytes.split_at(length);
    let signed = trust::SignedMessage::parse(message).map_err(|error| error.to_string())?;
    let frame = Frame::decode(signed.payload()).map_err(|error| error.to_string())?;
    Ok((frame.origin, length))
}
