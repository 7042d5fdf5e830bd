//! Upstream Sim-Corp's JSON envelope, nested (`{ts, origin, topic, payload, sig?, kid?}`) or flat
//! (the payload itself with `sig?` and `kid?` beside its fields). Both forms are read; only the
//! nested form is written.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::ELAPSED_S;
use crate::point::{FieldError, RoastEvent, TelemetryPoint};
use crate::{EpochMs, Origin};

/// The largest envelope accepted, in bytes.
pub const ENVELOPE_BYTES_MAX: usize = 64 * 1024;

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
    /// The sample or event.
    pub payload: Payload,
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
    /// A field is missing, of the wrong type or out of bounds.
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
    let body: Value =
        serde_json::from_slice(bytes).map_err(|error| EnvelopeError::NotJson(error.to_string()))?;
    let Value::Object(mut fields) = body else {
        return Err(field_error("message", "not a JSON object"));
    };
    let nested =
        fields.get("payload").is_some_and(Value::is_object) && fields.contains_key("origin");
    let mut text = |name: &str| match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(field_error(name, "not a string")),
    };
    let (sig, kid) = (text("sig")?, text("kid")?);
    let raw_payload = if nested {
        check_origin(&fields["origin"], origin)?;
        let topic = fields.get("topic").and_then(Value::as_str).unwrap_or_default();
        if topic != expect.as_str() {
            return Err(field_error(
                "topic",
                format!("{topic:.20?} on a topic for {:?}", expect.as_str()),
            ));
        }
        fields.remove("payload").unwrap_or_default()
    } else {
        Value::Object(fields)
    };
    let payload = match expect {
        PayloadKind::Telemetry => {
            let point: TelemetryPoint = deserialize_payload(&raw_payload)?;
            point.check()?;
            Payload::Telemetry(point)
        }
        PayloadKind::Event => {
            let event: RoastEvent = deserialize_payload(&raw_payload)?;
            if !event.ts.is_plausible() {
                return Err(field_error("ts", "not between 1970 and 9999"));
            }
            if event.number("elapsedSeconds").is_some_and(|s| !ELAPSED_S.contains(&s)) {
                return Err(field_error("payload.elapsedSeconds", "not between 0 and 10000000"));
            }
            Payload::Event(event)
        }
    };
    let machine = match &payload {
        Payload::Telemetry(point) => &point.machine_id,
        Payload::Event(event) => &event.machine_id,
    };
    if *machine != origin.machine {
        let (claimed, actual) = (machine.to_string(), origin.machine.to_string());
        return Err(EnvelopeError::Origin { claimed, actual });
    }
    Ok(ReceivedEnvelope { payload, raw_payload, sig, kid, nested })
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

fn deserialize_payload<'v, T: Deserialize<'v>>(value: &'v Value) -> Result<T, EnvelopeError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner().to_string();
        // A missing field is an error of the enclosing object; its name is in the text.
        let name = problem.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let name = name.map_or(path, str::to_owned);
        field_error(&name, problem)
    })
}

fn field_error(name: &str, problem: impl Into<String>) -> EnvelopeError {
    FieldError { field: name.to_owned(), problem: problem.into() }.into()
}
