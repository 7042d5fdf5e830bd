//! Upstream Sim-Corp's JSON envelope, nested (`{ts, origin, topic, payload, sig?, kid?}`) or flat
//! (the payload itself with `sig?` and `kid?` beside its fields). Both forms are read; only the
//! nested form is written.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::payload;
use crate::point::{FieldError, RoastEvent, TelemetryPoint};
use crate::{EpochMs, Origin};

/// The largest envelope accepted, in bytes.
pub const ENVELOPE_BYTES_MAX: usize = 64 * 1024;

/// The field that marks an envelope as a copy of what an agent sends in signed frames. The services
/// that receive the frames ignore such an envelope.
pub const COPY_OF: &str = "copyOf";

/// The content of an envelope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Payload {
    /// One sample.
    Telemetry(TelemetryPoint),
    /// One event.
    Event(RoastEvent),
}

/// The result of ingestion's signature check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Verification {
    /// True if the signature is valid for this payload.
    pub verified: bool,
    /// Why the signature is not accepted; absent if it is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An envelope in the nested form, as it is written and streamed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Envelope {
    /// The time of the payload.
    pub ts: EpochMs,
    /// The machine that the payload is about.
    pub origin: Origin,
    /// `telemetry` or `event`.
    pub topic: &'static str,
    /// The sample or event.
    pub payload: Payload,
    /// The session that ingestion assigned the payload to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The signature: a compact JWS over the payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sig: Option<String>,
    /// The name of the key that signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The result of ingestion's signature check.
    #[serde(rename = "_verification", skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// Which of the two payloads a topic carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    /// A sample.
    Telemetry,
    /// An event.
    Event,
}

/// An envelope as it was received.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedEnvelope {
    /// The sample or event, without the fields that `problems` names.
    pub payload: Payload,
    /// The fields that were left out because they could not be read, each with the reason.
    pub problems: Vec<FieldError>,
    /// False if the payload's `ts` could not be read; the payload then has the time 1970.
    pub ts_known: bool,
    /// False if a sample's `elapsedSeconds` could not be read; the sample then has 0.
    pub elapsed_known: bool,
    /// The payload's JSON as received, which is what a signature covers.
    pub raw_payload: Value,
    /// The signature: a compact JWS over `raw_payload`.
    pub sig: Option<String>,
    /// The name of the key that is claimed to have signed.
    pub kid: Option<String>,
    /// True if the envelope was in the nested form.
    pub nested: bool,
}

/// Why an envelope is rejected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EnvelopeError {
    /// The message is larger than [`ENVELOPE_BYTES_MAX`].
    #[error("larger than {ENVELOPE_BYTES_MAX} bytes")]
    TooLarge,
    /// The message is not JSON; the text is the parser's reason.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// The message is a copy of what the cloud receives in signed frames.
    #[error("a copy of a signed frame")]
    Copy,
    /// A field without which the message has no meaning is missing, of the wrong type or out of
    /// bounds.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The message is about another machine than its topic.
    #[error("origin says {claimed}, the topic says {actual}")]
    Origin {
        /// The machine that the message names.
        claimed: String,
        /// The machine that the topic names.
        actual: String,
    },
}

/// Reads an envelope in either form and checks that it is about the machine that its topic names.
///
/// A field that cannot be read costs only itself: it is listed in [`ReceivedEnvelope::problems`].
/// The exceptions are the fields that say what the message is: the machine, the kind of an event,
/// `topic`, `origin`, `sig` and `kid`.
///
/// # Errors
/// Names the field that is missing, of the wrong type or out of bounds.
pub fn decode(
    bytes: &[u8],
    expect: PayloadKind,
    origin: &Origin,
) -> Result<ReceivedEnvelope, EnvelopeError> {
    if bytes.len() > ENVELOPE_BYTES_MAX {
        return Err(EnvelopeError::TooLarge);
    }
    let Value::Object(mut fields) = parse(bytes)? else {
        return Err(field_error("message", "not a JSON object"));
    };
    if fields.contains_key(COPY_OF) {
        return Err(EnvelopeError::Copy);
    }
    let nested =
        fields.get("payload").is_some_and(Value::is_object) && fields.contains_key("origin");
    let mut text = |name: &str| match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(field_error(name, "not a string")),
    };
    let (sig, kid) = (text("sig")?, text("kid")?);
    let payload_fields = if nested { take_nested(&mut fields, expect, origin)? } else { fields };
    let read = match expect {
        PayloadKind::Telemetry => payload::read_point(&payload_fields)?,
        PayloadKind::Event => payload::read_event(&payload_fields)?,
    };
    let machine = match &read.payload {
        Payload::Telemetry(point) => &point.machine_id,
        Payload::Event(event) => &event.machine_id,
    };
    if *machine != origin.machine {
        let (claimed, actual) = (machine.to_string(), origin.machine.to_string());
        return Err(EnvelopeError::Origin { claimed, actual });
    }
    Ok(ReceivedEnvelope {
        payload: read.payload,
        problems: read.problems,
        ts_known: read.ts_known,
        elapsed_known: read.elapsed_known,
        raw_payload: Value::Object(payload_fields),
        sig,
        kid,
        nested,
    })
}

/// Parses a message. `NaN` and the infinities, which some JSON libraries write although JSON does
/// not have them, become texts, so that they cost only their fields.
fn parse(bytes: &[u8]) -> Result<Value, EnvelopeError> {
    serde_json::from_slice(bytes).or_else(|error: serde_json::Error| {
        let read = payload::quote_non_numbers(bytes)
            .and_then(|quoted| serde_json::from_slice(&quoted).ok());
        read.ok_or_else(|| EnvelopeError::NotJson(error.to_string()))
    })
}

/// Takes the payload out of a nested envelope, and checks its origin and topic.
fn take_nested(
    fields: &mut Map<String, Value>,
    expect: PayloadKind,
    origin: &Origin,
) -> Result<Map<String, Value>, EnvelopeError> {
    check_origin(fields.get("origin").unwrap_or(&Value::Null), origin)?;
    let topic = fields.get("topic").and_then(Value::as_str).unwrap_or_default();
    if topic != expect.as_str() {
        return Err(field_error(
            "topic",
            format!("{topic:.20?} on a topic for {:?}", expect.as_str()),
        ));
    }
    match fields.remove("payload") {
        Some(Value::Object(payload)) => Ok(payload),
        _ => Err(field_error("payload", "not a JSON object")),
    }
}

impl PayloadKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Event => "event",
        }
    }
}

fn check_origin(claimed: &Value, actual: &Origin) -> Result<(), EnvelopeError> {
    let claimed: Origin = serde_path_to_error::deserialize(claimed).map_err(|error| {
        let path = error.path().to_string();
        let name = if path == "." { "origin".to_owned() } else { format!("origin.{path}") };
        field_error(&name, error.into_inner().to_string())
    })?;
    if claimed == *actual {
        return Ok(());
    }
    Err(EnvelopeError::Origin { claimed: claimed.to_string(), actual: actual.to_string() })
}

pub(crate) fn field_error(name: &str, problem: impl Into<String>) -> EnvelopeError {
    FieldError { field: name.to_owned(), problem: problem.into() }.into()
}
