#![no_main]
use contract::envelope::{PayloadKind, decode};
use contract::{MachineId, OrgId, Origin, SiteId};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (Ok(org), Ok(site), Ok(machine)) = (OrgId::new("o"), SiteId::new("s"), MachineId::new("m"))
    else {
        return;
    };
    let origin = Origin { org, site, machine };
    let _ = decode(bytes, PayloadKind::Telemetry, &origin);
    let _ = decode(bytes, PayloadKind::Event, &origin);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = contract::topic::parse_topic(text);
    }
});
