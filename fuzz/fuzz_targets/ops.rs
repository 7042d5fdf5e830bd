//! Topics of machines and services, and the messages that services publish about roasts.
#![no_main]
use contract::ops::{self, SessionClosed, SessionClosedAck};
use contract::topic;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok((origin, kind)) = topic::parse_topic(text) {
        assert_eq!(kind.topic(&origin), text);
    }
    if let Ok((origin, kind)) = ops::parse_topic(text) {
        assert_eq!(kind.topic(&origin), text);
        assert!(topic::parse_topic(text).is_err(), "a machine may not publish on {text}");
    }
    if let Ok(event) = serde_json::from_str::<SessionClosed>(text) {
        let written = serde_json::to_string(&event).unwrap();
        let again: SessionClosed = serde_json::from_str(&written).unwrap();
        assert_eq!(again, event);
        if event.problem().is_none() {
            assert_eq!((event.kind.as_str(), event.version), ("session.closed", 1));
        }
    }
    if let Ok(ack) = serde_json::from_str::<SessionClosedAck>(text) {
        let written = serde_json::to_string(&ack).unwrap();
        assert_eq!(serde_json::from_str::<SessionClosedAck>(&written).unwrap(), ack);
    }
});
