//! Checks display names and aliases of machines.

use contract::*;
use ingestion::IngestStore;
use ingestion::store::{ChangedBy, MachineChange, MachineNaming, NameRefusal, SessionFilter};
use ingestion::verified_frame::{Numbering, Trust, VerifiedFrame};

use crate::NOW;

/// Returns the first frame of a chain, with one sample and no events.
fn first_frame(origin: Origin, chain: ChainId) -> Frame {
    Frame {
        origin,
        chain,
        number: 1,
        previous: None,
        boot_id: 1,
        first_seq: 0,
        mono_ms: 1_000,
        wall: NOW,
        clock: ClockQuality::Synchronised,
        profile_digest: None,
        offsets_ms: vec![0],
        columns: vec![Column { channel: Channel::Bt, values: vec![Some(200.0)], quality: vec![] }],
        events: vec![],
    }
}

/// Stores a frame; returns the number of its chain and its digest.
async fn store_frame(store: &IngestStore, frame: Frame, received: EpochMs) -> (i64, Digest) {
    let signed = frame.encode();
    let digest = trust::sha256_digest(&signed);
    let kid = "device:gw@leipzig";
    let no = store.chain_no(&frame.origin, frame.chain, kid, received).await.unwrap();
    let verified = VerifiedFrame {
        digest,
        signed,
        frame,
        kid: kid.to_owned(),
        trust: Trust::Verified,
        numbering: Numbering::Edge,
        published: None,
        received,
    };
    store.commit(&[no], &[verified], received).await.unwrap();
    (no.chain, digest)
}

/// Stores a frame that opens the session `session` at the machine `org/site/machine`; returns the
/// number of its chain and its digest.
async fn roast(store: &IngestStore, machine: &str, session: &str) -> (i64, Digest) {
    let chain = ChainId(trust::sha256_digest(machine.as_bytes()).0[..16].try_into().unwrap());
    let charge = MachineEvent {
        kind: EventKind::Charge,
        seq: 0,
        at: NOW,
        elapsed_s: 0.0,
        session: SessionId::new(session).unwrap(),
        source: EventSource::Machine,
        bt_c: None,
        note: None,
    };
    let first = first_frame(machine.parse().unwrap(), chain);
    store_frame(store, Frame { events: vec![charge], ..first }, NOW).await
}

async fn change(
    store: &IngestStore,
    machine: &str,
    change: MachineChange<'_>,
) -> Result<MachineNaming, NameRefusal> {
    let Origin { org, site, machine } = machine.parse().unwrap();
    let actor = Actor { kind: ActorKind::System, id: "test".to_owned(), display: None, org: None };
    let by = ChangedBy { actor: &actor, now: NOW };
    store.change_machine(&org, (&site, &machine), change, by).await.unwrap()
}

/// The ids of the sessions that a filter by site and machine finds, sorted.
async fn found(store: &IngestStore, org: &str, site: Option<&str>, machine: &str) -> Vec<String> {
    let filter = SessionFilter {
        site: site.map(str::to_owned),
        machine: Some(machine.to_owned()),
        limit: 10,
        ..SessionFilter::default()
    };
    let rows = store.sessions(&OrgId::new(org).unwrap(), &filter).await.unwrap();
    let mut ids: Vec<String> = rows.into_iter().map(|row| row.session_id).collect();
    ids.sort();
    ids
}

