//! The messages that services publish for each other about roasts. Their topics are separate from
//! the machines' own topics.

use serde::{Deserialize, Serialize};

use crate::mission::{CloseReason, POST_ROAST};
use crate::topic::TopicError;
use crate::{EpochMs, MachineId, OrgId, Origin, SessionId, SiteId};

/// The event that a roast has ended and can be processed. The publisher resends it until it
/// receives [`SessionClosedAck`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionClosed {
    /// Always `session.closed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Always 1.
    pub version: u32,
    /// When the publisher sent the event.
    pub emitted_at: EpochMs,
    /// The machine that roasted.
    #[serde(flatten)]
    pub origin: Origin,
    /// The session that ended.
    pub session_id: SessionId,
    /// The kind of the report to write; `POST_ROAST_V1` if absent.
    #[serde(default = "post_roast")]
    pub report_kind: String,
    /// Why the roast ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<CloseReason>,
    /// The time of DROP, s from the start of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_seconds: Option<f64>,
    /// The number of samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry_points: Option<u64>,
    /// The duration of the session, s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_sec: Option<f64>,
    /// The time from the last sample to the end of the session, s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_telemetry_delta_sec: Option<f64>,
    /// Whether the session has bean temperatures.
    #[serde(default, rename = "hasBT", skip_serializing_if = "Option::is_none")]
    pub has_bt: Option<bool>,
    /// Whether the session has environment temperatures.
    #[serde(default, rename = "hasET", skip_serializing_if = "Option::is_none")]
    pub has_et: Option<bool>,
}

fn post_roast() -> String {
    POST_ROAST.to_owned()
}

impl SessionClosed {
    /// The only valid `kind`.
    pub const KIND: &str = "session.closed";
    /// The only valid `version`.
    pub const VERSION: u32 = 1;

    /// Returns what is wrong with the event, if anything: deserialising checks only the form.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if self.kind != Self::KIND || self.version != Self::VERSION {
            return Some(format!(
                "type {} version {}: not {} 1",
                self.kind,
                self.version,
                Self::KIND
            ));
        }
        let word = |text: &str| !text.is_empty() && text.len() <= 64;
        (!word(&self.report_kind)).then(|| "reportKind: not 1 to 64 bytes".to_owned())
    }
}

/// Acknowledges a [`SessionClosed`] event: a service has created work for it. The publisher resends
/// the event until it receives this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionClosedAck {
    /// The session whose event is acknowledged.
    pub session_id: SessionId,
}

/// The kind of a message on one of the two topics `ops/{org}/{site}/{machine}/session/…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionTopic {
    /// A [`SessionClosed`] event.
    Closed,
    /// A [`SessionClosedAck`].
    ClosedAck,
}

impl SessionTopic {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Closed => "session/closed",
            Self::ClosedAck => "session/taken",
        }
    }

    /// Returns the topic of this kind for a machine.
    #[must_use]
    pub fn topic(self, origin: &Origin) -> String {
        format!("ops/{origin}/{}", self.suffix())
    }

    /// Returns a topic filter for all machines, shared by the members of `group`; see
    /// [`TopicKind::shared_filter`](crate::topic::TopicKind::shared_filter).
    #[must_use]
    pub fn shared_filter(self, group: &str) -> String {
        format!("$share/{group}.{}/ops/+/+/+/{}", self.suffix().replace('/', "."), self.suffix())
    }
}

/// Parses a topic into origin and kind.
///
/// # Errors
/// When it is neither of the two topics, or a level is not an identity.
pub fn parse_topic(topic: &str) -> Result<(Origin, SessionTopic), TopicError> {
    let mut levels = topic.splitn(5, '/');
    let mut next = || levels.next().ok_or(TopicError::Form);
    if next()? != "ops" {
        return Err(TopicError::Form);
    }
    let (org, site, machine, suffix) = (next()?, next()?, next()?, next()?);
    let kinds = [SessionTopic::Closed, SessionTopic::ClosedAck];
    let kind = kinds.into_iter().find(|k| k.suffix() == suffix).ok_or(TopicError::Kind)?;
    let origin = Origin {
        org: OrgId::new(org)?,
        site: SiteId::new(site)?,
        machine: MachineId::new(machine)?,
    };
    Ok((origin, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_read_back_and_the_reference_s_event_is_understood() {
        let event: SessionClosed = serde_json::from_str(
            r#"{"type":"session.closed","version":1,"emittedAt":"2025-10-05T21:08:15.000Z",
                "orgId":"o","siteId":"s","machineId":"m","sessionId":"S-1","reason":"DROP",
                "dropSeconds":612.5,"hasBT":true}"#,
        )
        .unwrap();
        assert_eq!((event.problem(), event.report_kind.as_str()), (None, "POST_ROAST_V1"));
        for kind in [SessionTopic::Closed, SessionTopic::ClosedAck] {
            assert_eq!(parse_topic(&kind.topic(&event.origin)), Ok((event.origin.clone(), kind)));
        }
        assert!(parse_topic("roaster/o/s/m/session/closed").is_err());
        let other = SessionClosed { version: 2, ..event };
        assert!(other.problem().unwrap().contains("version 2"));
    }
}
