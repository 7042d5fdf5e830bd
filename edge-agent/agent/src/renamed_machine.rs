//! What the agent says when `machine.id` was changed: the cloud then knows a second machine, until
//! an operator permits the new id and declares it as the successor of the old one.

use contract::{Origin, Refusal};

/// Returns what to do if the gateway's machine has another id than the journal's newest frames;
/// `None` if it has the same id, or the gateway was moved to another site or organisation.
pub fn hint(before: &Origin, now: &Origin) -> Option<String> {
    let moved = (&before.org, &before.site) != (&now.org, &now.site);
    if moved || before.machine == now.machine {
        return None;
    }
    let (site, old, new) = (&before.site, &before.machine, &now.machine);
    Some(format!(
        "machine.id was {old} and is {new} now. If it is the same machine, set machine.previous_id = \
         \"{old}\", so that what was learned is used, permit both ids for this gateway (PUT \
         /devices/ID/machines at the fleet service), then let the cloud join them: simcorp machine \
         alias {site}/{old} {new}"
    ))
}

/// Returns what the operator reads when the cloud refuses frames for now.
pub fn describe_refusal(reason: Refusal) -> String {
    let text = format!("the cloud refuses our frames: {reason}");
    if reason != Refusal::WrongOrigin {
        return text;
    }
    format!(
        "{text}. If machine.id was changed, permit the old and the new id for this gateway (PUT \
         /devices/ID/machines at the fleet service), then: simcorp machine alias SITE/OLD-ID NEW-ID"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_machine_id_names_the_command_that_joins_both() {
        let origin = |text: &str| text.parse::<Origin>().unwrap();
        let before = origin("acme/leipzig/drum-1");
        let told = hint(&before, &origin("acme/leipzig/Drum-1")).unwrap();
        assert!(told.ends_with("simcorp machine alias leipzig/drum-1 Drum-1"), "{told}");
        assert_eq!(hint(&before, &before), None);
        assert_eq!(hint(&before, &origin("acme/berlin/Drum-1")), None, "moved, not renamed");
    }

    #[test]
    fn a_refused_machine_names_the_command_and_an_unknown_key_does_not() {
        assert!(describe_refusal(Refusal::WrongOrigin).contains("simcorp machine alias"));
        assert!(!describe_refusal(Refusal::UnknownKey).contains("alias"));
    }
}