async fn an_alias_joins_the_history_of_both_ids_and_its_removal_parts_them(store: &IngestStore) {
    let (chain, digest) = roast(store, "acme/leipzig/drum-1", "S-old").await;
    roast(store, "acme/leipzig/Drum-1", "S-new").await;
    roast(store, "acme/berlin/drum-1", "S-berlin").await;
    let org = OrgId::new("acme").unwrap();
    let successor = MachineId::new("Drum-1").unwrap();
    assert_eq!(found(store, "acme", None, "Drum-1").await, ["S-new"]);

    let alias = MachineChange::Alias(&successor);
    let names = change(store, "acme/leipzig/drum-1", alias).await.unwrap();
    assert_eq!(names, store.machine_names(&org).await.unwrap(), "all of it is stored");
    let both = ["S-new", "S-old"];
    assert_eq!(found(store, "acme", None, "Drum-1").await, both);
    assert_eq!(found(store, "acme", Some("leipzig"), "drum-1").await, both);
    assert_eq!(found(store, "acme", None, "drum-1").await, ["S-berlin", "S-new", "S-old"]);
    assert_eq!(found(store, "acme", Some("berlin"), "drum-1").await, ["S-berlin"]);
    let at_leipzig = (Some("leipzig"), Some("Drum-1"));
    assert_eq!(store.machines_of(&org, at_leipzig).await.unwrap().len(), 2);
    assert_eq!(store.newest_events(&org, at_leipzig, 10).await.unwrap().len(), 2);
    let (own, range) = (Some(&org), (0, i64::MAX));
    let events = store.events_between(own, at_leipzig, range, 10).await.unwrap();
    let frames = store.frames_between(own, at_leipzig, range, (10, 1_000)).await.unwrap();
    assert_eq!((events.len(), frames.len()), (2, 2));
    let ids = store.database().ids_of_machine(&org, "Drum-1").await.unwrap();
    assert_eq!(ids, ["Drum-1", "drum-1"]);

    // What was stored and signed keeps its id.
    assert_eq!(store.digests(chain, 1, 1).await.unwrap(), [digest.0.to_vec()]);
    let old = store.session(&org, "S-old").await.unwrap().unwrap();
    assert_eq!(old.machine_id, "drum-1");

    change(store, "acme/leipzig/drum-1", MachineChange::Unalias).await.unwrap();
    assert_eq!(found(store, "acme", None, "Drum-1").await, ["S-new"]);
    assert_eq!(found(store, "acme", Some("leipzig"), "drum-1").await, ["S-old"]);
    assert_eq!(store.machine_names(&org).await.unwrap(), MachineNaming::default());
    let log = store.database().audit_log(&org, 0, 10).await.unwrap();
    let log: Vec<_> = log.iter().map(|e| (e.action.as_str(), e.subject.as_str())).collect();
    assert_eq!(log, [("machine.alias", "leipzig/drum-1"), ("machine.unalias", "leipzig/drum-1")]);
}

async fn a_refused_change_stores_and_audits_nothing(store: &IngestStore) {
    roast(store, "acme/leipzig/drum-1", "S-1").await;
    let org = OrgId::new("acme").unwrap();
    let refused = change(store, "acme/leipzig/drum-2", MachineChange::Rename(Some("x"))).await;
    assert_eq!(refused, Err(NameRefusal::UnknownMachine));
    let itself = MachineId::new("drum-1").unwrap();
    let refused = change(store, "acme/leipzig/drum-1", MachineChange::Alias(&itself)).await;
    assert_eq!(refused, Err(NameRefusal::Circle("drum-1".to_owned())));
    assert_eq!(store.machine_names(&org).await.unwrap(), MachineNaming::default());
    assert!(store.database().audit_log(&org, 0, 10).await.unwrap().is_empty());
}

async fn an_alias_is_one_organisations_own(store: &IngestStore) {
    roast(store, "acme/leipzig/drum-1", "S-1").await;
    roast(store, "rival/leipzig/Drum-1", "S-2").await;
    let successor = MachineId::new("Drum-1").unwrap();
    let alias = MachineChange::Alias(&successor);
    let foreign = change(store, "rival/leipzig/drum-1", alias).await;
    assert_eq!(foreign, Err(NameRefusal::UnknownMachine));
    change(store, "acme/leipzig/drum-1", alias).await.unwrap();
    assert_eq!(found(store, "acme", None, "Drum-1").await, ["S-1"], "before it sends data itself");
    assert_eq!(found(store, "rival", None, "Drum-1").await, ["S-2"]);
    assert!(found(store, "rival", None, "drum-1").await.is_empty());
    let rival = OrgId::new("rival").unwrap();
    assert_eq!(store.machine_names(&rival).await.unwrap(), MachineNaming::default());
}

