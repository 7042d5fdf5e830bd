//! Tests that the worked example of `docs/reference/protocol.md` matches the code.

use contract::*;

fn example() -> Frame {
    let origin = Origin {
        org: OrgId::new("acme").unwrap(),
        site: SiteId::new("leipzig").unwrap(),
        machine: MachineId::new("r-1").unwrap(),
    };
    Frame {
        chain: ChainId(*b"0123456789abcdef"),
        number: 2,
        previous: Some(Digest([0xd1; 32])),
        boot_id: 7,
        first_seq: 10,
        mono_ms: 2000,
        wall: EpochMs(1_760_000_000_000),
        clock: ClockQuality::Synchronised,
        profile_digest: None,
        offsets_ms: vec![0, 1000, 2001],
        columns: vec![
            Column {
                channel: Channel::Bt,
                values: vec![Some(187.4), Some(187.6), None],
                quality: vec![],
            },
            Column {
                channel: Channel::Gas,
                values: vec![Some(65.0), Some(65.0), Some(60.0)],
                quality: vec![],
            },
        ],
        events: vec![MachineEvent {
            kind: EventKind::Fc,
            seq: 11,
            at: EpochMs(1_760_000_001_000),
            elapsed_s: 481.5,
            session: SessionId::new("S-1").unwrap(),
            source: EventSource::Person,
            bt_c: Some(187.6),
            note: None,
        }],
        origin,
    }
}

#[test]
fn the_worked_example_matches_the_code() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/protocol.md");
    let page = std::fs::read_to_string(root).unwrap();
    let block = page.split("```hex\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let hex: String = block
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(str::chars)
        .filter(char::is_ascii_hexdigit)
        .collect();
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    assert_eq!(bytes, example().encode());
    assert_eq!(Frame::decode(&bytes).unwrap(), example());
}
