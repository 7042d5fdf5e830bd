//! MQTT topics. All topics of a machine are under `roaster/{org}/{site}/{machine}/`, so one ACL
//! line limits a device to its machines. Topics of five levels are upstream Sim-Corp's; the sixth
//! level is ours.

use crate::{IdError, MachineId, OrgId, Origin, SiteId, upstream_id};

/// The kind of a message on a machine's topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TopicKind {
    /// Upstream Sim-Corp's JSON, one sample a message.
    Telemetry,
    /// Upstream Sim-Corp's JSON, one event a message.
    Events,
    /// A signed frame, sent as soon as it was recorded.
    LiveFrame,
    /// A signed frame from the backlog after an outage. Live frames have priority over it.
    BacklogFrame,
    /// A signed receipt of a closed roast.
    Receipt,
    /// The cloud's acknowledgement.
    Ack,
}

impl TopicKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Telemetry,
        Self::Events,
        Self::LiveFrame,
        Self::BacklogFrame,
        Self::Receipt,
        Self::Ack,
    ];

    /// Returns the levels after the machine.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Events => "events",
            Self::LiveFrame => "frames/live",
            Self::BacklogFrame => "frames/backlog",
            Self::Receipt => "receipts",
            Self::Ack => "acks",
        }
    }

    /// Returns the topic of this kind for a machine.
    #[must_use]
    pub fn topic(self, origin: &Origin) -> String {
        format!("roaster/{origin}/{}", self.suffix())
    }

    /// Returns a topic filter for all machines, shared by the members of `group` so that each
    /// message goes to one of them. Each kind has a group of its own, because rumqttd treats all
    /// filters of one group as one.
    #[must_use]
    pub fn shared_filter(self, group: &str) -> String {
        format!(
            "$share/{group}.{}/roaster/+/+/+/{}",
            self.suffix().replace('/', "."),
            self.suffix()
        )
    }
}

/// Why a topic is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The topic does not have the levels of a machine's topic.
    #[error("not roaster/{{org}}/{{site}}/{{machine}}/…")]
    Form,
    /// The levels after the machine name no known kind of message.
    #[error("unknown kind of message")]
    Kind,
    /// A level is not an identity.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// Parses a topic into origin and kind.
///
/// # Errors
/// When it is not a machine's topic, its kind is unknown, or a level is not an identity.
pub fn parse_topic(topic: &str) -> Result<(Origin, TopicKind), TopicError> {
    let mut levels = topic.splitn(5, '/');
    let mut next = || levels.next().ok_or(TopicError::Form);
    if next()? != "roaster" {
        return Err(TopicError::Form);
    }
    let (org, site, machine, suffix) = (next()?, next()?, next()?, next()?);
    let kind =
        TopicKind::ALL.into_iter().find(|kind| kind.suffix() == suffix).ok_or(TopicError::Kind)?;
    let org = OrgId::new(org)?;
    let (site, machine) = match kind {
        // Upstream's publishers may use names that are no identities.
        TopicKind::Telemetry | TopicKind::Events => {
            (upstream_id::identity(site)?, upstream_id::identity(machine)?)
        }
        _ => (SiteId::new(site)?, MachineId::new(machine)?),
    };
    Ok((Origin { org, site, machine }, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_reads_back() {
        let origin = Origin {
            org: OrgId::new("acme").unwrap(),
            site: SiteId::new("leipzig").unwrap(),
            machine: MachineId::new("r-1").unwrap(),
        };
        for kind in TopicKind::ALL {
            assert_eq!(parse_topic(&kind.topic(&origin)), Ok((origin.clone(), kind)));
        }
        let named = parse_topic("roaster/acme/Halle 1/Loring S35/telemetry").unwrap().0;
        assert_eq!(named.to_string(), "acme/@Halle:201/@Loring:20S35");
        assert!(parse_topic("roaster/acme/Halle 1/Loring S35/receipts").is_err(), "ours");
        assert!(parse_topic("roaster/a me/b/c/telemetry").is_err(), "an organisation");
        for bad in
            ["", "roaster/a/b/c", "roaster/a/b/c/d", "ops/a/b/c/telemetry", "roaster//b/c/acks"]
        {
            assert!(parse_topic(bad).is_err(), "{bad}");
        }
    }
}