async fn a_display_name_is_stored_and_shown_with_the_present_id(store: &IngestStore) {
    roast(store, "acme/leipzig/drum-1", "S-1").await;
    let (org, successor) = (OrgId::new("acme").unwrap(), MachineId::new("Drum-1").unwrap());
    let named = MachineChange::Rename(Some("Probat, hall 2"));
    change(store, "acme/leipzig/drum-1", named).await.unwrap();
    change(store, "acme/leipzig/drum-1", MachineChange::Alias(&successor)).await.unwrap();
    let mut origin: Origin = "acme/leipzig/drum-1".parse().unwrap();
    let name = store.machine_names(&org).await.unwrap().present(&mut origin);
    assert_eq!((name.as_deref(), origin.machine), (Some("Probat, hall 2"), successor));
    change(store, "acme/leipzig/drum-1", MachineChange::Rename(None)).await.unwrap();
    let names = store.machine_names(&org).await.unwrap();
    assert_eq!(names.display_name("leipzig", "Drum-1"), None);
}

/// Stores a frame of one of the chains of `acme/leipzig/drum-1`: the second one if `previous` names
/// the first. It was made and received so many seconds after [`NOW`]. Returns the number of the chain
/// and the frame's digest.
async fn store_next(
    store: &IngestStore,
    (chain, previous): (u8, Option<Digest>),
    (made_s, received_s): (i64, i64),
) -> (i64, Digest) {
    let number = if previous.is_some() { 2 } else { 1 };
    let frame = Frame {
        number,
        previous,
        first_seq: number,
        mono_ms: number * 1_000,
        wall: NOW.plus_ms(made_s * 1_000),
        ..first_frame("acme/leipzig/drum-1".parse().unwrap(), ChainId([chain; 16]))
    };
    store_frame(store, frame, NOW.plus_ms(received_s * 1_000)).await
}

/// A gateway was replaced; the old one later sends what its journal has kept.
async fn a_late_frame_of_an_older_chain_does_not_make_it_the_newest(store: &IngestStore) {
    let org = OrgId::new("acme").unwrap();
    let newest = async || -> Vec<i64> {
        let machines = store.machines_of(&org, (None, Some("drum-1"))).await.unwrap();
        machines.iter().map(|row| row.chain_no).collect()
    };
    let (old, first) = store_next(store, (1, None), (0, 0)).await;
    assert_eq!(newest().await, [old]);
    let (new, second) = store_next(store, (2, None), (100, 100)).await;
    assert_eq!(newest().await, [new]);
    store_next(store, (1, Some(first)), (1, 200)).await;
    assert_eq!(newest().await, [new], "it was seen last, with an older sample");
    store_next(store, (2, Some(second)), (101, 200)).await;
    assert_eq!(newest().await, [new], "both were seen at the same time");
    // Chains without frames, as of a gateway that keeps its journal in memory.
    let origin: Origin = "acme/leipzig/drum-1".parse().unwrap();
    for n in 3..=100 {
        store.chain_no(&origin, ChainId([n; 16]), "device:gw@leipzig", NOW).await.unwrap();
    }
    assert_eq!(newest().await, [new], "among many chains");
}

on_both!(
    an_alias_joins_the_history_of_both_ids_and_its_removal_parts_them,
    a_refused_change_stores_and_audits_nothing,
    an_alias_is_one_organisations_own,
    a_display_name_is_stored_and_shown_with_the_present_id,
    a_late_frame_of_an_older_chain_does_not_make_it_the_newest,
);
